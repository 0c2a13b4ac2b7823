"""Which precisions an NVIDIA chip computes fast, by its compute capability.

Where int8 is not fast TensorRT refuses networks with Q/DQ (TensorRT#3157 and #3399, both on
sm_53): there int8 is a way to store weights, which are made floats again before the build.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.records import GpuFacts

__all__ = ["FAST", "Capability", "capability_of", "of_compute"]

# By compute capability: whether half precision and integers are faster than fp32. TensorRT's
# support matrix, "Hardware and Precision" (8.2.5 and 8.6.1); all from 7.0 on have both.
FAST = {
    "5.0": (False, False),
    "5.2": (False, False),
    "5.3": (True, False),
    "6.0": (True, False),
    "6.1": (False, True),
    "6.2": (True, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a GPU computes fast, and who says so; ``compute`` None: it is not known."""

    compute: str | None
    fast_fp16: bool
    fast_int8: bool
    source: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions worth computing in, the exact one first."""
        fast = (("fp16", self.fast_fp16), ("int8", self.fast_int8))
        return ("fp32", *(name for name, is_fast in fast if is_fast))


def of_compute(compute: str) -> tuple[bool, bool]:
    """Whether fp16 and int8 are fast on a chip; ValueError for what is no compute capability."""
    if re.fullmatch(r"\d+\.\d+", compute) is None:
        raise ValueError(f"{compute!r} is no compute capability, which looks like 5.3")
    modern = int(compute.partition(".")[0]) >= 7
    return FAST.get(compute, (modern, modern))


def capability_of(gpu: GpuFacts) -> Capability:
    """What a board's GPU is good for: the runtime's own word, else the chip's.

    int8 needs both where both are known: a network that is refused costs more than a precision
    that is not tried. GPUs of which nothing is known compute in fp32.
    """
    fp16, int8, source = gpu.fast_fp16, gpu.fast_int8, "the runtime says so"
    if gpu.compute is not None:
        chip_fp16, chip_int8 = of_compute(gpu.compute)
        if fp16 is None or int8 is None or (int8 and not chip_int8):
            source = f"by its compute capability {gpu.compute}"
        fp16 = chip_fp16 if fp16 is None else fp16
        int8 = chip_int8 if int8 is None else int8 and chip_int8
    if fp16 is None or int8 is None:
        source = "its compute capability is not known"
    return Capability(
        compute=gpu.compute, fast_fp16=bool(fp16), fast_int8=bool(int8), source=source
    )
