"""A plan in words, and for the terminal: strategies that nobody has built, and how sure that is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.records import (
    Estimate,
    Met,
    Nearest,
    Plan,
    PlannedStrategy,
    Predicted,
    Requirement,
    Verification,
)
from harness.report.tables import add_row, new_table, show
from harness.report.words import Cell, and_list
from harness.units import (
    format_amount,
    format_count,
    format_energy,
    format_points,
    format_size,
    format_time,
)

__all__ = [
    "COLUMNS",
    "asked",
    "cells",
    "column_amount",
    "estimate_cell",
    "headline",
    "limit_of",
    "met_cell",
    "nearest_sentences",
    "plan_summary",
    "print_plan",
    "print_verification",
    "source_sentence",
    "table",
    "title",
    "verification_rows",
    "verification_table",
]

_TITLES = {
    "latency": "Latency",
    "size": "File size",
    "engine_size": "Engine on the board",
    "peak_memory": "Peak activations",
    "parameters": "Parameters",
    "macs": "MACs",
    "energy": "Energy a call",
    "accuracy_floor": "Accuracy",
    "accuracy_drop": "Accuracy lost",
}
_STYLES = {"meets": "green", "does not meet": "red", "cannot tell": "yellow"}
_SOURCES = {
    "calibrated": "Latencies are predicted by a latency model that was calibrated on this board.",
    "saved model": "Latencies are predicted by a saved latency model; no board was measured now.",
    "prior": (
        "Latencies are predicted from the board's datasheet alone, which nothing was calibrated "
        "to: calibrate on the board (boardfit calibrate) for narrower intervals."
    ),
}
LOST = "accuracy lost"
COLUMNS = ("size", "parameters", "MACs", "peak activations", "latency", "energy", LOST)
UNKNOWN = Cell("not predicted")


def title(requirement: Requirement) -> str:
    """What a requirement is about: "Latency, p90"."""
    name = _TITLES[requirement.quantity]
    if requirement.quantity == "latency" and requirement.percentile != 50:
        return f"{name}, p{requirement.percentile:g}"
    return name


def limit_of(requirement: Requirement) -> str:
    """The limit itself: "at most 40.0 ms"."""
    word = "at least" if requirement.quantity == "accuracy_floor" else "at most"
    whole = " of the original's" if requirement.relative else ""
    return f"{word} {format_amount(requirement, requirement.limit)}{whole}"


def asked(requirement: Requirement) -> str:
    """A requirement as a phrase: "latency at most 40.0 ms"."""
    name = title(requirement)
    return f"{name if name == 'MACs' else name[0].lower() + name[1:]} {limit_of(requirement)}"


def _span(low: float, high: float | None, text: Callable[[float], str]) -> str:
    """An interval of 90 %, the common unit once; an end that nobody knows is left open."""
    if high is None:
        return f"{text(low)} or more"
    start, end = text(low), text(high)
    number, _, unit = start.rpartition(" ")
    same = end.endswith(f" {unit}") or {unit, end.rpartition(" ")[2]} == {"point", "points"}
    return f"{number if number and same else start} to {end}"


def estimate_cell(found: Estimate | None, text: Callable[[float], str]) -> Cell:
    """A predicted number with its interval; exact ones have none."""
    if found is None:
        return UNKNOWN
    if found.exact or text(found.low) == text(found.high):
        return Cell(text(found.value))
    return Cell(text(found.value), _span(found.low, found.high, text))


def met_cell(met: Met) -> Cell:
    """What is predicted of a requirement's quantity."""
    if met.value is None:
        return UNKNOWN
    value = format_amount(met.requirement, met.value)
    if met.low is None or met.low == met.high:
        return Cell(value)
    return Cell(value, _span(met.low, met.high, lambda v: format_amount(met.requirement, v)))


def cells(predicted: Predicted) -> tuple[Cell, ...]:
    """One cell for each of ``COLUMNS``."""
    return (
        estimate_cell(predicted.size_bytes, format_size),
        Cell(format_count(predicted.parameters)),
        Cell(format_count(predicted.macs)),
        estimate_cell(predicted.peak_activation_bytes, format_size),
        estimate_cell(predicted.latency_s, format_time),
        estimate_cell(predicted.energy_j, format_energy),
        estimate_cell(predicted.accuracy_drop, format_points),
    )


def headline(plan: Plan) -> str:
    """What the plan comes to, in one sentence."""
    limits = plan.requirements.limits
    wanted = and_list([asked(one) for one in limits])
    if not plan.strategies:
        return f"There is no strategy for {plan.network} on {plan.board}"
    best = plan.strategies[0]
    if not limits:
        return f"{len(plan.strategies)} strategies for {plan.network} on {plan.board}"
    meeting = sum(one.verdict == "meets" for one in plan.strategies)
    if meeting:
        some = "One strategy is" if meeting == 1 else f"{meeting} strategies are"
        return f"{some} predicted to meet {wanted} on {plan.board}; the best is {best.name}"
    if best.verdict == "cannot tell":
        return (
            f"It cannot be told before building whether {wanted} can be met on {plan.board}; "
            f"the most promising strategy is {best.name}"
        )
    return f"No strategy is predicted to meet {wanted} on {plan.board}"


def source_sentence(plan: Plan) -> str:
    """Where the latencies come from."""
    if plan.baseline.latency_s is None:
        return "Latencies are not predicted."
    return _SOURCES[plan.baseline.latency_source]


