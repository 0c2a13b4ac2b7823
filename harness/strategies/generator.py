"""Options for every group, and the allocation that picks one of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.allocation import knapsack
from harness.errors import ConfigError, InfeasibleBudget
from harness.records import Group, Option, Strategy, StrategyEntry, is_study
from harness.sensitivity.curvature import Sensitivities
from harness.strategies.predictor import Costs, NetworkCosts
from harness.strategies.requirements import Limits
from harness.units import format_size, format_time

__all__ = ["Allotment", "allocate", "nearest_limits", "options_for", "restrict", "strategy"]

# A group keeps at least this share of its channels: below it, curvature at the trained weights
# says nothing of the loss.
SMALLEST_KEEP = 0.25
# Linearised problems solved from one start; they settle in three or four.
MAX_LINEARISATIONS = 12
Options = Mapping[str, tuple[Option, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """One option a group, what it is predicted to cost, and the sum of its sensitivities."""

    choice: Mapping[str, Option]
    loss: float
    costs: Costs


def options_for(
    groups: Sequence[Group], *, precisions: Sequence[str], step: int, prune: bool = True
) -> dict[str, tuple[Option, ...]]:
    """Keep ratios at multiples of ``step`` channels times the precisions the board can use."""
    result = {}
    for group in groups:
        widths = [group.channels]
        if prune and group.prunable:
            smallest = max(step, SMALLEST_KEEP * group.channels)
            widths += [n for n in range(step, group.channels, step) if n >= smallest]
        result[group.name] = tuple(
            Option(channels=width, precision=precision)
            for width in sorted(widths)
            for precision in precisions
        )
    return result


def restrict(
    options: Options, groups: Sequence[Group], *, prune: bool, precisions: Sequence[str]
) -> dict[str, tuple[Option, ...]]:
    """The part of ``options`` that a single method has: full widths only, or fp32 only."""
    return {
        group.name: tuple(
            option
            for option in options[group.name]
            if option.precision in precisions and (prune or option.channels == group.channels)
        )
        for group in groups
    }


def allocate(
    costs: NetworkCosts, options: Options, sensitivities: Sensitivities, limits: Limits
) -> Allotment:
    """The allocation of least summed sensitivity whose predicted upper bounds keep ``limits``.

    A layer's cost depends on its neighbours' options too. The knapsack is separable, so it is
    solved on costs linearised around the last solution until that repeats itself, from several
    starts, and every solution is priced exactly before it counts. InfeasibleBudget, with the
    nearest limits and what binds, if even the cheapest allocation exceeds them.
    """
    search = _Search(costs, options, sensitivities, limits)
    best: tuple[int, ...] | None = None
    for start in search.starts():
        found = search.linearise_from(start)
        if found is not None and (best is None or search.loss(found) < search.loss(best)):
            best = found
    if best is None:
        cheapest = search.cheapest()
        if not search.fits(cheapest):
            raise _infeasible(limits, search.price(cheapest))
        best = cheapest
    return search.allotment(search.polish(best))


def nearest_limits(
    costs: NetworkCosts, options: Options, sensitivities: Sensitivities, limits: Limits
) -> Limits:
    """``limits``, each raised where needed to what the cheapest allocation reaches."""
    search = _Search(costs, options, sensitivities, limits)
    price = search.price(search.cheapest())
    # A hair of room, so that the cheapest allocation itself is within the raised limits.
    return Limits(
        latency_s=limits.latency_s and max(limits.latency_s, price.upper_s * (1 + 1e-9)),
        size_bytes=limits.size_bytes and max(limits.size_bytes, price.size_bytes * (1 + 1e-9)),
    )


def strategy(
    allotment: Allotment,
    groups: Sequence[Group],
    sensitivities: Sensitivities,
    *,
    label: str,
    epochs: int,
    seed: int,
) -> Strategy:
    """The strategy file's content for ``allotment``: kept channels and precision a group."""
    entries = tuple(
        StrategyEntry(
            group=group.name,
            kept=sensitivities.kept(group.name, allotment.choice[group.name].channels),
            of=group.channels,
            precision=allotment.choice[group.name].precision,
        )
        for group in groups
    )
    methods = []
    if any(len(entry.kept) < entry.of for entry in entries):
        methods += ["prune"] + (["distill"] if epochs else [])
    if any(entry.precision == "int8" for entry in entries):
        methods.append("quantize")
    return Strategy(
        label=label,
        methods=tuple(methods),
        entries=entries,
        epochs=epochs if "distill" in methods else 0,
        seed=seed,
    )


def _require_board_options(options: Options) -> None:
    for name, choices in options.items():
        if study := sorted({o.precision for o in choices if is_study(o.precision)}):
            raise ConfigError(
                f"group {name} is offered {', '.join(study)} under a budget of a board, but no "
                "board runs that: it is for studies; offer what available_precisions gives"
            )


def _infeasible(limits: Limits, cheapest: Costs) -> InfeasibleBudget:
    reach, nearest = [], []
    if limits.latency_s is not None:
        nearest.append(cheapest.upper_s)
        if cheapest.upper_s > limits.latency_s:
            reach.append(
                f"latency: at most {format_time(limits.latency_s)} asked, "
                f"{format_time(cheapest.upper_s)} is the least that the options reach"
            )
    if limits.size_bytes is not None:
        nearest.append(cheapest.size_bytes)
        if cheapest.size_bytes > limits.size_bytes:
            reach.append(
                f"size: at most {format_size(limits.size_bytes)} asked, "
                f"{format_size(cheapest.size_bytes)} is the least that the options reach"
            )
    return InfeasibleBudget(
        f"no allocation meets the budget ({'; '.join(reach)}); loosen it, or allow more methods",
        nearest=tuple(nearest),
    )


