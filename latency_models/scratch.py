"""Memory that onnxruntime's CPU kernels take for themselves while they run.

Blocked convolutions take none. Source: onnxruntime 1.31, ``contrib_ops/cpu/quantization/
qlinearconv.cc`` (integer convolutions), ``core/mlas/lib/convsym.cpp`` (which have a kernel without
an intermediate result) and ``core/mlas/lib/convolve.cpp`` (float ones that are not blocked).
"""

from __future__ import annotations

import math

from latency_models.kernels import Kernel

__all__ = ["scratch"]

_POINTER, _INT32, _FLOAT = 8, 4, 4
# Symmetric integer kernels on x86: channels read go in fours, channels written at least fill a
# vector; depthwise ones go in whole vectors (seen in what 1.31 allocates, on AVX-512).
_READ_BY, _LEAST_WRITTEN, _DEPTHWISE_BY = 4, 16, 16
# One thread's part of the expanded input (MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD, 128 x 128).
_SEGMENT = 128 * 128 * _FLOAT


def scratch(kernel: Kernel) -> tuple[int, ...]:
    """The bytes of each buffer that ``kernel`` takes beside its output, on one thread.

    Of convolutions alone: other kernels need little. What a GPU's library takes is not known.
    """
    if not kernel.kind.startswith("conv_") or kernel.kind == "conv_transpose":
        return ()
    if not kernel.in_shapes or len(kernel.in_shapes[0]) != 4:
        return ()
    window = math.prod(kernel.window)
    positions = math.prod(kernel.out_hw)
    entering = kernel.in_channels // kernel.groups
    direct = window == 1 and kernel.stride == (1, 1)
    if kernel.precision == "int8":
        return _integer(kernel, window, positions, entering, direct)
    if kernel.layout == "blocked" or direct:
        return ()
    if kernel.out_channels // kernel.groups > positions:
        return (_FLOAT * positions * window * entering,)
    return (_SEGMENT,)


def _integer(
    kernel: Kernel, window: int, positions: int, entering: int, direct: bool
) -> tuple[int, ...]:
    """Pointers to each position's inputs, or the sums in int32 and the inputs laid out."""
    sums = _INT32 * kernel.out_channels * positions
    pointers = _POINTER * window * positions
    if kernel.groups > 1 and entering == 1 and kernel.out_channels == kernel.groups:
        whole = kernel.out_channels % _DEPTHWISE_BY == 0
        return (pointers,) if whole else (sums, pointers)
    symmetric = (
        kernel.groups == 1 and entering % _READ_BY == 0 and kernel.out_channels >= _LEAST_WRITTEN
    )
    if symmetric:
        return () if direct else (pointers,)
    return (sums,) if direct else (sums, window * entering * positions)
