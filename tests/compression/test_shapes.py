"""Parameters of cut networks, counted without cutting."""

import random

import pytest
import torch

from harness import networks
from harness.compression import prune
from harness.compression.groups import find_groups
from harness.compression.shapes import _dimensions, parameter_shapes
from harness.errors import BuildError
from tests.compression import tiny

KINDS = (
    tiny.Residual,
    tiny.Padded,
    tiny.Inverted,
    tiny.Concatenated,
    tiny.Grouped,
    tiny.Excited,
    tiny.Dense,
    tiny.Normalised,
    tiny.Twice,
)
EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_count_is_that_of_the_network_that_is_cut(kind, blocks):
    network = tiny.seeded(kind)
    groups = find_groups(network, EXAMPLE, blocks=blocks)
    shapes = parameter_shapes(network, EXAMPLE, groups)
    chance = random.Random(1)
    for _ in range(3):
        kept = {}
        for group in groups:
            places = range(group.channels // group.blocks)
            if group.prunable:
                some = sorted(chance.sample(places, chance.randint(1, len(places))))
                kept[group.name] = tuple(
                    b * len(places) + place for b in range(group.blocks) for place in some
                )
        cut = prune.prune(network, EXAMPLE, groups, kept)
        widths = {name: len(channels) for name, channels in kept.items()}
        assert shapes.count(widths) == networks.count_parameters(cut)


def test_nothing_cut_leaves_every_parameter():
    network = tiny.seeded(tiny.Residual)
    shapes = parameter_shapes(network, EXAMPLE, find_groups(network, EXAMPLE))
    assert shapes.count({}) == networks.count_parameters(network)


def test_a_module_nobody_knows_is_named():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 4)

    group = find_groups(tiny.seeded(tiny.Residual), EXAMPLE)[0]
    with pytest.raises(BuildError, match="Scaled"):
        _dimensions(Scaled(), True, (0, 1), group)
