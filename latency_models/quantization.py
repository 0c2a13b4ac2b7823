"""Where a Q/DQ export puts its pairs: what ``onnxruntime.quantization.quantize_static`` does.

Source: onnxruntime 1.31, ``quantization/registry.py`` (which operators) and
``quantization/operators/*.py`` (which of their tensors); format QDQ, asymmetric activations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence, Set
from typing import Any

from latency_models.operators import QDQ, Op

__all__ = [
    "CARRIERS",
    "FOLLOWERS",
    "PASSING",
    "QUANTIZABLE",
    "carriers",
    "free_output",
    "insert_pairs",
    "insert_pairs_at_inputs",
    "keep_float",
    "read_float",
]

# Quantized whatever their neighbours are.
_ALWAYS = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "LeakyRelu",
        "Sigmoid",
        "GlobalAveragePool",
        "Split",
        "Pad",
        "Resize",
        "Concat",
        "Softmax",
        "Where",
        "Gather",
        "GatherElements",
        "BatchNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "ArgMax",
        "CumSum",
        "TopK",
    ]
)
# Quantized if their input is: they pass its scale on.
FOLLOWERS = frozenset(
    ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "AveragePool", "Slice"]
)
# Removed after a quantized producer: the zero point rectifies.
_REMOVABLE = frozenset(["Relu", "Clip"])
QUANTIZABLE = _ALWAYS | FOLLOWERS | _REMOVABLE

# What carries integers at no cost but its own; an exporter that quantizes some layers only
# quantizes these where all that they read is integer.
CARRIERS = frozenset(
    [
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Flatten",
        "GlobalAveragePool",
        "MaxPool",
        "Relu",
        "Reshape",
        "Squeeze",
        "Transpose",
    ]
)

# What stays float and only moves values: an addition of its result still works on integers.
PASSING = frozenset(["Pad", "Slice"])


def carriers(ops: Sequence[Op], quantized: Set[str]) -> set[str]:
    """The operators without weights that carry integers, given the quantized ones.

    All that one reads is quantized already, or an addition reads it moved and padded, and it leads
    to a convolution or matrix product, whichever precision that has (what leads to the network's
    outputs alone stays float); or it vanishes in the quantized operator before it. Only what lies
    before an operator decides, so that a layer's precision matters to its surroundings alone.
    """
    producer = {t: op for op in ops for t in op.outputs}
    leading: set[str] = set()
    wanted: set[str] = set()
    for op in reversed(ops):
        if op.kind in ("conv", "gemm") or any(t in wanted for t in op.outputs):
            leading.add(op.name)
            wanted.update(op.inputs)
    carried = set(quantized)
    passed: set[str] = set()
    for op in ops:
        sources = [producer.get(tensor) for tensor in op.inputs]
        names = {"" if source is None else source.name for source in sources}
        if op.op in PASSING and names and names <= carried | passed:
            passed.add(op.name)
        read = carried | passed if op.op == "Add" and names & carried else carried
        if op.op not in CARRIERS or not names or not names <= read:
            continue
        if op.op in _REMOVABLE or op.name in leading:
            carried.add(op.name)
    return carried - set(quantized)


def free_output(ops: Sequence[Op]) -> tuple[Op, ...]:
    """``ops`` in which a Gemm that gives the network's output gives floats: its pair is dropped."""
    producer = {t: op for op in ops for t in op.outputs}
    freed = {}
    for op in ops:
        source = producer.get(op.inputs[0]) if op.op == QDQ and op.exported else None
        if source is not None and source.op == "Gemm":
            freed[source.name] = op.name
    return tuple(
        dataclasses.replace(op, exported=True) if op.name in freed else op
        for op in ops
        if op.name not in freed.values()
    )


def keep_float(ops: Sequence[Op]) -> tuple[Op, ...]:
    """``ops`` in which no layer with float weights is quantized by the runtime on its own."""
    return tuple(
        dataclasses.replace(op, kept_float=True)
        if op.weight is not None and not op.integer_weight and not op.kept_float
        else op
        for op in ops
    )


