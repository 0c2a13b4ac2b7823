"""Dynamic BN against the long way: build the variant, re-estimate its statistics, evaluate it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.compression.batchnorm import corrections, reestimate
from harness.compression.fakequant import fake_quantize, input_ranges
from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.quantizers import quantize_weight, round_weights
from harness.errors import BuildError, ConfigError
from harness.networks import fold_batchnorm, layers_in_order
from harness.sensitivity.dynamic_bn import (
    Predictor,
    Statistics,
    _mean_and_variance,
    corrections_of,
    cut_corrections,
    judge,
)
from tests.compression.tiny import Residual, seeded

IMAGES = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(48) % 3
POLICY = {"stem": "w3a8", "inner": "w2a8", "outer": "w4a8", "classifier": "int8"}


def long_way(network: nn.Module, statistics: Statistics) -> torch.Tensor:
    """The policy's logits by fake_quantize and reestimate, nothing shared."""
    ranges = input_ranges(network, IMAGES)
    layers = layers_in_order(network, IMAGES[:1])
    bits = {"w2a8": 2, "w3a8": 3, "w4a8": 4, "int8": 8}
    variant = fake_quantize(
        network,
        IMAGES[:1],
        weights={
            name: quantize_weight(
                layers[name].weight, bits[p], scale="max" if p == "int8" else "error"
            )
            for name, p in POLICY.items()
        },
        ranges={name: ranges[name] for name in POLICY},
        fold=False,
    )
    if statistics == "reestimated":
        reestimate(variant, IMAGES, batch=48)
    if statistics == "anchored":
        fresh = copy.deepcopy(network)
        reestimate(fresh, IMAGES, batch=24)
        reestimate(variant, IMAGES, batch=24, corrected=corrections(network, fresh))
    with torch.no_grad():
        return variant(IMAGES)  # type: ignore[no-any-return]


@pytest.mark.parametrize("statistics", ["trained", "reestimated", "anchored"])
def test_predictions_are_those_of_the_variant_built_and_reestimated(
    statistics: Statistics,
) -> None:
    network = seeded(Residual)
    # Anchored in one batch is another estimate; see below.
    batch = 24 if statistics == "anchored" else 48
    predictor = Predictor(network, IMAGES, LABELS, batch=batch)
    found = predictor.predict(POLICY, statistics=statistics)
    logits = long_way(network, statistics)
    with torch.no_grad():
        reference = network(IMAGES).log_softmax(1)
    divergence = (reference.exp() * (reference - logits.log_softmax(1))).sum(1).mean()
    assert found.divergence == pytest.approx(float(divergence), rel=1e-3)
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, LABELS)), rel=1e-3)
    assert found.top1 == pytest.approx(float((logits.argmax(1) == LABELS).float().mean()))
    assert found.images == 48


def test_several_batches_are_reestimated_before_they_are_judged() -> None:
    network = seeded(Residual)
    found = Predictor(network, IMAGES, LABELS, batch=16).predict(
        {"inner": "w2a8"}, statistics="reestimated"
    )
    ranges = input_ranges(network, IMAGES)
    again = fake_quantize(
        network, IMAGES[:1], weights={"inner": 2}, ranges={"inner": ranges["inner"]}, fold=False
    )
    reestimate(again, IMAGES, batch=16)
    with torch.no_grad():
        expected = functional.cross_entropy(again(IMAGES), LABELS)
    assert found.loss == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("batch", [16, 256])
def test_one_policy_leaves_nothing_behind_for_the_next(batch: int) -> None:
    network = seeded(Residual)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predictor = Predictor(network, IMAGES, LABELS, batch=batch)
    first = predictor.predict({}, statistics="trained")
    assert first.divergence == pytest.approx(0, abs=1e-6)  # nothing is rounded
    predictor.predict(POLICY)
    assert predictor.predict({}, statistics="trained") == first
    predictor.predict(POLICY, statistics="reestimated")
    assert predictor.predict({}, statistics="trained") == first
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_rounding_before_folding_gives_the_levels_of_rounding_afterwards() -> None:
    network = seeded(Residual)
    folded = fold_batchnorm(network, IMAGES[:1])
    for bits in (2, 3, 8):
        plain, after = (
            round_weights(n.get_submodule("inner").weight, bits)  # type: ignore[arg-type]
            for n in (network, folded)
        )
        ratio = folded.get_submodule("inner").weight / network.get_submodule("inner").weight  # type: ignore[operator]
        torch.testing.assert_close(plain * ratio, after, rtol=1e-4, atol=1e-6)


