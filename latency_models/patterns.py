"""What runtimes recognise before they fuse by rules: chains that are one operator, repeats.

Source of the chains (gates, the exact Gelu, layer norm): onnxruntime, ``core/optimizer``:
``quick_gelu_fusion``, ``gelu_fusion``, ``layer_norm_fusion``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from latency_models.operators import QDQ, Op, Shape

__all__ = ["Pattern", "Tensors", "find", "without_repeats"]

_GATES = {"Sigmoid": "QuickGelu", "HardSigmoid": "HardSwish"}
# Operators with attributes that an ``Op`` does not hold (bounds, slopes, types, scales; in old
# opsets those of Slice and Pad): two may differ though all that is known of them is the same.
_UNTOLD = frozenset(
    [
        "Cast",
        "Celu",
        "Clip",
        "DepthToSpace",
        "Elu",
        "Gelu",
        "Gemm",
        "HardSigmoid",
        "LRN",
        "LeakyRelu",
        "LpNormalization",
        "LpPool",
        "Mod",
        "Pad",
        QDQ,
        "Resize",
        "Selu",
        "Slice",
        "ThresholdedRelu",
        "TopK",
        "Upsample",
    ]
)
_COMMUTATIVE = frozenset(["Add", "Mul", "Sum", "Max", "Min"])
_GELU = ("Erf", "Add", "Mul", "Mul")
_LAYER_NORM = ("ReduceMean", "Add", "Sqrt", "Div")


class Tensors:
    """Who writes and who reads each tensor of a network, and the tensor's shape."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.producer = {t: op for op in ops for t in op.outputs}
        self.consumers: dict[str, list[Op]] = {}
        self.shapes: dict[str, Shape] = {}
        for op in ops:
            self.shapes |= zip(op.inputs, op.in_shapes, strict=True)
            for tensor in dict.fromkeys(op.inputs):
                self.consumers.setdefault(tensor, []).append(op)
        for op in ops:
            self.shapes |= zip(op.outputs, op.out_shapes, strict=True)

    def next(self, tensor: str, *, exported: bool) -> Op | None:
        """The only operator that reads ``tensor``, if there is exactly one and nobody outside."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and not exported else None

    def read_only_by(self, tensor: str, readers: Collection[Op]) -> bool:
        """True if nobody but ``readers`` reads ``tensor``, in the network or outside."""
        allowed = {op.name for op in readers}
        inside = all(op.name in allowed for op in self.consumers.get(tensor, []))
        return inside and not self.producer[tensor].exported

    def after(self, op: Op) -> Op | None:
        """The only operator that reads the first output of ``op``."""
        return self.next(op.outputs[0], exported=op.exported)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A chain found: what it is called, the operators after the first, the tensor it reads."""

    name: str
    ops: tuple[Op, ...]
    source: str


def find(op: Op, tensors: Tensors, known: Collection[str]) -> Pattern | None:
    """The pattern that begins with ``op``, if there is one and the runtime knows it."""
    found = None
    if op.op in _GATES:
        found = _gate(op, tensors)
    elif op.op in ("Div", "Mul") and len(op.inputs) == 1:
        found = _gelu(op, tensors)
    elif op.op == "ReduceMean":
        found = _layer_norm(op, tensors)
    return found if found is not None and found.name in known else None


def without_repeats(ops: Sequence[Op]) -> tuple[Op, ...]:
    """``ops`` but for those that compute what another has computed already.

    Operators with weights, other constants or attributes that ``Op`` does not hold are never
    repeats: their values are not known here. What the network gives out is computed as it stands.
    Source: onnxruntime, ``common_subexpression_elimination.cc``; runtimes do so before they fuse.
    """
    first: dict[tuple[object, ...], Op] = {}
    renamed: dict[str, str] = {}
    kept = []
    for op in ops:
        inputs = tuple(renamed.get(tensor, tensor) for tensor in op.inputs)
        op = op if inputs == op.inputs else dataclasses.replace(op, inputs=inputs)
        order = tuple(sorted(inputs)) if op.op in _COMMUTATIVE else inputs
        same = (op.op, order, op.out_shapes, op.window, op.stride, op.groups, op.axis, op.axes)
        key = (*same, op.permutation, op.mode)
        constant = op.weight is not None or op.constant_shapes or op.dequantized
        plain = not constant and op.op not in _UNTOLD
        if plain and op.inputs and not op.exported and key in first:
            renamed |= zip(op.outputs, first[key].outputs, strict=True)
            continue
        if plain:
            first.setdefault(key, op)
        kept.append(op)
    return tuple(kept)


def _gate(op: Op, tensors: Tensors) -> Pattern | None:
    """x * sigmoid(x) and its like."""
    after = tensors.after(op)
    if after is None or after.op != "Mul":
        return None
    if set(after.inputs) != {op.inputs[0], op.outputs[0]}:
        return None
    return Pattern(_GATES[op.op], (after,), op.inputs[0])


def _gelu(op: Op, tensors: Tensors) -> Pattern | None:
    source, found, last = op.inputs[0], [], op
    for wanted in _GELU:
        after = tensors.after(last)
        if after is None or after.op != wanted:
            return None
        found.append(after)
        last = after
    if not any(source in member.inputs for member in found):
        return None
    return Pattern("Gelu", tuple(found), source)


def _layer_norm(op: Op, tensors: Tensors) -> Pattern | None:
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, then scale and shift if there are."""
    source = op.inputs[0]
    sub = tensors.after(op)
    if sub is None or sub.op != "Sub" or source not in sub.inputs:
        return None
    readers = {reader.op: reader for reader in tensors.consumers.get(sub.outputs[0], [])}
    if set(readers) != {"Pow", "Div"}:
        return None
    found = [sub, readers["Pow"]]
    for wanted in _LAYER_NORM:
        after = tensors.after(found[-1])
        if after is None or after.op != wanted:
            return None
        found.append(after)
    for wanted in ("Mul", "Add"):
        after = tensors.after(found[-1])
        if after is None or after.op != wanted or not after.constant_shapes:
            break
        found.append(after)
    return Pattern("LayerNormalization", tuple(found), source)
