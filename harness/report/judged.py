"""A measurement's verdict and its soak, as text, JSON and a page with a plot."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Group, RenderableType
from rich.text import Text

from harness.records import (
    Conditions,
    Measurement,
    MeasurementVerdict,
    PercentileFigure,
    SoakSummary,
    SoakWindow,
    dump,
)
from harness.report import drawing, words
from harness.units import format_time

__all__ = [
    "percentile_text",
    "soak_json",
    "soak_text",
    "verdict_json",
    "verdict_sentences",
    "verdict_text",
    "write_soak",
]

# Plotly does not break lines itself.
LINE_LENGTH = 80
_STYLES = {"VALID": "bold green", "UNSTABLE": "bold yellow"}


def percentile_text(figure: PercentileFigure) -> str:
    """The percentile, or how many calls it needs."""
    if figure.value_s is not None:
        return format_time(figure.value_s)
    return f"needs {figure.needed} calls"


def verdict_sentences(found: MeasurementVerdict) -> tuple[str, ...]:
    """One sentence for each violated criterion, with what to do; then what is not known."""
    sentences = [f"{c.finding}: {c.remedy}" for c in found.violated]
    if found.unknown:
        sentences.append(f"not known: {', '.join(c.name for c in found.unknown)}")
    return tuple(sentences)


def verdict_text(found: MeasurementVerdict) -> RenderableType:
    """VALID or UNSTABLE, the percentiles, and what speaks against the measurement."""
    parts: list[RenderableType] = [Text(found.status, style=_STYLES[found.status])]
    named = [f"p{f.percent:g} {percentile_text(f)}" for f in found.percentiles if f.percent != 50]
    if named:
        parts.append(Text("; ".join(named)))
    parts += [Text(sentence) for sentence in verdict_sentences(found)]
    return Group(*parts)


def verdict_json(found: MeasurementVerdict) -> dict[str, Any]:
    """Status, every criterion and every percentile."""
    content: dict[str, Any] = json.loads(dump(found))
    return content


def _state(conditions: Conditions) -> list[str]:
    parts = []
    if conditions.temp_c is not None:
        parts.append(f"{conditions.temp_c:.0f} °C")
    if conditions.cpu_clock_hz:
        mean_hz = sum(conditions.cpu_clock_hz) / len(conditions.cpu_clock_hz)
        parts.append(f"CPU {mean_hz / 1e6:.0f} MHz")
    if conditions.gpu_clock_hz is not None:
        parts.append(f"GPU {conditions.gpu_clock_hz / 1e6:.0f} MHz")
    if conditions.throttled:
        parts.append("throttled")
    return parts


def _end(seconds: float, conditions: Conditions) -> str:
    state = _state(conditions)
    return f"{format_time(seconds)} ({', '.join(state)})" if state else format_time(seconds)


def soak_sentence(found: SoakSummary) -> str:
    """From cold to soaked, with the interval of the change and how the time got there."""
    sentence = (
        f"sustained for {found.duration_s:.0f} s: {_end(found.cold_s, found.cold)} cold, "
        f"{_end(found.soaked_s, found.soaked)} soaked, {100 * found.change:+.1f} %"
    )
    interval = found.change_interval
    if interval is not None:
        sentence += (
            f" ({100 * interval.low:+.1f} to {100 * interval.high:+.1f} %, "
            f"{words.percent(interval.coverage, 0)})"
        )
    if found.time_constant_s is not None:
        sentence += f", time constant {found.time_constant_s:.0f} s"
    if not found.settled:
        sentence += "; it was still changing at the end: sustain it for longer"
    return sentence


def soak_text(found: SoakSummary) -> RenderableType:
    """The soak's sentence."""
    return Text(soak_sentence(found))


def soak_json(measurement: Measurement, found: SoakSummary) -> dict[str, Any]:
    """The summary, with every window and the samples that were kept."""
    assert measurement.soak is not None
    content: dict[str, Any] = json.loads(dump(found))
    content["windows"] = json.loads(dump(measurement.soak))["windows"]
    content["every"] = measurement.soak.every
    content["samples_s"] = list(measurement.soak.samples_s)
    return content


# --- the plot -----------------------------------------------------------------------------------


def _band(windows: Sequence[SoakWindow]) -> list[go.Scatter]:
    at_s = [w.at_s for w in windows]
    rows = (
        ("p90", [w.p90_s for w in windows], None),
        ("p10", [w.p10_s for w in windows], "tonexty"),
    )
    band = [
        go.Scatter(
            x=at_s,
            y=[1e3 * value for value in values],
            fill=fill,
            mode="lines",
            line={"width": 0},
            fillcolor="rgba(31, 95, 191, 0.15)",
            name=name,
            showlegend=False,
            hoverinfo="skip",
        )
        for name, values, fill in rows
    ]
    middle = go.Scatter(
        x=at_s,
        y=[1e3 * w.median_s for w in windows],
        mode="lines",
        line={"color": drawing.RESULT},
        name="median of a window, p10 to p90 shaded",
    )
    return [*band, middle]


def _figure(measurement: Measurement) -> go.Figure:
    assert measurement.soak is not None
    windows = measurement.soak.windows
    figure = drawing.blank(height=440)
    for trace in _band(windows):
        figure.add_trace(trace)
    warm = [(w.at_s, w.conditions.temp_c) for w in windows if w.conditions.temp_c is not None]
    if warm:
        at_s, temp_c = zip(*warm, strict=True)
        figure.add_trace(
            go.Scatter(
                x=at_s,
                y=temp_c,
                yaxis="y2",
                mode="lines",
                line={"color": drawing.OTHER, "dash": "dot"},
                name="temperature",
            )
        )
    figure.update_layout(
        xaxis={"title": "seconds without a pause"},
        yaxis={"title": "latency in ms", "rangemode": "normal"},
        yaxis2={
            "title": "temperature in °C",
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "tickmode": "auto",
        },
        legend={"y": -0.2, "yanchor": "top"},
    )
    return figure


def write_soak(measurement: Measurement, found: SoakSummary, path: Path) -> None:
    """Write a page with the soak's plot; it opens without a network."""
    figure = _figure(measurement)
    lines = textwrap.wrap(soak_sentence(found), LINE_LENGTH)
    figure.update_layout(
        margin={"t": 112},
        title={
            "text": drawing.safe(f"{measurement.label} on {measurement.board}"),
            "subtitle": {"text": "<br>".join(map(drawing.safe, lines))},
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})
