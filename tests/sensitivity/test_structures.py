"""Networks and layers of other shapes: several outputs, channels in blocks, layers of one's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.quantizers import round_weights
from harness.errors import BuildError, ConfigError
from harness.networks import fold_batchnorm
from harness.records import Group, Option
from harness.sensitivity.curvature import Sensitivities, score, score_together
from tests.compression.tiny import Concatenated, Grouped, Inverted, Residual, seeded
from tests.sensitivity.test_curvature import IMAGES, LABELS
from tests.sensitivity.test_pass import study_options


class Twofold(nn.Module):
    """Two outputs that are no logits: a map and a list of values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.map = nn.Conv2d(4, 1, 1)
        self.values = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.relu(self.stem(x))
        return self.map(x), self.values(x.mean((2, 3)))


class Named(Twofold):
    """The same outputs by name, beside a class that no gradient reaches and nothing at all."""

    def forward(self, x: Tensor) -> Any:
        heat, values = super().forward(x)
        return {"heat": heat, "more": [values], "class": values.argmax(1), "mask": None}


@pytest.mark.parametrize("kind", [Twofold, Named])
def test_several_outputs_are_scored_by_their_squared_error(kind: type[Twofold]) -> None:
    network = kind().eval()
    groups = [
        Group(name="stem", channels=4, producers=("stem",), consumers=(), prunable=False),
        Group(name="map", channels=1, producers=("map",), consumers=(), prunable=False),
        Group(name="values", channels=2, producers=("values",), consumers=(), prunable=False),
    ]
    options = {g.name: (Option(channels=g.channels, precision="w2a8"),) for g in groups}
    found = score(network, groups, options, IMAGES, draws=200)

    def changes(layer: nn.Conv2d | nn.Linear) -> Tensor:
        return round_weights(layer.weight.detach(), 2) - layer.weight.detach()

    with torch.no_grad():
        y = network.stem(IMAGES)
        a, on = functional.relu(y), (y > 0).float()
        # What each layer's change does to the outputs, to first order: both outputs for the stem.
        moved = on * functional.conv2d(IMAGES, changes(network.stem), padding=1)
        by_stem = network.map(moved) - network.map.bias.view(1, 1, 1, 1)  # type: ignore[union-attr]
        by_stem_2 = moved.mean((2, 3)) @ network.values.weight.T
        expected = {
            "stem": by_stem.square().sum() + by_stem_2.square().sum(),
            "map": functional.conv2d(a, changes(network.map)).square().sum(),
            "values": (a.mean((2, 3)) @ changes(network.values).T).square().sum(),
        }
    for name, square in expected.items():
        assert found.weights[name][0] == pytest.approx(float(square) / (2 * 12), rel=0.2), name


def test_labels_are_for_logits_alone() -> None:
    group = Group(name="values", channels=2, producers=("values",), consumers=(), prunable=False)
    options = {"values": (Option(channels=2, precision="w2a8"),)}
    with pytest.raises(ConfigError, match="score this one without labels"):
        score(Twofold().eval(), [group], options, IMAGES, LABELS)


def test_channels_last_networks_and_images_score_the_same() -> None:
    for kind in (Residual, Inverted, Concatenated):
        network = seeded(kind)
        groups = find_groups(network, IMAGES[:1])
        options = study_options(groups, prune=True)
        images = IMAGES.expand(12, 1, 8, 8).contiguous(memory_format=torch.channels_last)
        plain = score(network, groups, options, IMAGES, LABELS)
        last = score(
            network.to(memory_format=torch.channels_last), groups, options, images, LABELS, batch=5
        )
        for name, values in plain.values.items():
            assert last.values[name] == pytest.approx(values, rel=2e-3, abs=1e-10)


