"""Cutting channels."""

import pytest
import torch
from torch import nn

from harness.compression.groups import find_groups
from harness.compression.prune import muted, prune
from harness.errors import BuildError
from harness.networks import count_parameters
from harness.records import Group
from tests.compression.tiny import (
    Concatenated,
    Dense,
    Excited,
    Grouped,
    Inverted,
    Padded,
    Residual,
    seeded,
)

EXAMPLE = torch.zeros(1, 1, 8, 8)


def zeroed(network: nn.Module, group: Group, kept: tuple[int, ...]) -> None:
    """Make the removed channels of a group's producers zero, batch norm included, in place."""
    removed = [channel for channel in range(group.channels) if channel not in kept]
    norms = {"stem": "bn", "inner": "inner_bn"} if isinstance(network, Residual) else {}
    for name in group.producers:
        for layer in (name, norms.get(name)):
            if layer is not None:
                module = network.get_submodule(layer)
                for parameter in module.parameters():
                    parameter.data[removed] = 0


@pytest.mark.parametrize("kind", [Residual, Padded, Inverted, Concatenated])
def test_a_pruned_network_computes_what_the_original_does_with_zero_channels(
    kind: type[nn.Module],
) -> None:
    network = seeded(kind)
    groups = find_groups(network, EXAMPLE)
    kept = {g.name: tuple(range(1, g.channels, 2)) for g in groups if g.prunable}
    pruned = prune(network, EXAMPLE, groups, kept)
    for group in groups:
        if group.name in kept:
            zeroed(network, group, kept[group.name])
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(pruned(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Residual, Padded, Inverted, Concatenated, Excited, Dense])
def test_a_muted_network_keeps_its_shape_and_computes_what_the_pruned_one_does(
    kind: type[nn.Module],
) -> None:
    network = seeded(kind)
    groups = find_groups(network, EXAMPLE)
    kept = {g.name: tuple(range(1, g.channels, 2)) for g in groups if g.prunable}
    quiet = muted(network, EXAMPLE, groups, kept)
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(
        prune(network, EXAMPLE, groups, kept)(images), quiet(images), rtol=1e-4, atol=1e-5
    )
    assert {n: p.shape for n, p in quiet.named_parameters()} == {
        n: p.shape for n, p in network.named_parameters()
    }
    assert not torch.allclose(quiet(images), network(images), rtol=1e-3)


def test_channels_in_blocks_are_cut_at_the_same_places_of_each() -> None:
    network = seeded(Grouped)
    groups = find_groups(network, EXAMPLE, blocks=True)
    kept = {
        "stem": (0, 2, 5),
        "narrow": (1, 2, 5, 6, 9, 10, 13, 14),
        "grouped": tuple(range(0, 24, 2)),
        "regrouped": (0, 4, 6, 10),
    }
    pruned = prune(network, EXAMPLE, groups, kept)
    assert tuple(pruned.get_parameter("grouped.weight").shape) == (12, 2, 3, 3)
    assert tuple(pruned.get_parameter("regrouped.weight").shape) == (4, 6, 3, 3)
    images = torch.randn(4, 1, 8, 8)
    quiet = muted(network, EXAMPLE, groups, kept)
    torch.testing.assert_close(pruned(images), quiet(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(BuildError, match="same places must stay in each of its 4 blocks of 4"):
        prune(network, EXAMPLE, groups, {"narrow": (1, 2, 5, 6, 9, 10, 13, 15)})


def test_the_structure_is_exact() -> None:
    network = seeded(Residual)
    groups = find_groups(network, EXAMPLE)
    pruned = prune(network, EXAMPLE, groups, {"stem": (0, 3, 7), "inner": (1, 2)})
    assert {name: tuple(value.shape) for name, value in pruned.named_parameters()} == {
        "stem.weight": (3, 1, 3, 3),
        "bn.weight": (3,),
        "bn.bias": (3,),
        "inner.weight": (2, 3, 3, 3),
        "inner_bn.weight": (2,),
        "inner_bn.bias": (2,),
        "outer.weight": (3, 2, 3, 3),
        "outer.bias": (3,),
        "wide.weight": (16, 3, 3, 3),
        "wide.bias": (16,),
        "shortcut.weight": (16, 3, 1, 1),
        "shortcut.bias": (16,),
        "classifier.weight": (3, 16),
        "classifier.bias": (3,),
    }
    assert torch.equal(
        pruned.get_buffer("bn.running_mean"), network.get_buffer("bn.running_mean")[[0, 3, 7]]
    )


def test_pruning_copies_and_repeats_exactly() -> None:
    network = seeded(Residual)
    groups = find_groups(network, EXAMPLE)
    size = count_parameters(network)
    first = prune(network, EXAMPLE, groups, {"stem": (1, 2)})
    second = prune(network, EXAMPLE, groups, {"stem": (1, 2)})
    assert count_parameters(network) == size > count_parameters(first)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_keeping_every_channel_changes_nothing() -> None:
    network = seeded(Residual)
    groups = find_groups(network, EXAMPLE)
    same = prune(network, EXAMPLE, groups, {g.name: tuple(range(g.channels)) for g in groups})
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(same(images), network(images))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nothing": (0,)}, "no such group"),
        ({"stem": ()}, "at least one channel"),
        ({"stem": (0, 8)}, r"0\.\.7"),
        ({"stem": (3, 1)}, "must rise"),
        ({"stem": (1, 1)}, "must rise"),
        ({"classifier": (0, 1)}, "not prunable"),
    ],
)
def test_wrong_channels_are_refused(kept: dict[str, tuple[int, ...]], message: str) -> None:
    network = seeded(Residual)
    groups = find_groups(network, EXAMPLE)
    with pytest.raises(BuildError, match=message):
        prune(network, EXAMPLE, groups, kept)
