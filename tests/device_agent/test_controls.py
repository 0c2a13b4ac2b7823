"""Power mode, clocks, governor and fan: set, verified, and put back whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from device_agent import board as knobs
from device_agent import controls, undo
from tests.boards.support import ROOT, python_of
from tests.device_agent.jetson import EMC, FAN, GPU, Jetson

NOTHING = {"power_mode": None, "lock_clocks": False, "governor": None, "fan": None}
CPU0 = "sys/devices/system/cpu/cpu0/cpufreq/"


def _apply(jetson: Jetson, board: knobs.Board, **wanted: Any) -> list[dict[str, str]]:
    users = undo.Users()
    try:
        found: list[dict[str, str]] = controls.apply(
            {**NOTHING, **wanted}, str(jetson.cache), board, users
        )
        return found
    finally:
        users.release()


def _restore(jetson: Jetson, board: knobs.Board) -> list[str] | None:
    found: list[str] | None = undo.restore_unused(str(jetson.cache), board)
    return found


def _record(jetson: Jetson) -> Path:
    return jetson.cache / undo.RECORD


@pytest.fixture(params=["root", "user"])
def board(request: pytest.FixtureRequest, jetson: Jetson) -> knobs.Board:
    return jetson.as_root() if request.param == "root" else jetson.as_user(may_sudo=True)


def test_mode_and_clocks_are_set_verified_and_put_back(jetson: Jetson, board: knobs.Board) -> None:
    before = jetson.files()
    assert _apply(jetson, board, power_mode="MAXN", lock_clocks=True) == []
    assert jetson.get(GPU + "min_freq") == jetson.get(GPU + "cur_freq") == "921600000"
    assert jetson.get(EMC + "clk_state") == "1"
    assert _restore(jetson, board) == []
    assert jetson.files() == before
    assert not _record(jetson).exists()


def test_the_record_is_on_the_disk_before_anything_is_changed(
    jetson: Jetson, board: knobs.Board
) -> None:
    _apply(jetson, board, power_mode="5W", fan=1.0)
    _restore(jetson, board)
    clocks = jetson.root / undo.CLOCKS_FILE
    assert jetson.calls() == [
        f"jetson_clocks --store {clocks} record",
        "nvpmodel -m 1 record",
        "nvpmodel -m 0 record",
        f"jetson_clocks --restore {clocks} record",
    ]


def test_nothing_is_run_or_recorded_where_everything_is_as_wanted(
    jetson: Jetson, board: knobs.Board
) -> None:
    assert _apply(jetson, board, power_mode="maxn", governor="schedutil") == []
    assert _apply(jetson, board, power_mode="0") == []
    assert jetson.calls() == []
    assert not _record(jetson).exists()
    assert _restore(jetson, board) is None


def test_the_clock_just_below_a_limit_holds(jetson: Jetson, board: knobs.Board) -> None:
    # Mode 1 asks for 640 MHz; 614.4 is the GPU's next lower clock, and what the board does.
    assert _apply(jetson, board, power_mode="5W") == []
    assert jetson.get(GPU + "max_freq") == "614400000"
    jetson.set(GPU + "max_freq", 537600000)
    (found,) = _apply_only_looking(jetson, board, power_mode="5W")
    assert (found["control"], found["found"]) == ("power_mode", "537.6 MHz")
    assert "the GPU at most at 640 MHz as of mode 5W" in found["wanted"]
    nano_max = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_max_freq"
    jetson.set(GPU + "max_freq", 614400000)
    for number in range(2):
        jetson.set(nano_max.format(number), 1479000)
    (found,) = _apply_only_looking(jetson, board, power_mode="5W")
    assert found["found"] == "1479 MHz"
    assert "the CPU at most at 918 MHz as of mode 5W" in found["wanted"]


def _apply_only_looking(jetson: Jetson, board: knobs.Board, **wanted: Any) -> list[dict[str, str]]:
    users = undo.Users()
    found: list[dict[str, str]] = controls.apply(
        {**NOTHING, **wanted}, str(jetson.cache), board, users, change=False
    )
    users.release()
    return found


@pytest.mark.parametrize(
    ("asked", "got", "holds"),
    [
        (None, 5, True),
        (640, None, True),
        (640, 614, True),
        (640, 691, True),
        (640, 538, False),
        (918, 921, True),  # within 1 %: no table is needed
        (614, 614, True),
        (2000, 922, True),  # above the table: its highest clock
        (2000, 614, False),
    ],
)
def test_a_limit_is_held_by_the_tables_neighbours(
    asked: int | None, got: int | None, holds: bool
) -> None:
    assert controls.limit_holds(asked, got, [538, 614, 691, 922]) is holds


def test_without_a_table_a_limit_holds_within_half_a_step() -> None:
    assert controls.limit_holds(1000, 1040, [])
    assert not controls.limit_holds(1000, 1041, [])
    assert not controls.limit_holds(1000, 1040, [500, 1000])


def test_cpus_that_jetson_clocks_brought_back_are_taken_away_again_by_root(jetson: Jetson) -> None:
    board = jetson.as_root()
    before = jetson.files()
    assert _apply(jetson, board, power_mode="5W", lock_clocks=True) == []
    online = [jetson.get(f"sys/devices/system/cpu/cpu{n}/online") for n in range(4)]
    assert online == ["1", "1", "0", "0"]
    assert _restore(jetson, board) == []
    assert jetson.files() == before


def test_cpus_that_a_user_cannot_take_away_are_told(jetson: Jetson) -> None:
    board = jetson.as_user(may_sudo=True)
    before = jetson.files()
    (found,) = _apply(jetson, board, power_mode="5W", lock_clocks=True)
    assert found["control"] == "cpus"
    assert (found["wanted"], found["found"]) == ("2 CPUs as of mode 5W", "4 online")
    assert found["reason"].startswith("jetson_clocks brings all CPUs back")
    assert _restore(jetson, board) == []
    assert jetson.files() == before


def test_governor_and_fan_are_set_by_root_and_put_back(jetson: Jetson) -> None:
    board = jetson.as_root()
    before = jetson.files()
    assert _apply(jetson, board, governor="performance", fan=0.5) == []
    assert jetson.get(CPU0 + "scaling_governor") == "performance"
    # Half of 255 is 127.5, which rounds to the even 128; the board does not turn it by itself now.
    assert (jetson.get(FAN + "target_pwm"), jetson.get(FAN + "temp_control")) == ("128", "0")
    assert _apply(jetson, board, fan=200) == []
    assert jetson.get(FAN + "target_pwm") == "200"
    assert _restore(jetson, board) == []
    assert jetson.files() == before


def test_without_sudo_everything_is_told_with_the_line_that_would_allow_it(jetson: Jetson) -> None:
    board = jetson.as_user(may_sudo=False)
    before = jetson.files()
    found = _apply(
        jetson, board, power_mode="5W", lock_clocks=True, governor="performance", fan=1.0
    )
    by_name = {one["control"]: one for one in found}
    assert list(by_name) == ["clocks", "fan", "governor", "power_mode"]
    mode = by_name["power_mode"]
    assert (mode["wanted"], mode["found"]) == ("power mode 5W", "MAXN")
    assert "a password is required" in mode["reason"]
    for part in ("visudo -f /etc/sudoers.d/boardfit", "ALL=(root) NOPASSWD: ", "nvpmodel -m 1,"):
        assert part in mode["remedy"]
    assert "no way back" in by_name["clocks"]["reason"]
    assert "102 MHz to 1479 MHz, now 403.2 MHz" in by_name["clocks"]["found"]
    for name in ("target_pwm", "temp_control"):
        assert f"tee {jetson.root / FAN / name}" in by_name["fan"]["remedy"]
    assert "root alone" in by_name["governor"]["reason"]
    assert jetson.files() == {**before, "sudoers": ""}
    assert _restore(jetson, board) == []
    assert not _record(jetson).exists()


def test_the_line_that_the_remedy_names_is_what_the_agent_needs(jetson: Jetson) -> None:
    board = jetson.as_user(may_sudo=False)
    (found,) = _apply(jetson, board, power_mode="5W")
    rules = found["remedy"].partition("ALL=")[2]
    (jetson.root / "sudoers").write_text(f"    {rules}\n")
    allowed = jetson.as_user(may_sudo=True)
    (jetson.root / "sudoers").write_text(f"    {rules}\n")
    assert controls.state_of(allowed)["sudo"] == {
        "nvpmodel": True,
        "jetson_clocks": True,
        "fan": False,
    }
    assert _apply(jetson, allowed, power_mode="5W") == []


def test_a_fan_that_the_board_goes_on_controlling_does_not_hold(jetson: Jetson) -> None:
    board = jetson.as_user(may_sudo=True)
    speed = jetson.root / FAN / "target_pwm"
    (jetson.root / "sudoers").write_text(f"    (root) NOPASSWD: /usr/bin/tee {speed}\n")
    (found,) = _apply(jetson, board, fan=80)
    assert (found["wanted"], found["found"]) == (
        "fan at pwm 80",
        "one that the board changes by itself",
    )
    assert f"tee {jetson.root / FAN / 'temp_control'}" in found["remedy"]


def test_a_board_without_nvidias_tools_is_set_by_a_user_through_the_named_files_alone(
    jetson: Jetson, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Raspberry Pi 4; sudo is the one that the jetson fixture made.
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for name in ("nvpmodel", "jetson_clocks"):
        (jetson.tools / name).unlink()
    shutil.rmtree(jetson.root / "sys")
    for number in range(4):
        freq = f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_"
        for name, value in (("min_freq", 600000), ("max_freq", 1500000), ("cur_freq", 1500000)):
            jetson.set(freq + name, value)
        jetson.set(freq + "governor", "ondemand")
    before, board = jetson.files(), jetson.as_user(may_sudo=False)
    wishes: dict[str, Any] = {"governor": "performance", "lock_clocks": True}
    clocks, governor = _apply(jetson, board, **wishes)
    assert "600 MHz to 1500 MHz" in clocks["found"]
    rules = "\n".join(f"    {one['remedy'].partition('ALL=')[2]}" for one in (clocks, governor))
    assert rules.count("tee ") == 8
    board = jetson.as_user(may_sudo=True)
    (jetson.root / "sudoers").write_text(rules + "\n")
    assert _apply(jetson, board, **wishes) == []
    assert jetson.get(CPU0 + "scaling_min_freq") == "1500000"
    assert jetson.get(CPU0 + "scaling_governor") == "performance"
    assert _restore(jetson, board) == []
    assert {**jetson.files(), "sudoers": ""} == {**before, "sudoers": ""}


def test_a_mode_that_needs_a_reboot_is_refused_and_the_board_stays_up(
    jetson: Jetson, board: knobs.Board
) -> None:
    (found,) = _apply(jetson, board, power_mode="30W")
    assert "needs a reboot, which boardfit never does" in found["reason"]
    assert found["remedy"] == "run sudo nvpmodel -m 2 there and answer yes"
    assert not (jetson.root / "rebooted").exists()
    assert jetson.get("mode") == "0"


def test_a_mode_that_the_board_has_not_is_told_with_those_it_has(jetson: Jetson) -> None:
    (found,) = _apply(jetson, jetson.as_root(), power_mode="MAXQ")
    assert found["reason"] == "the board has MAXN (0), 5W (1), 30W (2)"


def test_clocks_that_do_not_hold_although_the_tool_says_so_are_found(
    jetson: Jetson,
) -> None:
    jetson.set("clocks_broken", 1)
    (found,) = _apply(jetson, jetson.as_user(may_sudo=True), lock_clocks=True)
    assert found["control"] == "clocks"
    assert found["reason"] == "jetson_clocks changed nothing"
    # Root can write the files itself; but the current clocks of this tree do not follow.
    (found,) = _apply(jetson, jetson.as_root(), lock_clocks=True)
    assert jetson.get(CPU0 + "scaling_min_freq") == "1479000"
    assert found["reason"] == "it was set, but does not hold"


def test_a_second_change_keeps_what_was_found_first(jetson: Jetson, board: knobs.Board) -> None:
    before = jetson.files()
    assert _apply(jetson, board, power_mode="5W") == []
    assert _apply(jetson, board, power_mode="MAXN", lock_clocks=True) == []
    assert json.loads(_record(jetson).read_text())["power_mode"] == 0
    assert _restore(jetson, board) == []
    assert jetson.files() == before


def test_clocks_that_were_locked_before_are_locked_again(
    jetson: Jetson, board: knobs.Board
) -> None:
    jetson.lock_clocks()
    before = jetson.files()
    assert _apply(jetson, board, power_mode="5W") == []
    assert jetson.get(GPU + "min_freq") == "76800000"
    assert _restore(jetson, board) == []
    assert jetson.files() == before


def test_after_a_boot_only_the_power_mode_is_put_back(jetson: Jetson, board: knobs.Board) -> None:
    assert _apply(jetson, board, power_mode="5W", lock_clocks=False) == []
    jetson.set("proc/sys/kernel/random/boot_id", "boot-two")
    # nvpmodel brings its mode back at boot; somebody has set the governor since.
    jetson.set(CPU0 + "scaling_governor", "userspace")
    assert _restore(jetson, board) == []
    assert jetson.get("mode_name") == "MAXN"
    assert jetson.get(CPU0 + "scaling_governor") == "userspace"
    assert not _record(jetson).exists()


def test_a_boot_between_two_changes_keeps_the_mode_that_was_found_first(
    jetson: Jetson, board: knobs.Board
) -> None:
    assert _apply(jetson, board, power_mode="5W") == []
    jetson.set("proc/sys/kernel/random/boot_id", "boot-two")
    assert _apply(jetson, board, power_mode="5W", fan=1.0) == []
    assert jetson.get("mode_name") == "5W"
    record = json.loads(_record(jetson).read_text())
    assert (record["power_mode"], record["boot_id"]) == (0, "boot-two")
    assert _restore(jetson, board) == []
    assert jetson.get("mode_name") == "MAXN"


def test_what_cannot_be_put_back_is_told_and_tried_again(jetson: Jetson) -> None:
    allowed = jetson.as_user(may_sudo=True)
    assert _apply(jetson, allowed, power_mode="5W", lock_clocks=True) is not None
    problems = _restore(jetson, jetson.as_user(may_sudo=False))
    assert problems
    assert "power mode 0 is not back" in problems[0]
    assert "a password is required" in problems[0]
    assert _record(jetson).exists()
    assert _restore(jetson, jetson.as_user(may_sudo=True)) == []
    assert jetson.get("mode_name") == "MAXN"


def test_a_damaged_record_is_kept_aside_and_stops_nobody(jetson: Jetson) -> None:
    _record(jetson).write_text('{"version": 1, "power')
    assert _restore(jetson, jetson.as_root()) == []
    assert _record(jetson).with_name("conditions.json.damaged").exists()
    assert _apply(jetson, jetson.as_root(), power_mode="5W") == []


def test_others_who_rely_on_the_settings_are_not_disturbed(jetson: Jetson) -> None:
    board, cache = jetson.as_root(), str(jetson.cache)
    first, second = undo.Users(), undo.Users()
    five = {**NOTHING, "power_mode": "5W"}
    assert controls.apply(five, cache, board, first) == []
    # The same wish is shared; another is refused; and nobody restores while one of them lives.
    assert controls.apply(five, cache, board, second) == []
    with pytest.raises(undo.ConditionsHeld, match="power mode MAXN wanted, 5W found"):
        controls.apply({**NOTHING, "power_mode": "MAXN"}, cache, board, second)
    first.release()
    assert undo.restore_unused(cache, board) is None
    assert jetson.get("mode_name") == "5W"
    second.release()
    assert undo.restore_unused(cache, board) == []
    assert jetson.get("mode_name") == "MAXN"


KILLED = """\
import os, sys
from device_agent import board, controls, undo
root, cache = sys.argv[1:]
wanted = {"power_mode": "5W", "lock_clocks": True, "governor": "performance", "fan": 1.0}
users = undo.Users()
controls.apply(wanted, cache, board.Board(root, uid=0), users)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("version", ["host", "3.6"])
def test_the_next_agent_puts_back_what_a_killed_one_has_set(jetson: Jetson, version: str) -> None:
    jetson.as_root()
    before = jetson.files()
    arguments = [python_of(version), "-c", KILLED, str(jetson.root), str(jetson.cache)]
    died = subprocess.run(arguments, cwd=ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    if os.getuid() != 0:
        jetson.as_user(may_sudo=True)  # the next agent is no root; it has sudo
    assert jetson.get("mode_name") == "5W"
    assert _record(jetson).exists()
    agent = subprocess.run(
        [python_of(version), "-m", "device_agent", "serve", str(jetson.cache)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "BOARDFIT_BOARD_ROOT": str(jetson.root)},
    )
    assert agent.returncode == 0, agent.stderr
    (jetson.root / "sudoers").unlink(missing_ok=True)
    assert jetson.files() == before
    assert not _record(jetson).exists()


KILLED_AT = """\
import os, sys
from device_agent import board, controls, undo
root, cache, left = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Doomed(board.Board):
    # Dies after having done so many things: run a program or written a file.
    def count(self):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
    def run(self, *argv, **options):
        found = super().run(*argv, **options)
        self.count()
        return found
    def write(self, name, value):
        found = super().write(name, value)
        self.count()
        return found

wanted = {"power_mode": "5W", "lock_clocks": True, "governor": "performance", "fan": 1.0}
users = undo.Users()
doomed = Doomed(root, uid=0)
if sys.argv[4] == "applying":
    assert controls.apply(wanted, cache, doomed, users) == []
else:
    assert controls.apply(wanted, cache, board.Board(root, uid=0), users) == []
    users.release()
    assert undo.restore_unused(cache, doomed) == []
"""


@pytest.mark.parametrize("when", ["applying", "restoring"])
def test_whenever_an_agent_is_killed_everything_can_be_put_back(jetson: Jetson, when: str) -> None:
    jetson.as_root()
    before, deaths = jetson.files(), 0
    while True:
        program = [sys.executable, "-c", KILLED_AT]
        arguments = [str(jetson.root), str(jetson.cache), str(deaths + 1), when]
        done = subprocess.run([*program, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert _restore(jetson, jetson.as_root()) in ([], None)
        assert jetson.files() == before, f"killed after {deaths + 1} steps"
        assert not _record(jetson).exists()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
    # A store, the mode, four governors, the clocks, two CPUs, two files of the fan; and on the way
    # back the mode, the clocks, four governors and the fan's control. Looks come on top.
    assert deaths >= (11 if when == "applying" else 7)


def test_a_pcs_clocks_are_told_to_be_unlockable_and_its_governor_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(knobs, "program", lambda _: None)
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    for name, value in {
        "governor": "powersave",
        "min_freq": 800000,
        "max_freq": 4000000,
        "cur_freq": 1200000,
    }.items():
        (folder / f"scaling_{name}").write_text(f"{value}\n")
    (tmp_path / "cache").mkdir()
    users = undo.Users()
    pc = knobs.Board(str(tmp_path), uid=0)
    wanted = {**NOTHING, "governor": "performance", "lock_clocks": True}
    (found,) = controls.apply(wanted, str(tmp_path / "cache"), pc, users)
    assert found["remedy"] == 'set governor = "performance" instead'
    assert (folder / "scaling_governor").read_text() == "performance"
    assert (folder / "scaling_min_freq").read_text() == "800000\n"
    users.release()
    assert undo.restore_unused(str(tmp_path / "cache"), pc) == []
    assert (folder / "scaling_governor").read_text() == "powersave"


def test_a_program_that_is_not_there_or_hangs_is_a_reason_and_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert knobs.run_program(["no-such-tool"]) == (None, "there is no no-such-tool on this board")
    monkeypatch.setattr(knobs, "RUN_TIMEOUT_S", 0.2)
    code, output = knobs.run_program([Path(sys.executable).name, "-c", "input()"])
    assert code in (1, None)
    code, output = knobs.run_program(["sleep", "5"])
    assert (code, output) == (None, "sleep did not end within 0.2 s")
