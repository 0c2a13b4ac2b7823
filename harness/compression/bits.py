"""What a layer's bits are expected to cost, in a form that an allocation can be trusted with.

A score of one option is the loss along one rounding error; rounded at another scale, the weights
err in another direction, and the score is another draw. Ranking 3 bits against 4 by two draws is a
matter of luck. What does not change from draw to draw is the loss for an error of unit size in
that layer: it is averaged over the layer's options. Then a layer's expected losses follow the
errors of its quantizer, which fall steadily with each bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.compression.quantizers import check_bits, round_weights
from harness.errors import BuildError
from harness.networks import Layer
from harness.records import Group, Option

__all__ = ["expected_losses", "layer_options", "rounded_options"]

# Two bits lose more than their squared error says: three levels of least error draw all outputs
# towards zero, an error that does not average out. EfficientNet-Lite0's classifier, rounded to
# nearest, diverges by 0.271 with two bits and by 0.022 with three (100 calibration images kept out
# of the 200 for its bias): 12 times, where the squared errors differ by 4. An unbiased scale, which
# the last layer alone gets, leaves 6 times.
_TWO_BITS = 3.0
# Few bits in depthwise layers lose more than expected, too. EfficientNet-Lite0 in 3 bits on average
# gives two of its 16 three bits and diverges by 0.160; with this factor none, and 0.142 (100
# calibration images kept out of 300). On 100 others it is 0.197 and 0.191.
_FEW_IN_DEPTHWISE = 2.0


def layer_options(
    layers: Mapping[str, Layer], bits: Sequence[int]
) -> tuple[list[Group], dict[str, tuple[Option, ...]]]:
    """A group for every layer, none of them pruned, and its options: weights in each of ``bits``.

    Activations have 8 bits in all of them. Raises BuildError.
    """
    words = [_precision(b) for b in bits]
    groups = [
        Group(
            name=name,
            channels=layer.weight.shape[0],
            producers=(name,),
            consumers=(),
            prunable=False,
        )
        for name, layer in layers.items()
    ]
    options = {
        group.name: tuple(Option(channels=group.channels, precision=word) for word in words)
        for group in groups
    }
    return groups, options


def rounded_options(
    layers: Mapping[str, Layer], bits: Sequence[int]
) -> dict[str, dict[str, Tensor]]:
    """``[layer][precision]``: weights rounded to nearest at the scales of least squared error.

    As ``curvature.score`` takes them as ``rounded``, for options of ``layer_options``.
    """
    return {
        name: {_precision(b): round_weights(layer.weight, b) for b in bits}
        for name, layer in layers.items()
    }


def _excess(layer: Layer, bits: int) -> float:
    """By how much a layer is expected to lose more than its squared error says."""
    depthwise = 1 < getattr(layer, "groups", 1) == layer.weight.shape[0]
    return (_TWO_BITS if bits == 2 else 1.0) * (
        _FEW_IN_DEPTHWISE if depthwise and bits < 4 else 1.0
    )


def _precision(bits: int) -> str:
    return f"w{bits}a8" if check_bits(bits) < 8 else "int8"


def expected_losses(
    layers: Mapping[str, Layer],
    bits: Sequence[int],
    scores: Mapping[str, Sequence[float]],
    shares: Mapping[str, float] | None = None,
    *,
    rounded: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> dict[str, tuple[float, ...]]:
    """For every layer, the loss that each of ``bits`` is expected to cost.

    ``layers`` have their batch norm folded; ``scores[layer][j]`` is the sensitivity of ``bits[j]``
    rounded to nearest, ``shares`` what compensated rounding leaves of an error
    (``sequential.compensated_shares``; None: all of it). With ``e`` the squared error of all the
    layer's weights, the loss is ``e[j] * share * geometric mean over i of scores[i] / e[i]``, and
    three times that with two bits, and twice in depthwise layers with fewer than four. ``rounded``
    is that of ``rounded_options``, where it is at hand: the search for scales is the longest part.
    """
    if rounded is None:
        rounded = rounded_options(layers, bits)
    losses = {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        errors = [float((rounded[name][_precision(b)] - weight).square().sum()) for b in bits]
        ratios = [
            score / error
            for score, error in zip(scores[name], errors, strict=True)
            if score > 0 and error > 0
        ]
        if any(not math.isfinite(score) or score < 0 for score in scores[name]):
            raise BuildError(f"the scores of {name} must be finite and not negative")
        unit = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0
        share = 1.0 if shares is None else shares[name]
        losses[name] = tuple(
            error * unit * share * _excess(layer, b) for error, b in zip(errors, bits, strict=True)
        )
    return losses
