"""What ``compare``, ``import`` and the exports of ``profile`` do: records in and records out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import profiles
from harness.boards import inventory
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.comparison import compare as comparing
from harness.comparison import runs
from harness.errors import ConfigError
from harness.records import ImportedSummary, Measurement, Profile
from harness.store import Store
from harness.trtexec import files, log

__all__ = ["Imported", "compare", "export", "import_logs", "measure_and_compare", "share"]

# Rounds in which two networks alternate: enough ratios for an interval of 95 %.
ROUNDS = 20
# Passes of the profiler in turn, each a session of its own, and the runs of each.
PASSES, PASS_RUNS = 8, 12
_SHARE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*%\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One imported run; ``measurement`` and ``profile`` where their files were given.

    ``known`` says that the store had it already and nothing was added.
    """

    summary: ImportedSummary
    measurement: Measurement | None
    profile: Profile | None
    known: bool


def share(text: str, *, option: str) -> float:
    """The share in ``text``: "3%" is 0.03; ConfigError if it is none."""
    match = _SHARE.fullmatch(text)
    if match is None or float(match[1]) > 1000:
        raise ConfigError(f"{option} {text!r} is no percentage; write 3%, for example")
    return float(match[1]) / 100


def compare(
    a: str,
    b: str,
    *,
    board: str,
    duration_s: float,
    store: Path,
    may_differ: Collection[str],
    allow_unlike: bool,
) -> comparing.Comparison:
    """``boardfit compare``: the two runs are found, or measured, and held against each other."""
    networks = [_is_network(name) for name in (a, b)]
    if all(networks):
        return measure_and_compare(
            Path(a),
            Path(b),
            board=board,
            duration_s=duration_s,
            store=store,
            may_differ=may_differ,
            allow_unlike=allow_unlike,
        )
    if any(networks):
        raise ConfigError(
            f"{a} and {b}: one is a network and the other a run; name two networks, which are "
            "then measured interleaved, or measure the network first (boardfit profile)"
        )
    return comparing.compare(
        runs.find(a), runs.find(b), may_differ=may_differ, allow_unlike=allow_unlike
    )


def _is_network(name: str) -> bool:
    """Whether a run's name is an ONNX file's; ``store.db#net.onnx`` is a run of the store."""
    return name.lower().endswith(".onnx") and ("#" not in name or Path(name).exists())


def measure_and_compare(
    a: Path,
    b: Path,
    *,
    board: str,
    duration_s: float,
    store: Path,
    may_differ: Collection[str],
    allow_unlike: bool,
) -> comparing.Comparison:
    """``boardfit compare A.onnx B.onnx``: both are measured now, interleaved, and then compared.

    Measurements and profiles are kept in ``store``.
    """
    for path in (a, b):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; name an .onnx file")
    plan = MeasurePlan(
        warmup_s=0.2, rounds=ROUNDS, block_s=duration_s / ROUNDS, block_min=4, drop=2
    )
    spec = inventory.find(board)
    with Session(spec) as session, Store(store) as kept:
        engines = [EngineRequest(label=path.name, path=path, precision="file") for path in (a, b)]
        measured = session.measure(
            engines, plan=plan, campaign=f"compare {a.name} {b.name} {secrets.token_hex(4)}"
        )
        for measurement in measured:
            kept.add(measurement)
        passes = [[session.profile(path, runs=PASS_RUNS) for path in (a, b)] for _ in range(PASSES)]
        found = []
        for index, measurement in enumerate(measured):
            taken = profiles.join([turn[index] for turn in passes], campaign=measurement.campaign)
            kept.add(taken)
            source = str((a, b)[index])
            found.append(comparing.Run(source=source, record=measurement, profile=taken))
    return comparing.compare(*found, may_differ=may_differ, allow_unlike=allow_unlike)


def import_logs(
    logs: Sequence[Path],
    *,
    store: Path,
    network: Path | None,
    times: Path | None,
    profile: Path | None,
    board: str | None,
    power_mode: str | None,
) -> tuple[Imported, ...]:
    """``boardfit import``: all logs are read before the first is stored."""
    found = [
        (summary, path)
        for path in logs
        for summary in log.read_log(path, network=network, board=board, power_mode=power_mode)
    ]
    if (network or times or profile) and len(found) != 1:
        raise ConfigError(
            f"--network, --times and --layers belong to one run, and these logs hold {len(found)}; "
            "import them one at a time"
        )
    nodes = _node_names(network) if network is not None and profile is not None else ()
    read = [
        (
            summary,
            None if times is None else files.as_measurement(summary, files.read_times(times)),
            None if profile is None else files.read_profile(profile, summary, nodes=nodes),
        )
        for summary, _ in found
    ]
    imported = []
    with Store(store) as kept:
        for summary, measurement, layers in read:
            # The calls of a log that was imported without them are new.
            known = (
                summary in kept.all(ImportedSummary)
                if measurement is None
                else measurement in kept.all(Measurement)
            )
            if not known:
                for record in (summary, measurement, layers):
                    if record is not None:
                        kept.add(record)
            imported.append(
                Imported(summary=summary, measurement=measurement, profile=layers, known=known)
            )
    return tuple(imported)


def _node_names(network: Path) -> tuple[str, ...]:
    import onnx

    try:
        return tuple(n.name for n in onnx.load(network, load_external_data=False).graph.node)
    except Exception as error:  # protobuf raises its own kind, which differs by backend
        raise ConfigError(
            f"{network} is not an ONNX file ({error}); name the one that trtexec ran"
        ) from error


def export(
    measurement: Measurement,
    profile: Profile,
    *,
    times: Path | None,
    layers: Path | None,
    trace: Path | None,
) -> tuple[Path, ...]:
    """Writes what was asked for in trtexec's shapes and as a Chrome trace; the files written."""
    wanted = (
        (times, lambda: files.time_entries(measurement)),
        (layers, lambda: files.profile_entries(profile)),
        (trace, lambda: files.chrome_trace(profile, title=measurement.label)),
    )
    written = []
    for path, content in wanted:
        if path is not None:
            files.write(content(), path)
            written.append(path)
    return tuple(written)
