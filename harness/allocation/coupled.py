"""One option for every group where costs depend on several groups' options, within every budget.

A layer's cost is that of its own option together with those of its neighbours. Each budget bounds
a sum of tables over one group, two, or more (``Table``). Networks are chains with skips, so the
tables are searched along a path (``frontier.py``): prices and a proven bound by its Lagrangian
dual (``dual.py``), then partial choices by their frontier cell (``labels.py``). Where too many
groups hang together for that, the tables become a mixed-integer program (``polytope.py``). Where
no table couples two groups, the separable ``knapsack.py`` solves it.

Budgets hold on the sums of the returned choice (``math.fsum``, correctly rounded), and a proven
bound is returned beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.allocation import knapsack
from harness.allocation.binding import Reach, infeasible
from harness.allocation.frontier import scales
from harness.allocation.names import NAMELESS, Names
from harness.allocation.polytope import solve_program
from harness.allocation.problem import Allocation, checked_budgets, members_of
from harness.allocation.search import Answer, Search, narrow
from harness.allocation.tables import Coupling, Table
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget

__all__ = ["Allocation", "Names", "Solver", "Table", "front", "solve"]

Ints = npt.NDArray[np.intp]
Solver = Literal["auto", "labels", "highs"]

_TIME_UP = "no allocation was found in time; allow more time, or raise the tightest budget a little"


def solve(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Table]],
    budgets: Sequence[float],
    *,
    value_tables: Sequence[Table] = (),
    tied: Iterable[Sequence[int]] = (),
    pinned: Mapping[int, int] | None = None,
    names: Names | None = None,
    gap: float = 0.0,
    time_limit_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    solver: Solver = "auto",
) -> Allocation:
    """The allocation with the least objective within every budget.

    The objective is the sum of ``values[l][choice[l]]`` and of ``value_tables``. The sum of the
    tables ``costs[b]`` is bounded by ``budgets[b]`` (infinity: no limit). Groups of one tuple in
    ``tied`` get the same option index, the groups in ``pinned`` the option given there. ``names``
    are for messages.

    The search ends at a relative gap of ``gap``, or with the best allocation so far and its gap
    when ``time_limit_s`` is up. ``solver`` "labels" and "highs" insist on one way; "auto" also
    takes the separable one. Raises ``ConfigError`` where the input is wrong, ``BoardfitError``
    where time is up without any allocation, and ``InfeasibleBudget``: its ``nearest`` holds, for
    each budget, its smallest reachable value with the others held (or on its own where the others
    cannot be held either), its ``binding`` the groups where most of that is spent.
    """
    deadline = clock() + time_limit_s
    names = names or NAMELESS
    if not gap >= 0:
        raise ConfigError(f"a gap of {gap}; it must be 0 or more")
    coupling = _checked(values, costs, budgets, value_tables, tied, pinned or {}, names)
    return _solve(coupling, names, gap, deadline, clock, solver, None)


def front(
    values: Sequence[Sequence[float]],
    tables: Sequence[Table],
    *,
    budgets: Sequence[float] | None = None,
    points: int = 20,
    held: Sequence[tuple[Sequence[Table], float]] = (),
    value_tables: Sequence[Table] = (),
    tied: Iterable[Sequence[int]] = (),
    pinned: Mapping[int, int] | None = None,
    names: Names | None = None,
    gap: float = 0.0,
    time_limit_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Allocation, ...]:
    """The best allocation for each of several budgets of ``tables``, from loose to tight.

    Without ``budgets`` these are ``points`` of them, evenly from what the best objective takes
    down to the least that can be reached. ``held`` are other tables and their budgets, the same
    at every point. Each allocation's ``bound`` and ``gap`` are those for its own budget;
    ``costs[0]`` is what it takes of it, ``costs[1:]`` of those held. Budgets that cannot be met
    and allocations that repeat the one before are left out; so are those that one for a tighter
    budget beats. All else is as in ``solve``; ``InfeasibleBudget`` where no budget can be met.
    """
    deadline = clock() + time_limit_s
    names = names or NAMELESS
    limits = [budget for _, budget in held]
    layers = [tables, *(other for other, _ in held)]
    whole = _checked(values, layers, [math.inf, *limits], value_tables, tied, pinned or {}, names)
    if budgets is None:
        asked = _evenly(whole, points, names, gap, deadline, clock)
    else:
        asked = sorted({*checked_budgets(budgets)})
    found: list[Allocation] = []
    start: tuple[int, ...] | None = None
    last: InfeasibleBudget | None = None
    for n, budget in enumerate(asked):  # a tight budget's allocation begins the next one's search
        coupling = replace(whole, budgets=(budget, *whole.budgets[1:]))
        until = _share(deadline, len(asked) - n, clock)
        try:
            point = _solve(coupling, names, gap, until, clock, "auto", start)
        except InfeasibleBudget as error:
            last = error
            continue
        start = point.choice
        if not found or point.objective < found[-1].objective:
            found.append(point)
    if not found:
        raise last or BoardfitError("no budgets were given; name one, or ask for points")
    return tuple(reversed(found))


def _share(deadline: float, parts: int, clock: Callable[[], float]) -> float:
    """When one of so many parts of the time that is left is up."""
    now = clock()
    return now + max(deadline - now, 0.0) / parts


def _evenly(
    whole: Coupling,
    points: int,
    names: Names,
    gap: float,
    deadline: float,
    clock: Callable[[], float],
) -> list[float]:
    """Budgets from the least that can be reached to what the best objective takes."""
    if points < 2:
        raise ConfigError(f"a front of {points} points; it needs two or more, or budgets")
    until = _share(deadline, points + 2, clock)
    loose = _solve(whole, names, gap, until, clock, "auto", None).costs[0]
    others = [b for b, budget in enumerate(whole.budgets) if b and budget < math.inf]
    tight = _least(whole, 0, others, _share(deadline, points + 1, clock), clock).choice
    least = loose if tight is None else whole.sums(tight)[1]
    return sorted({*np.linspace(least, max(loose, least), points).tolist(), least, loose})


def _checked(
    values: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Table]],
    budgets: Sequence[float],
    value_tables: Sequence[Table],
    tied: Iterable[Sequence[int]],
    pinned: Mapping[int, int],
    names: Names,
) -> Coupling:
    """The checked coupling; ``ConfigError`` names what is wrong with it."""
    if len(values) == 0:
        raise ConfigError("nothing to allocate: there are no groups")
    if len(costs) != len(budgets):
        raise ConfigError(f"{len(costs)} lists of tables for {len(budgets)} budgets")
    sizes = tuple(len(row) for row in values)
    for group, size in enumerate(sizes):
        if size == 0:
            raise ConfigError(f"values: {names.group(group)} has no option")
    names.check(sizes)
    limits = checked_budgets(budgets)
    rows = [Table((group,), np.asarray(row)) for group, row in enumerate(values)]
    for table in rows:
        table.check("values", sizes, names)
    for table in value_tables:
        table.check("value_tables", sizes, names)
    for b, tables in enumerate(costs):
        for table in tables:
            table.check(f"costs[{b}]", sizes, names)
    members = tuple(members_of(sizes, tied, names))
    layers = ((*rows, *value_tables), *(tuple(tables) for tables in costs))
    return Coupling.of(layers, limits, sizes, members, _kept(sizes, members, pinned, names))


def _kept(
    sizes: Sequence[int],
    members: Sequence[tuple[int, ...]],
    pinned: Mapping[int, int],
    names: Names,
) -> tuple[Ints, ...]:
    """Each class's options: all, or the one it is pinned to."""
    for group, option in pinned.items():
        if not 0 <= group < len(sizes):
            raise ConfigError(f"pinned group {group} does not exist; there are {len(sizes)}")
        if not 0 <= option < sizes[group]:
            raise ConfigError(
                f"{names.group(group)} is pinned to option {option}; it has {sizes[group]}"
            )
    kept = []
    for groups in members:
        options = {pinned[group]: group for group in groups if group in pinned}
        if len(options) > 1:
            (one, first), (other, second) = list(options.items())[:2]
            raise ConfigError(
                f"{names.group(first)} and {names.group(second)} are tied but pinned to options "
                f"{one} and {other}"
            )
        every = range(sizes[groups[0]])
        kept.append(np.array(sorted(options) or every, dtype=np.intp))
    return tuple(kept)


