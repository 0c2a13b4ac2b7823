"""What the figures share: colours, an empty figure, axes and error bars."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from harness.records import Interval

__all__ = [
    "BASELINE",
    "EARLIER",
    "INK",
    "LINE",
    "MEETS",
    "MUTED",
    "OTHER",
    "PRECISION",
    "RESULT",
    "add_limit",
    "bars",
    "blank",
    "even_axis",
    "lines",
    "log_axis",
    "safe",
]

INK, MUTED, LINE, PAPER = "#1c2733", "#5b6b7b", "#e3e8ee", "#ffffff"
BASELINE, RESULT, EARLIER, OTHER = "#8795a5", "#1f5fbf", "#a9c4ea", "#b0763a"
# Told apart in print and by colour-blind readers too: they differ in lightness.
PRECISION = {"fp32": "#3b5b84", "fp16": "#2a9d8f", "int8": "#e9a13b"}
MEETS = "#1a7f4b"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MAX_TICKS = 7


def blank(*, height: int = 360) -> go.Figure:
    """An empty figure in the report's style, ``height`` pixels high."""
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left", "font": {"family": FONT}},
        dragmode=False,  # a finger that scrolls the page must not zoom a figure
    )
    figure.update_xaxes(automargin=True, linecolor=LINE, gridcolor=LINE, zeroline=False)
    figure.update_yaxes(automargin=True, linecolor=LINE, gridcolor=LINE, zeroline=False)
    return figure


def safe(text: str) -> str:
    """``text`` of a user's as plotly shows it, tags and all."""
    return html.escape(text, quote=False)


def lines(*parts: str) -> str:
    """The parts that are not empty, one a line."""
    return "<br>".join(part for part in parts if part)


def add_limit(
    figure: go.Figure, name: str, dash: str, x: Sequence[float], y: Sequence[float]
) -> None:
    """Add a line that what is asked for lies on the better side of."""
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        name=name,
        hoverinfo="skip",
        line={"color": MEETS, "width": 1.5, "dash": dash},
    )


# --- axes ---------------------------------------------------------------------------------------


def _decades(low: float, high: float, mantissas: Sequence[float]) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in mantissas]
    return [tick for tick in ticks if low <= tick <= high]


def _even(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= MAX_TICKS - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_axis(
    values: Iterable[float], text: Callable[[float], str], *, pad: float
) -> dict[str, Any]:
    """An axis around positive ``values`` with ticks written by ``text``."""
    known = [value for value in values if value > 0]
    low, high = min(known) / pad, max(known) * pad
    ticks = _even(low, high)
    # From coarse to fine: the first that gives enough ticks, and not too many for a phone.
    for mantissas in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = _decades(low, high, mantissas)
        if 3 <= len(found) <= MAX_TICKS:
            ticks = found
            break
    else:
        if high / low > 1e3:
            every = math.ceil(len(_decades(low, high, (1.0,))) / MAX_TICKS)
            ticks = _decades(low, high, (1.0,))[::every]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [text(tick) for tick in ticks],
    }


def even_axis(low: float, high: float, text: Callable[[float], str]) -> dict[str, Any]:
    """A linear axis from ``low`` to ``high`` with ticks written by ``text``."""
    ticks = _even(low, high)
    return {
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [text(t) if t else "0" for t in ticks],
    }


def bars(
    values: Sequence[float], intervals: Sequence[Interval | None], colour: str
) -> dict[str, Any]:
    """Error bars from ``values`` to the ends of their intervals; none where that is None."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [
            max(i.high - v, 0.0) if i else 0.0 for v, i in zip(values, intervals, strict=True)
        ],
        "arrayminus": [
            max(v - i.low, 0.0) if i else 0.0 for v, i in zip(values, intervals, strict=True)
        ],
        "color": colour,
        "thickness": 1.3,
        "width": 4,
    }
