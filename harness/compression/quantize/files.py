"""ONNX files of any exporter, made ready to be quantized without their torch network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxslim
from onnx import numpy_helper, version_converter

from harness.compression.quantize.calibration import input_shape
from harness.errors import BuildError
from harness.networks import quiet

__all__ = ["ready"]

# The first with a scale for every channel in DequantizeLinear.
OPSET = 13


def ready(path: Path, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The network of an ONNX file for inputs of ``shape``, without what exporters leave behind.

    Free dimensions of the input become those of ``shape``; constants are folded, so that weights
    are initializers of their own; a factor and a summand behind a convolution, one number each or
    one a channel, become part of it; every node has a name; the opset is 13 at least. Raises
    BuildError.
    """
    model: onnx.ModelProto = onnx.load(path)
    name, sides = input_shape(model)
    if len(sides) != len(shape) or any(
        a not in (None, b) for a, b in zip(sides, shape, strict=True)
    ):
        wanted = " x ".join(str(side or "any") for side in sides)
        raise BuildError(
            f"{path.name} reads {name} of {wanted}, and the data are {shape}; prepare the images "
            "so (--image-size, --preprocess)"
        )
    for entry in model.graph.input:
        if entry.name == name:
            for dim, side in zip(entry.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_value = side
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # it follows from the input's
    if model.opset_import[0].version < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except RuntimeError as error:
            raise BuildError(f"{path.name} cannot be written in opset {OPSET}: {error}") from error
    with quiet():
        model = onnxslim.slim(onnx.shape_inference.infer_shapes(model))
    _name_nodes(model)
    _fold_affine(model)
    onnx.checker.check_model(model)
    return model


def _name_nodes(model: onnx.ModelProto) -> None:
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)


def _fold_affine(model: onnx.ModelProto) -> None:
    """Fold Mul and Add of constants into the convolution before them, as often as there is one.

    Behind a convolution they are exact whatever its padding: w * x + b, times f, plus s.
    """
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    outputs = {output.name for output in graph.output}
    for node in list(graph.node):
        while node.op_type == "Conv" and node.input[1] in constants:
            readers = [other for other in graph.node if node.output[0] in other.input]
            if len(readers) != 1 or node.output[0] in outputs:
                break
            follower = readers[0]
            given = [name for name in follower.input if name in constants]
            if follower.op_type not in ("Mul", "Add") or len(given) != 1:
                break
            weight = numpy_helper.to_array(constants[node.input[1]])
            value = _by_channel(numpy_helper.to_array(constants[given[0]]), weight.shape[0])
            bias = np.zeros(weight.shape[0], np.float32)
            if len(node.input) > 2:
                if node.input[2] not in constants:
                    break
                bias = numpy_helper.to_array(constants[node.input[2]])
            if value is None:
                break
            if follower.op_type == "Mul":
                weight = weight * value.reshape(-1, *(1,) * (weight.ndim - 1))
                bias = bias * value
            else:
                bias = bias + value
            inputs = [node.input[0]]
            for kind, array in (("weight", weight), ("bias", bias)):
                item = numpy_helper.from_array(array.astype(np.float32), f"{node.name}.{kind}")
                if item.name not in constants:
                    graph.initializer.append(item)
                    constants[item.name] = graph.initializer[-1]
                else:
                    constants[item.name].CopyFrom(item)
                inputs.append(item.name)
            node.ClearField("input")
            node.input.extend(inputs)
            node.output[0] = follower.output[0]
            graph.node.remove(follower)
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _by_channel(value: np.ndarray, channels: int) -> np.ndarray | None:
    """One number a channel of a constant that broadcasts so against ``(n, channels, h, w)``."""
    if value.size == 1:
        return np.repeat(value.reshape(-1), channels)
    if value.ndim in (3, 4) and value.shape[-3] == channels == value.size:
        return value.reshape(-1)
    return None
