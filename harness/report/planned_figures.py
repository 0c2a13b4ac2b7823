"""Figures of a plan: every number in a trace stands in a record, and is a prediction."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from harness.records import Estimate, LayerCost, Plan, PlannedStrategy, Predicted
from harness.report.drawing import (
    BASELINE,
    LINE,
    MEETS,
    MUTED,
    OTHER,
    PRECISION,
    add_limit,
    blank,
    even_axis,
    lines,
    log_axis,
    safe,
)
from harness.report.planned import cells
from harness.units import format_count, format_points, format_size, format_time

__all__ = ["Quantity", "accuracy_against_latency", "layer_costs", "size_against_latency"]

# Words a line of a hover label, so that two sentences stay readable.
_HOVER = 68
_VERDICTS = {
    "meets": (MEETS, "diamond"),
    "cannot tell": ("#c98a1b", "square"),
    "does not meet": ("#b3372f", "triangle-up"),
}


@dataclass(frozen=True, slots=True)
class _Point:
    """A strategy, or the original, in a plane of two predictions."""

    label: str
    kind: str
    hover: str
    x: Estimate
    y: Estimate
    on_front: bool


def _hover(name: str, predicted: Predicted, sentences: Sequence[str]) -> str:
    size, parameters, macs, _, latency, _, lost = cells(predicted)
    figures = " · ".join(
        part
        for part in (
            latency.text if predicted.latency_s else "",
            size.text,
            f"{parameters.text} parameters",
            f"{macs.text} MACs",
            f"{lost.text} lost" if predicted.accuracy_drop else "",
        )
        if part
    )
    wrapped = [part for text in sentences for part in textwrap.wrap(text, _HOVER)]
    return lines(f"<b>{safe(name)}</b>", safe(figures), *map(safe, wrapped))


def _points(
    plan: Plan, of: Callable[[Predicted], tuple[Estimate | None, Estimate | None]]
) -> list[_Point]:
    found = []
    original = ("the original", "", plan.baseline, ("Nothing is done to it.",), False)
    for name, kind, predicted, sentences, front in (
        original,
        *((s.name, s.verdict, s.predicted, s.sentences, s.on_front) for s in plan.strategies),
    ):
        x, y = of(predicted)
        if x is not None and y is not None:
            found.append(_Point(name, kind, _hover(name, predicted, sentences), x, y, front))
    return found


def accuracy_against_latency(plan: Plan) -> go.Figure | None:
    """Accuracy lost against latency; None where either is not predicted of two strategies."""

    def of(predicted: Predicted) -> tuple[Estimate | None, Estimate | None]:
        drop = predicted.accuracy_drop
        if drop is None and predicted is plan.baseline:
            drop = Estimate.exactly(0.0)
        return predicted.latency_s, drop

    points = _points(plan, of)
    if len(points) < 3:
        return None
    figure = blank(height=420)
    ends = [end for p in points for end in (p.y.low, p.y.high)]
    room = max(0.08 * (max(ends) - min(ends)), 0.1)
    low, high = min(ends) - room, max(ends) + room
    axis = even_axis(low, high, format_points)
    # Less lost is better, and better is up.
    figure.update_yaxes(title="accuracy lost", **{**axis, "range": [high, low]})
    _latency_axis(figure, plan, points)
    _limits(figure, plan, "accuracy_drop", points, (low, high))
    _scatter(figure, points)
    return figure


def size_against_latency(plan: Plan) -> go.Figure | None:
    """File size against latency; None where latency is not predicted of two strategies."""
    points = _points(plan, lambda predicted: (predicted.latency_s, predicted.size_bytes))
    if len(points) < 3:
        return None
    figure = blank(height=420)
    limit = _limit(plan, "size")
    ends = [end for p in points for end in (p.y.low, p.y.high)] + ([limit] if limit else [])
    axis = log_axis(ends, format_size, pad=1.15)
    figure.update_yaxes(title="file size", **axis)
    _latency_axis(figure, plan, points)
    low, high = (10**end for end in axis["range"])
    _limits(figure, plan, "size", points, (low, high))
    _scatter(figure, points)
    return figure


def _latency_axis(figure: go.Figure, plan: Plan, points: Sequence[_Point]) -> None:
    limit = _limit(plan, "latency")
    ends = [end for p in points for end in (p.x.low, p.x.high)] + ([limit] if limit else [])
    figure.update_xaxes(title="latency", **log_axis(ends, format_time, pad=1.1))


def _limit(plan: Plan, quantity: Literal["latency", "size", "accuracy_drop"]) -> float | None:
    """The absolute limit of a requirement; None where there is none, or of what is not known."""
    requirement = plan.requirements.limit(quantity)
    if requirement is None:
        return None
    if not requirement.relative:
        return requirement.limit
    whole = {"latency": plan.baseline.latency_s, "size": plan.baseline.size_bytes}.get(quantity)
    return None if whole is None else requirement.limit * whole.value


def _limits(
    figure: go.Figure,
    plan: Plan,
    quantity: Literal["size", "accuracy_drop"],
    points: Sequence[_Point],
    ends: tuple[float, float],
) -> None:
    """The limits as lines: what keeps both lies left of one and on the better side of the other."""
    lows, highs = [p.x.low for p in points], [p.x.high for p in points]
    latency, other = _limit(plan, "latency"), _limit(plan, quantity)
    left = min([*lows, latency or math.inf]) / 2
    right = max([*highs, latency or 0.0]) * 2
    drawn: list[tuple[str, str, list[float], list[float]]] = []
    if latency is not None:
        drawn.append(("latency required", "dash", [latency] * 2, list(ends)))
    if other is not None:
        name = "size required" if quantity == "size" else "accuracy required"
        drawn.append((name, "dot", [left, right], [other] * 2))
    for name, dash, x, y in drawn:
        add_limit(figure, name, dash, x, y)


def _scatter(figure: go.Figure, points: Sequence[_Point]) -> None:
    """The points by their verdict, with intervals; rings around those on the front."""
    front = [p for p in points if p.on_front]
    if front:
        figure.add_scatter(
            x=[p.x.value for p in front],
            y=[p.y.value for p in front],
            mode="markers",
            name="on the front",
            hoverinfo="skip",
            marker={"color": MUTED, "size": 19, "symbol": "circle-open", "line": {"width": 1.5}},
        )
    for kind in ("", *_VERDICTS):
        mine = [p for p in points if p.kind == kind]
        if not mine:
            continue
        colour, symbol = _VERDICTS.get(kind, (BASELINE, "circle"))
        figure.add_scatter(
            x=[p.x.value for p in mine],
            y=[p.y.value for p in mine],
            mode="markers",
            name=kind or "the original",
            marker={"color": colour, "size": 10, "symbol": symbol},
            error_x=_bars([p.x for p in mine], colour),
            error_y=_bars([p.y for p in mine], colour),
            text=[p.hover for p in mine],
            hovertemplate="%{text}<extra></extra>",
        )


def _bars(estimates: Sequence[Estimate], colour: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value for e in estimates],
        "arrayminus": [e.value - e.low for e in estimates],
        "color": colour,
        "thickness": 0.8,
        "width": 0,
    }


# --- layers -------------------------------------------------------------------------------------

Quantity = Literal["latency", "weights", "macs"]
_OF: dict[Quantity, tuple[str, Callable[[LayerCost], float | None], Callable[[float], str]]] = {
    "latency": ("predicted time", lambda layer: layer.latency_s, format_time),
    "weights": ("bytes of weights", lambda layer: float(layer.weight_bytes), format_size),
    "macs": ("MACs", lambda layer: float(layer.macs), format_count),
}


def layer_costs(plan: Plan, strategy: PlannedStrategy, quantity: Quantity) -> go.Figure | None:
    """What each layer costs before and after a strategy; None where nothing is known of it."""
    axis, value, text = _OF[quantity]
    before = {layer.layer: layer for layer in plan.baseline.layers}
    after = [layer for layer in strategy.predicted.layers if value(layer) is not None]
    if not after or all(value(layer) == 0 for layer in after):
        return None
    figure = blank(height=300)
    places = list(range(1, len(after) + 1))
    known = [
        (x, before[layer.layer])
        for x, layer in zip(places, after, strict=True)
        if layer.layer in before
    ]
    figure.add_bar(
        x=[x for x, _ in known],
        y=[value(layer) or 0.0 for _, layer in known],
        name="before",
        marker={"color": "#dfe5ec", "line": {"color": LINE, "width": 1}},
        hoverinfo="skip",
    )
    for precision in dict.fromkeys(layer.precision for layer in after):
        mine = [(x, a) for x, a in zip(places, after, strict=True) if a.precision == precision]
        figure.add_bar(
            x=[x for x, _ in mine],
            y=[value(layer) for _, layer in mine],
            name=f"after, {safe(precision)}",
            width=0.5,
            marker={"color": PRECISION.get(precision, OTHER)},
            text=[_layer_hover(layer, before.get(layer.layer), value, text) for _, layer in mine],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.2)
    every = math.ceil(len(after) / 12)
    figure.update_xaxes(
        title="layer, from input to output",
        tickvals=places[::every],
        ticktext=[str(place) for place in places[::every]],
        showgrid=False,
    )
    top = max([value(layer) or 0.0 for _, layer in known] + [value(a) or 0.0 for a in after])
    figure.update_yaxes(title=axis, **even_axis(0, 1.05 * top, text))
    return figure


def _layer_hover(
    layer: LayerCost,
    before: LayerCost | None,
    value: Callable[[LayerCost], float | None],
    text: Callable[[float], str],
) -> str:
    def shape(one: LayerCost) -> str:
        return f"{one.channels_in} to {one.channels_out} channels, {one.precision}"

    was = value(before) if before is not None else None
    return lines(
        f"<b>{safe(layer.layer)}</b>",
        safe(layer.kind),
        f"after: {text(value(layer) or 0.0)}, {safe(shape(layer))}",
        f"before: {text(was)}, {safe(shape(before))}" if before and was is not None else "",
    )
