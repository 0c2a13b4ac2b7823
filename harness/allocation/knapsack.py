"""The multiple-choice knapsack: one option for every group, least loss, within every budget.

One budget is solved by dynamic programming over Pareto-optimal partial sums, on the costs as they
are: nothing is rounded to a grid. Several budgets are a mixed-integer program for HiGHS. Either
way the budgets are checked on the sums of the returned choice (``math.fsum``, correctly rounded),
and a bound on what any choice could reach is returned beside the choice.

The dynamic program and its sources are in ``dynamic.py``.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

from harness.allocation import dynamic
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget

__all__ = ["Allocation", "solve"]

Floats = npt.NDArray[np.float64]

# Beyond this many partial sums the least promising are dropped, and the bound says so.
_MAX_STATES = 200_000
# HiGHS works to an absolute 1e-6, in constraints as in the objective, which scipy does not let one
# change. Rows and objective are scaled so that this is 1e-10 of the largest coefficient.
_MILP_SCALE = 1e4
# What the scaled objective and its bound may differ by through rounding alone.
_MILP_ROUNDING = 1e-12 * _MILP_SCALE
# How many choices that HiGHS's tolerance lets break a budget are forbidden one by one.
_MAX_CUTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One option for every group.

    ``choice[l]`` is an option index of group ``l``; ``objective`` and ``costs[b]`` are its sums.
    ``bound`` is proven: no choice within the budgets has a lower objective. ``gap`` is
    ``(objective - bound) / max(|objective|, |bound|)``, 0 where the choice is proven optimal.
    """

    choice: tuple[int, ...]
    objective: float
    costs: tuple[float, ...]
    bound: float
    gap: float


def solve(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[float]]],
    budgets: Sequence[float],
    *,
    tied: Iterable[Sequence[int]] = (),
    time_limit_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Allocation:
    """The allocation with the least sum of ``values[l][choice[l]]`` within every budget.

    ``costs[b][l][j]`` is what option ``j`` of group ``l`` takes of ``budgets[b]`` (infinity: no
    limit). Groups of one tuple in ``tied`` get the same option index. When ``time_limit_s`` is
    up, the best allocation so far is returned with its gap. Raises ``InfeasibleBudget``, whose
    ``nearest`` holds, for each budget, its smallest reachable value with the others held (or on
    its own where the others cannot be held either).
    """
    problem = _Problem.of(values, costs, budgets, tied)
    deadline = clock() + time_limit_s
    limited = [b for b, budget in enumerate(problem.budgets) if budget < math.inf]
    if len(limited) <= 1:
        return _solve_one(problem, limited[0] if limited else None, deadline, clock)
    return _solve_several(problem, limited, deadline, clock)


# --- the problem --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Class:
    """Groups that share one option index, and the sums of what their options mean."""

    groups: tuple[int, ...]
    values: Floats
    costs: Floats  # budgets x options


