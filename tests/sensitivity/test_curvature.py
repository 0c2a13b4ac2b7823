"""Sensitivities against brute force, and against true losses."""

from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.errors import BuildError
from harness.networks import fold_batchnorm, load_data, load_network
from harness.records import Group, Option
from harness.sensitivity.curvature import Sensitivities, score
from tests.compression.tiny import Concatenated, Inverted, Residual, seeded

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 3
CIFAR = Path(__file__).parents[3] / "shared/images/cifar10"


def options_of(groups: tuple[Group, ...]) -> dict[str, tuple[Option, ...]]:
    return {
        group.name: tuple(
            Option(channels=channels, precision=precision)
            for channels in (
                (group.channels // 2, group.channels) if group.prunable else (group.channels,)
            )
            for precision in ("fp32", "int8")
        )
        for group in groups
    }


def rounded_weights(weight: torch.Tensor) -> torch.Tensor:
    rows = []
    for row in weight:
        scale = row.abs().max() / 127
        rows.append(torch.round(row / scale) * scale)
    return torch.stack(rows)


def rounded_activations(a: torch.Tensor, low: float, high: float) -> torch.Tensor:
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (torch.clamp(torch.round(a / scale) + zero, 0, 255) - zero) * scale


class BruteForce:
    """Parameter changes written out, per-sample gradients from autograd, one image at a time."""

    def __init__(self, network: nn.Module) -> None:
        self.network = fold_batchnorm(network, IMAGES[:1]).requires_grad_(True)
        self.seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.layers = {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        }
        for name, module in self.layers.items():
            module.register_forward_pre_hook(
                lambda _module, inputs, name=name: self._nudged(name, inputs[0])
            )
        self.network(IMAGES)
        self.ranges = {
            name: (min(0.0, float(a.detach().min())), max(0.0, float(a.detach().max())))
            for name, (a, _) in self.seen.items()
        }

    def _nudged(self, name: str, a: torch.Tensor) -> torch.Tensor:
        # A zero that only this layer reads: its gradient is that of the layer's own input.
        nudge = torch.zeros_like(a, requires_grad=True)
        self.seen[name] = (a, nudge)
        return a + nudge

    def inner(
        self, group: Group, kept: tuple[int, ...], precision: str, label: int, n: int
    ) -> float:
        """<grad_w, dw> + <grad_b, db> + <grad_a, da>, summed over the group's producers."""
        self.network.zero_grad()
        logits = self.network(IMAGES[n : n + 1])
        functional.cross_entropy(logits, torch.tensor([label])).backward()
        total = 0.0
        for name in group.producers:
            layer = self.layers[name]
            removed = [c for c in range(group.channels) if c not in kept]
            weight = layer.weight.detach()
            changed = rounded_weights(weight) if precision == "int8" else weight.clone()
            depthwise = getattr(layer, "groups", 1) == group.channels > 1
            changed[removed] = weight[removed] if depthwise else 0.0
            bias = layer.bias.detach().clone()
            bias[removed] = 0.0
            total += float((layer.weight.grad * (changed - weight)).sum())
            total += float((layer.bias.grad * (bias - layer.bias.detach())).sum())
            if precision == "int8":
                a, nudge = self.seen[name]
                da = rounded_activations(a.detach(), *self.ranges[name]) - a.detach()
                total += float((nudge.grad * da).sum())
        return total


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated])
def test_scores_equal_per_sample_gradients_times_changes(kind: type[nn.Module]) -> None:
    network = seeded(kind)
    groups = find_groups(network, IMAGES[:1])
    options = options_of(groups)
    found = score(network, groups, options, IMAGES, LABELS, batch=5)
    brute = BruteForce(network)
    for group in groups:
        for option, value in zip(options[group.name], found.values[group.name], strict=True):
            if option.precision == "int8" and option.channels < group.channels:
                continue  # below: the input's gradient is not split by output channels
            kept = found.kept(group.name, option.channels)
            inner = [
                brute.inner(group, kept, option.precision, int(LABELS[n]), n) for n in range(12)
            ]
            expected = sum(value**2 for value in inner) / (2 * 12)
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_exact_activations_leave_what_the_weights_cost_and_no_more() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    whole = score(network, groups, options_of(groups), IMAGES, LABELS)
    alone = score(network, groups, options_of(groups), IMAGES, LABELS, inputs=False)
    assert alone.values == alone.weights == whole.weights
    assert alone.activations is not None
    assert all(not any(values) for values in alone.activations.values())
    assert whole.values != whole.weights


