"""The knapsack against HiGHS and CP-SAT: published instances, Pisinger's families, and large ones.

    python -m tests.benchmarks.allocation [--json] [--only hawq pisinger large coupled real]

Times are wall times of this computer, and only their ratios within one run mean something. All
solvers get the same instances, one thread and the same time limit; building the models of the
other solvers is not counted. CP-SAT (`pip install -e .[benchmark]`) knows integers only: values and
costs are scaled so that the largest is 2**40 and rounded, costs up and the budget down, so that its
choices keep the budget and may be a little off the optimum. Without it its columns stay empty.
Keys with rows of their own: `coupled` (allocation_coupled.py) and `real` (allocation_real.py).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
from rich.console import Console
from rich.table import Table

from harness.allocation.knapsack import solve
from harness.allocation.program import silent
from tests.benchmarks.allocation_coupled import ROWS, row_table
from tests.benchmarks.knapsacks import (
    FAMILIES,
    HAWQ,
    Instance,
    Rows,
    network,
    pisinger,
    published,
)

LIMIT_S = 20.0
SEEDS = range(5)
SIZES = (10, 100, 1000)
CP_SAT_LARGEST = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a solver made of an instance. ``gap`` is its own, proven; None: no answer in time."""

    solver: str
    seconds: float
    objective: float | None
    gap: float | None


# --- solvers ------------------------------------------------------------------------------------


def total(rows: Rows, choice: Sequence[int]) -> float:
    """The sum of the choice's numbers, rounded once."""
    return math.fsum(row[j] for row, j in zip(rows, choice, strict=True))


def ours(instance: Instance) -> Outcome:
    """This project's solver; its choice is checked."""
    started = time.perf_counter()
    found = solve(
        instance.values,
        [instance.costs],
        [instance.budget],
        tied=instance.tied,
        time_limit_s=LIMIT_S,
    )
    seconds = time.perf_counter() - started
    assert total(instance.costs, found.choice) <= instance.budget, instance.name
    assert found.objective == total(instance.values, found.choice), instance.name
    return Outcome(solver="ours", seconds=seconds, objective=found.objective, gap=found.gap)


def merged(instance: Instance) -> tuple[list[list[float]], list[list[float]]]:
    """Values and costs with tied groups as one, for solvers that do not know ties."""
    values, costs = [list(row) for row in instance.values], [list(row) for row in instance.costs]
    gone = set()
    for tie in instance.tied:
        head = tie[0]
        for group in tie[1:]:
            for rows in (values, costs):
                rows[head] = [a + b for a, b in zip(rows[head], rows[group], strict=True)]
            gone.add(group)
    kept = [k for k in range(len(values)) if k not in gone]
    return [values[k] for k in kept], [costs[k] for k in kept]


def highs(instance: Instance) -> Outcome:
    """HiGHS through scipy, to a relative gap of 1e-6."""
    values, costs = merged(instance)
    sizes = [len(row) for row in values]
    flat, row = np.concatenate(values), np.concatenate(costs)
    ones, columns = np.ones(len(flat)), np.arange(len(flat))
    pick = scipy.sparse.csr_array((ones, (np.repeat(np.arange(len(sizes)), sizes), columns)))
    constraints = [
        scipy.optimize.LinearConstraint(pick, 1, 1),
        scipy.optimize.LinearConstraint(row[None, :], -np.inf, instance.budget),
    ]
    started = time.perf_counter()
    with silent():
        found = scipy.optimize.milp(
            flat,
            integrality=ones,
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-6, "time_limit": LIMIT_S},
        )
    seconds = time.perf_counter() - started
    if found.x is None:
        return Outcome(solver="HiGHS", seconds=seconds, objective=None, gap=None)
    return Outcome(solver="HiGHS", seconds=seconds, objective=found.fun, gap=found.mip_gap)


