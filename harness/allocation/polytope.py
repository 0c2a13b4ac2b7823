"""Coupled tables as a mixed-integer program over the local polytope, for HiGHS.

Every option of every class is a binary variable, every entry of a table over several classes a
variable between 0 and 1 whose sums along the table's axes are the options' variables. This holds
for any tables; it is slow where the search along a path is not. HiGHS's tolerance may let a choice
through that breaks a budget: the sums of the returned choice are checked, and what breaks a budget
is cut off and the program solved again.

Source: Wainwright, Jordan, *Graphical Models, Exponential Families, and Variational Inference*
(2008), section 4.1.1, for the local polytope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

from harness.allocation.program import scaled_row, silent
from harness.allocation.search import Answer
from harness.allocation.tables import Coupling, Term

__all__ = ["solve_program"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_EPS = float(np.finfo(float).eps)
# As in program.py: what the scaled objective and its bound may differ by through rounding.
_ROUNDING = 1e-8
# What HiGHS works to (program.py): a choice better by less may escape it, a bound be higher by it.
_TOLERANCE = 1e-6
_MAX_CUTS = 40


@dataclass(frozen=True, slots=True, eq=False)
class _Scope:
    """The terms over the same classes, as one table: ``amounts[layer, s0, s1, ...]``."""

    classes: tuple[int, ...]
    amounts: Floats
    maps: tuple[Ints, ...]

    @staticmethod
    def of(terms: Sequence[Term], layers: int) -> _Scope:
        classes = terms[0].classes
        maps, cells = [], []
        for axis in range(len(classes)):
            states = np.stack([term.maps[axis] for term in terms])
            distinct, inverse = np.unique(states, axis=1, return_inverse=True)
            cells.append(distinct)
            maps.append(inverse.ravel())
        amounts = np.zeros((layers, *(distinct.shape[1] for distinct in cells)))
        for n, term in enumerate(terms):
            amounts[term.layer] += term.amounts[np.ix_(*(distinct[n] for distinct in cells))]
        return _Scope(classes, amounts, tuple(maps))


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """The program's columns: options class by class, then the scopes' entries."""

    coupling: Coupling
    first: Ints  # where each class's options begin, and the end
    rows: Floats  # layers x columns
    equal: Any  # sparse: what sums to ``right``
    right: Floats

    @staticmethod
    def of(coupling: Coupling) -> _Program:
        sizes = [len(options) for options in coupling.kept]
        first = np.cumsum([0, *sizes])
        layers = len(coupling.layers)
        together: dict[tuple[int, ...], list[Term]] = {}
        for term in coupling.terms:
            together.setdefault(term.classes, []).append(term)
        scopes = [_Scope.of(terms, layers) for terms in together.values()]
        wide = [scope for scope in scopes if len(scope.classes) > 1]
        rows = [np.zeros((layers, int(first[-1])))]
        for scope in scopes:
            if len(scope.classes) == 1:
                k = scope.classes[0]
                rows[0][:, first[k] : first[k + 1]] += scope.amounts[:, scope.maps[0]]
        rows += [scope.amounts.reshape(layers, -1) for scope in wide]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        parts = [(owner, np.arange(len(owner)), np.ones(len(owner)))]
        below, column = len(sizes), int(first[-1])
        for scope in wide:
            shape = scope.amounts.shape[1:]
            columns = column + np.arange(math.prod(shape))
            for axis, (k, states) in enumerate(zip(scope.classes, scope.maps, strict=True)):
                cell = np.unravel_index(np.arange(len(columns)), shape)[axis]
                options = np.arange(first[k], first[k + 1])
                parts.append((below + cell, columns, np.ones(len(columns))))
                parts.append((below + states, options, -np.ones(len(options))))
                below += shape[axis]
            column += len(columns)
        at, columns, numbers = (np.concatenate(each) for each in zip(*parts, strict=True))
        equal = scipy.sparse.csr_array((numbers, (at, columns)), shape=(below, column))
        right = np.concatenate((np.ones(len(sizes)), np.zeros(below - len(sizes))))
        return _Program(coupling, first, np.concatenate(rows, axis=1), equal, right)

    def scaled(self, layer: int) -> tuple[Floats, float]:
        """The layer's row as HiGHS gets it, and its unit."""
        return scaled_row(self.rows[layer])

    def constraints(self) -> list[scipy.optimize.LinearConstraint]:
        """What every choice keeps: one option a class, entries that fit them, the budgets."""
        result = [scipy.optimize.LinearConstraint(self.equal, self.right, self.right)]
        for b, budget in enumerate(self.coupling.budgets):
            row, unit = self.scaled(1 + b)
            result.append(scipy.optimize.LinearConstraint(row[None, :], -np.inf, budget / unit))
        return result

    def picks(self, x: Floats) -> Ints:
        """The option of each class whose variable is (up to HiGHS's tolerance) one."""
        pairs = zip(self.first[:-1], self.first[1:], strict=True)
        return np.array([int(x[start:end].argmax()) for start, end in pairs], dtype=np.intp)

    def prices(self, time_limit_s: float) -> tuple[float, ...]:
        """The budgets' prices in the linear relaxation; zeros where time is up before."""
        count = len(self.coupling.budgets)
        if count == 0:
            return ()
        row, unit = self.scaled(0)
        scaled = [self.scaled(1 + b) for b in range(count)]
        budgets = zip(self.coupling.budgets, scaled, strict=True)
        found = scipy.optimize.linprog(
            row,
            A_ub=np.array([each for each, _ in scaled]),
            b_ub=np.array([budget / each for budget, (_, each) in budgets]),
            A_eq=self.equal,
            b_eq=self.right,
            bounds=(0.0, 1.0),
            method="highs",
            options={"time_limit": max(time_limit_s, 0.0)},
        )
        if found.x is None:
            return (0.0,) * count
        duals = zip(found.ineqlin.marginals, scaled, strict=True)
        return tuple(max(-float(dual) * unit / each, 0.0) for dual, (_, each) in duals)