def nearest_sentences(plan: Plan) -> tuple[str, ...]:
    """What could be reached instead, where nothing meets the requirements."""
    by_quantity = {one.quantity: one for one in plan.requirements.limits}
    found = []
    for nearest in plan.nearest:
        requirement = by_quantity.get(nearest.quantity)
        if requirement is not None:
            found.append(_nearest(nearest, requirement))
    return tuple(found)


def _nearest(nearest: Nearest, requirement: Requirement) -> str:
    text = (
        f"{title(requirement)}: {format_amount(requirement, nearest.asked)} is asked, and "
        f"{format_amount(requirement, nearest.reachable)} is the nearest that could be kept"
    )
    if nearest.aside:
        text += f", where {and_list([_TITLES[one].lower() for one in nearest.aside])} must give way"
    elif nearest.alone:
        text += ", with every other requirement set aside"
    if nearest.binding:
        text += f"; most of it goes to {and_list(nearest.binding)}"
    return text + "."


# --- the terminal -------------------------------------------------------------------------------


def plan_summary(plan: Plan, *, out: Path | None = None) -> RenderableType:
    """The plan: what it comes to, verdicts of the best, every strategy, what is uncertain."""
    worst = plan.strategies[0].verdict if plan.strategies else "does not meet"
    parts: list[RenderableType] = [
        Text(headline(plan), style=f"bold {_STYLES[worst]}" if plan.requirements.limits else "bold")
    ]
    parts += [Text(sentence) for sentence in nearest_sentences(plan)]
    if plan.strategies and plan.requirements.limits:
        parts.append(_verdicts(plan.strategies[0]))
    parts.append(_strategies(plan))
    parts += [
        Text(f"{one.name}: {' '.join(one.sentences)}")
        for one in plan.strategies[:3]  # a terminal shows the first; the page and --json all
    ]
    parts += [Text(source_sentence(plan), style="dim")]
    parts += [Text(f"note: {note}", style="yellow") for note in plan.notes]
    if out is not None:
        parts.append(
            Text(
                f"Strategy files: {out / 'strategies'} (boardfit fit --strategy FILE builds one). "
                f"Report: {out / 'report.html'}"
            )
        )
    return Group(*parts)


def _verdicts(strategy: PlannedStrategy) -> Table:
    table = new_table(f"Requirements, by {strategy.name}", "", "limit", "predicted", "verdict")
    for met in strategy.verdicts:
        add_row(
            table,
            title(met.requirement),
            limit_of(met.requirement),
            met_cell(met),
            Text(met.verdict, style=_STYLES[met.verdict]),
        )
    return table


def table(plan: Plan) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Headings, and a row of cells for the original and for each strategy.

    Columns of which nothing is predicted are left out.
    """
    rows = [cells(one.predicted) for one in plan.strategies]
    shown = [i for i in range(len(COLUMNS)) if any(row[i] != UNKNOWN for row in rows)]
    # By definition the original loses nothing.
    original = [
        Cell("0") if name == LOST else c
        for name, c in zip(COLUMNS, cells(plan.baseline), strict=True)
    ]
    return (
        tuple(COLUMNS[i] for i in shown),
        tuple(tuple(row[i] for i in shown) for row in (original, *rows)),
    )


def _strategies(plan: Plan) -> Table:
    columns, rows = table(plan)
    shown = new_table(
        "Strategies, best first (* on the front of accuracy, latency and size)",
        "strategy",
        "verdict",
        *columns,
        left=2,
    )
    add_row(shown, "the original", "", *rows[0])
    for strategy, row in zip(plan.strategies, rows[1:], strict=True):
        add_row(
            shown,
            strategy.name + (" *" if strategy.on_front else ""),
            Text(strategy.verdict, style=_STYLES[strategy.verdict]),
            *row,
        )
    return shown


def print_plan(plan: Plan, out: Path | None = None) -> None:
    """Print ``plan_summary``, and where its files are."""
    show(plan_summary(plan, out=out))


# --- verification -------------------------------------------------------------------------------

_UNITS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("latency", format_time),
    ("size", format_size),
    ("bytes", format_size),
    ("activation", format_size),
    ("energy", format_energy),
    ("drop", format_points),
    ("accuracy", format_points),
)


def column_amount(column: str, value: float) -> str:
    """A number of one of a verification's columns, as text."""
    return next((text for word, text in _UNITS if word in column), format_count)(value)


def verification_rows(found: Verification) -> tuple[tuple[str, str, Cell, str, str, str], ...]:
    """Strategy, column, predicted, actual, by how much it was off, whether the interval held."""
    rows = []
    for row in found.rows:
        predicted = row.predicted.value
        off = "exact" if predicted == row.actual else ""
        if row.actual and not off:
            off = f"{100 * (predicted / row.actual - 1):+.1f} %"
        text = functools.partial(column_amount, row.column)
        rows.append(
            (
                row.name,
                row.column.replace("_", " "),
                estimate_cell(row.predicted, text),
                text(row.actual),
                "" if "drop" in row.column else off,
                "yes" if row.covered else "no",
            )
        )
    return tuple(rows)


def verification_table(found: Verification) -> RenderableType:
    """Predicted against actual, for every column of what was built."""
    table = new_table(
        "Predicted against built and measured",
        "strategy",
        "",
        "predicted",
        "actual",
        "off by",
        "within the interval",
        left=2,
    )
    last = ""
    for name, column, predicted, *others in verification_rows(found):
        add_row(table, "" if name == last else name, column, predicted, *map(str, others))
        last = name
    notes = [Text(text) for text in (found.recalibration, *found.notes) if text]
    return Group(table, *notes)


def print_verification(found: Verification) -> None:
    """Print ``verification_table``."""
    show(verification_table(found))
