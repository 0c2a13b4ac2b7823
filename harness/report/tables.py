"""Tables for the terminal, from records; plain text where the output is no terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness import stats
from harness.attribution import attribution
from harness.records import (
    BoardFacts,
    BoardSpec,
    CacheState,
    Interval,
    KernelTime,
    Measurement,
    MeasurementVerdict,
    Profile,
    SoakSummary,
    SweepTimes,
)
from harness.report import judged, words
from harness.report.attribution import attribution_lines
from harness.report.plain import (
    PredictionRow,
    ValidationRow,
    kind_text,
    prediction_json,
    profile_json,
    validation_json,
)
from harness.report.running import running_lines
from harness.units import format_count, format_size, format_time

if TYPE_CHECKING:
    from latency_models.calibration import LatencyModel

__all__ = [
    "boards_table",
    "facts_table",
    "latency_model_table",
    "measurement_table",
    "prediction_json",
    "prediction_table",
    "print_boards",
    "print_facts",
    "print_latency_model",
    "print_prediction",
    "print_profile",
    "print_validation",
    "profile_json",
    "profile_table",
    "show",
    "times_text",
    "validation_json",
    "validation_table",
]

# What a pipe gets, which has no width: wide enough that tables need not wrap.
PIPE_WIDTH = 140


def show(renderable: RenderableType, *, console: Console | None = None) -> None:
    """Print to stdout: in colour and as wide as the terminal, or plainly into a pipe."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(renderable)


def new_table(title: str, *headings: str, left: int = 1) -> Table:
    """An empty table whose first ``left`` columns are text and whose others are numbers."""
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for i, heading in enumerate(headings):
        # Text, not str: names may hold brackets, which rich would read as markup.
        table.add_column(Text(heading), justify="left" if i < left else "right", overflow="fold")
    return table


def add_row(table: Table, *cells: str | words.Cell | Text) -> None:
    def text(cell: str | words.Cell | Text) -> Text:
        if isinstance(cell, words.Cell):
            joined = Text(cell.text)
            if cell.detail:
                # Narrow columns wrap at spaces, and "(95" alone in a line means nothing.
                joined.append("\n" + cell.detail.replace(" %)", "%)"), style="dim")
            return joined
        return cell if isinstance(cell, Text) else Text(cell)

    table.add_row(*(text(cell) for cell in cells))


# --- measurements and profiles ------------------------------------------------------------------


def measurement_table(measurements: Sequence[Measurement]) -> RenderableType:
    """Each measurement: median with interval, spread, n and what may be compared."""
    table = new_table(
        "Measured",
        "network",
        "median",
        "interval",
        "min",
        "spread",
        "samples",
    )
    for taken in measurements:
        interval = stats.interval_of_median(taken)
        add_row(
            table,
            words.Cell(
                taken.label,
                f"{taken.precision}, batch {taken.batch}, {taken.threads} "
                f"thread{'' if taken.threads == 1 else 's'}, {taken.runtime} "
                f"{taken.runtime_version} on {taken.board}",
            ),
            format_time(stats.median(taken.samples_s)),
            words.Cell(words.between(interval, format_time), words.percent(interval.coverage, 0)),
            format_time(min(taken.samples_s)),
            words.percent(stats.coefficient_of_variation(taken.samples_s)),
            str(len(taken.samples_s)),
        )
    return table


def profile_table(profile: Profile, *, end_to_end_s: float | None = None) -> RenderableType:
    """The kernels of a profile in the order of execution, with their shares of the sum.

    Below it stands how much of that is attributed and explained, with ``end_to_end_s`` the median
    call without the profiler.
    """
    total = sum(kernel.latency_s for kernel in profile.kernels)
    table = new_table(
        f"Kernels ({profile.runtime} {profile.runtime_version}, measured by its profiler)",
        "kernel",
        "operator",
        "ONNX node, where its name is another",
        "median",
        "share",
        left=3,
    )
    for kernel in profile.kernels:
        add_row(
            table,
            kernel.name,
            kernel.op,
            _origin(kernel),
            format_time(kernel.latency_s),
            words.percent(kernel.latency_s / total) if total else "",
        )
    table.add_section()
    add_row(table, f"sum of {len(profile.kernels)} kernels", "", "", format_time(total), "")
    found = attribution(profile, end_to_end_s=end_to_end_s)
    return Group(table, *(Text(line) for line in attribution_lines(found)))


