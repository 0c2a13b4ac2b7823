"""A comparison of two runs, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.comparison.compare import Change, Comparison, Side, Value
from harness.comparison.differences import Difference, Outcome
from harness.records import KernelTime
from harness.report import words
from harness.report.tables import add_row, new_table, show
from harness.units import format_count, format_time

__all__ = ["comparison_json", "comparison_text", "outcome_text", "print_comparison"]

# Kernels shown without --all: those that changed by the most time, faster or slower.
SHOWN = 12
_STYLES = {"slower": "red", "not slower": "green", "cannot tell": "yellow"}
_TITLES = {"network_sha256": "network", "agent_hash": "agent", "timed": "what is timed"}


def print_comparison(
    comparison: Comparison,
    *,
    limit: float | None = None,
    outcome: Outcome | None = None,
    every: bool = False,
) -> None:
    """Print ``comparison_text`` and, where there is a limit, what it comes to."""
    parts = [comparison_text(comparison, every=every)]
    if limit is not None and outcome is not None:
        line = outcome_text(comparison.total, limit=limit, outcome=outcome)
        parts.append(Text(line, style=f"bold {_STYLES[outcome]}"))
    show(Group(*parts))


def comparison_text(comparison: Comparison, *, every: bool = False) -> RenderableType:
    """Totals, kernels, what changed beside them, and what to bear in mind."""
    parts: list[RenderableType] = [_totals(comparison)]
    if comparison.kernels or comparison.only_a or comparison.only_b:
        parts.append(_kernels(comparison, every=every))
    changed = [change for change in comparison.conditions if change.changed]
    if changed:
        parts.append(_changes(changed))
    else:
        parts.append(Text("Nothing that is known of versions and conditions changed."))
    if comparison.unlike:
        allowed = words.and_list([_title(name) for name in comparison.unlike])
        parts.append(Text(f"The runs are unlike in {allowed}, which was allowed.", style="yellow"))
    parts += [Text(f"{note[0].upper()}{note[1:]}.") for note in comparison.notes]
    return Group(*parts)


def outcome_text(total: Difference, *, limit: float, outcome: Outcome) -> str:
    """What a limit on slowing down comes to, in one line."""
    if total.ratio_interval is None:
        return "cannot tell: there is no interval to judge by"
    span = words.between(total.ratio_interval, _change)
    return {
        "slower": f"slower: B takes {span}, more than {words.percent(limit)}",
        "not slower": f"not slower by more than {words.percent(limit)}: B takes {span}",
        "cannot tell": (
            f"cannot tell: B takes {span}, on both sides of {words.percent(limit)}; measure both "
            "for longer (--duration)" + ("" if total.basis == "rounds" else ", or interleaved")
        ),
    }[outcome]


def comparison_json(
    comparison: Comparison, *, limit: float | None = None, outcome: Outcome | None = None
) -> dict[str, Any]:
    """The comparison unrounded, with the limit's outcome; a kernel only its times and names."""

    def alone(kernel: KernelTime) -> dict[str, Any]:
        return {name: value for name, value in asdict(kernel).items() if name != "samples_s"}

    return {
        **asdict(comparison),
        "only_a": [alone(kernel) for kernel in comparison.only_a],
        "only_b": [alone(kernel) for kernel in comparison.only_b],
        "limit": limit,
        "outcome": outcome,
    }


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def _signed(seconds: float) -> str:
    return ("+" if seconds > 0 else "") + format_time(seconds)


def _totals(comparison: Comparison) -> Table:
    table = new_table("A against B", "", "run", "median", "interval", "calls", left=2)
    for name, side in (("A", comparison.a), ("B", comparison.b)):
        add_row(
            table,
            name,
            _run(side),
            format_time(side.median_s),
            words.between(side.interval_s, format_time) if side.interval_s else "none",
            str(side.calls),
        )
    table.add_section()
    total = comparison.total
    # B - A by rounds is not the difference of the two medians above: it is free of their drift.
    add_row(table, "B - A", _basis(total), *_cells(total), "")
    if comparison.sum_of_kernels is not None:
        sums = comparison.sum_of_kernels
        text = f"{format_time(sums.a_s)} to {format_time(sums.b_s)}"
        add_row(table, "", f"sum of kernels: {text}", _signed(sums.difference_s), "", "")
    return table


def _run(side: Side) -> words.Cell:
    detail = "; ".join(part for part in (side.source, side.taken_at, side.note) if part)
    return words.Cell(side.label, detail)


def _basis(total: Difference) -> str:
    return {
        "rounds": f"by {total.rounds} rounds",
        "independent": "by independent intervals",
        "none": "no interval",
    }[total.basis]


def _cells(difference: Difference) -> tuple[words.Cell, str]:
    """The difference in time and per cent, and its interval in per cent."""
    change = "" if difference.ratio is None else _change(difference.ratio)
    value = words.Cell(_signed(difference.difference_s), change)
    interval = difference.ratio_interval
    return value, "" if interval is None else words.between(interval, _change)


def _kernels(comparison: Comparison, *, every: bool) -> Group:
    changes = sorted(comparison.kernels, key=lambda one: -abs(one.difference.difference_s))
    shown = changes if every else changes[:SHOWN]
    table = new_table(
        f"Kernels, by how much they changed ({len(shown)} of {len(changes)} that both have)",
        "ONNX node, or kernel",
        "operator",
        "A",
        "B",
        "B - A",
        "interval",
        left=2,
    )
    for one in shown:
        operator = one.op_a if one.op_a == one.op_b else f"{one.op_a}, then {one.op_b}"
        times = format_time(one.difference.a_s), format_time(one.difference.b_s)
        add_row(table, one.key, operator, *times, *_cells(one.difference))
    lines: list[RenderableType] = [table]
    for name, alone in (("A", comparison.only_a), ("B", comparison.only_b)):
        if alone:
            took = format_time(sum(kernel.latency_s for kernel in alone))
            listed = ", ".join(kernel.node or kernel.name for kernel in alone[:SHOWN])
            more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
            lines.append(Text(f"In {name} alone ({took}): {listed}{more}"))
    bases = {one.difference.basis for one in changes}
    if bases == {"rounds"}:
        lines.append(
            Text(
                f"Both were profiled in turn, in {changes[0].difference.rounds} sessions each: "
                "kernels are compared session by session."
            )
        )
    elif comparison.usual_ratio is not None:
        lines.append(
            Text(
                f"The median kernel changed by {_change(comparison.usual_ratio)}; what all share "
                "is rather the board's doing. Profiles were taken one after the other, and a "
                "kernel's interval holds within its own."
            )
        )
    return Group(*lines)


def _changes(changed: list[Change]) -> Table:
    table = new_table("What else changed", "", "A", "B")
    for change in changed:
        add_row(table, _title(change.name), _value(change, change.a), _value(change, change.b))
    return table


def _title(name: str) -> str:
    base, _, when = name.partition(" ")
    for ending in ("_hz", "_c"):
        base = base.removesuffix(ending)
    return f"{_TITLES.get(base, base.replace('_', ' '))} {when}".rstrip()


def _value(change: Change, value: Value) -> str:
    if value is None or value == "":
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    kinds: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("_hz", lambda x: f"{format_count(x)}Hz"),
        ("temp_c", lambda x: f"{x:.1f} °C"),
    )
    return next((text(value) for part, text in kinds if part in change.name), f"{value:g}")
