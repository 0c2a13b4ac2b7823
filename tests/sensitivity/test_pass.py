"""One pass for all options: study precisions, memory, draws, results that are kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from harness.compression.groups import find_groups
from harness.compression.quantizers import round_weights
from harness.errors import ConfigError
from harness.networks import fold_batchnorm
from harness.records import Group, Option
from harness.sensitivity import curvature
from harness.sensitivity.curvature import Sensitivities, rounded_weights, score
from harness.sensitivity.results import digest
from tests.compression.tiny import Concatenated, Inverted, Residual, seeded
from tests.sensitivity.test_curvature import IMAGES, LABELS, BruteForce

BITS = {"w2a8": 2, "w3a8": 3, "w7a8": 7}


def study_options(groups: tuple[Group, ...], *, prune: bool) -> dict[str, tuple[Option, ...]]:
    return {
        group.name: tuple(
            Option(channels=channels, precision=precision)
            for channels in sorted({group.channels, group.channels - prune * group.prunable})
            for precision in ("fp32", "fp16", "int8", *BITS)
        )
        for group in groups
    }


class Brute(BruteForce):
    """Weights and activations apart, at any bits; every channel stays."""

    def parts(self, group: Group, precision: str, n: int) -> tuple[float, float]:
        self.network.zero_grad()
        loss = functional.cross_entropy(self.network(IMAGES[n : n + 1]), LABELS[n : n + 1])
        loss.backward()  # type: ignore[no-untyped-call]
        weights = activations = 0.0
        for name in group.producers:
            layer = self.layers[name]
            weight = layer.weight.detach()
            changed = round_weights(weight, BITS[precision], scale="error")
            weights += float((layer.weight.grad * (changed - weight)).sum())
            a, nudge = self.seen[name]
            low, high = self.ranges[name]
            scale = (high - low) / 255
            zero = round(-low / scale)
            levels = torch.clamp(torch.round(a.detach() / scale) + zero, 0, 255) - zero
            activations += float((nudge.grad * (levels * scale - a.detach())).sum())
        return weights, activations


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated])
@pytest.mark.parametrize("prune", [False, True])
def test_study_options_equal_per_sample_gradients_times_changes(
    kind: type[nn.Module], prune: bool
) -> None:
    """With options that prune, channels are kept apart; without, they are summed at once."""
    network = seeded(kind)
    groups = find_groups(network, IMAGES[:1])
    options = study_options(groups, prune=prune)
    found = score(network, groups, options, IMAGES, LABELS, batch=5)
    brute = Brute(network)
    for group in groups:
        for j, option in enumerate(options[group.name]):
            if option.precision not in BITS or option.channels < group.channels:
                continue
            parts = [brute.parts(group, option.precision, n) for n in range(12)]
            for values, inner in (
                (found.values, [w + a for w, a in parts]),
                (found.weights, [w for w, _ in parts]),
                (found.activations, [a for _, a in parts]),
            ):
                expected = sum(value**2 for value in inner) / (2 * 12)
                assert values[group.name][j] == pytest.approx(expected, rel=2e-3, abs=1e-11)


def test_pruned_options_have_no_activation_part_and_fewer_bits_cost_more() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    found = score(network, groups, study_options(groups, prune=True), IMAGES)
    for group in groups:
        for option, value in zip(
            found.options[group.name], found.activations[group.name], strict=True
        ):
            assert (value == 0) == (option.precision == "fp32")
    cost = {
        precision: sum(
            found.values[g.name][
                found.options[g.name].index(Option(channels=g.channels, precision=precision))
            ]
            for g in groups
        )
        for precision in ("w2a8", "w3a8", "w7a8")
    }
    assert cost["w2a8"] > cost["w3a8"] > cost["w7a8"]


def test_the_batch_and_the_memory_change_no_draw() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = study_options(groups, prune=True)
    found = [
        score(network, groups, options, IMAGES, seed=3, **more)
        for more in ({"batch": 12}, {"batch": 5}, {"max_bytes": 60_000})
    ]
    for other in found[1:]:
        for name, values in found[0].values.items():
            assert other.values[name] == pytest.approx(values, rel=1e-3, abs=1e-12)
    assert score(network, groups, options, IMAGES, seed=4).values != found[0].values


def peak_bytes(run: Any) -> int:
    """The largest sum of live tensors beyond those at the start, from the allocator's own log."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        run()
    live = peak = 0
    for event in log.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("max_bytes", [2 << 20, 8 << 20])
