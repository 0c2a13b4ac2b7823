"""All Pareto-optimal choices of a separable knapsack, or those that the time limit allows.

The linear relaxation of all budgets at once is a convex curve; its corners are optimal choices.
Any other Pareto-optimal choice lies within the triangle above an edge of the curve, below the best
choice known: its excess over the edge is less than the height that known choices leave there. One
dynamic programme over the partial sums keeps what may end in such a triangle, judged by its excess
at the slopes of the edges, which can only grow. Where that is too much to keep, the largest shares
of the heights go first; the smallest share that went is proven to hold everywhere. What was found
lowers the heights, and the next pass, with more partial sums, only looks at edges still open.

Source: the excess is that of ``reduction.py``; Kellerer, Pferschy, Pisinger, *Knapsack Problems*
(2004), chapter 11, for the relaxation's curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.allocation.dynamic import pareto
from harness.allocation.reduction import Core

__all__ = ["Front", "sweep"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_EPS = float(np.finfo(float).eps)
# The edges are judged in so many groups: each costs two looks at every partial sum.
_GROUPS = 24
# Partial sums of a pass, stage by stage, and choices of its end, all in all.
_MAX_KEPT = 20_000_000
_MAX_MADE = 2_000_000
# Of the gap that thinning leaves: as a factor, known to 2**-20 of its logarithm's range.
_HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Front:
    """Choices by rising cost and falling value. Sums are relative to the cheapest choice.

    No choice that costs less than the one at ``i + 1`` has a value below ``bounds[i]``, but for
    ``rounding``.
    """

    picks: Ints  # choices x classes: indices into all options
    costs: Floats
    values: Floats
    bounds: Floats
    rounding: float

    def thinned(self, objective: float, most: int) -> Ints:
        """The indices of ``most`` choices or fewer whose gaps are alike, the first and last too.

        ``objective`` is that of the cheapest choice: gaps are relative to objectives.
        """
        count = len(self.values)
        if count <= most:
            return np.arange(count)
        size = np.abs(self.values + objective) + 1e-9 * float(np.ptp(self.values))
        least = np.minimum.accumulate(self.bounds)
        low, high = 1e-12, 2.0
        kept = np.array([0, count - 1])
        for _ in range(_HALVINGS):
            gap = float(np.sqrt(low * high))
            # From each choice the next one shown if a gap of this may be left between them.
            reach = np.searchsorted(-least, -(self.values - gap * size), side="right")
            following = np.maximum(np.minimum(reach, count - 1), np.arange(1, count + 1)).tolist()
            path = [0]
            while path[-1] < count - 1 and len(path) <= most:
                path.append(following[path[-1]])
            if len(path) <= most:
                high, kept = gap, np.array(path)
            else:
                low = gap
        return kept


def sweep(
    values: Floats,
    costs: Floats,
    owner: Ints,
    cheapest: Ints,
    *,
    out_of_time: Callable[[], bool],
    max_states: Sequence[int],
) -> Front:
    """The front of all choices; ``cheapest`` has the least cost, and of equals the least value.

    Passes are made with no more than each of ``max_states`` partial sums.
    """
    core = Core.of(values, costs, values, owner, cheapest, np.arange(len(values)), 1)
    curve = core.after(-1, 1)
    known = _Known.corners(core)
    closed = np.zeros(len(curve.costs) - 1)  # no better choice has less excess over the edge
    size = float(np.abs(core.values).sum() + np.abs(core.costs).sum()) if len(core.values) else 0.0
    # Sums of n terms are off by n eps times their absolute sum at most.
    rounding = 4 * _EPS * (len(core.classes) + 4) * _spread(core)
    for limit in max_states:
        heights = known.heights(curve.costs, curve.values)
        wanted = np.where(heights > closed + rounding, heights, 0.0)
        if out_of_time() or not wanted.any() or size == 0.0:
            break
        found, share = _pass(core, _Edges.of(core, wanted, rounding), out_of_time, limit)
        known = known.joined(found)
        closed = np.maximum(closed, share * wanted)
    heights = known.heights(curve.costs, curve.values)
    closed = np.where(heights <= closed + rounding, np.inf, closed)
    picks = np.repeat(cheapest[None, :], len(known.costs), axis=0)
    picks[:, core.classes] = core.option[known.taken]
    return Front(
        picks, known.costs, known.values, known.bounds(curve.costs, curve.values, closed), rounding
    )


def _spread(core: Core) -> float:
    """What no sum of values of the core exceeds."""
    if not len(core.classes):
        return 0.0
    return float(np.maximum.reduceat(np.abs(core.values), core.first[:-1]).sum())


@dataclass(frozen=True, slots=True)
class _Known:
    """The best choices known: by rising cost, with falling values."""

    costs: Floats
    values: Floats
    taken: npt.NDArray[np.int32]  # choices x stages: indices into the core's options

    @staticmethod
    def corners(core: Core) -> _Known:
        """The corners of the relaxation's curve: after each step along the hulls a choice."""
        steps = core.after(-1, 1)
        taken = np.repeat(core.start[None, :].astype(np.int32), len(steps.costs), axis=0)
        for i, (stage, option) in enumerate(zip(steps.stage, steps.option, strict=True)):
            taken[i + 1 :, stage] = option
        return _Known.of(steps.costs, steps.values, taken)

    @staticmethod
    def of(costs: Floats, values: Floats, taken: npt.NDArray[np.int32]) -> _Known:
        keep = pareto(costs, values)
        return _Known(costs[keep], values[keep], taken[keep])

    def joined(self, other: _Known) -> _Known:
        return _Known.of(
            np.concatenate((self.costs, other.costs)),
            np.concatenate((self.values, other.values)),
            np.concatenate((self.taken, other.taken)),
        )

    def heights(self, corner_costs: Floats, corner_values: Floats) -> Floats:
        """For every edge, how far above it a choice may be that is better than those known.

        That is just before the next choice known: the corners are among them.
        """
        above = self.values[:-1] - np.interp(self.costs[1:], corner_costs, corner_values)
        heights = np.zeros(len(corner_costs) - 1)
        np.maximum.at(heights, self.edges(corner_costs), above)
        return heights

    def edges(self, corner_costs: Floats) -> Ints:
        """The edge that lies below what is between each known choice and the next.

        The middle tells: costs at corners may differ by the rounding of their sums.
        """
        middle = (self.costs[:-1] + self.costs[1:]) / 2
        edges = np.searchsorted(corner_costs, middle, side="right") - 1
        return np.clip(edges, 0, len(corner_costs) - 2)

    def bounds(self, corner_costs: Floats, corner_values: Floats, closed: Floats) -> Floats:
        """What no choice that costs less than the next one known is below."""
        if len(closed) == 0:
            return self.values
        least = np.interp(self.costs[1:], corner_costs, corner_values)
        least = least + closed[self.edges(corner_costs)]
        return np.append(np.minimum(self.values[:-1], least), self.values[-1])


