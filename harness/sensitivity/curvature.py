"""How much loss every option of every group costs, from one pass over calibration data.

The score of option j of group l is the second-order term of the loss with the Hessian replaced by
the Fisher matrix, its inner products summed over the group before they are squared::

    S_lj = 1/(2N) * sum_n ( <grad_w loss_n, dw_lj> + <grad_a loss_n, da_lj> )^2

Only gradients with respect to the layers' *outputs* are needed. Let layer ``y = W * a + b`` (a
convolution or a matrix product, batch norm folded) and ``g = d loss_n / d y``. ``y`` is linear in
its weights, its bias and its input, so for any change ``dw`` of the weights of output channel c::

    <grad_w loss_n, dw>_c = sum_hw g[n,c] * (dw * a)[n,c]

- Removing channel c at its producer is ``dw_c = -W_c, db_c = -b_c``; then ``dw * a + db = -y`` and
  the inner product is ``-sum_hw g[n,c] * y[n,c]``. Consumers are not cut as well: the channel would
  be counted twice. A depthwise layer passes on a channel that its producer has already removed, so
  its weights are not counted either, only its bias: ``-sum_hw g[n,c] * b[c]``.
- Quantized weights: ``dw = Q(W) - W``, so ``sum_hw g[n,c] * (dw * a)[n,c]``.
- Quantized activations: the layer reads ``a + da``, ``da = Q(a) - a``; by linearity the output
  changes by ``W * da``, and ``<grad_a loss_n, da>`` through this layer is
  ``sum_hw sum_c g[n,c] * (W * da)[n,c]``, also a sum over output channels.

So two matrices ``[N, C]`` a layer (removed; quantized, weights and activations together) hold all
there is: an option that keeps a set of channels and quantizes them sums the first over the removed
channels and the second over the kept ones. For the joint option this is exact, because weights
have one scale an output channel: rounding a kept row does not depend on which rows were removed.

Sources: the empirical Fisher as a proxy of the Hessian: Theis et al., arXiv:1801.05787, eq. 4-6;
classes drawn from the network's own output as an unbiased estimate of the Gauss-Newton form:
Martens, JMLR 21 (2020), section 5; Kunstner et al., NeurIPS 2019.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BuildError
from harness.networks import LAYER_TYPES, Layer, fold_batchnorm
from harness.records import Group, Option

__all__ = ["Sensitivities", "score"]


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Expected loss increases: ``values[group][j]`` for ``options[group][j]``.

    ``channel_scores[group][c]`` is the increase that removing channel c alone is expected to cause.
    """

    options: Mapping[str, tuple[Option, ...]]
    values: Mapping[str, tuple[float, ...]]
    channel_scores: Mapping[str, tuple[float, ...]]

    def kept(self, group: str, channels: int) -> tuple[int, ...]:
        """The ``channels`` channels of the group with the largest scores, in rising order."""
        return _best(self.channel_scores[group], channels)


def _best(scores: Sequence[float], channels: int) -> tuple[int, ...]:
    # Ties go to the lower channel, so that the choice does not depend on the sort.
    order = sorted(range(len(scores)), key=lambda channel: (-scores[channel], channel))
    return tuple(sorted(order[:channels]))


