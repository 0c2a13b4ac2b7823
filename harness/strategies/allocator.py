"""The allocation of least summed sensitivity whose predicted bounds keep the budgets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.allocation.names import Names
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget
from harness.records import AllocationProof, Group, Option, is_study
from harness.sensitivity.curvature import Sensitivities
from harness.strategies.predictor import Costs
from harness.strategies.requirements import Limits
from harness.strategies.tabled import (
    GAP,
    HAIR,
    TIME_LIMIT_S,
    CostTables,
    Quantity,
    Solved,
    Tabled,
    TooHard,
    Unreachable,
)
from harness.units import format_size, format_time

__all__ = [
    "Allotment",
    "Options",
    "Pricing",
    "allocate",
    "full_choice",
    "nearest_limits",
    "tabled_around",
    "values_of",
]

Options = Mapping[str, tuple[Option, ...]]
# Problems solved for one allocation.
MAX_SOLVES = 8
# Times that the nearest limits are looked for from where the last one led.
MAX_MOVES = 3
# Widths of a bound that differ by less than this are the same, far below what it is known to.
SETTLED = 2e-4
# So many binding groups are named.
NAMED = 3


class Pricing(Protocol):
    """What allocations cost: each from scratch, and all of them in tables.

    While ``narrow``, tables are rather to be small than exact.
    """

    groups: tuple[Group, ...]
    narrow: bool

    def costs(self, options: Mapping[str, Option]) -> Costs:
        """The predicted costs of one allocation, independently of any table."""

    def tables(self, options: Options, around: Mapping[str, Option]) -> CostTables:
        """Tables over ``options``; where they cannot be exact, right near ``around``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """One option a group, what it is predicted to cost, and the sum of its sensitivities."""

    choice: Mapping[str, Option]
    loss: float
    costs: Costs
    proof: AllocationProof


