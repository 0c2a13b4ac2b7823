"""Allocations within limits, from tables of costs that are made once for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.allocation import coupled
from harness.allocation.coupled import Table
from harness.allocation.names import Names
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget
from harness.records import Option
from harness.sensitivity.results import Sensitivities
from harness.strategies.allocator import Options, values_of
from harness.strategies.predictor import NetworkCosts
from harness.strategies.structure import LARGEST_SCOPE
from harness.strategies.tabled import HAIR, MAX_CUTS
from harness.strategies.tables import NetworkTables, Sum, network_tables

__all__ = ["Allotter", "Allowed", "Amount", "Choice", "Limits", "Reached"]

Ints = npt.NDArray[np.intp]
# What tables add up: the parameters are those with batch norm folded into the layers.
Amount = Literal["latency", "size", "macs", "parameters"]
Limits = Mapping[Amount, float]
Choice = Mapping[str, Option]
# Of each group the indices of the options that may be taken.
Allowed = Sequence[Sequence[int]]
# Below this gap sensitivities, which are estimates, cannot tell two allocations apart; and seconds
# of one problem. Tenths of a second are the rule.
GAP, SOLVE_S = 1e-3, 2.0
# Problems solved until the latency's bound, whose width is each allocation's own, keeps its limit.
MAX_SOLVES = 6
# A least latency that is only nearly known is raised by so much until an allocation keeps it.
ROOM = (1e-6, 1e-3, 0.01, 0.05, 0.2)


@dataclass(frozen=True, slots=True)
class Reached:
    """The allocation that takes the least of one quantity.

    ``binding`` are the indices of the groups where most of it is spent. ``alone``: other limits
    were set aside, because nothing keeps them.
    """

    choice: Choice
    binding: tuple[int, ...]
    alone: bool


class Allotter:
    """Solves for the least summed sensitivity of one network within any limits.

    Limits on the latency are those of its upper bound. Where exact tables of the costs are too
    large they hold near the whole network, and limits are kept by looking again.
    """

    def __init__(
        self,
        costs: NetworkCosts,
        options: Options,
        sensitivities: Sensitivities,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.costs, self.clock = costs, clock
        self.names = tuple(group.name for group in costs.groups)
        self.options = {name: options[name] for name in self.names}
        self.values = values_of(self.names, self.options, sensitivities)
        self.tables: NetworkTables = network_tables(
            costs, self.options, reference=self.full(), largest_scope=LARGEST_SCOPE
        )
        self._exact = self._in_full_precision()
        self._labels = tuple(
            tuple(f"{option.channels} channels, {option.precision}" for option in own)
            for own in self.options.values()
        )

    def full(self) -> dict[str, Option]:
        """Every group at its full width in the first precision that has it."""
        return {
            name: max(own, key=lambda option: option.channels) for name, own in self.options.items()
        }

    @property
    def width(self) -> float:
        """By how much the bound of the whole network's latency exceeds its prediction."""
        return self._width(self.full())

    def allowed(self, may: Callable[[str, Option], bool]) -> tuple[tuple[int, ...], ...]:
        """The options that ``may`` be taken, by group; ConfigError where a group has none."""
        found = []
        for name, own in self.options.items():
            found.append(tuple(j for j, option in enumerate(own) if may(name, option)))
            if not found[-1]:
                raise ConfigError(
                    f"group {name} has no option left; allow another method or precision for it"
                )
        return tuple(found)

    def amount(self, quantity: Amount, choice: Choice) -> float:
        """What ``choice`` takes by the tables; of the latency its upper bound."""
        if quantity == "latency":
            return self.costs.costs(choice).upper_s
        at = self._at(choice)
        if quantity == "macs":
            return self.tables.macs.at(at)
        if quantity == "size":
            return self.tables.size_bytes.at(at)
        exact = [own[j] for own, j in zip(self._exact, at, strict=True)]
        return self._parameters(self.tables.size_bytes.at(exact))

    def best(self, allowed: Allowed, limits: Limits) -> dict[str, Option]:
        """The allocation of least summed sensitivity within ``limits``.

        Tables add up to predictions; the latency's bound is wider by a factor that is each
        allocation's own. It is first taken to be the widest options', then that of an answer which
        does not keep the limit. No allocation that keeps it by the largest of these is milder.
        InfeasibleBudget where there is none, BoardfitError where none was found in time.
        """
        width = self._width(self._choice([own[-1] for own in allowed]))
        fitting: dict[str, Option] | None = None
        for _ in range(MAX_SOLVES):
            try:
                choice = self._within(allowed, limits, width)
            except InfeasibleBudget:
                # The bound is narrower where there is less to run.
                least = self._narrowest(allowed)
                if fitting is not None or least >= width * (1 - 1e-9):
                    if fitting is not None:
                        return fitting
                    raise
                width = least
                continue
            price = self.costs.costs(choice)
            if price.upper_s <= limits.get("latency", math.inf):
                fitting = choice
                break
            width = max(width, price.upper_s / price.latency_s) * (1 + 1e-6)
        if fitting is None:
            raise BoardfitError(
                "no allocation was found whose bound keeps the limit on the latency"
            )
        return fitting

    def least(self, quantity: Amount, allowed: Allowed, limits: Limits) -> Reached:
        """The allocation that takes least of ``quantity`` within the other ``limits``.

        Of the latency that is the least prediction, whatever its bound. BoardfitError where it was
        not found in time.
        """
        held = {other: limit for other, limit in limits.items() if other != quantity}
        nearest, binding, alone = self._nearest(quantity, allowed, held)
        last: BoardfitError | None = None
        for room in ROOM:
            try:
                bounds = {**({} if alone else held), quantity: nearest * (1 + room)}
                if quantity == "latency":
                    return Reached(self._within(allowed, bounds, 1.0), binding, alone)
                return Reached(self.best(allowed, bounds), binding, alone)
            except BoardfitError as error:
                last = error
        assert last is not None
        raise last

    def loss(self, choice: Choice) -> float:
        """The summed sensitivity of ``choice``."""
        return math.fsum(self.losses(choice))

    def losses(self, choice: Choice) -> list[float]:
        """The sensitivity of each group's option, in the groups' order."""
        return [own[j] for own, j in zip(self.values, self._at(choice), strict=True)]

    def _nearest(
        self, quantity: Amount, allowed: Allowed, held: Limits
    ) -> tuple[float, tuple[int, ...], bool]:
        """The least of a quantity, where it is spent, and whether others were set aside."""
        width = self._narrowest(allowed)
        # Nothing keeps a limit of nothing, and the error says what is the least.
        rows = self._rows(allowed, {quantity: 0.0, **held}, width)
        try:
            self._solved(allowed, rows)
        except InfeasibleBudget as error:
            least = [
                near + amount.constant
                for near, (_, amount, _) in zip(error.nearest, rows, strict=True)
            ]
            own = [i for i, (name, _, _) in enumerate(rows) if name == quantity]
            # Every cut lies below the latency: the highest says most.
            best = max(own, key=least.__getitem__)
            others = [i for i in range(len(rows)) if i not in own]
            alone = any(least[i] > rows[i][2] * (1 + HAIR) for i in others)
            found = least[best] if quantity != "parameters" else self._parameters(least[best])
            return found, error.binding[best], alone
        raise BoardfitError(f"a {quantity} of nothing was reached; report this network")

    def _within(self, allowed: Allowed, limits: Limits, width: float) -> dict[str, Option]:
        cuts: list[Sum] = []
        limit = limits.get("latency", math.inf) / width
        for _ in range(MAX_CUTS):
            rows = self._rows(allowed, limits, width, cuts)
            picked = self._solved(allowed, rows)
            at = [own[j] for own, j in zip(allowed, picked, strict=True)]
            if self.tables.linear or self.tables.latency_s(at) <= limit * (1 + HAIR):
                break
            cuts.append(self.tables.cut(at))
        return self._choice(at)

    def _rows(
        self, allowed: Allowed, limits: Limits, width: float, cuts: Sequence[Sum] = ()
    ) -> list[tuple[Amount, Sum, float]]:
        """Of every limit the sum that it is held to, over the options that are allowed."""
        rows: list[tuple[Amount, Sum, float]] = []
        for quantity, limit in limits.items():
            if quantity == "latency":
                whole = self.tables.cut([own[-1] for own in allowed])
                rows += [
                    (quantity, self._only(cut, allowed), limit / width) for cut in (whole, *cuts)
                ]
            elif quantity == "size":
                rows.append((quantity, self._only(self.tables.size_bytes, allowed), limit))
            elif quantity == "macs":
                rows.append((quantity, self._only(self.tables.macs, allowed), limit))
            else:
                exact = [[e[j] for j in own] for e, own in zip(self._exact, allowed, strict=True)]
                size = self._only(self.tables.size_bytes, exact)
                rows.append((quantity, size, self._size_of(limit)))
        return rows

    def _solved(
        self, allowed: Allowed, rows: Sequence[tuple[Amount, Sum, float]]
    ) -> tuple[int, ...]:
        found = coupled.solve(
            [[values[j] for j in own] for values, own in zip(self.values, allowed, strict=True)],
            [amount.tables for _, amount, _ in rows],
            [limit * (1 - HAIR) - amount.constant for _, amount, limit in rows],
            names=Names(
                self.names,
                tuple(
                    tuple(labels[j] for j in own)
                    for labels, own in zip(self._labels, allowed, strict=True)
                ),
            ),
            gap=GAP,
            time_limit_s=SOLVE_S,
            clock=self.clock,
        )
        return found.choice

    def _only(self, amount: Sum, allowed: Allowed) -> Sum:
        """``amount`` over the options that are ``allowed``: the same tables, fewer states."""
        sizes = [len(own) for own in self.options.values()]
        return Sum(
            amount.constant,
            tuple(
                Table(
                    table.groups,
                    table.costs,
                    tuple(
                        table.state(axis, sizes[group])[list(allowed[group])]
                        for axis, group in enumerate(table.groups)
                    ),
                )
                for table in amount.tables
            ),
        )

    def _in_full_precision(self) -> list[list[int]]:
        """Of every option the index of the same width in fp32 (or in its own, if there is none)."""
        found = []
        for own in self.options.values():
            index = {option: j for j, option in enumerate(own)}
            found.append(
                [
                    index.get(Option(channels=option.channels, precision="fp32"), j)
                    for j, option in enumerate(own)
                ]
            )
        return found

    def _parameters(self, size_bytes: float) -> float:
        """Parameters of a network in fp32 whose file has this size."""
        return (size_bytes / self.costs.size_scale - self.costs.other_bytes) / 4

    def _size_of(self, parameters: float) -> float:
        return (4 * parameters + self.costs.other_bytes) * self.costs.size_scale

    def _at(self, choice: Choice) -> list[int]:
        return [own.index(choice[name]) for name, own in self.options.items()]

    def _choice(self, at: Sequence[int]) -> dict[str, Option]:
        return {name: own[j] for (name, own), j in zip(self.options.items(), at, strict=True)}

    def _width(self, choice: Choice) -> float:
        """By how much the latency's bound exceeds what the tables say."""
        return self.costs.costs(choice).upper_s / self.tables.latency_s(self._at(choice))

    def _narrowest(self, allowed: Allowed) -> float:
        """The narrowest bound, over the prediction, of a few allocations that are far apart."""
        ends = [[own[0] for own in allowed], [own[-1] for own in allowed]]
        middle = [[own[len(own) // 2] for own in allowed], [own[-2:][0] for own in allowed]]
        return min(self._width(self._choice(at)) for at in (*ends, *middle))
