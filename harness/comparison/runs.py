"""A run by what the user wrote: a store, a result folder of ``fit``, a printed profile, a log."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import stats
from harness.comparison.compare import Run
from harness.errors import ConfigError
from harness.records import FitResult, ImportedSummary, Measurement, Profile, load
from harness.store import Store
from harness.trtexec import log

__all__ = ["find"]

_REFERENCE = re.compile(r"(?P<path>.+?)(?:#(?P<what>[^#]+?))?(?:~(?P<back>[0-9]{1,6}))?", re.DOTALL)
# How a fit names the campaigns in which its candidates were measured against the baseline.
FINAL = "final campaign"
SQLITE = b"SQLite format 3\0"
SHOWN = 8
Stored = Sequence[tuple[Measurement | ImportedSummary, Profile | None]]


def find(reference: str) -> Run:
    """The run that ``PATH``, ``PATH#WHAT`` or ``PATH~N`` names; ConfigError says what there is.

    ``WHAT`` is a label, a campaign, the beginning of a time (2026-01-31T12) or of a network's
    SHA-256. Of several runs it is the latest, and with ``~N`` the one N before that.
    """
    path, what, back = Path(reference), None, 0
    if not path.exists():
        match = _REFERENCE.fullmatch(reference)
        assert match is not None or not reference
        if match is not None:
            path, what, back = Path(match["path"]), match["what"], int(match["back"] or 0)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist; name a store (boardfit.db), a result folder of boardfit fit, "
            "what boardfit profile --json printed, or a trtexec log"
        )
    if path.is_dir():
        return _of_folder(path, what, back, reference)
    try:
        with path.open("rb") as stream:
            begins = stream.read(64)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    if begins.startswith(SQLITE):
        return _choose(_stored(path), what, back, reference, path)
    if begins.lstrip().startswith(b"{"):
        return Run(source=reference, **_printed(path))
    return _choose([(run, None) for run in log.read_log(path)], what, back, reference, path)


def _stored(path: Path) -> Stored:
    try:
        with Store(path) as store:
            return store.runs()
    except (sqlite3.DatabaseError, ValueError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path} is damaged ({what}); name another store") from error


def _choose(
    runs: Stored,
    what: str | None,
    back: int,
    reference: str,
    path: Path,
) -> Run:
    found = [(run, profile) for run, profile in runs if what is None or _is(run, what)]
    if len(found) <= back:
        labels = list(dict.fromkeys(run.label for run, _ in reversed(runs)))
        known = ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
        raise ConfigError(
            f"{reference}: {path} holds {len(runs)} runs, of which {len(found)} match; "
            + (f"there are {known}" if labels else "measure something first (boardfit profile)")
        )
    record, profile = found[len(found) - 1 - back]
    note = ""
    if len(found) > 1:
        which = "the latest" if back == 0 else f"{back} before the latest"
        note = f"{which} of {len(found)} that match"
    return Run(source=reference, record=record, profile=profile, note=note)


def _is(run: Measurement | ImportedSummary, what: str) -> bool:
    campaign = run.campaign if isinstance(run, Measurement) else ""
    return (
        what in (run.label, campaign)
        or (len(what) >= 4 and run.taken_at.startswith(what))
        or (len(what) >= 8 and run.network_sha256.startswith(what))
    )


def _of_folder(path: Path, what: str | None, back: int, reference: str) -> Run:
    """A fit's result, or the candidate that ``what`` names, from all of its final campaigns."""
    source, stored = path / "result.json", path / "measurements.db"
    if not (source.exists() and stored.exists()):
        raise ConfigError(
            f"{path} is no result folder of boardfit fit: it lacks "
            f"{source.name if not source.exists() else stored.name}; finish the fit, or name a "
            "store in it"
        )
    runs = _stored(stored)
    if what is None:
        try:
            result = load(FitResult, source.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{source} is damaged: {error}") from error
        if result.result is None:
            raise ConfigError(f"{path}: no variant could be built; compare {path}#baseline")
        what = result.result.label
    final = [
        (run, profile)
        for run, profile in runs
        if isinstance(run, Measurement) and run.label == what and run.campaign.startswith(FINAL)
    ]
    # A fit profiles each network once, and measures it before and after.
    profiles = {run.network_sha256: profile for run, profile in runs if profile is not None}
    if not final or back:
        runs = [(run, profiles.get(run.network_sha256)) for run, _ in runs]
        return _choose(runs, what, back, reference, path)
    joined = stats.join([run for run, _ in final if isinstance(run, Measurement)])
    note = f"{what}, {len(final)} final campaign{'s' if len(final) > 1 else ''}"
    return Run(
        source=reference, record=joined, profile=profiles.get(joined.network_sha256), note=note
    )


def _printed(path: Path) -> dict[str, Any]:
    """Measurement and profile as ``boardfit profile --json`` prints them."""
    try:
        content = json.loads(path.read_bytes())
        measurement = load(Measurement, json.dumps(content["measurement"], allow_nan=False))
        engine = ("network_sha256", "runtime", "runtime_version")
        profile = load(
            Profile,
            json.dumps(
                {
                    **{name: getattr(measurement, name) for name in engine},
                    "kernels": content["kernels"],
                    "runs_s": content.get("runs_s", []),
                },
                allow_nan=False,
            ),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        words = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"{path} is not what boardfit profile --json prints ({words[0][:200]}); print it anew"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    return {"record": measurement, "profile": profile if profile.kernels else None}
