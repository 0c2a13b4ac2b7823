"""Groups of a network from which branches are left out."""

import pytest
import torch
from torch import nn

from harness.compression import branches, shallow
from harness.compression.groups import find_groups
from harness.compression.recovery import cut
from harness.errors import BuildError
from harness.networks import layers_in_order, output_shapes
from harness.records import Group
from tests.compression.tiny import Bottleneck, Padded, confident

IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def group(name: str, producers: str, consumers: str, *, prunable: bool = True) -> Group:
    return Group(
        name=name,
        channels=4,
        producers=tuple(producers.split()),
        consumers=tuple(consumers.split()),
        prunable=prunable,
    )


# A stem, two blocks of three layers beside shortcuts, a classifier.
GROUPS = (
    group("stem", "stem a3 b3", "a1 b1 fc"),
    group("a1", "a1", "a2"),
    group("a2", "a2", "a3"),
    group("b1", "b1", "b2"),
    group("b2", "b2", "b3"),
    group("fc", "fc", "", prunable=False),
)


@pytest.mark.parametrize("name", ["a1", "a2"])
def test_with_one_group_of_a_branch_goes_the_other(name: str) -> None:
    assert shallow.together(GROUPS, [name]) == ("a1", "a2")
    assert shallow.unread(GROUPS, ("a1", "a2")) == ("a3", "a1", "a2")


def test_what_stays_has_its_name_and_the_layers_that_are_there() -> None:
    stem, b1, *_ = left = shallow.remaining(GROUPS, ("a1", "a2"))
    assert [g.name for g in left] == ["stem", "b1", "b2", "fc"]
    assert stem == group("stem", "stem b3", "b1 fc")
    assert b1 == GROUPS[3]
    assert shallow.remaining(GROUPS, ()) == GROUPS


def test_readers_of_a_group_that_others_may_feed_stay() -> None:
    padded = (
        group("inner", "inner", "outer"),
        group("outer", "outer", "fc", prunable=False),
        group("fc", "fc", "", prunable=False),
    )
    assert shallow.together(padded, ["inner"]) == ("inner", "outer")
    assert shallow.unread(padded, ("inner", "outer")) == ("inner", "outer")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BuildError, match="cannot leave out tail"):
        shallow.together(GROUPS, ["tail"])


def test_a_branch_of_several_groups_is_one_and_the_one_that_adds_nothing_goes_first() -> None:
    network = confident(Bottleneck, IMAGES)
    groups = find_groups(network, IMAGES[:1])
    assert branches.removable(network, groups, IMAGES) == ("blocks.0.0", "blocks.1.0", "blocks.2.0")
    order = branches.removal_order(network, groups, IMAGES, most=3)
    assert order[0].group == "blocks.1.0"
    assert order[0].divergence < 1e-4 < order[1].divergence


@pytest.mark.parametrize(("kind", "name"), [(Bottleneck, "blocks.1.0"), (Padded, "inner")])
def test_a_cut_network_without_a_branch_has_the_layers_and_widths_that_were_asked(
    kind: type[nn.Module], name: str
) -> None:
    network = confident(kind, IMAGES)
    groups = find_groups(network, IMAGES[:1])
    out = shallow.together(groups, [name])
    there = shallow.remaining(groups, out)
    kept = {g.name: tuple(range(0, g.channels, 2 if g.prunable else 1)) for g in there}
    with torch.no_grad():
        plain = branches.without(network, groups, IMAGES[:1], out, kept)
        fitted = cut(network, IMAGES[:1], groups, kept, IMAGES, left_out=out)
        error, before = ((net(IMAGES) - network(IMAGES)).square().mean() for net in (fitted, plain))
    assert error < 0.5 * before
    assert output_shapes(fitted, IMAGES[:1]) == output_shapes(network, IMAGES[:1])
    layers = layers_in_order(fitted, IMAGES[:1])
    assert set(layers) == {layer for g in there for layer in g.producers}
    for g in there:
        assert {layers[layer].weight.shape[0] for layer in g.producers} == {len(kept[g.name])}


def test_where_all_that_was_left_out_hardly_counted_the_refit_network_is_the_original() -> None:
    network = confident(Bottleneck, IMAGES)
    groups = find_groups(network, IMAGES[:1])
    out = shallow.together(groups, ["blocks.1.0"])
    with torch.no_grad():
        fitted = cut(network, IMAGES[:1], groups, {}, IMAGES, left_out=out)
        assert torch.allclose(fitted(IMAGES), network(IMAGES), atol=5e-3)


def test_a_branch_without_which_nothing_would_reach_the_outputs_stays() -> None:
    class Sides(nn.Module):
        """Two ways of two layers each, of which either can go, and not both."""

        def __init__(self) -> None:
            super().__init__()
            self.ways = nn.ModuleList(
                nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)) for _ in range(2)
            )
            self.classifier = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sides = self.ways[0](x) + self.ways[1](x)
            return self.classifier(sides.relu().mean((2, 3)))  # type: ignore[no-any-return]

    network = confident(Sides, IMAGES)
    groups = find_groups(network, IMAGES[:1])
    assert branches.removable(network, groups, IMAGES) == ("ways.0.0", "ways.1.0")
    assert len(branches.removal_order(network, groups, IMAGES, most=2)) == 1
