"""A float ONNX file rewritten so that its types say which nodes compute in fp16.

Strongly typed networks (TensorRT-RTX, TensorRT 11) take their precisions from the file alone. The
inputs and outputs of the network keep their types, and a cast stands where the type changes, once a
tensor and direction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.errors import BuildError

__all__ = ["TypedNetwork", "followers", "half_nodes", "to_half"]

LARGEST_HALF = float(np.finfo(np.float16).max)
# The first opset in which Q and DQ take fp16 scales.
HALF_PAIRS_SINCE = 19
_PAIRS = ("QuantizeLinear", "DequantizeLinear")
# Nodes that never change type: their float inputs are parameters that ONNX wants in fp32, or they
# say what type they make. Loops and branches are left alone as a whole.
_FIXED = frozenset(
    {
        "Cast",
        "CastLike",
        "Constant",
        "ConstantOfShape",
        "EyeLike",
        "If",
        "Loop",
        "NonMaxSuppression",
        "RandomNormal",
        "RandomUniform",
        "Range",
        "Resize",
        "Scan",
        "Shape",
        "Size",
        "Upsample",
    }
)
# Nodes that hold the weights: what a precision is chosen for.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedNetwork:
    """The rewritten network, the nodes that compute in fp16, and how many casts stand in it."""

    model: onnx.ModelProto
    half: tuple[str, ...]
    casts: int


def half_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of all nodes that can compute in fp16: those that read or write floats."""
    kinds = _kinds(model)
    pairs = model.opset_import[0].version >= HALF_PAIRS_SINCE
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type not in _FIXED
        and (pairs or node.op_type not in _PAIRS)
        and any(kinds.get(name) == TensorProto.FLOAT for name in (*node.input, *node.output))
    )


def followers(model: onnx.ModelProto, layers: Collection[str]) -> tuple[str, ...]:
    """``layers``, and the nodes between them that read nothing but what these compute.

    An addition of an fp16 and an fp32 tensor stays fp32, and so does what reads the network's
    inputs. latency_models reads a network of mixed precisions by the same rule.
    """
    able = set(half_nodes(model))
    if unknown := sorted(set(layers) - {node.name for node in model.graph.node}):
        raise BuildError(f"there is no node {', '.join(unknown)} in the network")
    constants = {item.name for item in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    kinds = _kinds(model)
    written: set[str] = set()
    half = []
    for node in model.graph.node:
        if node.name not in able:
            continue
        if node.op_type in LAYERS:
            follows = node.name in layers
        else:
            read = [
                name
                for name in node.input
                if name and name not in constants and kinds.get(name) == TensorProto.FLOAT
            ]
            follows = bool(read) and written.issuperset(read)
        if follows:
            half.append(node.name)
            written.update(node.output)
    return tuple(half)


def to_half(model: onnx.ModelProto, nodes: Collection[str]) -> TypedNetwork:
    """A copy in which ``nodes`` compute in fp16, weights included; BuildError says what cannot.

    Weights beyond 65504, fp16's largest, are an error: clipped, the network would be another one.
    """
    able = set(half_nodes(model))
    if wrong := sorted(set(nodes) - able):
        raise BuildError(
            f"{', '.join(wrong[:3])} cannot compute in fp16: no such node, or one whose types ONNX "
            f"{model.opset_import[0].version} fixes; leave it in fp32"
        )
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    rewriting = _Rewriting(typed, frozenset(nodes), _kinds(model))
    rewriting.run()
    onnx.checker.check_model(typed)
    return TypedNetwork(model=typed, half=tuple(nodes), casts=rewriting.casts)


def _kinds(model: onnx.ModelProto) -> Mapping[str, int]:
    """The element type of every tensor that ONNX's inference can tell, by name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {item.name: item.data_type for item in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    return kinds


class _Rewriting:
    """Types changed in place, node by node in the order of the graph."""

    def __init__(
        self, model: onnx.ModelProto, half: frozenset[str], kinds: Mapping[str, int]
    ) -> None:
        self._graph = model.graph
        self._half = half
        self._kinds = dict(kinds)
        self._constants = {item.name: item for item in model.graph.initializer}
        self._made: dict[tuple[str, int], str] = {}
        self.casts = 0

    def run(self) -> None:
        graph = self._graph
        nodes = list(graph.node)
        outputs = {output.name for output in graph.output}
        del graph.node[:]
        renamed: dict[str, str] = {}
        for node in nodes:
            wanted = TensorProto.FLOAT16 if node.name in self._half else TensorProto.FLOAT
            for index, name in enumerate(node.input):
                node.input[index] = self._as(renamed.get(name, name), wanted)
            late = []
            if node.name in self._half:
                for index, name in enumerate(node.output):
                    if self._kinds.get(name) != TensorProto.FLOAT:
                        continue
                    if name in outputs:
                        # The network's output keeps name and type; what else reads it, reads ours.
                        inner = f"{name}_half"
                        node.output[index] = renamed[name] = inner
                        late.append((inner, name))
                        self._kinds[inner] = TensorProto.FLOAT16
                        self._made[inner, TensorProto.FLOAT] = name
                    else:
                        self._kinds[name] = TensorProto.FLOAT16
            graph.node.append(node)
            for inner, name in late:
                self._cast(inner, name, TensorProto.FLOAT)
        self._finish()

    def _as(self, name: str, wanted: int) -> str:
        """A tensor's name in the wanted float type; what is no float keeps its own."""
        kind = self._kinds.get(name)
        if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16) or kind == wanted:
            return name
        if (name, wanted) not in self._made:
            suffix = "half" if wanted == TensorProto.FLOAT16 else "float"
            new = f"{name}_as_{suffix}"
            if name in self._constants:
                self._convert(name, new)
            else:
                self._cast(name, new, wanted)
            self._kinds[new] = wanted
            self._made[name, wanted] = new
        return self._made[name, wanted]

    def _convert(self, name: str, new: str) -> None:
        value = numpy_helper.to_array(self._constants[name])
        largest = float(np.abs(value).max()) if value.size else 0.0
        if not largest <= LARGEST_HALF:
            raise BuildError(
                f"{name} holds {largest:g}, and fp16 ends at {LARGEST_HALF:g}; leave its layer in "
                "fp32"
            )
        item = numpy_helper.from_array(value.astype(np.float16), new)
        self._graph.initializer.append(item)

    def _cast(self, name: str, new: str, to: int) -> None:
        self._graph.node.append(helper.make_node("Cast", [name], [new], name=f"{new}_Cast", to=to))
        self.casts += 1

    def _finish(self) -> None:
        """Drop what nobody reads any more, and the old types of what has a new one."""
        used = {name for node in self._graph.node for name in node.input}
        used |= {output.name for output in self._graph.output}
        kept = [item for item in self._graph.initializer if item.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        for value in self._graph.value_info:
            kind = self._kinds.get(value.name)
            if kind is not None and value.type.HasField("tensor_type"):
                value.type.tensor_type.elem_type = kind
