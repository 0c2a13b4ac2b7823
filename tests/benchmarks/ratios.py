"""Ratios of two engines' times on this computer, which others use as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness import stats
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.records import Interval, Measurement

__all__ = ["FINAL", "PLAN", "surest_ratio", "surest_ratios"]

# The plan of all ratios: the peers' 12 rounds of 15 runs, or more.
PLAN = MeasurePlan(warmup_s=0.2, rounds=40, block_s=0.03, block_min=6, drop=2)
FINAL = MeasurePlan(warmup_s=0.5, rounds=40, block_s=0.1, block_min=15, drop=3)
# A ratio whose interval reaches farther than this share to both sides is not certain; then this
# quantile of the samples counts instead of their median, and it is measured again.
CERTAIN, QUICK, TRIES = 0.03, 0.03, 3


def surest_ratio(
    session: Session, baseline: Path, path: Path, plan: MeasurePlan
) -> tuple[float, Interval]:
    """The ratio of ``path``'s time to that of ``baseline``, as ``surest_ratios`` finds it."""
    (found,) = surest_ratios(session, baseline, [path], plan)
    return found


def surest_ratios(
    session: Session, baseline: Path, paths: Sequence[Path], plan: MeasurePlan
) -> list[tuple[float, Interval]]:
    """The ratios of ``paths``' times to that of ``baseline``, all from the same rounds.

    They are of medians where those are certain; on a computer that others use as well, of quick
    samples, and so too where the medians say something else than these. Of some campaigns that
    which is certain of all, or else the surest.
    """
    campaigns: list[list[tuple[float, Interval]]] = []
    for _ in range(TRIES):
        base, *taken = session.measure(
            [
                EngineRequest(label="baseline", path=baseline, precision="fp32"),
                *(
                    EngineRequest(label=f"variant {i}", path=path, precision="mixed")
                    for i, path in enumerate(paths)
                ),
            ],
            plan=plan,
            campaign=paths[0].stem,
        )
        campaigns.append([_surest(ours, base) for ours in taken])
        if all(map(_certain, campaigns[-1])):
            return campaigns[-1]
    return min(campaigns, key=lambda found: max(map(_spread, found)))


def _surest(ours: Measurement, base: Measurement) -> tuple[float, Interval]:
    medians, quickest = ratio_of_medians(ours, base), ratio_of_quickest(ours, base, QUICK)
    if _certain(medians) and abs(medians[0] / quickest[0] - 1) <= 2 * CERTAIN:
        return medians
    return quickest


def _certain(found: tuple[float, Interval]) -> bool:
    return _spread(found) <= 2 * CERTAIN


def _spread(found: tuple[float, Interval]) -> float:
    ratio, interval = found
    return (interval.high - interval.low) / ratio


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
