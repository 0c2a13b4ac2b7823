"""Error-compensated rounding: integer weights with the least error of the layer's output.

Let ``x`` be what a layer reads in the original network and ``x~`` in the network that is quantized
up to it. Its integer weights ``Q`` and bias shall give the original's outputs::

    min over Q, b of  E | W x + b0 - Q x~ - b |^2

The bias that is best for any ``Q`` is ``b0 + W E[x] - Q E[x~]`` (analytic bias correction, Nagel et
al., ICCV 2019, section 4.2, here with the quantized network's own inputs). What is left is a
quadratic in ``Q`` with the covariance matrices of the inputs::

    H = cov(x~, x~) + damping,    W* = (W cov(x, x~) + damping W) H^-1
    error(Q) = trace (Q - W*) H (Q - W*)^T + what no Q changes

``W*`` instead of ``W`` makes up for the errors of the layers before (Li et al., GPTAQ,
arXiv:2504.02692; Zhang et al., Qronos, arXiv:2505.11695). Every output channel is a problem of its
own: columns are rounded one by one and the error is passed on to those not yet rounded (Frantar et
al., GPTQ, ICLR 2023, algorithm 1). Then single levels move while that lowers the error, and the
scale is set to its least-squares value, in turns, until nothing changes: either step can only
lower the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.compression.fakequant import apply_weight, channel_axis
from harness.compression.quantizers import QuantizedWeight, error_scale, largest_level
from harness.errors import BuildError
from harness.networks import Layer

__all__ = [
    "InputMoments",
    "Rounded",
    "compensate",
    "compensated_share",
    "enlarged",
    "lacking_gain",
    "quadratic_error",
]

# Share of the mean of H's diagonal that is added to it (GPTQ's "percdamp"), and what comes on top
# for every column per independent sample: a covariance estimated from few samples says that most
# directions never occur, and rounding errors flee into them. Chosen in 3 bits by divergence from
# the exact network on calibration images that were kept out, never on test images. The last seven
# blocks of EfficientNet-Lite0, fitted to 200 images and judged on 100: 0.376 with 0.25 a column and
# 0.318 with 1, at the best single scale of the outputs 0.160 and 0.146 (the latter with a quarter
# of the positions and half the sweeps). ResNet-20, fitted to 352 and judged on 160: 0.0042 and
# 0.0033. Flipped and cropped images besides (0.528 and 0.188 with 0.25), or following by halves
# (0.483 and 0.155), did not help the former.
DAMPING = 0.01
_DAMPING_PER_COLUMN = 1.0
_INDEPENDENT = 4  # the positions of an image count as at most so many samples
# At most so many positions a weight column are looked at, spread over the images.
_ROWS_PER_COLUMN, _LEAST_ROWS = 32, 2048
_BLOCK = 128  # columns whose errors are passed on at once
_SWEEPS = 8
_SETTLED = 1e-3  # a share of levels whose moves are not worth another sweep


class InputMoments:
    """First and second moments of a layer's inputs, original ``x`` and quantized ``x~``.

    ``covariance`` ``(groups, k, k)`` of ``x~`` and ``cross`` of ``x`` with ``x~``, ``mean`` and
    ``original_mean`` ``(groups, k)``; ``k`` is input channels of a group times kernel size. They
    are over ``rows`` positions, of large images only some, which count as ``samples`` independent
    ones.
    """

    def __init__(self, layer: Layer, images: int) -> None:
        self._layer = layer
        self._images = images
        self.rows = 0
        self.samples = 0
        self._generator = torch.Generator().manual_seed(0)
        groups = getattr(layer, "groups", 1)
        columns = layer.weight[0].numel()
        self._most = max(_LEAST_ROWS, _ROWS_PER_COLUMN * columns)
        self._sums = torch.zeros(groups, columns, dtype=torch.float64)
        self._original_sums = torch.zeros_like(self._sums)
        self._products = torch.zeros(groups, columns, columns, dtype=torch.float64)
        self._crosses = torch.zeros_like(self._products)

    def add(self, original: Tensor, quantized: Tensor) -> None:
        """Count a batch of inputs as the layer gets them."""
        positions = self._positions(quantized)
        x = unfolded(self._layer, original, positions)
        q = x if original is quantized else unfolded(self._layer, quantized, positions)
        self.rows += q.shape[1]
        self.samples += min(q.shape[1], _INDEPENDENT * len(quantized))
        # One batch in single precision, the sum of the batches in double.
        sums = q.sum(1)
        self._sums += sums
        self._original_sums += sums if x is q else x.sum(1)
        product = q.transpose(1, 2) @ q
        self._products += product
        self._crosses += product if x is q else x.transpose(1, 2) @ q

    def _positions(self, a: Tensor) -> Tensor | None:
        """Which output positions of every image are looked at; all of them: None."""
        layer = self._layer
        if not isinstance(layer, nn.Conv2d):
            return None
        height, width = _output_size(layer, a)
        most = max(self._most // self._images, 1)
        if height * width <= most:
            return None
        return torch.randperm(height * width, generator=self._generator)[:most]

    @property
    def mean(self) -> Tensor:
        """The mean of the quantized inputs."""
        return self._sums / self.rows

    @property
    def original_mean(self) -> Tensor:
        """The mean of the original inputs."""
        return self._original_sums / self.rows

    @property
    def covariance(self) -> Tensor:
        """Of the quantized inputs with themselves."""
        mean = self.mean
        return self._products / self.rows - mean[:, :, None] * mean[:, None, :]

    @property
    def cross(self) -> Tensor:
        """Of the original inputs (rows) with the quantized ones (columns)."""
        outer = self.original_mean[:, :, None] * self.mean[:, None, :]
        return self._crosses / self.rows - outer


def _output_size(layer: Any, a: Tensor) -> tuple[int, int]:
    height, width = (
        (size + 2 * layer.padding[i] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1)
        // layer.stride[i]
        + 1
        for i, size in enumerate(a.shape[-2:])
    )
    return height, width


def unfolded(layer: Layer, a: Tensor, positions: Tensor | None = None) -> Tensor:
    """What each output position reads: ``(groups, images x positions, k)`` of an input.

    ``positions`` counts the output positions row by row (None: all of them).
    """
    if isinstance(layer, nn.Linear):
        return a.reshape(1, -1, a.shape[-1])
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        raise BuildError(
            f"a {type(layer).__name__} with padding {layer.padding!r} cannot be rounded by its "
            "inputs: only linear layers and 2-D convolutions with padding as a number can"
        )
    if type(layer).forward is not nn.Conv2d.forward:
        raise BuildError(
            f"{type(layer).__name__} changes its input in a forward of its own: what it multiplies "
            "is not known; let a module before it do that"
        )
    if layer.padding_mode != "zeros":
        raise BuildError(f"padding mode {layer.padding_mode!r} is not supported here: use zeros")
    height, width = _output_size(layer, a)
    if positions is None:
        positions = torch.arange(height * width)
    rows, columns = (
        start[:, None] * layer.stride[i]
        + torch.arange(layer.kernel_size[i]) * layer.dilation[i]
        - layer.padding[i]
        for i, start in enumerate((positions // width, positions % width))
    )
    read = _gathered(a, rows, columns)
    images, channels = a.shape[:2]
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    read = read.view(images * len(positions), -1)
    if layer.groups == 1:
        return read.view(1, len(read), taps, channels).transpose(2, 3).flatten(2)
    # Products and sums go group by group, and are slow where a group's values lie far apart. The
    # whole is turned at once: that takes half the time of a copy group by group.
    turned = read.T.contiguous().view(taps, layer.groups, channels // layer.groups, -1)
    return turned.permute(1, 3, 2, 0).flatten(2)


def _gathered(a: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``a`` ``(n, C, H, W)`` at places, ``(n, positions * taps, C)``; zero outside of it.

    ``rows`` and ``columns`` are ``(positions, kernel size)``. Nothing but what is read is copied:
    padding, or laying out anew, the largest maps costs more than all the rest.
    """
    height, width = a.shape[2:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    if a.is_contiguous(memory_format=torch.channels_last):
        read = a.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, flat.flatten())
    else:
        read = a.flatten(2).index_select(2, flat.flatten()).transpose(1, 2).contiguous()
    if not bool(inside.all()):
        read *= inside.flatten()[:, None]
    return read


