"""The report: one HTML file that opens without a network."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from harness.errors import ConfigError
from harness.records import Candidate, FitResult, Front
from harness.report import allocated, figures, frame, networks, words
from harness.units import format_time

__all__ = ["render", "write"]


def write(result: FitResult, path: Path, *, allow_fake: bool = False) -> None:
    """Write the report of ``result`` to ``path``.

    ConfigError for a result of the fake engine, unless ``allow_fake``.
    """
    if result.fake and not allow_fake:
        raise ConfigError(
            "the result was measured with the fake engine, whose times mean nothing; "
            "report on a real board's result, or allow fake ones to test the report itself"
        )
    path.write_text(render(result), encoding="utf-8")


def render(result: FitResult) -> str:
    """The report's HTML, with everything it needs inside."""
    shown = result.result if result.result is not None else result.baseline
    return frame.render(
        "page.html.j2",
        figures=_figures(result, shown),
        result=result,
        words=words,
        headline=words.headline(result),
        columns=networks.columns(result),
        rows=networks.comparison(result),
        candidates=networks.candidate_rows(result),
        alternatives=networks.alternative_sentences(result),
        groups=shown.allocation,
        proof=allocated.proof_sentences(result),
        shortlist=allocated.shortlist_rows(result),
        front_note=result.front.note if result.front is not None else "",
        fingerprint=words.fingerprint(result.board),
        total=format_time(sum(stage.wall_s for stage in result.stages)),
    )


def _figures(result: FitResult, shown: Candidate) -> dict[str, frame.Figure]:
    front = result.front if result.front is not None else Front()
    several = len(networks.all_candidates(result)) > 1
    drafts: tuple[tuple[str, str, go.Figure | None, str], ...] = (
        (
            "accuracy",
            "Accuracy against latency",
            figures.accuracy_against_latency(result) if several else None,
            "Only networks inside the shaded area meet the budgets; the further left and up, "
            "the better.",
        ),
        (
            "allocation",
            "What each group of channels keeps",
            figures.allocation(shown),
            "Short bars were pruned hard, and the colour is the precision; the list below names "
            "the layers.",
        ),
        (
            "front",
            "What a latency costs, and what the way to allocate is worth",
            allocated.front_figure(result),
            allocated.front_caption(front),
        ),
        (
            "prediction",
            "Predicted against measured latency",
            figures.predicted_against_measured(result),
            "Predictions were frozen before each network was first measured; on the dotted line "
            "they are right, and an interval that reaches it holds the measured value.",
        ),
        (
            "roofline",
            "How near each kernel comes to the roof",
            figures.roofline(result),
            "Kernels under the slanted line are limited by memory, those under a flat one by "
            "arithmetic; the further below, the more the board leaves unused.",
        ),
        (
            "stages",
            "Where the time of this fit went",
            figures.stage_times(result),
            "Wall time of each stage; after a resumed fit, that of the run which did the stage.",
        ),
    )
    return {
        name: frame.figure(drawn, name, title=title, caption=caption)
        for name, title, drawn, caption in drafts
        if drawn is not None
    }
