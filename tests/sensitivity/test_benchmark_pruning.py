"""The parts of the pruning correlation benchmark that compute."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.compression.batchnorm import statistics_layers
from harness.records import Option
from tests.benchmarks import correlation, correlation_pruning
from tests.benchmarks.compression_networks import Subject
from tests.benchmarks.correlation import Cache
from tests.benchmarks.correlation_pruning import (
    CALIBRATION,
    CONTROLS,
    LOSSES,
    PRECISIONS,
    Bench,
    correlations,
    key_of,
    policies,
    rows_of,
    spread,
)
from tests.compression.tiny import Residual, seeded

MENU = {
    **{
        f"block{i}": tuple(Option(channels=c, precision="fp32") for c in (8, 16, 24, 32))
        for i in range(3)
    },
    "stream": (Option(channels=32, precision="fp32"),),
}


def test_policies_differ_and_keep_to_the_menu() -> None:
    found = policies(MENU, 60, joint=True)
    assert found == policies(MENU, 60, joint=True) != policies(MENU, 60, joint=True, seed=1)
    assert found[:20] == policies(MENU, 20, joint=True)  # so that a run can be made longer
    assert {policy["stream"].channels for policy in found} == {32}
    assert {policy["block0"].channels for policy in found} == {8, 16, 24, 32}
    assert {policy["block0"].precision for policy in found} == set(PRECISIONS)
    plain = policies(MENU, 50, joint=False)
    assert len({key_of(policy) for policy in plain}) == 50
    assert {option.precision for policy in plain for option in policy.values()} == {"fp32"}


def test_every_other_policy_is_mild() -> None:
    menu = {f"block{i}": MENU["block0"] for i in range(9)}
    found = policies(menu, 60, joint=True)  # so many groups that no two are the same
    for policy in found[1::2]:
        assert min(option.channels for option in policy.values()) >= 16
        assert "w3a8" not in {option.precision for option in policy.values()}
    assert min(option.channels for policy in found for option in policy.values()) == 8


def test_the_policies_to_be_fine_tuned_lie_evenly_by_score() -> None:
    assert spread([0.5, 0.1, 0.9, 0.3, 0.7], 3) == [1, 0, 2]
    assert sorted(spread([3.0, 1.0, 2.0], 16)) == [0, 1, 2]


@pytest.fixture
def item(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(correlation_pruning, "STEP", 4)
    images = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(96) % 3
    return Subject("tiny", seeded(Residual), images[:48], labels[:48], images[48:], labels[48:])


def test_a_policy_that_does_nothing_loses_nothing_by_any_score_or_truth(item: Subject) -> None:
    bench = Bench(item)
    policy = {g.name: Option(channels=g.channels, precision="fp32") for g in bench.groups}
    assert bench.scores(policy) == {"sensitivity": 0, "weight change": 0}
    truth = bench.truth(policy)
    assert truth["MACs removed"] == 0
    assert truth["loss"] == pytest.approx(0, abs=1e-6)
    predicted = bench.predicted(policy)
    for how in ("", ", anchored Dynamic BN"):
        assert predicted[f"calibration divergence{how}"] == pytest.approx(0, abs=1e-6)
    assert predicted["calibration divergence, Dynamic BN"] > 1e-4  # of other images' statistics


def test_a_joint_policy_is_sliced_and_rounded(item: Subject) -> None:
    bench = Bench(item)
    policy = {
        g.name: Option(channels=8 if g.name == "inner" else g.channels, precision="w3a8")
        for g in bench.groups
    }
    sliced = bench.sliced(policy)
    variant = bench.rounded(sliced, policy)
    weight = variant.get_parameter("inner.weight")
    assert weight.shape == (8, 8, 3, 3)
    assert all(len(row.unique()) <= 7 for row in weight.flatten(1))  # 2^3 - 1 levels
    assert len(sliced.get_parameter("inner.weight")[0].unique()) == 72
    assert bench.truth(policy)["MACs removed"] > 0
    fine = {name: Option(channels=o.channels, precision="int8") for name, o in policy.items()}
    for score in ("sensitivity", "weight change"):
        assert bench.scores(policy)[score] > bench.scores(fine)[score] > 0


def test_every_score_meets_every_loss_and_a_second_run_asks_for_nothing(
    item: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Intervals are not looked at here, and take most of the time.
    monkeypatch.setattr(correlation, "correlate", partial(correlation.correlate, resamples=5))
    path = tmp_path / "kept.jsonl"
    found = rows_of(item, tmp_path, (6, 4, 0), Cache(path))
    assert {row["policies"] for row in found} == {"pruning", "joint"}
    # So small a network makes the same errors whatever is cut.
    expected = {*CONTROLS, *(name for name in CALIBRATION if "errors" not in name)}
    assert expected <= {row["score"] for row in found} <= {*CONTROLS, *CALIBRATION}
    assert {row["truth"] for row in found} == set(LOSSES)
    counts = {row["score"]: row["n"] for row in found}
    assert counts["sensitivity"] == 6
    assert counts["calibration loss, reconstructed"] == 4
    for part in ("truth", "predicted", "reconstructed"):
        monkeypatch.setattr(Bench, part, lambda *_: pytest.fail("is known"))
    assert rows_of(item, tmp_path, (6, 4, 0), Cache(path)) == found


def test_a_score_that_orders_as_the_losses_do_correlates_by_one() -> None:
    results = [
        {"sensitivity": x, "weight change": -x, "loss": x**3, "errors, fine-tuned": x}
        for x in (1.0, 2.0, 3.0, 4.0, 5.0)
    ]
    found = {(row["score"], row["truth"]): row for row in correlations("net", "pruning", results)}
    assert found["sensitivity", "loss"]["spearman"] == pytest.approx(1)
    assert found["sensitivity", "loss"]["pearson"] < 0.99
    assert found["weight change", "errors, fine-tuned"]["kendall"] == pytest.approx(-1)
    assert ("sensitivity", "loss, fine-tuned") not in found


def test_networks_of_the_benchmark_keep_their_statistics(item: Subject) -> None:
    before = {n: layer.running_mean.clone() for n, layer in statistics_layers(item.network).items()}  # type: ignore[union-attr]
    bench = Bench(item)
    (policy,) = policies(bench.options, 1, joint=True)
    bench.truth(policy), bench.predicted(policy), bench.reconstructed(policy)
    layers: dict[str, nn.BatchNorm2d] = statistics_layers(item.network)  # type: ignore[assignment]
    for name, mean in before.items():
        assert torch.equal(layers[name].running_mean, mean)  # type: ignore[arg-type]
