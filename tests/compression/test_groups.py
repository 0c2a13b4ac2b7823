"""Groups of coupled channels."""

import pytest
import torch
from torch import nn

from harness.compression.groups import best_channels, find_groups
from harness.errors import ConfigError
from harness.networks import layers_in_order
from harness.records import Group, dump, load
from tests.compression.tiny import (
    Concatenated,
    Dense,
    Excited,
    Grouped,
    Inverted,
    Normalised,
    Padded,
    Residual,
    Shuffled,
    seeded,
)
from tests.sensitivity.cifar_resnet import ResNet

EXAMPLE = torch.zeros(1, 1, 8, 8)


def test_the_layers_of_a_residual_stream_form_one_group() -> None:
    groups = {group.name: group for group in find_groups(seeded(Residual), EXAMPLE)}
    assert list(groups) == ["stem", "inner", "wide", "classifier"]
    assert groups["stem"].producers == ("stem", "outer")
    assert groups["stem"].consumers == ("inner", "wide", "shortcut")
    assert groups["wide"].producers == ("wide", "shortcut")
    assert [group.channels for group in groups.values()] == [8, 12, 16, 3]


def test_the_classifier_is_not_prunable() -> None:
    groups = {group.name: group for group in find_groups(seeded(Residual), EXAMPLE)}
    assert [group.prunable for group in groups.values()] == [True, True, True, False]
    assert groups["classifier"].consumers == ()


@pytest.mark.parametrize(
    "kind", [Residual, Padded, Inverted, Concatenated, Excited, Dense, Shuffled]
)
def test_every_layer_belongs_to_exactly_one_group(kind: type[nn.Module]) -> None:
    network = seeded(kind)
    layers = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    producers = [name for group in find_groups(network, EXAMPLE) for name in group.producers]
    assert sorted(producers) == sorted(layers)


def test_a_stream_padded_with_zero_channels_is_not_prunable() -> None:
    groups = {group.name: group.prunable for group in find_groups(seeded(Padded), EXAMPLE)}
    assert groups == {"stem": False, "inner": True, "outer": False, "classifier": False}


def test_a_depthwise_layer_goes_with_its_producer_and_a_grouped_one_alone() -> None:
    groups = {group.name: group for group in find_groups(seeded(Inverted), EXAMPLE)}
    assert groups["expand"].producers == ("expand", "depthwise")
    assert groups["expand"].prunable
    # The stream feeds the grouped convolution, whose blocks a single channel would break.
    assert [n for n, g in groups.items() if not g.prunable] == [
        "stem",
        "project",
        "grouped",
        "classifier",
    ]


def test_branches_that_are_concatenated_are_groups_of_their_own() -> None:
    groups = {group.name: group for group in find_groups(seeded(Concatenated), EXAMPLE)}
    assert [(n, g.channels, g.prunable) for n, g in groups.items()] == [
        ("left", 4, True),
        ("right", 6, True),
        ("join", 5, True),
        ("classifier", 3, False),
    ]


def test_the_gate_of_a_squeeze_and_excite_goes_with_the_stream_that_it_scales() -> None:
    groups = {group.name: group for group in find_groups(seeded(Excited), EXAMPLE)}
    assert [(n, g.channels, g.prunable) for n, g in groups.items()] == [
        ("stem", 4, True),
        ("expand", 8, True),
        ("squeeze", 4, True),
        ("classifier", 3, False),
    ]
    assert groups["expand"].producers == ("expand", "depthwise", "excite")
    assert groups["expand"].consumers == ("squeeze", "project")
    assert groups["squeeze"].consumers == ("excite",)


def test_channels_that_are_read_at_offsets_behind_a_concatenation_are_prunable() -> None:
    groups = find_groups(seeded(Dense), EXAMPLE)
    assert [(g.producers, g.consumers, g.prunable) for g in groups] == [
        (("stem",), ("first", "second", "transition"), True),
        (("first",), ("second", "transition"), True),
        (("second",), ("transition",), True),
        (("transition",), ("classifier",), True),
        (("classifier",), (), False),
    ]


def test_the_inner_channels_of_a_padded_resnet_are_prunable_and_its_stream_is_not() -> None:
    torch.manual_seed(0)
    network, example = ResNet(2).eval(), torch.zeros(1, 3, 32, 32)
    groups = find_groups(network, example)
    assert [g.name for g in groups] == list(layers_in_order(network, example))
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)]
    assert [g.name for g in groups if g.prunable] == inner


