"""Quantize a network layer by layer, each layer knowing what those before it did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.compression.fakequant import input_ranges, round_inputs, watch_inputs
from harness.compression.lockstep import run_in_step
from harness.compression.quantizers import QuantizedWeight, Range
from harness.compression.rounding import (
    DAMPING,
    InputMoments,
    Rounded,
    compensate,
    compensated_share,
    enlarged,
    lacking_gain,
)
from harness.errors import BuildError
from harness.networks import fold_batchnorm, layers_in_order

__all__ = ["Quantized", "compensated_shares", "quantize_in_turn"]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized network: ``network`` computes it in float, the rest is what to build it from.

    ``errors`` holds the layers' output errors as ``rounding.Rounded`` has them.
    """

    network: nn.Module
    weights: Mapping[str, QuantizedWeight]
    biases: Mapping[str, Tensor]
    ranges: Mapping[str, Range]
    errors: Mapping[str, float]


def quantize_in_turn(
    network: nn.Module,
    images: Tensor,
    bits: Mapping[str, int],
    *,
    ranges: Mapping[str, Range] | None = None,
    batch: int = 16,
    damping: float = DAMPING,
    sweeps: int = 8,
    follow: float = 1.0,
    apart: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Quantized:
    """``network`` with the weights of every layer in ``bits`` rounded, errors compensated.

    Batch norm is folded. Layers are taken in the order of the forward pass; each sees the inputs
    that the layers before it, already quantized, make of ``images``, and aims at what the original
    gives. ``ranges`` are those of the inputs (None: 8 bits over the range seen in the original;
    an empty mapping: inputs are not rounded). ``damping``, ``sweeps`` and ``follow`` are those of
    ``rounding.compensate``. The last ``apart`` images are kept out of the moments: they tell how
    much too small the outputs are on images that nothing was fitted to, and the last layer's
    scales make up for it. ``progress(done, of)`` counts layers. What one layer reads of all images
    is held twice, of the original and of the quantized network. Raises BuildError.
    """
    if not 0 <= apart < len(images):
        raise BuildError(f"cannot keep {apart} of {len(images)} images apart: leave some to fit to")
    original = fold_batchnorm(network, images[:1])
    layers = layers_in_order(original, images[:1])
    if unknown := sorted(bits.keys() - layers.keys()):
        raise BuildError(
            f"cannot quantize {', '.join(unknown)}: no such layer; there are {', '.join(layers)}"
        )
    if ranges is None:
        ranges = input_ranges(original, images, batch=batch)
    result = copy.deepcopy(original)
    own = layers_in_order(result, images[:1])
    round_inputs(result, ranges)
    rounded: dict[str, Rounded] = {}
    visited: set[str] = set()
    fitted = len(images) - apart
    batches = [images[start : min(start + batch, fitted)] for start in range(0, fitted, batch)]
    used = len(batches)
    batches += [images[start : start + batch] for start in range(fitted, len(images), batch)]
    last = list(layers)[-1]  # no layer after it can make up for outputs that are too small

    def visit(name: str, inputs: list[Tensor]) -> None:
        if name in visited:
            return  # a layer called again keeps the weights it has
        visited.add(name)
        if name in bits:
            pairs = list(zip(inputs[: len(batches)], inputs[len(batches) :], strict=True))
            moments = InputMoments(layers[name], fitted)
            for before, after in pairs[:used]:
                moments.add(before, after)
            found = compensate(
                layers[name],
                moments,
                bits[name],
                damping=damping,
                sweeps=sweeps,
                follow=follow,
                unbiased=name == last,
            )
            if name == last and apart:
                before, after = (torch.cat(part) for part in zip(*pairs[used:], strict=True))
                gain = lacking_gain(layers[name], found, before, after)
                found = enlarged(found, moments, gain)
            rounded[name] = found
            with torch.no_grad():
                own[name].weight.copy_(found.weight.dequantized())
                own[name].bias = nn.Parameter(found.bias, requires_grad=False)
        if progress is not None:
            progress(len(visited), len(layers))

    runs = [(original, part) for part in batches] + [(result, part) for part in batches]
    run_in_step(runs, [layers, own], visit)
    return Quantized(
        network=result,
        weights={name: found.weight for name, found in rounded.items()},
        biases={name: found.bias for name, found in rounded.items()},
        ranges=ranges,
        errors={name: found.error for name, found in rounded.items()},
    )


def compensated_shares(network: nn.Module, images: Tensor, *, batch: int = 16) -> dict[str, float]:
    """For every layer, the share of plain rounding's output error that compensation leaves.

    An allocation that is made with scores of plain rounding, and carried out by
    ``quantize_in_turn``, multiplies them by it: wide layers with correlated inputs gain much more
    than depthwise ones.
    """
    folded = fold_batchnorm(network, images[:1])
    layers = layers_in_order(folded, images[:1])
    moments = {name: InputMoments(layer, len(images)) for name, layer in layers.items()}
    watch_inputs(folded, layers, images, batch, lambda name, a: moments[name].add(a, a))
    return {name: compensated_share(found) for name, found in moments.items()}
