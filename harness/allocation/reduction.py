"""What the linear relaxation says about a knapsack: a bound, a first choice, and what is left over.

At the slope where the relaxation of one budget ends, every option has an excess: what taking it
adds to the bound. A choice's objective is the bound, plus its options' excesses, plus the slope
times the budget that it leaves unused. So an option whose excess reaches that of a known choice is
in no better one, and few are left.

Sources: Sinha, Zoltners, *The multiple-choice knapsack problem* (1979): the relaxation and its
hulls; Pisinger, *A minimal algorithm for the multiple-choice knapsack problem* (1995): a core of
classes around the split one; Kellerer, Pferschy, Pisinger, *Knapsack Problems* (2004), chapter 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Core", "Relaxed", "Steps", "decimals", "floats", "quantum", "relax"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
Costs = npt.NDArray[Any]  # float64, or exact integers as objects

# Chords to the relaxation's slope: each cuts off a part of the hull, and ten are usual. What is
# not reached then is only a weaker bound.
_CHORDS = 100
# Swaps that improve the first choice. Each looks at all options, and the search makes better ones.
_SWAPS = 12


def quantum(table: Floats, size: float) -> float | None:
    """What all numbers are whole multiples of, if floats then hold their sums exactly, or None.

    ``size`` is what sums come to at most. A power of two that divides all numbers makes them
    integers, and floats add integers below 2**53 without rounding.
    """
    numbers = table[table != 0]
    if len(numbers) == 0:
        return 1.0
    mantissas, exponents = np.frexp(numbers)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    last = np.frexp((whole & -whole).astype(np.float64))[1] - 1 + exponents - 53
    power = int(last.min())
    if np.frexp(size)[1] - power > 51:
        return None
    step = np.gcd.reduce(np.ldexp(numbers, -power).astype(np.int64))
    return float(np.ldexp(float(step), power))


def decimals(table: Floats, size: float) -> int:
    """The power of ten that makes all numbers whole: they are decimals of as many digits.

    1 where it is not needed or does not help: where sums are exact already, or would not be as
    integers, or more than six digits are needed. ``size`` is what sums come to at most.
    """
    if quantum(table, size) is not None:
        return 1
    for digits in range(1, 7):
        parts = int(10**digits)
        if size * parts > 2.0**50:
            break
        if (np.rint(table * parts) / parts == table).all():
            return parts
    return 1


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The relaxation of one budget: its slope, each class's option there, and a choice.

    ``base`` and ``choice`` hold an index into all options for every class; both are within the
    budget. ``excess`` is that of every option, ``lost`` the sum of those of ``base`` (rounding).
    """

    slope: float
    base: Ints
    choice: Ints
    excess: Floats
    lost: float


def relax(values: Floats, costs: Floats, first: Ints, owner: Ints, left: float) -> Relaxed:
    """The relaxation where all cheapest options leave ``left`` of the budget.

    The least value and the least cost of every class are zero. The slope is found by chords: from
    a point of the hull within the budget and one beyond it to the point farthest below their
    line. That takes no sorting and no hulls.
    """
    low = _pick(costs, values, first, owner)
    high = _pick(values, costs, first, owner)
    if float(costs[high].sum()) <= left:
        return Relaxed(0.0, high, high, values, 0.0)
    slope = 0.0
    for _ in range(_CHORDS):
        further = float((costs[high] - costs[low]).sum())
        chord = float((values[low] - values[high]).sum()) / further if further > 0 else 0.0
        if not chord > 0:
            break
        slope = chord
        price = values + slope * costs
        middle = _pick(price, costs, first, owner)
        below = float((price[low] - price[middle]).sum())
        if not below > 1e-15 * float(price[low].sum()):
            break
        if float(costs[middle].sum()) <= left:
            low = middle
        else:
            high = middle
    price = values + slope * costs
    excess = price - np.minimum.reduceat(price, first)[owner]
    base = _walk(costs, low, high, left)
    choice = base
    for start in (base, low, high):
        swapped = _swapped(values, costs, owner, start, left)
        if costs[swapped].sum() <= left and values[swapped].sum() < values[choice].sum():
            choice = swapped
    return Relaxed(slope, base, choice, excess, float(excess[base].sum()))


def _pick(key: Floats, then: Floats, first: Ints, owner: Ints) -> Ints:
    """For every class the option with the least ``key``, and of those with the least ``then``."""
    least = np.flatnonzero(key == np.minimum.reduceat(key, first)[owner])
    if len(least) > len(first):
        least = least[np.lexsort((then[least], owner[least]))]
        least = least[np.concatenate(([True], np.diff(owner[least]) > 0))]
    return least


def _walk(costs: Floats, low: Ints, high: Ints, left: float) -> Ints:
    """As many classes as fit moved from ``low`` to ``high``: the largest moves first."""
    moves = costs[high] - costs[low]
    order = np.argsort(-moves, kind="stable")
    spent = float(costs[low].sum()) + np.cumsum(moves[order])
    base = low.copy()
    count = int(np.searchsorted(-(spent <= left).astype(np.intp), 0))
    base[order[:count]] = high[order[:count]]
    return base if float(costs[base].sum()) <= left else low


def _swapped(values: Floats, costs: Floats, owner: Ints, start: Ints, left: float) -> Ints:
    """The choice after swaps of one option each, the best that fits first."""
    choice = start.copy()
    for _ in range(_SWAPS):
        room = left - float(costs[choice].sum())
        gain = values - values[choice][owner]
        fits = costs - costs[choice][owner] <= room
        gain = np.where(fits, gain, np.inf)
        best = int(gain.argmin())
        if not (gain[best] < 0 if room >= 0 else gain[best] < np.inf):
            break
        choice[owner[best]] = best
    return choice