def read_float(ops: Sequence[Op], quantized: Set[str]) -> tuple[Op, ...]:
    """``ops`` in which no float operator reads a float one's result through a Q/DQ pair.

    ``quantized`` are the operators on integers. The network's outputs are such readers, too.
    """
    written = {t for op in ops if op.op == QDQ or op.name in quantized for t in op.outputs}
    plain = {op.outputs[0]: op.inputs[0] for op in ops if op.op == QDQ}
    plain = {copy: source for copy, source in plain.items() if source not in written}
    given = {plain[op.outputs[0]] for op in ops if op.exported and op.outputs[0] in plain}
    result = []
    for op in ops:
        changed: dict[str, Any] = {}
        if op.op == QDQ:
            if op.exported and op.inputs[0] not in written:
                changed["exported"] = False
        elif op.name not in quantized:
            if not plain.keys().isdisjoint(op.inputs):
                changed["inputs"] = tuple(plain.get(tensor, tensor) for tensor in op.inputs)
            if not given.isdisjoint(op.outputs):
                changed["exported"] = True
        # Copying an operator takes longer than all of this.
        result.append(dataclasses.replace(op, **changed) if changed else op)
    return tuple(result)


def insert_pairs(ops: Sequence[Op], quantized: Set[str], *, shares: bool = True) -> tuple[Op, ...]:
    """``ops`` with a Q/DQ pair on every tensor that quantizing the operators named puts one on.

    ``quantized`` holds operator names; those that cannot be quantized are left as they are.
    ``shares``: a constant that one of them shares with others is stored as integers for all.
    """
    readers: dict[str, int] = {}
    for op in ops:
        for tensor in dict.fromkeys(op.inputs):
            readers[tensor] = readers.get(tensor, 0) + 1
    producer = {t: op for op in ops for t in op.outputs}
    renamed: dict[str, str] = {}
    removed: set[str] = set()
    stored: set[str] = set()
    paired: dict[str, None] = {}
    for op in ops:
        if op.name not in quantized or op.op not in QUANTIZABLE:
            continue
        if op.op in _REMOVABLE:
            source = op.inputs[0]
            if source not in paired:
                continue
            alone = readers[source] == 1 and source in producer and not producer[source].exported
            if alone:
                del paired[source]
                renamed[source] = op.outputs[0]
                removed.add(op.name)
        elif op.op in FOLLOWERS:
            if op.inputs[0] not in paired:
                continue
        else:
            paired.update(dict.fromkeys(op.inputs))
            stored.update(n for n in (op.weight, op.bias) if n)
        paired.update(dict.fromkeys(op.outputs))
    holders = None if shares else quantized
    return tuple(_rewire(ops, paired, renamed, removed, stored, holders))


