"""Inner products of one layer's loss gradients with all changes of its weights and inputs.

Let the layer be ``y = W * a + b`` and ``g = d loss_n / d y``. Two ways lead to
``<grad_w loss_n, dw_j>`` for J changes of the weights:

- *by outputs*: ``sum_hw g * (dw_j * a)``, the layer run once more for every change;
- *by gradients*: the image's own weight gradient ``G_n = sum_hw g a^T``, which costs as much as
  running the layer once (more for some kernels), and then ``<G_n, dw_j>`` for all j in one matrix
  product.

The weight gradients exist for one layer and a few images at a time, never for the network. The
second way wins wherever an output has more positions than there are changes to spare; the count of
multiplications decides, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BuildError
from harness.networks import Layer

__all__ = ["Changes", "Recorder", "Rows"]

FLOAT_BYTES = 4
# Of the largest output: convolutions in float32 differ by less from one algorithm to another.
LINEAR = 1e-3
# How much longer than the layer its own weight gradient takes where the library has no kernel for
# it: depthwise convolutions of other sizes than 3 took oneDNN 10 to 20 times, those of 3 once.
_SLOW_GRADIENT = 12
Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Changes:
    """What may be done to one layer: ``weights[j]`` added to its weights, its input rounded.

    ``weights`` is ``(changes, *the weight's shape)``; ``inputs`` has the ways to round the input.
    """

    weights: Tensor
    inputs: tuple[Rounding, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Inner products of n images: ``removed`` ``(n, C)``, the others ``(changes, n, C)``.

    Where the output channels need not be told apart the last axis of the others is summed to 1.
    """

    removed: Tensor
    weights: Tensor
    inputs: Tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            self.removed + other.removed, self.weights + other.weights, self.inputs + other.inputs
        )


