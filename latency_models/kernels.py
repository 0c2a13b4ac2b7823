"""Kernels, what a runtime executes after fusion, and the work that one of them does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from latency_models.operators import Op, Shape

__all__ = ["BYTES", "KERNEL_KINDS", "Dims", "Kernel", "Work", "work"]

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}

KERNEL_KINDS = tuple(
    [
        "conv_1x1",
        "conv_3x3",
        "conv_large",
        "conv_direct",
        "conv_grouped",
        "conv_depthwise",
        "conv_im2col",
        "conv_transpose",
        "gemm",
        "matmul",
        "elementwise",
        "transcendental",
        "binary",
        "binary_broadcast",
        "max_pool",
        "average_pool",
        "global_pool",
        "reduce",
        "reduce_strided",
        "softmax",
        "normalise",
        "concat",
        "move",
        "transpose",
        "resize",
        "view",
        "reformat",
        "reorder_input",
        "reorder_output",
        "quantize",
        "dequantize",
    ]
)


class Dims(NamedTuple):
    """The dimensions that drive utilisation: a convolution is ``groups`` matrix products of
    ``rows x (inputs * window)`` with ``(inputs * window) x outputs``.

    ``rows`` counts output positions (batch included); ``inputs`` and ``outputs`` are channels of
    one group. Elsewhere ``rows * outputs`` is the number of elements and ``inputs`` is 1. ``width``
    is how many positions follow each other before the input jumps: an image's row, or all (0)
    where the window is 1 x 1 and moves by one.
    """

    rows: int
    outputs: int
    inputs: int = 1
    window: int = 1
    groups: int = 1
    width: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One call of the runtime: a leading ONNX node and whatever is fused into it.

    ``nodes`` are all ONNX nodes that it executes, ``ops`` the same as operators; both are empty for
    a reorder or transpose that the runtime inserts. ``inputs`` are the activation tensors read,
    ``output`` the tensor written. ``layout`` is how the output lies in memory: ``nchw``, ``nhwc``
    or ``blocked``. ``reads`` and ``writes`` are the precisions of the tensors where they
    are not the kernel's own.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    weight: str | None
    inputs: tuple[str, ...]
    output: str
    in_shapes: tuple[Shape, ...]
    out_shape: Shape
    precision: str
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    layout: str = "nchw"
    ops: tuple[Op, ...] = ()
    reads: str | None = None
    writes: str | None = None

    @property
    def batch(self) -> int:
        """Networks in one call."""
        return self.out_shape[0] if self.out_shape else 1

    @property
    def in_channels(self) -> int:
        """Channels of the first tensor read."""
        return self._channels(self.in_shapes[0]) if self.in_shapes else 0

    @property
    def out_channels(self) -> int:
        """Channels written."""
        return self._channels(self.out_shape)

    def _channels(self, shape: Shape) -> int:
        """A convolution's channels are on axis 1 whatever the rank."""
        return shape[1] if self.kind.startswith("conv_") else channels(shape)

    @property
    def in_hw(self) -> tuple[int, int]:
        """Height and width of the first tensor read; 1 x 1 if it has none."""
        return spatial(self.in_shapes[0]) if self.in_shapes else (1, 1)

    @property
    def out_hw(self) -> tuple[int, int]:
        """Height and width written; 1 x 1 if there are none."""
        return spatial(self.out_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one kernel does, in the quantities that its time depends on.

    ``macs`` is 0 where nothing is multiplied and accumulated; ``bytes_*`` are those of the tensors
    themselves, whatever caches do.
    """

    kind: str
    macs: int
    bytes_in: int
    bytes_out: int
    bytes_weights: int
    shape: Dims
    precision: str
    name: str


def channels(shape: Shape) -> int:
    """The size of the channel axis: 1 in images and vectors, the last in sequences."""
    if len(shape) <= 1:
        return shape[0] if shape else 1
    return shape[-1] if len(shape) == 3 else shape[1]


def spatial(shape: Shape) -> tuple[int, int]:
    """Height and width; a sequence counts as height x 1."""
    if len(shape) == 4:
        return shape[2], shape[3]
    return (shape[1], 1) if len(shape) == 3 else (1, 1)


def work(kernel: Kernel) -> Work:
    """What ``kernel`` does. Bytes are counted once for every tensor read and written.

    Weights count with their biases of four bytes each. Macs of a convolution: outputs x window x
    input channels of a group.
    """
    width = BYTES[kernel.precision]
    width_in = 4 if kernel.kind == "quantize" else BYTES[kernel.reads or kernel.precision]
    width_out = 4 if kernel.kind == "dequantize" else BYTES[kernel.writes or kernel.precision]
    moves = kernel.kind != "view"
    macs, bytes_weights, dims = _compute(kernel, width)
    return Work(
        kind=kernel.kind,
        macs=macs,
        bytes_in=width_in * sum(math.prod(s) for s in kernel.in_shapes) if moves else 0,
        bytes_out=width_out * math.prod(kernel.out_shape) if moves else 0,
        bytes_weights=bytes_weights,
        shape=dims,
        precision=kernel.precision,
        name=kernel.name,
    )


def _compute(kernel: Kernel, width: int) -> tuple[int, int, Dims]:
    elements = math.prod(kernel.out_shape)
    window = math.prod(kernel.window)
    if kernel.kind.startswith("conv_"):
        inputs = kernel.in_channels // kernel.groups
        outputs = kernel.out_channels // kernel.groups
        rows = elements // kernel.out_channels
        row = 0 if window == 1 and kernel.stride == (1, 1) else kernel.out_shape[-1]
        dims = Dims(rows, outputs, inputs, window, kernel.groups, row)
        weights = kernel.out_channels * inputs * window * width + 4 * kernel.out_channels
        return elements * inputs * window, weights, dims
    if kernel.kind in ("gemm", "matmul"):
        inner = kernel.in_shapes[0][-1]
        outputs = kernel.out_shape[-1]
        weights = (inner * outputs * width + 4 * outputs) if kernel.weight else 0
        return elements * inner, weights, Dims(elements // outputs, outputs, inner)
    # Reductions and pools read more than they write: what is read is what takes time.
    size = max([elements, *(math.prod(s) for s in kernel.in_shapes)])
    outputs = kernel.out_channels
    if kernel.kind in ("max_pool", "average_pool"):
        return 0, 0, Dims(elements // outputs, outputs, 1, window)
    outputs = kernel.in_channels or outputs
    return 0, 0, Dims(size // outputs, outputs)
