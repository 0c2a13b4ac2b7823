"""Several passes of the profiler over one engine as one profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness import stats
from harness.errors import StableBoardError
from harness.records import KernelTime, Profile

__all__ = ["join"]


def join(passes: Sequence[Profile], *, campaign: str) -> Profile:
    """One profile of all passes: a kernel's time is the median of its times in each.

    A pass is a session of its own, so that where its memory happens to lie differs as well. Passes
    of several engines that took turns share a ``campaign``. StableBoardError if the passes do not
    have the same kernels: then it was not the same engine.
    """
    first = passes[0]
    for other in passes[1:]:
        if [(k.name, k.op) for k in other.kernels] != [(k.name, k.op) for k in first.kernels]:
            raise StableBoardError(
                f"two sessions of {first.runtime} {first.runtime_version} made other kernels of "
                "the same network; profile each alone (boardfit profile)"
            )
    rounds = tuple(
        number
        for number, one in enumerate(passes)
        for _ in range(len(one.kernels[0].samples_s) if one.kernels else 0)
    )
    return replace(
        first,
        kernels=tuple(
            _joined([one.kernels[index] for one in passes]) for index in range(len(first.kernels))
        ),
        runs_s=tuple(run for one in passes for run in one.runs_s),
        campaign=campaign,
        rounds=rounds,
    )


def _joined(kernels: Sequence[KernelTime]) -> KernelTime:
    return replace(
        kernels[0],
        latency_s=stats.median([kernel.latency_s for kernel in kernels]),
        samples_s=tuple(sample for kernel in kernels for sample in kernel.samples_s),
    )
