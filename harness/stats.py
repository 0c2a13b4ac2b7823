"""Statistics of samples: median, percentiles, spread, intervals, drift, outliers.

Samples are sequences of seconds in the order in which they were taken.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.special

from harness.records import Interval, Measurement, Telemetry, TelemetrySample

__all__ = [
    "block_medians",
    "coefficient_of_variation",
    "correlation_time",
    "drift",
    "interval_of_median",
    "interval_over_time",
    "join",
    "looks",
    "mad",
    "median",
    "outliers",
    "percentile",
    "ratio_by_round",
    "ratio_interval",
    "round_medians",
    "samples_needed",
    "student",
]

# 1.4826 makes the MAD of normal samples an estimate of their standard deviation.
MAD_TO_SIGMA = 1.4826
# A measurement that was not interleaved is looked at in this many pieces.
BLOCKS = 10
# From so many blocks on their variance is known well enough to believe that it is small.
MANY_BLOCKS = 30


def median(samples: Sequence[float]) -> float:
    """The median of ``samples``; ValueError if there are none."""
    if not len(samples):
        raise ValueError("the median of no samples is undefined")
    return float(np.median(np.asarray(samples)))


def percentile(samples: Sequence[float], percent: float) -> float:
    """trtexec's percentile: the smallest sample that at least ``percent`` % do not exceed.

    Source: TensorRT samples/common/sampleReporting, which excludes the last
    ``(1 - percent / 100) * n`` sorted samples and takes the last that stays; 0 gives the smallest.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} is not between 0 and 100")
    ordered = sorted(samples)
    # In single precision as there: (1 - 90 / 100) * 10 must be 1, and is 0.99.. in double.
    excluded = int((1 - np.float32(percent) / np.float32(100)) * np.float32(len(ordered)))
    return ordered[max(0, len(ordered) - 1 - excluded)]


