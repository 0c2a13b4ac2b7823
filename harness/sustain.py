"""What running without a pause does to an engine's time: from the cold board to the soaked one."""

from __future__ import annotations

import math

import numpy as np

from harness import stats
from harness.records import Interval, Soak, SoakSummary

__all__ = ["summarise"]

# The cold board is the first fiftieth of the windows, the soaked one the last fifth: a passively
# cooled board approaches its end exponentially, so that the end lasts longer than the start.
COLD_SHARE, SOAKED_SHARE = 1 / 50, 1 / 5
MIN_WINDOWS = 3
# Below so many windows their correlation cannot be told from noise.
MIN_CORRELATED = 10
# Smaller changes have no time constant worth telling.
MIN_CHANGE = 0.01
# An exponential must explain this share of the variance of the windows' logarithms.
MIN_EXPLAINED = 0.5
# Time constants that are tried, from two windows to half of the soak: a longer one is not seen.
TRIED = 100
COVERAGE = 0.95


def summarise(soak: Soak, *, coverage: float = COVERAGE) -> SoakSummary:
    """Cold against soaked, and how the time went from one to the other.

    The medians of windows are compared by their mean logarithms. The interval is Welch's, in which
    windows that resemble their neighbours count for less; there is none where an end has one
    window only.
    """
    at_s = np.array([window.at_s for window in soak.windows])
    logs = np.log([window.median_s for window in soak.windows])
    count = len(logs)
    cold = logs[: min(max(MIN_WINDOWS, int(COLD_SHARE * count)), max(1, count // 2))]
    soaked = logs[-min(max(MIN_WINDOWS, int(SOAKED_SHARE * count)), max(1, count // 2)) :]
    change = float(soaked.mean() - cold.mean())
    half = _half_width(cold, soaked, coverage)
    interval = None
    if half is not None:
        interval = Interval(math.expm1(change - half), math.expm1(change + half), coverage)
    return SoakSummary(
        duration_s=float(at_s[-1]),
        windows=count,
        cold_s=math.exp(cold.mean()),
        soaked_s=math.exp(soaked.mean()),
        change=math.expm1(change),
        change_interval=interval,
        settled=_settled(logs, coverage),
        time_constant_s=_time_constant(at_s, logs),
        cold=soak.windows[0].conditions,
        soaked=soak.windows[-1].conditions,
    )


def _squared_error(values: np.ndarray) -> tuple[float, float]:
    """The squared standard error of the mean of values in order, and its degrees of freedom."""
    count = float(len(values))
    if len(values) >= MIN_CORRELATED:
        count = max(2.0, count / stats.correlation_time(values))
    return float(values.var(ddof=1)) / count, count - 1


def _half_width(first: np.ndarray, second: np.ndarray, coverage: float) -> float | None:
    """Half of Welch's interval of the difference of two means; None for a single value."""
    if min(len(first), len(second)) < 2:
        return None
    (one, one_freedom), (other, other_freedom) = map(_squared_error, (first, second))
    if one + other == 0:
        return 0.0
    # Welch, Biometrika 34 (1947), with Satterthwaite's degrees of freedom.
    freedom = (one + other) ** 2 / (one**2 / one_freedom + other**2 / other_freedom)
    return stats.student(coverage, max(1.0, freedom)) * math.sqrt(one + other)


def _settled(logs: np.ndarray, coverage: float) -> bool:
    """Whether the last quarter differs from the one before by less than one can tell, or 1 %."""
    quarter = len(logs) // 4
    if quarter < 2:
        return False
    earlier, late = logs[-2 * quarter : -quarter], logs[-quarter:]
    half = _half_width(earlier, late, coverage)
    assert half is not None
    return abs(float(late.mean() - earlier.mean())) <= max(MIN_CHANGE, half)


def _time_constant(at_s: np.ndarray, logs: np.ndarray) -> float | None:
    """The time constant of ``a + b (1 - exp(-t / tau))`` by least squares, where one is visible."""
    if len(logs) < 2 * MIN_WINDOWS:
        return None
    start_s = at_s - at_s[0]
    tried = np.geomspace(2 * start_s[1], start_s[-1] / 2, TRIED)
    total = float(np.sum((logs - logs.mean()) ** 2))
    best, left, height = 0, math.inf, 0.0
    for index, constant_s in enumerate(tried):
        shape = np.column_stack((np.ones_like(start_s), -np.expm1(-start_s / constant_s)))
        fitted, *_ = np.linalg.lstsq(shape, logs, rcond=None)
        rest = float(np.sum((logs - shape @ fitted) ** 2))
        if rest < left:
            best, left, height = index, rest, float(fitted[1])
    visible = abs(height) >= MIN_CHANGE and left <= (1 - MIN_EXPLAINED) * total
    return float(tried[best]) if visible and 0 < best < TRIED - 1 else None