def test_a_joint_option_adds_rounded_kept_and_removed_channels() -> None:
    """On a linear network the change of the outputs is exact and can be computed directly."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 3)).eval()
    groups = find_groups(network, IMAGES[:1])
    hidden = next(group for group in groups if group.prunable)
    options = {group.name: (Option(channels=group.channels, precision="fp32"),) for group in groups}
    options[hidden.name] = (Option(channels=4, precision="int8"),)
    found = score(network, groups, options, IMAGES, LABELS)
    kept = list(found.kept(hidden.name, 4))

    first, second = network[1], network[2]
    with torch.no_grad():
        flat = IMAGES.flatten(1)
        y = first(flat)
        da = rounded_activations(flat, float(flat.min()), float(flat.max())) - flat
        dw = rounded_weights(first.weight) - first.weight
        dy = -y
        dy[:, kept] = (flat @ dw.T + da @ first.weight.T)[:, kept]
        logits = second(y)
        gradient = logits.softmax(1) - functional.one_hot(LABELS, 3)
        inner = (gradient * (dy @ second.weight.T)).sum(1)
    expected = float((inner**2).sum()) / (2 * 12)
    assert found.values[hidden.name][0] == pytest.approx(expected, rel=1e-4)


def test_a_removed_channel_is_counted_once() -> None:
    """One path of one channel: y = w2 * relu(w1 * x), loss gradient known by hand."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False), nn.Flatten()
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([2.0, 1.0]).view(2, 1, 1, 1))
        network[2].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    group = Group(name="0", channels=2, producers=("0",), consumers=("2",), prunable=True)
    option = (Option(channels=1, precision="fp32"),)
    image, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    found = score(network, [group], {"0": option}, image, label)
    # Logits 1 and 0.5; gradients p - 1 and 1 - p with p = e^0.5 / (1 + e^0.5) = 0.622459. Cutting
    # channel 0 (y = 1) gives (p - 1) * -1 = 0.377541, channel 1 (y = 0.5) gives -0.188770.
    first, second = 0.377541**2 / 2, 0.188770**2 / 2
    assert found.channel_scores["0"] == pytest.approx((first, second), rel=1e-5)
    assert found.kept("0", 1) == (0,)
    assert found.values["0"] == pytest.approx((second,), rel=1e-5)