def mad(samples: Sequence[float]) -> float:
    """The median absolute deviation from the median."""
    values = np.asarray(samples)
    return float(np.median(np.abs(values - np.median(values))))


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Robust spread over median: the MAD, scaled to a standard deviation, over the median."""
    return MAD_TO_SIGMA * mad(samples) / median(samples)


def outliers(
    samples: Sequence[float], *, sigmas: float = 5.0, at_least: float = 0.0
) -> tuple[int, ...]:
    """Indices of samples more than ``sigmas`` robust standard deviations from the median.

    And more than ``at_least`` of the median: a clock with coarse steps makes no outliers.
    """
    values = np.asarray(samples)
    middle = float(np.median(values))
    limit = max(sigmas * MAD_TO_SIGMA * mad(samples), at_least * middle)
    return tuple(int(i) for i in np.flatnonzero(np.abs(values - middle) > limit))


def drift(samples: Sequence[float]) -> float:
    """Median of the second half over that of the first, less one: 0.03 is 3 % slower."""
    half = len(samples) // 2
    if half == 0:
        return 0.0
    return median(samples[half:]) / median(samples[:half]) - 1


def round_medians(measurement: Measurement) -> dict[int, float]:
    """The median sample of each interleaving round, in seconds."""
    rounds = np.asarray(measurement.rounds)
    samples = np.asarray(measurement.samples_s)
    order = np.argsort(rounds, kind="stable")
    cuts = np.flatnonzero(np.diff(rounds[order])) + 1
    return {
        int(rounds[block[0]]): float(np.median(samples[block])) for block in np.split(order, cuts)
    }


def interval_of_median(measurement: Measurement, *, coverage: float = 0.95) -> Interval:
    """An interval that holds the engine's median over the span of the measurement.

    The span is what it speaks of: who measures a board that changes its pace at another minute
    gets another median, which ``interval_over_time`` allows for. Within the span the rounds are a
    systematic sample, other engines ran between them, and a slow change of pace, which rounds and
    span share, does not widen the interval: what counts is how much neighbouring rounds differ.

    Woodruff's interval (JASA 47, 1952): with ``u_r`` the share of round ``r``'s samples up to the
    median, the quantiles at ``0.5 -+ t * se(mean u)``. The standard error is that of successive
    differences, ``sum (u_r+1 - u_r)^2 / (2 R (R - 1))``, for systematic samples (Wolter,
    Introduction to Variance Estimation, 2007, eq. 8.2.2), and with fewer than ``MANY_BLOCKS``
    rounds not less than that of as many independent samples; ``t`` has the difference estimator's
    2/3 (R - 1) degrees of freedom.
    A measurement of a single round is cut into ``BLOCKS`` blocks. Where there are too
    few for ``coverage``, the interval is the whole range and says how much that covers.
    """
    below = _shares_below(measurement)
    count = len(below)
    squares = float(np.sum(np.diff(below) ** 2))
    variance = squares / (2 * count * (count - 1)) if count > 1 else 0.0
    return _woodruff(
        measurement, variance, freedom=2 * (count - 1) / 3, blocks=count, coverage=coverage
    )


def interval_over_time(measurement: Measurement, *, coverage: float = 0.95) -> Interval:
    """An interval that holds the median over a longer time on the same board, as it behaves now.

    Woodruff's as in ``interval_of_median``, but rounds count as draws from a board that is faster
    and slower by turns, and neighbours that are alike count for less: their number is divided by
    the integrated autocorrelation time, by Geyer's initial positive sequence (Statistical Science
    7, 1992). It cannot know of changes slower than the measurement itself.
    """
    below = _shares_below(measurement)
    count = len(below)
    independent = count / correlation_time(below)
    variance = float(np.var(below, ddof=1)) / independent if count > 1 else 0.0
    return _woodruff(
        measurement,
        variance,
        freedom=independent - 1,
        blocks=max(1, math.floor(independent)),
        coverage=coverage,
    )


def _shares_below(measurement: Measurement) -> np.ndarray:
    """For each block the share of its samples below the median; equal ones count by half."""
    samples = np.asarray(measurement.samples_s)
    middle = float(np.median(samples))
    share = (samples < middle) + 0.5 * (samples == middle)
    return np.array([np.mean(share[block]) for block in _block_indices(measurement)])


def correlation_time(values: np.ndarray) -> float:
    """How many of ``values``, in order, count as one independent one; 1 to their number."""
    count = len(values)
    deviations = values - values.mean()
    total = float(deviations @ deviations)
    if total == 0:
        return 1.0
    # Deviations from the mean of the same values are correlated by -1 / count at every lag.
    lags = [
        float(deviations[: count - k] @ deviations[k:]) / total + (count - k) / count**2
        for k in range(1, count)
    ]
    time = 1.0
    for first, second in zip(lags[::2], lags[1::2], strict=False):
        if first + second <= 0:
            break
        time += 2 * (first + second)
    return min(time, float(count))


def _woodruff(
    measurement: Measurement, variance: float, *, freedom: float, blocks: int, coverage: float
) -> Interval:
    """The samples' quantiles around the median for a variance of the share below it."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage {coverage} is not between 0 and 1")
    ordered = np.sort(np.asarray(measurement.samples_s))
    n = len(ordered)
    if variance <= 0.25 / n and blocks < MANY_BLOCKS:
        variance, freedom, blocks = 0.25 / n, float(n), n
    half = student(coverage, max(1.0, freedom)) * math.sqrt(variance)
    # Ranks are rounded outwards: an interval of few samples is rather too wide.
    first, last = math.floor((0.5 - half) * n) - 1, math.ceil((0.5 + half) * n)
    if first < 0 or last > n - 1:
        first, last = 0, n - 1
        coverage = min(coverage, _most(blocks))
    return Interval(float(ordered[first]), float(ordered[last]), coverage)


def ratio_by_round(measurement: Measurement, baseline: Measurement) -> tuple[float, ...]:
    """``measurement`` over ``baseline``, round by round, so that drift cancels.

    ValueError if they were not interleaved in one campaign.
    """
    if measurement.campaign != baseline.campaign:
        raise ValueError(
            f"{measurement.label} and {baseline.label} were not measured in the same campaign"
        )
    ours, theirs = round_medians(measurement), round_medians(baseline)
    common = sorted(ours.keys() & theirs.keys())
    return tuple(ours[r] / theirs[r] for r in common)


def join(measurements: Sequence[Measurement]) -> Measurement:
    """Measurements of one engine from several campaigns as one; their rounds follow each other.

    ``ratio_by_round`` may compare what was joined from the same campaigns in the same order.
    """
    first = measurements[0]
    rounds: list[int] = []
    for m in measurements:
        start = max(rounds, default=-1) + 1
        rounds += [start + r for r in m.rounds]
    return replace(
        first,
        samples_s=tuple(s for m in measurements for s in m.samples_s),
        warmup_s=tuple(s for m in measurements for s in m.warmup_s),
        rounds=tuple(rounds),
        after=measurements[-1].after,
        campaign=" + ".join(m.campaign for m in measurements),
        telemetry=_joined_telemetry(measurements),
        timed_from_s=None,
        warnings=tuple(dict.fromkeys(text for m in measurements for text in m.warnings)),
    )