def test_grouped_convolutions_tie_channels_in_blocks_where_the_caller_can_do_with_them() -> None:
    network = seeded(Grouped)
    groups = find_groups(network, EXAMPLE, blocks=True)
    assert [(g.name, g.channels, g.blocks, g.prunable) for g in groups] == [
        ("stem", 6, 1, True),
        ("narrow", 16, 4, True),
        ("grouped", 24, 4, True),  # read in two blocks: the same places of four are those of two
        ("regrouped", 12, 2, True),
        ("classifier", 3, 1, False),
    ]
    cautious = find_groups(network, EXAMPLE)
    assert [g.name for g in cautious if g.prunable] == ["stem"]
    assert {g.blocks for g in cautious} == {1}


def test_the_best_channels_are_the_best_places_of_all_blocks() -> None:
    group = Group(name="x", channels=6, producers=("x",), consumers=("y",), prunable=True, blocks=2)
    scores = (5.0, 1.0, 2.0, 0.0, 5.0, 2.5)  # the places' sums are 5, 6 and 4.5
    assert best_channels(group, scores, 2) == (1, 4)
    assert best_channels(group, scores, 5) == (0, 1, 3, 4)
    assert best_channels(group, scores, 1) == (1, 4)
    plain = Group(name="x", channels=6, producers=("x",), consumers=("y",), prunable=True)
    assert best_channels(plain, scores, 3) == (0, 4, 5)
    assert best_channels(plain, (1.0,) * 6, 2) == (0, 1)


def test_a_group_written_before_there_were_blocks_has_one() -> None:
    text = '{"name":"x","channels":6,"producers":["x"],"consumers":["y"],"prunable":true}'
    group = load(Group, text)
    assert group.blocks == 1
    assert load(Group, dump(group)) == group


def test_channels_that_are_shuffled_are_not_prunable_though_the_network_would_run() -> None:
    groups = {group.name: group.prunable for group in find_groups(seeded(Shuffled), EXAMPLE)}
    assert groups == {"stem": True, "shuffled": False, "reader": True, "classifier": False}


def test_a_layer_norm_is_judged_by_shapes_because_every_channel_changes_its_result() -> None:
    groups = {group.name: group.prunable for group in find_groups(seeded(Normalised), EXAMPLE)}
    assert groups == {"inner": True, "classifier": False}


def test_a_probe_that_the_network_cannot_take_gives_way_to_the_example() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 12)
            self.classifier = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.inner(x.flatten(1).log()).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    groups = find_groups(Logarithm(), torch.rand(1, 1, 8, 8) + 0.1)
    assert [group.prunable for group in groups] == [True, False]


def test_finding_groups_leaves_the_network_alone() -> None:
    network = seeded(Residual)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    network.train()
    find_groups(network, EXAMPLE)
    assert network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert int(network.get_buffer("bn.num_batches_tracked")) == 1


def test_a_network_in_which_nothing_can_be_pruned_is_an_error() -> None:
    with pytest.raises(ConfigError, match="none of the network's 1 layers can be pruned"):
        find_groups(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), EXAMPLE)
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        find_groups(nn.Flatten(), EXAMPLE)


def test_weights_that_are_normalised_first_are_judged_by_shapes() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight, self.bias)

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), Standardised(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    assert [group.prunable for group in find_groups(network, EXAMPLE)] == [True, True, False]


def test_channels_that_a_transposed_convolution_reads_too_are_prunable() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 6, 3)
            self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
            self.down = nn.Conv2d(6, 3, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.inner(x).relu()
            return self.up(x), self.down(x)

    torch.manual_seed(0)
    groups = find_groups(Decoder(), EXAMPLE)
    assert [(g.name, g.prunable) for g in groups] == [("inner", True), ("down", False)]


def test_channels_that_a_recurrent_layer_reads_too_are_judged_by_shapes() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 6)
            self.recurrent = nn.LSTM(6, 4, batch_first=True)
            self.classifier = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.inner(x.flatten(1, 2)).relu()
            return self.classifier(x), self.recurrent(x)[0]

    torch.manual_seed(0)
    groups = find_groups(Recurrent(), EXAMPLE)
    assert [(g.name, g.prunable) for g in groups] == [("inner", True), ("classifier", False)]
