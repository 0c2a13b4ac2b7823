"""What is to be allocated: checked tables, tied groups as one class, and an allocation's sums.

Tables are flat: the options of one group after those of another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.allocation.names import NAMELESS, Names
from harness.errors import ConfigError

__all__ = [
    "LARGEST",
    "SMALLEST",
    "Allocation",
    "Classes",
    "Problem",
    "checked_budgets",
    "members_of",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

# Numbers between these (and zero) can be divided by and multiplied with each other's differences
# without overflow: float32 reaches from 1e-45 to 1e38.
SMALLEST, LARGEST = 1e-60, 1e60


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One option for every group.

    ``choice[l]`` is an option index of group ``l``; ``objective`` and ``costs[b]`` are its sums.
    ``bound`` is proven: no choice within the budgets has a lower objective. ``gap`` is
    ``(objective - bound) / max(|objective|, |bound|)``, and 0 where the choice is proven optimal:
    then ``bound`` is below ``objective`` by no more than the sums may have been rounded by.

    ``prices[b]`` is what one more unit of budget ``b`` buys: by how much the objective falls per
    unit of the budget (in units of the values by units of that budget's costs), 0 where it does
    not bind, never negative. It is the multiplier at which the relaxation of all budgets gives its
    best bound (Kellerer, Pferschy, Pisinger, *Knapsack Problems*, 2004, section 3.8), so it holds
    near the answer and not for every single unit. ``method`` is how the allocation was found:
    "separable" or "coupled" (dynamic programming), or "highs".
    """

    choice: tuple[int, ...]
    objective: float
    costs: tuple[float, ...]
    bound: float
    gap: float
    prices: tuple[float, ...] = ()
    method: str = "separable"

    def bounded(self, bound: float) -> Allocation:
        """The same allocation with this bound, and its gap to it."""
        bound = min(bound, self.objective)
        width = max(abs(self.objective), abs(bound))
        gap = (self.objective - bound) / width if self.objective > bound else 0.0
        return replace(self, bound=bound, gap=gap)

    def proven(self, rounding: float) -> Allocation:
        """The same allocation, optimal but for ``rounding``."""
        bound = math.nextafter(self.objective - rounding, -math.inf) if rounding else self.objective
        return replace(self, bound=bound, gap=0.0)


@dataclass(frozen=True, slots=True)
class Classes:
    """The options of all classes, class after class.

    A class is one group, or tied groups that share an option index; its values and costs are sums
    over its groups. ``first[k]`` is where class ``k`` begins, ``owner[i]`` the class of option
    ``i``.
    """

    values: Floats
    costs: Floats  # budgets x options
    first: Ints
    owner: Ints

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.first)


@dataclass(frozen=True, slots=True)
class Problem:
    """Values and costs of every option of every group, budgets, and the classes of tied groups."""

    values: Floats
    costs: tuple[Floats, ...]
    sizes: Ints
    first: Ints
    budgets: tuple[float, ...]
    members: tuple[tuple[int, ...], ...]  # the groups of each class
    class_of: Ints  # the class of each group
    classes: Classes

    @staticmethod
    def of(
        values: Sequence[Sequence[float]],
        costs: Sequence[Sequence[Sequence[float]]],
        budgets: Sequence[float],
        tied: Iterable[Sequence[int]],
        names: Names = NAMELESS,
    ) -> Problem:
        """The checked problem; ``ConfigError`` names what is wrong with it."""
        if len(values) == 0:
            raise ConfigError("nothing to allocate: there are no groups")
        if len(costs) != len(budgets):
            raise ConfigError(f"{len(costs)} cost tables for {len(budgets)} budgets")
        plain, sizes = _table(values, "values", None, names)
        names.check(sizes.tolist())
        tables = tuple(
            _table(table, f"costs[{b}]", sizes, names)[0] for b, table in enumerate(costs)
        )
        limits = checked_budgets(budgets)
        members = tuple(members_of(sizes.tolist(), tied, names))
        class_of = np.empty(len(sizes), dtype=np.intp)
        for k, groups in enumerate(members):
            class_of[list(groups)] = k
        first = np.cumsum(sizes) - sizes
        return Problem(
            plain,
            tables,
            sizes,
            first,
            limits,
            members,
            class_of,
            _classes(plain, tables, sizes, first, members),
        )

    def expand(self, picks: Sequence[int] | Ints) -> tuple[int, ...]:
        """The option of every group, from that of every class."""
        return tuple(np.asarray(picks, dtype=np.intp)[self.class_of].tolist())

    def cost(self, b: int, choice: Sequence[int]) -> float:
        """What the choice takes of budget ``b``: the sum, rounded once."""
        return math.fsum(self.costs[b][self.first + np.asarray(choice, dtype=np.intp)].tolist())

    def shares(self, b: int, choice: Sequence[int]) -> tuple[float, tuple[float, ...]]:
        """What the choice takes of budget ``b``, and every group's share of that."""
        at = self.first + np.asarray(choice, dtype=np.intp)
        return self.cost(b, choice), tuple(self.costs[b][at].tolist())

    def allocation(self, choice: tuple[int, ...], bound: float | None) -> Allocation:
        """The allocation; ``bound`` None where ``choice`` is proven optimal."""
        at = self.first + np.asarray(choice, dtype=np.intp)
        objective = math.fsum(self.values[at].tolist())
        optimal = Allocation(
            choice=choice,
            objective=objective,
            costs=tuple(math.fsum(table[at].tolist()) for table in self.costs),
            bound=objective,
            gap=0.0,
        )
        return optimal if bound is None else optimal.bounded(bound)


