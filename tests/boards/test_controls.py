"""Settings that ``boards.toml`` asks for: held during a session, put back whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from device_agent import undo
from harness.boards import controls, inventory
from harness.boards.controls import wanted
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import ConditionError, ConfigError, TransientBoardError
from harness.records import BoardSpec, Measurement, dump, load
from tests.boards.support import ROOT, python36
from tests.device_agent.jetson import FAN, GPU, Jetson

PLAN = MeasurePlan(warmup_s=0.0, rounds=2, block_s=0.0, block_min=2, drop=0)
FIVE = {"power_mode": "5W", "conditions": "require"}


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    """This computer, which is a Nano to every agent that is started in the test."""
    board = Jetson(tmp_path / "nano", monkeypatch)
    monkeypatch.setenv("BOARDFIT_BOARD_ROOT", str(board.root))
    if os.getuid() != 0:
        board.as_user(may_sudo=True)  # the fake sudo lets this user run the tools
    return board


@pytest.fixture
def spec(jetson: Jetson) -> BoardSpec:
    return BoardSpec(
        name="local", python=sys.executable, runtime="fake", cache_dir=str(jetson.cache)
    )


def _engine(folder: Path, **settings: object) -> EngineRequest:
    path = folder / "engine.json"
    path.write_text(json.dumps({"latency_s": 0.002, **settings}))
    return EngineRequest(label="e", path=path, precision="fp32")


def _measure(session: Session, engine: EngineRequest) -> Measurement:
    (found,) = session.measure([engine], plan=PLAN, campaign="c")
    return found


def test_settings_are_in_force_during_the_run_and_put_back_at_the_end(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    before = jetson.files()
    asked = replace(spec, power_mode="MAXN", lock_clocks=True, conditions="require")
    with Session(asked) as session:
        found = _measure(session, _engine(tmp_path))
        assert jetson.get(GPU + "min_freq") == "921600000"
    assert jetson.files() == before
    assert found.warnings == ()
    assert found.power_mode == "MAXN"
    assert found.settings is not None
    assert found.settings.clocks_locked is True
    assert found.settings.gpu_max_hz == 921_600_000
    assert found.settings.cpus_online == 4


def test_the_mode_in_force_is_recorded_not_the_one_at_the_sessions_start(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    with Session(replace(spec, power_mode="5W")) as session:
        assert session.facts.power_mode == "MAXN"
        found = _measure(session, _engine(tmp_path))
    assert found.power_mode == "5W"
    assert found.settings is not None
    assert (found.settings.cpus_online, found.settings.gpu_max_hz) == (2, 614_400_000)
    assert jetson.get("mode_name") == "MAXN"


def test_nothing_is_set_where_the_entry_asks_for_nothing(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    assert wanted(spec) is None
    assert wanted(replace(spec, power_mode="5W", conditions="off")) is None
    with Session(replace(spec, power_mode="5W", conditions="off")) as session:
        found = _measure(session, _engine(tmp_path))
    assert jetson.calls() == []
    assert (found.power_mode, found.warnings) == ("MAXN", ())


def test_a_requirement_that_does_not_hold_is_an_error_with_reason_and_remedy(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    before = jetson.files()
    asked = replace(spec, power_mode="30W", conditions="require")
    with Session(asked) as session, pytest.raises(ConditionError) as caught:
        _measure(session, _engine(tmp_path))
    text = str(caught.value)
    assert "power mode 30W was asked for, MAXN found" in text
    assert "needs a reboot" in text
    assert 'conditions = "set"' in text
    assert jetson.files() == before


def test_without_require_the_run_goes_on_and_says_so(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    events: list[dict[str, object]] = []
    with Session(replace(spec, power_mode="30W"), on_event=events.append) as session:
        first = _measure(session, _engine(tmp_path))
        second = _measure(session, _engine(tmp_path))
    (warning,) = first.warnings
    assert "power mode 30W was asked for, MAXN found" in warning
    assert first.power_mode == "MAXN"
    assert len(second.warnings) == 1
    # Told once, and tried once.
    assert [event["kind"] for event in events].count("conditions") == 1
    assert len([call for call in jetson.calls() if call.startswith("nvpmodel -m 2")]) == 1


def test_what_somebody_changes_between_two_runs_is_set_again(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    with Session(replace(spec, power_mode="MAXN", lock_clocks=True, fan=1.0)) as session:
        assert _measure(session, _engine(tmp_path)).warnings == ()
        jetson.set(GPU + "min_freq", 76800000)
        found = _measure(session, _engine(tmp_path))
    assert found.warnings == ()
    assert found.settings is not None
    assert found.settings.clocks_locked is True
    assert found.settings.fan_pwm == 255
    assert jetson.get(FAN + "target_pwm") == "80"


def test_a_session_waits_for_others_who_rely_on_other_settings_and_then_gives_up(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "HELD_POLL_S", 0.1)
    monkeypatch.setattr(controls, "HELD_TIMEOUT_S", 0.3)
    events: list[dict[str, object]] = []
    with Session(replace(spec, power_mode="5W")) as first:
        _measure(first, _engine(tmp_path))
        with Session(replace(spec, power_mode="MAXN"), on_event=events.append) as second:
            with pytest.raises(TransientBoardError, match="Try again when they have finished"):
                _measure(second, _engine(tmp_path))
            # The same settings are no reason to wait.
            with Session(replace(spec, power_mode="5W")) as third:
                assert _measure(third, _engine(tmp_path)).power_mode == "5W"
            assert jetson.get("mode_name") == "5W"
            first.__exit__(None, None, None)
            assert _measure(second, _engine(tmp_path)).power_mode == "MAXN"
    assert "waiting" in {event["kind"] for event in events}


def test_what_could_not_be_put_back_is_told(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    events: list[dict[str, object]] = []
    with Session(replace(spec, power_mode="5W"), on_event=events.append) as session:
        _measure(session, _engine(tmp_path))
        (jetson.tools / "nvpmodel").write_text(
            "#!/bin/sh\n[ $1 = -q ] && printf 'NV Power Mode: 5W\\n1\\n' || echo 'NVPM ERROR: no'\n"
        )
    (told,) = [event["reason"] for event in events if event["kind"] == "conditions"]
    assert "local could not be put back: power mode 0 is not back: NVPM ERROR: no" in str(told)
    assert (jetson.cache / undo.RECORD).exists()


@pytest.mark.parametrize("conditions", ["set", "require"])
def test_what_somebody_changes_just_before_a_run_is_found_in_its_result(
    jetson: Jetson,
    spec: BoardSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conditions: Literal["set", "require"],
) -> None:
    asked = replace(spec, power_mode="5W", lock_clocks=True, conditions=conditions)
    if os.getuid() != 0:
        pytest.skip("a user cannot take away the CPUs that jetson_clocks brings back")
    with Session(asked) as session:
        run = session._run

        def meddle(*args: Any, **options: Any) -> Any:
            subprocess.run([str(jetson.tools / "nvpmodel"), "-m", "0"], check=True)
            return run(*args, **options)

        monkeypatch.setattr(session, "_run", meddle)
        if conditions == "require":
            with pytest.raises(ConditionError, match="the run was in power mode MAXN, not 5W"):
                _measure(session, _engine(tmp_path))
        else:
            mode, clocks = _measure(session, _engine(tmp_path)).warnings
            assert mode.startswith("the run was in power mode MAXN, not 5W: somebody changed it")
            assert clocks.startswith("the clocks were not locked during the run")


def test_profiles_are_taken_under_the_settings_too(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    with Session(replace(spec, power_mode="5W")) as session:
        session.profile(_engine(tmp_path).path)
        assert jetson.get("mode_name") == "5W"
    assert jetson.get("mode_name") == "MAXN"


def test_an_interrupted_session_puts_the_settings_back(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    before = jetson.files()

    def interrupt(event: dict[str, object]) -> None:
        if event["kind"] == "progress":
            raise KeyboardInterrupt

    asked = replace(spec, power_mode="5W")
    with (
        pytest.raises(KeyboardInterrupt),
        Session(asked, on_event=interrupt) as session,
    ):
        _measure(session, _engine(tmp_path, sleep_s=5.0))
    assert jetson.files() == before


HOST = """\
import sys
from pathlib import Path
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.records import BoardSpec
python, cache, engine = sys.argv[1:]
spec = BoardSpec(name="local", python=python, runtime="fake", cache_dir=cache, power_mode="5W",
                 lock_clocks=True)