def _solve(
    coupling: Coupling,
    names: Names,
    gap: float,
    deadline: float,
    clock: Callable[[], float],
    solver: Solver,
    start: tuple[int, ...] | None,
) -> Allocation:
    limited = [b for b, budget in enumerate(coupling.budgets) if budget < math.inf]
    if solver == "auto" and coupling.separable:
        found = _separable(coupling, deadline, clock)
        if found is not None:
            return found
    answer, method = _answer(coupling, limited, gap, deadline, clock, solver, start)
    if answer.choice is None:
        if answer.bound < math.inf:
            raise BoardfitError(_TIME_UP)
        raise _infeasible(coupling, limited, names, deadline, clock)
    return _allocation(coupling, limited, answer, method)


def _answer(
    coupling: Coupling,
    limited: Sequence[int],
    gap: float,
    deadline: float,
    clock: Callable[[], float],
    solver: Solver,
    start: tuple[int, ...] | None = None,
) -> tuple[Answer, str]:
    """The search's answer for the budgets ``limited``, and how it was found."""
    aim = coupling.aimed(0, limited)
    classes = None if solver == "highs" else narrow(aim)
    if classes is None:
        if solver == "labels":
            raise ConfigError("the tables couple too many groups at once; leave `solver` to choose")
        return solve_program(aim, gap, deadline, clock), "highs"
    search = Search(aim, classes, gap=gap, out_of_time=lambda: clock() > deadline, start=start)
    answer = search.run()
    if solver == "labels" or answer.settled(gap) or clock() > deadline:
        return answer, "coupled"
    return _finished(search, answer, gap, deadline, clock)


