"""The coupled solver on chains with skips: against HiGHS, brute force and separable costs.

HiGHS gets the local polytope, one thread, and may end at a gap of 1e-4; building its program is
counted, the prices are not. The separable solver gets costs linearised around one choice, and the
largest budget (by bisection) at which its choice keeps the true one.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rich.table

from harness.allocation import knapsack
from harness.allocation.coupled import solve
from harness.allocation.polytope import solve_program
from harness.allocation.problem import members_of
from harness.allocation.tables import Coupling, Table
from harness.errors import InfeasibleBudget
from tests.benchmarks import allocation_real
from tests.benchmarks.couplings import Coupled, chain

HIGHS_LIMIT_S = 60.0
GAP = 1e-4
# Groups, options, seeds, and the most seconds (None: no target).
SIZES: Sequence[tuple[int, int, range, float | None]] = (
    (6, 4, range(3), None),
    (12, 8, range(3), None),
    (30, 8, range(3), None),
    (50, 8, range(5), 2.0),
    (60, 16, range(5), 60.0),
)
HIGHS_SEEDS = 2  # of each size: it takes all its time on the large ones
_BISECTIONS = 30


def coupled(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row an instance."""
    rows = []
    for groups, options, seeds, most_s in SIZES:
        for seed in seeds:
            rows.append(_row(chain(groups, options, seed), most_s, seed < HIGHS_SEEDS))
            say(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
    return rows


def _row(problem: Coupled, most_s: float | None, against_highs: bool) -> dict[str, Any]:
    started = time.perf_counter()
    found = solve(problem.values, [problem.tables], [problem.budget], tied=problem.tied)
    seconds = time.perf_counter() - started
    assert math.fsum(t.at(found.choice) for t in problem.tables) <= problem.budget
    row: dict[str, Any] = {
        "instance": problem.name,
        "method": found.method,
        "seconds": seconds,
        "gap": found.gap,
        "objective": found.objective,
        "highs_seconds": None,
        "highs_gap": None,
        "highs_excess": None,
        "equals_brute_force": _equal(problem, found.objective),
        "separable_excess": separable_excess(problem, found.objective),
    }
    if against_highs:
        row.update(_highs(problem, found.objective))
    row["target"] = f"gap <= {GAP:g}" + ("" if most_s is None else f", < {most_s:.0f} s")
    row["met"] = (
        found.gap <= GAP
        and (most_s is None or seconds < most_s)
        and row["equals_brute_force"] is not False
    )
    return row


def _highs(problem: Coupled, best: float) -> dict[str, Any]:
    """HiGHS's seconds, gap, and by how much its objective is above ours, relative to it."""
    sizes = tuple(len(row) for row in problem.values)
    members = tuple(members_of(sizes, problem.tied))
    kept = tuple(np.arange(sizes[groups[0]]) for groups in members)
    values = tuple(Table((g,), np.array(row)) for g, row in enumerate(problem.values))
    started = time.perf_counter()
    coupling = Coupling.of((values, tuple(problem.tables)), (problem.budget,), sizes, members, kept)
    answer = solve_program(
        coupling, GAP, time.monotonic() + HIGHS_LIMIT_S, time.monotonic, priced=False
    )
    known = answer.choice is not None
    return {
        "highs_seconds": time.perf_counter() - started,
        "highs_gap": answer.gap if known else None,
        "highs_excess": answer.objective / best - 1 if known else None,
    }


def _equal(problem: Coupled, objective: float) -> bool | None:
    """Whether brute force finds the same; None where there are too many choices."""
    if math.prod(len(row) for row in problem.values) > 5000:
        return None
    best = math.inf
    for choice in itertools.product(*(range(len(row)) for row in problem.values)):
        if any(len({choice[g] for g in tie}) > 1 for tie in problem.tied):
            continue
        if math.fsum(t.at(choice) for t in problem.tables) <= problem.budget:
            best = min(best, math.fsum(r[j] for r, j in zip(problem.values, choice, strict=True)))
    return math.isclose(best, objective, rel_tol=1e-9)


def separable_excess(problem: Coupled, best: float) -> float | None:
    """By how much the best separable allocation is worse, relative to ``best``.

    Costs are linearised around the full network, and around every group's middle option; the
    better of both counts. None where neither finds any allocation within the budget.
    """
    middle = tuple(len(row) // 4 for row in problem.values)  # of the first precision's widths
    found = [_separable(problem, around) for around in (problem.full, middle)]
    objectives = [objective for objective in found if objective is not None]
    return min(objectives) / best - 1 if objectives else None


def _separable(problem: Coupled, around: tuple[int, ...]) -> float | None:
    def cost(choice: Sequence[int]) -> float:
        return math.fsum(t.at(choice) for t in problem.tables)

    base = cost(around)
    rows = [
        [cost((*around[:g], j, *around[g + 1 :])) - base for j in range(len(row))]
        for g, row in enumerate(problem.values)
    ]
    least = math.fsum(min(row) for row in rows)
    low, high = least, problem.budget - base + 0.5 * abs(problem.budget)
    best: float | None = None
    for _ in range(_BISECTIONS):
        room = (low + high) / 2
        try:
            found = knapsack.solve(problem.values, [rows], [room], tied=problem.tied)
        except InfeasibleBudget:
            low = room
            continue
        if cost(found.choice) <= problem.budget:
            best = found.objective if best is None else min(best, found.objective)
            low = room
        else:
            high = room
    return best


def real(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of networks' own costs."""
    return allocation_real.rows(limit_s=HIGHS_LIMIT_S, say=say)


ROWS: dict[str, Callable[[Callable[[str], None]], list[dict[str, Any]]]] = {
    "coupled": coupled,
    "real": real,
}


def row_table(title: str, rows: Sequence[dict[str, Any]]) -> rich.table.Table:
    """Rows with columns of their own."""
    result = rich.table.Table(title=title)
    for column in rows[0]:
        result.add_column(column.replace("_", " "))
    for row in rows:
        cells = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values())
        result.add_row(*("" if cell == "None" else cell for cell in cells))
    return result
