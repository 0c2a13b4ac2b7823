"""Two profiles held against each other, kernel by kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.comparison.differences import COVERAGE, Difference, by_ratios, difference_of
from harness.records import Interval, KernelTime, Profile

__all__ = ["KernelChange", "kernel_change", "keys", "matched", "shared_rounds"]

# The runs of a profile follow each other closely; so many stretches of them count as independent.
STRETCHES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChange:
    """One kernel that both runs have. ``key`` is its ONNX node, or its name if it has none."""

    key: str
    op_a: str
    op_b: str
    difference: Difference


def keys(profile: Profile) -> tuple[str, ...]:
    """One key a kernel, the same in every profile of an engine and, by node, of its variants.

    The node that it computes, the node that it changes a layout for, or its own name; kernels that
    would share a key are numbered in the order of execution.
    """
    plain = [
        kernel.node or (f"{kernel.op} for {kernel.serves}" if kernel.serves else kernel.name)
        for kernel in profile.kernels
    ]
    seen: Counter[str] = Counter()
    found = []
    for key in plain:
        seen[key] += 1
        found.append(key if seen[key] == 1 else f"{key} ({seen[key]})")
    return tuple(found)


def matched(
    a: Profile | None, b: Profile | None
) -> tuple[
    tuple[tuple[str, KernelTime, KernelTime], ...], tuple[KernelTime, ...], tuple[KernelTime, ...]
]:
    """Kernels of both with their keys, and those of one alone; nothing if one was not profiled."""
    if a is None or b is None:
        return (), (), ()
    of_a = dict(zip(keys(a), a.kernels, strict=True))
    of_b = dict(zip(keys(b), b.kernels, strict=True))
    both = tuple((key, kernel, of_b[key]) for key, kernel in of_a.items() if key in of_b)
    only_a = tuple(kernel for key, kernel in of_a.items() if key not in of_b)
    only_b = tuple(kernel for key, kernel in of_b.items() if key not in of_a)
    return both, only_a, only_b


def shared_rounds(a: Profile | None, b: Profile | None) -> tuple[int, ...]:
    """The passes that the runs of both profiles belong to, if the two took turns."""
    if a is None or b is None or not a.campaign:
        return ()
    together = a.campaign == b.campaign and a.rounds == b.rounds and len(set(a.rounds)) > 1
    return a.rounds if together else ()


def kernel_change(key: str, a: KernelTime, b: KernelTime, rounds: Sequence[int]) -> KernelChange:
    """One kernel of both: by the passes in ``rounds``, or if there are none by own intervals."""
    by_rounds = None
    if rounds and len(rounds) == len(a.samples_s) == len(b.samples_s):
        by_rounds = _kernel_by_rounds(a, b, np.asarray(rounds))
    return KernelChange(
        key=key,
        op_a=a.op,
        op_b=b.op,
        difference=by_rounds
        or difference_of(a.latency_s, _kernel_interval(a), b.latency_s, _kernel_interval(b)),
    )


def _kernel_by_rounds(a: KernelTime, b: KernelTime, rounds: np.ndarray) -> Difference | None:
    """B against A pass by pass, so that drift cancels and each pass's placement counts as chance.

    None where a kernel took less than the profiler's clock can tell.
    """
    of_a, of_b = np.asarray(a.samples_s), np.asarray(b.samples_s)
    ratios = []
    for number in np.unique(rounds):
        ours, theirs = _middle(of_a[rounds == number]), _middle(of_b[rounds == number])
        if ours <= 0 or theirs <= 0:
            return None
        ratios.append(theirs / ours)
    return by_ratios(a.latency_s, b.latency_s, ratios)


def _middle(samples: np.ndarray) -> float:
    """The mean of the middle half: robust, and finer than a clock of whole microseconds."""
    quarter = len(samples) // 4
    return float(np.mean(np.sort(samples)[quarter : len(samples) - quarter]))


def _kernel_interval(kernel: KernelTime) -> Interval | None:
    """An interval of a kernel's median within its profile, or None without enough runs.

    The runs are cut into stretches, each with the mean of its middle half. The median of these is
    bootstrapped and centred on the kernel's time.
    What differs between two profiles of one engine (where its memory lies) is not in it.
    """
    if len(kernel.samples_s) < 2 * STRETCHES or kernel.latency_s <= 0:
        return None
    pieces = np.array_split(np.asarray(kernel.samples_s), STRETCHES)
    middles = [_middle(piece) for piece in pieces]
    around, centre = stats.ratio_interval(middles, coverage=COVERAGE), stats.median(middles)
    low = kernel.latency_s + around.low - centre
    return Interval(low, kernel.latency_s + around.high - centre, COVERAGE) if low > 0 else None
