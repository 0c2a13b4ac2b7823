"""What any latency costs in sensitivity, by the exact allocation and by two simpler ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.records import Approach, Front, FrontCandidate, FrontPoint, Option
from harness.sensitivity.curvature import Sensitivities
from harness.strategies import baselines
from harness.strategies.allocator import Options, Pricing, full_choice, tabled_around, values_of
from harness.strategies.requirements import Limits
from harness.strategies.tabled import HAIR, Tabled, TooHard

__all__ = ["trade_off"]

# Limits on the latency between the least that is reached and the full network's.
POINTS = 15
# The whole picture may take so long; limits that are not come to are left out, and that is said.
TIME_LIMIT_S = 10.0
# Relative gap and seconds of one exact solve: what a picture can show.
GAP, SOLVE_S = 1e-3, 2.0
# Predictions from tables and from scratch agree to about 1e-9.
SAME = 1 + 1e-6


def trade_off(
    costs: Pricing,
    options: Options,
    sensitivities: Sensitivities,
    limits: Limits,
    *,
    candidates: Mapping[str, Mapping[str, Option]],
    points: int = POINTS,
    time_limit_s: float = TIME_LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> Front:
    """The front from the cheapest allocation to the best of any latency, and ``candidates``.

    Every allocation is held to the size limit (raised where it cannot be reached) and to one of
    ``points`` limits on the prediction of the latency, in even ratios. Every one is priced from
    scratch. ``candidates`` are the allocations of networks by their labels.
    """
    deadline = clock() + time_limit_s
    names = tuple(group.name for group in costs.groups)
    if all(len(options[name]) == 1 for name in names):
        return Front(note="No group had more than one option: there was nothing to allocate.")
    values = values_of(names, options, sensitivities)
    full = full_choice(names, options)
    # Tables that are not exact are to be right near what was built.
    built = list(candidates.values())[-1:]
    near = tuple(options[n].index(built[0][n]) for n in names) if built else full
    try:
        tabled, least_s, most_s, size_bytes = _ends(costs, options, values, near, limits)
    except TooHard as error:
        return Front(note=f"No front was worked out: {error}.", limit_s=limits.latency_s)
    placed = tuple(
        FrontCandidate(
            label=label,
            latency_s=costs.costs(allocation).latency_s,
            loss=_loss(allocation, sensitivities),
        )
        for label, allocation in candidates.items()
    )
    asked = np.geomspace(least_s, most_s, points).tolist()
    search = _Front(costs, names, options, tabled, full, size_bytes)
    found: list[FrontPoint] = []
    reached = 0
    for i in _coarse_to_fine(points):
        if clock() >= deadline:
            break
        found += search.at(asked[i], out_of_time=lambda: clock() >= deadline)
        reached += 1
    return Front(
        points=tuple(sorted(found, key=lambda point: (point.limit_s, point.approach))),
        candidates=placed,
        limit_s=limits.latency_s,
        size_limit_bytes=size_bytes,
        note=""
        if reached == points
        else f"Of the front, {reached} of {points} limits were solved in {time_limit_s:.0f} s.",
    )


def _ends(
    costs: Pricing,
    options: Options,
    values: Sequence[Sequence[float]],
    near: Sequence[int],
    limits: Limits,
) -> tuple[Tabled, float, float, float | None]:
    """The problem, the limits on the latency between which it matters, and the size it is held to.

    With narrow tables where exact ones are too hard.
    """
    tabled = tabled_around(costs, options, values, near, gap=GAP, time_limit_s=SOLVE_S)
    try:
        # A limit that nothing keeps, so that it is raised to the least that is reached.
        unheard_of_s = 1e-6 * tabled.amounts(near).latency_s
        _, least_s, size_bytes = tabled.nearest(unheard_of_s, limits.size_bytes)
        assert least_s is not None
        most_s = tabled.minimise(None, size_bytes).amounts.latency_s
        # Somewhere in between it is hardest. Where the size leaves one allocation alone, the most
        # is a hair below the least, which was raised until it was reached.
        tabled.minimise(math.sqrt(least_s * max(least_s, most_s)), size_bytes)
    except TooHard:
        if costs.narrow:
            raise
        costs.narrow = True
        return _ends(costs, options, values, near, limits)
    # A looser limit than the last, and the hair taken off it, buys nothing.
    return tabled, least_s, max(least_s, most_s * (1 + 2 * HAIR)), size_bytes


def _coarse_to_fine(count: int) -> list[int]:
    """The indices below ``count``, every one of which halves what the ones before it leave open."""
    order: dict[int, None] = {}
    step = 1 << count.bit_length()
    while step:
        order |= dict.fromkeys(range(0, count, step))
        step //= 2
    return list(order)


def _loss(allocation: Mapping[str, Option], sensitivities: Sensitivities) -> float:
    return sum(
        sensitivities.values[name][sensitivities.options[name].index(option)]
        for name, option in allocation.items()
    )


class _Front:
    """The allocations of all approaches for one limit after another."""

    def __init__(
        self,
        costs: Pricing,
        names: Sequence[str],
        options: Options,
        tabled: Tabled,
        full: Sequence[int],
        size_bytes: float | None,
    ) -> None:
        self._costs = costs
        self._names = names
        self._options = options
        self._tabled = tabled
        self._full = full
        self._size_bytes = size_bytes
        self._greedy = baselines.Greedy(tabled, full)

    def at(self, limit_s: float, *, out_of_time: Callable[[], bool]) -> list[FrontPoint]:
        """One point an approach, as far as each finds an allocation in time."""
        size = self._size_bytes
        try:
            # The least that is reached was found to a hair more than it.
            solved = self._tabled.nearest(limit_s, size)[0]
        except TooHard:
            solved = None
        choices: dict[Approach, Sequence[int] | None] = {
            "coupled": None if solved is None else solved.choice,
            "separable": baselines.separable(
                self._tabled, self._full, latency_s=limit_s, size_bytes=size
            ),
            "greedy": self._greedy.allocate(
                latency_s=limit_s, size_bytes=size, out_of_time=out_of_time
            ),
        }
        # Costs that are right near one allocation only prove nothing of the others.
        gap = solved.gap if solved and self._tabled.tables.exact else None
        return [
            self._point(approach, limit_s, choice, gap if approach == "coupled" else None)
            for approach, choice in choices.items()
            if choice is not None
        ]

    def _point(
        self, approach: Approach, limit_s: float, choice: Sequence[int], gap: float | None
    ) -> FrontPoint:
        price = self._costs.costs(
            {name: self._options[name][j] for name, j in zip(self._names, choice, strict=True)}
        )
        size = self._size_bytes
        return FrontPoint(
            approach=approach,
            limit_s=limit_s,
            latency_s=price.latency_s,
            size_bytes=price.size_bytes,
            loss=self._tabled.loss(choice),
            fits=price.latency_s <= limit_s * SAME
            and (size is None or price.size_bytes <= size * SAME),
            gap=gap,
        )