class Recorder:
    """Forward hook of one layer: a backward pass through it adds to ``rows``.

    ``chunk`` images at a time are worked on, so that what is needed meanwhile stays bounded.
    """

    def __init__(self, layer: Layer, changes: Changes, *, per_channel: bool) -> None:
        self.layer = layer
        self.changes = changes
        self.per_channel = per_channel
        self.chunk = 1
        self.rows: Rows | None = None
        self.held_bytes, self.scratch_bytes = 0, 0  # for one image
        groups = getattr(layer, "groups", 1)
        # A subclass may do more than multiply, pad its input for one.
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        self._plain = any(type(layer).forward is kind.forward for kind in kinds)
        self._depthwise = groups > 1 and groups == layer.weight.shape[0]

    def check(self, name: str, inputs: Tensor, output: Tensor) -> None:
        """Refuse (BuildError) a layer whose output is no product of its weights and its input.

        A subclass may normalise its weights or pad with other values than zero; what a change of
        either does to the output is then not what the change alone gives. Zeros are no harm.
        """
        if self._plain:
            return
        weight, bias = self.layer.weight, self.layer.bias
        product = self._applied_by_its_own(inputs, weight)
        whole = product if bias is None else product + bias.view(-1, *(1,) * (product.ndim - 2))
        pairs = (
            (output, whole),
            (2 * product, self._applied_by_its_own(2 * inputs, weight)),
            (2 * product, self._applied_by_its_own(inputs, 2 * weight)),
        )
        size = max(float(output.abs().amax()), float(product.abs().amax()))
        if any(float((a - b).abs().amax()) > LINEAR * size for a, b in pairs):
            raise BuildError(
                f"{name} ({type(self.layer).__name__}) is no product of its weights and its input: "
                "its forward changes one of them (weights normalised, a padding that is not zero); "
                "do that in the network before the layer, and leave the layer to multiply"
            )

    def size(self, inputs: Tensor, output: Tensor) -> None:
        """Count what one image takes; ``inputs`` and ``output`` belong to a single one."""
        a, y = inputs.numel(), output.numel()
        # The input, the output and the copy that the network goes on with.
        self.held_bytes += FLOAT_BYTES * (a + 2 * y)
        # The output's gradient, a changed output and their product, a rounded input and its
        # change, and the image's own gradient of the weights.
        scratch = 3 * y + 3 * a + 2 * self.layer.weight.numel()
        self.scratch_bytes = max(self.scratch_bytes, FLOAT_BYTES * scratch)

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The output as the network goes on with it."""
        a, y = inputs[0].detach(), output.detach()

        def add(gradient: Tensor) -> None:
            with torch.no_grad():
                for start in range(0, len(y), self.chunk):
                    part = slice(start, start + self.chunk)
                    pieces.append(self._rows(gradient[part], a[part], y[part]))
                rows = _joined(pieces)
                pieces.clear()
                self.rows = rows if self.rows is None else self.rows + rows

        pieces: list[Rows] = []
        output.register_hook(add)  # type: ignore[no-untyped-call]
        # The network goes on with a copy: an in-place activation would turn the gradient with
        # respect to this tensor into that with respect to the activation's result.
        return output.clone()

    def take(self, count: int) -> Rows:
        """The rows that the last backward pass has left for ``count`` images, forgotten here."""
        rows, self.rows = self.rows, None
        if rows is None:
            return self.empty(count)
        if len(rows.removed) == count:
            return rows
        # A layer that has images and positions on one axis: an image's rows follow each other.
        return Rows(
            rows.removed.reshape(count, -1, rows.removed.shape[1]).sum(1),
            *(
                part.reshape(len(part), count, -1, part.shape[2]).sum(2)
                for part in (rows.weights, rows.inputs)
            ),
        )

    def empty(self, count: int) -> Rows:
        """The rows of a layer whose output does not reach the loss."""
        channels = self.layer.weight.shape[0]
        last = channels if self.per_channel else 1
        return Rows(
            torch.zeros(count, channels),
            torch.zeros(len(self.changes.weights), count, last),
            torch.zeros(len(self.changes.inputs), count, last),
        )

    def _rows(self, gradient: Tensor, a: Tensor, y: Tensor) -> Rows:
        empty = self.empty(len(y))
        if self._depthwise:
            # Its producer has removed the channel already; what the layer adds is its bias.
            bias = self.layer.bias
            removed = empty.removed if bias is None else -self._positions(gradient).sum(2) * bias
        else:
            removed = -self._products(gradient, y)
        weights = empty.weights
        if len(weights):
            by_gradients = self._gradient_macs(y) + weights.shape[0] * self.layer.weight.numel()
            if self._gradient_of is None or by_gradients >= weights.shape[0] * self._macs(y):
                weights = torch.stack(
                    [self._summed(gradient, self._apply(a, dw)) for dw in self.changes.weights]
                )
            else:
                weights = self._contracted(self._gradient_of(gradient, a))
        inputs = empty.inputs
        if len(inputs):
            inputs = torch.stack(
                [
                    self._summed(gradient, self._apply(rounded(a) - a, self.layer.weight))
                    for rounded in self.changes.inputs
                ]
            )
        return Rows(removed, weights, inputs)

    def _macs(self, y: Tensor) -> int:
        """Multiplications of the layer for one image."""
        return y[0].numel() * math.prod(self.layer.weight.shape[1:])

    def _gradient_macs(self, y: Tensor) -> int:
        """What an image's own weight gradient costs, in multiplications of the forward pass."""
        slow = self._depthwise and max(self.layer.weight.shape[2:], default=3) != 3
        return self._macs(y) * (_SLOW_GRADIENT if slow else 1)

    def _positions(self, values: Tensor) -> Tensor:
        """An output or its gradient as ``(n, C, positions)``."""
        if isinstance(self.layer, nn.Linear):
            return values.reshape(len(values), -1, values.shape[-1]).transpose(1, 2)
        return values.flatten(2)

    def _products(self, gradient: Tensor, change: Tensor) -> Tensor:
        return self._positions(gradient * change).sum(2)

    def _summed(self, gradient: Tensor, change: Tensor) -> Tensor:
        products = self._products(gradient, change)
        return products if self.per_channel else products.sum(1, keepdim=True)

    def _apply(self, a: Tensor, weight: Tensor) -> Tensor:
        """The layer without its bias, with other weights."""
        layer = self.layer
        if not self._plain:
            return self._applied_by_its_own(a, weight)
        if isinstance(layer, nn.Linear):
            return functional.linear(a, weight)
        no_bias: Any = None
        result: Tensor = layer._conv_forward(a, weight, no_bias)
        return result

    def _applied_by_its_own(self, a: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer
        own, bias = layer.weight.data, layer.bias
        layer.weight.data, layer.bias = weight, None
        try:
            return layer.forward(a)
        finally:
            layer.weight.data, layer.bias = own, bias

    @property
    def _gradient_of(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """How every image's own weight gradient is computed; None where there is no short way."""
        layer = self.layer
        if not self._plain:
            return None
        if isinstance(layer, nn.Linear):
            return self._by_products
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return None
        one = (1,) * len(layer.kernel_size)
        if (
            layer.kernel_size == layer.stride == one
            and layer.groups == 1
            and not any(layer.padding)
        ):
            return self._by_products
        return self._image_by_image

    def _by_products(self, gradient: Tensor, a: Tensor) -> Tensor:
        return torch.bmm(self._positions(gradient), self._positions(a).transpose(1, 2))

    def _image_by_image(self, gradient: Tensor, a: Tensor) -> Tensor:
        layer = self.layer
        assert not isinstance(layer, nn.Linear) and not isinstance(layer.padding, str)
        result = layer.weight.new_empty((len(a), *layer.weight.shape))
        none = [0] * len(layer.kernel_size)
        # One call an image is faster than one grouped convolution of all: 2 to 20 times on 3x3
        # kernels, where the library has kernels for few groups and for depthwise ones only.
        for n in range(len(a)):
            _, own, _ = torch.ops.aten.convolution_backward(
                gradient[n : n + 1],
                a[n : n + 1],
                layer.weight,
                None,
                layer.stride,
                layer.padding,
                layer.dilation,
                False,  # not transposed
                none,
                layer.groups,
                [False, True, False],  # of input, weights and bias only the weights
            )
            result[n] = own
        return result

    def _contracted(self, gradients: Tensor) -> Tensor:
        """``(n, *weight)`` gradients times all changes: ``(changes, n, C or 1)``."""
        count, changes = len(gradients), self.changes.weights
        if not self.per_channel:
            return (changes.flatten(1) @ gradients.view(count, -1).T).unsqueeze(2)
        channels = changes.shape[1]
        rows = torch.bmm(
            changes.flatten(2).transpose(0, 1),  # C, changes, weights of a channel
            gradients.view(count, channels, -1).permute(1, 2, 0),
        )
        return rows.permute(1, 2, 0)


def _joined(pieces: list[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    return Rows(
        torch.cat([piece.removed for piece in pieces]),
        torch.cat([piece.weights for piece in pieces], 1),
        torch.cat([piece.inputs for piece in pieces], 1),
    )


def changes_of(
    weights: Mapping[str, Tensor], original: Tensor, inputs: Mapping[str, Rounding]
) -> Changes:
    """The changes that rounded ``weights`` and the ways to round ``inputs`` stand for, in order."""
    stacked = [rounded - original for rounded in weights.values()]
    empty = original.new_zeros((0, *original.shape))
    return Changes(torch.stack(stacked) if stacked else empty, tuple(inputs.values()))
