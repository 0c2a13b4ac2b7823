"""Q and DQ nodes written into a float ONNX graph."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from harness.compression.quantize.carriers import ABSORBED, SAME_RANGE
from harness.compression.quantize.forms import Form
from harness.compression.quantizers import QuantizedWeight, Range

__all__ = ["Insertion", "activations", "output_axis"]

Array = npt.NDArray[Any]
# Biases keep within a quarter of int32, so that the sum of products beside them fits too.
MAX_BIAS = 2**29
# Nothing is measured by a scale that float32 cannot invert.
MIN_SCALE = float(np.finfo(np.float32).tiny) * 2**24


class Insertion:
    """The rewriting of one graph, in place: first the tensors, then the layers.

    ``form`` decides where pairs stand (``Form``), ``ranges`` has the range of every tensor that
    gets one. Names are those that onnxruntime's own tools write, by which other tools know them.
    """

    def __init__(self, model: onnx.ModelProto, *, form: Form, ranges: Mapping[str, Range]) -> None:
        self._model = model
        self._graph = model.graph
        self._form = form
        self._ranges = dict(ranges)
        self._constants = {item.name: item for item in self._graph.initializer}
        self._outputs = {output.name for output in self._graph.output}
        # By output: there is one of each.
        self._new: dict[str, onnx.NodeProto] = {}

    def run(
        self,
        integer: Mapping[str, tuple[QuantizedWeight, Array | None]],
        carriers: frozenset[str],
    ) -> None:
        """Write the pairs of all nodes; ``integer`` has each layer node's weights and bias."""
        layers = frozenset(integer)
        if self._form.at_inputs:
            for tensor, readers in self._tensors_at_inputs(layers, carriers).items():
                self._pair(tensor, readers, all_behind=False)
        else:
            carriers -= self._absorb(layers | carriers)
            for tensor, readers in self._tensors_around(layers, carriers).items():
                made = self._made_by(tensor, layers | carriers)
                self._pair(tensor, readers, all_behind=made)
        for node in list(self._graph.node):
            if node.name in integer:
                weight, bias = integer[node.name]
                self._layer(node, weight, bias)
        self._finish()

    # Tensors.

    def _absorb(self, quantized: frozenset[str]) -> frozenset[str]:
        """Remove the ReLU and Clip whose work the range of their output does; their names.

        Not behind nodes that only move bytes: those keep the range of what they read.
        """
        removed = set()
        for node in list(self._graph.node):
            source = self._maker(node.input[0]) if node.name in quantized else None
            if node.op_type not in ABSORBED or source is None or source.name not in quantized:
                continue
            if len(self._readers(node.input[0])) > 1 or node.input[0] in self._outputs:
                continue
            if source.op_type in SAME_RANGE:
                continue
            source.output[list(source.output).index(node.input[0])] = node.output[0]
            self._graph.node.remove(node)
            removed.add(node.name)
        return frozenset(removed)

    def _tensors_around(
        self, integer: frozenset[str], carriers: frozenset[str]
    ) -> dict[str, frozenset[str]]:
        """The tensors that get a pair, and the nodes that read its DequantizeLinear.

        What an integer kernel writes is there in bytes alone; what a float one writes is there as
        it is, and float readers read that: exact, and no copy.
        """
        quantized = integer | carriers
        pairs: dict[str, None] = {}
        for node in self._graph.node:
            if node.name not in quantized:
                continue
            for name in activations(node):
                pairs.setdefault(name)
            for name in node.output:
                if not self._stays_float(node, name, integer):
                    pairs.setdefault(name)
            if node.name in carriers and node.op_type in SAME_RANGE:
                self._ranges[node.output[0]] = self._ranges[node.input[0]]
        return {
            name: frozenset(
                reader.name
                for reader in self._readers(name)
                if reader.name in quantized or self._made_by(name, quantized)
            )
            for name in pairs
        }

    def _stays_float(self, node: onnx.NodeProto, name: str, integer: frozenset[str]) -> bool:
        """Eight bits for logits cost accuracy, and the integer Gemm can write floats instead.

        So can MatMul; QLinearConv cannot, so a convolution at the end keeps its pair.
        """
        return (
            name in self._outputs
            and not self._readers(name)
            and node.name in integer
            and node.op_type in ("Gemm", "MatMul")
        )

    def _tensors_at_inputs(
        self, integer: frozenset[str], carriers: frozenset[str]
    ) -> dict[str, frozenset[str]]:
        """The tensors that integer nodes, pools and one summand of additions read behind a pair."""
        pairs: dict[str, set[str]] = {}
        for node in self._graph.node:
            carrier = node.op_type if node.name in carriers else None
            if node.name in integer or carrier in ("GlobalAveragePool", "AveragePool"):
                names = [node.input[0]]
            elif carrier == "Add":
                fused = next((n for n in node.input if self._only_adds(n, integer)), None)
                names = [n for n in node.input if n != fused and n not in self._constants]
            else:
                names = []
            for name in names:
                pairs.setdefault(name, set()).add(node.name)
        return {name: frozenset(readers) for name, readers in pairs.items()}

    def _only_adds(self, tensor: str, integer: frozenset[str]) -> bool:
        """Whether an integer layer makes the tensor for the addition alone."""
        return self._made_by(tensor, integer) and len(self._readers(tensor)) == 1

    def _pair(self, tensor: str, readers: frozenset[str], *, all_behind: bool) -> None:
        """Put Q and DQ behind a tensor, for the nodes named ``readers``.

        ``all_behind``: an output of the network is read behind it as well.
        """
        interval = self._ranges[tensor]
        scale = np.float32(max(interval.scale, MIN_SCALE))
        zero = (np.int8 if interval.symmetric else np.uint8)(interval.zero_point)
        parameters = [
            self._constant(f"{tensor}_scale", scale),
            self._constant(f"{tensor}_zero_point", zero),
        ]
        source, behind = tensor, f"{tensor}_DequantizeLinear_Output"
        maker = self._maker(tensor)
        if all_behind and maker is not None and tensor in self._outputs:
            source, behind = f"{tensor}_QuantizeLinear_Input", tensor
            maker.output[list(maker.output).index(tensor)] = source
        for node in self._graph.node:
            if node.name in readers:
                node.input[:] = [behind if name == tensor else name for name in node.input]
        if tensor in self._constants:
            value = numpy_helper.to_array(self._constants[tensor])
            least, most = interval.levels
            levels = np.clip(np.rint(value / scale) + interval.zero_point, least, most)
            quantized = self._constant(f"{tensor}_quantized", levels.astype(zero.dtype))
        else:
            quantized = f"{tensor}_QuantizeLinear_Output"
            self._node("QuantizeLinear", tensor, [source, *parameters], quantized)
        self._node("DequantizeLinear", tensor, [quantized, *parameters], behind)

    # Layers.

    def _layer(self, node: onnx.NodeProto, weight: QuantizedWeight, bias: Array | None) -> None:
        """Replace a layer's weight and bias by integers behind DequantizeLinear."""
        levels, scale = weight.levels.numpy(), weight.scale.numpy().astype(np.float32)
        axis = output_axis(node)
        name = node.input[1]
        own_input = self._input_scale(node)
        if bias is not None and self._form.integer_bias:
            levels, scale = _room_for_bias(levels, scale, bias, own_input)
        if axis == 1:
            levels = np.ascontiguousarray(levels.T)
        parameters = [
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(scale.shape, np.int8)),
        ]
        if self._form.integer_weights:
            stored = self._constant(f"{name}_quantized", levels)
        else:
            rows = scale if axis == 1 else scale.reshape(-1, *(1,) * (levels.ndim - 1))
            exact = self._constant(f"{name}_rounded", (levels * rows).astype(np.float32))
            stored = f"{exact}_quantized"
            self._node("QuantizeLinear", exact, [exact, *parameters], stored, axis=axis)
        node.input[1] = f"{stored}_DequantizeLinear_Output"
        self._node("DequantizeLinear", stored, [stored, *parameters], node.input[1], axis=axis)
        if bias is None:
            return
        old = node.input[2] if len(node.input) > 2 else f"{name.removesuffix('.weight')}.bias"
        if self._form.integer_bias:
            new = self._integer_bias(old, bias, own_input * scale)
        else:
            new = self._constant(f"{old}_given", bias.astype(np.float32))
        del node.input[2:]
        node.input.append(new)

    def _integer_bias(self, old: str, bias: Array, scale: Array) -> str:
        levels = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        stored = self._constant(f"{old}_quantized", levels)
        inputs = [
            stored,
            self._constant(f"{stored}_scale", scale.astype(np.float32)),
            self._constant(f"{stored}_zero_point", np.zeros(scale.shape, np.int32)),
        ]
        self._node("DequantizeLinear", stored, inputs, f"{stored}_DequantizeLinear_Output", axis=0)
        return f"{stored}_DequantizeLinear_Output"

    def _input_scale(self, node: onnx.NodeProto) -> np.float32:
        """The scale of the tensor that a layer reads, float32 as the runtime computes with it."""
        source = self._new[node.input[0]]
        return np.float32(numpy_helper.to_array(self._constants[source.input[1]]))

    # The graph.

    def _constant(self, name: str, value: Any) -> str:
        """The name of a constant of this value: ``name``, or that and a number if it is taken.

        A layer that is called twice has its weights once and a bias for each of its inputs.
        """
        item = numpy_helper.from_array(np.asarray(value))
        for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
            item.name = f"{name}{suffix}"
            known = self._constants.setdefault(item.name, item)
            if known.SerializeToString() == item.SerializeToString():
                return item.name
        raise AssertionError("unreachable: the numbers do not end")

    def _node(self, op: str, name: str, inputs: list[str], output: str, **attributes: Any) -> None:
        if output not in self._new:
            made = helper.make_node(op, inputs, [output], f"{name}_{op}", **attributes)
            self._new[output] = made

    def _made_by(self, tensor: str, nodes: frozenset[str]) -> bool:
        maker = self._maker(tensor)
        return maker is not None and maker.name in nodes

    def _maker(self, tensor: str) -> onnx.NodeProto | None:
        return next((node for node in self._graph.node if tensor in node.output), None)

    def _readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self._graph.node if tensor in node.input]

    def _finish(self) -> None:
        """Sort the nodes, and leave out the constants that nobody reads any more."""
        nodes = [*self._graph.node, *self._new.values()]
        used = {name for node in nodes for name in node.input}
        ordered = self._in_place() if self._form.at_inputs else self._as_ready(nodes)
        del self._graph.node[:]
        self._graph.node.extend(ordered)
        del self._graph.initializer[:]
        self._graph.initializer.extend(i for i in self._constants.values() if i.name in used)
        del self._graph.value_info[:]

    def _in_place(self) -> list[onnx.NodeProto]:
        """The nodes in their order, the new ones just before who reads them first.

        Which of two layers takes an addition in goes by the order, as predictions know it.
        """
        makers = dict(self._new)
        ordered: list[onnx.NodeProto] = []

        def place(node: onnx.NodeProto) -> None:
            for name in node.input:
                if (maker := makers.pop(name, None)) is not None:
                    place(maker)
            ordered.append(node)

        for node in self._graph.node:
            place(node)
        return ordered

    def _as_ready(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes in rounds, each when all that it reads is written."""
        ready = {"", *self._constants, *(entry.name for entry in self._graph.input)}
        ordered: list[onnx.NodeProto] = []
        waiting = nodes
        while waiting:
            held = []
            for node in waiting:
                if ready.issuperset(node.input):
                    ordered.append(node)
                    ready.update(node.output)
                else:
                    held.append(node)
            assert len(held) < len(waiting), "the graph has a loop"
            waiting = held
        return ordered


def activations(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node that are data; the others are weights, shapes and limits."""
    return list(node.input) if node.op_type in ("Add", "Concat") else [node.input[0]]


def output_axis(node: onnx.NodeProto) -> int:
    """The dimension of a layer node's weights that counts output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = any(item.name == "transB" and item.i for item in node.attribute)
    return 0 if transposed else 1


def _room_for_bias(
    levels: Array, scale: Array, bias: Array, input_scale: np.float32
) -> tuple[Array, Array]:
    """Levels and scales whose products with the input can hold the bias in 32 bits.

    A channel with tiny weights and a large bias needs a coarser scale.
    """
    needed = (np.abs(bias) / (MAX_BIAS * float(input_scale))).astype(np.float32)
    if not (needed > scale).any():
        return levels, scale
    wider = np.maximum(scale, needed)
    ratio = (scale / wider).reshape(-1, *(1,) * (levels.ndim - 1))
    return np.rint(levels * ratio).astype(np.int8), wider
