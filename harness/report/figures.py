"""Plotly figures from records: every number in a trace stands in a record.

Text that comes from a user (names of layers, labels) is escaped, because plotly reads tags in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from harness.records import LEFT_OUT, Candidate, FitResult, Interval, KernelPoint
from harness.report import networks, words
from harness.report.drawing import (
    BASELINE,
    EARLIER,
    LINE,
    MEETS,
    MUTED,
    OTHER,
    PRECISION,
    RESULT,
    add_limit,
    bars,
    blank,
    even_axis,
    lines,
    log_axis,
    safe,
)
from harness.units import format_count, format_size, format_time

__all__ = [
    "accuracy_against_latency",
    "allocation",
    "predicted_against_measured",
    "roofline",
    "stage_times",
]

# --- prediction ---------------------------------------------------------------------------------


def predicted_against_measured(result: FitResult) -> go.Figure | None:
    """Frozen predictions against measurements of all candidates; None without any prediction."""
    shown = [c for c in networks.all_candidates(result) if c.predicted_latency_s is not None]
    if not shown:
        return None
    figure = blank(height=380)
    ends: list[float] = []
    for candidate in shown:
        for interval in (candidate.predicted_interval_s, candidate.latency_interval_s):
            ends += [interval.low, interval.high] if interval is not None else []
        ends += [candidate.latency_s, candidate.predicted_latency_s or 0.0]
    axis = log_axis(ends, format_time, pad=1.12)
    low, high = (10**end for end in axis["range"])
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": MUTED, "width": 1, "dash": "dot"},
        name="predicted = measured",
        hoverinfo="skip",
    )
    for name, colour, symbol, group in _by_role(result, shown):
        predicted = [c.predicted_latency_s or 0.0 for c in group]
        figure.add_scatter(
            x=[c.latency_s for c in group],
            y=predicted,
            mode="markers",
            name=name,
            marker={"color": colour, "size": 10, "symbol": symbol},
            error_y=bars(predicted, [c.predicted_interval_s for c in group], colour),
            error_x=bars(
                [c.latency_s for c in group], [c.latency_interval_s for c in group], colour
            ),
            text=[_prediction_hover(c) for c in group],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(title="measured latency", **axis)
    figure.update_yaxes(title="predicted latency", **axis)
    return figure


def _by_role(
    result: FitResult, candidates: Sequence[Candidate]
) -> list[tuple[str, str, str, list[Candidate]]]:
    """Candidates by what they are to the reader: name, colour and symbol of each kind."""
    best = result.result.label if result.result is not None else None
    kinds: dict[tuple[str, str, str], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.role == "baseline":
            kind = ("baseline", BASELINE, "circle")
        elif candidate.label == best:
            kind = ("result", RESULT, "diamond")
        elif candidate.role == "joint":
            kind = ("earlier rounds", EARLIER, "diamond")
        elif candidate.role == "int8_only":
            kind = (words.role_name(candidate.role), PRECISION["int8"], "square")
        else:
            kind = (words.role_name(candidate.role), OTHER, "triangle-up")
        kinds.setdefault(kind, []).append(candidate)
    return [
        (safe(name), colour, symbol, kinds[name, colour, symbol]) for name, colour, symbol in kinds
    ]


def _prediction_hover(candidate: Candidate) -> str:
    predicted, measured = candidate.predicted_interval_s, candidate.latency_interval_s
    return lines(
        f"<b>{safe(candidate.label)}</b>",
        f"predicted {format_time(candidate.predicted_latency_s or 0.0)}"
        + (f" ({_between(predicted)})" if predicted else ""),
        f"measured {format_time(candidate.latency_s)} ({_between(measured)})",
    )


def _between(interval: Interval) -> str:
    return words.between(interval, format_time)


# --- accuracy -----------------------------------------------------------------------------------


def accuracy_against_latency(result: FitResult) -> go.Figure | None:
    """Accuracy against latency of all candidates, with the budgets; None without any accuracy."""
    shown = [c for c in networks.all_candidates(result) if c.top1 is not None]
    if not shown:
        return None
    figure, metric = blank(height=380), words.metric_of(result)
    accuracies = [100 * (c.top1 or 0.0) for c in shown]
    limit, floor = _latency_limit(result), _top1_floor(result)
    right = 1.08 * max([c.latency_interval_s.high for c in shown] + [limit or 0.0])
    low, high = min([*accuracies, *([] if floor is None else [floor])]), max(accuracies)
    room = max(0.12 * (high - low), 0.1)
    low, high = low - room, high + room
    if limit is not None or floor is not None:
        figure.add_shape(
            type="rect",
            x0=0,
            x1=limit or right,
            y0=low if floor is None else floor,
            y1=high,
            line_width=0,
            fillcolor=MEETS,
            opacity=0.08,
            layer="below",
        )
    if limit is not None:
        add_limit(figure, "latency budget", "dash", [limit, limit], [low, high])
    if floor is not None:
        add_limit(figure, f"{metric} budget", "dot", [0, right], [floor, floor])
    for name, colour, symbol, group in _by_role(result, shown):
        latencies = [c.latency_s for c in group]
        figure.add_scatter(
            x=latencies,
            y=[100 * (c.top1 or 0.0) for c in group],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 11, "symbol": symbol},
            error_x=bars(latencies, [c.latency_interval_s for c in group], colour),
            text=[
                lines(
                    f"<b>{safe(c.label)}</b>",
                    f"{format_time(c.latency_s)} ({_between(c.latency_interval_s)})",
                    f"{safe(metric)} {words.percent(c.top1 or 0.0, 2)}",
                    format_size(c.size_bytes),
                )
                for c in group
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(title="measured latency", **even_axis(0, right, format_time))
    figure.update_yaxes(title=safe(metric), **even_axis(low, high, lambda y: f"{y:.4g} %"))
    return figure


def _latency_limit(result: FitResult) -> float | None:
    for verdict in result.budgets:
        if verdict.budget.quantity == "latency":
            whole = result.baseline.latency_s if verdict.budget.relative else 1.0
            return verdict.budget.limit * whole
    return None


def _top1_floor(result: FitResult) -> float | None:
    for verdict in result.budgets:
        if verdict.budget.quantity == "accuracy_drop" and result.baseline.top1 is not None:
            return 100 * result.baseline.top1 - verdict.budget.limit
    return None


# --- allocation ---------------------------------------------------------------------------------


def allocation(candidate: Candidate) -> go.Figure | None:
    """What every group keeps and in which precision, along the network; None if not recorded."""
    groups = candidate.allocation
    if not groups:
        return None
    figure = blank(height=320)
    places = list(range(1, len(groups) + 1))
    figure.add_bar(
        x=places,
        y=[100.0] * len(groups),
        marker={"color": "#f1f4f7", "line": {"color": LINE, "width": 1}},
        showlegend=False,
        hoverinfo="skip",
    )
    for precision in dict.fromkeys(g.precision for g in groups):
        mine = [(x, g) for x, g in zip(places, groups, strict=True) if g.precision == precision]
        gone = precision == LEFT_OUT
        figure.add_bar(
            x=[x for x, _ in mine],
            y=[100.0 if gone else 100 * g.kept / g.channels for _, g in mine],
            name=precision,
            marker={
                "color": PRECISION.get(precision, OTHER),
                # Hatched over the empty column: nothing of it is there.
                "pattern": {"shape": "/", "fillmode": "replace"} if gone else {},
            },
            text=[
                lines(
                    f"<b>{safe(g.group)}</b>",
                    f"{g.channels} channels, left out with their layers"
                    if gone
                    else f"keeps {g.kept} of {g.channels} channels, {safe(g.precision)}",
                    *(safe(layer) for layer in g.layers),
                )
                for _, g in mine
            ],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            showlegend=True,
        )
    figure.update_layout(barmode="overlay", bargap=0.25)
    every = math.ceil(len(groups) / 12)
    figure.update_xaxes(
        title="group, from input to output",
        tickvals=places[::every],
        ticktext=[str(place) for place in places[::every]],
        showgrid=False,
    )
    figure.update_yaxes(title="channels kept", range=[0, 104], ticksuffix=" %", nticks=6)
    return figure


# --- kernels ------------------------------------------------------------------------------------


def roofline(result: FitResult) -> go.Figure | None:
    """Intensity and achieved rate of every profiled kernel that multiplies, under fitted roofs."""
    points = [
        p for p in result.kernels if p.macs > 0 and p.moved_bytes > 0 and p.measured_s is not None
    ]
    if not points:
        return None
    figure = blank(height=420)
    intensities = [p.macs / p.moved_bytes for p in points]
    rates = [_rate(p) for p in points]
    bandwidth = result.bandwidth_bytes_per_s
    ridges = [peak / bandwidth for peak in result.peak_macs_per_s.values()]
    x_axis = log_axis([*intensities, *ridges], lambda x: f"{x:.4g}", pad=1.6)
    y_axis = log_axis(
        [*rates, *result.peak_macs_per_s.values()], lambda y: f"{format_count(y)}", pad=1.6
    )
    left, right = (10**end for end in x_axis["range"])
    ridge = max([left, *ridges])
    figure.add_scatter(
        x=[left, ridge],
        y=[left * bandwidth, ridge * bandwidth],
        mode="lines",
        name="fitted bandwidth",
        line={"color": MUTED, "width": 1.5},
        hovertemplate=f"at most {format_size(bandwidth)}/s<extra></extra>",
    )
    for precision, peak in result.peak_macs_per_s.items():
        figure.add_scatter(
            x=[max(peak / bandwidth, left), right],
            y=[peak, peak],
            mode="lines",
            name=f"fitted peak, {safe(precision)}",
            line={"color": PRECISION.get(precision, OTHER), "width": 1.5},
            hovertemplate=f"{safe(precision)}: at most {format_count(peak)} MACs/s<extra></extra>",
        )
    for (candidate, precision), symbol, name in _kernel_kinds(result, points):
        mine = [p for p in points if p.candidate == candidate and p.precision == precision]
        figure.add_scatter(
            x=[p.macs / p.moved_bytes for p in mine],
            y=[_rate(p) for p in mine],
            mode="markers",
            name=f"{safe(name)}, {safe(precision)}",
            marker={
                "color": PRECISION.get(precision, OTHER),
                "size": 9,
                "symbol": symbol,
                "line": {"width": 1.5, "color": PRECISION.get(precision, OTHER)},
            },
            text=[_kernel_hover(p) for p in mine],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(title="MACs per byte moved", **x_axis)
    figure.update_yaxes(title="MACs per second", **y_axis)
    return figure


def _rate(point: KernelPoint) -> float:
    assert point.measured_s is not None
    return point.macs / point.measured_s


def _kernel_kinds(
    result: FitResult, points: Sequence[KernelPoint]
) -> list[tuple[tuple[str, str], str, str]]:
    kinds = dict.fromkeys((p.candidate, p.precision) for p in points)
    base, best = result.baseline.label, result.result.label if result.result else None
    symbols = {base: "circle-open", best: "diamond"}
    names = {base: "baseline", best: "result"}
    return [
        (kind, symbols.get(kind[0], "cross-thin"), names.get(kind[0], kind[0])) for kind in kinds
    ]


def _kernel_hover(point: KernelPoint) -> str:
    predicted = point.predicted_s
    return lines(
        f"<b>{safe(point.name)}</b>",
        f"{safe(point.candidate)}, {safe(point.kind)}, {safe(point.precision)}",
        f"measured {format_time(point.measured_s or 0.0)}"
        + (f", predicted {format_time(predicted)}" if predicted is not None else ""),
        f"{format_count(point.macs)} MACs, {format_size(point.moved_bytes)} moved",
    )


# --- stages -------------------------------------------------------------------------------------


def stage_times(result: FitResult) -> go.Figure | None:
    """The wall time of every stage, in their order; None where none is recorded."""
    if not result.stages:
        return None
    figure = blank(height=90 + 26 * len(result.stages))
    longest = max(stage.wall_s for stage in result.stages)
    figure.add_bar(
        x=[stage.wall_s for stage in result.stages],
        y=list(range(len(result.stages))),
        orientation="h",
        marker={"color": RESULT, "opacity": 0.75},
        text=[format_time(stage.wall_s) for stage in result.stages],
        textposition="outside",
        cliponaxis=False,
        customdata=[
            lines(f"<b>{safe(stage.name)}</b>", safe(stage.detail)) for stage in result.stages
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title="wall time", **even_axis(0, 1.18 * longest or 1.0, format_time))
    figure.update_yaxes(
        autorange="reversed",
        tickvals=list(range(len(result.stages))),
        ticktext=[safe(stage.name) for stage in result.stages],
        showgrid=False,
    )
    return figure