def score(
    network: nn.Module,
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 2,
    seed: int = 0,
    batch: int = 64,
    seven_bit_weights: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivities:
    """The sensitivities of all ``options`` on ``images`` ``(n, ...)``, as the network wants them.

    With ``labels`` the loss is the cross-entropy of the true class (empirical Fisher); without,
    that of ``draws`` classes an image, drawn from the network's own output (Gauss-Newton), or,
    where the outputs are no logits ``(n, classes)``, of their squared error.
    ``seven_bit_weights`` is what an AVX2 board runs. ``progress(done, of)`` counts images; the
    ranges of the activations are taken in a forward pass before the first call.
    """
    if not len(images):
        raise BuildError("no images to compute sensitivities on")
    folded = fold_batchnorm(network, images[:1])
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    precisions = {option.precision for choice in options.values() for option in choice}
    recorders = {
        name: _Recorder(_layer(folded, name), precisions - {"fp32"}, seven_bit_weights)
        for group in groups
        for name in group.producers
    }
    with contextlib.ExitStack() as hooks:
        for recorder in recorders.values():
            hooks.callback(recorder.layer.register_forward_hook(recorder).remove)
        if "int8" in precisions:
            with torch.no_grad():
                for start in range(0, len(images), batch):
                    folded(images[start : start + batch])
        for recorder in recorders.values():
            recorder.ranging = False
        _collect(folded, recorders, images, labels, draws, seed, batch, progress)
    return _summed(groups, options, recorders)


def _layer(network: nn.Module, name: str) -> Layer:
    layer = network.get_submodule(name)
    assert isinstance(layer, LAYER_TYPES)
    return layer


def _collect(
    network: nn.Module,
    recorders: Mapping[str, _Recorder],
    images: Tensor,
    labels: Tensor | None,
    draws: int,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """The pass: one forward and, per draw, one backward for every batch."""
    generator = torch.Generator().manual_seed(seed)
    rounds = 1 if labels is not None else draws
    for start in range(0, len(images), batch):
        # A gradient must be asked for somewhere before the first layer.
        part = images[start : start + batch].detach().requires_grad_(True)
        with torch.enable_grad():
            outputs = network(part)
            known = None if labels is None else labels[start : start + batch]
            losses = [_loss(outputs, known, generator) for _ in range(rounds)]
        for index, loss in enumerate(losses):
            last = index == rounds - 1
            outs = [output for r in recorders.values() for output in r.outputs]
            gradients = torch.autograd.grad(loss, outs, retain_graph=not last, allow_unused=True)
            given = iter(gradients)
            for recorder in recorders.values():
                recorder.add([next(given) for _ in recorder.outputs], len(part))
        for recorder in recorders.values():
            recorder.forget()
        if progress is not None:
            progress(start + len(part), len(images))


def _loss(outputs: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """A sum over the batch whose gradient is, image by image, that of the image's own loss."""
    if labels is not None:
        return functional.cross_entropy(outputs, labels, reduction="sum")
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        drawn = torch.multinomial(outputs.detach().softmax(1), 1, generator=generator).squeeze(1)
        return functional.cross_entropy(outputs, drawn, reduction="sum")
    # Squared error 1/2 |f(x) - f0(x)|^2 has the Gauss-Newton matrix J^T J; random signs v give
    # its unbiased estimate J^T v v^T J (Hutchinson).
    signs = torch.randint(0, 2, outputs.shape, generator=generator) * 2 - 1
    return (outputs * signs).sum()


class _Recorder:
    """Forward hook of one layer: its inner products with every change, ``[N, C]`` each."""

    def __init__(self, layer: Layer, precisions: set[str], seven_bit_weights: bool) -> None:
        self.layer = layer
        self.ranging = True
        self.outputs: list[Tensor] = []
        self._removals: list[Tensor] = []
        self._changes: list[dict[str, Tensor]] = []
        self._low, self._high = 0.0, 0.0  # a quantized range always holds zero
        self._rows: dict[str, list[Tensor]] = {name: [] for name in ("removed", *precisions)}
        self._weights = {
            precision: _rounded_weights(layer.weight, precision, seven_bit_weights)
            for precision in precisions
        }
        groups = getattr(layer, "groups", 1)
        self._depthwise = groups > 1 and groups == layer.weight.shape[0]

    def __call__(
        self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        a = inputs[0].detach()
        if self.ranging:
            self._low = min(self._low, float(a.min()))
            self._high = max(self._high, float(a.max()))
            return None
        with torch.no_grad():
            changes = {}
            for precision, weights in self._weights.items():
                rounded = self._rounded_input(a, precision)
                changes[precision] = self._apply(a, weights - self.layer.weight) + self._apply(
                    rounded - a, self.layer.weight
                )
            self._changes.append(changes)
            if self._depthwise:
                bias = self.layer.bias
                shape = (1, -1) + (1,) * (output.ndim - 2)
                removal = torch.zeros(shape) if bias is None else -bias.detach().view(shape)
                self._removals.append(removal.expand_as(output))
            else:
                self._removals.append(-output.detach())
        self.outputs.append(output)
        # The network goes on with a copy: an in-place activation would turn the gradient with
        # respect to this tensor into that with respect to the activation's result.
        return output.clone()

    def _apply(self, a: Tensor, weight: Tensor) -> Tensor:
        """The layer without its bias, with other weights."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return functional.linear(a, weight)
        no_bias: Any = None
        result: Tensor = layer._conv_forward(a, weight, no_bias)
        return result

    def _rounded_input(self, a: Tensor, precision: str) -> Tensor:
        if precision == "fp16":
            return a.half().float()
        scale = (self._high - self._low) / 255
        if scale == 0:
            return a
        zero = round(-self._low / scale)
        levels = (a / scale).round().add_(zero).clamp_(0, 255)
        return (levels - zero) * scale

    def add(self, gradients: Sequence[Tensor | None], count: int) -> None:
        """One row an image; a layer that is called twice sums its calls."""
        rows: dict[str, Tensor] = {}
        for gradient, removal, changes in zip(
            gradients, self._removals, self._changes, strict=True
        ):
            for name, change in (("removed", removal), *changes.items()):
                row = _per_channel(gradient, change, self.layer, count)
                rows[name] = rows[name] + row if name in rows else row
        for name, row in rows.items():
            self._rows[name].append(row)

    def forget(self) -> None:
        """Drop what the batch left, so that memory is bounded by one batch."""
        self.outputs, self._removals, self._changes = [], [], []

    def matrix(self, name: str) -> Tensor:
        """``[N, C]`` in double precision: these are summed with mixed signs before squaring."""
        return torch.cat(self._rows[name]).double()


def _per_channel(gradient: Tensor | None, change: Tensor, layer: Layer, count: int) -> Tensor:
    if gradient is None:  # the output does not reach the loss
        return torch.zeros(count, layer.weight.shape[0])
    product = gradient * change
    if isinstance(layer, nn.Linear):
        return product.reshape(count, -1, product.shape[-1]).sum(1)
    return product.flatten(2).sum(2)


def _rounded_weights(weight: Tensor, precision: str, seven_bit: bool) -> Tensor:
    """Weights as the engine sees them: symmetric with one scale an output channel, for int8."""
    weight = weight.detach()
    if precision == "fp16":
        return weight.half().float()
    levels = 63 if seven_bit else 127
    peak = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    scale = (peak / levels).view(-1, *(1,) * (weight.ndim - 1))
    return (weight / scale).round() * scale


def _summed(
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    recorders: Mapping[str, _Recorder],
) -> Sensitivities:
    values: dict[str, tuple[float, ...]] = {}
    channel_scores: dict[str, tuple[float, ...]] = {}
    for group in groups:

        def total(name: str, group: Group = group) -> Tensor:
            return torch.stack([recorders[layer].matrix(name) for layer in group.producers]).sum(0)

        removed = total("removed")
        scores = tuple((removed.square().mean(0) / 2).tolist())
        changed = {
            precision: total(precision)
            for precision in {option.precision for option in options[group.name]} - {"fp32"}
        }
        column = []
        for option in options[group.name]:
            keep = torch.zeros(group.channels, dtype=torch.bool)
            keep[list(_best(scores, option.channels))] = True
            inner = removed[:, ~keep].sum(1)
            if option.precision != "fp32":
                inner = inner + changed[option.precision][:, keep].sum(1)
            column.append(float(inner.square().mean() / 2))
        values[group.name] = tuple(column)
        channel_scores[group.name] = scores
    if any(value != value for column in values.values() for value in column):
        raise BuildError("sensitivities are not numbers: the network's loss overflows or is NaN")
    return Sensitivities(
        {group.name: options[group.name] for group in groups}, values, channel_scores
    )
