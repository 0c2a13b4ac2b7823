"""What is looked at while a job runs, and what looking costs."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from pathlib import Path

import pytest

from device_agent import board, sampling
from tests.device_agent.jetson import GPU, Jetson

RAIL = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"


def _watch(sampler: sampling.Sampler | None, *, ends_after_s: float, timeout_s: float) -> bool:
    ended, write = os.pipe()
    threading.Timer(ends_after_s, os.close, (write,)).start()
    try:
        found: bool = sampling.watch(ended, timeout_s, sampler)
        return found
    finally:
        time.sleep(max(0.0, ends_after_s - timeout_s) + 0.05)
        os.close(ended)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No change of this process's own priority, which nobody could take back."""
    monkeypatch.setattr(sampling, "NICE", 0)


def test_a_nano_is_looked_at_in_si_units(jetson: Jetson, tmp_path: Path) -> None:
    jetson.set(RAIL + "rail_name_0", "POM_5V_IN")
    jetson.set(RAIL + "in_power0_input", 4125)
    jetson.set("sys/class/thermal/thermal_zone1/temp", 45000)
    jetson.set("sys/class/thermal/cooling_device0/type", "gpu-balanced")
    jetson.set("sys/class/thermal/cooling_device0/cur_state", 0)
    jetson.set("proc/meminfo", "MemAvailable: 2000000 kB")
    jetson.set("sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq", 1203200)
    sampler = sampling.Sampler(str(tmp_path), root=str(jetson.root))
    sampler.take()
    jetson.set("sys/class/thermal/cooling_device0/cur_state", 1)
    jetson.set(GPU + "cur_freq", 921600000)
    sampler.take()
    found = sampling.collect(str(tmp_path))
    first, second = found["telemetry"]["samples"]
    # The mean of 403.2, 403.2, 403.2 and 1203.2 MHz is 603.2.
    assert first.pop("at_s") < second.pop("at_s")
    assert first == {
        "cpu_clock_hz": pytest.approx(603.2e6),
        "gpu_clock_hz": 76.8e6,
        "temp_c": 45.0,
        "power_w": pytest.approx(4.125),
        "throttled": False,
        "free_memory_bytes": 2_048_000_000,
    }
    assert (second["throttled"], second["gpu_clock_hz"]) == (True, 921.6e6)
    assert found["in_force"] == {
        "power_mode": "MAXN",
        "clocks_locked": False,
        "governor": "schedutil",
        "cpus_online": 4,
        "cpu_max_hz": 1_479_000_000,
        "gpu_max_hz": 921_600_000,
        "fan_pwm": 80,
    }


def test_an_event_counts_as_throttling_in_the_look_that_follows_it(
    jetson: Jetson, tmp_path: Path
) -> None:
    events = "sys/class/hwmon/hwmon3/oc3_event_cnt"
    jetson.set(events, 37)
    sampler = sampling.Sampler(str(tmp_path), root=str(jetson.root))
    for count in (37, 39, 39):
        jetson.set(events, count)
        sampler.take()
    samples = sampling.collect(str(tmp_path))["telemetry"]["samples"]
    assert [sample["throttled"] for sample in samples] == [False, True, False]


@pytest.mark.usefixtures("lazy")
def test_looks_are_a_period_apart_after_an_early_first(jetson: Jetson, tmp_path: Path) -> None:
    sampler = sampling.Sampler(str(tmp_path), period_s=0.1, root=str(jetson.root))
    assert _watch(sampler, ends_after_s=0.75, timeout_s=30.0)
    telemetry = sampling.collect(str(tmp_path))["telemetry"]
    times_s = [sample["at_s"] for sample in telemetry["samples"]]
    # At 0.1, 0.2, ... 0.7 s: later where the machine is busy, never earlier.
    assert 1 <= len(times_s) <= 7
    assert times_s[0] >= 0.099
    assert all(later - earlier >= 0.099 for earlier, later in itertools.pairwise(times_s))
    assert telemetry["period_s"] == 0.1
    assert 0 < telemetry["cost_share"] < 1


@pytest.mark.usefixtures("lazy")
def test_watching_ends_at_the_deadline_and_without_a_sampler_too(
    jetson: Jetson, tmp_path: Path
) -> None:
    sampler = sampling.Sampler(str(tmp_path), period_s=0.05, root=str(jetson.root))
    assert not _watch(sampler, ends_after_s=0.4, timeout_s=0.2)
    assert not _watch(None, ends_after_s=0.2, timeout_s=0.1)
    assert _watch(None, ends_after_s=0.1, timeout_s=30.0)


@pytest.mark.usefixtures("lazy")
def test_period_zero_looks_at_nothing_but_the_settings(jetson: Jetson, tmp_path: Path) -> None:
    sampler = sampling.Sampler(str(tmp_path), period_s=0, root=str(jetson.root))
    assert _watch(sampler, ends_after_s=0.1, timeout_s=30.0)
    found = sampling.collect(str(tmp_path))
    assert found["telemetry"] is None
    assert found["in_force"]["power_mode"] == "MAXN"


def test_a_run_that_ends_before_the_first_look_cost_nothing(jetson: Jetson, tmp_path: Path) -> None:
    sampling.Sampler(str(tmp_path), root=str(jetson.root))
    telemetry = sampling.collect(str(tmp_path))["telemetry"]
    assert telemetry == {"period_s": 1.0, "cost_share": 0.0, "samples": []}


def test_a_half_written_look_is_left_out_and_no_looks_are_no_telemetry(
    jetson: Jetson, tmp_path: Path
) -> None:
    assert sampling.collect(str(tmp_path)) == {"in_force": None, "telemetry": None}
    sampling.Sampler(str(tmp_path), root=str(jetson.root)).take()
    path = tmp_path / sampling.FILE
    path.write_text(path.read_text() + '{"cpu_s": 0.1, "wa')
    assert len(sampling.collect(str(tmp_path))["telemetry"]["samples"]) == 1


def test_very_long_runs_are_looked_at_less_often(
    jetson: Jetson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_SAMPLES", 3)
    sampler = sampling.Sampler(str(tmp_path), root=str(jetson.root))
    for _ in range(2):
        sampler.take()
    assert sampler.due_s() <= 1.0
    sampler.take()
    assert 1.5 < sampler.due_s() <= 2.0


def test_cost_is_processor_time_by_wall_time(tmp_path: Path) -> None:
    lines = [
        {"period_s": 1.0, "in_force": None},
        {"cpu_s": 0.01, "wall_s": 1.0, "sample": {}},
        {"cpu_s": 0.03, "wall_s": 2.0, "sample": {}},
    ]
    (tmp_path / sampling.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    # 0.03 s in 2 s.
    assert sampling.collect(str(tmp_path))["telemetry"]["cost_share"] == pytest.approx(0.015)


def test_a_board_that_cannot_be_written_to_still_measures(jetson: Jetson, tmp_path: Path) -> None:
    sampler = sampling.Sampler(str(tmp_path / "gone"), root=str(jetson.root))
    sampler.take()
    assert sampling.collect(str(tmp_path / "gone")) == {"in_force": None, "telemetry": None}
    assert board.Board(str(jetson.root)).text("mode") == "0"