@dataclass(frozen=True, slots=True)
class Rounded:
    """A layer's integer weights, the bias that goes with them, and the error that is left.

    ``error`` is the expected squared error of the layer's output, summed over its channels, that
    the rounding adds to what the best real weights would leave.
    """

    weight: QuantizedWeight
    bias: Tensor
    error: float


def compensate(
    layer: Layer,
    moments: InputMoments,
    bits: int,
    *,
    damping: float = DAMPING,
    sweeps: int = _SWEEPS,
    follow: float = 1.0,
    unbiased: bool = False,
) -> Rounded:
    """The layer's weights in ``bits`` bits with the least output error that was found.

    ``damping`` grows where a weight column has few samples; 0 is none at all.
    ``follow`` is how far the layer makes up for the errors before it: 1 in full, 0 not at all.
    ``sweeps`` bounds the improvement after rounding; 0 leaves it out. ``unbiased`` ends with the
    scale at which outputs are, on average, as far from their mean as they should be. That of least
    error is smaller; layers that follow make up for it, but where none does, in the logits, it is
    a softmax of higher temperature: EfficientNet-Lite0's classifier alone, fitted to 200
    calibration images and judged on 100 others, diverges in 2 bits by 0.243 with the one and by
    0.059 with the other, in 3 bits by 0.019 and 0.010.
    """
    weight = layer.weight.detach()
    matrix = _by_group(weight, moments.covariance.shape[0]).double()
    target, curvature = _target(matrix, moments, damping, follow)
    diagonal = curvature.diagonal(dim1=1, dim2=2)  # (groups, k)
    importance = diagonal[:, None, :].expand_as(target).reshape(len(weight), -1).float()
    wanted = target.reshape(len(weight), -1).float()
    scale = error_scale(wanted, bits, importance).double().view(target.shape[:2])
    most = largest_level(bits)
    levels = _rounded_in_turn(target, curvature, scale, most)
    levels, scale = _improved(levels, scale, target, curvature, most, sweeps)
    if unbiased:
        scale = _unbiased_scale(levels, scale, target, curvature)
    quantized = QuantizedWeight(
        levels.to(torch.int8).reshape(weight.shape), scale.flatten().float(), bits
    )
    rounded = _by_group(quantized.dequantized(), len(target)).double()
    shift = torch.einsum("gok,gk->go", matrix, moments.original_mean) - torch.einsum(
        "gok,gk->go", rounded, moments.mean
    )
    bias = shift.flatten().float() + (0 if layer.bias is None else layer.bias.detach())
    return Rounded(quantized, bias, float(quadratic_error(rounded, target, curvature).sum()))