class _Search:
    """One allocation problem; a choice is a tuple of option indices, one a group."""

    def __init__(
        self, costs: NetworkCosts, options: Options, sensitivities: Sensitivities, limits: Limits
    ) -> None:
        self.costs = costs
        self.names = tuple(group.name for group in costs.groups)
        self.options = tuple(options[name] for name in self.names)
        self.limits = limits
        _require_board_options(options)
        # The sensitivities may cover more options than are allowed here.
        self.values = tuple(
            tuple(
                sensitivities.values[name][sensitivities.options[name].index(option)]
                for option in options[name]
            )
            for name in self.names
        )

    def options_of(self, choice: Sequence[int]) -> dict[str, Option]:
        return {
            name: options[j]
            for name, options, j in zip(self.names, self.options, choice, strict=True)
        }

    def price(self, choice: Sequence[int]) -> Costs:
        return self.costs.costs(self.options_of(choice))

    def loss(self, choice: Sequence[int]) -> float:
        return sum(values[j] for values, j in zip(self.values, choice, strict=True))

    def spent(self, choice: Sequence[int]) -> tuple[float, ...]:
        price = self.price(choice)
        both = ((self.limits.latency_s, price.upper_s), (self.limits.size_bytes, price.size_bytes))
        return tuple(cost for limit, cost in both if limit is not None)

    @property
    def budgets(self) -> tuple[float, ...]:
        both = (self.limits.latency_s, self.limits.size_bytes)
        return tuple(limit for limit in both if limit is not None)

    def fits(self, choice: Sequence[int]) -> bool:
        return all(
            cost <= limit for cost, limit in zip(self.spent(choice), self.budgets, strict=True)
        )

    def allotment(self, choice: Sequence[int]) -> Allotment:
        return Allotment(
            choice=self.options_of(choice), loss=self.loss(choice), costs=self.price(choice)
        )

    def starts(self) -> list[tuple[int, ...]]:
        """For each precision, the full, the middle and the smallest width of every group."""
        precisions = sorted({option.precision for options in self.options for option in options})
        result = []
        for precision in precisions:
            for share in (1.0, 0.5, 0.0):
                choice = []
                for options in self.options:
                    own = [j for j, option in enumerate(options) if option.precision == precision]
                    own = own or list(range(len(options)))
                    choice.append(own[round(share * (len(own) - 1))])
                result.append(tuple(choice))
        return result

    def moved(self, choice: Sequence[int], group: int, option: int) -> tuple[int, ...]:
        return (*choice[:group], option, *choice[group + 1 :])

    def linearise_from(self, choice: tuple[int, ...]) -> tuple[int, ...] | None:
        """The best allocation found that fits, or None."""
        best: tuple[int, ...] | None = None
        seen = set()
        for _ in range(MAX_LINEARISATIONS):
            if choice in seen:
                break
            seen.add(choice)
            here = self.spent(choice)
            deltas = [
                [
                    [cost - now for cost, now in zip(self.spent(move), here, strict=True)]
                    for move in (self.moved(choice, l, j) for j in range(len(options)))
                ]
                for l, options in enumerate(self.options)  # noqa: E741  # l as in the formulas
            ]
            tables = [
                [[option[b] for option in group] for group in deltas] for b in range(len(here))
            ]
            room = [limit - now for limit, now in zip(self.budgets, here, strict=True)]
            try:
                solved = knapsack.solve(self.values, tables, room)
            except InfeasibleBudget:
                choice = self.cheaper(choice)
                continue
            choice = tuple(solved.choice)
            if self.fits(choice) and (best is None or self.loss(choice) < self.loss(best)):
                best = choice
        return best

    def cheaper(self, choice: Sequence[int]) -> tuple[int, ...]:
        """Every group in turn moved to its option that exceeds the budgets least."""
        best = tuple(choice)
        for group, options in enumerate(self.options):
            best = min((self.moved(best, group, j) for j in range(len(options))), key=self._excess)
        return best

    def cheapest(self) -> tuple[int, ...]:
        """An allocation that no change of one group makes cheaper."""
        candidates = []
        for choice in self.starts():
            while (better := self.cheaper(choice)) != choice:
                choice = better
            candidates.append(choice)
        return min(candidates, key=self._excess)

    def _excess(self, choice: Sequence[int]) -> tuple[float, float]:
        shares = [c / limit for c, limit in zip(self.spent(choice), self.budgets, strict=True)]
        return max(shares), sum(shares)

    def polish(self, choice: tuple[int, ...]) -> tuple[int, ...]:
        """``choice`` improved by exact single moves until none helps."""
        while True:
            moves = [
                move
                for group, values in enumerate(self.values)
                for j in range(len(values))
                if values[j] < values[choice[group]]
                and self.fits(move := self.moved(choice, group, j))
            ]
            if not moves:
                return choice
            choice = min(moves, key=self.loss)
