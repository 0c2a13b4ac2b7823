"""What there is to say of a TensorRT engine: trtexec's summary, its builds, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from harness.records import Interval, Measurement, TimeSummary
from harness.report.tables import add_row, new_table, show
from harness.units import format_size, format_time

__all__ = ["engine_json", "engine_text", "print_engine"]


class PerformanceRow(Protocol):
    """Throughput, and a summary of each time by trtexec's name."""

    @property
    def throughput_per_s(self) -> float: ...  # the class says it
    @property
    def times(self) -> Sequence[tuple[str, TimeSummary]]: ...


class BuildsRow(Protocol):
    """Several builds of one file; see ``tensorrt.rebuilds.Rebuilds``."""

    @property
    def latencies_s(self) -> Sequence[float]: ...
    @property
    def kept(self) -> int: ...
    @property
    def spread(self) -> float: ...
    @property
    def spread_interval(self) -> Interval: ...
    @property
    def distinct(self) -> int | None: ...
    @property
    def matters(self) -> bool: ...


class ProfiledRow(Protocol):
    """What came with a measurement: builds of its engine, and notes."""

    @property
    def builds(self) -> BuildsRow | None: ...
    @property
    def notes(self) -> Sequence[str]: ...


def engine_json(
    measurement: Measurement, performance: PerformanceRow | None, found: ProfiledRow
) -> dict[str, Any]:
    """The engine, trtexec's summary, the builds and notes; {} where no engine was built."""
    content: dict[str, Any] = {}
    if measurement.engine is not None:
        content["engine"] = asdict(measurement.engine)
    if measurement.parts is not None:
        content["parts"] = asdict(measurement.parts)
    if performance is not None:
        content["performance"] = {
            "throughput_per_s": performance.throughput_per_s,
            "times": {name: asdict(time) for name, time in performance.times},
        }
    if found.builds is not None:
        content["builds"] = {
            "latencies_s": list(found.builds.latencies_s),
            "kept": found.builds.kept,
            "spread": found.builds.spread,
            "spread_interval": asdict(found.builds.spread_interval),
            "distinct": found.builds.distinct,
        }
    if found.notes:
        content["notes"] = list(found.notes)
    return content


def engine_text(
    measurement: Measurement, performance: PerformanceRow | None, found: ProfiledRow
) -> RenderableType | None:
    """The same for the terminal; None where there is nothing to say."""
    parts: list[RenderableType] = []
    if performance is not None:
        parts.append(_performance(performance))
    engine = measurement.engine
    if engine is not None:
        built = "from the cache" if engine.cached or engine.build_s is None else "built in "
        if engine.build_s is not None and not engine.cached:
            built += format_time(engine.build_s)
        layers = "" if engine.layers is None else f", {engine.layers} layers"
        parts.append(Text(f"Engine: {format_size(engine.size_bytes)}{layers}, {built}"))
    if found.builds is not None:
        parts.append(Text(_builds(found.builds)))
    parts += [Text(f"note: {note}", style="yellow") for note in found.notes]
    return Group(*parts) if parts else None


def _performance(performance: PerformanceRow) -> RenderableType:
    percents = [percent for percent, _ in performance.times[0][1].percentiles]
    table = new_table(
        f"Performance summary, as trtexec's ({performance.throughput_per_s:.6g} calls a second)",
        "time",
        "min",
        "max",
        "mean",
        "median",
        *(f"p{percent:g}" for percent in percents),
    )
    for name, time in performance.times:
        values = (time.min_s, time.max_s, time.mean_s, time.median_s)
        more = (value for _, value in time.percentiles)
        add_row(table, name, *(format_time(value) for value in (*values, *more)))
    return table


def _builds(builds: BuildsRow) -> str:
    latencies = ", ".join(format_time(value) for value in builds.latencies_s)
    distinct = "" if builds.distinct is None else f"; {builds.distinct} different engines"
    distinct = "; all the same engine" if builds.distinct == 1 else distinct
    interval = builds.spread_interval
    text = (
        f"Builds: {latencies}; the slowest takes {builds.spread:.1%} more than the fastest "
        f"({interval.low:.1%} to {interval.high:.1%}){distinct}; number {builds.kept + 1} is kept"
    )
    return text if builds.matters else f"{text}, though measuring cannot tell them apart"


def print_engine(
    measurement: Measurement, performance: PerformanceRow | None, found: ProfiledRow
) -> None:
    """Print ``engine_text``, where there is anything to say."""
    text = engine_text(measurement, performance, found)
    if text is not None:
        show(text)
