"""The page of a plan: what is asked, what could be built, and how sure that is."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from harness.records import Plan, PlannedStrategy, Verification
from harness.report import frame, planned, planned_figures

__all__ = ["render", "write"]

_LAYERS: dict[planned_figures.Quantity, str] = {
    "latency": "Where the time goes",
    "weights": "Where the weights lie",
    "macs": "Where the arithmetic is",
}


def write(plan: Plan, path: Path, *, verification: Verification | None = None) -> None:
    """Write the page of ``plan`` to ``path``, with what building some of it gave."""
    path.write_text(render(plan, verification=verification), encoding="utf-8")


def render(plan: Plan, *, verification: Verification | None = None) -> str:
    """The page's HTML, with everything it needs inside."""
    best = plan.strategies[0] if plan.strategies else None
    columns, rows = planned.table(plan)
    return frame.render(
        "planned.html.j2",
        figures=_figures(plan, best),
        plan=plan,
        best=best,
        planned=planned,
        headline=planned.headline(plan),
        columns=columns,
        rows=zip((None, *plan.strategies), rows, strict=True),
        verdicts=() if best is None else best.verdicts,
        nearest=planned.nearest_sentences(plan),
        layers=() if best is None else best.predicted.layers,
        checked=() if verification is None else planned.verification_rows(verification),
        verification=verification,
    )


def _figures(plan: Plan, best: PlannedStrategy | None) -> dict[str, frame.Figure]:
    better = "the further left and up, the better; point at one to read what it does."
    drafts: list[tuple[str, str, go.Figure | None, str]] = [
        (
            "accuracy",
            "Accuracy lost against latency",
            planned_figures.accuracy_against_latency(plan),
            f"Predictions with their 90 % intervals: {better}",
        ),
        (
            "size",
            "File size against latency",
            planned_figures.size_against_latency(plan),
            "Predictions with their 90 % intervals: the further left and down, the better.",
        ),
    ]
    if best is not None:
        for quantity, title in _LAYERS.items():
            drawn = planned_figures.layer_costs(plan, best, quantity)
            caption = f"Each layer of the original in grey, and after {best.name} in colour."
            drafts.append((f"layers-{quantity}", title, drawn, caption))
    return {
        name: frame.figure(drawn, name, title=title, caption=caption)
        for name, title, drawn, caption in drafts
        if drawn is not None
    }
