"""NVIDIA's rules for Q/DQ in a network that TensorRT is to read, each with the node that breaks it.

Source: TensorRT guide, "Explicit quantization" (symmetric int8, zero point 0, weights by the output
channel, activations by the tensor, scales that are constants; no Q/DQ on biases), and the
restrictions of QuantizeLinear and DequantizeLinear in onnx-tensorrt's operators.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from harness.tensorrt.versions import Release

__all__ = ["Violation", "has_pairs", "violations"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NARROW = (TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that one node breaks: what is wrong there, and what to do about it.

    What is not ``fatal`` is read, and runs otherwise than it was meant to.
    """

    node: str
    op_type: str
    wrong: str
    remedy: str
    fatal: bool = True


def has_pairs(model: onnx.ModelProto) -> bool:
    """Whether anything in a network is quantized."""
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)


def violations(model: onnx.ModelProto, release: Release) -> Iterator[Violation]:
    """Every rule for Q/DQ that a node breaks, in the order of the graph."""
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _of_pair(node, constants, release)
        if node.op_type in _LAYERS:
            yield from _of_layer(node, makers, constants)


def _told(node: onnx.NodeProto, wrong: str, remedy: str, *, fatal: bool = True) -> Violation:
    name = node.name or node.output[0]
    return Violation(node=name, op_type=node.op_type, wrong=wrong, remedy=remedy, fatal=fatal)


def _of_pair(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto], release: Release
) -> Iterator[Violation]:
    quantize = "quantize the float network for this board (boardfit quantize --board NAME)"
    if len(node.input) > 1 and node.input[1] not in constants:
        yield _told(node, f"its scale {node.input[1]} is computed, not a constant", quantize)
    if len(node.input) > 2 and node.input[2]:
        zero = constants.get(node.input[2])
        if zero is None:
            yield _told(node, f"its zero point {node.input[2]} is not a constant", quantize)
        elif zero.data_type == TensorProto.INT32:
            yield _told(node, "a bias is quantized to int32, and biases must stay float", quantize)
        elif zero.data_type == TensorProto.UINT8:
            yield _told(node, "it is uint8, which TensorRT takes for int8", quantize)
        elif np.any(_array(zero) != 0):
            yield _told(node, f"its zero point is {_array(zero).ravel()[0]}, not 0", quantize)
    elif node.op_type == "QuantizeLinear":
        yield _told(node, "without a zero point it is uint8 by ONNX's rules, not int8", quantize)
    stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if stored is not None and stored.data_type in _NARROW and not release.integer_weights:
        yield _told(
            node,
            f"its weights are stored as int8, which the parser of TensorRT {release.name} refuses",
            quantize,
        )


def _of_layer(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, TensorProto],
) -> Iterator[Violation]:
    """Rules of a layer behind DequantizeLinear: both inputs quantized, scales where they belong."""
    behind = [_dequantizer(makers.get(name)) for name in node.input[:2]]
    if len(node.input) > 2 and _dequantizer(makers.get(node.input[2])) is not None:
        yield _told(node, "its bias is quantized", "leave biases float (boardfit quantize does)")
    if behind[1] is not None and behind[0] is None:
        yield _told(
            node,
            "its weights are quantized and its input is not, so that it runs on floats",
            "put Q/DQ on its input too, or leave its weights float",
            fatal=False,
        )
    if behind[0] is not None:
        scale = constants.get(behind[0].input[1])
        if scale is not None and _array(scale).size > 1:
            yield _told(
                node,
                f"its input has {_array(scale).size} scales, and activations may have one",
                "give activations one scale a tensor",
            )
    if behind[1] is not None:
        yield from _of_weight_scale(node, behind[1], makers, constants)


def _of_weight_scale(
    node: onnx.NodeProto,
    pair: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, TensorProto],
) -> Iterator[Violation]:
    scale = constants.get(pair.input[1])
    quantizer = makers.get(pair.input[0])
    stored = constants.get(pair.input[0] if quantizer is None else quantizer.input[0])
    if scale is None or stored is None or _array(scale).size == 1:
        return
    wanted = _output_axis(node, len(stored.dims))
    axis = next((a.i for a in pair.attribute if a.name == "axis"), 1)
    if axis != wanted:
        yield _told(
            node,
            f"its weights have scales along axis {axis}, and output channels lie along {wanted}",
            f"set axis={wanted} on {pair.name or pair.output[0]}, one scale an output channel",
        )


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of output channels of a layer's weights: K of KCRS, the columns of a matrix."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    if any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return rank - 1


def _dequantizer(maker: onnx.NodeProto | None) -> onnx.NodeProto | None:
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _array(tensor: TensorProto) -> npt.NDArray[np.generic]:
    found: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
    return found
