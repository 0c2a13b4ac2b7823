"""Ratios of two engines' times on this computer, which others use as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness import stats
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.records import Interval, Measurement

__all__ = ["FINAL", "PLAN", "surest_ratio"]

# The plan of all ratios: the peers' 12 rounds of 15 runs, or more.
PLAN = MeasurePlan(warmup_s=0.2, rounds=40, block_s=0.03, block_min=6, drop=2)
FINAL = MeasurePlan(warmup_s=0.5, rounds=40, block_s=0.1, block_min=15, drop=3)
# A ratio whose interval reaches farther than this share to both sides is not certain; then this
# quantile of the samples counts instead of their median, and it is measured again.
CERTAIN, QUICK, TRIES = 0.03, 0.03, 3


def measured(
    session: Session, baseline: Path, path: Path, plan: MeasurePlan
) -> tuple[Measurement, Measurement]:
    """``path`` and ``baseline``, measured in turn."""
    base, ours = session.measure(
        [
            EngineRequest(label="baseline", path=baseline, precision="fp32"),
            EngineRequest(label="variant", path=path, precision="mixed"),
        ],
        plan=plan,
        campaign=path.stem,
    )
    return ours, base


def surest_ratio(
    session: Session, baseline: Path, path: Path, plan: MeasurePlan
) -> tuple[float, Interval]:
    """The ratio of ``path``'s time to that of ``baseline``: of medians, if it is certain.

    On a computer that others use as well, the surest of some ratios of quick samples; so too where
    the medians say something else than these.
    """
    found: list[tuple[float, Interval]] = []
    for _ in range(TRIES):
        taken = measured(session, baseline, path, plan)
        medians, quickest = ratio_of_medians(*taken), ratio_of_quickest(*taken, QUICK)
        if _certain(medians) and abs(medians[0] / quickest[0] - 1) <= 2 * CERTAIN:
            return medians
        if _certain(quickest):
            return quickest
        found.append(quickest)
    return min(found, key=lambda one: one[1].high - one[1].low)


def _certain(found: tuple[float, Interval]) -> bool:
    ratio, interval = found
    return interval.high - interval.low <= 2 * CERTAIN * ratio


def ratio_of_medians(ours: Measurement, base: Measurement) -> tuple[float, Interval]:
    """The median of the rounds' ratios of medians, and its 95 % interval."""
    ratios = stats.ratio_by_round(ours, base)
    return stats.median(ratios), stats.ratio_interval(ratios)


def ratio_of_quickest(ours: Measurement, base: Measurement, share: float) -> tuple[float, Interval]:
    """The ratio of low quantiles of all samples, and its 95 % interval (bootstrap over rounds).

    What else runs on this computer only ever adds time: quick samples are those it left alone.
    """
    rounds = sorted(set(ours.rounds) & set(base.rounds))
    draws = np.random.default_rng(0).choice(rounds, size=(400, len(rounds)))
    found = [_quantile(ours, d, share) / _quantile(base, d, share) for d in draws]
    low, high = np.quantile(found, (0.025, 0.975))
    ratio = _quantile(ours, rounds, share) / _quantile(base, rounds, share)
    return ratio, Interval(float(low), float(high), 0.95)


def _quantile(measured: Measurement, rounds: Sequence[int], share: float) -> float:
    samples, number = np.asarray(measured.samples_s), np.asarray(measured.rounds)
    return float(np.quantile(np.concatenate([samples[number == r] for r in rounds]), share))
