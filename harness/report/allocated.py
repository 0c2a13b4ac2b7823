"""How the result's allocation was found, and what its budgets are worth: sentences and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable

import plotly.graph_objects as go

from harness.records import AllocationProof, Approach, FitResult, Front, FrontPoint
from harness.report.drawing import (
    BASELINE,
    MEETS,
    OTHER,
    RESULT,
    blank,
    lines,
    log_axis,
    safe,
)
from harness.report.words import and_list, percent
from harness.units import format_size, format_time

__all__ = [
    "front_caption",
    "front_figure",
    "front_sentence",
    "proof_sentences",
    "shortlist_rows",
]

# A step of a budget, for saying what it buys, is the power of ten below this share of what is
# spent: large enough to matter, small enough for a marginal price to hold.
STEP = 0.1
# So many binding groups are named.
NAMED = 5
_UNITS: dict[str, Callable[[float], str]] = {"latency": format_time, "size": format_size}


def proof_sentences(result: FitResult) -> tuple[str, ...]:
    """What was solved and how well, what more of a budget would buy, and what binds."""
    sentences = []
    proof = result.proof
    if proof is not None:
        sentences += [_solved(proof), _proven(proof)]
        sentences += filter(None, [_worth(proof, result)])
    if result.shortlist is not None:
        told = result.shortlist.summary()
        sentences.append(f"{told[:1].upper()}{told[1:]}.")
    for quantity, groups in result.binding.items():
        more = len(groups) - NAMED
        named = [*groups[:NAMED], *([f"{more} more groups"] if more > 0 else [])]
        sentences.append(
            f"What is left of the {quantity} at its least is for the most part in "
            f"{and_list(named)}: allow fewer channels or other methods there."
        )
    return tuple(sentences)


def shortlist_rows(result: FitResult) -> tuple[tuple[str, ...], ...]:
    """Allocation, summed sensitivity, divergence, latency and size, and whether it was built."""
    if result.shortlist is None:
        return ()
    return tuple(
        (
            c.name,
            f"{c.loss:.3g}",
            c.diverges,
            format_time(c.latency_s),
            format_size(c.size_bytes),
            "built and measured" if c.taken else "",
        )
        for c in result.shortlist.contenders
    )


def _solved(proof: AllocationProof) -> str:
    fewest, most = min(proof.options), max(proof.options)
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    what = {
        "coupled": "one coupled problem, in which what a layer costs depends on its neighbours",
        "separable": "one separable problem: here no layer's cost depends on another group",
    }[proof.method]
    solves = "one solve" if proof.solves == 1 else f"{proof.solves} solves"
    return (
        f"Allocated as {what}: {proof.groups} groups with {each} options each, "
        f"{_many(math.prod(proof.options))} combinations, {solves}, {format_time(proof.wall_s)}."
    )


def _many(count: int) -> str:
    return str(count) if count < 10_000 else f"10^{math.floor(math.log10(count))}"


def _proven(proof: AllocationProof) -> str:
    loss = f"summed sensitivity of {proof.objective:.3g}"
    if not proof.exact:
        return (
            f"Its {loss} is within {_share(proof.gap)} of the least for costs that are right at "
            "this allocation and approximate away from it."
        )
    if proof.gap == 0:
        return f"Its {loss} is proven to be the least within the predicted limits."
    return f"Its {loss} is proven to be within {_share(proof.gap)} of the least that is possible."


def _share(gap: float) -> str:
    """A bound in per cent, to one digit: rounded up, for less would not be proven."""
    if gap <= 0:
        return "0 %"
    digit = 10.0 ** math.floor(math.log10(100 * gap))
    return f"{math.ceil(100 * gap / digit - 1e-9) * digit:.1g} %"


def _worth(proof: AllocationProof, result: FitResult) -> str:
    """What one more step of each budget would buy, where anything."""
    best = result.result
    if best is None:
        return ""
    spent = {"latency": best.predicted_latency_s, "size": best.predicted_size_bytes}
    parts, free = [], []
    for quantity, price in proof.prices.items():
        if not price:
            free.append(quantity)
            continue
        step = 10.0 ** math.floor(math.log10(STEP * (spent[quantity] or 0.0) or 1.0))
        bought = step * price
        share = f" ({percent(bought / proof.objective)})" if proof.objective > 0 else ""
        text = _UNITS[quantity](step).replace(".00 ", " ").replace(".0 ", " ")
        parts.append(f"one more {text} would lower it by about {bought:.2g}{share}")
    sentence = and_list(parts)
    if free:
        sentence += ("; " if parts else "") + f"more {and_list(free)} would buy nothing"
    return sentence[:1].upper() + sentence[1:] + "." if sentence else ""


def front_caption(front: Front) -> str:
    """What to look at in the figure of the front."""
    joined = (
        "is the least that is possible for its latency, but for the gap that it was solved to"
        if _proven_points([p for p in front.points if p.approach == "coupled"])
        else "is the least for costs that are right near the result and approximate away from it"
    )
    return (
        f"The further left and down, the better. Each joined point {joined}; simpler ways to "
        "allocate stand beside it for the same limits. A line to the left of a triangle leads to "
        f"the latency that was asked for. {front_sentence(front)}"
    ).rstrip()


def _proven_points(points: list[FrontPoint]) -> bool:
    return all(point.gap is not None for point in points)


def front_sentence(front: Front) -> str:
    """How much worse the simpler ways to allocate are, over the limits that all were given."""
    best = {p.limit_s: p for p in front.points if p.approach == "coupled"}
    parts = []
    for approach, name in (("separable", "costs taken as separable"), ("greedy", "greedy moves")):
        mine = [p for p in front.points if p.approach == approach and p.limit_s in best]
        if not mine:
            continue
        over = [p for p in mine if not p.fits]
        excess = [
            p.loss / best[p.limit_s].loss - 1 for p in mine if p.fits and best[p.limit_s].loss > 0
        ]
        told = []
        if over:
            told.append(f"break {len(over)} of {len(mine)} limits")
        if excess:
            worst = max(excess)
            told.append(
                f"lose up to {percent(worst, 0)} more where they keep them"
                if worst >= 0.005
                else "lose nothing where they keep them"
            )
        if told:
            parts.append(f"{name} {and_list(told)}")
    return f"{'; '.join(parts).capitalize()}." if parts else ""


def front_figure(result: FitResult) -> go.Figure | None:
    """Summed sensitivity against predicted latency, by three ways to allocate; None without points.

    Logarithmic in both: an allocation that loses nothing has no place on it.
    """
    front = result.front
    if front is None or not any(p.loss > 0 for p in front.points):
        return None
    figure = blank(height=400)
    shown = [p for p in front.points if p.loss > 0]
    candidates = [c for c in front.candidates if c.loss > 0]
    limit = [] if front.limit_s is None else [front.limit_s]
    x_axis = log_axis(
        [p.latency_s for p in shown] + [c.latency_s for c in candidates] + limit,
        format_time,
        pad=1.08,
    )
    y_axis = log_axis(
        [p.loss for p in shown] + [c.loss for c in candidates], lambda y: f"{y:.2g}", pad=1.3
    )
    if front.limit_s is not None:
        figure.add_scatter(
            x=[front.limit_s] * 2,
            y=[10**end for end in y_axis["range"]],
            mode="lines",
            name="latency budget",
            hoverinfo="skip",
            line={"color": MEETS, "width": 1.5, "dash": "dash"},
        )
    _add_points(figure, "greedy, one move at a time", _of(shown, "greedy"), BASELINE, "square")
    _add_points(
        figure, "separable approximation", _of(shown, "separable"), OTHER, "triangle-up", reach=True
    )
    best_known = _of(shown, "coupled")
    name = "coupled, proven" if _proven_points(best_known) else "coupled, costs not exact"
    _add_points(figure, name, best_known, RESULT, "circle", joined=True)
    best = result.result.label if result.result is not None else None
    for name, symbol, mine in (
        ("result", "diamond", [c for c in candidates if c.label == best]),
        ("others that were built", "circle-open", [c for c in candidates if c.label != best]),
    ):
        if mine:
            figure.add_scatter(
                x=[c.latency_s for c in mine],
                y=[c.loss for c in mine],
                mode="markers",
                name=name,
                marker={"color": MEETS, "size": 13, "symbol": symbol, "line": {"width": 2}},
                text=[
                    lines(
                        f"<b>{safe(c.label)}</b>",
                        f"predicted {format_time(c.latency_s)}",
                        f"summed sensitivity {c.loss:.3g}",
                    )
                    for c in mine
                ],
                hovertemplate="%{text}<extra></extra>",
            )
    figure.update_xaxes(title="predicted latency", **x_axis)
    figure.update_yaxes(title="summed sensitivity", **y_axis)
    return figure


def _of(points: list[FrontPoint], approach: Approach) -> list[FrontPoint]:
    return sorted((p for p in points if p.approach == approach), key=lambda p: p.limit_s)


def _add_points(
    figure: go.Figure,
    name: str,
    points: list[FrontPoint],
    colour: str,
    symbol: str,
    *,
    joined: bool = False,
    reach: bool = False,
) -> None:
    """Add the points; with ``reach`` a line from those over their limit back to it."""
    if not points:
        return
    over = [max(p.latency_s - p.limit_s, 0.0) for p in points]
    figure.add_scatter(
        x=[p.latency_s for p in points],
        y=[p.loss for p in points],
        mode="lines+markers" if joined else "markers",
        name=name,
        line={"color": colour, "width": 1.5},
        marker={"color": colour, "size": 8, "symbol": symbol},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [0.0] * len(points),
            "arrayminus": over,
            "color": colour,
            "thickness": 1.2,
            "width": 3,
            "visible": reach,
        },
        text=[
            lines(
                f"<b>{name}</b>",
                f"at most {format_time(p.limit_s)} asked, {format_time(p.latency_s)} predicted",
                f"summed sensitivity {p.loss:.3g}, {format_size(p.size_bytes)}",
                "" if p.gap is None else f"the least but for {_share(p.gap)}",
                "" if p.fits else "breaks its limits",
            )
            for p in points
        ],
        hovertemplate="%{text}<extra></extra>",
    )
