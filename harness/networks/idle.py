"""Nodes of an ONNX graph that change nothing, taken out."""

from __future__ import annotations

import onnx
from onnx import numpy_helper, shape_inference

__all__ = ["without_idle_nodes"]


def without_idle_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without additions of zero, and without a ReLU of what is a ReLU's already.

    They are what a residual branch leaves behind that has been left out. A runtime would run them,
    and leave its blocked layout of channels for them.
    """
    inferred = shape_inference.infer_shapes(model)
    graph = model.graph
    shapes = {
        item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
        for item in (*inferred.graph.value_info, *graph.input, *graph.output)
    }
    zeros = {
        item.name: list(item.dims)
        for item in graph.initializer
        if not numpy_helper.to_array(item).any()
    }
    same: dict[str, str] = {}
    rectified: set[str] = set()
    outputs = {output.name for output in graph.output}
    for node in list(graph.node):
        node.input[:] = [same.get(name, name) for name in node.input]
        source = None
        if node.op_type == "Add":
            added = next((name for name in node.input if name in zeros), None)
            rest = [name for name in node.input if name != added]
            whole = shapes.get(node.output[0])
            # Zeros that would spread the rest over more places do something.
            if added and len(rest) == 1 and whole and shapes.get(rest[0]) == whole:
                source = rest[0]
        elif node.op_type == "Relu":
            if node.input[0] in rectified:
                source = node.input[0]
            else:
                rectified.add(node.output[0])
        if source is not None and node.output[0] not in outputs:
            same[node.output[0]] = source
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | outputs
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
    return model
