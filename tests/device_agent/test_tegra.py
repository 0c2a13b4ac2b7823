"""Parsers of what NVIDIA's tools and sudo print, on what boards have printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from device_agent import tegra
from tests.boards.support import ROOT
from tests.device_agent.jetson import CONF

MEASURED = ROOT.parent / "shared" / "measured"


def _measured(name: str) -> str:
    path: Path = MEASURED / name
    if not path.is_file():
        pytest.skip(f"no {path.relative_to(ROOT.parent)} beside the repository")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", {"id": 0, "name": "MAXN"}),
        # JetPack 4.6 on a Nano.
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 5W\n1\n", {"id": 1, "name": "5W"}),
        # Xavier, as a user who may not read all files.
        (
            "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\n"
            "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n",
            {"id": 7, "name": "MODE_15W_DESKTOP"},
        ),
        # --verbose
        (
            "NVPM VERB: parsing done for /etc/nvpmodel.conf\nNV Fan Mode:quiet\n"
            "NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\nNVPM VERB: PARAM",
            {"id": 2, "name": "MODE_15W_6CORE"},
        ),
        ("NV Power Mode: MAXN\r\n0\r\n", {"id": 0, "name": "MAXN"}),
        ("NV Power Mode: MAXN", {"id": None, "name": "MAXN"}),
        ("NV Power Mode", None),
        ("", None),
    ],
)
def test_the_power_mode_is_found_among_warnings(text: str, mode: dict[str, object] | None) -> None:
    assert tegra.power_mode(text) == mode


def test_a_mode_that_needs_a_reboot_is_known_by_its_question() -> None:
    assert tegra.asks_for_reboot(
        "NVPM WARN: Golden image context is already created\n"
        "NVPM WARN: Reboot required for changing to this power mode: 2\n"
        "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:\n"
    )
    assert not tegra.asks_for_reboot("NVPM ERROR: request for bad power mode 2")


def test_the_nanos_modes_have_the_published_cpus_and_limits() -> None:
    maxn, five = tegra.power_models(CONF)
    everything = {0: True, 1: True, 2: True, 3: True}
    assert (maxn["id"], maxn["name"], maxn["online"]) == (0, "MAXN", everything)
    # -1 and 0 are "no limit".
    assert maxn["cpu_max_hz"] is maxn["gpu_max_hz"] is maxn["emc_max_hz"] is None
    assert (five["id"], five["name"]) == (1, "5W")
    assert five["online"] == {0: True, 1: True, 2: False, 3: False}
    assert five["cpu_max_hz"] == 918_000_000
    assert five["gpu_max_hz"] == 640_000_000
    assert five["emc_max_hz"] == 1_600_000_000
    published = _measured("jetson_nano_nvpmodel.txt")
    line = next(line for line in published.splitlines() if line.startswith("mode 1 5W"))
    numbers = [int(number) for number in re.findall(r"MAX (\d+)", line)]
    assert numbers == [five["cpu_max_hz"] // 1000, five["gpu_max_hz"], five["emc_max_hz"]]


def test_a_boards_clusters_are_limited_by_the_highest_and_by_none_where_one_is_free() -> None:
    # TX2: Max-P limits both clusters; Max-N neither.
    text = (
        "< POWER_MODEL ID=2 NAME=MAXP_CORE_ALL >\nCPU_DENVER_0 MAX_FREQ 1400000\n"
        "CPU_A57_0 MAX_FREQ 1420000\nGPU MAX_FREQ 1120000000\n"
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_DENVER_0 MAX_FREQ 1400000\n"
        "CPU_A57_0 MAX_FREQ 2147483647\n< FAN_PROFILE TYPE=x >\nGPU MAX_FREQ 5\n"
    )
    limited, free = tegra.power_models(text)
    assert (limited["cpu_max_hz"], limited["gpu_max_hz"]) == (1_420_000_000, 1_120_000_000)
    assert (free["cpu_max_hz"], free["gpu_max_hz"]) == (None, None)
    assert tegra.power_models("") == []


NANO_LOCKED = """\
SOC family:tegra210  Machine:NVIDIA Jetson Nano Developer Kit
Online CPUs: 0-3
CPU Cluster Switching: Disabled
cpu0: Online=1 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000 \
IdleStates: WFI=0 c7=0
cpu1: Online=0 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000 \
IdleStates: WFI=0 c7=0
GPU MinFreq=921600000 MaxFreq=921600000 CurrentFreq=921600000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
Fan: speed=0
NV Power Mode: MAXN
"""


def test_jetson_clocks_of_a_nano_is_read_in_hertz() -> None:
    found = tegra.jetson_clocks(NANO_LOCKED)
    assert [cpu["online"] for cpu in found["cpus"]] == [True, False]
    assert found["cpus"][0]["governor"] == "schedutil"
    assert found["cpus"][0]["min_hz"] == found["cpus"][0]["cur_hz"] == 1_479_000_000
    assert found["gpu"] == {"min_hz": 921600000, "max_hz": 921600000, "cur_hz": 921600000}
    assert found["emc"]["locked"] is True
    assert found["emc"]["max_hz"] == 1_600_000_000
    assert found["fan_pwm"] == 0
    assert found["power_mode"] == {"id": None, "name": "MAXN"}


def test_jetson_clocks_of_other_jetpacks_is_read_too() -> None:
    orin = tegra.jetson_clocks(
        "cpu4:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=1190400 "
        "IdleStates: WFI=1 c7=1 \nGPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000\n"
        "Active GPU TPCs: 4\n"
        "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0\n"
        "FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=69\nNV Power Mode: 25W\n"
    )
    assert (orin["cpus"][0]["cpu"], orin["cpus"][0]["cur_hz"]) == (4, 1_190_400_000)
    assert (orin["fan_pwm"], orin["emc"]["locked"]) == (69, False)
    # JetPack 3.3 and 4.2 spelled the governor so, and had no Online.
    old = tegra.jetson_clocks("cpu0: Gonvernor=interactive MinFreq=1 MaxFreq=2 CurrentFreq=2\n")
    assert (old["cpus"][0]["governor"], old["cpus"][0]["online"]) == ("interactive", True)
    assert tegra.jetson_clocks("Error: Run this script as a root user")["emc"] is None


def test_tegrastats_of_a_nano() -> None:
    found = tegra.tegrastats(
        "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] "
        "EMC_FREQ 0% GR3D_FREQ 0% PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C "
        "POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
    )
    assert found["ram_used_bytes"] == 613 * 2**20
    assert found["cpu_clock_hz"] == [102e6] * 4
    assert (found["gpu_load"], found["gpu_clock_hz"]) == (0.0, None)
    assert found["temp_c"]["CPU"] == 40.5
    assert found["power_w"] == {"POM_5V_IN": 0.9, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.123}


def test_tegrastats_of_a_tx2_has_clocks_of_gpu_and_memory_and_cpus_that_are_off() -> None:
    found = tegra.tegrastats(
        "RAM 1345/7829MB (lfb 1290x4MB) SWAP 0/512MB (cached 0MB) CPU [2%@345,off,off,off,off,off] "
        "EMC_FREQ 13%@40 GR3D_FREQ 7%@114 APE 150 BCPU@35C MCPU@35C GPU@41C PLL@35C AO@35.5C "
        "Tboard@35C Tdiode@36C PMIC@100C thermal@35.5C VDD_IN 2003/2658 VDD_CPU 320/518"
    )
    assert found["cpu_clock_hz"] == [345e6, None, None, None, None, None]
    assert (found["gpu_load"], found["gpu_clock_hz"], found["emc_clock_hz"]) == (0.07, 114e6, 40e6)
    assert found["power_w"] == {"VDD_IN": 2.003, "VDD_CPU": 0.32}


def test_tegrastats_of_a_xavier_names_its_rails_like_its_sensors() -> None:
    found = tegra.tegrastats(
        "RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,1%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@32.5C "
        "GPU@32C Tboard@32C CPU@33.5C PMIC@100C GPU 0/0 CPU 216/216 SOC 864/864 SYS5V 1889/1889"
    )
    assert found["temp_c"]["GPU"] == 32.0
    assert found["power_w"] == {"GPU": 0.0, "CPU": 0.216, "SOC": 0.864, "SYS5V": 1.889}


def test_tegrastats_of_an_orin_as_recorded() -> None:
    (line,) = [line for line in _measured("tegrastats_samples.txt").splitlines() if " RAM " in line]
    found = tegra.tegrastats(line)
    assert found["cpu_clock_hz"] == [1728e6] * 6
    assert (found["gpu_clock_hz"], found["emc_clock_hz"]) == (1015e6, 3199e6)
    assert found["temp_c"]["tj"] == 53.0
    assert found["temp_c"]["gpu"] == 52.593
    assert found["power_w"] == {"VDD_IN": 6.03, "VDD_CPU_GPU_CV": 1.714, "VDD_SOC": 2.272}
    assert found["ram_total_bytes"] == 7620 * 2**20


LISTING = """\
Matching Defaults entries for nano on jetson:
    env_reset, secure_path=/usr/local/sbin\\:/usr/local/bin\\:/usr/sbin\\:/usr/bin

User nano may run the following commands on jetson:
    (ALL : ALL) ALL
    (root) NOPASSWD: /usr/sbin/nvpmodel -m 0, /usr/bin/jetson_clocks "", PASSWD: /sbin/reboot
"""


def test_only_what_sudo_runs_without_a_password_counts() -> None:
    assert tegra.may_run(LISTING, ["nvpmodel", "-m", "0"])
    assert not tegra.may_run(LISTING, ["nvpmodel", "-m", "1"])
    assert tegra.may_run(LISTING, ["jetson_clocks"])
    assert not tegra.may_run(LISTING, ["jetson_clocks", "--store", "/etc/passwd"])
    assert not tegra.may_run(LISTING, ["reboot"])
    assert not tegra.may_run("sudo: a password is required", ["nvpmodel", "-m", "0"])
    assert tegra.may_run("    (ALL) NOPASSWD: ALL\n", ["anything"])
    assert tegra.may_run("    (ALL) NOPASSWD: /usr/sbin/nvpmodel\n", ["nvpmodel", "-m", "3"])