def insert_pairs_at_inputs(
    ops: Sequence[Op], layers: Set[str], carried: Set[str]
) -> tuple[Op, ...]:
    """``ops`` with Q/DQ pairs in front of the integer ``layers``, as TensorRT fuses best.

    boardfit's own export for TensorRT (``harness.compression.quantize``): a pair on what a layer or
    an average pool of ``carried`` reads, and on the summands of a carried addition but the one
    whose layer takes the addition in. Everything else reads floats. Source: TensorRT's guide, "Q/DQ
    placement recommendations".
    """
    producer = {t: op for op in ops for t in op.outputs}
    count: dict[str, int] = {}
    for tensor in [t for op in ops for t in dict.fromkeys(op.inputs)]:
        count[tensor] = count.get(tensor, 0) + 1

    def only_adds(tensor: str) -> bool:
        return tensor in producer and producer[tensor].name in layers and count[tensor] == 1

    behind: dict[str, set[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for op in ops:
        wanted = op.inputs[:1] if op.name in layers else ()
        if op.name in carried and op.op in ("GlobalAveragePool", "AveragePool"):
            wanted = op.inputs[:1]
        elif op.name in carried and op.op == "Add":
            fused = next((t for t in op.inputs if only_adds(t)), None)
            wanted = tuple(t for t in op.inputs if t != fused)
        for tensor in wanted:
            behind.setdefault(tensor, set()).add(op.name)
            shapes[tensor] = op.in_shapes[op.inputs.index(tensor)]
    result: list[Op] = []
    made: set[str] = set()
    for op in ops:
        for tensor in op.inputs:
            if op.name in behind.get(tensor, ()) and tensor not in made:
                made.add(tensor)
                result.append(_pair(tensor, shapes[tensor], exported=False, place=op.place))
        inputs = tuple(f"{t}/dequantized" if op.name in behind.get(t, ()) else t for t in op.inputs)
        integer = op.integer_weight or (op.name in layers and op.weight is not None)
        if inputs != op.inputs or integer != op.integer_weight:
            op = dataclasses.replace(op, inputs=inputs, integer_weight=integer)
        result.append(op)
    return tuple(result)


def _rewire(
    ops: Sequence[Op],
    paired: dict[str, None],
    renamed: dict[str, str],
    removed: set[str],
    stored: set[str],
    holders: Set[str] | None,
) -> list[Op]:
    """``holders`` read the constants that are ``stored`` as integers; None: whoever has them."""

    def read(tensor: str) -> str:
        return f"{tensor}/dequantized" if tensor in paired else tensor

    result: list[Op] = []
    seen: set[str] = set()
    exported = {t for op in ops if op.exported for t in op.outputs}
    written = {t for op in ops for t in op.outputs}
    for op in ops:
        for tensor, shape in zip(op.inputs, op.in_shapes, strict=True):
            if tensor in paired and tensor not in seen and tensor not in written:
                seen.add(tensor)
                result.append(_pair(tensor, shape, exported=False, place=op.place))
        if op.name in removed:
            continue
        outputs = tuple(renamed.get(t, t) for t in op.outputs)
        while any(t in renamed for t in outputs):
            outputs = tuple(renamed.get(t, t) for t in outputs)
        pairs = [
            _pair(t, s, exported=t in exported, place=op.place)
            for t, s in zip(outputs, op.out_shapes, strict=True)
            if t in paired
        ]
        touched = pairs or outputs != op.outputs or not paired.keys().isdisjoint(op.inputs)
        own = stored if holders is None or op.name in holders else set()
        if touched or op.weight in own or op.bias in own:
            op = dataclasses.replace(
                op,
                inputs=tuple(read(t) for t in op.inputs),
                outputs=outputs,
                dequantized=_dequantized(op, own),
                integer_weight=op.integer_weight or op.weight in own,
                exported=op.exported and not pairs,
            )
        result.append(op)
        result.extend(pairs)
    return result


def _dequantized(op: Op, stored: set[str]) -> tuple[int, ...]:
    """Element counts of the op's constants that the export stores as integers."""
    if op.weight is None:
        return op.dequantized
    sizes = []
    if op.weight in stored:
        sizes.append(math.prod(op.weight_shape))
    if op.bias in stored:
        sizes.append(op.out_shapes[0][1] if len(op.out_shapes[0]) > 1 else op.out_shapes[0][-1])
    return tuple(sizes) or op.dequantized


def _pair(tensor: str, shape: tuple[int, ...], *, exported: bool, place: int) -> Op:
    return Op(
        name=f"{tensor}_QuantizeLinear",
        op=QDQ,
        nodes=(f"{tensor}_QuantizeLinear", f"{tensor}_DequantizeLinear"),
        inputs=(tensor,),
        outputs=(f"{tensor}/dequantized",),
        in_shapes=(shape,),
        out_shapes=(shape,),
        exported=exported,
        place=place,
    )
