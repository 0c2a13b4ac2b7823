"""What a parameter is thought to be before measuring, and what the two forms share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DENSE", "LIGHT_STEP", "Array", "Indices", "Prior"]

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Kinds that multiply matrices.
DENSE = frozenset(
    [
        "conv_1x1",
        "conv_3x3",
        "conv_large",
        "conv_grouped",
        "conv_direct",
        "conv_im2col",
        "conv_transpose",
        "gemm",
        "matmul",
    ]
)
# What a kernel that multiplies no matrices counts among a CPU's steps. Ratios of ResNet-56 in mixed
# precision and in int8 to fp32 are off by 13 % on average with 1, and by 4 % with this; held-out
# whole networks are predicted as well with 0.3 to 1.
LIGHT_STEP = 0.5


@dataclass(frozen=True, slots=True)
class Prior:
    """What a parameter is thought to be before measuring: ``value``, give or take ``spread``.

    ``spread`` is a standard deviation of the parameter's logarithm (of the parameter itself where
    ``linear``), of what is its own; ``shared`` names the sources of doubt that it has in common
    with other parameters, each with a standard deviation. A board on which one kind is faster than
    thought is faster in kinds like it, too.
    """

    name: str
    unit: str
    value: float
    spread: float
    linear: bool = False
    shared: tuple[tuple[str, float], ...] = ()
