"""What decides which kernels run where: the layers near by, by precision and by class of width.

Rules of fusion and layout look at an operator, at what wrote the tensors that it reads and at what
reads those that it writes. A convolution or matrix product ends that: in which form it leaves its
result follows from its own precision and from the widths at which it works, whatever precedes it.
Between layers, forms are passed on: a sum works on what its inputs lie in.

A *place* is an operator or a tensor: a kernel belongs to the operator that leads it, and one that
the runtime inserts (a reorder, a cast) to the tensor that it converts.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence

from latency_models.fusion_rules import GpuRuntime
from latency_models.kernels import Kernel
from latency_models.lowering import FEW_CHANNELS, Runtime
from latency_models.operators import Op
from latency_models.quantization import CARRIERS

__all__ = ["Influence", "Place", "Reading", "influences", "place_of", "width_class"]

# ("op", name) or ("tensor", name).
Place = tuple[str, str]
_ALIGNMENT = 4
_FEW_GPU_CHANNELS = 4
_NARROWEST = 2


class Reading(enum.Enum):
    """What a rule reads of a tensor's width.

    ``FIT``: whether the layers around work on it in blocks. ``NARROW``: also whether it has fewer
    channels than a block, which a convolution takes as they are. ``ALIGNED``: also whether it is
    whole blocks, as pools and concatenations want.
    """

    FIT = 1
    NARROW = 2
    ALIGNED = 3


# What matters: an operator's precision (None) or what is read of a tensor's width. By how many
# steps away it is; what is nearest decides most.
Influence = dict[tuple[str, Reading | None], int]


def width_class(
    width: int, reading: Reading, runtime: Runtime | GpuRuntime, *, joined: bool
) -> tuple[int, ...]:
    """What the rules read of a number of channels: equal classes, equal structure.

    ``joined``: the channels are concatenated with others, and the sum is what is read.
    """
    single = min(width, _NARROWEST)
    narrow = reading is Reading.NARROW
    if isinstance(runtime, GpuRuntime):
        few = width < _FEW_GPU_CHANNELS
        return (width if joined and few else single, narrow and few)
    block = runtime.block
    if not block:
        few = width < FEW_CHANNELS
        return (width if joined and few else single, narrow and few)
    if joined:
        return (min(width, block), width % block)
    odd = width % _ALIGNMENT > 0
    fits = (single, odd, odd and width < block)
    if reading is Reading.FIT:
        return fits
    return (*fits, width < block if narrow else width % block == 0)


def influences(ops: Sequence[Op], runtime: Runtime | GpuRuntime) -> dict[Place, Influence]:
    """What decides the kernels at every place of a network; ``ops`` in their order."""
    return _Influences(ops, runtime).found()


def place_of(kernel: Kernel, ops: Collection[str], tensors: Collection[str]) -> Place:
    """The place that ``kernel`` belongs to; ``ops`` and ``tensors`` are those of the network."""
    if kernel.name in ops:
        return ("op", kernel.name)
    # A part of a Split, a copy into a concatenation, a constant of a layer.
    leading, _, rest = kernel.name.rpartition("/")
    if leading in ops and rest.split("_")[0] in ("part", "copy", "constant"):
        return ("op", leading)
    name = kernel.inputs[0]
    while name not in tensors:
        # What is dequantized, or dequantized for one reader, goes by the tensor's name and more.
        name, _, rest = name.rpartition("/")
        if not name and not rest:
            raise KeyError(f"kernel {kernel.name!r} converts no tensor of the network")
    return ("tensor", name)


class _Influences:
    def __init__(self, ops: Sequence[Op], runtime: Runtime | GpuRuntime) -> None:
        self.ops = ops
        self.gpu = isinstance(runtime, GpuRuntime)
        self.readers: dict[str, list[Op]] = {}
        for op in ops:
            for tensor in dict.fromkeys(op.inputs):
                self.readers.setdefault(tensor, []).append(op)
        # What decides the form in which each operator leaves its result.
        self.before: dict[str, Influence] = {}
        self.producer = {tensor: op for op in ops for tensor in op.outputs}
        for op in ops:
            self.before[op.name] = self._before(op)

    def found(self) -> dict[Place, Influence]:
        result: dict[Place, Influence] = {}
        for op in self.ops:
            result["op", op.name] = self._of_op(op)
            for tensor in (*op.inputs, *op.outputs):
                if ("tensor", tensor) not in result:
                    result["tensor", tensor] = self._of_tensor(tensor)
        return result

    def _before(self, op: Op) -> Influence:
        if _is_layer(op):
            own = _reads(op.inputs, Reading.FIT)
            _add(own, {(op.name, None): 0})
            return own
        aligned = op.kind in ("pool", "global_pool", "concat")
        own = _reads((*op.inputs, *op.outputs), Reading.ALIGNED if aligned else Reading.FIT)
        for tensor in op.inputs:
            source = self.producer.get(tensor)
            if source is not None:
                _add(own, self.before[source.name], farther=1)
            if not self.gpu:
                # A layer that reads integers leaves them, and their layout, to other readers.
                _add(own, self._layers_after(tensor))
        if op.op not in CARRIERS:
            # Such an operator works on integers only where something after it wants them.
            for tensor in op.outputs:
                _add(own, self._layers_after(tensor))
        return own

    def _layers_after(self, tensor: str) -> Influence:
        return {(r.name, None): 1 for r in self.readers.get(tensor, []) if _is_layer(r)}

    def _needed_by(self, reader: Op) -> Influence:
        """What decides in which form ``reader`` needs its inputs, and whether it runs alone."""
        own = dict(self.before[reader.name])
        if _is_layer(reader):
            own.update(_reads(reader.inputs, Reading.NARROW))
            return own
        for tensor in reader.outputs:
            for after in self.readers.get(tensor, []):
                if not _is_layer(after) and len(after.inputs) == 1:
                    _add(own, self._needed_by(after), farther=1)
                else:
                    _add(own, self.before[after.name], farther=1)
        return own

    def _of_op(self, op: Op) -> Influence:
        own = dict(self.before[op.name])
        if _is_layer(op):
            own.update(_reads(op.inputs, Reading.NARROW))
        # A GPU runtime may run layers that read the same tensor as one.
        for tensor in (*op.outputs, *(op.inputs if self.gpu or not _is_layer(op) else ())):
            for reader in self.readers.get(tensor, []):
                _add(own, self._needed_by(reader), farther=1)
        return own

    def _of_tensor(self, tensor: str) -> Influence:
        source = self.producer.get(tensor)
        own = dict(self.before[source.name]) if source is not None else {}
        for reader in self.readers.get(tensor, []):
            _add(own, self._needed_by(reader), farther=1)
        return own


def _reads(tensors: Sequence[str], reading: Reading) -> Influence:
    return {(tensor, reading): 0 for tensor in tensors}


def _add(own: Influence, other: Influence, *, farther: int = 0) -> None:
    """Take up what is in ``other``, at the shorter of two distances."""
    for what, distance in other.items():
        own[what] = min(own.get(what, distance + farther), distance + farther)


def _is_layer(op: Op) -> bool:
    return op.kind in ("conv", "gemm") and op.weight is not None