def allocate(
    costs: Pricing,
    options: Options,
    sensitivities: Sensitivities,
    limits: Limits,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Allotment:
    """The allocation of least summed sensitivity whose predicted upper bounds keep ``limits``.

    Tables add up to the predicted latency, but not to its upper bound, whose relative width is the
    network's own. So the prediction is held to the limit over that width: first the full network's,
    then that of the last answer, then between two of which one let too much through. Every answer
    is priced from scratch before it counts. InfeasibleBudget, with the nearest limits and the
    groups that bind, if even the cheapest allocation exceeds them.
    """
    return _Search(costs, options, sensitivities, limits, clock).best()


def nearest_limits(
    costs: Pricing, options: Options, sensitivities: Sensitivities, limits: Limits
) -> Limits:
    """``limits``, raised as little as it takes for an allocation to keep them.

    Where raising either is enough, the one that has to be raised by the smaller share is.
    """
    return _Search(costs, options, sensitivities, limits, time.monotonic).reachable()


def values_of(
    names: Sequence[str], options: Options, sensitivities: Sensitivities
) -> tuple[tuple[float, ...], ...]:
    """The sensitivities of ``options``, which may be fewer than were scored; groups as named."""
    return tuple(
        tuple(
            sensitivities.values[name][sensitivities.options[name].index(option)]
            for option in options[name]
        )
        for name in names
    )


def full_choice(names: Sequence[str], options: Options) -> tuple[int, ...]:
    """The widest option of every group, in the first precision that has it."""
    return tuple(
        max(range(len(options[name])), key=lambda j: options[name][j].channels) for name in names
    )


def tabled_around(
    costs: Pricing,
    options: Options,
    values: Sequence[Sequence[float]],
    choice: Sequence[int],
    *,
    gap: float = GAP,
    time_limit_s: float = TIME_LIMIT_S,
) -> Tabled:
    """The problem in tables; where those cannot be exact, right near ``choice``."""
    names = tuple(group.name for group in costs.groups)
    labels = tuple(
        tuple(f"{option.channels} channels, {option.precision}" for option in options[name])
        for name in names
    )
    around = {name: options[name][j] for name, j in zip(names, choice, strict=True)}
    return Tabled(
        values,
        costs.tables(options, around),
        names=Names(names, labels),
        gap=gap,
        time_limit_s=time_limit_s,
    )


def _require_board_options(options: Options) -> None:
    for name, choices in options.items():
        if study := sorted({o.precision for o in choices if is_study(o.precision)}):
            raise ConfigError(
                f"group {name} is offered {', '.join(study)} under a budget of a board, but no "
                "board runs that: it is for studies; offer what available_precisions gives"
            )


class _Search:
    """One allocation problem; a choice is a tuple of option indices, one a group."""

    def __init__(
        self,
        costs: Pricing,
        options: Options,
        sensitivities: Sensitivities,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        _require_board_options(options)
        self.costs = costs
        self.names = tuple(group.name for group in costs.groups)
        self.options = {name: options[name] for name in self.names}
        self.limits = limits
        self.clock = clock
        self.began = clock()
        self.solves = 0
        self.values = values_of(self.names, options, sensitivities)
        self.full = full_choice(self.names, options)
        self.tabled = self._around(self.full)
        # By how much a price exceeds what the tables say: the bound over the prediction.
        self.over = self._over(self.full)
        # The largest such width of the latency that let too much through, with the loss there, and
        # the smallest that did not; and where inexact tables were made around.
        self.failed, self.least = 0.0, -math.inf
        self.fitted = math.inf
        self.seen = {self.full}
        # By how much inexact tables understated what did not fit.
        self.missed = 1.0

    def best(self) -> Allotment:
        """The best allocation found that fits; raises InfeasibleBudget if none does."""
        best: tuple[Solved, Mapping[Quantity, float]] | None = None
        for _ in range(MAX_SOLVES):
            try:
                solved = self._solve()
            except TooHard as error:
                if best is not None:
                    break
                self._narrow(error)
                continue
            except Unreachable as error:
                if best is not None:
                    break
                # The bound may be narrower at the cheap end than where the width was taken.
                solved = self._nearest()
                if not self._fits(solved.choice):
                    raise self._infeasible(error, solved.choice) from error
            fits = self._fits(solved.choice)
            if fits and (best is None or solved.objective < best[0].objective):
                best = solved, dict(self.over)
            if not self._go_on(solved, fits):
                break
        if best is None:
            raise InfeasibleBudget(
                f"no allocation that meets the budget was found in {MAX_SOLVES} attempts, though "
                "one may exist; loosen the budget by a few per cent"
            )
        return self._allotment(*best)

    def reachable(self) -> Limits:
        """The limits, raised as little as it takes."""
        found = []
        # Again from where it leads: there the bound's relative width is another, and tables that
        # are not exact are made anew.
        for _ in range(MAX_MOVES):
            try:
                choice = self._nearest().choice
            except TooHard as error:
                self._narrow(error)
                choice = self._nearest().choice
            found.append(self._price(choice))
            self._move(choice)
        price = min(found, key=self._excess)
        # A hair of room, so that this allocation itself is found within the raised limits.
        room = 1 + 4 * HAIR
        return Limits(
            latency_s=self.limits.latency_s and max(self.limits.latency_s, price.upper_s * room),
            size_bytes=self.limits.size_bytes
            and max(self.limits.size_bytes, price.size_bytes * room),
        )

    def _excess(self, price: Costs) -> float:
        """The largest ratio of a price to its limit."""
        both = ((price.upper_s, self.limits.latency_s), (price.size_bytes, self.limits.size_bytes))
        return max((cost / limit for cost, limit in both if limit is not None), default=0.0)

    def _go_on(self, solved: Solved, fits: bool) -> bool:
        """Whether another problem is worth solving after this answer; it is set up."""
        if not self.tabled.tables.exact:
            if fits and solved.choice in self.seen:
                return False
            self.seen.add(solved.choice)
            if not fits and self.limits.latency_s is not None:
                price = self._price(solved.choice)
                self.missed *= max(1.0, price.upper_s / self.limits.latency_s)
            self._move(solved.choice)
            return True
        if self.limits.latency_s is None:
            return False
        width, found = self.over["latency"], self._over(solved.choice)
        if fits:
            self.fitted = min(self.fitted, width)
        else:
            # Up to the width that excludes it, the answer would be the same.
            failed = max(width, self.limits.latency_s / solved.amounts.latency_s)
            self.failed, self.least = max((self.failed, self.least), (failed, solved.objective))
        if self.failed and self.fitted < math.inf:
            found["latency"] = math.sqrt(self.failed * self.fitted)
        elif not self.failed < found["latency"] < self.fitted:
            return False
        self.over = found
        worth = not fits or solved.objective > self.least * (1 + GAP)
        return worth and self.fitted > self.failed * (1 + SETTLED)

    def _move(self, choice: Sequence[int]) -> None:
        """Make the tables anew around ``choice``."""
        self.solves += self.tabled.solves
        self.tabled = self._around(choice)
        self.over = self._over(choice)
        self.over["latency"] *= self.missed

    def _narrow(self, error: TooHard) -> None:
        """Go on with smaller tables, right near one allocation only; ``error`` if they are it."""
        if self.costs.narrow:
            raise BoardfitError(
                f"{error}; loosen the budget, or allow fewer options (--methods)"
            ) from error
        self.costs.narrow = True
        self._move(self.full)

    def _around(self, choice: Sequence[int]) -> Tabled:
        return tabled_around(self.costs, self.options, self.values, choice)

    def _solve(self) -> Solved:
        return self.tabled.minimise(*self._limits())

    def _nearest(self) -> Solved:
        return self.tabled.nearest(*self._limits())[0]

    def _limits(self) -> tuple[float | None, float | None]:
        """What the tables' sums are held to."""
        latency_s, size_bytes = self.limits.latency_s, self.limits.size_bytes
        return (
            None if latency_s is None else latency_s / self.over["latency"],
            None if size_bytes is None else size_bytes / self.over["size"],
        )

    def _over(self, choice: Sequence[int]) -> dict[Quantity, float]:
        price, amounts = self._price(choice), self.tabled.amounts(choice)
        return {
            "latency": price.upper_s / amounts.latency_s,
            "size": price.size_bytes / amounts.size_bytes,
        }

    def _options_of(self, choice: Sequence[int]) -> dict[str, Option]:
        return {
            name: options[j]
            for (name, options), j in zip(self.options.items(), choice, strict=True)
        }

    def _price(self, choice: Sequence[int]) -> Costs:
        return self.costs.costs(self._options_of(choice))

    def _fits(self, choice: Sequence[int]) -> bool:
        return self._excess(self._price(choice)) <= 1

    def _allotment(self, solved: Solved, over: Mapping[Quantity, float]) -> Allotment:
        return Allotment(
            choice=self._options_of(solved.choice),
            loss=solved.objective,
            costs=self._price(solved.choice),
            proof=AllocationProof(
                method=solved.method,
                options=tuple(len(options) for options in self.options.values()),
                objective=solved.objective,
                bound=solved.bound,
                gap=solved.gap,
                prices={
                    quantity: price / over[quantity] for quantity, price in solved.prices.items()
                },
                solves=self.solves + self.tabled.solves,
                wall_s=self.clock() - self.began,
                exact=self.tabled.tables.exact,
            ),
        )

    def _infeasible(self, error: Unreachable, choice: Sequence[int]) -> InfeasibleBudget:
        """``error`` in terms of the bounds; ``choice`` is the best within the nearest limits."""
        over = self._over(choice)
        wanted: tuple[tuple[Quantity, float | None, Callable[[float], str]], ...] = (
            ("latency", self.limits.latency_s, format_time),
            ("size", self.limits.size_bytes, format_size),
        )
        reach, nearest, binding = [], [], []
        for quantity, limit, text in wanted:
            if limit is None:
                continue
            least = error.nearest[quantity] * over[quantity]
            groups = tuple(self.names[group] for group in error.binding[quantity])
            nearest.append(least)
            binding.append(error.binding[quantity])
            if least > limit:
                reach.append(
                    f"{quantity}: at most {text(limit)} asked, {text(least)} is the least that "
                    f"the options reach, most of it in {_listed(groups)}"
                )
        return InfeasibleBudget(
            f"no allocation meets the budget ({'; '.join(reach)}); "
            "loosen it, or allow more methods",
            nearest=tuple(nearest),
            binding=tuple(binding),
        )


def _listed(groups: Sequence[str]) -> str:
    more = len(groups) - NAMED
    return ", ".join(groups[:NAMED]) + (f" and {more} more groups" if more > 0 else "")