def checked_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    """The budgets; ``ConfigError`` where one is no number."""
    limits = tuple(float(budget) for budget in budgets)
    for b, limit in enumerate(limits):
        if math.isnan(limit) or limit == -math.inf:
            raise ConfigError(f"budget {b} is {limit}; it must be a number, or infinity")
    return limits


def _table(
    rows: Sequence[Sequence[float]], name: str, like: Ints | None, names: Names
) -> tuple[Floats, Ints]:
    """The rows as one array, and their lengths; ``ConfigError`` names what is wrong."""
    if like is not None and len(rows) != len(like):
        raise ConfigError(f"{name} has {len(rows)} groups, values has {len(like)}")
    sizes = np.array([len(row) for row in rows], dtype=np.intp)
    if not sizes.all():
        raise ConfigError(f"{name}: {names.group(int(sizes.argmin()))} has no option")
    if like is not None and (sizes != like).any():
        group = int((sizes != like).argmax())
        raise ConfigError(
            f"{name}: {names.group(group)} has {sizes[group]} options, values has {like[group]}"
        )
    table = np.array(list(itertools.chain.from_iterable(rows)), dtype=np.float64)
    size = np.abs(table)
    wrong = ~((size >= SMALLEST) & (size <= LARGEST) | (size == 0))
    if wrong.any():
        at = int(wrong.argmax())
        group = int(np.searchsorted(np.cumsum(sizes), at, side="right"))
        advice = (
            f"scale so that all are 0 or between {SMALLEST:g} and {LARGEST:g} in size"
            if np.isfinite(table[at])
            else "leave out an option that is not to be used"
        )
        raise ConfigError(
            f"{name}: {names.option(group, at - int(sizes[:group].sum()))} is {table[at]}; {advice}"
        )
    return table, sizes


def members_of(
    sizes: Sequence[int], tied: Iterable[Sequence[int]], names: Names = NAMELESS
) -> Iterator[tuple[int, ...]]:
    """The groups of each class, in the order of their first groups."""
    leader = list(range(len(sizes)))

    def find(group: int) -> int:
        while leader[group] != group:
            leader[group] = group = leader[leader[group]]
        return group

    for tie in tied:
        for group in tie:
            if not 0 <= group < len(sizes):
                raise ConfigError(f"tied group {group} does not exist; there are {len(sizes)}")
            if sizes[group] != sizes[tie[0]]:
                raise ConfigError(
                    f"{names.group(tie[0])} and {names.group(group)} are tied but have "
                    f"{sizes[tie[0]]} and {sizes[group]} options"
                )
            leader[find(group)] = find(tie[0])
    together: dict[int, list[int]] = {}
    for group in range(len(sizes)):
        together.setdefault(find(group), []).append(group)
    yield from (tuple(groups) for groups in together.values())


def _classes(
    values: Floats,
    tables: Sequence[Floats],
    sizes: Ints,
    first: Ints,
    members: Sequence[tuple[int, ...]],
) -> Classes:
    if len(members) == len(sizes):  # nothing is tied
        owner = np.repeat(np.arange(len(sizes)), sizes)
        return Classes(values, np.array(tables).reshape(len(tables), len(values)), first, owner)

    def sums(table: Floats) -> Floats:
        parts = []
        for groups in members:
            rows = [table[first[g] : first[g] + sizes[g]] for g in groups]
            if len(rows) == 1:
                parts.append(rows[0])
            else:
                columns = zip(*(row.tolist() for row in rows), strict=True)
                parts.append(np.array([math.fsum(column) for column in columns]))
        return np.concatenate(parts)

    widths = sizes[[groups[0] for groups in members]]
    return Classes(
        sums(values),
        np.array([sums(table) for table in tables]).reshape(len(tables), int(widths.sum())),
        np.cumsum(widths) - widths,
        np.repeat(np.arange(len(members)), widths),
    )
