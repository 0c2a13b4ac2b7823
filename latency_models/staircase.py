"""The staircase of a latency model: how many channels a board's kernels compute at once."""

from __future__ import annotations

import numpy as np

from latency_models.kernels import Dims, Work
from latency_models.model import LatencyModel

__all__ = ["channel_step"]

# A step is one where so much of the rise over its width comes with its first channel. Less, and the
# widths between are worth having.
STEEP = 0.75
STEPS = (64, 32, 16, 8, 4)
# A convolution large enough for arithmetic to take nearly all of its time.
_ROWS, _SIDE, _INPUTS, _WINDOW = 28 * 28, 28, 128, 9
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def channel_step(model: LatencyModel, precision: str) -> int | None:
    """The width of the steps in which a convolution's time rises with its output channels.

    By the analytical part of ``model`` as it was fitted: of 64, 32, 16, 8 and 4 the largest for
    which ``sum_k t(k s + 1) - t(k s)`` is at least three quarters of ``sum_k t(k s + s) - t(k s)``,
    for a 3x3 convolution of 128 channels at 28 x 28 whose outputs go up to 128. None where time
    rises evenly, or the model knows no such precision.

    Source: the staircase after ANNETTE (Wess et al., IEEE Access 9, 2021, eq. 3).
    """
    if precision not in model.precisions:
        return None
    seconds, _ = model.parts([_convolution(n, precision) for n in range(1, 2 * STEPS[0] + 2)])
    for step in STEPS:
        starts = np.arange(step, 2 * STEPS[0] + 1 - step, step) - 1
        rise = float((seconds[starts + step] - seconds[starts]).sum())
        first = float((seconds[starts + 1] - seconds[starts]).sum())
        if rise > 0 and first >= STEEP * rise:
            return step
    return None


def _convolution(outputs: int, precision: str) -> Work:
    size = _BYTES[precision]
    return Work(
        kind="conv_3x3",
        macs=_ROWS * outputs * _INPUTS * _WINDOW,
        bytes_in=_ROWS * _INPUTS * size,
        bytes_out=_ROWS * outputs * size,
        bytes_weights=outputs * _INPUTS * _WINDOW * size,
        shape=Dims(_ROWS, outputs, _INPUTS, _WINDOW, 1, _SIDE),
        precision=precision,
        name="conv",
    )
