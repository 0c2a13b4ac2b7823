"""Settings of a board over SSH, as an unprivileged user with Python 3.6: cut lines, cut power."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent import undo
from harness.boards.session import EngineRequest, MeasurePlan, Session
from tests.boards.nano import Nano
from tests.device_agent.jetson import GPU, Jetson

PLAN = MeasurePlan(warmup_s=0.0, rounds=4, block_s=0.0, block_min=2, drop=0)


@pytest.fixture
def jetson(nano: Nano, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    """The virtual Nano's /sys and tools: its user owns the files and may run the tools."""
    board = Jetson(nano.folder / "jetson", monkeypatch, nano.cache)
    board.as_user(may_sudo=True)
    for path in (board.root, *board.root.rglob("*")):
        os.chown(path, nano.user.uid, nano.user.gid)
    (nano.hooks / "sitecustomize.py").write_text(
        "import os\n"
        f"os.environ['BOARDFIT_BOARD_ROOT'] = {str(board.root)!r}\n"
        f"os.environ['PATH'] = {str(board.tools)!r} + os.pathsep + os.environ['PATH']\n"
    )
    return board


def _engine(folder: Path, **settings: object) -> EngineRequest:
    path = folder / "engine.json"
    path.write_text(json.dumps({"latency_s": 0.002, **settings}))
    return EngineRequest(label="e", path=path, precision="fp32")


def test_settings_hold_through_dropped_connections_and_are_put_back(
    nano: Nano, jetson: Jetson, tmp_path: Path
) -> None:
    before = jetson.files()
    spec = replace(nano.spec_of("fake"), power_mode="MAXN", lock_clocks=True, conditions="require")
    kinds: list[str] = []

    def cut_once(event: dict[str, object]) -> None:
        if (
            event["kind"] == "progress"
            and event["what"] == "measuring"
            and "reconnect" not in kinds
        ):
            nano.sshd.drop_connections()
        kinds.append(str(event["kind"]))

    with Session(spec, on_event=cut_once) as session:
        (first,) = session.measure([_engine(tmp_path, sleep_s=0.1)], plan=PLAN, campaign="c")
        (second,) = session.measure([_engine(tmp_path)], plan=PLAN, campaign="d")
        assert jetson.get(GPU + "min_freq") == "921600000"
    assert "reconnect" in kinds
    for found in (first, second):
        assert found.settings is not None
        assert found.settings.clocks_locked is True
        assert found.warnings == ()
    assert nano.leftovers() == []
    assert jetson.files() == before
    assert any(call.startswith("jetson_clocks --store") for call in jetson.calls())


def test_power_mode_is_put_back_after_the_power_was_cut(
    nano: Nano, jetson: Jetson, tmp_path: Path
) -> None:
    before = jetson.files()
    spec = replace(nano.spec_of("fake"), power_mode="5W", lock_clocks=True)
    with Session(spec) as session:
        session.measure([_engine(tmp_path)], plan=PLAN, campaign="c")
        # Before its line goes, which would be a hint.
        for agent in nano.processes("agent"):
            os.kill(agent.pid, signal.SIGKILL)
        nano.switch_off()
        jetson.boot()
        assert jetson.get("mode_name") == "5W"
        nano.switch_on()
    with Session(nano.spec_of("fake")) as session:
        (found,) = session.measure([_engine(tmp_path)], plan=PLAN, campaign="d")
    assert found.power_mode == "MAXN"
    assert jetson.files() == {**before, "proc/sys/kernel/random/boot_id": "boot-two"}
    assert not (nano.cache / undo.RECORD).exists()