def looks(measurement: Measurement) -> tuple[TelemetrySample, ...]:
    """What telemetry saw while calls were timed: loading, warming up and soaking are before."""
    if measurement.telemetry is None:
        return ()
    start_s = measurement.timed_from_s or 0.0
    return tuple(look for look in measurement.telemetry.samples if look.at_s >= start_s)


def _joined_telemetry(measurements: Sequence[Measurement]) -> Telemetry | None:
    """The looks at the timed calls of all; the cost is the highest."""
    known = [m.telemetry for m in measurements if m.telemetry is not None]
    if not known:
        return None
    return Telemetry(
        period_s=known[0].period_s,
        cost_share=max(telemetry.cost_share for telemetry in known),
        samples=tuple(look for m in measurements for look in looks(m)),
    )


def ratio_interval(ratios: Sequence[float], *, coverage: float = 0.95) -> Interval:
    """An interval of the median of ``ratios``, one a round, from their order alone.

    Between two order statistics, interpolated to the coverage asked for (Hettmansperger and
    Sheather, Statistics & Probability Letters 4, 1986). From ``n`` values no interval holds more
    often than ``1 - 2 / 2^n``: with fewer than six it says so in its ``coverage``.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage {coverage} is not between 0 and 1")
    ordered = np.sort(np.asarray(ratios))
    n = len(ordered)
    if not n:
        raise ValueError("the interval of no ratios is undefined")
    if _most(n) <= coverage:
        return Interval(float(ordered[0]), float(ordered[-1]), _most(n))
    # held[k]: how often the (k + 1)-th values from either end hold the median.
    held = 1 - 2 * scipy.special.bdtr(np.arange(n // 2), n, 0.5)
    k = int(np.flatnonzero(held > coverage)[-1])
    inner = float(held[k + 1]) if k + 1 < len(held) else 0.0
    part = (float(held[k]) - coverage) / (float(held[k]) - inner)
    weight = (n - 1 - k) * part / (k + 1 + (n - 2 - 2 * k) * part)
    inside = min(k + 1, n - 1)
    low = (1 - weight) * ordered[k] + weight * ordered[inside]
    high = (1 - weight) * ordered[n - 1 - k] + weight * ordered[n - 1 - inside]
    return Interval(min(float(low), float(high)), max(float(low), float(high)), coverage)


def _most(n: int) -> float:
    """How often the smallest and the largest of ``n`` independent values hold their median."""
    return 1 - 2.0 ** (1 - n)


def student(coverage: float, freedom: float) -> float:
    """The quantile of Student's t that ``coverage`` lies between, with its negative."""
    return float(scipy.special.stdtrit(freedom, (1 + coverage) / 2))


def _block_indices(measurement: Measurement) -> list[np.ndarray]:
    """Indices of the samples, block by block: the rounds, or ``BLOCKS`` pieces of a single one."""
    rounds = np.asarray(measurement.rounds)
    order = np.argsort(rounds, kind="stable")
    cuts = np.flatnonzero(np.diff(rounds[order])) + 1
    if len(cuts):
        return np.split(order, cuts)
    return np.array_split(order, min(BLOCKS, len(order)))


def block_medians(measurement: Measurement) -> tuple[float, ...]:
    """The median of each block in the order taken: the rounds, or ten pieces of a single one."""
    samples = np.asarray(measurement.samples_s)
    return tuple(float(np.median(samples[block])) for block in _block_indices(measurement))


def samples_needed(percent: float, *, confidence: float = 0.99) -> int | None:
    """How many independent samples support a percentile; None for 0 and 100, which none do.

    So many that with ``confidence`` at least two of them lie beyond the percentile: the smallest
    ``n`` with ``P(Binomial(n, q) <= 1) = (1 - q)^n + n q (1 - q)^(n - 1) <= 1 - confidence``, where
    ``q`` is the smaller of the shares below and above. p50 11, p90 64, p99 662 at 99 %.
    """
    tail = min(percent, 100 - percent) / 100
    if not 0 <= percent <= 100 or not 0 < confidence < 1:
        raise ValueError(f"percentile {percent} at {confidence} is none")
    # Below a millionth more samples would be needed than a board can make.
    if tail < 1e-6:
        return None

    def missed(n: int) -> float:
        return float(scipy.special.bdtr(1, n, tail))

    high = 2
    while missed(high) > 1 - confidence:
        high *= 2
    low = high // 2
    while high - low > 1:
        half = (low + high) // 2
        low, high = (half, high) if missed(half) > 1 - confidence else (low, half)
    return high
