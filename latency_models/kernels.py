"""Kernels, what a runtime executes after fusion, and the work that one of them does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latency_models.operators import Op, Shape

__all__ = ["BYTES", "KERNEL_KINDS", "Dims", "Kernel", "Work", "Works", "work"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Sizes = Sequence[int | Ints]

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
        return int(channel_count(self.kind, shape))

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


def channel_count(kind: str, shape: Any) -> Any:
    """The size of the channel axis: a convolution's is axis 1 whatever the rank."""
    return shape[1] if kind.startswith("conv_") else channels(shape)


def channels(shape: Any) -> Any:
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
    macs, bytes_in, bytes_out, bytes_weights, dims = _quantities(
        kernel, kernel.in_shapes, kernel.out_shape, kernel.groups
    )
    return Work(
        kind=kernel.kind,
        macs=macs,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        bytes_weights=bytes_weights,
        shape=Dims(*dims),
        precision=kernel.precision,
        name=kernel.name,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Works:
    """Many works as arrays: what ``Work`` says, an entry a work.

    ``label`` gives each work's (kind, precision) among ``labels``; ``dims`` are its ``Dims``, a row
    each.
    """

    labels: tuple[tuple[str, str], ...]
    label: npt.NDArray[np.intp]
    macs: Floats
    bytes_in: Floats
    bytes_out: Floats
    bytes_weights: Floats
    dims: Floats

    @classmethod
    def of(cls, works: Sequence[Work]) -> Works:
        """These works as arrays."""
        pairs = [(w.kind, w.precision) for w in works]
        labels = tuple(dict.fromkeys(pairs))
        place = {pair: index for index, pair in enumerate(labels)}
        sizes = np.array(
            [(w.macs, w.bytes_in, w.bytes_out, w.bytes_weights, *w.shape) for w in works],
            dtype=np.float64,
        ).reshape(len(works), 10)
        label = np.array([place[pair] for pair in pairs], np.intp)
        macs, read, written, weights = sizes[:, :4].T
        return cls(labels, label, macs, read, written, weights, sizes[:, 4:])

    @classmethod
    def at(
        cls, kernel: Kernel, in_shapes: Sequence[Sizes], out_shape: Sizes, groups: int | Ints
    ) -> Works:
        """The works of ``kernel`` at these sizes, each a number or a flat array of them."""
        *sizes, dims = _quantities(kernel, in_shapes, out_shape, groups)
        columns = np.broadcast_arrays(np.zeros(1), *sizes, *dims)[1:]
        table = np.array(columns, dtype=np.float64)
        macs, read, written, weights = table[:4]
        label = np.zeros(table.shape[1], np.intp)
        pair = (kernel.kind, kernel.precision)
        return cls((pair,), label, macs, read, written, weights, table[4:].T)

    @classmethod
    def joined(cls, parts: Sequence[Works]) -> Works:
        """All works of ``parts``, in their order."""
        labels = tuple(dict.fromkeys(pair for part in parts for pair in part.labels))
        place = {pair: index for index, pair in enumerate(labels)}
        label = [np.array([place[p] for p in part.labels], np.intp)[part.label] for part in parts]
        return cls(
            labels,
            np.concatenate(label),
            np.concatenate([part.macs for part in parts]),
            np.concatenate([part.bytes_in for part in parts]),
            np.concatenate([part.bytes_out for part in parts]),
            np.concatenate([part.bytes_weights for part in parts]),
            np.concatenate([part.dims for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.label)

    def only(self, rows: npt.NDArray[np.intp] | slice) -> Works:
        """These rows alone."""
        return Works(
            self.labels,
            self.label[rows],
            self.macs[rows],
            self.bytes_in[rows],
            self.bytes_out[rows],
            self.bytes_weights[rows],
            self.dims[rows],
        )

    def unique(self) -> tuple[Works, npt.NDArray[np.intp]]:
        """Each different work once, and where each of these stands among them."""
        columns = (self.label, self.macs, self.bytes_in, self.bytes_out, self.bytes_weights)
        table = np.column_stack((*columns, self.dims))
        order = np.lexsort(table.T)
        new = np.ones(len(table), bool)
        new[1:] = (table[order[1:]] != table[order[:-1]]).any(axis=1)
        place = np.empty(len(table), np.intp)
        place[order] = np.cumsum(new) - 1
        return self.only(order[new]), place

    def each(self, values: Sequence[Any]) -> npt.NDArray[Any]:
        """An array of each work's value, given that of each of ``labels``."""
        return np.array(values)[self.label] if len(self.label) else np.zeros(0, np.intp)


def _quantities(
    kernel: Kernel, in_shapes: Sequence[Sizes], out_shape: Sizes, groups: int | Ints
) -> tuple[Any, ...]:
    """Macs, bytes in, out and of weights, and dimensions: numbers, or arrays as the sizes are."""
    width = BYTES[kernel.precision]
    width_in = 4 if kernel.kind == "quantize" else BYTES[kernel.reads or kernel.precision]
    width_out = 4 if kernel.kind == "dequantize" else BYTES[kernel.writes or kernel.precision]
    moves = kernel.kind != "view"
    macs, weights, dims = _compute(kernel, in_shapes, out_shape, groups, width)
    return (
        macs,
        width_in * sum(math.prod(s) for s in in_shapes) if moves else 0,
        width_out * math.prod(out_shape) if moves else 0,
        weights,
        dims,
    )


def _compute(
    kernel: Kernel, in_shapes: Sequence[Any], out_shape: Any, groups: Any, width: int
) -> tuple[Any, Any, tuple[Any, ...]]:
    elements = math.prod(out_shape)
    out_channels = channel_count(kernel.kind, out_shape)
    window = math.prod(kernel.window)
    if kernel.kind.startswith("conv_"):
        inputs = (channel_count(kernel.kind, in_shapes[0]) if in_shapes else 0) // groups
        row = 0 if window == 1 and kernel.stride == (1, 1) else out_shape[-1]
        dims = (elements // out_channels, out_channels // groups, inputs, window, groups, row)
        weights = out_channels * inputs * window * width + 4 * out_channels
        return elements * inputs * window, weights, dims
    if kernel.kind in ("gemm", "matmul"):
        inner, outputs = in_shapes[0][-1], out_shape[-1]
        weights = (inner * outputs * width + 4 * outputs) if kernel.weight else 0
        return elements * inner, weights, (elements // outputs, outputs, inner, 1, 1, 0)
    if kernel.kind in ("max_pool", "average_pool"):
        return 0, 0, (elements // out_channels, out_channels, 1, window, 1, 0)
    # Reductions and pools read more than they write: what is read is what takes time.
    size = elements
    for shape in in_shapes:
        read = math.prod(shape)
        plain = isinstance(size, int) and isinstance(read, int)
        size = max(size, read) if plain else np.maximum(size, read)
    outputs = channel_count(kernel.kind, in_shapes[0]) if in_shapes else 0
    if isinstance(outputs, int) and not outputs:
        outputs = out_channels
    return 0, 0, (size // outputs, outputs, 1, 1, 1, 0)
