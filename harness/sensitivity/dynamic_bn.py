"""Dynamic BN: how well a policy will do, before anything is built or fine-tuned.

A policy (one precision a layer) is applied to a copy of the network, which then runs on calibration
images with batch-norm statistics *re-estimated* on these images: rounding shifts and scales what
a layer puts out, and the statistics of training no longer fit. Source: Chen, Wang and Cheng,
Pattern Recognition 140, 2023; its nearest relative is EagleEye's adaptive BN (ECCV 2020).

Batch norm must not be folded before: there would be nothing to re-estimate. Rounding does not mind:
with one symmetric scale an output channel, ``Q(c w) = c Q(w)`` for every factor c of a channel, so
rounding first and folding the new statistics afterwards gives weights on the same levels as
rounding the folded weights; only the scales and the biases differ, and both are free.

Images of calibration are not those of training: fewer, perhaps biased, without its augmentation.
Their statistics alone can cost an untouched network points of accuracy, which then drown what a
policy costs. *Anchored* statistics are those of training plus what the policy changed on the
calibration images, a control variate: an untouched network keeps its own.

One pass does both where all images fit into one batch: their own statistics are then what
re-estimation would find (plain mean over one batch, in any order of the images), and the network's
outputs under them are what is judged. More images take a pass each.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.batchnorm import (
    Corrections,
    corrections,
    reestimate,
    statistics_layers,
)
from harness.compression.fakequant import input_ranges
from harness.compression.prune import prune
from harness.compression.quantizers import Range
from harness.errors import BuildError, ConfigError
from harness.networks import layers_in_order
from harness.records import Group
from harness.sensitivity.curvature import rounded_weights

__all__ = ["Performance", "Predictor", "Statistics", "corrections_of", "cut_corrections", "judge"]

Policy: TypeAlias = Mapping[str, str]
Statistics: TypeAlias = Literal["trained", "reestimated", "anchored"]


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
    statistics: Statistics = "reestimated",
    corrected: Corrections | None = None,
    batch: int = 256,
) -> Performance:
    """What ``variant``, pruned or quantized, does on ``images`` ``(n, ...)``.

    ``reference`` are the original's logits ``(n, classes)``. Statistics that are not those of
    training replace them in place where the images take several batches, and for the moment where
    they fit into one; ``corrected`` (``corrections_of``) goes with ``"anchored"``.
    """
    if (statistics == "anchored") != (corrected is not None):
        raise ConfigError("anchored statistics want corrections, and no others do")
    logits = _logits(variant, images, statistics, corrected, batch)
    return _performance(logits, labels, reference)


def _logits(
    network: nn.Module,
    images: Tensor,
    statistics: Statistics,
    corrected: Corrections | None,
    batch: int,
) -> Tensor:
    network.eval()
    with torch.no_grad():
        if statistics != "trained" and len(images) <= batch:
            with _batch_statistics(network, corrected):
                return torch.as_tensor(network(images))
        if statistics != "trained":
            reestimate(network, images, batch=batch, corrected=corrected)
        parts = range(0, len(images), batch)
        return torch.cat([network(images[start : start + batch]) for start in parts])


@contextlib.contextmanager
def _batch_statistics(network: nn.Module, corrected: Corrections | None) -> Iterator[None]:
    """Batch norms normalise by their batch, corrected, and get back the statistics they had."""
    layers = statistics_layers(network)

    def use(name: str, mean: Tensor, variance: Tensor) -> None:
        if corrected is not None:
            shift, ratio = corrected[name]
            mean, variance = mean + shift * variance.sqrt(), variance * ratio
        layers[name].running_mean, layers[name].running_var = mean, variance

    before = {name: (layer.running_mean, layer.running_var) for name, layer in layers.items()}
    try:
        with _watched(layers, use):
            yield
    finally:
        for name, layer in layers.items():
            layer.running_mean, layer.running_var = before[name]


@contextlib.contextmanager
def _watched(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Tell ``see`` the mean and variance of what each batch norm is about to read."""

    def hook(name: str) -> Any:
        def tell(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see(name, *_mean_and_variance(inputs[0]))

        return tell

    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(hook(name)).remove)
        yield


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every channel of ``(n, channels, ...)``, the variance unbiased.

    From sums of squares, in a tenth of torch.var_mean's time, which is more than a small
    convolution's; added up in double precision, because a large mean cancels.
    """
    rows = x.reshape(*x.shape[:2], -1)
    count = rows.shape[0] * rows.shape[2]
    mean = rows.mean(2).double().mean(0)
    squares = torch.linalg.vector_norm(rows, dim=2).double().square().sum(0)
    variance = (squares / count - mean.square()).clamp_min(0) * (count / max(count - 1, 1))
    return mean.to(x.dtype), variance.to(x.dtype)


def corrections_of(network: nn.Module, images: Tensor, *, batch: int = 256) -> Corrections:
    """The corrections that anchor ``judge`` to the statistics of ``network``, the original's.

    In one batch every batch norm is anchored before the next layer reads it, so that the images'
    statistics are taken under those of training, too; several batches go through ``reestimate``,
    where none is.
    """
    fresh = copy.deepcopy(network).eval()
    if len(images) > batch:
        reestimate(fresh, images, batch=batch)
        return corrections(network, fresh)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str, mean: Tensor, variance: Tensor) -> None:
        seen[name] = (mean, variance)

    layers = statistics_layers(fresh)
    with torch.no_grad(), _watched(layers, remember):
        fresh(images)
    for name, layer in layers.items():
        layer.running_mean, layer.running_var = seen[name]
    return corrections(network, fresh)


def cut_corrections(
    corrected: Corrections,
    network: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
) -> Corrections:
    """The ``corrected`` of ``network`` for its ``kept`` channels alone, as a pruned variant has.

    Where batch norms stand among the groups is read off a pruned copy that bears the corrections in
    the place of its statistics. Raises BuildError as ``prune`` does.
    """
    bearer = copy.deepcopy(network)
    for name, layer in statistics_layers(bearer).items():
        shift, ratio = corrected[name]
        layer.running_mean, layer.running_var = shift.clone(), ratio.clone()
    result = {}
    for name, layer in statistics_layers(prune(bearer, example, groups, kept)).items():
        assert layer.running_mean is not None and layer.running_var is not None
        result[name] = (layer.running_mean, layer.running_var)
    return result


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
        self.reference = _logits(self._network, images, "trained", None, batch)
        self._corrections: dict[int, Corrections] = {}
        self._inputs = {name: _Rounded(ranges[name]) for name in self._layers}
        for name, layer in self._layers.items():
            layer.register_forward_pre_hook(self._inputs[name])

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that a policy may name, in their order."""
        return tuple(self._layers)

    def predict(
        self, policy: Policy, *, statistics: Statistics = "anchored", images: int | None = None
    ) -> Performance:
        """The performance of ``policy`` (layer to precision; others fp32), by the first ``images``.

        ``statistics`` of batch norm: those of training, those of the images, or anchored ones, see
        above. ConfigError where a layer is unknown.
        """
        logits = self.logits(policy, statistics=statistics, images=images)
        labels = None if self.labels is None else self.labels[: len(logits)]
        return _performance(logits, labels, self.reference[: len(logits)])

    def logits(
        self, policy: Policy, *, statistics: Statistics = "anchored", images: int | None = None
    ) -> Tensor:
        """The logits ``(images, classes)`` under ``policy`` that ``predict`` judges."""
        if unknown := sorted(policy.keys() - self._layers.keys()):
            raise ConfigError(
                f"a policy names {', '.join(unknown)}, which are no layers of the network; "
                f"there are {', '.join(self._layers)}"
            )
        count = len(self.images) if images is None else min(images, len(self.images))
        corrected = self._corrected(count) if statistics == "anchored" else None
        self._apply(policy)
        found = _logits(self._network, self.images[:count], statistics, corrected, self.batch)
        self._restore()
        return found

    def _apply(self, policy: Policy) -> None:
        for name, layer in self._layers.items():
            precision = policy.get(name, "fp32")
            layer.weight.data = self._rounded(name, precision)
            self._inputs[name].precision = precision

    def _restore(self) -> None:
        for name, buffer in self._network.named_buffers():
            buffer.copy_(self._statistics[name])

    def _corrected(self, count: int) -> Corrections:
        if count not in self._corrections:
            self._apply({})
            self._corrections[count] = corrections_of(
                self._network, self.images[:count], batch=self.batch
            )
        return self._corrections[count]

    def _rounded(self, name: str, precision: str) -> Tensor:
        ways = self._weights[name]
        if precision not in ways:
            ways[precision] = rounded_weights(ways["fp32"], precision)
        return ways[precision]

    def rank(
        self, policies: Sequence[Policy], *, best: int = 1, statistics: Statistics = "anchored"
    ) -> tuple[tuple[int, Performance], ...]:
        """Indices of ``policies`` with their performance, least divergence first.

        All are tried on a quarter of the images; on all images only the better half of them, and
        never fewer than ``best``: these come first, in the order of what all images say.
        """
        quarter = max(len(self.images) // 4, min(len(self.images), 16))
        tried = [
            (index, self.predict(policy, statistics=statistics, images=quarter))
            for index, policy in enumerate(policies)
        ]
        tried.sort(key=lambda item: item[1].divergence)
        finalists = max(best, len(tried) // 2)
        final = [
            (index, self.predict(policies[index], statistics=statistics))
            for index, _ in tried[:finalists]
        ]
        final.sort(key=lambda item: item[1].divergence)
        return (*final, *tried[finalists:])
