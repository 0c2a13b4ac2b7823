"""Soaking over the real wire, under the host's Python and a real 3.6."""

from __future__ import annotations

import pytest

from harness.boards.wire import validate
from tests.contract.agent import PLAN, RawAgent

JOB = "fedcba9876543210" * 2


def test_an_engine_that_heats_up_is_measured_soaked(agent: RawAgent) -> None:
    # 20 % slower in the end, by 63 % of that after 10 s: 5 time constants leave 0.7 % of it.
    heating = {"latency_s": 0.01, "heat_share": 0.2, "heat_s": 10.0}
    agent.submit_fake(JOB, heating, plan={**PLAN, "soak_s": 50.0})
    result = agent.outcome(JOB)["result"]
    validate("measure.result", result)
    (engine,) = result["engines"]
    windows = engine["soak"]["windows"]
    assert 49 <= len(windows) <= 50
    assert windows[0]["at_s"] == pytest.approx(1.0, abs=0.05)
    # In the first second 0.2 x (1 - exp(-0.05)) = 1 % of heat, give or take 1 % of ripple.
    assert windows[0]["median_s"] == pytest.approx(0.0101, rel=0.011)
    assert windows[-1]["median_s"] == pytest.approx(0.012, rel=0.011)
    assert sum(w["n"] for w in windows) == len(engine["soak"]["samples_s"])
    assert min(engine["samples_s"]) > 0.0118
    assert result["before"]["free_memory_bytes"] is not None


def test_a_measurement_without_a_soak_has_none(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"latency_s": 0.001})
    (engine,) = agent.outcome(JOB)["result"]["engines"]
    assert "soak" not in engine


def test_progress_is_told_in_seconds_soaked(agent: RawAgent) -> None:
    agent.submit_fake(
        JOB, {"latency_s": 0.5, "sleep_s": 0.2}, plan={**PLAN, "rounds": 1, "soak_s": 3.0}
    )
    _, events = agent.call("wait", job_id=JOB, after=0, timeout_s=20.0)
    told = [e for e in events if e.get("what") == "seconds soaked"]
    assert told and {e["total"] for e in told} == {3}
