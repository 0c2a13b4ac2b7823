"""The report: one HTML file that opens without a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import markupsafe
import plotly.graph_objects as go
import plotly.offline

from harness.errors import ConfigError
from harness.records import Candidate, FitResult, Front
from harness.report import allocated, figures, networks, words
from harness.units import format_time

__all__ = ["render", "write"]

# No modebar: zooming is off, and it would lie over the legend on a phone.
_CONFIG = {"responsive": True, "displayModeBar": False}
_TONES = {"meets": "good", "does not meet": "bad", "cannot tell yet": "open"}


@dataclass(frozen=True, slots=True)
class _Key:
    """One entry of a legend: ``shape`` is a marker's symbol, ``bar``, or a line's dash."""

    name: markupsafe.Markup
    shape: str
    colour: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure with its heading, the sentence that says what to look at, and its legend."""

    title: str
    caption: str
    keys: tuple[_Key, ...]
    drawing: markupsafe.Markup


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
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("harness.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment.filters["glue"] = _glue
    shown = result.result if result.result is not None else result.baseline
    drawn = _figures(result, shown)
    return environment.from_string(source).render(
        result=result,
        words=words,
        tones=_TONES,
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
        figures=drawn,
        total=format_time(sum(stage.wall_s for stage in result.stages)),
        plotly=markupsafe.Markup(plotly.offline.get_plotlyjs()) if drawn else "",
    )


def _glue(text: str) -> str:
    """The text with every number and its unit kept in one line."""
    return re.sub(r"(?<=\d) (?=%|\S?s\b|\S?B\b|points?\b)", "\u00a0", text)


def _figures(result: FitResult, shown: Candidate) -> dict[str, _Figure]:
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
        name: _Figure(title, caption, _keys(figure), _drawing(figure, name))
        for name, title, figure, caption in drafts
        if figure is not None
    }


def _keys(figure: go.Figure) -> tuple[_Key, ...]:
    """The legend, for HTML: plotly's own takes half of a phone's screen."""
    keys = []
    for trace in figure.data:
        if trace.showlegend is False or not trace.name:
            continue
        if trace.type == "bar":
            shape, colour = "bar", trace.marker.color
        elif trace.mode == "lines":
            shape, colour = trace.line.dash or "solid", trace.line.color
        else:
            shape, colour = trace.marker.symbol, trace.marker.color
        # Names of traces are escaped already.
        keys.append(_Key(markupsafe.Markup(trace.name), shape, colour))
    return tuple(keys)


def _drawing(figure: go.Figure, name: str) -> markupsafe.Markup:
    figure.update_layout(showlegend=False)
    return markupsafe.Markup(
        figure.to_html(
            full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"figure-{name}"
        )
    )