class Standardised(nn.Conv2d):
    """Normalises its weights before it uses them."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class PaddedWithOnes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 1, 1, 1), value=1.0))


class PaddedWithZeros(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def with_stem(kind: type[nn.Conv2d]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()


@pytest.mark.parametrize("kind", [Standardised, PaddedWithOnes])
def test_a_layer_that_does_more_than_multiply_is_refused_by_name(kind: type[nn.Conv2d]) -> None:
    network = with_stem(kind)
    network(IMAGES)
    group = Group(name="0", channels=4, producers=("0",), consumers=(), prunable=False)
    options = {"0": (Option(channels=4, precision="w2a8"),)}
    with pytest.raises(BuildError, match=rf"^0 \({kind.__name__}\) is no product"):
        score(network, [group], options, IMAGES, LABELS)


def test_zeros_padded_inside_a_layer_count_as_zeros_padded_before_it() -> None:
    inside = with_stem(PaddedWithZeros)
    inside(IMAGES)
    before = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 4, 3), *inside[1:]).eval()  # type: ignore[index]
    before[1].load_state_dict(inside[0].state_dict())  # type: ignore[index]
    found = []
    for network, name in ((inside, "0"), (before, "1")):
        group = Group(name=name, channels=4, producers=(name,), consumers=(), prunable=False)
        options = {name: tuple(Option(channels=c, precision="w2a8") for c in (2, 4))}
        found.append(score(network, [group], options, IMAGES, LABELS).values[name])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_channels_in_blocks_stay_at_the_same_places_of_each() -> None:
    network = seeded(Grouped)
    groups = find_groups(network, IMAGES[:1], blocks=True)
    options = {
        g.name: tuple(
            Option(channels=c, precision=p)
            for c in ((g.channels // 2, g.channels) if g.prunable else (g.channels,))
            for p in ("fp32", "w3a8")
        )
        for g in groups
    }
    found = score(network, groups, options, IMAGES, LABELS)
    assert found.blocks == {"narrow": 4, "grouped": 4, "regrouped": 2}
    kept = {g.name: found.kept(g.name, options[g.name][0].channels) for g in groups}
    prune(network, IMAGES[:1], groups, kept)  # refuses other places in one block than in another
    assert Sensitivities.from_json(found.to_json()) == found
    # What is scored is what is kept: removed channels' gradients times their weights and biases.
    folded = fold_batchnorm(network, IMAGES[:1]).requires_grad_(True)
    for group in groups:
        name = group.name
        removed = sorted(set(range(group.channels)) - set(kept[name]))
        layer: Any = folded.get_submodule(name)
        if len(group.producers) > 1 or not removed:
            continue
        inner = []
        for n in range(12):
            folded.zero_grad()
            functional.cross_entropy(folded(IMAGES[n : n + 1]), LABELS[n : n + 1]).backward()  # type: ignore[no-untyped-call]
            inner.append(
                sum(
                    float((given.grad[removed] * given.detach()[removed]).sum())
                    for given in (layer.weight, layer.bias)
                )
            )
        expected = sum(value**2 for value in inner) / (2 * 12)
        assert found.values[name][0] == pytest.approx(expected, rel=1e-3)


def test_a_policys_cross_terms_are_those_of_all_changes_at_once() -> None:
    """The sum over the layers is squared, not each of its terms."""
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = study_options(groups, prune=True)
    together = score_together(network, groups, options, IMAGES, LABELS, batch=5)
    alone = score(network, groups, options, IMAGES, LABELS)
    policy = {
        g.name: Option(channels=g.channels - g.prunable, precision=precision)
        for g, precision in zip(groups, ("w3a8", "fp32", "int8", "w2a8", "w7a8"), strict=False)
    }
    for name, option in policy.items():
        assert together.total({name: option}) == pytest.approx(
            alone.total({name: option}), rel=1e-4, abs=1e-12
        )
    assert together.total({}) == 0
    # (a + b)^2 + (a - b)^2 = 2 a^2 + 2 b^2, so with ab = ((a + b)^2 - a^2 - b^2) / 2 of every pair
    names = list(policy)
    part = {name: together.total({name: policy[name]}) for name in names}
    crossed = sum(
        together.total({a: policy[a], b: policy[b]}) - part[a] - part[b]
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    )
    assert together.total(policy) == pytest.approx(sum(part.values()) + crossed, rel=1e-6)
    assert together.total(policy) != pytest.approx(sum(part.values()), rel=1e-3)


def test_errors_that_make_up_for_each_other_cost_nothing_together() -> None:
    """y = second(first(x)): the first layer's weight loses what the second's gains."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.fill_(2.0)  # type: ignore[union-attr, operator]
        network[1].weight.copy_(torch.tensor([[2.0], [0.0]]))  # type: ignore[union-attr, operator]
    groups = [
        Group(name=name, channels=c, producers=(name,), consumers=(), prunable=False)
        for name, c in (("0", 1), ("1", 2))
    ]
    options = {g.name: (Option(channels=g.channels, precision="w2a8"),) for g in groups}
    # d(second * first) = 2 * -0.5 + 2 * 0.5 = 0; the input 1 is a level of its own range.
    rounded = {
        "0": {"w2a8": torch.tensor([[1.5]])},
        "1": {"w2a8": torch.tensor([[2.5], [0.0]])},
    }
    images, labels = torch.ones(4, 1), torch.zeros(4, dtype=torch.long)
    together = score_together(network, groups, options, images, labels, rounded=rounded)
    policy = {name: option for name, (option,) in options.items()}
    assert all(together.total({name: option}) > 1e-5 for name, option in policy.items())
    assert together.total(policy) == pytest.approx(0, abs=1e-9)
