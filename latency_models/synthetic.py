"""Networks made runnable that have no weights, or no calibration data to be quantized with.

Inference time hardly depends on the values, as long as they are finite and not denormal.
"""

from __future__ import annotations

import math
from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from latency_models.errors import UnsupportedGraph
from latency_models.operators import QDQ, Op
from latency_models.parse import parse
from latency_models.quantization import FOLLOWERS, QUANTIZABLE, insert_pairs

__all__ = ["fill", "quantize", "quantized"]

_DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}


def fill(model: ModelProto, *, seed: int = 0) -> ModelProto:
    """A copy of ``model`` whose absent (external) weights are drawn at random.

    Convolutions and matrices get He's normal initialisation, so that activations stay finite
    through deep networks (He et al., "Delving deep into rectifiers", ICCV 2015, eq. 10); batch
    norm's scale and variance are 1, everything of one dimension otherwise small. Weights that are
    in the file are kept. Weights that operators share get a copy each: a trained network's differ.
    ``UnsupportedGraph`` if an absent one is not of a floating-point type.
    """
    filled = ModelProto()
    filled.CopyFrom(model)
    _own_constants(filled)
    generator = np.random.default_rng(seed)
    roles = _roles(list(filled.graph.node))
    for tensor in filled.graph.initializer:
        if not uses_external_data(tensor):
            continue
        if tensor.data_type not in _DTYPES:
            raise UnsupportedGraph(
                f"initializer {tensor.name!r} is absent and of type "
                f"{TensorProto.DataType.Name(tensor.data_type)}: only floating-point weights can "
                "be filled at random; give the network with its weights"
            )
        values = _draw(tuple(tensor.dims), roles.get(tensor.name, ("", 0)), generator)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(_DTYPES[tensor.data_type]), name))
    return filled


def _own_constants(model: ModelProto) -> None:
    """Remove ``Identity`` of constants, and give every weight or bias a reader of its own."""
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    shared: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Identity" and (node.input[0] in tensors or node.input[0] in shared):
            shared[node.output[0]] = shared.get(node.input[0], node.input[0])
    kept = [n for n in graph.node if n.output[0] not in shared]
    del graph.node[:]
    graph.node.extend(kept)
    readers: dict[str, int] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            source = shared.get(name, name)
            if source not in tensors:
                continue
            count = readers[source] = readers.get(source, 0) + 1
            node.input[place] = source
            if count > 1 and tensors[source].data_type in _DTYPES:
                copy = graph.initializer.add()
                copy.CopyFrom(tensors[source])
                copy.name = node.input[place] = f"{source}/{count}"


def _roles(nodes: list[NodeProto]) -> dict[str, tuple[str, int]]:
    """For each tensor, the operator that reads it as an input and at which position."""
    roles: dict[str, tuple[str, int]] = {}
    for node in reversed(nodes):
        for position, name in enumerate(node.input):
            if node.op_type == "Identity" and node.output[0] in roles:
                roles[name] = roles[node.output[0]]
            else:
                roles[name] = (node.op_type, position)
    return roles


def _draw(
    shape: tuple[int, ...], role: tuple[str, int], generator: np.random.Generator
) -> np.ndarray:
    operator, position = role
    if operator == "BatchNormalization":
        # Inputs 1..4 are scale, shift, mean, variance: the identity but for a little noise.
        centre = 1.0 if position in (1, 4) else 0.0
        return np.abs(generator.normal(centre, 0.02, shape)) if centre else np.zeros(shape)
    if len(shape) >= 2:
        fan_in = shape[0] if operator == "MatMul" and len(shape) == 2 else math.prod(shape[1:])
        return generator.normal(0.0, math.sqrt(2.0 / fan_in), shape)
    return generator.normal(0.0, 0.02, shape)


# Scale of every activation: nothing is known of its range, and time does not ask.
_SCALE = 0.05
# Where the zero point is the minimum, the runtime drops a Relu: calibration finds it there.
_RECTIFIED = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid"})


