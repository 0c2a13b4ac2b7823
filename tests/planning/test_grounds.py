"""What a plan stands on where a board was measured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.boards import rules
from harness.errors import ConfigError
from harness.planning import commands, grounds
from harness.records import BoardSpec, Requirement, Requirements, Telemetry, TelemetrySample
from latency_models import calibration, profiles
from tests.report.conftest import FACTS
from tests.test_stats import measurement


def test_the_power_is_that_of_the_board_while_the_original_ran():
    taken = measurement([0.01] * 4, [0, 0, 1, 1])
    assert grounds._power(taken) is None
    looks = tuple(TelemetrySample(at_s=float(i), power_w=4.0 + i) for i in range(5))
    blind = TelemetrySample(at_s=9.0)
    seen = Telemetry(period_s=1.0, cost_share=0.001, samples=(*looks, blind))
    found = grounds._power(replace(taken, telemetry=seen))
    assert (found.value, found.low, found.high) == (6.0, 4.0, 8.0)
    assert grounds._power(replace(taken, telemetry=replace(seen, samples=(blind,)))) is None


def test_tails_are_ratios_of_the_percentile_that_is_required_to_the_median():
    slow = Requirement(quantity="latency", limit=0.02, text="20ms", percentile=90)
    # trtexec's p90 of ten calls is the ninth: 0.018; their median is 0.010.
    samples = [0.010] * 8 + [0.018, 0.030]
    found = commands._tails(Requirements(limits=(slow,)), samples)
    assert found == {90: pytest.approx(1.8)}
    assert commands._tails(Requirements(), samples) == {}
    assert commands._tails(Requirements(limits=(slow,)), ()) == {}


def test_a_saved_model_of_another_board_is_refused_before_the_board_is_measured(tmp_path):
    session = SimpleNamespace(spec=BoardSpec(name="desk"), facts=FACTS)
    saved = calibration.prior(profiles.load("jetson-nano-cpu")).to_json()
    network, store, folder = tmp_path / "gone.onnx", None, SimpleNamespace()
    with pytest.raises(ConfigError, match="board desk is generic-cpu"):
        grounds.of_board(session, store, folder, network, saved=saved)
    with pytest.raises(ConfigError, match="is of jetson-nano-cpu"):
        grounds.of_bench(SimpleNamespace(session=session, folder=folder), saved=saved)


def test_a_saved_model_of_the_board_is_what_the_plan_stands_on(tmp_path):
    session = SimpleNamespace(spec=BoardSpec(name="desk"), facts=FACTS)
    model = calibration.prior(profiles.load("generic-cpu"), runtime=rules.fusion_rules(FACTS))
    network, folder = tmp_path / "gone.onnx", SimpleNamespace()
    ground = grounds.of_board(session, None, folder, network, saved=model.to_json())
    assert ground.model.to_json() == model.to_json()
    assert (ground.source, ground.precisions) == ("saved model", ("fp32", "int8"))
