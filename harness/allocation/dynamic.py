"""The multiple-choice knapsack with one budget: exact, or with a proven bound when time is up.

Dynamic programming over the Pareto front of partial sums, class by class, through the core that
``reduction.py`` leaves. A partial sum is kept only if the linear relaxation of the classes still
to come could bring it below the best choice known; whole steps of that relaxation complete it to
such a choice. The classes come in the order of what leaving their relaxed option costs at least,
so the search ends where that reaches what the best choice known is above the bound. Costs are
never rounded.

In floats the bound holds because every comparison that drops something leaves room for the
rounding of both its sides (``_Search.rounding``). Where all values are whole multiples of one
number that is much larger than the rounding, a better choice is better by that number at least,
so what is optimal is proven so exactly. The like holds for values plus some multiple of the costs
(``_Grid``): strongly correlated instances are hard for the relaxation alone.

Source: Kellerer, Pferschy, Pisinger, *Knapsack Problems* (2004), chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.allocation.reduction import Core, Relaxed, Steps, floats, relax

__all__ = ["Found", "minimise", "pareto"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Costs = npt.NDArray[Any]  # float64, or exact integers as objects

_EPS = float(np.finfo(float).eps)
# At most so many sums are made in one step, and kept in all for the way back (8 bytes each).
_MAX_MADE = 4_000_000
_MAX_KEPT = 30_000_000
# Integers of this times the costs stay exact.
_MAX_WEIGHT = 1000
# Once partial sums were given up, the rest of the pass only looks for a better choice.
_BEAM = 2_000


@dataclass(frozen=True, slots=True)
class Found:
    """An option (of all) for every class, and how far below its objective another one may be.

    ``short`` is None where the choice is optimal but for ``rounding``: no other choice has an
    objective that is lower by more. ``rounding`` is 0 where that is proven exactly.
    """

    picks: Ints
    short: float | None
    rounding: float


def minimise(
    values: Floats,
    costs: Costs,
    first: Ints,
    owner: Ints,
    budget: Any,
    *,
    scale: int = 1,
    hair: float = 0.0,
    step: float | None = None,
    unit: float | None = None,
    start: Ints | None = None,
    out_of_time: Callable[[], bool],
    max_states: int,
) -> Found:
    """One option for every class with the least sum of values.

    Values and costs are those of all options, class after class (``first``, ``owner``), less the
    least of each class; ``budget`` is what is left above the least costs, and not negative. Costs
    and budget are floats, or integers that were multiplied by ``scale``; ``hair`` is the absolute
    error that a float of them may have. All values are multiples of ``step`` and their sums exact,
    unless it is None; so for costs and ``unit``. ``start`` is a choice within the budget to begin
    with. No more than ``max_states`` partial sums are kept.
    """
    left = float(floats(np.array([budget], dtype=costs.dtype), scale)[0])
    if unit is not None:
        budget = left = unit * math.floor(left / unit)
    relaxed = relax(values, floats(costs, scale), first, owner, left)
    search = _Search(values, costs, owner, budget, relaxed, scale, hair, step)
    if step is not None and unit is not None:
        search.grids.extend(_Grid.of(search, step, unit))
    for choice in (relaxed.choice, relaxed.base, start):
        if choice is not None:
            search.adopt(choice)
    if relaxed.slope == 0.0 and search.picks is relaxed.base and search.best == 0.0:
        return Found(relaxed.base, None, 0.0)  # every class has its best option
    if search.best == np.inf:
        search.adopt(_cheapest(costs, first, owner))
    return search.found(search.run(out_of_time, max_states))


def _cheapest(costs: Costs, first: Ints, owner: Ints) -> Ints:
    """An option of the least cost for every class."""
    least = np.flatnonzero(costs == 0)
    return least[np.searchsorted(owner[least], np.arange(len(first)))]


def pareto(costs: Costs, values: Floats) -> Ints:
    """Indices of the undominated points, by rising cost and falling value."""
    order = np.argsort(costs, kind="stable")
    ordered = values[order]
    before = np.minimum.accumulate(np.concatenate(([np.inf], ordered[:-1])))
    order = order[ordered < before]
    if len(order) == 0:
        return order
    # Of equal costs the last that is left has the least value.
    last = np.concatenate((costs[order[1:]] > costs[order[:-1]], [True]))
    keep: Ints = order[last]
    return keep


@dataclass(frozen=True, slots=True)
class _States:
    """Partial sums: values, costs, bounds, and which sum and option each was made from."""

    sums: Floats
    spent: Costs
    bounds: Floats
    parents: Ints
    options: Ints

    def take(self, which: Ints | npt.NDArray[np.bool_]) -> _States:
        return _States(
            self.sums[which],
            self.spent[which],
            self.bounds[which],
            self.parents[which],
            self.options[which],
        )


@dataclass(frozen=True, slots=True)
class _Grid:
    """All choices' values plus ``weight`` times their costs are whole multiples of ``step``.

    So where the relaxation bounds that sum from below, the next multiple does. What it says of the
    values holds for slopes of ``weight`` and more: with the weight taken off, what is left of the
    relaxation's price of a unit of cost may not be negative.
    """

    weight: float
    step: float

    @staticmethod
    def of(search: _Search, step: float, unit: float) -> list[_Grid]:
        """The grid that all differences to the relaxed options lie on, if it is a coarse one."""
        relaxed = search.relaxed
        base = relaxed.base[search.owner]
        values = np.rint((search.values - search.values[base]) / step).astype(np.int64)
        costs = np.rint((search.costs - search.costs[base]) / unit).astype(np.int64)
        most = int(min(relaxed.slope * unit / step, _MAX_WEIGHT))
        coarse = [(int(np.gcd.reduce(values + k * costs)), k) for k in {1, most} if 1 <= k <= most]
        factor, k = max(coarse, default=(1, 0))
        return [_Grid(k * step / unit, factor * step)] if factor > 1 else []


class _Search:
    """The best choice known, and what all steps share. Values are relative to the relaxed ones."""

    def __init__(
        self,
        values: Floats,
        costs: Costs,
        owner: Ints,
        budget: Any,
        relaxed: Relaxed,
        scale: int,
        hair: float,
        step: float | None,
    ) -> None:
        self.values, self.costs, self.owner = values, costs, owner
        self.relaxed, self.scale, self.hair, self.step = relaxed, scale, hair, step
        self.budget = budget - costs[relaxed.base].sum()
        self.room = float(self.left(np.zeros(1, dtype=costs.dtype))[0])
        self.lowest = -relaxed.slope * self.room - relaxed.lost
        self.picks = relaxed.base
        self.best = np.inf
        self.rounding = 0.0
        self.grids: list[_Grid] = []

    def left(self, spent: Costs) -> Floats:
        """What is left of the budget, never too little, as a float."""
        if spent.dtype == np.float64:
            return np.asarray(self.budget - spent, dtype=np.float64)
        return floats(self.budget - spent, self.scale) + self.hair

    def adopt(self, picks: Ints) -> None:
        """Make this the best choice known, if it is within the budget and better."""
        total = float((self.values[picks] - self.values[self.relaxed.base]).sum())
        if total < self.best:
            spent = (self.costs[picks] - self.costs[self.relaxed.base]).sum()
            if spent <= self.budget:
                self.best, self.picks = total, picks

    def threshold(self) -> float:
        """What has a bound of this or more leads to no better choice."""
        if self.step is None:
            return self.best
        below = self.best - self.step
        for grid in self.grids:
            add = grid.weight * self.room
            below = min(below, grid.step * (math.ceil((self.best + add) / grid.step) - 1) - add)
        return below + 2 * self.rounding

    def found(self, given_up: float) -> Found:
        """The best choice known, where nothing with a bound below ``given_up`` was given up."""
        given_up = min(given_up, self.best)
        if self.step is not None:
            for grid in self.grids:
                add = grid.weight * self.room
                least = math.ceil((given_up + add - 2 * self.rounding) / grid.step)
                given_up = max(given_up, grid.step * least - add)
        short = max(self.best - given_up, 0.0)
        if self.step is not None:
            short = self.step * math.floor((short + 2 * self.rounding) / self.step)
            return Found(self.picks, short or None, 0.0)
        if short <= self.rounding:
            return Found(self.picks, None, 3 * self.rounding)
        return Found(self.picks, short + 2 * self.rounding, 0.0)

    def core(self) -> Core:
        """The core of the options that a better choice may hold; sets ``rounding``.

        A sum of n terms, in whatever order, is off by at most n eps times their absolute sum. All
        sums here are over the core's options or the steps along its hulls, and the bound's are
        over the relaxed options of all classes.
        """
        relaxed = self.relaxed
        fixed = self.values[relaxed.base].sum()
        fixed += relaxed.slope * float(floats(self.costs[relaxed.base], self.scale).sum())
        cut = self.threshold() - self.lowest
        alive = relaxed.excess < cut + 1e-12 * (fixed + abs(self.lowest))
        alive[relaxed.base] = True
        core = Core.of(
            self.values,
            self.costs,
            relaxed.excess,
            self.owner,
            relaxed.base,
            np.flatnonzero(alive),
            self.scale,
        )
        if len(core.classes):
            widest = np.maximum.reduceat(
                np.abs(core.values) + relaxed.slope * np.abs(floats(core.costs, self.scale)),
                core.first[:-1],
            )
            moved = (len(core.step_stage) + len(core.classes)) * float(widest.sum())
        else:
            moved = 0.0
        self.rounding = 4 * _EPS * (moved + 4 * (fixed + abs(self.lowest) + cut))
        if self.step is not None and self.step < 8 * self.rounding:
            self.step = None
        return core

    def run(self, out_of_time: Callable[[], bool], max_states: int) -> float:
        """Search; a value below which nothing was given up (infinity: nothing was at all)."""
        core = self.core()
        given_up = np.inf
        none, spent = np.zeros(1, dtype=np.intp), np.zeros(1, dtype=self.costs.dtype)
        states = _States(np.zeros(1), spent, np.full(1, self.lowest), none, none)
        trail: list[tuple[Ints, Ints]] = []
        kept = 0
        for k in range(len(core.classes)):
            if self.lowest + core.least[k] >= self.threshold():
                break
            if out_of_time():
                return min(given_up, float(states.bounds.min()))
            rest = core.after(k, self.scale)
            states = self._made(core, k, rest, states)
            self._complete(core, k, rest, states, trail)
            states = states.take(states.bounds < self.threshold())
            if len(states.sums) == 0:
                break
            following = core.first[k + 2] - core.first[k + 1] if k + 2 < len(core.first) else 1
            beam = given_up < np.inf or kept > _MAX_KEPT
            limit = min(_BEAM if beam else max_states, _MAX_MADE // int(following))
            if len(states.sums) > limit:
                order = np.argpartition(states.bounds, limit)
                given_up = min(given_up, float(states.bounds[order[limit]]))
                states = states.take(np.sort(order[:limit]))
            kept += len(states.sums)
            trail.append((states.parents.astype(np.int32), states.options.astype(np.int32)))
        return given_up

    def _made(self, core: Core, k: int, rest: Steps, states: _States) -> _States:
        """The partial sums with each option of stage ``k``, without those that lead nowhere."""
        options = np.arange(core.first[k], core.first[k + 1])
        options = options[core.excess[options] < self.best - self.lowest + self.rounding]
        # Option by option: each run of sums is sorted by cost, which sorting them all makes use of.
        sums = (core.values[options, None] + states.sums).ravel()
        spent = (core.costs[options, None] + states.spent).ravel()
        left = self.left(spent)
        bounds = sums + np.interp(left, rest.costs, rest.values)
        for grid in self.grids:
            # The relaxation with no step flatter than the grid's weight, and going on with that.
            steep = np.minimum(np.diff(rest.values), -grid.weight * np.diff(rest.costs))
            curve = np.concatenate((rest.values[:1], rest.values[0] + np.cumsum(steep)))
            bounds = sums + np.interp(left, rest.costs, curve)
            bounds -= grid.weight * np.maximum(left - rest.costs[-1], 0.0)
        # Exactly, where costs are integers: the cheapest option of a stage is its first.
        still = core.costs[core.first[k + 1 : -1]].sum()
        alive = (bounds < self.threshold()) & (spent + still <= self.budget).astype(np.bool_)
        index = np.flatnonzero(alive)
        index = index[pareto(spent[index], sums[index])]
        at, parents = np.divmod(index, len(states.sums))
        return _States(sums[index], spent[index], bounds[index], parents, options[at])

    def _complete(
        self,
        core: Core,
        k: int,
        rest: Steps,
        states: _States,
        trail: list[tuple[Ints, Ints]],
    ) -> None:
        """Fill the partial sums up with whole steps; keep the best choice that this makes."""
        if len(states.sums) == 0:
            return
        count = np.searchsorted(rest.costs, self.left(states.spent), side="right") - 1
        totals = states.sums + rest.values[np.maximum(count, 0)]
        state = int(totals.argmin())
        if not totals[state] < self.best:
            return
        taken = core.start.copy()
        steps = slice(0, max(int(count[state]), 0))
        taken[rest.stage[steps]] = rest.option[steps]  # of several steps of a stage the last counts
        taken[k], state = states.options[state], int(states.parents[state])
        for stage in range(k - 1, -1, -1):
            parents, options = trail[stage]
            taken[stage], state = options[state], int(parents[state])
        picks = self.relaxed.base.copy()
        picks[core.classes] = core.option[taken]
        self.adopt(picks)
