"""The result of a fit for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.records import FitResult
from harness.report import allocated, networks, words
from harness.report.tables import add_row, new_table, show

__all__ = ["fit_summary", "print_fit"]

_STYLES = {"meets": "green", "does not meet": "red", "cannot tell yet": "yellow"}


def fit_summary(result: FitResult, *, report: Path | None = None) -> RenderableType:
    """The result of a fit: verdict, budgets, networks side by side, warnings."""
    parts: list[RenderableType] = []
    if result.fake:
        parts.append(
            Text("Measured with the fake engine: these numbers say nothing.", style="bold red")
        )
    parts.append(Text(words.headline(result), style=f"bold {_STYLES[result.verdict]}"))
    if words.also(result):
        parts.append(Text(words.also(result)))
    if result.result is not None and result.result.notes:
        parts.append(Text(f"{result.result.label}: {'; '.join(result.result.notes)}"))
    if result.explanation:
        parts.append(Text(result.explanation))
    if result.budgets:
        parts.append(_budgets(result))
    parts.append(_comparison(result))
    parts += [
        Text(f"{name}: {sentence}") for name, sentence in networks.alternative_sentences(result)
    ]
    parts += [Text(sentence) for sentence in allocated.proof_sentences(result)]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    if report is not None:
        parts.append(Text(f"Report: {report}"))
    return Group(*parts)


def _budgets(result: FitResult) -> Table:
    table = new_table("Budgets", "", "limit", "measured", "verdict", "nearest (predicted)")
    for verdict in result.budgets:
        add_row(
            table,
            words.title(verdict.budget),
            words.limit_text(verdict, result.baseline),
            words.measured_text(verdict, result.baseline),
            Text(verdict.verdict, style=_STYLES[verdict.verdict]),
            words.nearest_text(verdict, result.baseline) or "",
        )
    return table


def _comparison(result: FitResult) -> Table:
    headings = [heading for heading, _ in networks.columns(result)]
    table = new_table("Baseline and result", "", "", *headings, left=2)
    for row in networks.comparison(result):
        add_row(table, row.name, Text(row.source, style="dim"), *row.cells)
    return table


def print_fit(result: FitResult, report: Path | None = None) -> None:
    """Print ``fit_summary``, and where the report is."""
    show(fit_summary(result, report=report))