plan = MeasurePlan(warmup_s=0.0, rounds=2, block_s=0.0, block_min=2, drop=0)
with Session(spec, on_event=lambda event: print(event["kind"], flush=True)) as session:
    request = EngineRequest(label="e", path=Path(engine), precision="fp32")
    session.measure([request], plan=plan, campaign="c")
"""


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


@pytest.mark.parametrize("version", ["host", "3.6"])
def test_the_board_puts_them_back_when_the_host_is_killed_but_only_after_the_job(
    jetson: Jetson, tmp_path: Path, version: str
) -> None:
    before = jetson.files()
    engine = _engine(tmp_path, sleep_s=0.6).path
    python = sys.executable if version == "host" else python36()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, python, str(jetson.cache), str(engine)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert host.stdout is not None
    while host.stdout.readline() != b"progress\n":
        assert host.poll() is None
    host.send_signal(signal.SIGKILL)
    host.communicate()
    (job,) = (jetson.cache / "jobs").glob("[0-9a-f]*")
    # The agent has seen the end of its input long before the job's two seconds are over.
    _until((job / "outcome.json").exists, "the job does not end")
    outcome = json.loads((job / "outcome.json").read_text())["content"]
    assert outcome["result"]["in_force"]["power_mode"] == "5W"
    _until(lambda: not (jetson.cache / undo.RECORD).exists(), "nothing is put back")
    assert jetson.files() == before


def test_telemetry_is_recorded_and_kept(jetson: Jetson, spec: BoardSpec, tmp_path: Path) -> None:
    with Session(replace(spec, telemetry_s=0.1)) as session:
        found = _measure(session, _engine(tmp_path, sleep_s=0.3))
    assert found.telemetry is not None
    assert found.telemetry.period_s == 0.1
    assert found.telemetry.samples
    assert found.telemetry.samples[0].gpu_clock_hz == 76.8e6
    assert found.telemetry.cost_share > 0
    assert load(Measurement, dump(found)) == found
    with Session(replace(spec, telemetry_s=0.0)) as session:
        assert _measure(session, _engine(tmp_path)).telemetry is None
    assert jetson.calls() == []


def test_a_measurement_of_the_first_version_is_read(
    jetson: Jetson, spec: BoardSpec, tmp_path: Path
) -> None:
    del jetson
    with Session(spec) as session:
        found = _measure(session, _engine(tmp_path))
    old = json.loads(dump(found))
    for name in ("busy_s", "telemetry", "settings", "warnings"):
        del old[name]
    read = load(Measurement, json.dumps(old))
    assert read == replace(found, busy_s=None, telemetry=None, settings=None, warnings=())


def test_boards_toml_names_the_settings(own_settings: Path) -> None:
    table = (
        '[boards.nano]\nhost = "nano"\npower_mode = "MAXN"\nlock_clocks = true\nfan = 1\n'
        'governor = "schedutil"\nconditions = "require"\ntelemetry_s = 0.5\n'
    )
    (own_settings / "boards.toml").write_text(table)
    spec = inventory.find("nano")
    assert (spec.power_mode, spec.lock_clocks, spec.fan) == ("MAXN", True, 1.0)
    assert (spec.governor, spec.conditions, spec.telemetry_s) == ("schedutil", "require", 0.5)
    for wrong, message in (
        ("fan = 256", "fan must be a share"),
        ('conditions = "maybe"', "conditions"),
        ("telemetry_s = -1", "telemetry_s must be"),
    ):
        (own_settings / "boards.toml").write_text(f'[boards.nano]\nhost = "nano"\n{wrong}\n')
        with pytest.raises(ConfigError, match=message):
            inventory.find("nano")
