"""Which operators run as one kernel, and which of them on blocked channels: onnxruntime, CPU.

Source: onnxruntime 1.31, ``core/optimizer``: ``conv_bn_fusion``, ``conv_activation_fusion``,
``nchwc_transformer``, ``qdq_selector_action_transformer``, ``relu_quant_fusion``,
``weight_bias_quantization``; checked against the profiles of real networks
(``tests/latency_models``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from latency_models.operators import ACTIVATIONS, QDQ, Op, Shape
from latency_models.patterns import Tensors, find

__all__ = ["RUNTIMES", "Fusion", "Group", "Runtime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What fusion and layout depend on.

    ``block`` is the channels in a block of the fp32 layout, 0 where there is none.
    ``quantizes_weights``: a float convolution or Gemm between DequantizeLinear and QuantizeLinear
    becomes an integer kernel with weights quantized per tensor, whatever the exporter wanted
    (``weight_bias_quantization.cc``, in 1.31 but not in the 1.10 of Python 3.6).
    """

    name: str
    block: int
    quantizes_weights: bool = True


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(name="onnxruntime-cpu", block=16),
        Runtime(name="onnxruntime-cpu-avx2", block=8),
        Runtime(name="onnxruntime-cpu-arm", block=0),
        Runtime(name="onnxruntime-1.10-cpu", block=16, quantizes_weights=False),
        Runtime(name="onnxruntime-1.10-cpu-arm", block=0, quantizes_weights=False),
    )
}

