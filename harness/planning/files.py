"""The size of a variant's ONNX file, to the byte, without building the variant.

A file is nodes, names and numbers. Cutting channels changes the shapes of the numbers alone, and
quantizing changes what ``compression.quantize`` writes: both are done here on a file whose numbers
are made up, and its bytes are counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from harness.compression.quantize import Form
from harness.compression.quantize.outline import outline
from harness.errors import latency_errors
from latency_models.operators import Op
from latency_models.parse import load, parse
from latency_models.propagation import propagate

__all__ = ["FileOutline"]

Shape = tuple[int, ...]


class FileOutline:
    """The file of an exported fp32 network (``networks.export_onnx``), and those of its variants.

    ``model`` is the network or its file, whose weights may be absent.
    """

    @latency_errors()
    def __init__(self, model: onnx.ModelProto | Path) -> None:
        self._model = load(model)
        self.ops: tuple[Op, ...] = parse(self._model)
        self._sizes: dict[tuple[object, ...], int] = {}

    @latency_errors()
    def size_bytes(
        self,
        out_channels: Mapping[str, int],
        *,
        int8_layers: Collection[str] = (),
        form: Form | None = None,
    ) -> int:
        """What the file of a variant takes.

        ``out_channels`` are the nodes whose outputs have another width; ``int8_layers`` are
        quantized as the board's ``form`` wants it. LatencyModelError where widths do not fit.
        """
        key = (frozenset(out_channels.items()), frozenset(int8_layers), form)
        if key not in self._sizes:
            variant = self._with_widths(propagate(self.ops, out_channels))
            if int8_layers:
                assert form is not None, "a quantized file has the form of a board"
                variant = outline(variant, int8_layers, form)
            self._sizes[key] = variant.ByteSize()
        return self._sizes[key]

    def _with_widths(self, ops: Sequence[Op]) -> onnx.ModelProto:
        """The file with every tensor in the shape that it has in ``ops``, numbers made up."""
        shapes = self._shapes(ops)
        model = self._without_numbers(shapes)
        groups = {op.name: op.groups for op in ops if op.depthwise}
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "group" and node.name in groups:
                    attribute.i = groups[node.name]
        for value in (*model.graph.value_info, *model.graph.output):
            shape = shapes.get(value.name)
            dims = value.type.tensor_type.shape.dim
            if shape is not None and len(shape) == len(dims):
                for dim, size in zip(dims, shape, strict=True):
                    dim.dim_value = size
        return model

    def _without_numbers(self, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
        source = self._model
        model = onnx.ModelProto(ir_version=source.ir_version)
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if source.HasField(name):
                setattr(model, name, getattr(source, name))
        model.opset_import.extend(source.opset_import)
        model.metadata_props.extend(source.metadata_props)
        model.functions.extend(source.functions)
        graph = source.graph
        model.graph.node.extend(graph.node)
        model.graph.name, model.graph.doc_string = graph.name, graph.doc_string
        if not graph.HasField("doc_string"):
            model.graph.ClearField("doc_string")
        for field in ("input", "output", "value_info", "sparse_initializer"):
            getattr(model.graph, field).extend(getattr(graph, field))
        for item in graph.initializer:
            shape = shapes.get(item.name, tuple(item.dims))
            absent = item.data_location == TensorProto.EXTERNAL
            if shape == tuple(item.dims) and not absent:
                model.graph.initializer.append(item)
                continue
            width = np.dtype(helper.tensor_dtype_to_np_dtype(item.data_type)).itemsize
            model.graph.initializer.add(
                name=item.name,
                data_type=item.data_type,
                dims=shape,
                raw_data=bytes(width * math.prod(shape)),
            )
        return model

    def _shapes(self, ops: Sequence[Op]) -> dict[str, Shape]:
        """The shape of every tensor and constant of the file, by name, where ``ops`` tell it."""
        constants = {item.name for item in self._model.graph.initializer}
        nodes = {node.name: node for node in self._model.graph.node}
        found: dict[str, Shape] = {}
        for op in ops:
            found.update(zip(op.outputs, op.out_shapes, strict=True))
            node = nodes.get(op.name)
            if node is None:
                continue
            names = [name for name in node.input if name in constants]
            if op.kind in ("conv", "gemm"):
                if op.weight is not None:
                    found[op.weight] = _stored(op, node)
                if op.bias is not None:
                    found[op.bias] = (_outputs(op),)
            elif len(names) == len(op.constant_shapes):
                found.update(zip(names, op.constant_shapes, strict=True))
        return found


def _stored(op: Op, node: onnx.NodeProto) -> Shape:
    """The shape of a layer's weights as the file has them."""
    if op.op == "Gemm":
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        return op.weight_shape if transposed else op.weight_shape[::-1]
    if op.op == "MatMul":
        return (*op.weight_shape[1:], op.weight_shape[0])
    return op.weight_shape


def _outputs(op: Op) -> int:
    return op.out_shapes[0][1] if op.kind == "conv" else op.out_shapes[0][-1]
