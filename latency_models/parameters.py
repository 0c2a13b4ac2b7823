"""What a parameter is thought to be before measuring, and what the two forms share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DENSE", "Array", "Indices", "Prior"]

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
