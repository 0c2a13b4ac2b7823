from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.boards.support import python_of
from tests.contract.agent import RawAgent

JOB = "1f" * 16
OTHER = "2e" * 16
SLOW = {"latency_s": 0.001, "sleep_s": 0.2}
SLOW_PLAN = {"warmup_s": 0.0, "rounds": 4, "block_s": 3.0, "block_min": 2, "drop": 0}
SHORT_PLAN = {**SLOW_PLAN, "block_s": 0.0}


@pytest.fixture(params=["host", "3.6"])
def agents(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Two agents that share nothing but the machine: not even the cache folder."""
    found = [RawAgent(python_of(request.param), tmp_path / name) for name in ("one", "two")]
    yield found
    for agent in found:
        agent.close()


def _wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + 20.0
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path.name} does not appear"
        time.sleep(0.02)


def test_lease_is_the_machines_and_not_the_cache_folders(agents: list[RawAgent]) -> None:
    one, two = agents
    one.submit_fake(JOB, SLOW, plan=SHORT_PLAN)
    _wait_for(one.cache / "jobs" / JOB / "running")
    two.submit_fake(OTHER, {"latency_s": 0.001}, plan=SHORT_PLAN)
    assert two.result("status", job_id=OTHER)["state"] == "waiting"
    assert two.outcome(OTHER)["state"] == "done"
    assert one.result("status", job_id=JOB)["state"] == "done"


def test_who_holds_the_lease_and_for_how_long_is_told(agents: list[RawAgent]) -> None:
    one, two = agents
    assert two.result("lease")["holder"] is None
    one.submit_fake(JOB, {"sleep_s": 0.2}, plan=SLOW_PLAN)
    _wait_for(one.cache / "jobs" / JOB / "running")
    holder = two.result("lease")["holder"]
    assert (holder["owner"], holder["kind"], holder["job_id"]) == ("me@here", "measure", JOB)
    # One engine, four rounds of 3 s: 12 s by the plan.
    assert holder["held_s"] + holder["left_s"] == pytest.approx(12.0)
    one.result("cancel", job_id=JOB)
    assert two.result("lease")["holder"] is None


def test_lease_of_a_killed_agents_worker_is_free_when_the_worker_ends(
    agents: list[RawAgent],
) -> None:
    one, two = agents
    one.submit_fake(JOB, SLOW, plan=SHORT_PLAN)
    _wait_for(one.cache / "jobs" / JOB / "running")
    one.kill()
    assert two.result("lease")["holder"]["job_id"] == JOB
    two.submit_fake(OTHER, {"latency_s": 0.001}, plan=SHORT_PLAN)
    assert two.outcome(OTHER)["state"] == "done"
