"""Which channels go, and what makes up for them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.compression.groups import find_groups
from harness.compression.selection import Moments, eliminate, removals
from harness.errors import BuildError
from harness.records import Group
from tests.compression.tiny import Concatenated, Grouped, Inverted, Residual, seeded

IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def moments_of(layer: nn.Linear, inputs: torch.Tensor) -> Moments:
    found = Moments(layer, (), positions=1, seed=0)
    found.add(inputs)
    return found


def correlated(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    return torch.randn(count, channels, generator=generator) @ mixing + 1


def least_error(layer: nn.Linear, x: torch.Tensor, kept: tuple[int, ...]) -> float:
    """The mean squared error of the best fit from the kept inputs, an offset included."""
    with torch.no_grad():
        y = (x @ layer.weight.T).double()
    centred = (x - x.mean(0)).double()
    wanted = y - y.mean(0)
    fitted = torch.linalg.lstsq(centred[:, list(kept)], wanted).solution
    return float((wanted - centred[:, list(kept)] @ fitted).square().sum() / len(x))


def test_the_first_channel_to_go_leaves_the_least_error_of_all() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        layer, x = nn.Linear(6, 3), correlated(200, 6, seed)
        found = eliminate({"layer": moments_of(layer, x)}, 6, [5], ridge=1e-9)
        by_hand = {
            gone: least_error(layer, x, tuple(c for c in range(6) if c != gone))
            for gone in range(6)
        }
        assert found.order[0] == min(by_hand, key=lambda gone: by_hand[gone])
        total = float(layer(x).detach().double().var(0, correction=0).sum())
        assert found.errors[0] == pytest.approx(by_hand[found.order[0]] / total, rel=1e-3)


def test_changes_are_those_of_least_squares_on_what_stays() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), correlated(200, 6)
    found = eliminate({"layer": moments_of(layer, x)}, 6, [2, 4], ridge=1e-9)
    for width in (2, 4):
        kept = found.kept(width)
        assert len(kept) == width and list(kept) == sorted(kept)
        weight = layer.weight + found.changes["layer"][width]
        bias = layer.bias + found.offsets["layer"][width]
        gone = sorted(set(range(6)) - set(kept))
        assert float(weight[:, gone].detach().abs().max()) < 1e-6
        error = (
            functional.linear(x, weight, bias) - layer(x)
        ).detach().double().square().sum() / len(x)
        assert float(error) == pytest.approx(least_error(layer, x, kept), rel=1e-3)


def test_a_multiple_of_another_channel_goes_first_however_large_it_is() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(300, 4)
    x[:, 2] = 10 * x[:, 0]
    found = eliminate({"layer": moments_of(layer, x)}, 4, [3], ridge=1e-9)
    assert found.order[0] in (0, 2)
    assert found.errors[0] < 1e-6


def test_two_consumers_are_weighed_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 3)
    one, other = nn.Linear(3, 1), nn.Linear(3, 1)
    with torch.no_grad():
        # One hardly reads channel 0, the other hardly channel 1; both read channel 2.
        one.weight.copy_(torch.tensor([[0.1, 2.0, 1.0]]))
        other.weight.copy_(torch.tensor([[1.0, 0.1, 1.0]]))
    both = {"one": moments_of(one, x), "other": moments_of(other, x)}
    # Shares of each one's power: channel 0 is 0.01/5.01 and 1/2.01, channel 1 4/5.01 and 0.01/2.01,
    # channel 2 1/5.01 and 1/2.01; channel 0 has the smallest sum.
    assert eliminate(both, 3, [2]).order[0] == 0
    assert eliminate({"other": both["other"]}, 3, [2]).order[0] == 1


@pytest.mark.parametrize("kind", [Residual, Inverted])
def test_groups_of_a_network_are_ranked_from_end_to_end(kind: type[nn.Module]) -> None:
    network = seeded(kind)
    groups = find_groups(network, IMAGES)
    widths = {g.name: [2, g.channels // 2] for g in groups if g.prunable}
    found = removals(network, groups, IMAGES, widths)
    assert found
    for group in groups:
        if group.name in found:
            assert sorted(found[group.name].order) == list(range(group.channels))
            assert found[group.name].changes.keys() == set(group.consumers)
            scores = found[group.name].scores()
            assert scores[found[group.name].order[-1]] == max(scores)


def test_groups_that_a_grouped_or_offset_layer_reads_are_left_out() -> None:
    for kind in (Grouped, Concatenated):
        network = seeded(kind)
        groups = find_groups(network, IMAGES)
        widths = {g.name: [1] for g in groups if g.prunable}
        found = removals(network, groups, IMAGES, widths)
        for group in groups:
            layers = [network.get_submodule(name) for name in group.consumers]
            plain = all(
                getattr(layer, "groups", 1) == 1 and layer.weight.shape[1] == group.channels
                for layer in layers
            )
            assert (group.name in found) <= plain


@pytest.mark.parametrize(("ridge", "positions"), [(0.0, 4), (1e-3, 0)])
def test_settings_out_of_range_are_named(ridge: float, positions: int) -> None:
    group = Group(name="a", channels=1, producers=("a",), consumers=(), prunable=True)
    with pytest.raises(BuildError, match="ridge"):
        removals(seeded(Residual), [group], IMAGES, {}, ridge=ridge, positions=positions)
