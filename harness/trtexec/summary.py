"""trtexec's performance summary of a measurement whose calls were taken apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness import stats
from harness.records import Measurement, TimeSummary

__all__ = ["Performance", "of"]

PERCENTILE = 99.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What trtexec prints at its end: throughput, and a summary of each time by its name.

    ``throughput_per_s``: calls by the time they took, one after the other. trtexec enqueues the
    next call before the last one's end, and gets more where the host is the bottleneck.
    """

    throughput_per_s: float
    times: tuple[tuple[str, TimeSummary], ...]


def of(measurement: Measurement, *, percentile: float | None = None) -> Performance | None:
    """The summary in trtexec's words and order; None where a call's parts were not measured.

    "Latency" is copies in, GPU compute and copies out by the GPU's events; "Host Call" is a call
    as the host sees it, which trtexec does not print. Percentiles by trtexec's rule.
    """
    parts = measurement.parts
    if parts is None:
        return None
    latency = [sum(call) for call in zip(parts.h2d_s, parts.compute_s, parts.d2h_s, strict=True)]
    wanted = PERCENTILE if percentile is None else percentile
    named = (
        ("Latency", latency),
        ("Enqueue Time", parts.enqueue_s),
        ("H2D Latency", parts.h2d_s),
        ("GPU Compute Time", parts.compute_s),
        ("D2H Latency", parts.d2h_s),
        ("Host Call", measurement.samples_s),
    )
    return Performance(
        throughput_per_s=len(measurement.samples_s) / sum(measurement.samples_s),
        times=tuple((name, _summary(values, wanted)) for name, values in named),
    )


def _summary(values: Sequence[float], percent: float) -> TimeSummary:
    return TimeSummary(
        min_s=min(values),
        max_s=max(values),
        mean_s=statistics.fmean(values),
        median_s=stats.median(values),
        percentiles=((percent, stats.percentile(values, percent)),),
    )