@dataclass(frozen=True, slots=True)
class _Edges:
    """Groups of neighbouring edges that are still open: their slopes' range, and their height."""

    steepest: Floats
    flattest: Floats
    heights: Floats

    @staticmethod
    def of(core: Core, wanted: Floats, rounding: float) -> _Edges:
        slopes = -core.step_values / core.step_costs
        opened = np.flatnonzero(wanted > 0)
        parts = np.array_split(opened, min(_GROUPS, len(opened)))
        return _Edges(
            np.array([slopes[p].max() for p in parts]),
            np.array([slopes[p].min() for p in parts]),
            np.array([wanted[p].max() + rounding for p in parts]),
        )

    def least(self, values: Floats, costs: Floats) -> tuple[Floats, Floats]:
        """The least of value plus slope times cost of some options, at both ends of each group."""
        return (
            (values + self.steepest[:, None] * costs).min(axis=1),
            (values + self.flattest[:, None] * costs).min(axis=1),
        )

    def shares(
        self, sums: Floats, spent: Floats, low: tuple[Floats, Floats], inside: Floats, slope: Floats
    ) -> Floats:
        """The least share of a group's height that each partial sum is above its slopes.

        ``inside`` is the excess at ``slope``, where it is least; it is convex in the slope.
        """
        shares = np.full(len(sums), np.inf)
        for g, height in enumerate(self.heights):
            steep, flat = self.steepest[g], self.flattest[g]
            excess = np.minimum(sums + steep * spent - low[0][g], sums + flat * spent - low[1][g])
            excess = np.where((slope >= flat) & (slope <= steep), inside, excess)
            np.minimum(shares, excess / height, out=shares)
        return shares


