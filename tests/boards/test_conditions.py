from __future__ import annotations

from dataclasses import replace

from harness.boards.conditions import warnings
from harness.records import Conditions

CALM = Conditions(
    cpu_clock_hz=(2.0e9, 2.0e9),
    gpu_clock_hz=9.2e8,
    temp_c=40.0,
    throttled=False,
    load_1min=0.3,
    free_memory_bytes=1 << 30,
)


def _one(before: Conditions, after: Conditions) -> str:
    (found,) = warnings(before, after, cores=4)
    return found


def test_a_calm_board_and_one_that_tells_nothing_give_no_warning() -> None:
    assert warnings(CALM, CALM, cores=4) == ()
    assert warnings(Conditions(), Conditions(), cores=4) == ()


def test_a_clock_that_falls_is_told_with_both_values() -> None:
    # Mean of 2000 and 1000 MHz is 1500 MHz.
    slower = replace(CALM, cpu_clock_hz=(2.0e9, 1.0e9))
    assert "CPU clock changed from 2000 to 1500 MHz" in _one(CALM, slower)
    assert "GPU clock" in _one(CALM, replace(CALM, gpu_clock_hz=6.4e8))


def test_small_steps_of_the_clock_are_no_news() -> None:
    assert warnings(CALM, replace(CALM, cpu_clock_hz=(1.96e9, 1.96e9)), cores=4) == ()


def test_throttling_heat_load_and_little_memory_are_told() -> None:
    assert "throttled" in _one(CALM, replace(CALM, throttled=True))
    assert "25 °C to 65 °C" in _one(CALM, replace(CALM, temp_c=65.0))
    assert "load 2.5 on 4 cores" in _one(replace(CALM, load_1min=2.5), CALM)
    assert "only 100 MiB" in _one(CALM, replace(CALM, free_memory_bytes=100 << 20))