@dataclass(frozen=True, slots=True)
class _Problem:
    values: tuple[tuple[float, ...], ...]
    costs: tuple[tuple[tuple[float, ...], ...], ...]
    budgets: tuple[float, ...]
    classes: tuple[_Class, ...]

    @staticmethod
    def of(
        values: Sequence[Sequence[float]],
        costs: Sequence[Sequence[Sequence[float]]],
        budgets: Sequence[float],
        tied: Iterable[Sequence[int]],
    ) -> _Problem:
        if len(values) == 0:
            raise ConfigError("nothing to allocate: there are no groups")
        if len(costs) != len(budgets):
            raise ConfigError(f"{len(costs)} cost tables for {len(budgets)} budgets")
        plain = _table(values, "values", None)
        tables = tuple(_table(table, f"costs[{b}]", plain) for b, table in enumerate(costs))
        limits = tuple(float(budget) for budget in budgets)
        for b, limit in enumerate(limits):
            if math.isnan(limit) or limit == -math.inf:
                raise ConfigError(f"budget {b} is {limit}; it must be a number, or infinity")
        classes = tuple(_class(groups, plain, tables) for groups in _classes(plain, tied))
        return _Problem(plain, tables, limits, classes)

    def expand(self, picks: Sequence[int]) -> tuple[int, ...]:
        choice = [0] * len(self.values)
        for member, pick in zip(self.classes, picks, strict=True):
            for group in member.groups:
                choice[group] = int(pick)
        return tuple(choice)

    def cost(self, b: int, choice: Sequence[int]) -> float:
        return math.fsum(row[j] for row, j in zip(self.costs[b], choice, strict=True))

    def fits(self, choice: Sequence[int]) -> bool:
        return all(self.cost(b, choice) <= limit for b, limit in enumerate(self.budgets))

    def allocation(self, choice: tuple[int, ...], bound: float | None) -> Allocation:
        """The allocation; ``bound`` None where ``choice`` is proven optimal."""
        objective = math.fsum(row[j] for row, j in zip(self.values, choice, strict=True))
        proven = objective if bound is None else min(bound, objective)
        width = max(abs(objective), abs(proven))
        return Allocation(
            choice=choice,
            objective=objective,
            costs=tuple(self.cost(b, choice) for b in range(len(self.costs))),
            bound=proven,
            gap=(objective - proven) / width if objective > proven else 0.0,
        )


def _table(
    rows: Sequence[Sequence[float]], name: str, like: tuple[tuple[float, ...], ...] | None
) -> tuple[tuple[float, ...], ...]:
    """The rows as floats; ``ConfigError`` that names the group and option which are wrong."""
    if like is not None and len(rows) != len(like):
        raise ConfigError(f"{name} has {len(rows)} groups, values has {len(like)}")
    table = tuple(tuple(float(x) for x in row) for row in rows)
    for group, row in enumerate(table):
        if not row:
            raise ConfigError(f"{name}: group {group} has no option")
        if like is not None and len(row) != len(like[group]):
            raise ConfigError(
                f"{name}: group {group} has {len(row)} options, values has {len(like[group])}"
            )
        for option, x in enumerate(row):
            if not math.isfinite(x):
                raise ConfigError(
                    f"{name}: option {option} of group {group} is {x}; leave out an option "
                    "that is not to be used"
                )
    return table


def _classes(
    values: tuple[tuple[float, ...], ...], tied: Iterable[Sequence[int]]
) -> Iterator[tuple[int, ...]]:
    leader = list(range(len(values)))
    for tie in tied:
        for group in tie:
            if not 0 <= group < len(values):
                raise ConfigError(f"tied group {group} does not exist; there are {len(values)}")
            if len(values[group]) != len(values[tie[0]]):
                raise ConfigError(
                    f"groups {tie[0]} and {group} are tied but have {len(values[tie[0]])} and "
                    f"{len(values[group])} options"
                )
            old, new = leader[group], leader[tie[0]]
            leader = [new if x == old else x for x in leader]
    for first in dict.fromkeys(leader):
        yield tuple(group for group, x in enumerate(leader) if x == first)


def _class(
    groups: tuple[int, ...],
    values: tuple[tuple[float, ...], ...],
    costs: tuple[tuple[tuple[float, ...], ...], ...],
) -> _Class:
    def sums(table: tuple[tuple[float, ...], ...]) -> list[float]:
        return [math.fsum(column) for column in zip(*(table[g] for g in groups), strict=True)]

    options = len(values[groups[0]])
    by_budget = np.array([sums(table) for table in costs]).reshape(len(costs), options)
    return _Class(groups, np.array(sums(values)), by_budget)


# --- one budget ---------------------------------------------------------------------------------