def lacking_gain(layer: Layer, rounded: Rounded, original: Tensor, quantized: Tensor) -> float:
    """By how much the outputs must grow for their regression on the original's to have slope one.

    ``original`` and ``quantized`` are inputs of the layer for the same images, which should not be
    among those of the moments: on these, what was fitted to them hides the shrinking. All channels
    together; 1 where the outputs have nothing in common with the original's.
    """
    with torch.no_grad():
        wanted = apply_weight(layer, original, layer.weight).double()
        made = apply_weight(layer, quantized, rounded.weight.dequantized()).double()
    axes = [axis for axis in range(wanted.ndim) if axis != channel_axis(layer, wanted)]
    wanted = wanted - wanted.mean(axes, keepdim=True)
    common, own = float((wanted * made).sum()), float(wanted.square().sum())
    return own / common if common > 0 and own > 0 else 1.0


def enlarged(rounded: Rounded, moments: InputMoments, gain: float) -> Rounded:
    """The same levels with scales ``gain`` times as large, and the bias that keeps the mean."""
    weight = rounded.weight
    mean = moments.mean
    rows = _by_group(weight.dequantized(), len(mean)).double()
    shift = torch.einsum("gok,gk->go", rows, mean).flatten().float() * (gain - 1)
    return Rounded(
        QuantizedWeight(weight.levels, weight.scale * gain, weight.bits),
        rounded.bias - shift,
        rounded.error,
    )