def cp_sat(instance: Instance) -> Outcome | None:
    """CP-SAT of OR-tools on scaled integers; None where it is not installed."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    values, costs = merged(instance)

    def unit(rows: Rows) -> float:
        largest = max(abs(x) for row in rows for x in row)
        return 1.0 if all(x == int(x) for row in rows for x in row) else CP_SAT_LARGEST / largest

    by_value, by_cost = unit(values), unit(costs)
    model = cp_model.CpModel()
    picks = [[model.new_bool_var("") for _ in row] for row in values]
    for row in picks:
        model.add_exactly_one(row)

    def linear(rows: Sequence[Sequence[int]]) -> cp_model.LinearExpr:
        pairs = [
            (x, a)
            for xs, row in zip(picks, rows, strict=True)
            for x, a in zip(xs, row, strict=True)
        ]
        return cp_model.LinearExpr.weighted_sum([x for x, _ in pairs], [a for _, a in pairs])

    weights = [[math.ceil(c * by_cost) for c in row] for row in costs]
    model.add(linear(weights) <= math.floor(instance.budget * by_cost))
    model.minimize(linear([[round(v * by_value) for v in row] for row in values]))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = LIMIT_S
    solver.parameters.relative_gap_limit = 1e-6
    started = time.perf_counter()
    status = solver.solve(model)
    seconds = time.perf_counter() - started
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Outcome(solver="CP-SAT", seconds=seconds, objective=None, gap=None)
    choice = [[solver.value(x) for x in row].index(1) for row in picks]
    gap = abs(solver.objective_value - solver.best_objective_bound)
    gap /= max(abs(solver.objective_value), 1.0)
    return Outcome(solver="CP-SAT", seconds=seconds, objective=total(values, choice), gap=gap)


def repeated(solver: Callable[[Instance], Outcome | None], instance: Instance) -> Outcome | None:
    """The fastest of several runs, as many as fit into half a second, five at most."""
    best = solver(instance)
    spent = best.seconds if best else math.inf
    for _ in range(4):
        if best is None or spent > 0.5:
            break
        again = solver(instance)
        assert again is not None
        spent += again.seconds
        best = min(best, again, key=lambda outcome: outcome.seconds)
    return best


# --- benchmarks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table: some instances of a kind, and whether the target is met."""

    key: str
    what: str
    instances: int
    proven: int
    worst_gap: float
    median_s: float
    worst_s: float
    ratio_to: dict[str, float]  # geometric mean of our time over theirs, by solver
    notes: str
    target: str
    met: bool


def ratio(mine: Sequence[Outcome], theirs: Sequence[Outcome | None]) -> float | None:
    """The geometric mean of our time over theirs; None where the solver is absent."""
    logs = [math.log(a.seconds / b.seconds) for a, b in zip(mine, theirs, strict=True) if b]
    return math.exp(statistics.fmean(logs)) if logs else None


def line(
    key: str,
    what: str,
    mine: Sequence[Outcome],
    others: dict[str, Sequence[Outcome | None]],
    *,
    notes: str = "",
    target: str,
    met: bool,
) -> Line:
    """A line with what all benchmarks share."""
    ratios = {name: ratio(mine, theirs) for name, theirs in others.items()}
    return Line(
        key=key,
        what=what,
        instances=len(mine),
        proven=sum(o.gap == 0 for o in mine),
        worst_gap=max(o.gap if o.gap is not None else math.inf for o in mine),
        median_s=statistics.median(o.seconds for o in mine),
        worst_s=max(o.seconds for o in mine),
        ratio_to={name: r for name, r in ratios.items() if r is not None},
        notes=notes,
        target=target,
        met=met,
    )


def hawq(say: Callable[[str], None]) -> list[Line]:
    """HAWQ-V3's instances, against both other solvers."""
    if not HAWQ.exists():
        say("hawq: ../shared/measured/instances is not here; skipped")
        return []
    mine, theirs, sat, right = [], [], [], 0
    for instance in published():
        found = repeated(ours, instance)
        assert found is not None and found.objective is not None and instance.optimum is not None
        mine.append(found)
        theirs.append(repeated(highs, instance))
        sat.append(repeated(cp_sat, instance))
        right += abs(found.objective - instance.optimum) <= 1e-6 * abs(instance.optimum)
        say(instance.name)
    rivals = [[o.seconds for o in outcomes if o] for outcomes in (theirs, sat)]
    faster = all(
        statistics.median(o.seconds for o in mine) < statistics.median(times)
        for times in rivals
        if times
    )
    notes = ", ".join(
        f"{name} median {statistics.median(times) * 1e3:.1f} ms" if times else f"no {name} here"
        for name, times in zip(("HiGHS", "CP-SAT"), rivals, strict=True)
    )
    median_s = statistics.median(o.seconds for o in mine)
    return [
        line(
            "hawq",
            f"{right} of {len(mine)} at the published optimum",
            mine,
            {"HiGHS": theirs, "CP-SAT": sat},
            notes=notes,
            target="all optimal, median < 5 ms, faster than both",
            met=right == len(mine) == 18 and median_s < 5e-3 and faster,
        )
    ]


