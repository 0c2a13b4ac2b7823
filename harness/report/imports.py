"""What was imported from trtexec, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from harness.records import ImportedSummary, Measurement, Profile
from harness.report import words
from harness.report.tables import add_row, new_table, show
from harness.units import format_time

__all__ = ["ImportedRun", "imports_json", "imports_text", "print_imports"]


class ImportedRun(Protocol):
    """One run of a log, with its single calls and its layers where their files were given.

    ``known`` says that the store had it already.
    """

    @property
    def summary(self) -> ImportedSummary: ...  # noqa: D102  # the class says it
    @property
    def measurement(self) -> Measurement | None: ...  # noqa: D102
    @property
    def profile(self) -> Profile | None: ...  # noqa: D102
    @property
    def known(self) -> bool: ...  # noqa: D102


def imports_json(runs: Sequence[ImportedRun]) -> list[dict[str, Any]]:
    """One object a run: the record as stored, the single calls and layers that came with it."""
    return [
        {
            **asdict(run.summary),
            "samples_s": None if run.measurement is None else list(run.measurement.samples_s),
            "kernels": None if run.profile is None else [asdict(k) for k in run.profile.kernels],
            "known": run.known,
        }
        for run in runs
    ]


def imports_text(runs: Sequence[ImportedRun], *, store: Path) -> RenderableType:
    """One row a run: trtexec's own statistics, and what of them are single calls."""
    table = new_table(
        "Imported from trtexec",
        "network",
        "latency, median",
        "min to max",
        "GPU, median",
        "enqueue, median",
        "calls",
        "kept",
    )
    parts: list[RenderableType] = [table]
    for run in runs:
        one = run.summary
        latency = one.times["Latency"]
        detail = (
            f"{one.precision}, batch {one.batch or 'unknown'}, {one.runtime} "
            f"{one.runtime_version or '(version unknown)'} on {one.board}"
        )
        add_row(
            table,
            words.Cell(one.label, detail),
            format_time(latency.median_s),
            f"{format_time(latency.min_s)} to {format_time(latency.max_s)}",
            _median(one, "GPU Compute Time"),
            _median(one, "Enqueue Time"),
            str(one.calls),
            _kept(run),
        )
        parts += [Text(f"warning: {one.source}: {text}", style="yellow") for text in one.warnings]
        if not one.network_sha256:
            parts.append(Text(f"{one.source}: which network it ran is unproven without --network"))
    parts.append(Text(f"Store: {store}"))
    return Group(*parts)


def _median(one: ImportedSummary, name: str) -> str:
    return format_time(one.times[name].median_s) if name in one.times else ""


def _kept(run: ImportedRun) -> str:
    windows = len(run.summary.windows)
    what = f"{windows} averages" if run.measurement is None else "every call"
    layers = "" if run.profile is None else f", {len(run.profile.kernels)} layers"
    return f"{what}{layers}" + (" (was there)" if run.known else "")


def print_imports(runs: Sequence[ImportedRun], *, store: Path) -> None:
    """Print ``imports_text``."""
    show(imports_text(runs, store=store))
