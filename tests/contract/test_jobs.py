from __future__ import annotations

import os
import time
from pathlib import Path

from harness.boards.wire import validate
from tests.contract.agent import RawAgent
from tests.contract.conftest import StartAgent

JOB = "0123456789abcdef" * 2
# Two seconds of real time, so that there is something to interrupt.
SLOW = {"latency_s": 0.001, "sleep_s": 0.2}
SLOW_PLAN = {"warmup_s": 0.0, "rounds": 4, "block_s": 0.0, "block_min": 2, "drop": 0}


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20.0
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not appear"
        time.sleep(0.02)


def test_simulated_measurement_is_exact(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"latency_s": 0.002}, {"latency_s": 0.004})
    outcome = agent.outcome(JOB)
    validate("measure.result", outcome["result"])
    fast, slow = outcome["result"]["engines"]
    # 10 ms of warming up at 2 ms a call, one call at least every 2 ms: five calls (ripple < 1 %),
    # and then until two windows of five agree: ten calls.
    assert len(fast["warmup_s"]) == 10
    # A block lasts 10 ms: at 2 ms a call five or six calls; at 4 ms a call three.
    assert fast["rounds"].count(0) in (5, 6)
    assert slow["rounds"] == [0, 0, 0, 1, 1, 1]
    assert all(abs(sample / 0.002 - 1) <= 0.0101 for sample in fast["samples_s"])
    assert all(abs(sample / 0.004 - 1) <= 0.0101 for sample in slow["samples_s"])


def test_killed_agent_leaves_the_job_running_and_another_gets_its_one_result(
    start_agent: StartAgent,
) -> None:
    first = start_agent()
    first.submit_fake(JOB, SLOW, plan=SLOW_PLAN)
    _wait_for(first.cache / "jobs" / JOB / "running")
    first.kill()
    second = start_agent()
    assert second.submit_fake(JOB, SLOW, plan=SLOW_PLAN)["state"] == "running"
    outcome = second.outcome(JOB)
    assert len(outcome["result"]["engines"][0]["samples_s"]) == 8
    assert second.submit_fake(JOB, SLOW, plan=SLOW_PLAN)["state"] == "done"
    assert second.outcome(JOB) == outcome


def test_job_id_with_another_request_is_refused(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"latency_s": 0.001})
    sha256 = agent.put(b"other")
    params = {
        "runtime": "fake",
        "threads": 1,
        "seed": 0,
        "network": sha256,
        "runs": 1,
        "nonce": "",
    }
    request = {"kind": "profile", "params": params, "owner": "me@here", "timeout_s": 9.0}
    frame, _ = agent.call("submit", job_id=JOB, **request)
    assert frame["error"]["code"] == "job_id_reused"


def test_job_killed_by_a_signal_is_reported_with_it_and_its_last_words(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"print": "low on memory", "signal": 9})
    outcome = agent.outcome(JOB)
    assert (outcome["state"], outcome["signal"]) == ("died", 9)
    assert "low on memory" in outcome["stderr_tail"]
    assert outcome["free_memory_bytes"] > 0


def test_killed_worker_is_not_waited_for_for_ever(agent: RawAgent) -> None:
    agent.submit_fake(JOB, SLOW, plan=SLOW_PLAN)
    folder = agent.cache / "jobs" / JOB
    _wait_for(folder / "running")
    group = int(_read(folder / "worker.json").split(":")[1].strip(" }"))
    os.killpg(group, 9)
    assert agent.outcome(JOB)["state"] == "died"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_failing_job_carries_the_boards_traceback(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"fail": "unsupported operator Foo"})
    outcome = agent.outcome(JOB)
    assert outcome["state"] == "failed"
    assert outcome["exception"]["message"] == "unsupported operator Foo"
    assert "engine_fake.py" in outcome["exception"]["traceback"]


def test_missing_blob_fails_the_job(agent: RawAgent) -> None:
    params = {
        "runtime": "fake",
        "threads": 1,
        "seed": 0,
        "network": "0" * 64,
        "runs": 1,
        "nonce": "",
    }
    agent.submit(JOB, "profile", params)
    assert "upload it first" in agent.outcome(JOB)["exception"]["message"]


def test_cancel_ends_the_whole_process_group_at_once(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"sleep_s": 30.0})
    folder = agent.cache / "jobs" / JOB
    _wait_for(folder / "running")
    group = int(_read(folder / "worker.json").split(":")[1].strip(" }"))
    assert agent.result("cancel", job_id=JOB)["state"] == "cancelled"
    assert agent.result("result", job_id=JOB)["state"] == "cancelled"
    members = [
        stat
        for entry in Path("/proc").glob("[0-9]*/stat")
        if (stat := _stat(entry)) and int(stat[2]) == group and stat[0] != "Z"
    ]
    assert not members


def _stat(path: Path) -> list[str]:
    try:
        return _read(path).rpartition(")")[2].split()
    except OSError:
        return []


def test_cancelling_a_finished_job_keeps_its_result(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"latency_s": 0.001})
    agent.outcome(JOB)
    assert agent.result("cancel", job_id=JOB)["state"] == "done"


def test_two_jobs_never_measure_at_once(start_agent: StartAgent) -> None:
    one, two = start_agent(), start_agent()
    other = JOB[::-1]
    one.submit_fake(JOB, SLOW, plan=SLOW_PLAN)
    _wait_for(one.cache / "jobs" / JOB / "running")
    two.submit_fake(other, {"latency_s": 0.001})
    frame, events = two.call("wait", job_id=other, after=0, timeout_s=30.0)
    assert frame["result"]["state"] == "done"
    assert f"held by me@here, measure job {JOB[:8]}, for " in events[0]["what"]
    assert one.result("status", job_id=JOB)["state"] == "done"
