"""New channel counts carried through a network, operator by operator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from latency_models.errors import UnsupportedGraph
from latency_models.operators import Op, Shape
from latency_models.sizes import Size

__all__ = ["propagate"]

_FLATTENING = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])


def propagate(ops: Sequence[Op], out_channels: Mapping[str, int]) -> tuple[Op, ...]:
    """``ops`` in which the convolutions and matrix products named have these output channels.

    Everything downstream follows: element-wise operators and pools keep what they get, depthwise
    convolutions take as many groups as channels, concatenations add up, flattening multiplies.
    ``UnsupportedGraph`` where two widths meet that do not fit, or an operator's constants do not
    tell what it would do at another width. A ``Size`` among the widths is carried through as one.
    """
    shapes: dict[str, Shape] = {}
    result = []
    for op in ops:
        inputs = tuple(shapes.get(t, s) for t, s in zip(op.inputs, op.in_shapes, strict=True))
        wanted = out_channels.get(op.name)
        if wanted is None and inputs == op.in_shapes and not _traced(inputs):
            result.append(op)
            continue
        changed = _resize(op, inputs, wanted)
        shapes.update(zip(changed.outputs, changed.out_shapes, strict=True))
        result.append(changed)
    return tuple(result)


def _traced(shapes: Sequence[Shape]) -> bool:
    """Whether a size among ``shapes`` remembers where it came from and must go on."""
    return any(isinstance(size, Size) for shape in shapes for size in shape)


def _resize(op: Op, inputs: tuple[Shape, ...], wanted: int | None) -> Op:
    if wanted is not None and op.kind not in ("conv", "gemm"):
        raise UnsupportedGraph(
            f"{op.name!r} is a {op.op}: only convolutions and matrix products have output channels "
            "of their own; name the ones that write its inputs"
        )
    if op.kind == "conv":
        return _resize_conv(op, inputs, wanted)
    if op.kind == "gemm":
        return _resize_gemm(op, inputs, wanted)
    new = dataclasses.replace(
        op,
        in_shapes=inputs,
        out_shapes=_outputs(op, inputs),
        constant_shapes=tuple(_follow_constant(op, inputs, s) for s in op.constant_shapes),
    )
    if op.kind == "normalise" and op.weight is not None:
        width = inputs[0][1] if op.op == "BatchNormalization" else inputs[0][-1]
        new = dataclasses.replace(new, weight_shape=(width,))
    return new


def _resize_conv(op: Op, inputs: tuple[Shape, ...], wanted: int | None) -> Op:
    (batch, entering, *_), before = inputs[0], op.in_shapes[0][1]
    outputs, groups = op.out_shapes[0][1], op.groups
    if op.depthwise:
        multiplier = outputs // groups
        groups, outputs = entering, entering * multiplier
        if wanted not in (None, outputs):
            raise UnsupportedGraph(
                f"depthwise convolution {op.name!r} gets {entering} channels and cannot give "
                f"{wanted}: prune the convolution that writes its input"
            )
    else:
        outputs = outputs if wanted is None else wanted
    if entering % groups or outputs % groups:
        raise UnsupportedGraph(
            f"convolution {op.name!r} has {groups} groups, which divide neither {entering} input "
            f"nor {outputs} output channels evenly: choose multiples of {groups}"
        )
    same = before == entering and outputs == op.out_shapes[0][1] and inputs == op.in_shapes
    if same and not _traced((*inputs, (outputs,))):
        return op
    weight = (outputs, entering // groups, *op.weight_shape[2:])
    if op.op == "ConvTranspose":
        weight = (entering, outputs // groups, *op.weight_shape[2:])
    shape = (batch, outputs, *op.out_shapes[0][2:])
    return dataclasses.replace(
        op, in_shapes=inputs, out_shapes=(shape,), groups=groups, weight_shape=weight
    )


def _resize_gemm(op: Op, inputs: tuple[Shape, ...], wanted: int | None) -> Op:
    out = op.out_shapes[0]
    shape = (*inputs[0][:-1], out[-1] if wanted is None else wanted)
    if op.weight is None:
        if len(inputs) > 1 and inputs[0][-1] != inputs[1][-2]:
            raise UnsupportedGraph(
                f"{op.name!r} multiplies {inputs[0]} by {inputs[1]}: the inner sizes differ; give "
                "both producers the same width"
            )
        shape = (*inputs[0][:-1], inputs[-1][-1])
    weight = (shape[-1], *op.weight_shape[1:-1], inputs[0][-1]) if op.weight else ()
    return dataclasses.replace(op, in_shapes=inputs, out_shapes=(shape,), weight_shape=weight)


def _outputs(op: Op, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
    first, before = inputs[0], op.in_shapes[0]
    if op.op in _FLATTENING:
        return (_reshaped(op, first, before, op.out_shapes[0]),)
    if op.kind == "binary":
        return (_broadcast(op, inputs),)
    if op.kind == "concat":
        axis = (op.axis or 0) % len(first)
        total = sum(s[axis] for s in inputs)
        rest = {(*s[:axis], *s[axis + 1 :]) for s in inputs}
        if len(rest) > 1:
            raise UnsupportedGraph(f"{op.name!r} concatenates {inputs}, which differ elsewhere too")
        return ((*first[:axis], total, *first[axis + 1 :]),)
    if op.kind == "transpose":
        order = op.permutation or tuple(range(len(first)))[::-1]
        return (tuple(first[axis] for axis in order),)
    if op.op == "Split":
        return _split(op, first, before)
    return tuple(_followed(op, first, before, out) for out in op.out_shapes)


def _followed(op: Op, first: Shape, before: Shape, out: Shape) -> Shape:
    """Each output size that equalled its input's follows it; the others stay."""
    if len(out) == len(before):
        sizes = zip(first, before, out, strict=True)
        lost = [b for f, b, o in zip(first, before, out, strict=True) if f != b and o not in (b, 1)]
        if lost:
            raise UnsupportedGraph(
                f"{op.op} {op.name!r} makes {out} of {before}, and what it would make of {first} "
                "cannot be told: do not prune the channels that it reads"
            )
        return tuple(f if b == o else o for f, b, o in sizes)
    # A reduction that drops axes: what is left keeps its order.
    remaining = list(zip(before, first, strict=True))
    shape = []
    for size in out:
        while remaining and remaining[0][0] != size:
            remaining.pop(0)
        shape.append(remaining.pop(0)[1] if remaining else size)
    return tuple(shape)


