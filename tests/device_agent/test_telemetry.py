from __future__ import annotations

from pathlib import Path

import pytest

from device_agent import telemetry


def _write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert set(telemetry.conditions(str(tmp_path)).values()) == {None}


def test_nano_tells_clocks_temperature_power_and_memory(tmp_path: Path) -> None:
    rail = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    root = _write(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1479000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1479000\n",
            "sys/devices/gpu.0/devfreq/57000000.gpu/cur_freq": "921600000\n",
            "sys/class/thermal/thermal_zone0/temp": "41500\n",
            "sys/class/thermal/thermal_zone1/temp": "45000\n",
            # PMIC-Die of the Nano: a constant 100 degrees is in range, a dead sensor is not.
            "sys/class/thermal/thermal_zone2/temp": "-256000\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "sys/class/thermal/cooling_device1/type": "cpu-balanced\n",
            "sys/class/thermal/cooling_device1/cur_state": "0\n",
            f"{rail}/rail_name_0": "POM_5V_IN\n",
            f"{rail}/in_power0_input": "4125\n",
            f"{rail}/rail_name_1": "POM_5V_GPU\n",
            f"{rail}/in_power1_input": "981\n",
            "proc/loadavg": "0.52 0.58 0.59 1/310 2201\n",
            "proc/meminfo": "MemTotal: 4059652 kB\nMemAvailable: 2000000 kB\n",
        },
    )
    assert telemetry.conditions(root) == {
        "cpu_clock_hz": [1.479e9, 1.479e9],
        "gpu_clock_hz": 921.6e6,
        "temp_c": 45.0,
        "throttled": False,
        "load_1min": 0.52,
        "free_memory_bytes": 2_048_000_000,
        "power_w": pytest.approx(4.125),
    }


def test_pc_without_cpufreq_tells_its_clocks_in_cpuinfo(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/cpuinfo": "cpu MHz\t: 2100.5\nx: 1\n\ncpu MHz\t: 800.0\n"})
    assert telemetry.cpu_clock_hz(root) == [2100.5e6, 800e6]


def test_throttling_is_a_count_that_rises_on_a_pc_and_a_bit_on_a_pi(tmp_path: Path) -> None:
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    root = _write(tmp_path / "pc", {count: "7\n"})
    assert telemetry.throttle_count(root) == 7
    assert telemetry.throttled(root) is None
    assert telemetry.throttled(root, count_before=7) is False
    assert telemetry.throttled(root, count_before=6) is True
    # Bit 18, "has throttled since boot", is no throttling now; bit 2 is.
    assert telemetry.throttled(_write(tmp_path / "pi", {telemetry.PI_THROTTLED: "40000"})) is False
    assert telemetry.throttled(_write(tmp_path / "pi", {telemetry.PI_THROTTLED: "40004"})) is True


@pytest.mark.parametrize(
    ("line", "capability"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", "vnni"),
        ("flags : fpu avx2 avx_vnni", "vnni"),
        ("flags : fpu avx2", "avx2"),
        ("flags : fpu sse4_2", "slow"),
        ("Features : fp asimd crc32 asimddp", "dotprod"),
        ("Features : fp asimd evtstrm aes pmull sha1 sha2 crc32", "slow"),  # Cortex-A57
    ],
)
def test_int8_capability_follows_the_instruction_set(line: str, capability: str) -> None:
    assert telemetry.int8_capability(f"processor : 0\n{line}\n") == capability


@pytest.mark.parametrize(
    ("line", "unit"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", "avx512"),
        ("flags : fpu avx2 avx_vnni", "avx2"),
        ("flags : fpu sse4_2", None),
        ("Features : fp asimd crc32", "neon"),
        ("Features : half thumb neon vfpv4", "neon"),
    ],
)
def test_the_widest_vector_unit_is_named(line: str, unit: str | None) -> None:
    assert telemetry.simd(f"processor : 0\n{line}\n") == unit


def test_power_of_jetpack_5_is_voltage_times_current(tmp_path: Path) -> None:
    rails = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    root = _write(
        tmp_path,
        {
            f"{rails}/in1_label": "VDD_IN\n",
            f"{rails}/in1_input": "4984\n",
            f"{rails}/curr1_input": "1856\n",
            f"{rails}/in2_label": "VDD_SOC\n",
            f"{rails}/in2_input": "4984\n",
            f"{rails}/curr2_input": "400\n",
        },
    )
    # 4.984 V x 1.856 A = 9.250304 W; the other rail is a part of it.
    assert telemetry.power_w(root) == pytest.approx(9.250304)


def test_over_current_events_count_as_throttling(tmp_path: Path) -> None:
    place = "sys/class/hwmon/hwmon3"
    cooling = "sys/class/thermal/cooling_device0"
    root = _write(
        tmp_path,
        {
            f"{place}/oc1_event_cnt": "0\n",
            f"{place}/oc3_event_cnt": "37\n",
            f"{place}/oc3_throt_en": "1\n",
            f"{cooling}/type": "gpu-throttle-alert\n",
            f"{cooling}/cur_state": "0\n",
        },
    )
    assert telemetry.over_current_count(root) == telemetry.throttle_count(root) == 37
    # What happened before the run is none of its business, unless something still slows it down.
    assert telemetry.throttled(root) is False
    assert telemetry.throttled(root, count_before=37) is False
    assert telemetry.throttled(root, count_before=36) is True
    _write(tmp_path, {f"{cooling}/cur_state": "1\n"})
    assert telemetry.throttled(root, count_before=37) is True
    assert telemetry.cooling(root) == ["gpu-throttle-alert"]