def pisingers(say: Callable[[str], None]) -> list[Line]:
    """Pisinger's families, against HiGHS."""
    lines, all_mine, all_theirs = [], [], []
    for family in FAMILIES:
        for classes in SIZES:
            mine, theirs = [], []
            for seed in SEEDS:
                instance = pisinger(family, classes, 10, seed)
                found, other = repeated(ours, instance), repeated(highs, instance)
                assert found is not None and other is not None
                if found.objective is not None and other.objective is not None:
                    better = found.objective - other.objective
                    assert found.gap != 0 or better <= 1e-6 * abs(other.objective), instance.name
                mine.append(found)
                theirs.append(other)
                say(f"{instance.name}: {found.seconds:.3f} s, HiGHS {other.seconds:.3f} s")
            unproven = sum(o.gap is None or o.gap > 1e-6 for o in theirs)
            lines.append(
                line(
                    "pisinger",
                    f"{family} {classes}x10",
                    mine,
                    {"HiGHS": theirs},
                    notes=f"HiGHS unproven in {LIMIT_S:.0f} s: {unproven}" if unproven else "",
                    target="gap <= 1e-6",
                    met=all(o.gap is not None and o.gap <= 1e-6 for o in mine),
                )
            )
            all_mine += mine
            all_theirs += theirs
    mean = ratio(all_mine, all_theirs)
    lines.append(
        line(
            "pisinger",
            "all",
            all_mine,
            {"HiGHS": all_theirs},
            target="gap <= 1e-6, ratio <= 0.3",
            met=all(each.met for each in lines) and mean is not None and mean <= 0.3,
        )
    )
    return lines


def large(say: Callable[[str], None]) -> list[Line]:
    """Networks and families of a size beyond any network's."""
    lines = []
    for classes, options, most_s in ((1000, 64, 2.0), (10_000, 20, 5.0)):
        instances = [network(classes, options, seed) for seed in SEEDS]
        instances += [pisinger(family, classes, options, 0) for family in FAMILIES]
        mine = []
        for instance in instances:
            mine.append(ours(instance))
            say(f"{instance.name}: {mine[-1].seconds:.3f} s")
        lines.append(
            line(
                "large",
                f"{classes}x{options}",
                mine,
                {},
                notes="5 of a network's shape, 1 of each family",
                target=f"gap <= 1e-4, each < {most_s:.0f} s",
                met=all(o.gap is not None and o.gap <= 1e-4 and o.seconds < most_s for o in mine),
            )
        )
    return lines


KEYS: dict[str, Callable[[Callable[[str], None]], list[Line]]] = {
    "hawq": hawq,
    "pisinger": pisingers,
    "large": large,
}


def table(lines: Sequence[Line]) -> Table:
    """All lines; times in milliseconds."""
    result = Table(title="Separable multiple-choice knapsacks (times in ms, ratio ours / theirs)")
    columns = "key what n proven worst_gap median worst ratio notes target met"
    for column in columns.split():
        text = column in ("key", "what", "notes", "target", "met")
        result.add_column(column.replace("_", " "), justify="left" if text else "right")
    for each in lines:
        result.add_row(
            each.key,
            each.what,
            str(each.instances),
            str(each.proven),
            f"{each.worst_gap:.1g}",
            f"{each.median_s * 1e3:.1f}",
            f"{each.worst_s * 1e3:.1f}",
            ", ".join(f"{name} {value:.3f}" for name, value in each.ratio_to.items()),
            each.notes,
            each.target,
            "yes" if each.met else "NO",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; 0, or 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", nargs="+", choices=[*KEYS, *ROWS], help="benchmarks to run (all)")
    options = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    wanted = set(options.only or [*KEYS, *ROWS])
    lines = [each for key, run in KEYS.items() if key in wanted for each in run(say)]
    rows = {key: run(say) for key, run in ROWS.items() if key in wanted}
    if options.json:
        plain = [{"key": key, **row} for key, found in rows.items() for row in found]
        print(json.dumps([asdict(each) for each in lines] + plain, indent=1))
    else:
        if lines:
            Console(width=170).print(table(lines))
        for key, found in rows.items():
            if found:
                Console(width=170).print(row_table(key, found))
    met = all(each.met for each in lines)
    return 0 if met and all(row.get("met", True) for each in rows.values() for row in each) else 1


if __name__ == "__main__":
    raise SystemExit(main())
