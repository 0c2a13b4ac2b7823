"""ONNX -> operators: constants and shape chains folded, shapes inferred, Q/DQ pairs recognised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx.reference import ReferenceEvaluator

from latency_models.errors import UnknownOperator, UnsupportedGraph
from latency_models.operators import KINDS, QDQ, Op, Shape

__all__ = ["load", "parse"]

# Shapes and axes are small; anything larger is a weight, whose values cost analysis never needs.
_MAX_FOLDED_ELEMENTS = 4096
_DOMAINS = ("", "ai.onnx")
_ALIASES = frozenset({"Identity", "Dropout"})
_CLASS_ATTRIBUTES = ("axis", "group", "kernel_shape", "strides", "perm")
# What exporters compute shapes and axes with. None of these makes more of its inputs than the
# product of their sizes, but for those in _GROWING: what else depends on constants alone stays a
# shape, because a few bytes of Pad or Resize may ask for a terabyte.
_FOLDED_NAMES = (
    "Abs Add And ArgMax ArgMin Cast CastLike Ceil Clip Concat ConstantOfShape CumSum Div Equal Erf "
    "Exp Expand Flatten Floor Gather GatherElements GatherND Greater GreaterOrEqual Identity Less "
    "LessOrEqual Log MatMul Max Mean Min Mod Mul Neg NonZero Not Or Pow Range Reciprocal ReduceL1 "
    "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape "
    "Round ScatterElements ScatterND Shape Sigmoid Sign Size Slice Softmax Split Sqrt Squeeze Sub "
    "Sum Tanh Tile Transpose Unsqueeze Where Xor"
)
_FOLDED = frozenset(_FOLDED_NAMES.split())
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile"})
_MOST_EVALUATED_ELEMENTS = 1 << 22
# Beyond any memory; sizes that overflow somewhere below are far beyond.
_MOST_ELEMENTS = 1 << 48
_ATTRIBUTE_TYPES = {
    "axis": onnx.AttributeProto.INT,
    "group": onnx.AttributeProto.INT,
    "transB": onnx.AttributeProto.INT,
    "start": onnx.AttributeProto.INT,
    "end": onnx.AttributeProto.INT,
    "kernel_shape": onnx.AttributeProto.INTS,
    "strides": onnx.AttributeProto.INTS,
    "perm": onnx.AttributeProto.INTS,
    "axes": onnx.AttributeProto.INTS,
    "mode": onnx.AttributeProto.STRING,
}


def load(model: ModelProto | str | Path) -> ModelProto:
    """The network, from memory or from a file whose external weights may be absent."""
    if isinstance(model, ModelProto):
        return model
    return onnx.load(str(model), load_external_data=False)


def parse(model: ModelProto, *, batch: int | None = None) -> tuple[Op, ...]:
    """The network's operators in topological order, on activations only.

    ``batch`` takes the place of a free batch, which counts as 1 without it.
    Whatever depends on constants alone has gone, as a runtime folds it when it loads the network.
    ``UnknownOperator`` for an operator without a kind, ``UnsupportedGraph`` where a shape cannot be
    worked out.
    """
    return _Parser(model, batch).ops()


class _Parser:
    def __init__(self, model: ModelProto, batch: int | None) -> None:
        versions = [o.version for o in model.opset_import if o.domain in _DOMAINS]
        if not versions:
            raise UnsupportedGraph(
                "the network does not say which opset it is written in: export it anew"
            )
        self.opset = max(versions)
        for index, node in enumerate(model.graph.node):
            if node.domain not in _DOMAINS:
                raise UnknownOperator(node.op_type, node.name or f"{node.op_type}_{index}")
        _check_order(model)
        self.model = _without_weights(model, batch)
        self.constant_shapes: dict[str, Shape] = {
            t.name: tuple(t.dims) for t in self.model.graph.initializer
        }
        self.values = {
            t.name: _array(t) for t in self.model.graph.initializer if not uses_external_data(t)
        }
        self.aliases: dict[str, str] = {}
        # Constants behind a DequantizeLinear, with the name they are stored under.
        self.dequantized: dict[str, str] = {}
        # Activations dequantized with one scale a channel.
        self.per_channel: set[str] = set()
        self.shapes = self._infer()

    # -- constants and shapes --------------------------------------------------------------------

    def _infer(self) -> dict[str, Shape]:
        """Shapes of all tensors; shape inference and folding help each other until both rest."""
        graph = self.model.graph
        known = -1
        while True:
            try:
                inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
            except (onnx.shape_inference.InferenceError, ValueError, MemoryError) as error:
                # Sizes beyond reason surface as whatever C++ makes of them.
                raise UnsupportedGraph(f"the network contradicts itself: {error}") from error
            shapes = _value_shapes(inferred)
            shapes.update(self.constant_shapes)
            for node in graph.node:
                self._fold(node, shapes)
            if len(self.values) == known:
                return shapes
            known = len(self.values)
            present = {t.name for t in graph.initializer}
            produced = {o for n in graph.node for o in n.output}
            kept = [n for n in graph.node if not all(o in self.values for o in n.output if o)]
            fresh = [n for n in self.values if n in produced and n not in present]
            if not fresh or all(_complete(shapes, n) for n in graph.node):
                return shapes
            for name in fresh:
                graph.initializer.append(numpy_helper.from_array(self.values[name], name))
            del graph.node[:]
            graph.node.extend(kept)

    def _fold(self, node: NodeProto, shapes: dict[str, Shape]) -> None:
        names = [n for n in node.input if n]
        if node.op_type == "Shape" and names[0] in shapes:
            shape = shapes[names[0]]
            start, end = _attribute(node, "start", 0), _attribute(node, "end", len(shape))
            self._know(node.output[0], np.array(shape[start:end], np.int64))
        elif node.op_type == "Constant":
            value = _constant_value(node)
            self._know(node.output[0], value)
        elif node.op_type in _ALIASES and names[0] in self.constant_shapes:
            self._static(node, shapes)
            if names[0] in self.dequantized:
                self.dequantized[node.output[0]] = self.dequantized[names[0]]
            self.aliases[node.output[0]] = names[0]
            if names[0] in self.values:
                self.values[node.output[0]] = self.values[names[0]]
        elif node.op_type == "DequantizeLinear" and names[0] in self.constant_shapes:
            self._static(node, shapes)
            self.constant_shapes[node.output[0]] = self.constant_shapes[names[0]]
            self.dequantized[node.output[0]] = names[0]
        elif names and self._is_folded(node, names):
            self._evaluate(node)
        elif names and all(n in self.constant_shapes for n in names):
            self._static(node, shapes)

    def _is_folded(self, node: NodeProto, names: Sequence[str]) -> bool:
        """Whether the node's value is worth knowing, and small enough to compute."""
        if node.op_type not in _FOLDED or not all(n in self.values for n in names):
            return False
        if any(o in self.values for o in node.output):
            return True
        return _most_elements(node, [self.values[n] for n in names]) <= _MOST_EVALUATED_ELEMENTS

    def _know(self, name: str, value: np.ndarray) -> None:
        self.constant_shapes[name] = value.shape
        if value.size <= _MAX_FOLDED_ELEMENTS:
            self.values[name] = value

    def _static(self, node: NodeProto, shapes: dict[str, Shape]) -> None:
        for output in node.output:
            self.constant_shapes.setdefault(output, shapes.get(output, ()))
            if output in shapes:
                self.constant_shapes[output] = shapes[output]

    def _evaluate(self, node: NodeProto) -> None:
        if all(o in self.values for o in node.output if o):
            return
        names = [n for n in node.input if n]
        feeds = {n: self.values[n] for n in names}
        graph = helper.make_graph(
            [node],
            "fold",
            [
                helper.make_tensor_value_info(
                    n, helper.np_dtype_to_tensor_dtype(v.dtype), list(v.shape)
                )
                for n, v in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(o) for o in node.output if o],
        )
        single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(single).run(None, feeds)
        except Exception as error:  # the evaluator checks nothing: whatever numpy raises, it raises
            raise UnsupportedGraph(
                f"constant {node.op_type} {node.name!r} cannot be computed ({error}): run the "
                "network through onnxslim, or export it anew"
            ) from error
        for output, value in zip([o for o in node.output if o], results, strict=True):
            self._know(output, np.asarray(value))

    # -- operators -------------------------------------------------------------------------------

    def ops(self) -> tuple[Op, ...]:
        exported = {o.name for o in self.model.graph.output}
        nodes = [
            n for n in self.model.graph.node if not all(o in self.constant_shapes for o in n.output)
        ]
        quantized: dict[str, NodeProto] = {}
        found: list[Op] = []
        pairs: dict[str, int] = {}
        # First, because an alias of it may be what makes a tensor the network's output.
        aliases = [node for node in nodes if self._is_alias(node)]
        self.aliases |= {node.output[0]: node.input[0] for node in aliases}
        exported |= {self._real(node.output[0]) for node in aliases if node.output[0] in exported}
        for index, node in enumerate(nodes):
            if node.output[0] in self.aliases:
                continue
            if node.op_type == "QuantizeLinear":
                quantized[node.output[0]] = node
            elif node.op_type == "DequantizeLinear":
                source = quantized.get(self._real(node.input[0]))
                if source is None:
                    raise UnsupportedGraph(
                        f"DequantizeLinear {node.name!r} reads {node.input[0]!r}, which no "
                        "QuantizeLinear of this network writes: give the network in Q/DQ form"
                    )
                self._pair(node, source, index, pairs, found, exported)
            else:
                found.append(self._op(node, index, exported))
        return tuple(found)

    def _is_alias(self, node: NodeProto) -> bool:
        """True if the runtime drops ``node``: its result is its input.

        Source: onnxruntime, ``slice_elimination.cc`` and its like for Expand and Pad.
        """
        if node.op_type in _ALIASES:
            return True
        if node.op_type not in ("Expand", "Slice", "Pad"):
            return False
        same = self._shape(node.input[0]) == self._shape(node.output[0])
        if node.op_type == "Slice":
            steps = self.values.get(node.input[4]) if len(node.input) > 4 else None
            return same and (
                len(node.input) <= 4 or (steps is not None and bool((steps > 0).all()))
            )
        if node.op_type == "Pad":
            pads = self.values.get(node.input[1]) if len(node.input) > 1 else None
            return same and pads is not None and not pads.any()
        return same

    def _pair(
        self,
        node: NodeProto,
        source: NodeProto,
        index: int,
        pairs: dict[str, int],
        found: list[Op],
        exported: set[str],
    ) -> None:
        """Record a Q/DQ pair once; further DequantizeLinear of the same tensor are aliases."""
        key = source.output[0]
        if math.prod(self.constant_shapes.get(node.input[1], ())) > 1:
            self.per_channel.add(node.output[0])
        if key in pairs:
            first = found[pairs[key]]
            self.aliases[node.output[0]] = first.outputs[0]
            return
        pairs[key] = len(found)
        shape = self._shape(node.output[0])
        found.append(
            Op(
                name=source.name or f"QuantizeLinear_{index}",
                op=QDQ,
                nodes=(source.name, node.name),
                inputs=(self._real(source.input[0]),),
                outputs=(node.output[0],),
                in_shapes=(shape,),
                out_shapes=(shape,),
                exported=node.output[0] in exported,
                place=index,
            )
        )

    def _op(self, node: NodeProto, index: int, exported: set[str]) -> Op:
        name = node.name or f"{node.op_type}_{index}"
        if node.op_type not in KINDS or node.op_type == QDQ:
            raise UnknownOperator(node.op_type, name)
        names = [self._real(n) for n in node.input if n]
        constants = [n for n in node.input if n and n in self.constant_shapes]
        weights = [n for n in node.input[1:] if n in self.constant_shapes]
        weighted = KINDS[node.op_type] in ("conv", "gemm", "normalise") and weights
        weight_shape = self._shape(weights[0]) if weighted else ()
        if node.op_type == "Gemm" and weighted and not _attribute(node, "transB", 0):
            weight_shape = weight_shape[::-1]
        elif node.op_type == "MatMul" and weighted:
            weight_shape = (weight_shape[-1], *weight_shape[:-1])
        window = _attribute(node, "kernel_shape", None) or (
            weight_shape[2:] if KINDS[node.op_type] == "conv" and weighted else (1, 1)
        )
        stride = _pair_of(_attribute(node, "strides", (1, 1)))
        groups = _attribute(node, "group", 1)
        if not all(1 <= number <= _MOST_ELEMENTS for number in (*window, *stride, groups)):
            raise UnsupportedGraph(
                f"node {name!r} has a window of {tuple(window)}, a stride of {stride} and {groups} "
                "groups, which no kernel can have: export the network anew"
            )
        inputs = tuple(n for n in names if n not in self.constant_shapes)
        outputs = tuple(o for o in node.output if o)
        if node.op_type in ("BatchNormalization", "LayerNormalization", "MaxPool"):
            outputs = outputs[:1]
        return Op(
            name=name,
            op=node.op_type,
            nodes=(name,),
            inputs=inputs,
            outputs=outputs,
            in_shapes=tuple(self._shape(n) for n in inputs),
            out_shapes=tuple(self._shape(n) for n in outputs),
            weight=self._stored(weights[0]) if weighted else None,
            bias=self._stored(weights[1]) if weighted and len(weights) > 1 else None,
            weight_shape=weight_shape,
            constant_shapes=tuple(self._shape(n) for n in constants),
            dequantized=tuple(
                math.prod(self.constant_shapes[n]) for n in constants if n in self.dequantized
            ),
            integer_weight=bool(weighted) and weights[0] in self.dequantized,
            kept_float=node.input[0] in self.per_channel,
            window=_pair_of(window),
            stride=stride,
            groups=groups,
            axis=_attribute(node, "axis", None),
            axes=self._axes(node),
            permutation=tuple(_attribute(node, "perm", ())),
            mode=_attribute(node, "mode", b"").decode() if node.op_type == "Pad" else "",
            exported=any(o in exported for o in outputs),
            place=index,
        )

    def _axes(self, node: NodeProto) -> tuple[int, ...]:
        """The axes that a reduction works along, counted from the front; none means all."""
        axes = _attribute(node, "axes", None)
        if axes is None and node.op_type.startswith("Reduce") and len(node.input) > 1:
            axes = self.values.get(node.input[1], np.zeros(0, np.int64)).ravel().tolist()
        if axes is None or not node.op_type.startswith("Reduce"):
            return ()
        rank = len(self._shape(node.input[0]))
        return tuple(sorted(int(axis) % rank for axis in axes))

    def _real(self, name: str) -> str:
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def _stored(self, name: str) -> str:
        """The name of the initializer behind ``Identity`` and ``DequantizeLinear`` nodes."""
        while True:
            if name in self.dequantized:
                name = self.dequantized[name]
            elif name in self.aliases:
                name = self.aliases[name]
            else:
                return name

    def _shape(self, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None:
            shape = self.shapes.get(self._real(name))
        if shape is None:
            raise UnsupportedGraph(
                f"the shape of tensor {name!r} cannot be worked out: export the network with fixed "
                "input sizes, or run it through onnxslim"
            )
        if any(size < 0 for size in shape) or math.prod(shape) > _MOST_ELEMENTS:
            raise UnsupportedGraph(
                f"tensor {name!r} has the shape {shape}, which no board can hold: export the "
                "network anew"
            )
        return shape


def _without_weights(model: ModelProto, batch: int | None) -> ModelProto:
    """A copy whose large tensors are names and shapes only, with the batch pinned."""
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    constants = {t.name for t in model.graph.initializer}
    for tensor in model.graph.initializer:
        stub = graph.initializer.add(name=tensor.name, data_type=tensor.data_type)
        if math.prod(tensor.dims) <= _MAX_FOLDED_ELEMENTS and not uses_external_data(tensor):
            stub.CopyFrom(tensor)
            continue
        stub.dims.extend(tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="absent")
    for value in model.graph.input:
        if value.name in constants:
            continue
        pinned = graph.input.add()
        pinned.CopyFrom(value)
        for axis, dim in enumerate(pinned.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") != "dim_value" or dim.dim_value <= 0:
                if axis > 0:
                    raise UnsupportedGraph(
                        f"input {value.name!r} has no fixed size along axis {axis}: export the "
                        "network with fixed sizes (only the batch may be free)"
                    )
                dim.Clear()
                dim.dim_value = batch or 1
            elif axis == 0 and batch is not None and dim.dim_value != batch:
                raise UnsupportedGraph(
                    f"input {value.name!r} has a fixed batch of {dim.dim_value}, not {batch}: "
                    "export the network with a free batch"
                )
    # Declared outputs may name the free batch; inference finds the sizes again.
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return light


def _value_shapes(model: ModelProto) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    graph = model.graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return shapes


def _complete(shapes: dict[str, Shape], node: NodeProto) -> bool:
    return all(o in shapes for o in node.output if o)


def _check_order(model: ModelProto) -> None:
    """Refuse what is no graph: a tensor that is written twice, or read before it is written."""
    graph = model.graph
    written = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    for tensor in graph.sparse_initializer:
        written.add(tensor.values.name)
    constants = set(written)
    for node in graph.node:
        for name in node.input:
            if name and name not in written:
                raise UnsupportedGraph(
                    f"node {node.name!r} reads tensor {name!r}, which nothing before it writes: "
                    "the file is damaged or its nodes are out of order; export the network anew"
                )
        for name in node.output:
            if name in written and name:
                what = "an input or a weight" if name in constants else "another node's output"
                raise UnsupportedGraph(
                    f"node {node.name!r} writes tensor {name!r}, which is {what} already: export "
                    "the network anew"
                )
            written.add(name)
        if not any(node.output):
            raise UnsupportedGraph(f"node {node.name!r} has no output: export the network anew")


def _most_elements(node: NodeProto, values: Sequence[np.ndarray]) -> float:
    """How many elements the node's output can have at most."""
    if node.op_type not in _GROWING:
        return math.prod(max(1, value.size) for value in values)
    if any(value.dtype.kind not in "iuf" for value in values):
        return math.inf
    numbers = [value.astype(float).ravel() for value in values]
    with np.errstate(all="ignore"):
        if node.op_type == "ConstantOfShape":
            return float(np.prod(numbers[0]))
        if node.op_type == "Range":
            if len(numbers) != 3 or any(number.size != 1 for number in numbers):
                return math.inf
            start, limit, delta = (float(number[0]) for number in numbers)
            return abs((limit - start) / delta) if delta else math.inf
        return values[0].size * float(np.prod(np.maximum(1, numbers[-1])))


def _array(tensor: TensorProto) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UnsupportedGraph(
            f"constant {tensor.name!r} is damaged ({error}): export the network anew"
        ) from error


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name != name:
            continue
        if attribute.type != _ATTRIBUTE_TYPES.get(name, attribute.type):
            raise UnsupportedGraph(
                f"attribute {name!r} of node {node.name!r} is of another type than ONNX says: "
                "export the network anew"
            )
        return helper.get_attribute_value(attribute)
    return default


def _constant_value(node: NodeProto) -> np.ndarray:
    value = _attribute(node, "value", None)
    if isinstance(value, TensorProto):
        return _array(value)
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64)):
        if (found := _attribute(node, name, None)) is not None:
            return np.array(found, dtype)
    for name in ("value_float", "value_floats"):
        if (found := _attribute(node, name, None)) is not None:
            return np.array(found, np.float32)
    raise UnsupportedGraph(f"constant {node.name!r} is neither a tensor nor numbers")


def _pair_of(values: Iterable[int]) -> tuple[int, int]:
    sizes = tuple(int(v) for v in values)
    if len(sizes) == 1:
        return sizes[0], 1
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (1, 1)