def compensated_share(moments: InputMoments, *, damping: float = DAMPING) -> float:
    """How much of plain rounding's output error is expected to be left after compensation, 0..1.

    A rounding error of variance v in every weight costs v * trace(H) if nothing makes up for it.
    Rounded in turn, what no later weight can make up for is the variance of an input given the
    later ones, the pivots D of H = L D L^T: the error is v * trace(D) (GPTQ's factor is D^-1/2).
    """
    curvature = _curvature(moments, damping)
    pivots = torch.linalg.cholesky(curvature).diagonal(dim1=1, dim2=2).square()
    return float(pivots.sum() / curvature.diagonal(dim1=1, dim2=2).sum())


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """``(groups, output channels of a group, k)``."""
    return weight.reshape(groups, len(weight) // groups, -1)


def _target(
    matrix: Tensor, moments: InputMoments, damping: float, follow: float
) -> tuple[Tensor, Tensor]:
    """``W*`` and ``H`` of the module's docstring, in double precision."""
    curvature = _curvature(moments, damping)
    if follow == 0:
        return matrix, curvature
    # W* = W + W (cov(x, x~) - cov(x~, x~)) H^-1
    behind = matrix @ (moments.cross - moments.covariance)
    return matrix + follow * torch.linalg.solve(curvature, behind, left=False), curvature


def _curvature(moments: InputMoments, damping: float) -> Tensor:
    covariance = moments.covariance
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    if damping:
        damping += _DAMPING_PER_COLUMN * diagonal.shape[1] / moments.samples
    # Never zero, so that the inputs of a dead channel, of which nothing is known, keep weights.
    added = damping * diagonal.mean(1).clamp_min(1e-12)
    return covariance + torch.diag_embed(added[:, None].expand_as(diagonal))


def _rounded_in_turn(target: Tensor, curvature: Tensor, scale: Tensor, most: int) -> Tensor:
    """GPTQ: levels ``(groups, rows, k)``, columns of large curvature first."""
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(1, descending=True)
    ordered = curvature.gather(1, order[:, :, None].expand_as(curvature))
    ordered = ordered.gather(2, order[:, None, :].expand_as(curvature))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    factor = torch.linalg.cholesky(inverse).transpose(1, 2).float()  # upper: row j feeds the later
    columns = order[:, None, :].expand_as(target)
    left = target.gather(2, columns).float()
    levels = torch.empty_like(left)
    scale = scale.float()
    k = left.shape[2]
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        errors = torch.empty_like(left[:, :, start:end])
        for j in range(start, end):
            level = (left[:, :, j] / scale).round_().clamp_(-most, most)
            error = (left[:, :, j] - level * scale) / factor[:, j, j, None]
            left[:, :, j:end] -= error[:, :, None] * factor[:, j, None, j:end]
            levels[:, :, j], errors[:, :, j - start] = level, error
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return torch.empty_like(levels).scatter_(2, columns, levels)


def _improved(
    levels: Tensor, scale: Tensor, target: Tensor, curvature: Tensor, most: int, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Levels and scale after at most ``sweeps`` turns of moving single levels and of scaling."""
    h = curvature.float()
    for _ in range(sweeps):
        scale = _least_squares_scale(levels, scale, target, curvature)
        moved = _moved(levels, scale, target, h, most)
        changed = int((moved != levels).sum())
        levels = moved
        if changed <= _SETTLED * levels.numel():
            break
    return levels, scale


def _least_squares_scale(
    levels: Tensor, scale: Tensor, target: Tensor, curvature: Tensor
) -> Tensor:
    exact = levels.double()
    weighted = exact @ curvature
    top, bottom = (weighted * target).sum(2), (weighted * exact).sum(2)
    # A row rounded to zeros, or to its opposite, keeps the scale that it has.
    return torch.where((bottom > 0) & (top > 0), top / bottom.clamp_min(1e-300), scale)


def _unbiased_scale(levels: Tensor, scale: Tensor, target: Tensor, curvature: Tensor) -> Tensor:
    """The scale at which the rounded outputs' regression on the wanted ones has slope one."""
    weighted = target @ curvature
    wanted, found = (weighted * target).sum(2), (weighted * levels.double()).sum(2)
    # Rounding to a few levels may leave little of a row: then its scale is not trusted to this.
    larger = wanted / found.clamp_min(1e-300)
    return torch.where((found > 0) & (larger < 2 * scale), larger, scale)


def _moved(levels: Tensor, scale: Tensor, target: Tensor, h: Tensor, most: int) -> Tensor:
    """One sweep: each level moves to the best one, the others held."""
    levels, scale = levels.clone(), scale.float()
    # The error's gradient by column, kept up to date; exact at the start of the sweep.
    slope = ((scale[:, :, None] * levels).double() - target).float() @ h
    step = h.diagonal(dim1=1, dim2=2)
    for start in range(0, levels.shape[2], _BLOCK):
        end = min(start + _BLOCK, levels.shape[2])
        near = slope[:, :, start:end].contiguous()
        deltas = torch.zeros_like(near)
        for j in range(start, end):
            now = levels[:, :, j]
            wanted = now - near[:, :, j - start] / (scale * step[:, j, None])
            better = wanted.round_().clamp_(-most, most)
            delta = scale * (better - now)
            deltas[:, :, j - start] = delta
            near += delta[:, :, None] * h[:, j, None, start:end]
            levels[:, :, j] = better
        slope[:, :, end:] += deltas @ h[:, start:end, end:]
    return levels


def quadratic_error(weights: Tensor, target: Tensor, curvature: Tensor) -> Tensor:
    """``(w - w*) H (w - w*)^T`` of every output channel, ``(groups, rows)``."""
    difference = weights.double() - target
    return ((difference @ curvature) * difference).sum(2)
