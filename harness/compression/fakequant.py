"""Fake quantization: a copy of a network that computes as its quantized form would, in float."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.quantizers import (
    Histogram,
    QuantizedWeight,
    Range,
    RangeMethod,
    quantize_weight,
)
from harness.errors import BuildError
from harness.networks import Layer, fold_batchnorm, layers_in_order

__all__ = ["corrected_biases", "fake_quantize", "input_ranges", "round_inputs", "watch_inputs"]


def input_ranges(
    network: nn.Module,
    images: Tensor,
    *,
    method: RangeMethod = "minmax",
    bits: int = 8,
    symmetric: bool = False,
    outside: float = 1e-4,
    batch: int = 64,
) -> dict[str, Range]:
    """The range of every layer's input over ``images`` ``(n, ...)``, in the order of the layers.

    The methods are those of ``activation_range``; all but ``"minmax"`` take a second pass.
    """
    if not len(images):
        raise BuildError("no images to calibrate activations on")
    network.eval()
    layers = layers_in_order(network, images[:1])
    extremes = {name: [0.0, 0.0] for name in layers}

    def see(name: str, a: Tensor) -> None:
        least, most = torch.aminmax(a)
        seen = extremes[name]
        seen[0], seen[1] = min(seen[0], float(least)), max(seen[1], float(most))

    watch_inputs(network, layers, images, batch, see)
    histograms = {name: Histogram(low, high) for name, (low, high) in extremes.items()}
    if method != "minmax":
        watch_inputs(network, layers, images, batch, lambda name, a: histograms[name].add(a))
    return {
        name: histogram.range(method, bits, symmetric=symmetric, outside=outside)
        for name, histogram in histograms.items()
    }


def watch_inputs(
    network: nn.Module,
    layers: Mapping[str, Layer],
    images: Tensor,
    batch: int,
    see: Callable[[str, Tensor], None],
) -> None:
    """Call ``see(name, input)`` for every layer and batch."""
    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():

            def look(_module: nn.Module, inputs: tuple[Tensor, ...], *, name: str = name) -> None:
                see(name, inputs[0])

            hooks.callback(layer.register_forward_pre_hook(look).remove)
        with torch.no_grad():
            for start in range(0, len(images), batch):
                network(images[start : start + batch])


class _RoundedInput:
    """A layer's forward pre-hook; a class, so that a network that has it can be copied."""

    def __init__(self, interval: Range) -> None:
        self.interval = interval

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.interval.rounded(inputs[0]), *inputs[1:])


def round_inputs(network: nn.Module, ranges: Mapping[str, Range]) -> None:
    """Have the layers named in ``ranges`` round their input from now on, in place."""
    for name, interval in ranges.items():
        network.get_submodule(name).register_forward_pre_hook(_RoundedInput(interval))


def fake_quantize(
    network: nn.Module,
    example: Tensor,
    *,
    weights: Mapping[str, QuantizedWeight | int],
    ranges: Mapping[str, Range] | None = None,
    biases: Mapping[str, Tensor] | None = None,
    fold: bool = True,
) -> nn.Module:
    """A copy of ``network`` in evaluation mode that computes with quantized weights and inputs.

    Batch norm is folded first (``fold=False``: it is left as it is, to be re-estimated).
    ``weights`` has, for each layer that is quantized, its levels, or a number of bits, to which
    the folded weights are rounded with the scale of least squared error. ``ranges`` has the range
    of each layer's input that is rounded; ``biases`` replaces biases. Raises BuildError.
    """
    copied = fold_batchnorm(network, example) if fold else copy.deepcopy(network).eval()
    layers = layers_in_order(copied, example)
    biases, ranges = biases or {}, ranges or {}
    if unknown := sorted({*weights, *biases, *ranges} - layers.keys()):
        raise BuildError(
            f"cannot quantize {', '.join(unknown)}: no such layer; there are {', '.join(layers)}"
        )
    with torch.no_grad():
        for name, given in weights.items():
            weight = layers[name].weight
            if isinstance(given, int):
                given = quantize_weight(weight, given, scale="error")
            if given.levels.shape != weight.shape:
                raise BuildError(
                    f"{name} has weights {tuple(weight.shape)}, not {tuple(given.levels.shape)}"
                )
            weight.copy_(given.dequantized())
        for name, bias in biases.items():
            layers[name].bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    round_inputs(copied, ranges)
    return copied


def corrected_biases(
    network: nn.Module,
    images: Tensor,
    weights: Mapping[str, QuantizedWeight],
    *,
    batch: int = 64,
) -> dict[str, Tensor]:
    """The biases ``(out,)`` that keep the mean of every layer's output where the original has it.

    ``network`` has its batch norm folded; the mean is over ``images`` and positions, of the inputs
    that the original network gives. Source: Nagel et al., ICCV 2019, section 4.2.
    """
    layers = layers_in_order(network, images[:1])
    shifts = {name: torch.zeros(len(weight.scale)) for name, weight in weights.items()}
    changes = {
        name: layers[name].weight.detach() - weight.dequantized()
        for name, weight in weights.items()
    }

    def see(name: str, a: Tensor) -> None:
        if name in changes:
            moved = apply_weight(layers[name], a, changes[name])
            axes = [axis for axis in range(moved.ndim) if axis != channel_axis(layers[name], moved)]
            shifts[name] += moved.mean(axes) * (len(a) / len(images))

    watch_inputs(network, layers, images, batch, see)
    return {
        name: shift if (bias := layers[name].bias) is None else bias.detach() + shift
        for name, shift in shifts.items()
    }


def apply_weight(layer: Layer, a: Tensor, weight: Tensor) -> Tensor:
    """The layer's output for the input ``a`` with another weight and no bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(a, weight)
    no_bias: Any = None
    output: Tensor = layer._conv_forward(a, weight, no_bias)
    return output


def channel_axis(layer: Layer, output: Tensor) -> int:
    """Which axis of a layer's output counts its channels."""
    return output.ndim - 1 if isinstance(layer, nn.Linear) else 1
