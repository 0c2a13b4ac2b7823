"""How much of a profile is understood: kernels that belong to ONNX nodes, and the rest.

The kernels' sum is not the end-to-end time: between kernels the runtime does work of its own, and
the profiler adds to it. Both are told apart here.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness import stats
from harness.records import Profile

__all__ = ["Attribution", "attribution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Shares of a profile's time; a share is None where what it divides by is not known.

    ``computing`` of the kernels' time is in kernels that compute an ONNX node, ``layout`` in those
    that change a layout for one, and the rest in ``unattributed`` kernels. ``of_profiled_run`` is
    the kernels' sum over the whole run that they were profiled in, the median of all runs, and
    ``of_end_to_end`` their sum over the median call without the profiler.
    """

    kernels_s: float
    computing: float | None
    layout: float | None
    unattributed: tuple[str, ...]
    profiled_run_s: float | None
    of_profiled_run: float | None
    end_to_end_s: float | None

    @property
    def attributed(self) -> float | None:
        """The share that belongs to ONNX nodes in either way."""
        if self.computing is None or self.layout is None:
            return None
        return self.computing + self.layout

    @property
    def of_end_to_end(self) -> float | None:
        """The kernels' sum over the measured median; above 1 where the profiler costs more."""
        return self.kernels_s / self.end_to_end_s if self.end_to_end_s else None


def attribution(profile: Profile, *, end_to_end_s: float | None = None) -> Attribution:
    """The shares of ``profile``; ``end_to_end_s`` is the median call without the profiler."""
    total_s = sum(kernel.latency_s for kernel in profile.kernels)
    computing_s = sum(kernel.latency_s for kernel in profile.kernels if kernel.node)
    layout_s = sum(k.latency_s for k in profile.kernels if k.serves and not k.node)
    return Attribution(
        kernels_s=total_s,
        computing=computing_s / total_s if total_s else None,
        layout=layout_s / total_s if total_s else None,
        unattributed=tuple(k.name for k in profile.kernels if not (k.node or k.serves)),
        profiled_run_s=stats.median(profile.runs_s) if profile.runs_s else None,
        of_profiled_run=_of_profiled_run(profile),
        end_to_end_s=end_to_end_s,
    )


def _of_profiled_run(profile: Profile) -> float | None:
    """The kernels' share of a run, run by run, so that a disturbed run counts on both sides."""
    runs = len(profile.runs_s)
    if not runs or any(len(kernel.samples_s) != runs for kernel in profile.kernels):
        return None
    sums = [sum(kernel.samples_s[run] for kernel in profile.kernels) for run in range(runs)]
    shares = [taken_s / run for taken_s, run in zip(sums, profile.runs_s, strict=True) if run > 0]
    return stats.median(shares) if shares else None
