"""The search for a coupled allocation: a bound, a first choice, fewer options, then labels.

Passes keep more and more labels until the gap is closed or time is up. Each pass begins with the
best choice known, and the options that its objective and the bound rule out are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.allocation.dual import Dual, maximise
from harness.allocation.frontier import Path, neighbours, order, widths
from harness.allocation.labels import Ahead, Swept, sweep
from harness.allocation.local import improved
from harness.allocation.tables import Coupling

__all__ = ["Answer", "Search", "narrow"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

# Labels kept in a step, pass by pass. A small number makes good choices soon, which the next pass
# then has to beat.
_LIMITS = (300, 3_000, 30_000, 200_000)
# A gap of this, relative to the objective, is not worth another pass.
_CLOSE = 1e-9
# Labels are judged at the best prices, and at these multiples of them: what is left of the budget
# differs from label to label, and so does the price that tells most.
_MULTIPLES = (0.8, 1.25, 0.6, 1.6, 0.3, 3.0)
_NUDGES = (0.7, 1.4)
# Entries of all steps together (8 bytes a layer each). Beyond that the frontier is too wide.
_MAX_ENTRIES = 16_000_000
# The prices are looked for again once so large a share of the options is gone.
_WORTH = 0.15


def narrow(coupling: Coupling) -> tuple[int, ...] | None:
    """The order to take the classes in; None where the frontier is too wide for labels."""
    classes = order(coupling)
    sizes = [len(options) for options in coupling.kept]
    entries = math.fsum(widths(neighbours(coupling), sizes, classes))
    return classes if entries * len(coupling.layers) <= _MAX_ENTRIES else None


@dataclass(frozen=True, slots=True)
class Answer:
    """The best choice known (None: none), and what is proven.

    No choice within the budgets has an objective below ``bound``; infinity where there is no such
    choice. ``rounding`` is what bound and objective may differ by through rounding alone.
    """

    choice: tuple[int, ...] | None
    objective: float
    bound: float
    rounding: float
    prices: tuple[float, ...]

    @property
    def gap(self) -> float:
        """The relative gap; 0 where the choice is optimal but for rounding."""
        short = self.objective - self.bound
        if short <= self.rounding:
            return 0.0
        return short / max(abs(self.objective), abs(self.bound))

    def settled(self, gap: float) -> bool:
        """Whether the gap is as small as ``gap``, or it is proven that there is no choice."""
        if self.choice is None:
            return self.bound == math.inf
        return self.gap <= max(gap, _CLOSE)


class Search:
    """The best choice of one coupling, whose budgets are finite, along a path."""

    def __init__(
        self,
        coupling: Coupling,
        classes: Sequence[int],
        *,
        gap: float,
        out_of_time: Callable[[], bool],
        start: tuple[int, ...] | None = None,
    ) -> None:
        self.coupling, self.classes = coupling, classes
        self.asked, self.gap, self.out_of_time = gap, max(gap, _CLOSE), out_of_time
        self.path = Path.of(coupling, classes)
        self.choice: tuple[int, ...] | None = None
        self.objective = math.inf
        self.bound = -math.inf
        self.rounding = 0.0
        self.prices = np.zeros(len(coupling.budgets))
        if start is not None:
            self._adopt(start)

    def run(self) -> Answer:
        """The answer; as good as time and the largest pass allow."""
        dual = maximise(self.path, self.out_of_time)
        if dual is None:
            self.bound = math.inf
            return self._answer()
        self._learn(dual)
        if not self._closed():
            dual = self._reduced(dual)
            self._passes(dual.prices)
        return self._answer()

    def floor(self) -> float:
        """What no choice that is not of ``coupling``'s kept options has an objective below."""
        return self._threshold() / float(self.path.parts[0]) - self.rounding / 4

    def _answer(self) -> Answer:
        parts = self.path.parts
        prices = self.prices * parts[1:] / parts[0]
        return Answer(
            self.choice,
            self.objective,
            self.bound,
            self.rounding,
            tuple(float(price) for price in prices),
        )

    def _closed(self) -> bool:
        if self.choice is None:
            return self.bound == math.inf
        short = self.objective - self.bound
        return short <= max(self.rounding, self.gap * max(abs(self.objective), abs(self.bound)))

    def _adopt(self, choice: tuple[int, ...]) -> bool:
        """Whether the choice keeps the budgets; the best choice known if it is better."""
        sums = self.coupling.sums(choice)
        if not self.coupling.within(sums):
            return False
        if sums[0] < self.objective:
            self.choice, self.objective = choice, sums[0]
        return True

    def _raise(self, bound: float) -> None:
        """Take a bound in the path's units."""
        self.bound = max(self.bound, bound / float(self.path.parts[0]))

    def _learn(self, dual: Dual) -> None:
        """What the dual tells: its bound, and its choices, improved."""
        self.prices = dual.prices
        self._widen(dual.prices)
        self._raise(dual.bound)
        for picks in dual.picks:
            self._adopt(self.coupling.expand(picks))
        self._improve()

    def _widen(self, prices: Floats) -> None:
        rounding = 4 * self.path.rounding(prices) / float(self.path.parts[0])
        self.rounding = max(self.rounding, rounding)

    def _improve(self) -> None:
        if self.choice is not None and not self._closed():
            better = improved(self.coupling, self._picks(self.choice), self.out_of_time)
            self._adopt(self.coupling.expand(better))

    def _picks(self, choice: tuple[int, ...]) -> Ints:
        kept = zip(self.coupling.members, self.coupling.kept, strict=True)
        return np.array([np.searchsorted(options, choice[groups[0]]) for groups, options in kept])

    def _threshold(self) -> float:
        """What has a bound of this or more, in the path's units, need not be looked at."""
        if self.choice is None:
            return math.inf
        part = float(self.path.parts[0])
        # Half the gap: the other half is for what the search gives up.
        spare = max(self.rounding / 4, 0.5 * self.asked * abs(self.objective))
        return (self.objective - spare) * part

    def _reduced(self, dual: Dual) -> Dual:
        """Drop the options that are in no better choice, and the dual of what is left."""
        while self.choice is not None and not self.out_of_time():
            weights = np.concatenate(([1.0], dual.prices))
            marginals = self.path.marginals(weights, self.path.backwards(weights))
            worth = float(dual.prices @ self.path.budgets)
            threshold = self._threshold()
            alive = [m - worth < threshold for m in marginals]
            # The best choice known stays, so that picks can always be made of it.
            for a, pick in zip(alive, self._picks(self.choice), strict=True):
                a[pick] = True
            gone = sum(int((~a).sum()) for a in alive)
            if gone == 0:
                break
            count = sum(len(a) for a in alive)
            self.coupling = self.coupling.restricted(alive)
            self.path = Path.of(self.coupling, self.classes)
            if gone < _WORTH * count:
                break
            # What is gone has a bound of the threshold or more; so has the whole, but for that.
            again = maximise(self.path, self.out_of_time)
            if again is None:
                break
            dual = again
            self._widen(dual.prices)
            slack = self.rounding / 4 * float(self.path.parts[0])
            self._raise(min(dual.bound, threshold - slack))
            for picks in dual.picks:
                self._adopt(self.coupling.expand(picks))
            self._improve()
            if self._closed():
                break
        return dual

    def _passes(self, prices: Floats) -> None:
        """Sweep with more and more labels; exactly by sum where rounding hides a choice."""
        margin = False
        n = 0
        while n < len(_LIMITS) and not self._closed() and not self.out_of_time():
            multipliers = _around(prices)
            for each in multipliers:
                self._widen(each)
            threshold = self._threshold()
            swept = sweep(
                self.path,
                Ahead.of(self.path, multipliers),
                threshold,
                limit=_LIMITS[n],
                margin=margin,
                out_of_time=self.out_of_time,
            )
            missed = self._check(swept)
            whole = swept.given_up == math.inf
            proven = min(swept.given_up, threshold, math.inf if margin else missed)
            self._raise(proven - self.rounding / 4 * float(self.path.parts[0]))
            if whole and missed < math.inf and not margin:
                margin = True  # and as many labels again: this may have more
                continue
            n += 1
            if whole:
                break
            before = self.objective
            self._improve()
            if self.objective < before:
                prices = self._reduced(Dual(prices, -math.inf, ())).prices

    def _check(self, swept: Swept) -> float:
        """Adopt the best choice that keeps the budgets; the least value of those that do not."""
        missed = math.inf
        for picks, value in zip(swept.picks, swept.values, strict=True):
            if self._adopt(self.coupling.expand(picks)):
                break
            missed = min(missed, float(value))
        return missed


def _around(prices: Floats) -> list[Floats]:
    """The prices, and others near them."""
    result = [prices, *(prices * factor for factor in _MULTIPLES)]
    if len(prices) > 1:
        for b in range(len(prices)):
            for factor in _NUDGES:
                other = prices.copy()
                other[b] *= factor
                result.append(other)
    return result