def test_reestimated_statistics_undo_a_shift_that_stale_ones_pass_on() -> None:
    """A layer that gives twice what it gave: exact again after re-estimation, wrong before."""
    network = seeded(Residual)
    with torch.no_grad():
        reestimate(network, IMAGES, batch=48)
        reference = network(IMAGES)
        doubled = copy.deepcopy(network)
        doubled.inner.weight *= 2  # type: ignore[union-attr, operator]
    stale = judge(doubled, IMAGES, LABELS, reference, statistics="trained")
    fresh = judge(doubled, IMAGES, LABELS, reference)
    assert fresh.divergence < 1e-4 < stale.divergence


@pytest.mark.parametrize("batch", [16, 256])
def test_anchored_statistics_undo_a_shift_on_biased_images_as_well(batch: int) -> None:
    network = seeded(Residual)
    twice = {"inner": {"w2a8": 2 * network.inner.weight.detach()}}  # type: ignore[union-attr, operator]
    predictor = Predictor(network, IMAGES * 3 + 1, rounded=twice, batch=batch)
    policy = {"inner": "w2a8"}
    stale, fresh, anchored = (
        predictor.predict(policy, statistics=statistics).divergence
        for statistics in ("trained", "reestimated", "anchored")
    )
    assert anchored < 0.02 * min(stale, fresh)


def test_ranks_are_by_divergence_and_the_best_have_seen_all_images() -> None:
    network = seeded(Residual)
    predictor = Predictor(network, IMAGES)
    policies = [dict.fromkeys(predictor.layers, p) for p in ("w2a8", "int8", "w3a8", "w5a8")]
    # Its statistics of training are few: re-estimated ones are farther off than rounding is.
    ranked = predictor.rank(policies, best=3, statistics="trained")
    assert [index for index, _ in ranked] == [1, 3, 2, 0]
    assert [performance.images for _, performance in ranked] == [48, 48, 48, 16]
    assert ranked[0][1].loss is None


def test_weights_of_a_quantizer_of_ones_own_are_used() -> None:
    network = seeded(Residual)
    own = {"inner": {"w2a8": torch.zeros(12, 8, 3, 3)}}
    zeroed = Predictor(network, IMAGES, rounded=own).predict(
        {"inner": "w2a8"}, statistics="trained"
    )
    network.inner.weight.data.zero_()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        without = network(IMAGES).log_softmax(1)
    expected = Predictor(seeded(Residual), IMAGES).reference.log_softmax(1)
    assert zeroed.divergence == pytest.approx(
        float((expected.exp() * (expected - without)).sum(1).mean()), rel=1e-3
    )


def test_no_images_and_unknown_layers_are_refused() -> None:
    with pytest.raises(BuildError, match="no images"):
        Predictor(seeded(Residual), IMAGES[:0])
    with pytest.raises(ConfigError, match=r"names inside, .*there are stem"):
        Predictor(seeded(Residual), IMAGES).predict({"inside": "int8"})


@pytest.mark.parametrize("batch", [16, 256])
def test_anchored_statistics_of_an_untouched_network_are_those_of_training(batch: int) -> None:
    """Whatever the images: only what a policy changes is taken from them."""
    biased = IMAGES * 3 + 1
    predictor = Predictor(seeded(Residual), biased, batch=batch)
    assert predictor.predict({}, statistics="anchored").divergence == pytest.approx(0, abs=1e-6)
    assert predictor.predict({}, statistics="reestimated").divergence > 1e-3


def test_corrections_go_with_anchored_statistics_alone() -> None:
    network = seeded(Residual)
    with pytest.raises(ConfigError, match="want corrections"):
        judge(network, IMAGES, None, torch.zeros(48, 3), statistics="anchored")


def test_corrections_are_cut_to_the_channels_that_a_pruned_variant_has() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    whole = corrections_of(network, IMAGES)
    kept = {"inner": (1, 4, 5, 9)}
    cut = cut_corrections(whole, network, IMAGES[:1], groups, kept)
    for side in (0, 1):
        assert torch.equal(cut["inner_bn"][side], whole["inner_bn"][side][[1, 4, 5, 9]])
        assert torch.equal(cut["bn"][side], whole["bn"][side])
    variant = prune(network, IMAGES[:1], groups, kept)
    found = judge(
        variant, IMAGES, LABELS, network(IMAGES).detach(), statistics="anchored", corrected=cut
    )
    assert 0 < found.divergence < 1


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (4, 3, 5, 6)])
def test_means_and_variances_are_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = 5 + torch.randn(shape)
    mean, variance = _mean_and_variance(x)
    expected, average = torch.var_mean(x, [d for d in range(x.ndim) if d != 1])
    torch.testing.assert_close(mean, average)
    torch.testing.assert_close(variance, expected, rtol=1e-4, atol=0)
