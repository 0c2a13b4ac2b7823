"""Static quantization of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from harness.compression.quantize.calibration import channel_means, input_shape, tensor_ranges
from harness.compression.quantize.carriers import carriers
from harness.compression.quantize.float_layers import keep_float
from harness.compression.quantize.forms import Form, form_of
from harness.compression.quantize.insertion import Insertion, activations, output_axis
from harness.compression.quantizers import (
    QuantizedWeight,
    Range,
    RangeMethod,
    largest_level,
    quantize_weight,
)
from harness.errors import BuildError
from harness.networks import layer_of_node, write_file
from harness.records import BoardFacts

__all__ = ["QuantizeReport", "quantize", "widen_input"]

Array = npt.NDArray[Any]
# Means settle far sooner than ranges.
BIAS_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What ``quantize`` did: layers and carrier nodes made integer, in the order of the graph.

    ``ranges`` has the range of every integer layer's input.
    """

    int8_layers: tuple[str, ...]
    carriers: tuple[str, ...]
    calibration_images: int
    size_bytes: int
    ranges: Mapping[str, Range]


def quantize(
    fp32_onnx: Path,
    out: Path,
    *,
    calibration: npt.NDArray[np.float32],
    int8_layers: Collection[str],
    board: BoardFacts,
    method: RangeMethod = "minmax",
    weights: Mapping[str, QuantizedWeight] | None = None,
    biases: Mapping[str, torch.Tensor] | None = None,
    ranges: Mapping[str, Range] | None = None,
    correct_bias: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeReport:
    """Write the network of ``fp32_onnx`` with ``int8_layers`` in int8, the rest left alone.

    The Q/DQ form is the board's (``form_of``). Weights are symmetric with one scale an output
    channel: those of ``weights`` as they are, others rounded to nearest; ``biases`` replaces
    biases. Activations have their range over the ``calibration`` images ``(n, c, h, w)`` by
    ``method``, a layer's input that of ``ranges`` where it is given. ``correct_bias``: biases that
    are not given make up for what rounding the weights does to the layer's mean output. Raises
    BuildError.
    """
    model = onnx.load(fp32_onnx)
    layers = layer_of_node(model)
    wanted = set(int8_layers)
    given = {**(weights or {}), **(biases or {}), **(ranges or {})}
    if missing := sorted((wanted | given.keys()) - set(layers.values())):
        raise BuildError(f"cannot quantize {', '.join(missing)}: no such layer in {fp32_onnx.name}")
    if not wanted or not len(calibration):
        raise BuildError("quantizing needs at least one layer and one calibration image")
    form = form_of(board)
    names = {node: layer for node, layer in layers.items() if layer in wanted}
    before = onnx.ModelProto()
    before.CopyFrom(model)
    carried = carriers(model, names.keys())
    found = _tensor_ranges(model, {*names, *carried}, calibration, form, method, progress)
    for node in model.graph.node:
        if (ranges or {}).get(names.get(node.name, "")) is not None:
            found[node.input[0]] = _as_form((ranges or {})[names[node.name]], form)
    of_layers = {
        names[node.name]: found[node.input[0]] for node in model.graph.node if node.name in names
    }
    integer = {
        node.name: _parameters(model, node, names[node.name], form, weights or {}, biases or {})
        for node in model.graph.node
        if node.name in names
    }
    if correct_bias:
        _correct_biases(before, integer, set(biases or {}), names, calibration)
    if form.widens_input:
        widen_input(model, integer, found)
    order = [node.name for node in model.graph.node]
    Insertion(model, form=form, ranges=found).run(integer, frozenset(carried))
    if not form.at_inputs:
        keep_float(model, layers.keys() - names.keys())
    onnx.checker.check_model(model)
    write_file(out, model.SerializeToString(deterministic=True))
    return QuantizeReport(
        int8_layers=tuple(dict.fromkeys(names[name] for name in order if name in names)),
        carriers=tuple(carried),
        calibration_images=len(calibration),
        size_bytes=out.stat().st_size,
        ranges=of_layers,
    )


def _tensor_ranges(
    model: onnx.ModelProto,
    nodes: Collection[str],
    images: npt.NDArray[np.float32],
    form: Form,
    method: RangeMethod,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Range]:
    """The ranges of all that the quantized nodes read and write."""
    constants = {item.name: item for item in model.graph.initializer}
    touched = [
        name
        for node in model.graph.node
        if node.name in nodes
        for name in (*activations(node), *node.output)
    ]
    found = tensor_ranges(
        model,
        [name for name in touched if name not in constants],
        images,
        method=method,
        symmetric=form.symmetric,
        progress=progress,
    )
    for name in constants.keys() & set(touched):
        value = numpy_helper.to_array(constants[name])
        low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
        found[name] = Range(low=low, high=high, symmetric=form.symmetric)
    return found


def _as_form(given: Range, form: Form) -> Range:
    """A layer's own range in the board's form: eight bits, symmetric where the runtime wants it."""
    return Range(low=given.low, high=given.high, bits=8, symmetric=form.symmetric)


def _parameters(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    layer: str,
    form: Form,
    weights: Mapping[str, QuantizedWeight],
    biases: Mapping[str, torch.Tensor],
) -> tuple[QuantizedWeight, Array | None]:
    """A layer's weights, output channels first, and bias, both as they are to be written."""
    constants = {item.name: item for item in model.graph.initializer}
    weight = np.array(numpy_helper.to_array(constants[node.input[1]]), np.float32)
    weight = weight.T if output_axis(node) else weight
    bias: Array | None = None
    if len(node.input) > 2 and node.input[2] in constants:
        bias = np.array(numpy_helper.to_array(constants[node.input[2]]), np.float32).reshape(-1)
    factors = {item.name: item.f for item in node.attribute if item.name in ("alpha", "beta")}
    weight = weight * np.float32(factors.get("alpha", 1.0))
    bias = None if bias is None else bias * np.float32(factors.get("beta", 1.0))
    for attribute in node.attribute:
        if attribute.name in factors:
            attribute.f = 1.0  # the integer Gemm's bias has no factor of its own
    rounded = weights.get(layer)
    if rounded is None:
        tensor = torch.from_numpy(np.ascontiguousarray(weight))
        rounded = quantize_weight(tensor, form.weight_bits, scale="max")
    elif rounded.levels.shape != weight.shape:
        raise BuildError(
            f"{layer} has weights {weight.shape}, and those given are {tuple(rounded.levels.shape)}"
        )
    elif int(rounded.levels.abs().max()) > largest_level(form.weight_bits):
        raise BuildError(
            f"{layer}: weights of {rounded.bits} bits saturate on the board; round them to "
            f"{form.weight_bits}"
        )
    if layer in biases:
        bias = biases[layer].detach().numpy().astype(np.float32)
    return rounded, bias


def _correct_biases(
    model: onnx.ModelProto,
    integer: dict[str, tuple[QuantizedWeight, Array | None]],
    given: set[str],
    names: Mapping[str, str],
    images: npt.NDArray[np.float32],
) -> None:
    """Take the mean change of every output channel off its bias.

    ``b - (Q(W) - W) E[x]``, the analytic bias correction of Nagel et al., ICCV 2019, section 4.2,
    with the original network's mean inputs and padding left out of account. A MatMul has no bias.
    """
    nodes = [
        node
        for node in model.graph.node
        if node.name in integer and node.op_type != "MatMul" and names[node.name] not in given
    ]
    means = channel_means(model, [node.input[0] for node in nodes], images[:BIAS_IMAGES])
    constants = {item.name: item for item in model.graph.initializer}
    for node in nodes:
        weight, bias = integer[node.name]
        exact = np.array(numpy_helper.to_array(constants[node.input[1]]), np.float64)
        exact = exact.T if output_axis(node) else exact
        factor = next((item.f for item in node.attribute if item.name == "alpha"), 1.0)
        change = weight.dequantized().numpy() - factor * exact
        change = change.reshape(*change.shape[:2], -1).sum(2)
        groups = len(means[node.input[0]]) // change.shape[1]
        mean = np.repeat(means[node.input[0]].reshape(groups, -1), len(change) // groups, axis=0)
        shift = (change * mean).sum(1).astype(np.float32)
        integer[node.name] = weight, (0.0 if bias is None else bias) - shift


def widen_input(
    model: onnx.ModelProto,
    integer: dict[str, tuple[QuantizedWeight, Array | None]],
    ranges: dict[str, Range],
) -> None:
    """Have integer convolutions of a three-channel input read four channels; see ``form_of``.

    The weights of the fourth are zero, so that the results are the same bit by bit.
    """
    name, shape = input_shape(model)
    if len(shape) != 4 or shape[1] != 3 or model.opset_import[0].version < 11:
        return
    wide = f"{name}_widened"
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name not in integer or node.input[0] != name:
            continue
        weight, bias = integer[node.name]
        if weight.levels.shape[1] != 3:  # a convolution with groups
            continue
        levels = torch.nn.functional.pad(weight.levels, (0, 0, 0, 0, 0, 1))
        integer[node.name] = QuantizedWeight(levels, weight.scale, weight.bits), bias
        node.input[0] = wide
        ranges[wide] = ranges[name]
    if wide in ranges:
        pads = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64), f"{wide}_by")
        model.graph.initializer.append(pads)
        pad = helper.make_node("Pad", [name, pads.name], [wide], f"{wide}_Pad", mode="constant")
        model.graph.node.insert(0, pad)
