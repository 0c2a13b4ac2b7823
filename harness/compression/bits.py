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

from harness.compression.quantizers import quantize_weight
from harness.errors import BuildError

__all__ = ["expected_losses"]


def expected_losses(
    weights: Mapping[str, Tensor],
    bits: Sequence[int],
    scores: Mapping[str, Sequence[float]],
    shares: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, ...]]:
    """For every layer, the loss that each of ``bits`` is expected to cost.

    ``weights`` are the layers' (batch norm folded), ``scores[layer][j]`` the sensitivity of
    ``bits[j]`` rounded to nearest, ``shares`` what compensated rounding leaves of an error
    (``sequential.compensated_shares``; None: all of it). With ``e`` the squared error of all the
    layer's weights, the loss is ``e[j] * share * geometric mean over i of scores[i] / e[i]``.
    """
    losses = {}
    for name, weight in weights.items():
        errors = [
            float((quantize_weight(weight, b, scale="error").dequantized() - weight).square().sum())
            for b in bits
        ]
        ratios = [
            score / error
            for score, error in zip(scores[name], errors, strict=True)
            if score > 0 and error > 0
        ]
        if any(not math.isfinite(score) or score < 0 for score in scores[name]):
            raise BuildError(f"the scores of {name} must be finite and not negative")
        unit = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0
        share = 1.0 if shares is None else shares[name]
        losses[name] = tuple(error * unit * share for error in errors)
    return losses
