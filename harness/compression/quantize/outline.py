"""A quantized file without its numbers: what ``quantize`` would write, as far as sizes go."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import torch

from harness.compression.quantize.carriers import carriers
from harness.compression.quantize.export import widen_input
from harness.compression.quantize.float_layers import keep_float
from harness.compression.quantize.forms import Form
from harness.compression.quantize.insertion import Insertion, activations, output_axis
from harness.compression.quantizers import QuantizedWeight, Range
from harness.errors import BuildError
from harness.networks import layer_of_node

__all__ = ["outline"]


def outline(model: onnx.ModelProto, int8_layers: Collection[str], form: Form) -> onnx.ModelProto:
    """``model`` with ``int8_layers`` in Q/DQ of the board's ``form``, all numbers made up.

    It has the nodes, names, types and shapes, and so the size, of what ``quantize`` writes with
    biases corrected, in a hundredth of the time: nothing is run. ``model`` may have any numbers,
    and is changed. BuildError for a layer that is not there.
    """
    layers = layer_of_node(model)
    wanted = set(int8_layers)
    if missing := sorted(wanted - set(layers.values())):
        raise BuildError(f"cannot quantize {', '.join(missing)}: no such layer in the network")
    if not wanted:
        return model
    shapes = {item.name: tuple(item.dims) for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if layers.get(node.name) in wanted]
    # No two biases and no two ranges are alike: a layer that is called twice has one for each call.
    integer = {
        node.name: (_zeros(shape, node, form), _bias(shape, node, 1.0 + index / 64))
        for index, node in enumerate(nodes)
        for shape in (shapes[node.input[1]],)
    }
    carried = frozenset(carriers(model, integer.keys()))
    touched = [
        name
        for node in model.graph.node
        if node.name in integer or node.name in carried
        for name in (*activations(node), *node.output)
    ]
    ranges = {
        name: Range(low=0.0, high=1.0 + index / 64, symmetric=form.symmetric)
        for index, name in enumerate(dict.fromkeys(touched))
    }
    if form.widens_input:
        widen_input(model, integer, ranges)
    Insertion(model, form=form, ranges=ranges).run(integer, carried)
    if not form.at_inputs:
        keep_float(model, layers.keys() - integer.keys())
    return model


def _zeros(shape: tuple[int, ...], node: onnx.NodeProto, form: Form) -> QuantizedWeight:
    shape = shape[::-1] if output_axis(node) else shape
    levels = torch.zeros(shape, dtype=torch.int8)
    return QuantizedWeight(levels, torch.ones(shape[0]), form.weight_bits)


def _bias(shape: tuple[int, ...], node: onnx.NodeProto, value: float) -> np.ndarray | None:
    """Every layer gets one when biases are corrected, but for a MatMul."""
    if node.op_type == "MatMul":
        return None
    return np.full(shape[output_axis(node)], value, np.float32)
