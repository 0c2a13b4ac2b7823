"""Quantizers: weights and activations rounded to a few bits, in float arithmetic.

Weights are symmetric with one scale an output channel, ``w ~ scale * level`` with integer levels
of at most ``2^(bits-1) - 1`` in size: what integer kernels and Q/DQ networks want. Activations
have one range a tensor that always holds zero, which padding and ReLU need to be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.errors import BuildError

__all__ = [
    "Histogram",
    "QuantizedWeight",
    "Range",
    "RangeMethod",
    "ScaleMethod",
    "activation_range",
    "check_bits",
    "error_scale",
    "largest_level",
    "quantize_weight",
    "round_activations",
    "round_weights",
]

ScaleMethod = Literal["max", "error"]
RangeMethod = Literal["minmax", "percentile", "error"]

BITS = range(2, 9)
# The scales that the error search tries: 51, from 0.2 to 1.2 of the one that holds the maximum.
_FACTORS = torch.linspace(0.2, 1.2, 51)
# Weights of so many channels are searched at once that they stay in a core's own cache.
_SEARCHED = 1 << 17
# Where the range is searched, it is one of so many fractions of the range that was seen.
_SHRINKS = torch.linspace(0.1, 1.0, 91)
_BINS = 2048


def check_bits(bits: int) -> int:
    """``bits``, if weights can be quantized to it; raises BuildError."""
    if bits not in BITS:
        raise BuildError(f"weights cannot have {bits} bits: choose from {BITS[0]} to {BITS[-1]}")
    return bits


def largest_level(bits: int) -> int:
    """The largest integer level of symmetric weights: 1 at 2 bits, 127 at 8."""
    return (1 << check_bits(bits) - 1) - 1


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A layer's weights as integers: ``levels`` (int8, the weight's shape) times ``scale``.

    ``scale`` is ``(output channels,)``, positive; levels lie within ``largest_level(bits)``.
    """

    levels: Tensor
    scale: Tensor
    bits: int

    def __post_init__(self) -> None:
        most = largest_level(self.bits)
        if self.levels.dtype != torch.int8 or int(self.levels.abs().max()) > most:
            raise BuildError(f"levels of {self.bits} bits must be int8 within {most}")
        if self.scale.shape != self.levels.shape[:1] or not bool((self.scale > 0).all()):
            raise BuildError("a weight wants one positive scale for every output channel")

    def dequantized(self) -> Tensor:
        """The weights that the levels stand for, float32 in the weight's shape."""
        return self.levels * _rows(self.scale, self.levels)


def quantize_weight(
    weight: Tensor, bits: int, *, scale: ScaleMethod = "max", importance: Tensor | None = None
) -> QuantizedWeight:
    """The weights ``(out, ...)`` in ``bits`` bits, every weight rounded to its nearest level.

    ``scale="max"`` holds the largest weight of a channel exactly; ``"error"`` takes the scale with
    the least squared error of 51 between 0.2 and 1.2 of that, each weight's square multiplied by
    ``importance`` (of a shape that broadcasts to the weight's) where it is given. Raises
    BuildError.
    """
    weight = weight.detach()
    if scale == "error":
        scales = error_scale(weight, bits, importance)
    elif importance is None:
        scales = _max_scale(weight, bits)
    else:
        raise BuildError('importance of weights is used by scale="error" alone')
    return QuantizedWeight(_levels(weight, scales, bits).to(torch.int8), scales, bits)


def round_weights(weight: Tensor, bits: int, *, scale: ScaleMethod = "error") -> Tensor:
    """The weights ``(out, ...)`` as ``bits`` bits represent them, rounded to nearest."""
    return quantize_weight(weight, bits, scale=scale).dequantized()


