"""Settings and telemetry over the wire, frame by frame."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from device_agent import undo
from tests.contract.agent import Frame, RawAgent
from tests.contract.conftest import StartAgent
from tests.device_agent.jetson import GPU, Jetson

JOB = "0123456789abcdef" * 2
NOTHING = {"power_mode": None, "lock_clocks": False, "governor": None, "fan": None}
# Half a second of real time and more.
SLOW = {"latency_s": 0.001, "sleep_s": 0.3}
SLOW_PLAN = {"warmup_s": 0.0, "rounds": 2, "block_s": 0.0, "block_min": 2, "drop": 0}


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    """A Nano to every agent that is started with this environment."""
    board = Jetson(tmp_path, monkeypatch)
    monkeypatch.setenv("BOARDFIT_BOARD_ROOT", str(board.root))
    if os.getuid() != 0:
        board.as_user(may_sudo=True)
    return board


def _apply(agent: RawAgent, *, change: bool = True, **wanted: Any) -> Frame:
    return agent.result("controls_apply", wanted={**NOTHING, **wanted}, change=change)


def test_state_fits_the_schema_on_a_nano_and_on_this_computer(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    found = start_agent().result("controls_state")
    assert found["power_mode"] == {"id": 0, "name": "MAXN"}
    assert len(found["cpus"]) == 4
    assert jetson.calls() == []
    here = start_agent({"BOARDFIT_BOARD_ROOT": "/"}).result("controls_state")
    assert len(here["cpus"]) >= 1


def test_settings_are_applied_and_put_back_when_asked(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    before, agent = jetson.files(), start_agent()
    applied = _apply(agent, power_mode="5W")
    assert applied["problems"] == []
    assert applied["in_force"]["power_mode"] == "5W"
    assert applied["in_force"]["cpus_online"] == 2
    assert agent.result("controls_restore") == {"problems": [], "pending": False}
    assert jetson.files() == before


def test_only_looking_changes_nothing(jetson: Jetson, start_agent: StartAgent) -> None:
    (problem,) = _apply(start_agent(), change=False, power_mode="5W")["problems"]
    assert (problem["wanted"], problem["found"]) == ("power mode 5W", "MAXN")
    assert jetson.calls() == []


def test_agent_puts_settings_back_when_its_host_goes_away(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    before, agent = jetson.files(), start_agent()
    _apply(agent, power_mode="5W", lock_clocks=True)
    assert jetson.get("mode_name") == "5W"
    assert agent.close() == 0
    assert jetson.files() == before


def test_killed_agents_settings_stay_for_its_job_and_go_with_it(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    before, agent = jetson.files(), start_agent()
    _apply(agent, power_mode="5W")
    agent.submit_fake(JOB, SLOW, plan=SLOW_PLAN)
    folder = agent.cache / "jobs" / JOB
    _until((folder / "running").exists)
    agent.kill()
    other = start_agent()
    assert jetson.get("mode_name") == "5W"
    outcome = other.outcome(JOB)
    assert outcome["result"]["in_force"]["power_mode"] == "5W"
    _until(lambda: not (agent.cache / undo.RECORD).exists())
    assert jetson.files() == before


def _until(condition: Any) -> None:
    deadline_s = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_another_session_cannot_change_what_one_relies_on(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    one, two = start_agent(), start_agent()
    _apply(one, power_mode="5W")
    wanted = {**NOTHING, "power_mode": "MAXN"}
    frame, _ = two.call("controls_apply", wanted=wanted, change=True)
    assert frame["exception"]["type"] == "ConditionsHeld"
    assert _apply(two, power_mode="5W")["problems"] == []
    assert one.result("controls_restore") == {"problems": [], "pending": True}
    assert jetson.get("mode_name") == "5W"
    assert two.result("controls_restore")["pending"] is False
    assert jetson.get("mode_name") == "MAXN"


def test_settings_are_not_changed_under_another_hosts_job(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    one, two = start_agent(), start_agent()
    one.submit_fake(JOB, SLOW, plan=SLOW_PLAN)
    _until((one.cache / "jobs" / JOB / "running").exists)
    frame, _ = two.call("controls_apply", wanted={**NOTHING, "power_mode": "5W"}, change=True)
    assert frame["exception"]["type"] == "ConditionsHeld"
    assert one.outcome(JOB)["result"]["in_force"]["power_mode"] == "MAXN"
    _until(lambda: _applies(two))
    assert jetson.get("mode_name") == "5W"


def _applies(agent: RawAgent) -> bool:
    wanted = {**NOTHING, "power_mode": "5W"}
    return "result" in agent.call("controls_apply", wanted=wanted, change=True)[0]


def test_result_carries_telemetry_and_the_settings_in_force(
    jetson: Jetson, start_agent: StartAgent
) -> None:
    agent = start_agent()
    jetson.set(GPU + "cur_freq", 307200000)
    agent.submit_fake(JOB, SLOW, plan=SLOW_PLAN)
    result = agent.outcome(JOB)["result"]
    assert result["in_force"]["governor"] == "schedutil"
    telemetry = result["telemetry"]
    assert telemetry["period_s"] == 1.0
    # Six calls of 0.3 s: at 0.5 s and at 1.5 s; the second may come too late.
    assert telemetry["samples"]
    assert telemetry["samples"][0]["gpu_clock_hz"] == 307.2e6
    assert telemetry["samples"][0]["at_s"] >= 0.5
    assert 0 < telemetry["cost_share"] < 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"governor": "performance; reboot"},
        {"governor": "../../x"},
        {"power_mode": 1},
        {"lock_clocks": None},
        {"fan": "full"},
        {"colour": "red"},
    ],
)
def test_settings_that_the_wire_does_not_know_are_refused(
    jetson: Jetson, start_agent: StartAgent, wrong: Frame
) -> None:
    agent = start_agent()
    params = {"wanted": {**NOTHING, **wrong}, "change": True}
    agent.send(b'{"id": 1, "method": "controls_apply", "params": %s}\n' % _json(params))
    assert agent.reply()["error"]["code"] == "bad_params"
    assert jetson.calls() == []


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
