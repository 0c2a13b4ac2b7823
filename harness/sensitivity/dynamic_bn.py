"""Dynamic BN: how well a policy will do, before anything is built or fine-tuned.

A policy (one precision a layer) is applied to a copy of the network, which then runs on calibration
images with batch-norm statistics *re-estimated* on these images: rounding shifts and scales what
a layer puts out, and the statistics of training no longer fit. Source: Chen, Wang and Cheng,
Pattern Recognition 140, 2023; its nearest relative is EagleEye's adaptive BN (ECCV 2020).

Batch norm must not be folded before: there would be nothing to re-estimate. Rounding does not mind:
with one symmetric scale an output channel, ``Q(c w) = c Q(w)`` for every factor c of a channel, so
rounding first and folding the new statistics afterwards gives weights on the same levels as
rounding the folded weights; only the scales and the biases differ, and both are free.

One pass does both where all images fit into one batch: their own statistics are then what
re-estimation would find (plain mean over one batch, in any order of the images), and the network's
outputs under them are what is judged. More images take a pass each.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.batchnorm import reestimate
from harness.compression.fakequant import input_ranges
from harness.compression.quantizers import Range
from harness.errors import BuildError, ConfigError
from harness.networks import BATCH_NORMS, layers_in_order
from harness.sensitivity.curvature import rounded_weights

__all__ = ["Performance", "Predictor", "judge"]

Policy = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """What a variant does on calibration images.

    ``divergence`` is the mean KL divergence (nats) of the original's classes from the variant's;
    ``loss`` the cross-entropy of the labels and ``top1`` the share that is right, None without
    labels.
    """

    divergence: float
    loss: float | None
    top1: float | None
    images: int


def judge(
    variant: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    reference: Tensor,
    *,
    dynamic: bool = True,
    batch: int = 256,
) -> Performance:
    """What ``variant``, pruned or quantized, does on ``images`` ``(n, ...)``.

    ``reference`` are the original's logits ``(n, classes)``. With ``dynamic`` its batch-norm
    statistics are re-estimated on the images first, in place where they take several batches and
    for the moment where they fit into one.
    """
    return _performance(_logits(variant, images, dynamic, batch), labels, reference)


def _logits(network: nn.Module, images: Tensor, dynamic: bool, batch: int) -> Tensor:
    network.eval()
    with torch.no_grad():
        if dynamic and len(images) <= batch:
            with _batch_statistics(network):
                return torch.as_tensor(network(images))
        if dynamic:
            reestimate(network, images, batch=batch)
        parts = range(0, len(images), batch)
        return torch.cat([network(images[start : start + batch]) for start in parts])


@contextlib.contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms normalise by their batch, and keep the statistics that they had."""
    layers = [
        m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None
    ]
    momenta = [layer.momentum for layer in layers]
    tracked = [layer.num_batches_tracked for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # the running mean moves by this share: not at all
        layer.num_batches_tracked = None  # nor is the batch counted
        layer.train()
    try:
        yield
    finally:
        for layer, momentum, count in zip(layers, momenta, tracked, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
            layer.eval()


def _performance(logits: Tensor, labels: Tensor | None, reference: Tensor) -> Performance:
    expected = reference.log_softmax(1)
    found = logits.log_softmax(1)
    divergence = (expected.exp() * (expected - found)).sum(1).mean()
    return Performance(
        divergence=float(divergence),
        loss=None if labels is None else float(functional.nll_loss(found, labels)),
        top1=None if labels is None else float((logits.argmax(1) == labels).float().mean()),
        images=len(logits),
    )


class _Rounded:
    """Forward pre-hook that rounds a layer's input while its policy says so."""

    def __init__(self, interval: Range) -> None:
        self.interval = interval
        self.precision = "fp32"

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...] | None:
        if self.precision == "fp32":
            return None
        if self.precision == "fp16":
            return (inputs[0].half().float(), *inputs[1:])
        return (self.interval.rounded(inputs[0]), *inputs[1:])


class Predictor:
    """Predicted performance of quantization policies of one network, quickly one after another.

    What policies share is done once: each layer is rounded to a precision when first asked for,
    ranges of activations (unless given) and the original's logits are taken at the start.
    ``rounded[layer][precision]`` are weights (batch norm *not* folded) of a quantizer of one's own.
    Raises BuildError where there are no images.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        rounded: Mapping[str, Mapping[str, Tensor]] | None = None,
        ranges: Mapping[str, Range] | None = None,
        batch: int = 256,
    ) -> None:
        if not len(images):
            raise BuildError("no images to predict performance on")
        self.images, self.labels, self.batch = images, labels, batch
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._layers = layers_in_order(self._network, images[:1])
        self._statistics = {name: value.clone() for name, value in self._network.named_buffers()}
        self._weights = {name: {"fp32": layer.weight.data} for name, layer in self._layers.items()}
        for name, ways in (rounded or {}).items():
            self._weights[name].update(ways)
        ranges = input_ranges(self._network, images) if ranges is None else ranges
        self.reference = _logits(self._network, images, False, batch)
        self._inputs = {name: _Rounded(ranges[name]) for name in self._layers}
        for name, layer in self._layers.items():
            layer.register_forward_pre_hook(self._inputs[name])

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that a policy may name, in their order."""
        return tuple(self._layers)

    def predict(
        self, policy: Policy, *, dynamic: bool = True, images: int | None = None
    ) -> Performance:
        """The performance of ``policy`` (layer to precision; others fp32), by the first ``images``.

        ``dynamic=False`` keeps the statistics of training. ConfigError where a layer is unknown.
        """
        logits = self.logits(policy, dynamic=dynamic, images=images)
        labels = None if self.labels is None else self.labels[: len(logits)]
        return _performance(logits, labels, self.reference[: len(logits)])

    def logits(self, policy: Policy, *, dynamic: bool = True, images: int | None = None) -> Tensor:
        """The logits ``(images, classes)`` under ``policy`` that ``predict`` judges."""
        if unknown := sorted(policy.keys() - self._layers.keys()):
            raise ConfigError(
                f"a policy names {', '.join(unknown)}, which are no layers of the network; "
                f"there are {', '.join(self._layers)}"
            )
        for name, layer in self._layers.items():
            precision = policy.get(name, "fp32")
            layer.weight.data = self._rounded(name, precision)
            self._inputs[name].precision = precision
        count = len(self.images) if images is None else images
        try:
            return _logits(self._network, self.images[:count], dynamic, self.batch)
        finally:
            for name, buffer in self._network.named_buffers():
                buffer.copy_(self._statistics[name])

    def _rounded(self, name: str, precision: str) -> Tensor:
        ways = self._weights[name]
        if precision not in ways:
            ways[precision] = rounded_weights(ways["fp32"], precision)
        return ways[precision]

    def rank(
        self, policies: Sequence[Policy], *, best: int = 1, dynamic: bool = True
    ) -> tuple[tuple[int, Performance], ...]:
        """Indices of ``policies`` with their performance, least divergence first.

        All are tried on a quarter of the images; on all images only the better half of them, and
        never fewer than ``best``: these come first, in the order of what all images say.
        """
        quarter = max(len(self.images) // 4, min(len(self.images), 16))
        tried = [
            (index, self.predict(policy, dynamic=dynamic, images=quarter))
            for index, policy in enumerate(policies)
        ]
        tried.sort(key=lambda item: item[1].divergence)
        finalists = max(best, len(tried) // 2)
        final = [
            (index, self.predict(policies[index], dynamic=dynamic))
            for index, _ in tried[:finalists]
        ]
        final.sort(key=lambda item: item[1].divergence)
        return (*final, *tried[finalists:])