def _solve_one(
    problem: _Problem, b: int | None, deadline: float, clock: Callable[[], float]
) -> Allocation:
    """Exact: solves with a hair more than the budget first, so that no rounding hides a choice.

    Where the best of that breaks the budget after all, by less than the rounding of the sums, the
    problem is solved again on exact integers.
    """
    values = [c.values for c in problem.classes]
    if b is None:
        return problem.allocation(problem.expand([int(v.argmin()) for v in values]), None)
    costs = [c.costs[b] for c in problem.classes]
    budget = problem.budgets[b]
    cheapest = problem.expand([int(c.argmin()) for c in costs])
    smallest = problem.cost(b, cheapest)
    if smallest > budget:
        raise InfeasibleBudget(
            f"budget {b} of {budget!r} cannot be met: the smallest reachable value is {smallest!r}",
            nearest=tuple(
                smallest if i == b else problem.cost(i, cheapest)
                for i in range(len(problem.budgets))
            ),
        )
    size = math.fsum(float(np.abs(c).max()) for c in costs) + abs(budget)
    hair = 4 * len(costs) * float(np.finfo(float).eps) * size

    def minimise(costs: Sequence[npt.NDArray[Any]], left: Any, scale: int) -> Allocation:
        picks, bound = dynamic.minimise(
            [c.values for c in problem.classes],
            [c - c.min() for c in costs],
            left,
            scale=scale,
            hair=hair,
            out_of_time=lambda: clock() > deadline,
            max_states=_MAX_STATES,
        )
        return problem.allocation(problem.expand(picks), bound)

    found = minimise(costs, budget - smallest + hair, 1)
    if found.costs[b] <= budget:
        return found
    whole, limit, scale = _integers(problem, b)
    return minimise(whole, limit - sum(int(c.min()) for c in whole), scale)


def _integers(problem: _Problem, b: int) -> tuple[list[npt.NDArray[Any]], int, int]:
    """The classes' costs, the budget, and the power of two that makes them all whole.

    The budget is the largest number that still rounds to the budget given.
    """
    budget = problem.budgets[b]
    middle = (Fraction(budget) + Fraction(math.nextafter(budget, math.inf))) / 2
    rows = [[Fraction(x) for x in row] for row in problem.costs[b]]
    scale = max(middle.denominator, *(x.denominator for row in rows for x in row))
    limit = int(middle * scale) - (float(middle) > budget)  # the middle rounds to the even one
    classes = []
    for member in problem.classes:
        columns = zip(*(rows[g] for g in member.groups), strict=True)
        classes.append(np.array([int(sum(column) * scale) for column in columns], dtype=object))
    return classes, limit, scale


