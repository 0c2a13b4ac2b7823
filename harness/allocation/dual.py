"""The Lagrangian dual of coupled budgets: a proven bound, prices, and first choices.

With a price on every unit of every budget the budgets may be dropped: the least of objective plus
priced costs, less what the budgets are worth, is below the objective of any choice that keeps
them. It is a concave function of the prices, and the best prices give the best bound. For one
budget they are found by chords between a choice within it and one beyond it; for several by
cutting planes.

Sources: Geoffrion, *Lagrangean relaxation for integer programming* (1974); Kelley, *The
cutting-plane method for solving convex programs* (1960); Everett (1963) for the chords' slopes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.optimize

from harness.allocation.frontier import Path

__all__ = ["Dual", "maximise"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

# Each chord or cut asks the path once. Ten chords, or twenty cuts a budget, are usual; what is not
# reached then is only a weaker bound.
_CHORDS = 60
_CUTS = 150
# A bound is not improved for less than this of what objectives differ by.
_CLOSE = 1e-7
# Prices beyond what the objective's whole range is worth by so much prove nothing new.
_STEEPEST = 1e4


@dataclass(frozen=True, slots=True)
class Dual:
    """The best bound found, its prices, and the picks met on the way.

    All is in the path's units. No choice within the budgets has an objective below ``bound``.
    """

    prices: Floats
    bound: float
    picks: tuple[Ints, ...]


class _Asked:
    """What the path answered so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = -np.inf
        self.prices = np.zeros(len(path.budgets))
        self.picks: list[Ints] = []
        self.sums: list[Floats] = []

    def ask(self, weights: Floats) -> Floats:
        """The layers' sums with the least weighted sum."""
        to_come = self.path.backwards(weights)
        picks, sums = self.path.walk(weights, to_come)
        self.picks.append(picks)
        self.sums.append(sums)
        if weights[0] == 1.0:
            prices = weights[1:]
            bound = float(to_come[0][0] - prices @ self.path.budgets)
            bound -= self.path.rounding(prices)
            if bound > self.best:
                self.best, self.prices = bound, prices
        return sums

    def dual(self) -> Dual:
        return Dual(self.prices, self.best, tuple(self.picks))


def maximise(path: Path, out_of_time: Callable[[], bool]) -> Dual | None:
    """The best bound; None where no choice keeps every budget, as far as the dual can tell."""
    asked = _Asked(path)
    free = asked.ask(np.concatenate(([1.0], np.zeros(len(path.budgets)))))
    if (free[1:] <= path.budgets).all():
        return asked.dual()
    cheapest = []
    for b, budget in enumerate(path.budgets):
        weights = np.zeros(1 + len(path.budgets))
        weights[1 + b] = 1.0
        cheapest.append(asked.ask(weights))
        if cheapest[-1][1 + b] > budget:
            return None
    if len(path.budgets) == 1:
        _chords(asked, cheapest[0], free, out_of_time)
    elif not _cuts(asked, out_of_time):
        return None
    return asked.dual()


def _chords(asked: _Asked, low: Floats, high: Floats, out_of_time: Callable[[], bool]) -> None:
    """One budget: ``low`` is within it, ``high`` beyond it."""
    budget = float(asked.path.budgets[0])
    for _ in range(_CHORDS):
        price = max(float((low[0] - high[0]) / (high[1] - low[1])), 0.0)
        middle = asked.ask(np.array([1.0, price]))
        below = low[0] + price * low[1] - (middle[0] + price * middle[1])
        size = abs(low[0]) + abs(high[0]) + price * (abs(low[1]) + abs(high[1]))
        if not below > 1e-13 * size or out_of_time():
            return
        if middle[1] <= budget:
            low = middle
        else:
            high = middle


def _cuts(asked: _Asked, out_of_time: Callable[[], bool]) -> bool:
    """Several budgets; False where the bound exceeds whatever a choice could have."""
    path = asked.path
    budgets = path.budgets
    most = sum(float(step.amounts[0].max()) for step in path.steps)
    least = float(asked.sums[0][0])
    height = max(most - least, 1e-12 * (abs(most) + abs(least)), 1e-60)
    sums = np.array(asked.sums)
    unit = height / np.maximum(np.ptp(sums[:, 1:], axis=0), 1e-12 * np.abs(budgets) + 1e-60)
    for _ in range(_CUTS):
        if asked.best > most + path.rounding(asked.prices):
            return False
        if out_of_time():
            return True
        sums = np.array(asked.sums)
        # Variables: the bound above ``least``, and prices in ``unit``, all relative to ``height``.
        over = (sums[:, 1:] - budgets) * unit / height
        rows = np.column_stack((np.ones(len(sums)), -over))
        found = scipy.optimize.linprog(
            np.concatenate(([-1.0], np.zeros(len(budgets)))),
            A_ub=rows,
            b_ub=(sums[:, 0] - least) / height,
            bounds=[(None, None)] + [(0.0, _STEEPEST)] * len(budgets),
            method="highs",
        )
        if found.x is None:
            return True
        prices = np.maximum(found.x[1:], 0.0) * unit
        asked.ask(np.concatenate(([1.0], prices)))
        if found.x[0] * height + least - asked.best <= _CLOSE * height:
            break
    return not asked.best > most + path.rounding(asked.prices)
