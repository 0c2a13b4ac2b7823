"""What options cost by the weights alone, for those who have no images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from harness.networks import LAYER_TYPES
from harness.records import Group, Option
from harness.sensitivity.curvature import rounded_weights
from harness.sensitivity.results import Sensitivities, best_channels

__all__ = ["by_magnitude"]


def by_magnitude(
    network: nn.Module, groups: Sequence[Group], options: Mapping[str, tuple[Option, ...]]
) -> Sensitivities:
    """Half the share of a group's squared weights that each option takes away or rounds off.

    No loss: it says which of two allocations is milder, and which channels are the largest, and
    stands in until there are images. Source: magnitude pruning of filters (Li et al., ICLR 2017,
    there with the sum of absolute weights).
    """
    values: dict[str, tuple[float, ...]] = {}
    scores: dict[str, tuple[float, ...]] = {}
    for group in groups:
        own = options[group.name]
        weights = [_weight(network, name) for name in group.producers]
        sizes = _by_channel(weights, weights)
        errors = {
            precision: _by_channel(
                [rounded_weights(weight, precision) - weight for weight in weights], weights
            )
            for precision in {option.precision for option in own}
        }
        scores[group.name] = tuple(sizes.tolist())
        found = []
        for option in own:
            keep = torch.zeros(group.channels, dtype=torch.bool)
            kept = best_channels(scores[group.name], option.channels, group.blocks)
            keep[list(kept)] = True
            lost = sizes[~keep].sum() + errors[option.precision][keep].sum()
            found.append(float(lost) / 2)
        values[group.name] = tuple(found)
    return Sensitivities(
        options={group.name: tuple(options[group.name]) for group in groups},
        values=values,
        channel_scores=scores,
        blocks={group.name: group.blocks for group in groups if group.blocks > 1},
    )


def _weight(network: nn.Module, name: str) -> Tensor:
    layer = network.get_submodule(name)
    assert isinstance(layer, LAYER_TYPES)
    return layer.weight.detach()


def _by_channel(changes: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Each output channel's share of the squared weights, the mean over a group's producers."""
    shares = [
        change.double().flatten(1).square().sum(1)
        / weight.double().square().sum().clamp_min(torch.finfo(torch.double).tiny)
        for change, weight in zip(changes, weights, strict=True)
    ]
    return torch.stack(shares).mean(0)