def quantize(source: Path, target: Path, *, symmetric: bool = False) -> None:
    """Write the network in ``source`` to ``target`` in int8, with the Q/DQ pairs of a real export.

    Weights are int8, symmetric, one scale an output channel; activations uint8 with one made-up
    scale. For timing alone: what such a network answers means nothing. ``symmetric`` as in
    ``quantized``.
    """
    onnx.save(quantized(onnx.load(str(source)), symmetric=symmetric), str(target))


def quantized(
    model: ModelProto, *, exclude: Set[str] = frozenset(), symmetric: bool = False
) -> ModelProto:
    """``model`` in int8 but for the nodes in ``exclude``, for timing alone; see ``quantize``.

    ``symmetric`` is the one form that all versions of TensorRT read: activations int8 with zero
    point 0, weights floats behind Q and DQ, biases float.
    """
    plain = ModelProto()
    plain.CopyFrom(model)
    _own_constants(plain)
    ops = parse(plain)
    before = {op.name: op for op in ops}
    after = insert_pairs(
        ops, {op.name for op in ops if op.op in QUANTIZABLE and op.name not in exclude}
    )
    return _Export(plain, before, after, symmetric=symmetric).model


class _Export:
    """ONNX nodes for operators with Q/DQ pairs, around the nodes of the float network."""

    def __init__(
        self, model: ModelProto, before: dict[str, Op], after: tuple[Op, ...], *, symmetric: bool
    ) -> None:
        self.model, self.symmetric = model, symmetric
        self.graph = model.graph
        self.tensors = {t.name: t for t in self.graph.initializer}
        nodes = {n.name or f"{n.op_type}_{i}": n for i, n in enumerate(self.graph.node)}
        outputs = {o.name for o in self.graph.output}
        self._scalar("quantize/rectified", np.int8(0) if symmetric else np.uint8(0))
        self._scalar("quantize/signed", np.int8(0) if symmetric else np.uint8(128))
        self._rectified: set[str] = set()
        self._same_scale: dict[str, str] = {}
        self._scales: dict[str, float] = {}
        self._scale_of: dict[str, float] = {}
        for op in before.values():
            if op.op in FOLLOWERS or op.op == "Split":
                origin = self._same_scale.get(op.inputs[0], op.inputs[0])
                self._same_scale.update(dict.fromkeys(op.outputs, origin))
                if op.inputs[0] in self._rectified:
                    self._rectified.update(op.outputs)
            elif op.op in _RECTIFIED:
                self._rectified.update(op.outputs)
        made = [n for name, n in nodes.items() if name not in before]
        for op in after:
            if op.op == QDQ:
                made += self._pair(op)
                continue
            node = NodeProto()
            node.CopyFrom(nodes[op.name])
            old = before[op.name]
            activations = dict(zip(old.inputs, op.inputs, strict=True))
            for place, name in enumerate(node.input):
                node.input[place] = activations.get(name, name)
            for place, name in enumerate(op.outputs):
                node.output[place] = name
            made += self._weights(node, op)
            made.append(node)
        renamed = self._rename_outputs(made, after, outputs)
        del self.graph.node[:]
        self.graph.node.extend(renamed)

    def _scalar(self, name: str, value: np.generic) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))

    def _pair(self, op: Op) -> list[NodeProto]:
        rectified = op.inputs[0] in self._rectified
        origin = self._same_scale.get(op.inputs[0], op.inputs[0])
        scale = f"{origin}/scale"
        if scale not in self._scales:
            # No two alike: where scales are equal the runtime only copies.
            self._scales[scale] = _SCALE * (1 + 1e-3 * len(self._scales))
            self._scalar(scale, np.float32(self._scales[scale]))
        self._scale_of[op.outputs[0]] = self._scales[scale]
        constants = [scale, "quantize/rectified" if rectified else "quantize/signed"]
        source, integers = op.inputs[0], f"{op.inputs[0]}/quantized"
        return [
            helper.make_node("QuantizeLinear", [source, *constants], [integers], op.nodes[0]),
            helper.make_node(
                "DequantizeLinear", [integers, *constants], [op.outputs[0]], op.nodes[1]
            ),
        ]

    def _rename_outputs(
        self, nodes: list[NodeProto], after: tuple[Op, ...], outputs: set[str]
    ) -> list[NodeProto]:
        """The dequantized form of an output takes its name; the float before it another."""
        ends = {op.inputs[0]: op.outputs[0] for op in after if op.op == QDQ and op.exported}
        for node in nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name in ends and name in outputs:
                        names[place] = f"{name}/float"
                    elif name in ends.values():
                        names[place] = next(k for k, v in ends.items() if v == name)
        return nodes

    def _weights(self, node: NodeProto, op: Op) -> list[NodeProto]:
        """DequantizeLinear nodes for the operator's constants, which become integers."""
        if op.weight is None or not op.integer_weight:
            return []
        made = []
        for place, name in enumerate(list(node.input)[1:3], start=1):
            if name not in self.tensors:
                continue
            values = numpy_helper.to_array(self.tensors[name]).astype(np.float32)
            axis = _channel_axis(node, values)
            if place == 1:
                other = tuple(i for i in range(values.ndim) if i != axis)
                scale = np.maximum(np.abs(values).max(axis=other), 1e-8) / 127
                if self.symmetric:
                    made += self._around(name, scale.astype(np.float32), axis)
                    node.input[place] = made[-1].output[0]
                    break
                shape = [-1 if i == axis else 1 for i in range(values.ndim)]
                integers = np.round(values / scale.reshape(shape)).astype(np.int8)
                weight_scale = scale
            else:
                scale = weight_scale * self._scale_of[op.inputs[0]]
                integers = np.round(values / scale).clip(-(2**30), 2**30).astype(np.int32)
                axis = 0
            made.append(self._dequantized(name, integers, scale.astype(np.float32), axis))
            node.input[place] = made[-1].output[0]
        return made

    def _around(self, name: str, scale: np.ndarray, axis: int) -> list[NodeProto]:
        """Q and DQ around a weight that stays float."""
        constants = [f"{name}/scale", f"{name}/zero_point"]
        self.graph.initializer.append(numpy_helper.from_array(scale, constants[0]))
        zeros = np.zeros(scale.shape, np.int8)
        self.graph.initializer.append(numpy_helper.from_array(zeros, constants[1]))
        stages = [name, f"{name}/quantized", f"{name}/dequantized"]
        return [
            helper.make_node(op, [before, *constants], [after], f"{name}_{op}", axis=axis)
            for op, before, after in zip(
                ("QuantizeLinear", "DequantizeLinear"), stages[:-1], stages[1:], strict=True
            )
        ]

    def _dequantized(
        self, name: str, integers: np.ndarray, scale: np.ndarray, axis: int
    ) -> NodeProto:
        self.tensors[name].CopyFrom(numpy_helper.from_array(integers, name))
        zeros = np.zeros(scale.shape, integers.dtype)
        self.graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        self.graph.initializer.append(numpy_helper.from_array(zeros, f"{name}/zero_point"))
        return helper.make_node(
            "DequantizeLinear",
            [name, f"{name}/scale", f"{name}/zero_point"],
            [f"{name}/dequantized"],
            f"{name}_DequantizeLinear",
            axis=axis,
        )


def _channel_axis(node: NodeProto, values: np.ndarray) -> int:
    """The axis of a weight that holds output channels."""
    if node.op_type == "Gemm":
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
        return 0 if transposed else 1
    if node.op_type in ("MatMul", "ConvTranspose"):
        return min(1, values.ndim - 1)
    return 0