def _finished(
    search: Search, answer: Answer, gap: float, deadline: float, clock: Callable[[], float]
) -> tuple[Answer, str]:
    """The answer of HiGHS, on the options that are left, where labels did not close the gap."""
    further = solve_program(
        search.coupling, gap, deadline, clock, below=answer.objective, priced=False
    )
    # No choice with an option that is gone is better than the best known by more than ``floor``.
    bound = max(answer.bound, min(further.bound, search.floor()))
    if further.choice is None or further.objective >= answer.objective:
        return replace(answer, bound=bound), "coupled"
    return replace(further, bound=bound, prices=answer.prices), "highs"


def _allocation(
    coupling: Coupling, limited: Sequence[int], answer: Answer, method: str
) -> Allocation:
    assert answer.choice is not None
    objective, *costs = coupling.sums(answer.choice)
    prices = [0.0] * len(costs)
    for b, price in zip(limited, answer.prices, strict=True):
        prices[b] = price
    found = Allocation(
        choice=answer.choice,
        objective=objective,
        costs=tuple(costs),
        bound=objective,
        gap=0.0,
        prices=tuple(prices),
        method=method,
    )
    return found.proven(answer.rounding) if answer.gap == 0.0 else found.bounded(answer.bound)


def _separable(
    coupling: Coupling, deadline: float, clock: Callable[[], float]
) -> Allocation | None:
    """The separable solver's allocation; None where there is none, or its sums mislead it.

    It gets the sums of each class, which were rounded before. So it gets a hair more of every
    budget, in which no choice is lost; what it finds may then break a budget after all.
    """
    rows: list[list[list[list[float]]]] = [
        [[[] for _ in options] for options in coupling.kept] for _ in coupling.layers
    ]  # layers x classes x options: what is to be summed
    for term in coupling.terms:
        for parts, state in zip(rows[term.layer][term.classes[0]], term.maps[0], strict=True):
            parts.append(float(term.amounts[state]))
    tables = [[[math.fsum(parts) for parts in row] for row in layer] for layer in rows]
    hairs = scales(coupling)[2][1:].tolist()
    try:
        found = knapsack.solve(
            tables[0],
            tables[1:],
            [budget + hair for budget, hair in zip(coupling.budgets, hairs, strict=True)],
            time_limit_s=max(deadline - clock(), 0.0),
            clock=clock,
        )
    except BoardfitError:
        return None  # infeasible, most likely: the search says so for the true sums
    choice = coupling.expand(found.choice)
    sums = coupling.sums(choice)
    if not coupling.within(sums):
        return None
    priced = replace(found, choice=choice, objective=sums[0], costs=sums[1:])
    return replace(priced, bound=min(found.bound, sums[0]))


def _least(
    coupling: Coupling,
    b: int,
    held: Sequence[int],
    deadline: float,
    clock: Callable[[], float],
) -> Answer:
    """The choice with the least sum of budget ``b``'s costs that keeps the budgets ``held``."""
    aimed = coupling.aimed(1 + b, held)
    answer, _ = _answer(aimed, range(len(held)), 0.0, deadline, clock, "auto")
    if answer.choice is None and not held:
        raise BoardfitError(_TIME_UP)
    return answer


def _infeasible(
    coupling: Coupling,
    limited: Sequence[int],
    names: Names,
    deadline: float,
    clock: Callable[[], float],
) -> InfeasibleBudget:
    """The error that says, for every budget, what could be reached, and where it goes."""
    reaches = []
    for b in range(len(coupling.budgets)):
        others = [i for i in limited if i != b]
        how = "with the others held" if others else ""
        answer = _least(coupling, b, others, deadline, clock)
        if answer.choice is None:
            proven = answer.bound == math.inf
            how = "on its own; the others cannot be held either"
            how = how if proven else "on its own; time was up before the others could be held"
            answer = _least(coupling, b, [], deadline, clock)
        assert answer.choice is not None  # without budgets there always is one
        reaches.append(_reach(coupling, b, answer.choice, how))
    return infeasible(coupling.budgets, reaches, names)


def _reach(coupling: Coupling, b: int, choice: tuple[int, ...], how: str) -> Reach:
    shares: list[list[float]] = [[] for _ in coupling.sizes]
    for table in coupling.layers[1 + b]:
        each = table.at(choice) / len(table.groups)
        for group in table.groups:
            shares[group].append(each)
    return Reach(coupling.sums(choice)[1 + b], tuple(math.fsum(parts) for parts in shares), how)