def error_scale(weight: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """The scale ``(out,)`` of every output channel with the least (weighted) squared error."""
    rows = weight.flatten(1)
    if importance is not None:
        importance = importance.expand_as(weight).flatten(1)
    largest = _max_scale(weight, bits)
    # In units of its channel's scale all weights are divided by the same numbers.
    units = rows / largest[:, None]
    at_once = max(1, _SEARCHED // units.shape[1])
    parts = [slice(start, start + at_once) for start in range(0, len(units), at_once)]
    best = [
        _best_factors(units[part], bits, None if importance is None else importance[part])
        for part in parts
    ]
    return largest * torch.cat(best)


def _best_factors(units: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    """Which of the 51 is best for every channel of ``(out, weights)``, the largest tried first.

    A scale that clips the largest weight alone by more than the least error found is no better,
    nor is any smaller one: at many bits few of the 51 are left to be tried.
    """
    most = largest_level(bits)
    peak, place = units.abs().max(1)
    clipped = peak.square()
    if importance is not None:
        clipped = clipped * importance.gather(1, place[:, None])[:, 0]
    ones = units.new_ones(units.shape[1])
    best = torch.ones_like(peak)
    least = torch.full_like(peak, torch.inf)
    for factor in _FACTORS.flip(0):
        if factor < 1 and bool((clipped * (1 - factor).square() > least).all()):
            break
        exact = units / factor
        error = exact.round().clamp_(-most, most).sub_(exact).square_()
        if importance is not None:
            error *= importance
        total = (error @ ones) * factor.square()
        best = torch.where(total <= least, factor, best)
        least = torch.minimum(total, least)
    return best


def _max_scale(weight: Tensor, bits: int) -> Tensor:
    # A channel of zeros gets a scale that makes no subnormal number of any of the 51 fractions.
    smallest = torch.finfo(torch.float32).tiny * 1e4
    return weight.flatten(1).abs().amax(1).clamp_min(smallest) / largest_level(bits)


def _levels(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    most = largest_level(bits)
    return (weight / _rows(scale, weight)).round_().clamp_(-most, most)


def _rows(scale: Tensor, weight: Tensor) -> Tensor:
    """``scale`` ``(out,)`` shaped to multiply the weight's output channels."""
    return scale.view(-1, *(1,) * (weight.ndim - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The interval of an activation that its levels cover; it always holds zero.

    Asymmetric: ``2^bits`` levels from ``low`` to ``high``. Symmetric: ``2^bits - 1`` levels, as
    many below zero as above. Values outside are clipped.
    """

    low: float
    high: float
    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not self.low <= 0 <= self.high:
            raise BuildError(f"an activation's range must hold zero, got {self.low}..{self.high}")
        if not 2 <= self.bits <= 16:
            raise BuildError(f"activations cannot have {self.bits} bits: choose from 2 to 16")

    @property
    def scale(self) -> float:
        """The distance of two levels; 0 where every value seen was zero."""
        if self.symmetric:
            return max(-self.low, self.high) / self.levels[1]
        return (self.high - self.low) / self.levels[1]

    @property
    def zero_point(self) -> int:
        """The level that stands for zero."""
        return 0 if self.symmetric or not self.scale else round(-self.low / self.scale)

    @property
    def levels(self) -> tuple[int, int]:
        """The least and the largest level."""
        if self.symmetric:
            most = (1 << self.bits - 1) - 1
            return -most, most
        return 0, (1 << self.bits) - 1

    def rounded(self, activation: Tensor) -> Tensor:
        """The activation as its levels represent it, in its own shape."""
        if not self.scale:
            return activation
        low, high = (level - self.zero_point for level in self.levels)
        # Four kernels in place take a fourth to an eighth of the time of torch's own single one,
        # which goes value by value, and in networks with few channels took as long as all else.
        levels = (activation / self.scale).round_().clamp_(low, high)
        return levels.mul_(self.scale)


def round_activations(
    a: Tensor, low: float, high: float, bits: int = 8, *, symmetric: bool = False
) -> Tensor:
    """The activation rounded to the levels of the range ``low`` to ``high``, clipped outside."""
    return Range(low=low, high=high, bits=bits, symmetric=symmetric).rounded(a)


class Histogram:
    """Counts of an activation's values, by which a range narrower than the one seen is chosen."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = min(low, 0.0), max(high, 0.0)
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, activation: Tensor) -> None:
        """Count the values of an activation; all of them must lie within the range."""
        if self.high > self.low:
            counts = torch.histc(activation.detach().float(), _BINS, self.low, self.high)
            self.counts += counts.double()

    def range(self, method: RangeMethod, bits: int, *, symmetric: bool, outside: float) -> Range:
        """The range by ``method``; see ``activation_range``."""
        full = Range(low=self.low, high=self.high, bits=bits, symmetric=symmetric)
        if method == "minmax" or self.high == self.low:
            return full
        if method == "percentile":
            return self._between(outside, full)
        return min((self._shrunk(full, float(s)) for s in _SHRINKS.flip(0)), key=self._error)

    def _centres(self) -> Tensor:
        width = (self.high - self.low) / _BINS
        return self.low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def _between(self, outside: float, full: Range) -> Range:
        share = self.counts.cumsum(0) / self.counts.sum()
        width = (self.high - self.low) / _BINS
        first = int((share > outside / 2).nonzero()[0])
        last = int((share >= 1 - outside / 2).nonzero()[0]) + 1
        low, high = self.low + first * width, self.low + last * width
        return Range(
            low=min(low, 0.0), high=max(high, 0.0), bits=full.bits, symmetric=full.symmetric
        )

    @staticmethod
    def _shrunk(full: Range, factor: float) -> Range:
        return Range(
            low=full.low * factor,
            high=full.high * factor,
            bits=full.bits,
            symmetric=full.symmetric,
        )

    def _error(self, candidate: Range) -> float:
        """The expected squared error: rounding within a bin, and what is clipped.

        A value spread evenly over a level errs by scale^2/12; a bin may be finer or coarser than
        a level, so the error of the bin's centre would be a matter of luck.
        """
        centres = self._centres()
        least, most = candidate.levels
        zero, scale = candidate.zero_point, candidate.scale
        low, high = (least - zero) * scale, (most - zero) * scale
        clipped = (centres - centres.clamp(low, high)).square()
        inside = torch.where(clipped > 0, 0.0, scale**2 / 12)
        # Zero itself is exact: ReLU's zeros, often half of all values, cost nothing.
        inside[(centres.abs() * 2 <= (self.high - self.low) / _BINS)] = 0.0
        return float((self.counts * (clipped + inside)).sum())


def activation_range(
    samples: Sequence[Tensor],
    *,
    method: RangeMethod = "minmax",
    bits: int = 8,
    symmetric: bool = False,
    outside: float = 1e-4,
) -> Range:
    """The range of an activation of which ``samples`` were seen; raises BuildError.

    ``"minmax"`` covers all values; ``"percentile"`` leaves the share ``outside`` out, half of it
    at either end; ``"error"`` shrinks the range until the expected squared error of rounding and
    clipping is least.
    """
    if not samples or not all(sample.numel() for sample in samples):
        raise BuildError("no activations to take a range of: give at least one value")
    histogram = Histogram(
        min(float(sample.min()) for sample in samples),
        max(float(sample.max()) for sample in samples),
    )
    if method != "minmax":
        for sample in samples:
            histogram.add(sample)
    return histogram.range(method, bits, symmetric=symmetric, outside=outside)
