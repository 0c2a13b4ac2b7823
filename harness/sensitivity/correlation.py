"""How well a score ranks what it stands for: rank correlations with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.stats

from harness.records import Interval

__all__ = [
    "FEWEST",
    "MEASURES",
    "Correlation",
    "compare",
    "correlate",
    "kendall",
    "pearson",
    "spearman",
]

Floats: TypeAlias = npt.NDArray[np.float64]
# A rank correlation of fewer pairs than this is 1 too easily to be worth an interval.
FEWEST = 4


def pearson(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """Pearson's r of paired values, -1 to 1; NaN where either is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def spearman(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """Spearman's rho, -1 to 1: Pearson's r of the ranks, ties sharing their mean rank."""
    return pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y))


def kendall(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """Kendall's tau-b, -1 to 1 (Kendall, Biometrika 33, 1945); NaN where either is constant."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    signs_a, signs_b = (np.sign(v[:, None] - v[None, :]) for v in (a, b))
    norm = float(np.sqrt(np.abs(signs_a).sum() * np.abs(signs_b).sum()))
    return float((signs_a * signs_b).sum()) / norm if norm > 0 else float("nan")


def _pearsons(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson's r of every resample, in which pair i stands ``counts[:, i]`` times; NaN as above.

    ``x`` and ``y`` are ``(n,)``, or ``(resamples, n)`` where they differ from one to the next.
    """
    total = counts.sum(1, keepdims=True)
    a, b = (v - (counts * v).sum(1, keepdims=True) / total for v in (x, y))
    weighted: Floats = counts * a
    norm = np.sqrt((weighted * a).sum(1) * (counts * b * b).sum(1))
    # Of a constant the centred values are rounding errors, and so is their norm.
    size = np.sqrt((counts * x * x).sum(1) * (counts * y * y).sum(1))
    return _ratio((weighted * b).sum(1), np.where(norm > 1e-14 * size, norm, 0.0))


def _spearmans(x: Floats, y: Floats, counts: Floats) -> Floats:
    def ranks(values: Floats) -> Floats:
        below = counts @ (values[:, None] < values[None, :])
        equal = counts @ (values[:, None] == values[None, :])
        result: Floats = below + (equal + 1) / 2
        return result

    return _pearsons(ranks(x), ranks(y), counts)


def _kendalls(x: Floats, y: Floats, counts: Floats) -> Floats:
    a, b = (np.sign(v[:, None] - v[None, :]) for v in (x, y))

    def pairs(signs: Floats) -> Floats:
        result: Floats = ((counts @ signs) * counts).sum(1)
        return result

    return _ratio(pairs(a * b), np.sqrt(pairs(np.abs(a)) * pairs(np.abs(b))))


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = np.full(len(above), np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


MEASURES = {"spearman": spearman, "kendall": kendall, "pearson": pearson}
# The same of many resamples at once, which one by one took a second a correlation.
_RESAMPLED = {"spearman": _spearmans, "kendall": _kendalls, "pearson": _pearsons}


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """One measure of ``n`` pairs, with the bootstrap interval of it."""

    measure: str
    value: float
    interval: Interval
    n: int


def correlate(
    scores: Sequence[float],
    truth: Sequence[float],
    *,
    resamples: int = 2000,
    coverage: float = 0.95,
    seed: int = 0,
) -> dict[str, Correlation]:
    """Spearman, Kendall and Pearson of ``scores`` with ``truth``, by name.

    Intervals are percentiles over ``resamples`` samples of the pairs with replacement (Efron,
    Annals of Statistics 7, 1979). ValueError where the lengths differ, there are fewer than four
    pairs, or a value is not finite.
    """
    x, y = _checked(scores, truth), np.asarray(truth, float)
    counts = _counts(len(y), resamples, seed)
    return {
        measure: Correlation(
            measure=measure,
            value=function(x, y),
            interval=_interval(_RESAMPLED[measure](x, y, counts), coverage),
            n=len(y),
        )
        for measure, function in MEASURES.items()
    }


def compare(
    scores: Mapping[str, Sequence[float]],
    truth: Sequence[float],
    *,
    measure: str = "spearman",
    resamples: int = 2000,
    coverage: float = 0.95,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """For every two scores, the interval of the first's correlation less the second's.

    Paired: both are taken on the same resampled policies, so what makes a policy hard for both
    cancels. An interval above zero says that the first ranks better. ValueError as ``correlate``.
    """
    checked = {name: _checked(values, truth) for name, values in scores.items()}
    y = np.asarray(truth, float)
    counts = _counts(len(y), resamples, seed)
    drawn = {name: _RESAMPLED[measure](x, y, counts) for name, x in checked.items()}
    names = list(drawn)
    return {
        (first, second): _interval(drawn[first] - drawn[second], coverage)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }


def _checked(values: Sequence[float], truth: Sequence[float]) -> Floats:
    x, y = np.asarray(values, float), np.asarray(truth, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{len(x)} scores cannot be paired with {len(y)} true values")
    if len(x) < FEWEST:
        raise ValueError(f"{len(x)} pairs are too few to correlate; give at least {FEWEST}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a score or a true value is not finite; leave that policy out")
    return x


def _counts(count: int, resamples: int, seed: int) -> Floats:
    """How often each of ``count`` pairs is drawn into each resample, ``(resamples, count)``."""
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    result = np.zeros((resamples, count))
    np.add.at(result, (np.arange(resamples)[:, None], drawn), 1.0)
    return result


def _interval(values: Floats, coverage: float) -> Interval:
    # A resample of one policy over and over has no correlation; it says nothing.
    tail = (1 - coverage) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high), coverage)
