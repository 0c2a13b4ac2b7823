"""Layers that stay float among integer ones."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from harness.compression.quantize.carriers import ABSORBED

__all__ = ["keep_float"]


def keep_float(model: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Keep onnxruntime from quantizing the float layers among ``nodes`` on its own.

    Since 1.20 or so it rounds the weights of a float Conv or Gemm, per tensor, when that stands
    between a DequantizeLinear and a QuantizeLinear (core/optimizer/qdq_transformer/
    weight_bias_quantization.cc): a layer allocated fp32 would run as int8, and coarser. It does
    so only where the input's scale is a scalar; the same scale written once a channel is equal
    arithmetic and stops it.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in list(model.graph.node):
        source = made_by.get(node.input[0]) if node.name in nodes else None
        if source is None or source.op_type != "DequantizeLinear" or not _leads_to_q(model, node):
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        rows, columns = constants[node.input[1]].shape[:2]
        if node.op_type == "Conv":
            channels = columns * attributes.get("group", 1)
        else:
            channels = columns if attributes.get("transB", 0) else rows
        inputs = [source.input[0]]
        for name in source.input[1:]:
            repeated = np.broadcast_to(constants[name].reshape(-1), (channels,))
            inputs.append(f"{name}_{node.name}")
            model.graph.initializer.append(numpy_helper.from_array(repeated.copy(), inputs[-1]))
        own = onnx.helper.make_node(
            "DequantizeLinear",
            inputs,
            [f"{node.input[0]}_{node.name}"],
            name=f"{source.name}_{node.name}",
            axis=1,
        )
        model.graph.node.insert(list(model.graph.node).index(node), own)
        node.input[0] = own.output[0]
        if not any(source.output[0] in other.input for other in model.graph.node):
            model.graph.node.remove(source)


def _leads_to_q(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether nothing but ReLU and Clip stands between a node and a QuantizeLinear."""
    while True:
        readers = [other for other in model.graph.node if node.output[0] in other.input]
        if any(reader.op_type == "QuantizeLinear" for reader in readers):
            return True
        if len(readers) != 1 or readers[0].op_type not in ABSORBED:
            return False
        node = readers[0]