def _origin(kernel: KernelTime) -> str:
    if kernel.node == kernel.name:
        return ""
    return kernel.node or (f"layout for {kernel.serves}" if kernel.serves else "none")


def validation_table(rows: Iterable[ValidationRow]) -> RenderableType:
    """Predicted against measured for networks that calibration never saw."""
    table = new_table(
        "Predicted against measured",
        "network",
        "precision",
        "predicted",
        "predicted interval",
        "measured",
        "measured interval",
        "error",
        "inside",
        left=2,
    )
    errors, inside = [], []
    for row in rows:
        errors.append(abs(row.error))
        inside.append(row.interval.low <= row.measured_s <= row.interval.high)
        add_row(
            table,
            row.network,
            row.precision,
            format_time(row.predicted_s),
            _between(row.interval),
            format_time(row.measured_s),
            _between(row.measured_interval),
            f"{100 * row.error:+.1f} %",
            "yes" if inside[-1] else Text("no", style="yellow"),
        )
    if not errors:
        return table
    summary = (
        f"{len(errors)} networks: median absolute error {words.percent(stats.median(errors))}, "
        f"largest {words.percent(max(errors))}; {sum(inside)} of {len(inside)} inside the interval"
    )
    return Group(table, Text(summary))


def _between(interval: Interval) -> words.Cell:
    return words.Cell(words.between(interval, format_time), words.percent(interval.coverage, 0))


def prediction_table(prediction: PredictionRow) -> RenderableType:
    """The predicted latency of a network, and of its kernels."""
    interval = words.between(prediction.interval, format_time)
    total = sum(seconds * factor for *_, seconds, factor in prediction.kernels)
    columns = ("kernel", "kind", "precision", "latency", "share", "by formula", "learned")
    table = new_table("Kernels (predicted)", *columns, left=3)
    for name, kind, precision, seconds, factor in prediction.kernels:
        share = words.percent(seconds * factor / total) if total else ""
        times = (format_time(seconds * factor), share, format_time(seconds))
        add_row(table, name, kind, precision, *times, f"{factor - 1:+.1%}")
    parts: list[RenderableType] = [
        Text(
            f"{prediction.network}: {format_time(prediction.latency_s)} predicted, {interval} "
            f"({words.percent(prediction.interval.coverage, 0)})",
            style="bold",
        ),
        table,
    ]
    if prediction.unsupported:
        kinds = words.and_list([kind_text(kind) for kind in prediction.unsupported])
        parts.append(
            Text(
                f"warning: never measured on this board, so taken from the datasheet: {kinds}; "
                "calibrate around this network",
                style="yellow",
            )
        )
    return Group(*parts)


def latency_model_table(model: LatencyModel) -> RenderableType:
    """What was fitted: the roofs, the held-out errors, and the parameters with their uncertainty.

    Parameters of kinds that were never measured are left out; the file has them.
    """
    peaks, bandwidth = model.roofs()
    roofs = [f"{precision} {format_count(peak)} MACs/s" for precision, peak in peaks.items()]
    lines = [
        f"Fitted to {len(model.kernel_samples)} kernels and {len(model.network_samples)} networks; "
        f"roofs: {words.and_list([*roofs, f'{format_size(bandwidth)}/s'])}"
    ]
    if model.held_out_:
        errors = [abs(math.expm1(residual)) for residual, _ in model.held_out_]
        lines.append(
            f"Held-out networks: median absolute error {words.percent(stats.median(errors))}, "
            f"largest {words.percent(max(errors))}"
        )
    learned = (
        f"Learned residual: kernels differ from the formula by {words.percent(model.residual_, 0)}"
        if model.residual_
        else "Learned residual: off, because it predicted held-out networks no better"
    )
    lines.append(learned)
    table = new_table(
        "Parameters", "parameter", "fitted", "unit", "datasheet or prior", "uncertainty"
    )
    measured = {text for kind, precision in model.measured_groups for text in (kind, precision)}
    for parameter in model.parameters:
        of = parameter.name.partition("[")[2].rstrip("]")
        if of and not set(of.split(",")) <= measured:
            continue
        # The uncertainty of a logarithm is a share; that of a time is a time.
        absolute = parameter.unit == "us"
        add_row(
            table,
            parameter.name,
            f"{parameter.value:.4g}",
            parameter.unit,
            f"{parameter.prior:.4g}",
            f"{parameter.uncertainty:.2g} {parameter.unit}"
            if absolute
            else words.percent(parameter.uncertainty),
        )
    return Group(*(Text(line) for line in lines), table)


