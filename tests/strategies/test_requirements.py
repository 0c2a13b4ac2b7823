import dataclasses

import pytest

from harness import units
from harness.records import Candidate, Interval
from harness.strategies import requirements


def candidate(*, latency_s=0.001, ratio=0.2, spread=0.01, size=1000, top1=0.92):
    return Candidate(
        label="joint 1",
        role="joint",
        round=1,
        onnx_sha256="a" * 64,
        size_bytes=size,
        parameters=1,
        macs=1,
        latency_s=latency_s,
        latency_interval_s=Interval(latency_s * (1 - spread), latency_s * (1 + spread), 0.95),
        latency_cv=0.01,
        n_samples=100,
        ratio=ratio,
        ratio_interval=Interval(ratio * (1 - spread), ratio * (1 + spread), 0.95),
        top1=top1,
        board_agreement=0.99,
        host_agreement=1.0,
        n_board_images=256,
    )


BASELINE = candidate(latency_s=0.005, ratio=1.0, size=5000, top1=0.93)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    # Intervals of 1 % either side of the ratio, against a limit of 0.22.
    [(0.2, "meets"), (0.219, "cannot tell yet"), (0.25, "does not meet")],
)
def test_a_relative_latency_is_judged_by_the_interval_of_the_interleaved_ratio(ratio, verdict):
    judged = requirements.judge(
        units.parse_latency("22%"), candidate=candidate(ratio=ratio), baseline=BASELINE
    )
    assert judged.verdict == verdict
    assert judged.met is (verdict == "meets")
    assert judged.value == ratio


def test_an_absolute_latency_is_judged_by_the_time_itself():
    judged = requirements.judge(
        units.parse_latency("0.9ms"), candidate=candidate(latency_s=0.001), baseline=BASELINE
    )
    assert judged.verdict == "does not meet"
    assert judged.value == 0.001


def test_a_size_is_exact_and_relative_to_the_baselines_file():
    budget = units.parse_size("20%")
    # 1000 of 5000 bytes is 20 % exactly, one byte more is too much.
    assert requirements.judge(budget, candidate=candidate(size=1000), baseline=BASELINE).met
    assert not requirements.judge(budget, candidate=candidate(size=1001), baseline=BASELINE).met


def test_an_accuracy_drop_is_in_points_and_unknown_accuracy_is_no_verdict():
    budget = units.parse_accuracy_drop(1.0)
    assert requirements.judge(budget, candidate=candidate(top1=0.925), baseline=BASELINE).met
    lost = requirements.judge(budget, candidate=candidate(top1=0.915), baseline=BASELINE)
    assert lost.verdict == "does not meet"
    assert lost.value == pytest.approx(1.5)
    unknown = dataclasses.replace(candidate(), top1=None)
    judged = requirements.judge(budget, candidate=unknown, baseline=BASELINE)
    assert judged.verdict == "cannot tell yet"


def test_a_drop_of_exactly_the_limit_meets_it():
    # In float64, 100 * (0.93 - 0.92) is 1.0000000000000009.
    budget = units.parse_accuracy_drop(1.0)
    assert requirements.judge(budget, candidate=candidate(top1=0.92), baseline=BASELINE).met


def test_the_overall_verdict_is_the_worst():
    budget = units.parse_latency("22%")
    verdicts = [
        requirements.judge(budget, candidate=candidate(ratio=r), baseline=BASELINE)
        for r in (0.2, 0.219, 0.25)
    ]
    assert requirements.overall(verdicts[:1]) == "meets"
    assert requirements.overall(verdicts[:2]) == "cannot tell yet"
    assert requirements.overall(verdicts) == "does not meet"


def test_limits_are_absolute_in_terms_of_the_baseline():
    budgets = (units.parse_latency("22%"), units.parse_size("1MB"), units.parse_accuracy_drop(1))
    limits = requirements.limits(budgets, latency_s=0.01, size_bytes=5e6)
    assert limits.latency_s == pytest.approx(0.0022)
    assert limits.size_bytes == 1e6
