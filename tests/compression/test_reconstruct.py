"""Layers fitted again after pruning."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.compression import reconstruct as module
from harness.compression.batchnorm import reestimate
from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.reconstruct import reconstruct
from harness.errors import BuildError
from harness.networks import load_data, load_network, top1
from harness.records import Group
from tests.compression.tiny import Dense, Excited, Grouped, Inverted, Residual, seeded

CIFAR = Path(__file__).parents[3] / "shared/images/cifar10"
RESNET = Path(__file__).parents[1] / "sensitivity/cifar_resnet.py"
IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Redundant(nn.Module):
    """Three channels and their multiples, which a ReLU leaves multiples, and a constant channel."""

    def __init__(self, reader: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 7, 3)
        self.reader = reader
        self.norm = norm
        self.classifier = nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in self.inner.parameters():
                parameter[3:6] = parameter[:3] * 2
                parameter[6] = 0
            assert self.inner.bias is not None
            self.inner.bias[6] = 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.inner(x))
        if isinstance(self.reader, nn.Linear):
            x = x.movedim(1, -1)
            return self.classifier(self.norm(self.reader(x)).relu().mean((1, 2)))  # type: ignore[no-any-return]
        return self.classifier(self.norm(self.reader(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def redundant(kind: str) -> nn.Module:
    torch.manual_seed(0)
    reader, norm = {
        "conv with bias": lambda: (nn.Conv2d(7, 4, 3, stride=2), nn.Identity()),
        "conv before batch norm": lambda: (nn.Conv2d(7, 4, 3, bias=False), nn.BatchNorm2d(4)),
        "linear": lambda: (nn.Linear(7, 4), nn.Identity()),
    }[kind]()
    network = Redundant(reader, norm).train()
    network(IMAGES)
    return network.eval()


@pytest.mark.parametrize("kind", ["conv with bias", "conv before batch norm", "linear"])
def test_channels_that_the_others_determine_are_made_up_for_exactly(kind: str) -> None:
    network = redundant(kind)
    groups = [
        Group(name="inner", channels=7, producers=("inner",), consumers=("reader",), prunable=True),
        Group(
            name="reader",
            channels=4,
            producers=("reader",),
            consumers=("classifier",),
            prunable=True,
        ),
    ]
    kept = {"inner": (0, 1, 2)}
    pruned = prune(network, IMAGES, groups, kept)
    fresh = torch.randn(16, 1, 8, 8)
    assert not torch.allclose(pruned(fresh), network(fresh), atol=1e-2)
    # At least four samples an input: a fit to fewer is damped.
    many = torch.randn(80, 1, 8, 8)
    (refit,) = reconstruct(pruned, network, groups, kept, many, ridge=1e-9, positions=64)
    assert refit.layer == "reader"
    assert refit.before > 0.01
    assert refit.after < 1e-6
    torch.testing.assert_close(pruned(fresh), network(fresh), rtol=1e-3, atol=1e-4)


def outputs(network: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    with torch.no_grad():
        network(images)
    hook.remove()
    return seen[0]


def share(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """The mean square of the difference, as a share of the mean square around the means."""
    centred = wanted - wanted.transpose(0, 1).flatten(1).mean(1).view(
        1, -1, *(1,) * (wanted.ndim - 2)
    )
    return float((wanted - got).square().mean() / centred.square().mean())


class PaddingFirst(nn.Conv2d):
    """TensorFlow's padding at stride 2: the bottom and the right get more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class Standardised(nn.Conv2d):
    """Its weights are normalised before they are used, so that fitted ones would not be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, padding=1)


class Doubled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


READERS = {
    "padding first": PaddingFirst(6, 4, 3, stride=2),
    "plain": nn.Conv2d(6, 4, 3, padding=1),
    "strided": nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(6, 4, (3, 1), dilation=2, padding="same"),
    "reflecting": nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    "without bias": nn.Conv2d(6, 4, 3, padding=1, bias=False),
}


def in_a_row(reader: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    reader = copy.deepcopy(reader)
    for part in reader.modules():
        if isinstance(part, nn.Conv2d):  # made where the file is read, with any weights
            part.reset_parameters()
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        reader,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


@pytest.mark.parametrize("kind", [Standardised, Doubled])
def test_a_layer_that_does_more_than_multiply_and_add_is_left_as_it_is(
    kind: type[nn.Conv2d],
) -> None:
    network = in_a_row(kind(6, 4, 3, padding=1))
    groups = find_groups(network, IMAGES)
    kept = {"0": (0, 2, 5), "2": (1, 2, 3)}
    pruned = prune(network, IMAGES, groups, kept)
    (refit,) = reconstruct(pruned, network, groups, kept, IMAGES)
    assert refit.layer == "6"
    assert torch.equal(
        pruned.get_parameter("2.weight"), network.get_parameter("2.weight")[1:][:, [0, 2, 5]]
    )


@pytest.mark.parametrize("kind", READERS)
def test_the_reported_errors_are_those_of_the_outputs(kind: str) -> None:
    network = in_a_row(READERS[kind])
    groups = find_groups(network, IMAGES)
    kept = {"0": (0, 2, 5), "2": (1, 2, 3)}
    pruned = prune(network, IMAGES, groups, kept)
    wanted = outputs(network, "2", IMAGES)[:, [1, 2, 3]]
    before = share(wanted, outputs(pruned, "2", IMAGES))
    refit, last = reconstruct(pruned, network, groups, kept, IMAGES, positions=64, batch=7)
    assert (refit.layer, last.layer) == ("2", "6")
    assert refit.before == pytest.approx(before, rel=1e-4)
    after = share(wanted, outputs(pruned, "2", IMAGES))
    assert refit.after == pytest.approx(after, rel=1e-4)
    assert after < 0.9 * before


def test_the_fit_is_that_of_ordinary_least_squares() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    kept = {"inner": (0, 1, 4, 7, 8)}
    pruned = prune(network, IMAGES, groups, kept)
    read = functional.relu(outputs(pruned, "inner_bn", IMAGES))
    rows = functional.unfold(read, 3, padding=1).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
    wanted = outputs(network, "outer", IMAGES).flatten(2).transpose(1, 2).flatten(0, 1).double()
    solution = torch.linalg.lstsq(rows, wanted).solution.T
    reconstruct(pruned, network, groups, kept, IMAGES, ridge=1e-9, positions=64)
    weight = pruned.get_parameter("outer.weight").detach().flatten(1).double()
    torch.testing.assert_close(weight, solution[:, :-1], rtol=1e-3, atol=1e-5)
    bias = pruned.get_parameter("outer.bias").detach().double()
    torch.testing.assert_close(bias, solution[:, -1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [Residual, Inverted, Excited, Dense])
@pytest.mark.parametrize("positions", [3, 64])
def test_no_layers_error_rises(kind: type[nn.Module], positions: int) -> None:
    network = seeded(kind)
    groups = find_groups(network, IMAGES)
    kept = {g.name: tuple(range(1, g.channels, 2)) for g in groups if g.prunable}
    pruned = prune(network, IMAGES, groups, kept)
    steps: list[tuple[int, int]] = []
    refits = reconstruct(
        pruned,
        network,
        groups,
        kept,
        IMAGES,
        positions=positions,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert all(refit.after <= refit.before for refit in refits)
    assert sum(refit.after for refit in refits) < 0.9 * sum(refit.before for refit in refits)
    consumers = {name for group in groups if group.name in kept for name in group.consumers}
    assert {refit.layer for refit in refits} == consumers
    assert steps == [(index + 1, len(refits)) for index in range(len(refits))]


def test_a_depthwise_layer_is_fitted_channel_by_channel() -> None:
    network = seeded(Inverted)
    groups = find_groups(network, IMAGES)
    kept = {"stem": (0, 1, 2, 3), "expand": (0, 2, 3, 6)}
    pruned = prune(network, IMAGES, groups, kept)
    wanted = pruned.get_parameter("depthwise.weight").detach().clone()
    with torch.no_grad():
        pruned.get_parameter("depthwise.weight").mul_(torch.tensor([0.5, 2, 3, 1]).view(4, 1, 1, 1))
    (refit,) = reconstruct(
        pruned, network, groups, kept, IMAGES, layers=["depthwise"], ridge=1e-9, positions=64
    )
    assert refit.after < 1e-9 < refit.before
    torch.testing.assert_close(
        pruned.get_parameter("depthwise.weight").detach(), wanted, rtol=1e-3, atol=1e-4
    )


def test_a_grouped_layer_is_fitted_block_by_block() -> None:
    network = seeded(Grouped)
    groups = find_groups(network, IMAGES, blocks=True)
    kept = {"narrow": (0, 1, 4, 5, 8, 9, 12, 13), "grouped": tuple(range(0, 24, 2))}
    pruned = prune(network, IMAGES, groups, kept)
    refits = reconstruct(pruned, network, groups, kept, IMAGES, positions=64)
    assert [refit.layer for refit in refits] == ["grouped", "regrouped"]
    wanted, got = outputs(network, "grouped", IMAGES), outputs(pruned, "grouped", IMAGES)
    # The layer's own bias takes up the means, so what is reported is what is left.
    assert share(wanted[:, ::2], got) == pytest.approx(refits[0].after, rel=1e-3)
    assert all(refit.after < 0.95 * refit.before for refit in refits)


@pytest.mark.parametrize("layer", ["wide", "classifier"])
def test_a_layer_makes_up_for_inputs_that_were_quantized(layer: str) -> None:
    def coarse(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        step = inputs[0].abs().max() / 3
        return ((inputs[0] / step).floor() * step,)

    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    rounded = copy.deepcopy(network)
    rounded.get_submodule(layer).register_forward_pre_hook(coarse)
    wanted = outputs(network, layer, IMAGES)
    before = share(wanted, outputs(rounded, layer, IMAGES))
    (refit,) = reconstruct(
        rounded, network, groups, {}, IMAGES, layers=[layer], positions=64, batch=len(IMAGES)
    )
    assert refit.before == pytest.approx(before, rel=1e-4)
    assert refit.after == pytest.approx(share(wanted, outputs(rounded, layer, IMAGES)), rel=1e-3)
    assert refit.after < 0.7 * before


def test_equal_seeds_give_equal_weights_and_the_original_is_left_alone() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    kept = {"inner": (0, 1, 4, 7, 8)}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = []
    for seed in (3, 3, 4):
        pruned = prune(network, IMAGES, groups, kept)
        reconstruct(pruned, network, groups, kept, IMAGES, positions=5, seed=seed)
        weights.append(pruned.get_parameter("outer.weight"))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_memory_may_be_bounded_without_changing_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = seeded(Dense)
    groups = find_groups(network, IMAGES)
    kept = {g.name: tuple(range(1, g.channels, 2)) for g in groups if g.prunable}
    results = []
    for limit in (module.TARGET_BYTES, 1):
        monkeypatch.setattr(module, "TARGET_BYTES", limit)
        pruned = prune(network, IMAGES, groups, kept)
        results.append(reconstruct(pruned, network, groups, kept, IMAGES))
    assert results[0] == results[1]


def test_a_running_mean_is_moved_only_where_nobody_else_reads_the_layer() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 6, 3, padding=1)
            self.reader = nn.Conv2d(6, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.classifier = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.reader(self.inner(x).relu())
            return self.classifier((x + self.norm(x)).mean((2, 3)))  # type: ignore[no-any-return]

    network = seeded(Read)
    groups = find_groups(network, IMAGES)
    kept = {"inner": (0, 1, 2)}
    pruned = prune(network, IMAGES, groups, kept)
    (refit,) = reconstruct(pruned, network, groups, kept, IMAGES)
    assert refit.after < refit.before
    assert torch.equal(
        pruned.get_buffer("norm.running_mean"), network.get_buffer("norm.running_mean")
    )


def test_a_layer_that_runs_twice_is_left_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 12)
            self.back = nn.Linear(12, 64)
            self.classifier = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            for _ in range(2):
                x = self.back(self.inner(x).relu()).relu()
            return self.classifier(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    network = Twice()
    groups = [
        Group(name="inner", channels=12, producers=("inner",), consumers=("back",), prunable=True),
        Group(name="back", channels=64, producers=("back",), consumers=(), prunable=False),
    ]
    kept = {"inner": tuple(range(8))}
    pruned = prune(network, IMAGES, groups, kept)
    before = copy.deepcopy(pruned.state_dict())
    assert reconstruct(pruned, network, groups, kept, IMAGES) == ()
    assert all(torch.equal(pruned.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": 0.0}, "ridge above 0"),
        ({"positions": 0}, "positions 0"),
        ({"images": IMAGES[:0]}, "got 0 images"),
        ({"layers": ["nowhere"]}, "cannot reconstruct nowhere"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    arguments = {"images": IMAGES, **settings}
    with pytest.raises(BuildError, match=message):
        reconstruct(copy.deepcopy(network), network, groups, {}, **arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(not CIFAR.exists(), reason="the shared CIFAR-10 networks are absent")
def test_a_pruned_resnet_gives_nearer_outputs() -> None:
    network = load_network(f"{RESNET}:resnet20", CIFAR / "resnet20-12fca82f.th")
    data = load_data(
        CIFAR / "lossless_subset.npz", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    groups = find_groups(network, data.example)
    kept = {}
    for group in groups:
        if group.prunable:
            norms = network.get_submodule(group.name).weight.detach().flatten(1).norm(dim=1)  # type: ignore[union-attr, operator]
            kept[group.name] = tuple(sorted(norms.topk(group.channels * 3 // 4).indices.tolist()))
    pruned = prune(network, data.example, groups, kept)
    alone = copy.deepcopy(pruned)
    calibration, tested = data.train_images[:128], data.test_images[:256]
    refits = reconstruct(pruned, network, groups, kept, calibration, positions=16)
    reestimate(alone, calibration)
    with torch.no_grad():
        wanted, fitted, plain = network(tested), pruned(tested), alone(tested)
    labels = data.test_labels[:256]
    print(f"top-1 by batch norm alone {top1(plain, labels):.3f}, fitted {top1(fitted, labels):.3f}")
    assert len(refits) == 9
    # What a shortcut has lost before a block is lacking from its sum, and not all made up for.
    assert all(refit.after < 0.95 * refit.before for refit in refits)
    assert (fitted - wanted).square().mean() < 0.5 * (plain - wanted).square().mean()


def test_a_layer_with_few_samples_is_held_to_its_weights() -> None:
    # 10 inputs and 5 samples: 0.3 * 10 / 5; with 40 samples there are four an input.
    assert module.enough_ridge(1e-3, inputs=10, samples=5) == pytest.approx(0.6)
    assert module.enough_ridge(1e-3, inputs=10, samples=40) == 1e-3
    assert module.enough_ridge(2.0, inputs=10, samples=5) == 2.0
