"""A few near-best allocations, built cheaply and judged as Dynamic BN judges policies.

The summed sensitivity is a second-order estimate, in which groups do not know of each other: what
differs by less than its noise may well be the other way round. So a few allocations that keep the
same limits are built as far as costs little (sliced, fitted again, rounded in float arithmetic, not
trained) and the one whose outputs stay nearest to the original's is taken. Source: Dynamic BN
(Chen, Wang and Cheng, Pattern Recognition 140, 2023), which evaluates policies in this way; here
with layers that are fitted again, and anchored statistics (``sensitivity.dynamic_bn``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from harness.compression.batchnorm import Corrections, corrections, reestimate, statistics_layers
from harness.compression.fakequant import fake_quantize, input_ranges
from harness.compression.losses import output_loss
from harness.compression.prune import prune
from harness.compression.quantizers import quantize_weight
from harness.compression.recovery import cut
from harness.errors import BoardfitError
from harness.networks import layers_in_order
from harness.networks.structure import outputs_of
from harness.records import Contender, Group, Option, Shortlist, Strategy
from harness.sensitivity.curvature import Sensitivities
from harness.sensitivity.dynamic_bn import corrections_of, judge
from harness.strategies.proposal import Proposal

__all__ = ["Judge", "Shortlisted", "contenders", "shortlist"]

# An allocation whose summed sensitivity is larger than this many times the least is no near tie.
NEAR = 1.5
# Two draws of signs on 512 images leave the sensitivities off by a quarter (``curvature``).
NOISE = 0.25
# By how much less of the latency is allowed, and powers of the sensitivities: above 1 deep cuts
# of one group cost more, below 1 less than the second order says.
TIGHTER = 0.98
POWERS = (1.5, 0.67)
DRAWS = 2
# Images that layers are fitted on, and those that variants are judged by.
FIT_IMAGES, JUDGED_IMAGES = 128, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlisted:
    """The proposal that was taken, and what it was taken from."""

    proposal: Proposal
    shortlist: Shortlist

    def summary(self) -> str:
        """One line for whoever watches."""
        return self.shortlist.summary()


# A proposal by other sensitivities, at a share of the latency limit.
Propose = Callable[[Sensitivities, float], Proposal]


def contenders(
    first: Proposal, sensitivities: Sensitivities, propose: Propose, *, seed: int
) -> tuple[tuple[str, Proposal], ...]:
    """``first`` and up to five near ties of it, each with what it is the best by.

    Others are the best by sensitivities that differ from those given by their noise or to a power,
    or within a limit that is a little tighter. Their losses are all by the sensitivities given.
    """
    found = [("as scored", first)]
    for how, changed, limit in _ways(sensitivities, seed):
        try:
            other = propose(changed, limit)
        except BoardfitError:
            continue  # out of reach within the tighter limit, or too hard: one contender fewer
        loss = sensitivities.total(_choice(other.strategy))
        known = [proposal.strategy.entries for _, proposal in found]
        near = loss <= NEAR * first.loss and not other.infeasible
        if near and other.strategy.entries not in known:
            found.append((how, _judged_by(first, other, loss)))
    return tuple(found)


def _ways(sensitivities: Sensitivities, seed: int) -> Iterator[tuple[str, Sensitivities, float]]:
    yield f"{TIGHTER:.0%} of the latency limit", sensitivities, TIGHTER
    for power in POWERS:
        values = {
            name: tuple(value**power for value in own) for name, own in sensitivities.values.items()
        }
        yield f"sensitivities to the power {power}", replace(sensitivities, values=values), 1.0
    generator = np.random.default_rng(seed)
    for draw in range(1, DRAWS + 1):
        # One factor a group: options of one group err together.
        factors = {name: generator.lognormal(sigma=NOISE) for name in sensitivities.values}
        values = {
            name: tuple(factors[name] * value for value in own)
            for name, own in sensitivities.values.items()
        }
        yield f"sensitivities with noise {draw}", replace(sensitivities, values=values), 1.0


def _choice(strategy: Strategy) -> dict[str, Option]:
    return {e.group: Option(channels=len(e.kept), precision=e.precision) for e in strategy.entries}


def _judged_by(first: Proposal, other: Proposal, loss: float) -> Proposal:
    """``other`` with its loss, and how far that is from what is proven of the first problem."""
    proof = first.proof
    if proof is not None:
        gap = 0.0 if loss <= proof.bound else (loss - proof.bound) / loss
        proof = replace(proof, objective=loss, gap=gap)
    return replace(other, loss=loss, proof=proof)


class Judge:
    """How far the variant that a strategy makes is from the original, without training it.

    Sliced, fitted again on some of the training images, rounded where the strategy says int8 (as
    wide as ``weight_bits``), with anchored batch-norm statistics; then the mean KL divergence of
    its classes from the original's on other images where the outputs are logits (``classes``), and
    the relative squared error of the outputs where they are not.
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
        """The divergence of the strategy's variant; BuildError where it cannot be built."""
        example = self.fitted[:1]
        kept = {entry.group: entry.kept for entry in strategy.entries}
        variant = cut(
            self._network, example, self._groups, kept, self.fitted, seed=self._seed, positions=16
        )
        precisions = {entry.group: entry.precision for entry in strategy.entries}
        rounded = [
            layer
            for group in self._groups
            if precisions[group.name] == "int8"
            for layer in group.producers
        ]
        if rounded:
            variant = self._rounded(variant, rounded)
        return self._divergence(variant, self._corrected(kept))

    def _rounded(self, variant: nn.Module, rounded: Sequence[str]) -> nn.Module:
        layers = layers_in_order(variant, self.fitted[:1])
        seen = input_ranges(variant, self.fitted, symmetric=self._symmetric)
        weights = {
            name: quantize_weight(layers[name].weight, self._bits, scale="max") for name in rounded
        }
        ranges = {name: seen[name] for name in rounded}
        return fake_quantize(variant, self.fitted[:1], weights=weights, ranges=ranges, fold=False)

    def _corrected(self, kept: Mapping[str, tuple[int, ...]]) -> Corrections:
        """What the images get wrong of the statistics, for the channels that stay."""
        trained, fresh = (
            prune(network, self.fitted[:1], self._groups, kept)
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


def shortlist(
    found: Sequence[tuple[str, Proposal]],
    divergence_of: Callable[[Strategy], float],
    *,
    images: int,
    progress: Callable[[int, int], None] | None = None,
) -> Shortlisted:
    """The proposal of least divergence; ``progress`` counts contenders."""
    seen: list[tuple[float, str, Proposal]] = []
    for index, (how, proposal) in enumerate(found):
        seen.append((divergence_of(proposal.strategy), how, proposal))
        if progress is not None:
            progress(index + 1, len(found))
    best = min(range(len(seen)), key=lambda index: seen[index][0])
    return Shortlisted(
        proposal=seen[best][2],
        shortlist=Shortlist(
            contenders=tuple(
                Contender(
                    how=how,
                    loss=proposal.loss,
                    latency_s=proposal.latency_s,
                    size_bytes=proposal.size_bytes,
                    divergence=divergence,
                    taken=index == best,
                )
                for index, (divergence, how, proposal) in enumerate(seen)
            ),
            images=images,
        ),
    )