# --- several budgets ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Program:
    """A mixed-integer program over the undominated options of every class."""

    problem: _Problem
    owner: npt.NDArray[np.intp]  # the class of each variable
    option: npt.NDArray[np.intp]
    values: Floats
    costs: Floats  # budgets x variables

    @staticmethod
    def of(problem: _Problem) -> _Program:
        owner, option = [], []
        for k, member in enumerate(problem.classes):
            for j in _undominated(np.vstack((member.values, member.costs))):
                owner.append(k)
                option.append(j)
        pairs = list(zip(owner, option, strict=True))
        return _Program(
            problem,
            np.array(owner, dtype=np.intp),
            np.array(option, dtype=np.intp),
            np.array([problem.classes[k].values[j] for k, j in pairs]),
            np.array([problem.classes[k].costs[:, j] for k, j in pairs]).T,
        )

    def minimise(
        self, objective: Floats, held: Sequence[int], deadline: float, clock: Callable[[], float]
    ) -> tuple[tuple[int, ...], float | None] | None:
        """The choice with the least ``objective`` within the budgets ``held``, and a bound.

        The bound is None where the choice is optimal; without any choice the whole is None. A
        choice that only HiGHS's tolerance lets through is cut off and the program solved again,
        so that no choice within the budgets is ever lost.
        """
        classes = len(self.problem.classes)
        ones = np.ones(len(self.owner))
        pick = scipy.sparse.csr_array(
            (ones, (self.owner, np.arange(len(ones)))), shape=(classes, len(ones))
        )
        constraints = [scipy.optimize.LinearConstraint(pick, 1, 1)]
        constraints += [self._row(b) for b in held]
        shift = self._lowest(objective)
        scaled = objective - shift[self.owner]
        unit = float(scaled.max()) / _MILP_SCALE or 1.0
        for _ in range(_MAX_CUTS):
            with _silent():
                found = scipy.optimize.milp(
                    scaled / unit,
                    integrality=np.ones(len(ones), dtype=np.intp),
                    bounds=scipy.optimize.Bounds(0, 1),
                    constraints=constraints,
                    options={"time_limit": max(deadline - clock(), 0.0), "mip_rel_gap": 0.0},
                )
            # Status 4 covers "unbounded or infeasible", and all variables are bounded.
            if found.status == 2 or (found.x is None and "infeasible" in found.message.lower()):
                return None
            if found.x is None:
                raise BoardfitError(f"HiGHS found no allocation: {found.message}; allow more time")
            chosen = self._chosen(found.x)
            choice = self.problem.expand(self.option[chosen].tolist())
            if all(self.problem.cost(b, choice) <= self.problem.budgets[b] for b in held):
                bound = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
                solved = found.status == 0 and found.fun - bound <= _MILP_ROUNDING
                return choice, None if solved else bound * unit + math.fsum(shift)
            cut = np.zeros(len(ones))
            cut[chosen] = 1
            constraints.append(scipy.optimize.LinearConstraint(cut, -np.inf, classes - 1))
        raise BoardfitError(
            f"the best {_MAX_CUTS} allocations all break a budget by less than HiGHS can tell; "
            "raise the tightest budget a little"
        )

    def _row(self, b: int) -> scipy.optimize.LinearConstraint:
        """Budget ``b``, less the smallest cost of every class, and scaled."""
        lowest = self._lowest(self.costs[b])
        row = self.costs[b] - lowest[self.owner]
        unit = float(row.max()) / _MILP_SCALE or 1.0
        left = (self.problem.budgets[b] - math.fsum(lowest)) / unit
        return scipy.optimize.LinearConstraint(row / unit, -np.inf, left)

    def _lowest(self, row: Floats) -> Floats:
        lowest = np.full(len(self.problem.classes), np.inf)
        np.minimum.at(lowest, self.owner, row)
        return lowest

    def _chosen(self, x: Floats) -> npt.NDArray[np.intp]:
        """The variable of each class that is (up to HiGHS's tolerance) one."""
        order = np.lexsort((-x, self.owner))
        first = np.searchsorted(self.owner[order], np.arange(len(self.problem.classes)))
        return order[first]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what a native library prints to stdout: HiGHS lets a debugging line through."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _undominated(points: Floats) -> list[int]:
    """The columns that no other column beats or equals in every row (the first of equals)."""
    keep = []
    for j in range(points.shape[1]):
        better = (points <= points[:, [j]]).all(axis=0)
        equal = (points == points[:, [j]]).all(axis=0)
        if not (better & ~equal).any() and int(equal.argmax()) == j:
            keep.append(j)
    return keep


def _solve_several(
    problem: _Problem, limited: Sequence[int], deadline: float, clock: Callable[[], float]
) -> Allocation:
    program = _Program.of(problem)
    found = program.minimise(program.values, limited, deadline, clock)
    if found is None:
        raise _infeasible(program, limited, deadline, clock)
    return problem.allocation(*found)


def _infeasible(
    program: _Program, limited: Sequence[int], deadline: float, clock: Callable[[], float]
) -> InfeasibleBudget:
    """The error that says, for every budget, what could be reached."""
    problem = program.problem
    nearest, lines = [], []
    for b, budget in enumerate(problem.budgets):
        others = [i for i in limited if i != b]
        found = program.minimise(program.costs[b], others, deadline, clock)
        how = "with the others held"
        if found is None:
            found = program.minimise(program.costs[b], [], deadline, clock)
            how = "on its own; the others cannot be held either"
        assert found is not None  # without budgets there is always a choice
        nearest.append(problem.cost(b, found[0]))
        lines.append(f"budget {b} of {budget!r}: {nearest[-1]!r} is the smallest reachable, {how}")
    return InfeasibleBudget(
        "the budgets cannot be met together: " + "; ".join(lines), nearest=tuple(nearest)
    )