def test_hooks_hold_no_more_than_they_may(max_bytes: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 1),
        nn.Flatten(),
        nn.Linear(24 * 256, 5),
    ).eval()
    images, labels = torch.randn(96, 3, 16, 16), torch.arange(96) % 5
    groups = find_groups(network, images[:1])
    options = study_options(groups, prune=True)
    weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    run = curvature._Pass(
        network,
        groups,
        options,
        images,
        False,
        None,
        {},
        True,
    )
    batch = run.fitting(images, 64, max_bytes)
    assert 1 <= batch < 64  # else the bound would not bind

    def plain() -> None:
        """The network's own share: activations and their gradients, of the same batch."""
        for start in range(0, 96, batch):
            part = images[start : start + batch].clone().requires_grad_(True)
            loss = functional.cross_entropy(
                run.network(part), labels[start : start + batch], reduction="sum"
            )
            torch.autograd.grad(loss, part)

    own = peak_bytes(plain)
    whole = peak_bytes(lambda: run.collect(images, labels, 1, 1.0, 0, batch, None))
    # What stays at the end: rows of 96 images, their channels, and six changes.
    kept = 4 * 96 * sum(group.channels for group in groups) * 8
    assert whole - own - kept <= max_bytes
    assert run.recorders["6"].changes.weights.numel() <= 6 * weights


def test_too_little_memory_for_one_image_is_an_error_that_says_how_much_is_enough() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = study_options(groups, prune=False)
    with pytest.raises(ConfigError, match="one image alone takes") as caught:
        score(network, groups, options, IMAGES, max_bytes=100)
    enough = int(str(caught.value).split(" takes ")[1].split(";")[0])
    score(network, groups, options, IMAGES, max_bytes=enough)


