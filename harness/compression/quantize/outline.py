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
    integer = {
        node.name: (_zeros(shapes[node.input[1]], node, form), _bias(shapes[node.input[1]], node))
        for node in nodes
    }
    carried = frozenset(carriers(model, integer.keys()))
    touched = [
        name
        for node in model.graph.node
        if node.name in integer or node.name in carried
        for name in (*activations(node), *node.output)
    ]
    # No two are alike: a layer that is called twice has a bias for each of its inputs' scales.
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


def _bias(shape: tuple[int, ...], node: onnx.NodeProto) -> np.ndarray | None:
    """Every layer gets one when biases are corrected, but for a MatMul.

    Not of zeros: those would be the same integers at any scale.
    """
    if node.op_type == "MatMul":
        return None
    return np.ones(shape[output_axis(node)], np.float32)