def solve_program(
    coupling: Coupling,
    gap: float,
    deadline: float,
    clock: Callable[[], float],
    *,
    below: float = math.inf,
    priced: bool = True,
) -> Answer:
    """The best choice of a coupling whose budgets are finite; as good as time allows.

    Only choices with an objective of ``below`` or less are looked for: without any choice and with
    a bound of infinity there is none (up to HiGHS's tolerance). Prices come from the linear
    relaxation, which is solved for them alone; zeros if not ``priced``.
    """
    program = _Program.of(coupling)
    classes = len(coupling.kept)
    columns = program.rows.shape[1]
    options = int(program.first[-1])
    constraints = program.constraints()
    row, unit = program.scaled(0)
    if below < math.inf:
        cutoff = scipy.optimize.LinearConstraint(row[None, :], -np.inf, below / unit)
        constraints.append(cutoff)
    rounding = 4 * _EPS * (len(coupling.terms) + 4) * float(np.abs(program.rows[0]).max()) * classes
    rounding = max(rounding, _TOLERANCE * unit)
    bound = -math.inf
    prices = (0.0,) * len(coupling.budgets)
    if priced:
        with silent():
            prices = program.prices(0.25 * (deadline - clock()))
    for _ in range(_MAX_CUTS):
        with silent():
            found = scipy.optimize.milp(
                row,
                integrality=np.repeat([1, 0], [options, columns - options]),
                bounds=scipy.optimize.Bounds(0, 1),
                constraints=constraints,
                options={"time_limit": max(deadline - clock(), 0.0), "mip_rel_gap": gap},
            )
        # Status 4 covers "unbounded or infeasible", and all variables are bounded.
        if found.status == 2 or (found.x is None and "infeasible" in found.message.lower()):
            return Answer(None, math.inf, math.inf, 0.0, prices)
        known = found.mip_dual_bound
        bound = -math.inf if known is None or not math.isfinite(known) else float(known)
        if found.x is None:
            return Answer(None, math.inf, bound * unit, 0.0, prices)
        picks = program.picks(found.x)
        choice = coupling.expand(picks)
        sums = coupling.sums(choice)
        if coupling.within(sums):
            solved = found.status == 0 and gap == 0.0 and found.fun - bound <= _ROUNDING
            proven = sums[0] if solved else min(bound * unit - rounding, sums[0])
            return Answer(choice, sums[0], proven, rounding, prices)
        cut = np.zeros(columns)
        cut[program.first[:-1] + picks] = 1
        constraints.append(scipy.optimize.LinearConstraint(cut[None, :], -np.inf, classes - 1))
    # All of these broke a budget by less than HiGHS can tell.
    return Answer(None, math.inf, bound * unit, 0.0, prices)