def test_drawn_classes_estimate_the_gauss_newton_form() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = {
        g.name: (Option(channels=g.channels // (1 + g.prunable), precision="fp32"),) for g in groups
    }
    found = score(network, groups, options, IMAGES, draws=400, seed=3)
    brute = BruteForce(network)
    with torch.no_grad():
        shares = brute.network(IMAGES).softmax(1)
    for group in groups[:3]:
        kept = found.kept(group.name, options[group.name][0].channels)
        # Exact: the expectation over the network's own classes.
        expected = sum(
            float(shares[n, label]) * brute.inner(group, kept, "fp32", label, n) ** 2 / (2 * 12)
            for n in range(12)
            for label in range(3)
        )
        assert found.values[group.name][0] == pytest.approx(expected, rel=0.15)


def test_doing_nothing_costs_nothing_and_batches_do_not_matter() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = options_of(groups)
    one, other = (score(network, groups, options, IMAGES, LABELS, batch=batch) for batch in (12, 5))
    for group in groups:
        for option, value, again in zip(
            options[group.name], one.values[group.name], other.values[group.name], strict=True
        ):
            full = option.channels == group.channels and option.precision == "fp32"
            assert (value == 0) == full
            assert again == pytest.approx(value, rel=1e-3)


class Inplace(Residual):
    """The same network with activations that overwrite what the layers returned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu_(self.bn(self.stem(x)))
        y = self.outer(functional.relu_(self.inner_bn(self.inner(x))))
        x = functional.relu_(y.add_(x))
        x = functional.relu_(self.wide(x).add_(self.shortcut(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_activations_in_place_change_nothing() -> None:
    found = []
    for kind in (Residual, Inplace):
        network = seeded(kind)
        groups = find_groups(network, IMAGES[:1])
        found.append(score(network, groups, options_of(groups), IMAGES, LABELS))
    for name, values in found[0].values.items():
        assert found[1].values[name] == pytest.approx(values, rel=1e-4)


def test_seven_bit_weights_cost_more_than_eight() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = {g.name: (Option(channels=g.channels, precision="int8"),) for g in groups}
    eight, seven = (
        score(network, groups, options, IMAGES, LABELS, seven_bit_weights=bits)
        for bits in (False, True)
    )
    assert sum(v for (v,) in seven.values.values()) > sum(v for (v,) in eight.values.values())


def test_outputs_that_are_no_logits_are_scored_by_their_squared_error() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)).eval()
    group = Group(name="0", channels=4, producers=("0",), consumers=("2",), prunable=True)
    options = {"0": (Option(channels=2, precision="fp32"), Option(channels=2, precision="fp16"))}
    found = score(network, [group], options, IMAGES, draws=2)
    assert all(value > 0 for value in found.values["0"])
    assert found.values["0"][0] == pytest.approx(found.values["0"][1], rel=0.05)


def test_kept_channels_are_the_best_in_rising_order() -> None:
    found = Sensitivities({}, {}, {"g": (0.1, 0.4, 0.4, 0.0, 0.3)})
    assert [found.kept("g", channels) for channels in (1, 2, 3, 5)] == [
        (1,),
        (1, 2),
        (1, 2, 4),
        (0, 1, 2, 3, 4),
    ]


def test_scoring_is_reported_and_leaves_the_network_alone() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen: list[tuple[int, int]] = []
    score(
        network,
        groups,
        options_of(groups),
        IMAGES,
        batch=8,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen == [(8, 12), (12, 12)]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_loss_that_is_no_number_is_a_build_error() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    broken = IMAGES.clone()
    broken[0] = float("nan")
    with pytest.raises(BuildError, match="not numbers"):
        score(network, groups, options_of(groups), broken, LABELS)
    with pytest.raises(BuildError, match="no images"):
        score(network, groups, options_of(groups), IMAGES[:0])


@pytest.mark.skipif(not CIFAR.exists(), reason="the shared CIFAR-10 networks are absent")
def test_scores_rank_options_of_a_real_network_as_their_true_losses_do() -> None:
    """ResNet-20: half and three quarters of the channels of every block, one group at a time."""
    source = Path(__file__).with_name("cifar_resnet.py")
    network = load_network(f"{source}:resnet20", CIFAR / "resnet20-12fca82f.th")
    data = load_data(
        CIFAR / "lossless_subset.npz", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    images = data.train_images[:256]
    groups = find_groups(network, images[:1])
    options = {
        group.name: tuple(
            Option(channels=group.channels * quarters // 4, precision="fp32")
            for quarters in ((2, 3) if group.prunable else (4,))
        )
        for group in groups
    }
    found = score(network, groups, options, images, draws=2)

    def loss(candidate: nn.Module) -> float:
        assert data.train_labels is not None
        with torch.no_grad():
            return float(functional.cross_entropy(candidate(images), data.train_labels[:256]))

    predicted, true = [], []
    for group in groups:
        if group.prunable:
            for option, value in zip(options[group.name], found.values[group.name], strict=True):
                kept = {group.name: found.kept(group.name, option.channels)}
                predicted.append(value)
                true.append(loss(prune(network, images[:1], groups, kept)) - loss(network))
    assert len(true) == 18  # nine blocks, two options
    correlation = stats.spearmanr(predicted, true).statistic
    print(f"Spearman {correlation:.3f}")
    assert correlation > 0.7
