"""How far a strategy's variant is from the original before any training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from torch import Tensor, nn

from harness.compression.batchnorm import Corrections, corrections, reestimate, statistics_layers
from harness.compression.branches import without
from harness.compression.fakequant import fake_quantize, input_ranges
from harness.compression.losses import output_loss
from harness.compression.quantizers import quantize_weight
from harness.compression.recovery import cut
from harness.compression.shallow import remaining
from harness.networks import layers_in_order
from harness.networks.structure import outputs_of
from harness.records import Group, Strategy
from harness.sensitivity.dynamic_bn import corrections_of, judge

__all__ = ["Judge"]

# Images that layers are fitted on, and those that variants are judged by.
FIT_IMAGES, JUDGED_IMAGES = 128, 256


class Judge:
    """How far the variant that a strategy makes is from the original, without training it.

    Sliced, without the branches that it leaves out, fitted again on some of the training images,
    rounded where the strategy says int8 (as wide as ``weight_bits``), with anchored batch-norm
    statistics; then the mean KL divergence of its classes from the original's on other images where
    the outputs are logits (``classes``), and the relative squared error of the outputs where they
    are not.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        images: Tensor,
        *,
        classes: bool,
        weight_bits: int = 8,
        symmetric: bool = False,
        seed: int = 0,
    ) -> None:
        self.fitted, self.judged = images[:FIT_IMAGES], images[-JUDGED_IMAGES:]
        self._network, self._groups = network, groups
        self._classes, self._bits, self._symmetric = classes, weight_bits, symmetric
        self._seed = seed
        self._reference = outputs_of(network, self.judged)
        self._fresh = _with_statistics_of(network, self.judged, anchored=classes)

    def __call__(self, strategy: Strategy) -> float:
        """The divergence of the strategy's variant; BuildError where it cannot be built.

        Infinite where the outputs are no numbers.
        """
        found = self._divergence(self.variant(strategy), self._corrected(strategy))
        return found if math.isfinite(found) else math.inf

    def variant(self, strategy: Strategy) -> nn.Module:
        """The strategy's variant, untrained, with the original's batch-norm statistics.

        BuildError where it cannot be built.
        """
        example = self.fitted[:1]
        kept = {entry.group: entry.kept for entry in strategy.entries}
        variant = cut(
            self._network,
            example,
            self._groups,
            kept,
            self.fitted,
            left_out=strategy.left_out,
            seed=self._seed,
            positions=16,
        )
        precisions = {entry.group: entry.precision for entry in strategy.entries}
        rounded = [
            layer
            for group in remaining(self._groups, strategy.left_out)
            if precisions[group.name] == "int8"
            for layer in group.producers
        ]
        return self._rounded(variant, rounded) if rounded else variant

    def _rounded(self, variant: nn.Module, rounded: Sequence[str]) -> nn.Module:
        layers = layers_in_order(variant, self.fitted[:1])
        seen = input_ranges(variant, self.fitted, symmetric=self._symmetric)
        weights = {
            name: quantize_weight(layers[name].weight, self._bits, scale="max") for name in rounded
        }
        ranges = {name: seen[name] for name in rounded}
        return fake_quantize(variant, self.fitted[:1], weights=weights, ranges=ranges, fold=False)

    def _corrected(self, strategy: Strategy) -> Corrections:
        """What the images get wrong of the statistics, for the channels that stay."""
        kept = {entry.group: entry.kept for entry in strategy.entries}
        trained, fresh = (
            without(network, self._groups, self.fitted[:1], strategy.left_out, kept)
            for network in (self._network, self._fresh)
        )
        return corrections(trained, fresh)

    def _divergence(self, variant: nn.Module, corrected: Corrections) -> float:
        if self._classes:
            (reference,) = self._reference
            found = judge(
                variant,
                self.judged,
                None,
                reference,
                statistics="anchored",
                corrected=corrected,
                batch=len(self.judged),
            )
            return found.divergence
        reestimate(variant, self.judged, batch=len(self.judged), corrected=corrected)
        return float(output_loss(outputs_of(variant, self.judged), self._reference))


def _with_statistics_of(network: nn.Module, images: Tensor, *, anchored: bool) -> nn.Module:
    """A copy whose batch norms have the statistics of ``images``, as one batch.

    As ``judge`` takes them where they are ``anchored``: each batch norm is put right before the
    next layer reads it.
    """
    fresh = copy.deepcopy(network)
    if not anchored:
        reestimate(fresh, images, batch=len(images))
        return fresh
    found = corrections_of(network, images, batch=len(images))
    for name, layer in statistics_layers(fresh).items():
        assert layer.running_mean is not None and layer.running_var is not None
        shift, ratio = found[name]  # shift in standard deviations of the images
        layer.running_var /= ratio
        layer.running_mean -= shift * layer.running_var.sqrt()
    return fresh