class Repeated(nn.Module):
    """Calls one of its layers twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.body(x)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_two_calls_of_a_layer_are_summed_before_they_are_squared() -> None:
    group = Group(name="body", channels=4, producers=("body",), consumers=(), prunable=False)
    options = {"body": (Option(channels=4, precision="w3a8"),)}
    network = Repeated().eval()
    plain = score(network, [group], options, IMAGES, LABELS)
    weight = network.body.weight
    change = rounded_weights(weight, "w3a8") - weight.detach()
    inner = []
    for n in range(12):
        network.zero_grad()
        functional.cross_entropy(network(IMAGES[n : n + 1]), LABELS[n : n + 1]).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        inner.append(float((weight.grad * change).sum()))
    expected = sum(value**2 for value in inner) / (2 * 12)
    assert plain.weights["body"][0] == pytest.approx(expected, rel=1e-3)


def test_gradients_around_a_precision_are_those_of_the_rounded_network() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = {g.name: (Option(channels=g.channels, precision="w3a8"),) for g in groups}
    found = score(network, groups, options, IMAGES, LABELS, around="w2a8")
    folded = fold_batchnorm(network, IMAGES[:1])
    weight = folded.get_submodule("inner").weight
    assert isinstance(weight, Tensor)
    change = round_weights(weight, 3) - weight.detach()
    with torch.no_grad():
        for module in folded.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(round_weights(module.weight, 2))
    inner = []
    for n in range(12):
        folded.zero_grad()
        functional.cross_entropy(folded(IMAGES[n : n + 1]), LABELS[n : n + 1]).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        inner.append(float((weight.grad * change).sum()))
    expected = sum(value**2 for value in inner) / (2 * 12)
    assert found.weights["inner"][0] == pytest.approx(expected, rel=1e-3)


def test_weights_of_a_quantizer_of_ones_own_replace_the_rounding() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = {g.name: (Option(channels=g.channels, precision="w2a8"),) for g in groups}
    exact = fold_batchnorm(network, IMAGES[:1]).get_submodule("inner").weight
    assert isinstance(exact, Tensor)
    rounded = {"inner": {"w2a8": exact.detach()}}
    found = score(network, groups, options, IMAGES, LABELS, rounded=rounded)
    assert found.weights["inner"] == pytest.approx((0.0,), abs=1e-12)
    assert found.weights["classifier"][0] > 0


# --- kept results ---------------------------------------------------------------------------------


def test_a_second_run_reads_what_the_first_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = study_options(groups, prune=True)
    first = score(network, groups, options, IMAGES, cache=tmp_path)
    assert first == score(network, groups, options, IMAGES)
    with monkeypatch.context() as patch:
        patch.setattr(curvature, "_Pass", None)  # a pass would fail now
        assert score(network, groups, options, IMAGES, cache=tmp_path) == first
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text()[:100])
    assert score(network, groups, options, IMAGES, cache=tmp_path) == first


def test_whatever_changes_the_result_changes_the_key(tmp_path: Path) -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    options = {g.name: (Option(channels=g.channels, precision="w2a8"),) for g in groups}
    others = {g.name: (Option(channels=g.channels, precision="w3a8"),) for g in groups}
    nudged = seeded(Residual)
    nudged.classifier.bias.data[0] += 1  # type: ignore[union-attr, operator]
    strided = seeded(Residual)
    strided.shortcut.padding = (1, 1)  # type: ignore[union-attr]
    strided.wide.padding = (2, 2)  # type: ignore[union-attr]
    rounded = {"inner": {"w2a8": torch.zeros(12, 8, 3, 3)}}
    runs: list[dict[str, Any]] = [
        {},
        {"network": nudged},
        {"network": strided},
        {"options": others},
        {"images": IMAGES[:11], "labels": LABELS[:11]},
        {"labels": LABELS.flip(0)},
        {"labels": None},
        {"labels": None, "seed": 1},
        {"labels": None, "draws": 1},
        {"around": "w4a8"},
        {"rounded": rounded},
    ]
    usual = {"network": network, "options": options, "images": IMAGES, "labels": LABELS}
    for done, run in enumerate(runs, 1):
        score(groups=groups, cache=tmp_path, **{**usual, **run})
        assert len(list(tmp_path.iterdir())) == done, run
    assert digest(["a", "bc"]) != digest(["ab", "c"])


def test_json_text_comes_back_as_it_was_and_older_versions_are_read() -> None:
    option = Option(channels=4, precision="w3a8")
    found = Sensitivities(
        options={"g": (option,)},
        values={"g": (0.25,)},
        channel_scores={"g": (0.1, 0.2, 0.3, 0.4)},
        weights={"g": (0.2,)},
        activations={"g": (0.01,)},
    )
    assert Sensitivities.from_json(found.to_json()) == found
    assert found.total({"g": option}) == 0.25
    version_1 = (
        '{"options":{"g":[{"channels":2,"precision":"int8"}]},"values":{"g":[0.5]},'
        '"channel_scores":{"g":[1.0,2.0]}}'
    )
    old = Sensitivities.from_json(version_1)
    assert old.values == {"g": (0.5,)}
    assert old.weights == {}
    assert old.kept("g", 1) == (1,)
    version_2 = version_1[:-1] + ',"weights":{"g":[0.4]},"schema_version":2}'
    assert Sensitivities.from_json(version_2).weights == {"g": (0.4,)}
    assert Sensitivities.from_json(version_2).blocks == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"options": 3}', "null"])
def test_text_that_holds_no_sensitivities_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="no sensitivities"):
        Sensitivities.from_json(text)


def test_text_of_a_later_version_asks_for_an_update() -> None:
    text = json.dumps({**json.loads(Sensitivities({}, {}, {}).to_json()), "schema_version": 9})
    with pytest.raises(ConfigError, match=r"version 9 .*update boardfit"):
        Sensitivities.from_json(text)
