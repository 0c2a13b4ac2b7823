"""Measure at a board's changing pace: beside a yardstick, and only what the store does not hold."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import stats
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.records import Measurement, Profile
from harness.store import Store

__all__ = [
    "PROFILE_RUNS",
    "RUNS",
    "YARDSTICK",
    "Yardstick",
    "digest_of",
    "engine_s",
    "kernel_rows",
    "measure",
    "paced_profile",
    "profile",
    "ratios",
]

# Runs of the profiler whose median is a kernel's time.
PROFILE_RUNS = 60
# The same with the profiler's warm-up, which takes as long.
RUNS = PROFILE_RUNS + 10
YARDSTICK = "yardstick"


def kernel_rows(profile: Profile) -> tuple[tuple[str, str, str, float], ...]:
    """A profile as ``latency_models`` reads it: name, operator, node, seconds."""
    return tuple((k.name, k.op, k.node, k.latency_s) for k in profile.kernels)


def profile(
    session: Session,
    path: Path,
    store: Store,
    *,
    runs: int = PROFILE_RUNS,
    precision: str | None = None,
) -> Profile:
    """The per-kernel profile of ``path``: the store's if it has one of this network and runtime.

    Of its engine as it was measured last, unless ``precision`` says which.
    """
    known = _known_profile(session, store, path, precision)
    if known is not None:
        return known
    taken = session.profile(path, runs=runs, precision=precision)
    store.add(taken)
    return taken


def _known_profile(
    session: Session, store: Store, path: Path, precision: str | None
) -> Profile | None:
    digest, key = digest_of(path), session.engine_key(path, precision=precision)
    for known in store.all(Profile):
        if (
            known.network_sha256 == digest
            and known.runtime_version == session.facts.runtime_version
            and known.engine_key == key
        ):
            return known
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """A network that is measured again and again, and what it took at first.

    A board runs faster and slower by the minute. What is measured beside the yardstick is put into
    its first measurement's terms, so that a sweep of minutes is of one piece.
    """

    path: Path
    latency_s: float

    def request(self) -> EngineRequest:
        """The yardstick among the engines of a measurement."""
        return EngineRequest(label=YARDSTICK, path=self.path, precision="yardstick")


def digest_of(path: Path) -> str:
    """The SHA-256 by which the store knows a network."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def engine_s(latency_s: float) -> float:
    """Seconds that one engine of this latency is measured for, warm-up included."""
    plan = PRESETS["quick"]
    block_s = plan.drop * latency_s + max(plan.block_s, plan.block_min * latency_s)
    return max(plan.warmup_s, 2 * latency_s) + plan.rounds * block_s


def _measured_s(measurement: Measurement) -> float:
    """Seconds that the board spent on a measurement: warm-up, samples and dropped calls."""
    dropped = PRESETS["quick"].drop * len(set(measurement.rounds))
    samples_s = measurement.samples_s
    return sum(measurement.warmup_s) + sum(samples_s) + dropped * stats.median(samples_s)


def measure(
    session: Session, store: Store, requests: Sequence[EngineRequest], *, campaign: str
) -> tuple[list[Measurement], float]:
    """The campaign's measurements, and the seconds that they took now.

    Those of the store, in no time, if it has all of these networks in this campaign.
    """
    kept = {
        (m.label, m.network_sha256): m for m in store.all(Measurement) if m.campaign == campaign
    }
    wanted = [(request.label, digest_of(request.path)) for request in requests]
    if all(key in kept for key in wanted):
        return [kept[key] for key in wanted], 0.0
    taken = session.measure(requests, plan=PRESETS["quick"], campaign=campaign)
    for measurement in taken:
        store.add(measurement)
    return list(taken), sum(map(_measured_s, taken))


def paced_profile(
    session: Session,
    store: Store,
    path: Path,
    yardstick: Yardstick | None,
    *,
    precision: str | None = None,
) -> tuple[Profile, float, float]:
    """A profile, how much slower than at first the board ran, and the seconds measured now.

    The pace is that of the yardstick just before and after; 1 without one.
    """

    def pace(when: str) -> tuple[list[Measurement], float]:
        if yardstick is None:
            return [], 0.0
        campaign = f"pace {when} {digest[:16]}"
        return measure(session, store, [yardstick.request()], campaign=campaign)

    digest = digest_of(path)
    known = _known_profile(session, store, path, precision)
    before, before_s = pace("before")
    taken = known or profile(session, path, store, precision=precision)
    after, after_s = pace("after")
    measured_s = before_s + after_s
    if known is None:
        measured_s += RUNS * sum(kernel.latency_s for kernel in taken.kernels)
    medians = [stats.median(m.samples_s) for m in (*before, *after)]
    slower = 1.0 if yardstick is None else float(np.mean(medians)) / yardstick.latency_s
    return taken, slower, measured_s


def ratios(
    session: Session,
    store: Store,
    requests: Sequence[EngineRequest],
    yardstick: Yardstick,
    *,
    campaign: str,
) -> tuple[list[float], float]:
    """Each network's latency over the yardstick's in the same rounds; the seconds measured now."""
    engines = [yardstick.request(), *requests]
    (base, *rest), measured_s = measure(session, store, engines, campaign=campaign)
    return [stats.median(stats.ratio_by_round(m, base)) for m in rest], measured_s
