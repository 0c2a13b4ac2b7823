"""What a plan stands on where a board was measured."""

from dataclasses import replace

import pytest

from harness.planning import commands, grounds
from harness.records import Requirement, Requirements, Telemetry, TelemetrySample
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
