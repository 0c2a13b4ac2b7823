"""Statistics of samples: median, percentiles, spread, bootstrap intervals, drift, outliers.

Samples are sequences of seconds in the order in which they were taken.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.records import Interval, Measurement

__all__ = [
    "coefficient_of_variation",
    "drift",
    "interval_of_median",
    "join",
    "mad",
    "median",
    "outliers",
    "percentile",
    "ratio_by_round",
    "ratio_interval",
    "round_medians",
]

# Enough that the bootstrap's own noise is small beside the interval it estimates.
RESAMPLES = 2000
# 1.4826 makes the MAD of normal samples an estimate of their standard deviation.
MAD_TO_SIGMA = 1.4826


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


def outliers(samples: Sequence[float], *, sigmas: float = 5.0) -> tuple[int, ...]:
    """Indices of samples more than ``sigmas`` robust standard deviations from the median."""
    values = np.asarray(samples)
    limit = sigmas * MAD_TO_SIGMA * mad(samples)
    return tuple(int(i) for i in np.flatnonzero(np.abs(values - np.median(values)) > limit))


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
    return {int(r): float(np.median(samples[rounds == r])) for r in np.unique(rounds)}


def interval_of_median(
    measurement: Measurement, *, coverage: float = 0.95, seed: int = 0
) -> Interval:
    """A bootstrap interval of the median latency, rounds resampled as blocks.

    Samples of one round share their disturbances, so rounds and not samples are drawn.
    """
    medians = np.array(list(round_medians(measurement).values()))
    return _bootstrap(medians, centre=median(measurement.samples_s), coverage=coverage, seed=seed)


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
    )


def ratio_interval(ratios: Sequence[float], *, coverage: float = 0.95, seed: int = 0) -> Interval:
    """A bootstrap interval of the median of ``ratios``, one a round."""
    values = np.asarray(ratios)
    return _bootstrap(values, centre=median(ratios), coverage=coverage, seed=seed)


def _bootstrap(values: np.ndarray, *, centre: float, coverage: float, seed: int) -> Interval:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage {coverage} is not between 0 and 1")
    generator = np.random.default_rng(seed)
    draws = np.median(
        values[generator.integers(0, len(values), size=(RESAMPLES, len(values)))], axis=1
    )
    low, high = np.quantile(draws, [(1 - coverage) / 2, (1 + coverage) / 2])
    low, high = min(float(low), centre), max(float(high), centre)
    assert math.isfinite(low) and math.isfinite(high)
    return Interval(low, high, coverage)