@dataclass(frozen=True, slots=True)
class Steps:
    """The relaxation of some stages, as a function of the budget left to them.

    After the first ``i`` steps (step ``i`` moves ``stage[i]`` to ``option[i]``) the cost is
    ``costs[i]``, the value ``values[i]``, and no option is split: only in between is one.
    """

    costs: Floats
    values: Floats
    stage: Ints
    option: Ints


@dataclass(frozen=True, slots=True)
class Core:
    """The classes that are still open, the most promising first: stages of a search.

    The undominated options of stage ``k`` stand from ``first[k]`` to ``first[k + 1]``, by rising
    cost; their values and costs are relative to those of the relaxation's option of that class.
    ``least[k]`` is the least excess of another option. The last six fields are the lower hulls of
    the stages: where each begins, and the steps along them, that which saves most a cost first.
    """

    classes: Ints
    first: Ints
    option: Ints
    values: Floats
    costs: Costs
    excess: Floats
    least: Floats
    start: Ints  # where each stage's hull begins, among all options of the core
    step_stage: Ints
    step_option: Ints
    step_costs: Floats
    step_values: Floats

    @staticmethod
    def of(
        values: Floats,
        costs: Costs,
        excess: Floats,
        owner: Ints,
        base: Ints,
        option: Ints,
        scale: int,
    ) -> Core:
        """The core of the options ``option``; costs divided by ``scale`` are their floats."""
        mine = owner[option]
        least = np.full(len(base), np.inf)
        others = base[mine] != option
        np.minimum.at(least, mine[others], excess[option[others]])
        opened = np.isfinite(least)
        option = option[opened[mine]]
        classes = np.flatnonzero(opened)
        classes = classes[np.argsort(least[classes], kind="stable")]
        rank = np.empty(len(base), dtype=np.intp)
        rank[classes] = np.arange(len(classes))
        stage = rank[owner[option]]
        value = values[option] - values[base[owner[option]]]
        cost = costs[option] - costs[base[owner[option]]]
        # Python's integers do not sort in numpy's lexsort; their ranks do.
        keys = cost if cost.dtype == np.float64 else np.unique(cost, return_inverse=True)[1]
        order = np.lexsort((value, keys, stage))
        order = order[_undominated(stage[order], value[order])]
        option, stage, value, cost = option[order], stage[order], value[order], cost[order]
        plain = floats(cost, scale)
        hull = _hulls(stage, plain, value)
        along, owns = hull[1:], stage[hull[1:]] == stage[hull[:-1]]
        step_costs, step_values = np.diff(plain[hull])[owns], np.diff(value[hull])[owns]
        along = along[owns]
        by_slope = np.argsort(step_values / step_costs, kind="stable")
        return Core(
            classes=classes,
            first=np.searchsorted(stage, np.arange(len(classes) + 1)),
            option=option,
            values=value,
            costs=cost,
            excess=excess[option],
            least=least[classes],
            start=hull[np.searchsorted(stage[hull], np.arange(len(classes)))],
            step_stage=stage[along][by_slope],
            step_option=along[by_slope],
            step_costs=step_costs[by_slope],
            step_values=step_values[by_slope],
        )

    def after(self, k: int, scale: int) -> Steps:
        """The relaxation of the stages behind stage ``k``; of all of them for -1."""
        mine = self.step_stage > k
        start = self.start[k + 1 :]
        base_cost = float(floats(self.costs[start], scale).sum())
        base_value = float(self.values[start].sum())
        return Steps(
            np.cumsum(np.concatenate(([base_cost], self.step_costs[mine]))),
            np.cumsum(np.concatenate(([base_value], self.step_values[mine]))),
            self.step_stage[mine],
            self.step_option[mine],
        )


def floats(costs: Costs, scale: int) -> Floats:
    """Costs as floats: exact integers divided by their scale."""
    return costs if costs.dtype == np.float64 else (costs / scale).astype(np.float64)


def _undominated(stage: Ints, value: Floats) -> Ints:
    """Indices of the points, sorted by stage, cost and value, that no earlier one dominates.

    What is no better than the point before it goes, until nothing does: that point costs no more.
    """
    keep = np.arange(len(stage))
    while True:
        same = stage[keep[1:]] == stage[keep[:-1]]
        worse = same & (value[keep[1:]] >= value[keep[:-1]])
        if not worse.any():
            return keep
        keep = keep[np.concatenate(([True], ~worse))]


def _hulls(stage: Ints, cost: Floats, value: Floats) -> Ints:
    """Indices on the lower convex hulls of the stages' points, which are sorted and undominated.

    What lies on or above the line between its neighbours goes, until nothing does: a point above
    a line between two others is on no lower hull, so many can go at once.
    """
    keep = np.arange(len(stage))
    while True:
        # Exact integers may differ by less than their floats can tell: the later is better.
        level = (stage[keep[:-1]] == stage[keep[1:]]) & (cost[keep[:-1]] >= cost[keep[1:]])
        keep = keep[np.concatenate((~level, [True]))] if level.any() else keep
        a, b, c = keep[:-2], keep[1:-1], keep[2:]
        over = (value[b] - value[a]) * (cost[c] - cost[a]) >= (value[c] - value[a]) * (
            cost[b] - cost[a]
        )
        over &= (stage[a] == stage[b]) & (stage[b] == stage[c])
        if not over.any() and not level.any():
            return keep
        keep = keep[np.concatenate(([True], ~over, [True]))] if len(keep) > 2 else keep
