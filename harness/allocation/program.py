"""The multiple-choice knapsack with several budgets, as a mixed-integer program for HiGHS.

Its tolerance may let a choice through that breaks a budget: the sums of the returned choice are
checked, and what breaks a budget is cut off and the program solved again.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

from harness.allocation.binding import Reach, infeasible
from harness.allocation.names import NAMELESS, Names
from harness.allocation.problem import Allocation, Problem
from harness.errors import BoardfitError, InfeasibleBudget

__all__ = ["scaled_row", "silent", "solve_several"]

Floats = npt.NDArray[np.float64]

# HiGHS works to an absolute 1e-6, in constraints as in the objective, which scipy does not let one
# change. Rows and objective are scaled so that this is 1e-10 of the largest coefficient.
_MILP_SCALE = 1e4
# What the scaled objective and its bound may differ by through rounding alone.
_MILP_ROUNDING = 1e-12 * _MILP_SCALE
# How many choices that HiGHS's tolerance lets break a budget are forbidden one by one.
_MAX_CUTS = 40


@dataclass(frozen=True, slots=True)
class _Program:
    """A mixed-integer program over the undominated options of every class."""

    problem: Problem
    owner: npt.NDArray[np.intp]  # the class of each variable
    option: npt.NDArray[np.intp]
    values: Floats
    costs: Floats  # budgets x variables

    @staticmethod
    def of(problem: Problem) -> _Program:
        classes = problem.classes
        points = np.vstack((classes.values, classes.costs))
        ends = [*classes.first[1:], len(classes.values)]
        kept = [
            start + j
            for start, end in zip(classes.first, ends, strict=True)
            for j in _undominated(points[:, start:end])
        ]
        at = np.array(kept, dtype=np.intp)
        owner = classes.owner[at]
        return _Program(
            problem, owner, at - classes.first[owner], classes.values[at], classes.costs[:, at]
        )

    def minimise(
        self, objective: Floats, held: Sequence[int], deadline: float, clock: Callable[[], float]
    ) -> tuple[tuple[int, ...], float | None] | None:
        """The choice with the least ``objective`` within the budgets ``held``, and a bound.

        The bound is None where the choice is optimal; without any choice the whole is None. A
        choice that only HiGHS's tolerance lets through is cut off and the program solved again,
        so that no choice within the budgets is ever lost.
        """
        classes = self.problem.classes.count
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
            with silent():
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

    def prices(self, held: Sequence[int], time_limit_s: float) -> tuple[float, ...]:
        """Every budget's price in the linear relaxation; zeros where time is up before."""
        scaled = [scaled_row(self.costs[b]) for b in held]
        row, unit = scaled_row(self.values)
        ones = np.ones(len(self.owner))
        pick: Any = scipy.sparse.csr_array((ones, (self.owner, np.arange(len(ones)))))
        found = scipy.optimize.linprog(
            row,
            A_ub=np.array([each for each, _ in scaled]),
            b_ub=np.array(
                [self.problem.budgets[b] / u for b, (_, u) in zip(held, scaled, strict=True)]
            ),
            A_eq=pick,
            b_eq=np.ones(self.problem.classes.count),
            bounds=(0.0, 1.0),
            method="highs",
            options={"time_limit": time_limit_s},
        )
        result = [0.0] * len(self.problem.budgets)
        if found.x is not None:
            for b, dual, (_, u) in zip(held, found.ineqlin.marginals, scaled, strict=True):
                result[b] = max(-float(dual) * unit / u, 0.0)
        return tuple(result)

    def _row(self, b: int) -> scipy.optimize.LinearConstraint:
        """Budget ``b``, less the smallest cost of every class, and scaled."""
        lowest = self._lowest(self.costs[b])
        row = self.costs[b] - lowest[self.owner]
        unit = float(row.max()) / _MILP_SCALE or 1.0
        left = (self.problem.budgets[b] - math.fsum(lowest)) / unit
        return scipy.optimize.LinearConstraint(row / unit, -np.inf, left)

    def _lowest(self, row: Floats) -> Floats:
        lowest = np.full(self.problem.classes.count, np.inf)
        np.minimum.at(lowest, self.owner, row)
        return lowest

    def _chosen(self, x: Floats) -> npt.NDArray[np.intp]:
        """The variable of each class that is (up to HiGHS's tolerance) one."""
        order = np.lexsort((-x, self.owner))
        first = np.searchsorted(self.owner[order], np.arange(self.problem.classes.count))
        return order[first]


def scaled_row(row: Floats) -> tuple[Floats, float]:
    """The row in units in which its largest number is as large as HiGHS's tolerance asks for."""
    unit = float(np.abs(row).max()) / _MILP_SCALE or 1.0
    return row / unit, unit


@contextlib.contextmanager
def silent() -> Iterator[None]:
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


def solve_several(
    problem: Problem,
    limited: Sequence[int],
    deadline: float,
    clock: Callable[[], float],
    names: Names = NAMELESS,
) -> Allocation:
    """The allocation within the budgets ``limited``, which are two or more."""
    program = _Program.of(problem)
    found = program.minimise(program.values, limited, deadline, clock)
    if found is None:
        raise _infeasible(program, limited, deadline, clock, names)
    prices = program.prices(limited, max(deadline - clock(), 1.0))
    return replace(problem.allocation(*found), prices=prices, method="highs")


def _infeasible(
    program: _Program,
    limited: Sequence[int],
    deadline: float,
    clock: Callable[[], float],
    names: Names,
) -> InfeasibleBudget:
    """The error that says, for every budget, what could be reached."""
    problem = program.problem
    reaches = []
    for b in range(len(problem.budgets)):
        others = [i for i in limited if i != b]
        found = program.minimise(program.costs[b], others, deadline, clock)
        how = "with the others held"
        if found is None:
            found = program.minimise(program.costs[b], [], deadline, clock)
            how = "on its own; the others cannot be held either"
        assert found is not None  # without budgets there is always a choice
        reaches.append(Reach(*problem.shares(b, found[0]), how))
    return infeasible(problem.budgets, reaches, names)
