"""The multiple-choice knapsack: one option for every group, least loss, within every budget.

One budget is solved by dynamic programming over Pareto-optimal partial sums, on the costs as they
are: nothing is rounded to a grid. Several budgets are a mixed-integer program for HiGHS. Either
way the budgets are checked on the sums of the returned choice (``math.fsum``, correctly rounded),
and a bound on what any choice could reach is returned beside the choice.

The search and its sources are in ``dynamic.py`` and ``reduction.py``, the program for HiGHS in
``program.py``, the checks of what is given in ``problem.py``.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.allocation import dynamic
from harness.allocation.binding import Reach, infeasible
from harness.allocation.front import Front, sweep
from harness.allocation.names import NAMELESS, Names
from harness.allocation.problem import Allocation, Problem
from harness.allocation.program import solve_several
from harness.allocation.reduction import decimals, quantum, relax

__all__ = ["Allocation", "front", "solve"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Costs = npt.NDArray[Any]  # float64, or exact integers as objects

_EPS = float(np.finfo(float).eps)
# Beyond so many partial sums the least promising are dropped, and the bound says so. A small number
# makes good choices soon, which the next pass then has to beat.
_MAX_STATES = (20_000, 200_000)
# The same for the whole front, and how many numbers its choices may hold in all.
_FRONT_STATES = (2_000, 20_000, 200_000)
_MAX_CHOICES = 5_000_000
# A gap of this, relative to the objective, is not worth another pass.
_CLOSE = 1e-9


def solve(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[float]]],
    budgets: Sequence[float],
    *,
    tied: Iterable[Sequence[int]] = (),
    names: Names | None = None,
    time_limit_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Allocation:
    """The allocation with the least sum of ``values[l][choice[l]]`` within every budget.

    ``costs[b][l][j]`` is what option ``j`` of group ``l`` takes of ``budgets[b]`` (infinity: no
    limit). Groups of one tuple in ``tied`` get the same option index; ``names`` are for messages.
    When ``time_limit_s`` is up, the best allocation so far is returned with its gap. Raises
    ``InfeasibleBudget``, whose ``nearest`` holds, for each budget, its smallest reachable value
    with the others held (or on its own where the others cannot be held either), and whose
    ``binding`` the groups where most of that is spent.
    """
    deadline = clock() + time_limit_s
    names = names or NAMELESS
    problem = Problem.of(values, costs, budgets, tied, names)
    limited = [b for b, budget in enumerate(problem.budgets) if budget < math.inf]
    if len(limited) > 1:
        return solve_several(problem, limited, deadline, clock, names)
    if not limited:
        classes = problem.classes
        free = problem.allocation(problem.expand(_least(classes.values, classes.first)), None)
        return replace(free, prices=(0.0,) * len(budgets))
    return _solve_one(problem, limited[0], lambda: clock() > deadline, names)


def front(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    *,
    tied: Iterable[Sequence[int]] = (),
    time_limit_s: float = 30.0,
    max_points: int = 10_000,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Allocation, ...]:
    """All allocations that no other beats in both objective and cost, from loose to tight.

    ``costs[l][j]`` is what option ``j`` of group ``l`` takes. For any budget the first allocation
    within it is the one to take: ``bound`` is proven for all budgets below the cost of the
    allocation before it, and ``gap`` is 0 where nothing better exists there. Where that cannot be
    proven within ``time_limit_s``, and where more than ``max_points`` allocations (or five million
    options in all of them) would be returned and some are left out, the gap says so.
    """
    searched = clock() + 0.8 * time_limit_s  # what is left goes into the allocations themselves
    problem = Problem.of(values, [costs], [math.inf], tied)
    classes = problem.classes
    order = np.lexsort((classes.values, classes.costs[0], classes.owner))
    cheapest = order[classes.first]
    found = sweep(
        classes.values,
        classes.costs[0],
        classes.owner,
        cheapest,
        out_of_time=lambda: clock() > searched,
        max_states=_FRONT_STATES,
    )
    most = max(min(max_points, _MAX_CHOICES // len(problem.sizes)), 2)
    objective = math.fsum(classes.values[cheapest].tolist())
    return _points(problem, found, found.thinned(objective, most))


def _points(problem: Problem, found: Front, shown: Ints) -> tuple[Allocation, ...]:
    """The front's allocations ``shown``, from loose to tight."""
    exact = quantum(problem.values, _size(problem.values, problem.first)) is not None
    rounding = 0.0 if exact else found.rounding + 4 * _EPS * _size(problem.values, problem.first)
    classes = problem.classes
    lowest = math.fsum(np.minimum.reduceat(classes.values, classes.first).tolist()) - rounding
    made: list[tuple[Allocation, float]] = []
    for n, i in enumerate(shown):
        following = shown[n + 1] if n + 1 < len(shown) else i + 1
        choice = problem.expand(found.picks[i] - classes.first)
        # Of those left out up to the next one shown, the last has the least bound.
        short = float(found.values[i] - found.bounds[i:following].min())
        made.append((problem.allocation(choice, None).proven(rounding), short))
    made.sort(key=lambda pair: (pair[0].costs[0], pair[0].objective))
    kept: list[tuple[Allocation, float]] = []
    for point, short in made:
        if kept and point.objective >= kept[-1][0].objective:
            # Different only by the rounding on the way here; what its bound says holds for both.
            last, before = kept.pop()
            kept.append((last, max(before, last.objective - point.objective + short)))
        else:
            kept.append((point, short))
    prices = _hull_prices([point for point, _ in kept])
    return tuple(
        replace(
            point
            if short <= rounding
            else point.bounded(max(point.objective - short - rounding, lowest)),
            prices=(price,),
        )
        for (point, short), price in reversed([*zip(kept, prices, strict=True)])
    )