# --- boards -------------------------------------------------------------------------------------


def boards_table(boards: Iterable[BoardSpec]) -> RenderableType:
    """The boards that the inventory knows."""
    table = new_table(
        "Boards", "name", "host", "runtime", "threads", "profile", "power mode", left=6
    )
    for board in boards:
        add_row(
            table,
            board.name,
            board.host or "this computer",
            board.runtime,
            str(board.threads),
            board.profile or "none",
            board.power_mode or "as it is",
        )
    return table


def facts_table(facts: BoardFacts) -> RenderableType:
    """What the agent found on a board."""
    table = new_table(f"Board {facts.board}", "", "", left=2)
    for name, value in words.fingerprint(facts):
        add_row(table, name, value)
    return table


def times_text(times: SweepTimes) -> Text:
    """Where the time of a calibration went, and how much was kept from an earlier run."""
    kept = f", {times.kept} of them kept from an earlier run" if times.kept else ""
    measuring = format_time(times.measure_s) if times.measure_s else "0 s"
    return Text(
        f"Time: {measuring} of measuring "
        f"({format_time(times.planned_s)} planned, {format_time(times.budget_s)} allowed), "
        f"{format_time(times.build_s)} of building and sending networks, "
        f"{format_time(times.fit_s)} of choosing and fitting; "
        f"{times.kernels} kernels chosen, {times.networks} measurements of networks{kept}"
    )


def print_profile(
    measurement: Measurement,
    profile: Profile,
    *,
    verdict: MeasurementVerdict,
    soak: SoakSummary | None = None,
) -> None:
    """Print one network's measurement with the verdict on it, its soak and its kernels."""
    lines = (Text(line) for line in running_lines(measurement))
    parts = [measurement_table([measurement]), *lines, judged.verdict_text(verdict)]
    if soak is not None:
        parts.append(judged.soak_text(soak))
    kernels = profile_table(profile, end_to_end_s=stats.median(measurement.samples_s))
    show(Group(*parts, kernels))


def print_prediction(prediction: PredictionRow) -> None:
    """Print ``prediction_table``."""
    show(prediction_table(prediction))


def print_latency_model(model: LatencyModel, times: SweepTimes | None, path: Path) -> None:
    """Print ``latency_model_table``, where the time went, and where the latency model is.

    ``times`` is None where nothing was measured: the model is fitted to a table.
    """
    spent = [] if times is None else [times_text(times)]
    show(Group(latency_model_table(model), *spent, Text(f"Latency model: {path}")))


def print_validation(rows: Iterable[ValidationRow]) -> None:
    """Print ``validation_table``."""
    show(validation_table(rows))


def print_boards(boards: Iterable[BoardSpec]) -> None:
    """Print ``boards_table``."""
    show(boards_table(boards))


def print_facts(facts: BoardFacts) -> None:
    """Print ``facts_table``."""
    show(facts_table(facts))


def print_cache(state: CacheState) -> None:
    """Print what a clean-up of a board removed, and what is left there."""
    removed = ", ".join(f"{count} {kind}" for kind, count in state.removed.items() if count)
    show(
        f"removed {removed or 'nothing'}: {format_size(state.freed_bytes)}. "
        f"{format_size(state.cache_bytes)} are left in the cache, {state.jobs} jobs; "
        f"{format_size(state.free_bytes)} of the disk are free"
    )
