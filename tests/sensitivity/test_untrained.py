"""Variants judged before any training."""

import math

import pytest
import torch
from torch.nn import functional

from harness.compression.groups import find_groups
from harness.compression.recovery import cut
from harness.records import Group, Strategy, StrategyEntry
from harness.sensitivity.untrained import Judge
from tests.compression.tiny import Residual, seeded

IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def strategy_of(groups: tuple[Group, ...], share: int, precision: str = "fp32") -> Strategy:
    return Strategy(
        label="x",
        methods=("prune",),
        entries=tuple(
            StrategyEntry(
                group=g.name,
                kept=tuple(range(0, g.channels, share if g.prunable else 1)),
                of=g.channels,
                precision=precision,
            )
            for g in groups
        ),
        epochs=0,
        seed=0,
    )


def test_an_untouched_network_does_not_diverge_and_less_of_it_diverges_more():
    network = seeded(Residual)
    with torch.no_grad():
        network.get_parameter("classifier.weight").mul_(10)
    groups = find_groups(network, IMAGES)
    for classes in (True, False):
        judge = Judge(network, groups, IMAGES, classes=classes)
        whole, rounded, half, quarter = (
            judge(strategy_of(groups, share, precision))
            for share, precision in ((1, "fp32"), (1, "int8"), (2, "fp32"), (4, "fp32"))
        )
        assert whole == pytest.approx(0.0, abs=1e-6)
        assert whole < rounded < half < quarter


def test_outputs_that_are_no_numbers_diverge_infinitely():
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    judge = Judge(network, groups, IMAGES, classes=True)
    with torch.no_grad():
        network.get_parameter("classifier.bias")[0] = math.nan
    assert judge(strategy_of(groups, 1, "fp32")) == math.inf


def test_the_divergence_is_that_of_the_variant_with_the_originals_statistics_moved():
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    # Only the projection's channels go: no batch norm reads what changed, so none moves.
    strategy = strategy_of(groups, 1)
    (wide,) = (e for e in strategy.entries if e.group == "wide")
    entries = [e for e in strategy.entries if e is not wide]
    entries.append(StrategyEntry(group="wide", kept=tuple(range(9)), of=16, precision="fp32"))
    strategy = Strategy(label="x", methods=("prune",), entries=tuple(entries), epochs=0, seed=0)
    kept = {e.group: e.kept for e in entries}
    variant = cut(network, IMAGES, groups, kept, IMAGES, positions=16)
    with torch.no_grad():
        wanted, got = network(IMAGES).log_softmax(1), variant(IMAGES).log_softmax(1)
    expected = float(functional.kl_div(got, wanted, log_target=True, reduction="batchmean"))
    found = Judge(network, groups, IMAGES, classes=True)(strategy)
    assert found == pytest.approx(expected, rel=1e-3)