def _hull_prices(points: Sequence[Allocation]) -> list[float]:
    """At every point's cost, the slope of the points' lower hull towards more; costs rise."""
    hull: list[Allocation] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    slopes = [_slope(a, b) for a, b in itertools.pairwise(hull)] + [0.0]
    corners = [point.costs[0] for point in hull]
    return [slopes[bisect.bisect_right(corners, point.costs[0]) - 1] for point in points]


def _slope(a: Allocation, b: Allocation) -> float:
    """By how much the objective falls from ``a`` to ``b``, per unit that ``b`` costs more."""
    return (a.objective - b.objective) / (b.costs[0] - a.costs[0])


def _least(numbers: Floats, first: Ints) -> list[int]:
    """The index within its class of each class's least number (the first of equals)."""
    owner = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(numbers))))
    least = np.flatnonzero(numbers == np.minimum.reduceat(numbers, first)[owner])
    found = least[np.searchsorted(owner[least], np.arange(len(first)))] - first
    return [int(j) for j in found]


@dataclass(frozen=True, slots=True)
class _Tables:
    """The classes' values and costs, less the least of each class, as the search takes them.

    Decimal numbers become integers: sums of those do not round, and what is optimal for them is so
    for the numbers given, but for the rounding of these.
    """

    values: Floats
    value_unit: float  # what one of a value stands for
    step: float | None  # all values are whole multiples of it, and their sums exact
    rounding: float  # what a sum of the values given may be off by beside the search
    costs: Floats
    unit: float | None  # the same as ``step`` for costs
    parts: float  # one of the costs' units is so many of these
    loose: float  # the budget above the least costs: what no rounding makes too small
    tight: float  # and what no rounding makes too large
    hair: float  # what a sum of the costs given may be off by; 0 where all are exact

    @staticmethod
    def of(problem: Problem, b: int) -> _Tables:
        classes, budget = problem.classes, problem.budgets[b]
        # Sums are made of the groups' numbers, of whose absolute values these are the largest.
        width = _size(problem.costs[b], problem.first) + abs(budget)
        height = _size(problem.values, problem.first)
        value_parts = decimals(problem.values, height)
        values = _whole(classes.values, value_parts)
        cost_parts = decimals(problem.costs[b], width)
        costs = _whole(classes.costs[b], cost_parts)
        exact = cost_parts == 1 and quantum(problem.costs[b], width) is not None
        hair = 0.0 if exact else 4 * classes.count * _EPS * width
        cheapest = np.minimum.reduceat(costs, classes.first)
        unit = quantum(costs, width * cost_parts)
        step = quantum(values, height * value_parts)
        spent = Fraction(math.fsum(cheapest.tolist()))
        loose, tight = (
            (Fraction(budget) + sign * Fraction(hair)) * cost_parts - spent for sign in (1, -1)
        )
        if unit is not None:
            loose, tight = (x // Fraction(unit) * Fraction(unit) for x in (loose, tight))
        return _Tables(
            values=values - np.minimum.reduceat(values, classes.first)[classes.owner],
            value_unit=1 / value_parts,
            step=step,
            rounding=0.0 if step is not None and value_parts == 1 else 4 * _EPS * height,
            costs=costs - cheapest[classes.owner],
            unit=unit,
            parts=cost_parts,
            loose=float(loose),
            tight=float(tight),
            hair=hair,
        )


def _whole(table: Floats, parts: int) -> Floats:
    return np.rint(table * parts) if parts > 1 else table


def _size(table: Floats, first: Ints) -> float:
    """What no sum of one number of each group exceeds, as an absolute value."""
    return math.fsum(np.maximum.reduceat(np.abs(table), first).tolist())


def _solve_one(
    problem: Problem, b: int, out_of_time: Callable[[], bool], names: Names
) -> Allocation:
    """Exact: solves with a hair more than the budget first, so that no rounding hides a choice.

    Where the best of that breaks the budget after all, by less than the rounding of the sums, the
    problem is solved again on exact integers, beginning with the best for a hair less.
    """
    classes, budget = problem.classes, problem.budgets[b]
    cheapest = problem.expand(_least(classes.costs[b], classes.first))
    smallest = problem.cost(b, cheapest)
    if smallest > budget:
        reaches = [Reach(*problem.shares(i, cheapest)) for i in range(len(problem.budgets))]
        raise infeasible(problem.budgets, reaches, names)
    tables = _Tables.of(problem, b)
    relaxed = relax(tables.values, tables.costs, classes.first, classes.owner, tables.loose)
    price = relaxed.slope * tables.value_unit * tables.parts
    prices = tuple(price if i == b else 0.0 for i in range(len(problem.budgets)))

    def found(costs: Costs, left: Any, start: Ints | None = None, **how: Any) -> _Best:
        best = None
        for max_states in _MAX_STATES:
            result = dynamic.minimise(
                tables.values,
                costs,
                classes.first,
                classes.owner,
                left,
                step=tables.step,
                start=start,
                out_of_time=out_of_time,
                max_states=max_states,
                **how,
            )
            start = result.picks
            best = _Best.of(problem, result, tables, best)
            if best.allocation.gap <= _CLOSE:
                break
        assert best is not None
        return best

    best = found(tables.costs, tables.loose, unit=tables.unit)
    if best.allocation.costs[b] <= budget:
        return replace(best.allocation, prices=prices)
    start = None
    if tables.tight >= 0:
        strict = found(tables.costs, tables.tight, unit=tables.unit)
        start = strict.picks if strict.allocation.costs[b] <= budget else None
    whole, limit, scale = _integers(problem, b)
    best = found(whole, limit, start, scale=scale, hair=tables.hair)
    return replace(best.allocation, prices=prices)


@dataclass(frozen=True, slots=True)
class _Best:
    """The choice of the last pass, with the best bound of all of them."""

    picks: Ints
    allocation: Allocation

    @staticmethod
    def of(problem: Problem, found: dynamic.Found, tables: _Tables, last: _Best | None) -> _Best:
        choice = problem.expand(found.picks - problem.classes.first)
        rounding = found.rounding * tables.value_unit + tables.rounding
        now = problem.allocation(choice, None)
        if found.short is None:
            now = now.proven(rounding)
        else:
            bound = math.nextafter(
                now.objective - found.short * tables.value_unit - rounding, -math.inf
            )
            if last is not None:
                bound = max(bound, last.allocation.bound)
            now = now.bounded(bound)
        return _Best(found.picks, now)


def _integers(problem: Problem, b: int) -> tuple[npt.NDArray[Any], int, int]:
    """The classes' costs and the budget less the least costs, in units that make them all whole.

    The units are 1 / a power of two, which is returned as well. The budget is the largest number
    that still rounds to the budget given.
    """
    budget = problem.budgets[b]
    middle = (Fraction(budget) + Fraction(math.nextafter(budget, math.inf))) / 2
    table = [Fraction(x) for x in problem.costs[b].tolist()]
    scale = max(middle.denominator, *(x.denominator for x in table))
    limit = int(middle * scale) - (float(middle) > budget)  # the middle rounds to the even one
    whole: list[int] = []
    for groups in problem.members:
        columns = [table[problem.first[g] : problem.first[g] + problem.sizes[g]] for g in groups]
        sums = [int(sum(column) * scale) for column in zip(*columns, strict=True)]
        limit -= min(sums)
        whole += [x - min(sums) for x in sums]
    return np.array(whole, dtype=object), limit, scale
