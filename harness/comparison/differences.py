"""The difference of two medians, with an interval, and whether it is more than a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness import stats
from harness.records import Interval

__all__ = ["COVERAGE", "Basis", "Difference", "Outcome", "by_ratios", "difference_of", "judge"]

COVERAGE = 0.95
Basis = Literal["rounds", "independent", "none"]
Outcome = Literal["slower", "not slower", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """B against A: ``ratio`` is B over A, ``difference_s`` B less A; intervals where there are any.

    ``ratio`` is None where A took no time (layers that an engine has no work for).
    ``basis`` says where the intervals come from: ratios of interleaved ``rounds``, each run's own
    interval, or nothing.
    """

    a_s: float
    b_s: float
    ratio: float | None
    ratio_interval: Interval | None
    difference_s: float
    difference_interval_s: Interval | None
    basis: Basis
    rounds: int = 0


def judge(difference: Difference, *, limit: float) -> Outcome:
    """Whether B is slower than A by more than ``limit`` (0.03: 3 %), by the interval's bounds."""
    interval = difference.ratio_interval
    if interval is None:
        return "cannot tell"
    if interval.low > 1 + limit:
        return "slower"
    return "not slower" if interval.high <= 1 + limit else "cannot tell"


def by_ratios(a_s: float, b_s: float, ratios: Sequence[float]) -> Difference:
    """B against A from ratios of interleaved rounds, so that drift cancels.

    The difference is the ratio's, of A's median: that of the two medians still holds the drift.
    """
    ratio, interval = stats.median(ratios), stats.ratio_interval(ratios, coverage=COVERAGE)
    seconds = Interval((interval.low - 1) * a_s, (interval.high - 1) * a_s, COVERAGE)
    return Difference(
        a_s=a_s,
        b_s=b_s,
        ratio=ratio,
        ratio_interval=interval,
        difference_s=(ratio - 1) * a_s,
        difference_interval_s=seconds,
        basis="rounds",
        rounds=len(ratios),
    )


def difference_of(
    a_s: float, a_interval: Interval | None, b_s: float, b_interval: Interval | None
) -> Difference:
    """B against A from two independent medians, each with its own interval.

    The intervals are combined by recovering each one's variance from its distance to the median
    (MOVER; Zou and Donner, Statistics in Medicine 27, 2008), for ratios on the log scale.
    """
    ratio_interval = seconds = None
    if a_interval is not None and b_interval is not None and a_interval.low > 0 < b_interval.low:
        seconds = _mover(a_s, a_interval, b_s, b_interval)
        logs = _mover(math.log(a_s), _logs(a_interval), math.log(b_s), _logs(b_interval))
        ratio_interval = Interval(math.exp(logs.low), math.exp(logs.high), COVERAGE)
    return Difference(
        a_s=a_s,
        b_s=b_s,
        ratio=b_s / a_s if a_s else None,
        ratio_interval=ratio_interval,
        difference_s=b_s - a_s,
        difference_interval_s=seconds,
        basis="independent" if ratio_interval else "none",
    )


def _logs(interval: Interval) -> Interval:
    return Interval(math.log(interval.low), math.log(interval.high), interval.coverage)


def _mover(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    low = (b - a) - math.hypot(b - of_b.low, of_a.high - a)
    high = (b - a) + math.hypot(of_b.high - b, a - of_a.low)
    return Interval(low, high, COVERAGE)