def _reshaped(op: Op, first: Shape, before: Shape, out: Shape) -> Shape:
    """The sizes after a reshape: the one axis that held the channels takes up the change."""
    ratio = math.prod(first) / math.prod(before)
    old, new = next(
        (b, f) for b, f in zip(before, first, strict=True) if b != f or isinstance(f, Size)
    )
    for axis, size in enumerate(out):
        if size % old == 0 and math.prod(out) * ratio == math.prod(out) // size * (
            size // old * new
        ):
            return (*out[:axis], size // old * new, *out[axis + 1 :])
    raise UnsupportedGraph(
        f"{op.op} {op.name!r} makes {out} of {before}, and what it would make of {first} cannot be "
        "told: do not prune the channels that it reads"
    )


def _broadcast(op: Op, inputs: tuple[Shape, ...]) -> Shape:
    rank = max(len(s) for s in inputs)
    aligned = [(1,) * (rank - len(s)) + s for s in inputs]
    sizes = []
    for axis in range(rank):
        found = {s[axis] for s in aligned} - {1}
        if len(found) > 1:
            raise UnsupportedGraph(
                f"{op.op} {op.name!r} reads {' and '.join(map(str, inputs))}: what writes its "
                "inputs must keep the same channels"
            )
        sizes.append(found.pop() if found else 1)
    out = op.out_shapes[0]
    # A constant operand may widen the result; such axes are as they were.
    before = [(1,) * (rank - len(s)) + s for s in op.in_shapes]
    if len(out) != rank:
        return out
    return tuple(
        out[axis] if all(b[axis] == 1 for b in before) else size for axis, size in enumerate(sizes)
    )


def _follow_constant(op: Op, inputs: tuple[Shape, ...], constant: Shape) -> Shape:
    """A constant with one value a channel has as many as there are channels."""
    first, before = inputs[0], op.in_shapes[0]
    if not constant or op.op in ("Slice", "Split", "Gather", "Reshape", "Expand", "Pad", "Resize"):
        return constant
    if op.kind == "normalise":
        return tuple(first[1] if size == before[1] else size for size in constant)
    padding = len(before) - len(constant)
    if padding < 0:
        return constant
    return tuple(
        first[axis + padding] if size == before[axis + padding] else size
        for axis, size in enumerate(constant)
    )


def _split(op: Op, first: Shape, before: Shape) -> tuple[Shape, ...]:
    axis = (op.axis or 0) % len(first)
    if first[axis] == before[axis]:
        return tuple((*first[:axis], s[axis], *first[axis + 1 :]) for s in op.out_shapes)
    if len({s[axis] for s in op.out_shapes}) > 1 or first[axis] % len(op.out_shapes):
        raise UnsupportedGraph(
            f"Split {op.name!r} cuts {before[axis]} channels into unlike parts; it cannot cut "
            f"{first[axis]}: do not prune the channels that it reads"
        )
    part = first[axis] // len(op.out_shapes)
    return tuple((*first[:axis], part, *first[axis + 1 :]) for _ in op.out_shapes)
