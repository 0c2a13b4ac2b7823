"""int8 as a way to store weights: packed for the download, floats again before the build.

For chips without fast int8 (sm_53, sm_62): the packed file is a quarter of the float one, and what
TensorRT builds from is the float network that it unpacks to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.errors import BuildError

__all__ = ["pack", "unpack"]

# Below this many values scales and node names cost more than the bytes that are saved.
LEAST_VALUES = 256
LEVELS = 127
# A channel of zeros has no scale of its own; any does.
_LEAST_SCALE = float(np.finfo(np.float32).tiny) * 2**24


def pack(model: onnx.ModelProto, nodes: Collection[str] | None = None) -> onnx.ModelProto:
    """A copy whose weights lie in int8 behind DequantizeLinear, one scale an output channel.

    ``nodes`` are the layers whose weights are packed; None: all. Symmetric, rounded to nearest: a
    weight moves by half a step at most, 1/254 of its channel's largest. Everything else stays
    float. BuildError where there is no weight to pack, or where the opset is below 13, the first
    with a scale a channel.
    """
    opset = model.opset_import[0].version
    if opset < 13:
        raise BuildError(f"weights are packed from opset 13 on; export it so, not with {opset}")
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph = packed.graph
    weights = {item.name: item for item in graph.initializer}
    axes = _weight_axes(graph, weights, nodes)
    if not axes:
        raise BuildError("there is no weight of a convolution or matrix product to pack")
    for name, axis in axes.items():
        value = numpy_helper.to_array(weights[name]).astype(np.float32)
        others = tuple(a for a in range(value.ndim) if a != axis)
        scale = np.maximum(np.abs(value).max(axis=others) / LEVELS, _LEAST_SCALE)
        shape = [1] * value.ndim
        shape[axis] = -1
        levels = np.rint(value / scale.reshape(shape)).astype(np.int8)
        graph.initializer.remove(weights[name])
        for suffix, array in (
            ("packed", levels),
            ("scale", scale.astype(np.float32)),
            ("zero_point", np.zeros(scale.shape, np.int8)),
        ):
            graph.initializer.append(numpy_helper.from_array(array, f"{name}_{suffix}"))
        inputs = [f"{name}_packed", f"{name}_scale", f"{name}_zero_point"]
        node = helper.make_node(
            "DequantizeLinear", inputs, [name], name=f"{name}_DequantizeLinear", axis=axis
        )
        graph.node.insert(0, node)
    return packed


def _weight_axes(
    graph: onnx.GraphProto, weights: Mapping[str, TensorProto], nodes: Collection[str] | None
) -> dict[str, int]:
    """The float weights of layers that are worth packing, and the axis of output channels."""
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        if nodes is not None and node.name not in nodes:
            continue
        item = weights.get(node.input[1]) if len(node.input) > 1 else None
        if item is None or item.data_type != TensorProto.FLOAT or len(item.dims) < 2:
            continue
        if int(np.prod(item.dims)) < LEAST_VALUES:
            continue
        columns = node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        )
        columns = columns or node.op_type == "ConvTranspose"
        found[item.name] = len(item.dims) - 1 if node.op_type == "MatMul" else int(columns)
    return found


def unpack(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without Q/DQ: weights are what they dequantize to, activations are not rounded.

    Of a network that was quantized for integer kernels this is the float network with the rounded
    weights. BuildError where something but a constant or a QuantizeLinear feeds a DequantizeLinear.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    constants = {item.name: item for item in graph.initializer}
    instead: dict[str, str] = {}
    removed: list[onnx.NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
        if node.op_type == "QuantizeLinear":
            source = constants.get(node.input[0])
            if source is None:
                instead[node.output[0]] = node.input[0]
            else:
                _round_constant(graph, node, source, constants)
                instead[node.output[0]] = node.output[0]
            removed.append(node)
        elif node.op_type == "DequantizeLinear":
            item = constants.get(node.input[0])
            if item is not None and item.data_type != TensorProto.FLOAT:
                value = _dequantized(node, constants)
                item = numpy_helper.from_array(value, node.output[0])
                graph.initializer.append(item)
                constants[item.name] = item
            elif node.input[0] in instead.values() or item is not None:
                instead[node.output[0]] = node.input[0]
            else:
                raise BuildError(
                    f"{node.name or node.output[0]} dequantizes {node.input[0]}, which neither is "
                    "a constant nor comes from a QuantizeLinear; unpack the file it was made from"
                )
            removed.append(node)
    for node in removed:
        graph.node.remove(node)
    for output in graph.output:
        if output.name in instead:
            # The network's outputs keep their names where a pair stood in front of them.
            graph.node.append(helper.make_node("Identity", [instead[output.name]], [output.name]))
    used = {name for node in graph.node for name in node.input}
    used |= {output.name for output in graph.output}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return plain


def _parameters(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto], rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a pair's node, ready to be broadcast."""
    scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
    zero = np.zeros_like(scale)
    if len(node.input) > 2 and node.input[2]:
        zero = numpy_helper.to_array(constants[node.input[2]]).astype(np.float32)
    if scale.size > 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [1] * rank
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return scale, zero


def _dequantized(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> np.ndarray:
    """``(q - zero) * scale``, ONNX's DequantizeLinear."""
    levels = numpy_helper.to_array(constants[node.input[0]]).astype(np.float32)
    scale, zero = _parameters(node, constants, levels.ndim)
    result: np.ndarray = ((levels - zero) * scale).astype(np.float32)
    return result


def _round_constant(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    source: TensorProto,
    constants: dict[str, TensorProto],
) -> None:
    """A constant behind a QuantizeLinear keeps the values that it is rounded to."""
    value = numpy_helper.to_array(source).astype(np.float32)
    scale, zero = _parameters(node, constants, value.ndim)
    given = constants.get(node.input[2]) if len(node.input) > 2 else None
    low, high = (-128, 127) if given is not None and given.data_type == 3 else (0, 255)
    levels = np.clip(np.rint(value / scale) + zero, low, high)
    item = numpy_helper.from_array(((levels - zero) * scale).astype(np.float32), node.output[0])
    graph.initializer.append(item)
    constants[item.name] = item
