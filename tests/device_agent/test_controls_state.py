"""What a board says of its power mode, clocks, governor and fan."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent import controls, telemetry
from tests.device_agent.jetson import CPU_TABLE_KHZ, EMC, GPU, GPU_TABLE_HZ, Jetson

KEYS = {
    *(
        "power_mode",
        "power_modes",
        "cpus",
        "gpu",
        "emc",
        "fan",
        "clocks_locked",
        "throttle",
        "sudo",
    ),
}


def _nobody(argv: list[str], text: str = "") -> tuple[None, str]:
    del text
    return None, f"there is no {argv[0]}"


def test_a_nanos_controls_are_told_in_si_units(jetson: Jetson) -> None:
    found = controls.state(str(jetson.root))
    assert set(found) == KEYS
    assert found["power_mode"] == {"id": 0, "name": "MAXN"}
    assert found["power_modes"][1] == {"id": 1, "name": "5W"}
    assert (
        found["cpus"]
        == [
            {
                "online": True,
                "governor": "schedutil",
                "min_hz": 102_000_000,
                "max_hz": 1_479_000_000,
                "cur_hz": 403_200_000,
                "hw_min_hz": 102_000_000,
                "hw_max_hz": 1_479_000_000,
                "available_hz": [clock_khz * 1000 for clock_khz in CPU_TABLE_KHZ],
            }
        ]
        * 4
    )
    assert found["gpu"] == {
        "min_hz": 76_800_000,
        "max_hz": 921_600_000,
        "cur_hz": 76_800_000,
        "governor": "nvhost_podgov",
        "available_hz": list(GPU_TABLE_HZ),
    }
    assert found["emc"] == {
        "min_hz": 204_000_000,
        "max_hz": 1_600_000_000,
        "cur_hz": 1_600_000_000,
        "locked": False,
    }
    assert found["fan"] == {"pwm": 80, "max_pwm": 255, "automatic": True}
    assert found["clocks_locked"] is False
    assert jetson.calls() == []


def test_what_a_board_cannot_tell_is_none_and_nothing_is_run_that_is_not_there(
    tmp_path: Path,
) -> None:
    found = controls.state(str(tmp_path), _nobody)
    assert set(found) == KEYS
    assert (found["cpus"], found["power_modes"]) == ([], [])
    for key in ("power_mode", "gpu", "emc", "fan", "clocks_locked"):
        assert found[key] is None, key
    assert set(found["throttle"].values()) == {None}


def test_clocks_are_locked_only_if_minimum_maximum_and_current_agree_everywhere(
    jetson: Jetson,
) -> None:
    def locked() -> object:
        return controls.state(str(jetson.root))["clocks_locked"]

    jetson.lock_clocks()
    assert locked() is True
    # cpufreq computes the current clock: 1478.4 of 1479 MHz is within 1 %.
    jetson.set("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", 1478400)
    assert locked() is True
    jetson.set(GPU + "cur_freq", 844800000)
    assert locked() is False
    jetson.set(GPU + "cur_freq", 921600000)
    jetson.set("sys/devices/system/cpu/cpu3/cpufreq/scaling_min_freq", 102000)
    assert locked() is False
    jetson.set("sys/devices/system/cpu/cpu3/online", 0)
    assert locked() is True


def test_the_mode_is_read_where_nvpmodel_left_it_if_the_tool_is_not_there(jetson: Jetson) -> None:
    jetson.set("var/lib/nvpmodel/status", "pmode:0001 fmode:quiet")
    found = controls.state(str(jetson.root), _nobody)
    assert found["power_mode"] == {"id": 1, "name": "5W"}


def test_the_id_of_a_mode_that_nvpmodel_only_names_is_found_in_its_file(jetson: Jetson) -> None:
    def named(argv: list[str], text: str = "") -> tuple[int, str]:
        del argv, text
        return 0, "NV Power Mode: 5W"

    assert controls.state(str(jetson.root), named)["power_mode"] == {"id": 1, "name": "5W"}


def test_sudo_is_told_by_what_it_lists_and_never_asked_for_a_password(jetson: Jetson) -> None:
    granted = controls.state_of(jetson.as_user(may_sudo=True))["sudo"]
    assert granted == {"nvpmodel": True, "jetson_clocks": True, "fan": True}
    refused = controls.state_of(jetson.as_user(may_sudo=False))["sudo"]
    assert refused == {"nvpmodel": False, "jetson_clocks": False, "fan": False}


def test_a_user_asks_jetson_clocks_for_the_memory_clock_only_where_sudo_lists_it(
    jetson: Jetson,
) -> None:
    for name in ("clk_rate", "clk_state"):
        (jetson.root / EMC / name).unlink()
    assert controls.state_of(jetson.as_user(may_sudo=False))["emc"] is None
    assert jetson.calls() == []
    emc = controls.state_of(jetson.as_user(may_sudo=True))["emc"]
    assert (emc["cur_hz"], emc["locked"]) == (1_331_200_000, False)
    assert jetson.calls() == ["jetson_clocks --show"]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("sys/devices/gpu.0/devfreq", "57000000.gpu"),
        ("sys/class/devfreq", "57000000.gpu"),
        ("sys/devices/17000000.gp10b/devfreq", "17000000.gp10b"),
        ("sys/devices/17000000.gv11b/devfreq", "17000000.gv11b"),
        ("sys/devices/platform/17000000.ga10b/devfreq", "17000000.ga10b"),
        ("sys/class/devfreq", "17000000.gpu"),
        ("sys/class/devfreq", "gpu-gpc-0"),
    ],
)
def test_the_gpu_is_found_on_every_jetson(tmp_path: Path, place: str, name: str) -> None:
    for other in ("15340000.vic", "154c0000.nvenc"):
        (tmp_path / place / other).mkdir(parents=True)
        (tmp_path / place / other / "cur_freq").write_text("1\n")
    folder = tmp_path / place / name
    folder.mkdir(parents=True)
    (folder / "cur_freq").write_text("318750000\n")
    assert telemetry.gpu_clock_hz(str(tmp_path)) == 318.75e6


def test_the_fan_of_jetpack_5_is_found_by_its_drivers_name(tmp_path: Path) -> None:
    for number, name in enumerate(("ina3221", "pwmfan")):
        folder = tmp_path / f"sys/class/hwmon/hwmon{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(name + "\n")
    (folder / "pwm1").write_text("69\n")
    assert controls.state(str(tmp_path), _nobody)["fan"] == {
        "pwm": 69,
        "max_pwm": 255,
        "automatic": None,
    }
