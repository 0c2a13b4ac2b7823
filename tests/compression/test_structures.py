"""Every structure met in real networks: scored, pruned by the scores, and fitted again."""

import contextlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.compression.batchnorm import reestimate
from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.recovery import cut
from harness.networks import fold_batchnorm
from harness.records import Group, Option
from harness.sensitivity.curvature import Sensitivities, score
from tests.compression.tiny import Concatenated, Dense, Excited, Grouped, Inverted, Residual, seeded

STRUCTURES = [Residual, Inverted, Excited, Dense, Concatenated, Grouped]
IMAGES = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 3, (48,), generator=torch.Generator().manual_seed(2))


def scored(kind: type[nn.Module]) -> tuple[nn.Module, tuple[Group, ...], Sensitivities]:
    network = seeded(kind)
    reestimate(network, IMAGES)
    groups = find_groups(network, IMAGES[:1])
    options = {
        group.name: tuple(
            Option(channels=width, precision="fp32")
            for width in sorted({group.channels // 2 if group.prunable else group.channels})
        )
        for group in groups
    }
    return network, groups, score(network, groups, options, IMAGES, LABELS)


def inner_products(network: nn.Module, group: Group, kept: tuple[int, ...]) -> torch.Tensor:
    """How the loss of each image begins to change as the other channels fade, by autograd.

    They fade where they are produced: a sum's at each of its terms, and of a depthwise layer, which
    reads what fades already, the bias alone.
    """
    left = torch.ones(len(IMAGES), requires_grad=True)
    removed = torch.ones(group.channels)
    removed[list(kept)] = 0

    def fade(module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        shape = (-1, *(1,) * (output.ndim - 1))
        channels = removed.view(1, -1, *(1,) * (output.ndim - 2))
        what = output
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            assert module.bias is not None
            what = module.bias.view(1, -1, 1, 1)
        return output - (1 - left.view(shape)) * what * channels

    with contextlib.ExitStack() as hooks:
        for name in group.producers:
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(fade).remove)
        loss = functional.cross_entropy(network(IMAGES), LABELS, reduction="sum")
    (slope,) = torch.autograd.grad(loss, left)
    return -slope


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_channel_is_counted_once_wherever_it_is_produced_and_read(kind: type[nn.Module]) -> None:
    network, groups, found = scored(kind)
    folded = fold_batchnorm(network, IMAGES[:1]).requires_grad_(False)
    prunable = [group for group in groups if group.prunable]
    assert prunable
    for group in prunable:
        kept = found.kept(group.name, group.channels // 2)
        inner = inner_products(folded, group, kept).double()
        expected = float(inner.square().mean() / 2)
        assert found.values[group.name][0] == pytest.approx(expected, rel=1e-3, abs=1e-12)
        assert expected > 0
        # And one by one, by which the channels are ranked.
        one = max(range(group.channels), key=lambda c: found.channel_scores[group.name][c])
        others = tuple(c for c in range(group.channels) if c != one)
        alone = inner_products(folded, group, others).double().square().mean() / 2
        assert found.channel_scores[group.name][one] == pytest.approx(float(alone), rel=1e-3)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_what_is_pruned_by_the_scores_is_made_up_for(kind: type[nn.Module]) -> None:
    network, groups, found = scored(kind)
    kept = {
        group.name: found.kept(group.name, group.channels // 2)
        for group in groups
        if group.prunable
    }
    sliced = prune(network, IMAGES, groups, kept)
    fitted = cut(network, IMAGES[:1], groups, kept, IMAGES)
    for group in groups:
        for name in group.producers:
            weight = fitted.get_parameter(f"{name}.weight")
            assert len(weight) == len(kept.get(group.name, range(group.channels)))
    with torch.no_grad():
        wanted = network(IMAGES)
        errors = [float((wanted - other(IMAGES)).square().mean()) for other in (fitted, sliced)]
    assert errors[0] < 0.9 * errors[1]
