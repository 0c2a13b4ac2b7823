"""An allocation problem in tables, solved for limits on the predicted latency and on the size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.allocation import coupled
from harness.allocation.coupled import Table
from harness.allocation.names import Names
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget

__all__ = [
    "Amounts",
    "CostSum",
    "CostTables",
    "Quantity",
    "Solved",
    "Tabled",
    "TooHard",
    "Unreachable",
]

Quantity = Literal["latency", "size"]
# A gap of this is below what the sensitivities, which are estimates, can tell apart.
GAP = 1e-4
# Seconds that one problem may take. A tenth of a second is the rule, and a proposal solves a few.
TIME_LIMIT_S = 4.0
# An answer that is not proven to be nearer to the best than this is none.
LARGEST_GAP = 0.05
# Cuts by which a convex latency is held at once. Two or three are the rule.
MAX_CUTS = 5
# Sums of tables equal the predicted latency to about 1e-9; what is solved is held to a little less
# than the limit, so that what is priced is within it. Sizes are sums of bytes.
HAIR = 1e-8


class CostSum(Protocol):
    """A quantity that adds up: ``constant``, and one entry of each table."""

    @property
    def constant(self) -> float: ...  # noqa: D102  # see there

    @property
    def tables(self) -> Sequence[Table]: ...  # noqa: D102

    def at(self, choice: Sequence[int]) -> float:
        """The quantity where group ``l`` has option ``choice[l]``."""


class CostTables(Protocol):
    """What allocations cost, in tables over the groups' options.

    ``exact`` is whether they are right for every allocation, or only near the one that they were
    made around; ``linear`` whether the latency itself adds up, so that one cut is all of it.
    """

    @property
    def exact(self) -> bool: ...  # noqa: D102

    @property
    def linear(self) -> bool: ...  # noqa: D102

    @property
    def size_bytes(self) -> CostSum: ...  # noqa: D102

    def latency_s(self, choice: Sequence[int]) -> float:
        """The predicted latency."""

    def cut(self, choice: Sequence[int]) -> CostSum:
        """A sum that is the latency at ``choice`` and nowhere more than it."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """What an allocation takes by the tables: seconds predicted, bytes predicted."""

    latency_s: float
    size_bytes: float


@dataclass(frozen=True, slots=True)
class Solved:
    """An allocation with its proof; ``prices`` are of the limits that it was solved within."""

    choice: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    method: Literal["coupled", "separable"]
    prices: Mapping[Quantity, float]
    amounts: Amounts


class TooHard(BoardfitError):
    """No allocation, or none that is proven to be near the best, was found in time."""


class Unreachable(Exception):
    """No allocation keeps the limits.

    ``nearest`` is by quantity the least that is reached with the other limit held (or alone, where
    that cannot be held either), ``binding`` the groups that take most of it even so.
    """

    def __init__(
        self, nearest: Mapping[Quantity, float], binding: Mapping[Quantity, tuple[int, ...]]
    ) -> None:
        super().__init__(f"no allocation keeps the limits; the nearest are {dict(nearest)}")
        self.nearest = nearest
        self.binding = binding


@dataclass(frozen=True, slots=True)
class _Row:
    """One budget: a sum that the quantity is no less than, and its limit."""

    quantity: Quantity
    amount: CostSum
    limit: float


class Tabled:
    """Values and cost tables of the groups' options; solves for any limits.

    ``values[l][j]`` is the sensitivity of option ``j`` of group ``l``, which ``names`` name in
    messages. Cuts of a convex latency are kept from one problem to the next.
    """

    def __init__(
        self,
        values: Sequence[Sequence[float]],
        tables: CostTables,
        *,
        names: Names,
        gap: float = GAP,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        self.values = values
        self.tables = tables
        self.solves = 0
        self._names = names
        self._gap = gap
        self._time_limit_s = time_limit_s
        # Each with the latency where it was made.
        self._cuts: list[tuple[float, CostSum]] = []

    def amounts(self, choice: Sequence[int]) -> Amounts:
        """What ``choice`` takes."""
        return Amounts(
            latency_s=self.tables.latency_s(choice),
            size_bytes=self.tables.size_bytes.at(choice),
        )

    def loss(self, choice: Sequence[int]) -> float:
        """The sum of the choice's values."""
        return math.fsum(values[j] for values, j in zip(self.values, choice, strict=True))

    def cut(self, choice: Sequence[int]) -> CostSum:
        """A sum that is the latency at ``choice``, nowhere above it, and kept for ``minimise``."""
        if not self._cuts or not self.tables.linear:
            self._cuts.append((self.tables.latency_s(choice), self.tables.cut(choice)))
        return self._cuts[-1][1]

    def minimise(self, latency_s: float | None, size_bytes: float | None) -> Solved:
        """The least summed values with the prediction within both limits; None is no limit.

        Unreachable if there is no such allocation, TooHard if none is found in time. The limit on
        a convex latency is held by cuts, each nowhere above it: where they let an allocation
        through that exceeds it, one is made there.
        """
        if latency_s is not None and not self._cuts:
            self.cut([0] * len(self.values))
        for _ in range(MAX_CUTS):
            solved = self._solve(latency_s, size_bytes)
            over = latency_s is not None and solved.amounts.latency_s > latency_s
            if not over or self.tables.linear:
                break
            self.cut(solved.choice)
        return solved

    def nearest(
        self, latency_s: float | None, size_bytes: float | None
    ) -> tuple[Solved, float | None, float | None]:
        """The best allocation within the limits raised as little as it takes, and those limits.

        TooHard where they are not found in time.
        """
        asked: dict[Quantity, float] = {}
        if latency_s is not None:
            asked["latency"] = latency_s
        if size_bytes is not None:
            asked["size"] = size_bytes
        limits = dict(asked)
        # More than the hair that is taken off when it is solved, and each time twice that: what a
        # solver's tolerance keeps out is let in soon.
        room = 1.0 + HAIR
        while True:
            room += room - 1
            try:
                solved = self.minimise(limits.get("latency"), limits.get("size"))
            except Unreachable as error:
                # Raising either is enough where each can be reached with the other held.
                excess = {q: least / limits[q] for q, least in error.nearest.items()}
                over = [q for q in excess if excess[q] > 1 - HAIR]
                if not over:  # each was reached alone, and time was up before both were
                    raise TooHard(
                        "the limits that can be met together were not found in time"
                    ) from (error)
                raised = min(over, key=lambda q: excess[q])
                limits[raised] = max(error.nearest[raised], limits[raised]) * room
            else:
                return solved, limits.get("latency"), limits.get("size")

    def _rows(self, latency_s: float | None, size_bytes: float | None) -> list[_Row]:
        rows = []
        if latency_s is not None:
            held = latency_s * (1 - HAIR)
            # Those made where the latency is like the limit say most about it.
            near = sorted(self._cuts, key=lambda cut: abs(math.log(cut[0] / held)))
            rows += [_Row("latency", cut, held) for _, cut in near[:MAX_CUTS]]
        if size_bytes is not None:
            rows.append(_Row("size", self.tables.size_bytes, size_bytes))
        return rows

    def _solve(self, latency_s: float | None, size_bytes: float | None) -> Solved:
        rows = self._rows(latency_s, size_bytes)
        self.solves += 1
        try:
            found = coupled.solve(
                self.values,
                [row.amount.tables for row in rows],
                [row.limit - row.amount.constant for row in rows],
                names=self._names,
                gap=self._gap,
                time_limit_s=self._time_limit_s,
            )
        except InfeasibleBudget as error:
            raise _unreachable(rows, error) from error
        except ConfigError:
            raise
        except BoardfitError as error:
            raise TooHard("no allocation was found in time") from error
        if found.gap > LARGEST_GAP:
            raise TooHard(f"the allocation found in time is within {found.gap:.0%} of the best")
        prices: dict[Quantity, float] = {}
        for row, price in zip(rows, found.prices, strict=True):
            prices[row.quantity] = prices.get(row.quantity, 0.0) + price
        return Solved(
            choice=found.choice,
            objective=found.objective,
            bound=found.bound,
            gap=found.gap,
            method="coupled"
            if any(len(table.groups) > 1 for row in rows for table in row.amount.tables)
            else "separable",
            prices=prices,
            amounts=self.amounts(found.choice),
        )


def _unreachable(rows: Sequence[_Row], error: InfeasibleBudget) -> Unreachable:
    nearest: dict[Quantity, float] = {}
    binding: dict[Quantity, tuple[int, ...]] = {}
    for row, least, groups in zip(rows, error.nearest, error.binding, strict=True):
        amount = least + row.amount.constant
        # Every cut lies below the latency: the highest says most of it.
        if amount > nearest.get(row.quantity, -math.inf):
            nearest[row.quantity] = amount
            binding[row.quantity] = groups
    return Unreachable(nearest, binding)
