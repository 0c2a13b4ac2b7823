"""Networks without their weights made runnable: inference time hardly depends on the values."""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from latency_models.errors import UnsupportedGraph

__all__ = ["fill_weights"]

_DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}


def fill_weights(model: ModelProto, *, seed: int = 0) -> ModelProto:
    """A copy of ``model`` whose absent (external) weights are drawn at random.

    Convolutions and matrices get He's normal initialisation, so that activations stay finite
    through deep networks (He et al., "Delving deep into rectifiers", ICCV 2015, eq. 10); batch
    norm's scale and variance are 1, everything of one dimension otherwise small. Weights that are
    in the file are kept. ``UnsupportedGraph`` if an absent one is not of a floating-point type.
    """
    filled = ModelProto()
    filled.CopyFrom(model)
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
