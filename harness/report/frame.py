"""What the pages share: one HTML file that opens without a network, figures and their legends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import markupsafe
import plotly.graph_objects as go
import plotly.offline

__all__ = ["Figure", "figure", "render"]

# No modebar: zooming is off, and it would lie over the legend on a phone.
_CONFIG = {"responsive": True, "displayModeBar": False}
_TONES = {
    "meets": "good",
    "does not meet": "bad",
    "cannot tell yet": "open",
    "cannot tell": "open",
}


@dataclass(frozen=True, slots=True)
class _Key:
    """One entry of a legend: ``shape`` is a marker's symbol, ``bar``, or a line's dash."""

    name: markupsafe.Markup
    shape: str
    colour: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its heading, the sentence that says what to look at, and its legend."""

    title: str
    caption: str
    keys: tuple[_Key, ...]
    drawing: markupsafe.Markup


def figure(drawn: go.Figure, name: str, *, title: str, caption: str) -> Figure:
    """``drawn`` for a page: the legend in HTML, ``name`` as the element's id."""
    keys = _keys(drawn)
    drawn.update_layout(showlegend=False)
    html = drawn.to_html(
        full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"figure-{name}"
    )
    return Figure(title, caption, keys, markupsafe.Markup(html))


def render(template: str, *, figures: Mapping[str, Figure], **values: Any) -> str:
    """The HTML of a template of this package, with everything it needs inside."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_source),
    )
    environment.filters["glue"] = _glue
    return environment.get_template(template).render(
        figures=figures,
        tones=_TONES,
        plotly=markupsafe.Markup(plotly.offline.get_plotlyjs()) if figures else "",
        **values,
    )


def _source(name: str) -> str:
    return resources.files("harness.report").joinpath(name).read_text(encoding="utf-8")


def _glue(text: str) -> str:
    """The text with every number and its unit kept in one line."""
    return re.sub(r"(?<=\d) (?=%|\S?s\b|\S?B\b|\S?J\b|points?\b)", "\u00a0", text)


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
