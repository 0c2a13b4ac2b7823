"""The multiple-choice knapsack with one budget: exact, or with a proven bound when time is up.

Dynamic programming over the Pareto front of partial sums, class by class. A partial sum is kept
only if the linear relaxation of the classes still to come could bring it below the best choice
known; a whole step of that relaxation completes it to such a choice. Costs are never rounded.

Source: Kellerer, Pferschy, Pisinger, *Knapsack Problems* (2004), chapter 11: dominance and
LP-dominance, reduction by reduced costs, dynamic programming with bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["minimise", "pareto"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Costs = npt.NDArray[Any]  # float64, or exact integers as objects


def minimise(
    values: Sequence[Floats],
    costs: Sequence[Costs],
    budget: Any,
    *,
    scale: int,
    hair: float,
    out_of_time: Callable[[], bool],
    max_states: int,
) -> tuple[list[int], float | None]:
    """One option for every class with the least sum of values, and a bound on that sum.

    ``costs[l]`` are the costs of class ``l``, less the smallest of them; ``budget`` is what is
    left above the sum of the smallest, and not negative. Both are floats, or integers that were
    multiplied by ``scale``; ``hair`` is the absolute error that a float of them may have. The
    bound is None where the choice is proven optimal, that is unless time ran out or more than
    ``max_states`` partial sums had to be kept.
    """
    search = _Search(values, costs, budget, scale, hair)
    open_bound = np.inf  # of what was given up
    stages = search.reduced()
    steps = _Steps.of(stages, scale)
    sums = np.zeros(1)
    spent: Costs = np.zeros(1, dtype=costs[0].dtype)
    bounds = np.full(1, search.bound)
    trail: list[tuple[Ints, Ints]] = []
    for k, stage in enumerate(stages):
        if out_of_time():
            open_bound = min(open_bound, float(bounds.min()))
            break
        width = len(stage.options)
        rest = steps.after(k)
        sums = (sums[:, None] + stage.values).ravel()
        spent = (spent[:, None] + stage.costs).ravel()
        alive = np.flatnonzero((spent <= budget) & (search.left(spent) >= rest.costs[0] - hair))
        if len(alive) == 0:
            break
        sums, spent = sums[alive], spent[alive]
        parents, positions = np.divmod(alive, width)
        left = search.left(spent)
        search.complete(stages, rest, sums, left, parents, positions, trail)
        bounds = sums + np.interp(left, rest.costs, rest.values)
        alive = np.flatnonzero(bounds < search.best)
        if len(alive) == 0:
            break
        alive = alive[pareto(spent[alive], sums[alive])]
        if len(alive) > max_states:
            order = np.argpartition(bounds[alive], max_states)
            open_bound = min(open_bound, float(bounds[alive[order[max_states:]]].min()))
            alive = alive[order[:max_states]]
        sums, spent, bounds = sums[alive], spent[alive], bounds[alive]
        trail.append((parents[alive], positions[alive]))
    return search.picks, None if open_bound >= search.best else search.offset + open_bound


def pareto(costs: Costs, values: Floats) -> Ints:
    """Indices of the undominated points, by rising cost and falling value."""
    order = np.argsort(values, kind="stable")
    order = order[np.argsort(costs[order], kind="stable")]
    ordered = values[order]
    before = np.minimum.accumulate(np.concatenate(([np.inf], ordered[:-1])))
    keep: Ints = order[ordered < before]
    return keep


@dataclass(frozen=True, slots=True)
class _Stage:
    """One class on the way: its undominated options by rising cost, and their lower hull."""

    index: int
    options: Ints
    values: Floats
    costs: Costs
    hull: Ints  # positions in ``options``

    @staticmethod
    def of(index: int, options: Ints, values: Floats, costs: Costs, scale: int) -> _Stage:
        keep = pareto(costs, values)
        options, values, costs = options[keep], values[keep], costs[keep]
        return _Stage(index, options, values, costs, _hull(_floats(costs, scale), values))


def _floats(costs: Costs, scale: int) -> Floats:
    return costs if costs.dtype == np.float64 else (costs / scale).astype(np.float64)


def _hull(costs: Floats, values: Floats) -> Ints:
    """Positions on the lower convex hull of points with rising costs and falling values."""
    hull: list[int] = []
    for j in range(len(costs)):
        if hull and costs[j] <= costs[hull[-1]]:
            hull.pop()  # integers may differ by less than their floats can tell
        while len(hull) > 1:
            a, b = hull[-2:]
            if (values[j] - values[a]) * (costs[b] - costs[a]) > (values[b] - values[a]) * (
                costs[j] - costs[a]
            ):
                break
            hull.pop()
        hull.append(j)
    return np.array(hull, dtype=np.intp)


@dataclass(frozen=True, slots=True)
class _Relaxation:
    """The linear relaxation of some stages, as a function of the budget left to them.

    After the first ``i`` steps (step ``i`` moves ``stage[i]`` to ``position[i]``) the cost is
    ``costs[i]``, the value ``values[i]``, and no option is split: only in between is one.
    """

    costs: Floats
    values: Floats
    stage: Ints
    position: Ints

    def positions(self, count: int, stages: Sequence[_Stage]) -> list[int]:
        taken = [int(stage.hull[0]) for stage in stages]
        for stage, position in zip(self.stage[:count], self.position[:count], strict=True):
            taken[stage] = int(position)
        return taken


@dataclass(frozen=True, slots=True)
class _Steps:
    """All steps along the hulls of all stages, the one that saves most a cost first."""

    stage: Ints
    position: Ints
    costs: Floats
    values: Floats
    start_costs: Floats  # of each stage before its first step
    start_values: Floats

    @staticmethod
    def of(stages: Sequence[_Stage], scale: int) -> _Steps:
        along = [np.diff(_floats(s.costs[s.hull], scale)) for s in stages]
        down = [np.diff(s.values[s.hull]) for s in stages]
        costs, values = np.concatenate(along), np.concatenate(down)
        owner = np.concatenate([np.full(len(d), k) for k, d in enumerate(down)]).astype(np.intp)
        position = np.concatenate([s.hull[1:] for s in stages])
        order = np.argsort(values / costs, kind="stable")
        return _Steps(
            owner[order],
            position[order],
            costs[order],
            values[order],
            np.array([float(_floats(s.costs[s.hull[:1]], scale)[0]) for s in stages]),
            np.array([float(s.values[s.hull[0]]) for s in stages]),
        )

    def after(self, k: int) -> _Relaxation:
        """The relaxation of the stages behind stage ``k``; of all of them for -1."""
        mine = self.stage > k
        return _Relaxation(
            np.cumsum(np.concatenate(([self.start_costs[k + 1 :].sum()], self.costs[mine]))),
            np.cumsum(np.concatenate(([self.start_values[k + 1 :].sum()], self.values[mine]))),
            self.stage[mine],
            self.position[mine],
        )


class _Search:
    """The best choice known, and what is the same for all stages. Values are less ``offset``."""

    def __init__(
        self,
        values: Sequence[Floats],
        costs: Sequence[Costs],
        budget: Any,
        scale: int,
        hair: float,
    ) -> None:
        self.budget, self.scale, self.hair = budget, scale, hair
        self.offset = float(sum(v.min() for v in values))
        self.stages = [
            _Stage.of(i, np.arange(len(v)), v - v.min(), c, scale)
            for i, (v, c) in enumerate(zip(values, costs, strict=True))
        ]
        self.picks = [int(stage.options[0]) for stage in self.stages]
        self.best = float(sum(stage.values[0] for stage in self.stages))
        self.bound = 0.0

    def left(self, spent: Costs) -> Floats:
        """What is left of the budget, never too little, as a float."""
        if spent.dtype == np.float64:
            return np.asarray(self.budget - spent, dtype=np.float64)
        return _floats(self.budget - spent, self.scale) + self.hair

    def complete(
        self,
        stages: Sequence[_Stage],
        rest: _Relaxation,
        sums: Floats,
        left: Floats,
        parents: Ints,
        positions: Ints,
        trail: Sequence[tuple[Ints, Ints]],
    ) -> None:
        """Fill the partial sums up with whole steps; keep the best choice that this makes."""
        count = np.maximum(np.searchsorted(rest.costs, left, side="right") - 1, 0)
        totals = sums + rest.values[count]
        state = int(totals.argmin())
        if not totals[state] < self.best:
            return
        taken = rest.positions(int(count[state]), stages)
        at = len(trail)
        taken[at], state = int(positions[state]), int(parents[state])
        for back, places in reversed(trail):
            at -= 1
            taken[at], state = int(places[state]), int(back[state])
        self.adopt(stages, taken)

    def adopt(self, stages: Sequence[_Stage], taken: Sequence[int]) -> None:
        """Make this the best choice known, if it is within the budget and better."""
        spent = sum(stage.costs[j] for stage, j in zip(stages, taken, strict=True))
        total = float(sum(stage.values[j] for stage, j in zip(stages, taken, strict=True)))
        if spent <= self.budget and total < self.best:
            self.best = total
            for stage, j in zip(stages, taken, strict=True):
                self.picks[stage.index] = int(stage.options[j])

    def reduced(self) -> list[_Stage]:
        """The stages without options that no better choice can hold; sets ``bound``.

        An option's bound is the Lagrangian one at the slope where the relaxation ends.
        """
        relaxation = _Steps.of(self.stages, self.scale).after(-1)
        left = float(self.left(np.zeros(1, dtype=self.stages[0].costs.dtype))[0])
        count = int(np.searchsorted(relaxation.costs, left, side="right")) - 1
        self.adopt(self.stages, relaxation.positions(count, self.stages))
        self.bound = float(np.interp(left, relaxation.costs, relaxation.values))
        if count == len(relaxation.stage):
            return self.stages  # nothing is split: but for rounding, the choice made is the best
        slope = (relaxation.values[count] - relaxation.values[count + 1]) / (
            relaxation.costs[count + 1] - relaxation.costs[count]
        )
        priced = [s.values + slope * _floats(s.costs, self.scale) for s in self.stages]
        lowest = [float(p.min()) for p in priced]
        base = sum(lowest) - slope * left
        kept = []
        for stage, price, low in zip(self.stages, priced, lowest, strict=True):
            alive = base - low + price < self.best + 1e-12 * abs(self.best)
            alive[int(price.argmin())] = True  # a stage is never empty
            alive = np.flatnonzero(alive)
            kept.append(
                _Stage.of(
                    stage.index,
                    stage.options[alive],
                    stage.values[alive],
                    stage.costs[alive],
                    self.scale,
                )
            )
        return sorted(kept, key=lambda s: (len(s.options) > 1, -float(np.ptp(s.values))))
