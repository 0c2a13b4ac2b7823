"""Several builds of one network: how much they differ, and which is kept.

TensorRT times its tactics anew in every build and may choose others (NVIDIA/TensorRT#4730), so that
two builds of one file can differ by more than two measurements of one build.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness import stats
from harness.records import BuildSettings, Interval, Measurement

__all__ = ["MOST_REBUILDS", "Rebuilds", "choose", "variants"]

# All engines are loaded at once, to be measured in turn.
MOST_REBUILDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilds:
    """Builds of one file, measured interleaved, and number ``kept``, the fastest.

    ``latencies_s`` are their medians. ``spread`` is the slowest over the fastest, less one, with
    the interval of that ratio; ``deviation`` the standard deviation of the medians by their mean.
    ``distinct`` counts engines that differ by their bytes, where the board tells.
    """

    latencies_s: tuple[float, ...]
    kept: int
    spread: float
    spread_interval: Interval
    deviation: float
    distinct: int | None

    @property
    def matters(self) -> bool:
        """Whether the builds differ by more than measuring leaves open."""
        return self.spread_interval.low > 0


def variants(label: str, build: BuildSettings, count: int) -> tuple[tuple[str, BuildSettings], ...]:
    """Label and settings of ``count`` builds: the first may come from the cache, the others not."""
    if not 1 <= count <= MOST_REBUILDS:
        raise ValueError(f"an engine is built 1 to {MOST_REBUILDS} times, not {count}")
    return tuple(
        (label if number == 0 else f"{label} build {number + 1}", replace(build, rebuild=number))
        for number in range(count)
    )


def choose(measured: Sequence[Measurement]) -> Rebuilds:
    """What the builds of one file make of each other; ValueError unless measured interleaved."""
    if not measured or len({one.campaign for one in measured}) != 1:
        raise ValueError("builds are held against each other in one campaign")
    latencies = tuple(stats.median(one.samples_s) for one in measured)
    kept = min(range(len(measured)), key=latencies.__getitem__)
    slowest = max(range(len(measured)), key=latencies.__getitem__)
    interval = Interval(0.0, 0.0, 0.95)
    if kept != slowest:
        found = stats.ratio_interval(stats.ratio_by_round(measured[slowest], measured[kept]))
        interval = Interval(found.low - 1, found.high - 1, found.coverage)
    known = [one.engine.sha256 for one in measured if one.engine is not None]
    return Rebuilds(
        latencies_s=latencies,
        kept=kept,
        spread=latencies[slowest] / latencies[kept] - 1,
        spread_interval=interval,
        deviation=statistics.pstdev(latencies) / statistics.fmean(latencies),
        distinct=len(set(known)) if len(known) == len(measured) else None,
    )