def _pass(
    core: Core, edges: _Edges, out_of_time: Callable[[], bool], limit: int
) -> tuple[_Known, float]:
    """What one pass finds, and the share of the edges' heights below which it dropped nothing."""
    sums, spent = np.zeros(1), np.zeros(1)
    low = (np.zeros(len(edges.heights)), np.zeros(len(edges.heights)))
    share = 1.0
    stages = len(core.classes)
    limit = max(min(limit, _MAX_KEPT // stages), 1)
    trail: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
    for k in range(stages):
        if out_of_time():
            none = np.zeros((0, stages), dtype=np.int32)
            return _Known(np.zeros(0), np.zeros(0), none), 0.0
        options = np.arange(core.first[k], core.first[k + 1])
        added = edges.least(core.values[options], core.costs[options])
        low = (low[0] + added[0], low[1] + added[1])
        made = (core.values[options, None] + sums).ravel()
        cost = (core.costs[options, None] + spent).ravel()
        index = pareto(cost, made)
        made, cost = made[index], cost[index]
        inside, slope = _least_excess(core, k, made, cost)
        alive = np.flatnonzero(inside < share * edges.heights.max())
        made, cost, index = made[alive], cost[alive], index[alive]
        shares = edges.shares(made, cost, low, inside[alive], slope[alive])
        alive = np.flatnonzero(shares < share)
        following = core.first[k + 2] - core.first[k + 1] if k + 2 < len(core.first) else 1
        most = min(limit, _MAX_MADE // int(following))
        if len(alive) > most:
            order = np.argpartition(shares[alive], most)
            share = min(share, float(shares[alive[order[most]]]))
            alive = np.sort(alive[order[:most]])
        at, parents = np.divmod(index[alive], len(sums))
        sums, spent = made[alive], cost[alive]
        trail.append((parents.astype(np.int32), options[at].astype(np.int32)))
    taken = np.zeros((len(sums), stages), dtype=np.int32)
    state: npt.NDArray[np.signedinteger[Any]] = np.arange(len(sums))
    for k in range(stages - 1, -1, -1):
        parents, chosen = trail[k]
        taken[:, k], state = chosen[state], parents[state]
    return _Known(spent, sums, taken), share


def _least_excess(core: Core, k: int, sums: Floats, spent: Floats) -> tuple[Floats, Floats]:
    """How far partial sums are above the relaxation of the stages up to ``k``, and its slope."""
    mine = core.step_stage <= k
    costs, values = core.step_costs[mine], core.step_values[mine]
    start = core.start[: k + 1]
    along = np.cumsum(np.concatenate(([core.costs[start].sum()], costs)))
    down = np.cumsum(np.concatenate(([core.values[start].sum()], values)))
    slopes = np.concatenate((-values / costs, [0.0]))
    at = np.clip(np.searchsorted(along, spent, side="right") - 1, 0, len(slopes) - 1)
    return sums - np.interp(spent, along, down), slopes[at]