# Channels that NCHWc reorders move at once (nchwc_transformer.cc, channel_alignment).
_ALIGNMENT = 4
# Operators with an integer kernel between DequantizeLinear and QuantizeLinear.
_INTEGER = frozenset(
    [
        "Conv",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "Concat",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Sigmoid",
        "LeakyRelu",
        "Softmax",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Split",
        "Gather",
        "Resize",
        "Expand",
        "Where",
        "DepthToSpace",
        "SpaceToDepth",
        "Pad",
    ]
)
_PATTERNS = frozenset(["QuickGelu", "HardSwish", "Gelu", "LayerNormalization"])
_BLOCKED_POOLS = frozenset(["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
_BLOCKED_ACTIVATIONS = ACTIVATIONS | {"QuickGelu", "Gelu"}


@dataclass(slots=True)
class Group:
    """Operators that run as one kernel: the first decides what it is."""

    head: Op
    ops: list[Op]
    op: str
    inputs: list[str]
    shapes: list[Shape]
    output: str
    blocked: bool = False
    closed: bool = False

    @classmethod
    def of(cls, op: Op) -> Group:
        """The group of ``op`` alone."""
        return cls(op, [op], op.op, list(op.inputs), list(op.in_shapes), op.outputs[0])


class Fusion:
    """The groups of a network's operators, found when it is made.

    ``group_of`` gives the group by operator name, ``blocked`` the tensors in blocked channels.
    """

    def __init__(self, ops: Sequence[Op], runtime: Runtime) -> None:
        self.ops = ops
        self.block = runtime.block
        self.quantizes_weights = runtime.quantizes_weights
        self.tensors = Tensors(ops)
        self.producer, self.consumers = self.tensors.producer, self.tensors.consumers
        self.shapes = self.tensors.shapes
        self.group_of: dict[str, Group] = {}
        self.blocked: set[str] = set()
        self._fuse()

    def _fuse(self) -> None:
        for op in self.ops:
            if op.name in self.group_of:
                continue
            group = Group.of(op)
            for member in group.ops:
                self.group_of[member.name] = group
            if self.integer(op):
                continue
            self._match_patterns(group)
            if not self._absorb(group):
                self._place(group)

    def integer(self, op: Op) -> bool:
        """True if ``op`` runs as an integer kernel: Q/DQ on all of its tensors.

        The output of a Gemm or MatMul whose weights are integers may also stay float.
        """
        if op.op not in _INTEGER or not op.inputs:
            return False
        if not all(t in self.producer and self.producer[t].op == QDQ for t in op.inputs):
            return False
        followed = not op.exported and all(self._quantized_after(t) for t in op.outputs)
        if op.weight is None or op.integer_weight:
            return followed or op.op in ("Gemm", "MatMul")
        late = op.op != "MatMul" and not op.dequantized and not op.kept_float
        return followed and late and self.quantizes_weights

    def _quantized_after(self, tensor: str) -> bool:
        """True if only a Q/DQ pair reads ``tensor``, a Relu before it (which it absorbs) or not."""
        after = self.tensors.next(tensor, exported=False)
        if after is not None and after.op == "Relu":
            after = self.tensors.next(after.outputs[0], exported=after.exported)
        return after is not None and after.op == QDQ

    def _match_patterns(self, group: Group) -> None:
        """x * sigmoid(x) and its like, layer norm and the exact Gelu become one operator."""
        found = find(group.head, self.tensors, _PATTERNS)
        if found is not None:
            self._take(group, list(found.ops), found.name, found.source)

    def _take(self, group: Group, ops: list[Op], name: str, source: str) -> None:
        group.ops.extend(ops)
        group.op = name
        group.inputs, group.shapes = [source], [self.shapes[source]]
        group.output = ops[-1].outputs[0]
        for op in ops:
            self.group_of[op.name] = group

    def _absorb(self, group: Group) -> bool:
        """Try to run ``group`` as a part of what writes its input; True if that worked."""
        op = group.head
        if op.op == "Relu" and self._only_quantized(op):
            # relu_quant_fusion.cc: the zero point of a rectified tensor is its minimum, so
            # quantizing rectifies; the pair reads what the Relu read.
            host = self.group_of.get(self.producer[op.inputs[0]].name) if self._made(op) else None
            if host is not None and self.tensors.read_only_by(op.inputs[0], [op]):
                self._join(host, group)
                return True
        if not op.inputs or not self._made(op):
            return False
        if group.op == "Add" and self._absorb_sum(group):
            return True
        host = self.group_of[self.producer[group.inputs[0]].name]
        if self.integer(host.head) or host.closed or host.output != group.inputs[0]:
            return False
        if not self.tensors.read_only_by(group.inputs[0], group.ops):
            return False
        if self._foldable(host, group):
            self._join(host, group)
            return True
        return False

    def _foldable(self, host: Group, group: Group) -> bool:
        """Whether ``host`` applies ``group`` to its result before writing it."""
        weighted = host.op in ("Conv", "ConvTranspose")
        gemm = host.op == "Gemm" and group.op != "HardSwish"
        norm = host.op == "BatchNormalization" and host.blocked
        if group.op in ACTIVATIONS and (weighted or gemm or norm):
            host.closed = True
            return True
        plain = len(host.ops) == 1
        if weighted and plain and not host.head.dequantized:
            if group.op == "BatchNormalization" and not group.head.dequantized:
                return True
            if group.op in ("Mul", "Add") and len(group.inputs) == 1:
                shape = group.head.constant_shapes[0]
                return math.prod(shape) == self.shapes[host.output][1] and len(shape) >= 3
        return (
            host.op == "MatMul"
            and plain
            and group.op == "Add"
            and len(group.inputs) == 1
            and len(self.shapes[host.output]) == 2
        )

    def _absorb_sum(self, group: Group) -> bool:
        """A blocked convolution adds another blocked tensor of the same shape to its result."""
        if len(group.inputs) != 2 or not all(t in self.blocked for t in group.inputs):
            return False
        if self.shapes[group.inputs[0]] != self.shapes[group.inputs[1]]:
            return False
        for tensor, other in (group.inputs, group.inputs[::-1]):
            host = self.group_of[self.producer[tensor].name]
            if (
                host.op == "Conv"
                and not host.closed
                and len(host.inputs) == 1
                and host.output == tensor
                and self.tensors.read_only_by(tensor, [group.head])
            ):
                host.inputs.append(other)
                host.shapes.append(self.shapes[other])
                self._join(host, group)
                return True
        return False

    def _join(self, host: Group, group: Group) -> None:
        host.ops.extend(group.ops)
        for op in group.ops:
            self.group_of[op.name] = host
        host.output = group.output
        if host.blocked:
            self.blocked.add(host.output)

    def _made(self, op: Op) -> bool:
        return all(t in self.producer for t in op.inputs)

    def _only_quantized(self, op: Op) -> bool:
        after = self.tensors.next(op.outputs[0], exported=op.exported)
        return after is not None and after.op == QDQ

    # -- layout ----------------------------------------------------------------------------------

    def _place(self, group: Group) -> None:
        """Decide whether ``group`` works on blocked channels (nchwc_transformer.cc)."""
        head = group.head
        shape = self.shapes[group.output]
        if not self.block or len(shape) != 4 or head.op == QDQ:
            return
        if group.op == "Conv":
            group.blocked = not head.dequantized and self._conv_is_blocked(head)
        elif group.op in _BLOCKED_POOLS:
            group.blocked = len(head.outputs) == 1 and shape[1] % self.block == 0
        elif all(t in self.blocked for t in group.inputs):
            if group.op == "BatchNormalization":
                group.blocked = not head.dequantized and shape[1] % _ALIGNMENT == 0
            elif group.op in ("Add", "Sum", "Mul"):
                same = len(set(group.shapes)) == 1 and len(group.inputs) > 1
                group.blocked = same and not head.constant_shapes
            elif group.op == "Concat":
                aligned = all(s[1] % self.block == 0 for s in group.shapes)
                group.blocked = aligned and head.axis in (1, -3)
            else:
                group.blocked = group.op in _BLOCKED_ACTIVATIONS
        if group.blocked:
            self.blocked.add(group.output)

    def _conv_is_blocked(self, op: Op) -> bool:
        if op.weight is None or len(op.weight_shape) != 4:
            return False
        outputs, inputs = op.weight_shape[:2]
        if op.groups == 1:
            return inputs < self.block or inputs % _ALIGNMENT == 0
        if outputs % _ALIGNMENT:
            return False
        if inputs == 1 and outputs == op.groups:
            return True
        return inputs % self.block == 0 and (outputs // op.groups) % self.block == 0
