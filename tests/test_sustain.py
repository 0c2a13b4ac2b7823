"""Soaks whose course is known: what the summary says of them."""

import numpy as np
import pytest

from harness.records import Conditions, Soak, SoakWindow
from harness.sustain import summarise


def soak(medians_s, temperatures=None):
    """A window a second with these medians."""
    temperatures = temperatures or [None] * len(medians_s)
    windows = tuple(
        SoakWindow(
            at_s=float(second),
            n=100,
            median_s=float(median_s),
            p10_s=0.9 * float(median_s),
            p90_s=1.1 * float(median_s),
            conditions=Conditions(temp_c=temp_c),
        )
        for second, (median_s, temp_c) in enumerate(
            zip(medians_s, temperatures, strict=True), start=1
        )
    )
    return Soak(every=1, samples_s=(), windows=windows)


def heating(seconds, *, change, constant_s, noise=0.0, seed=0):
    """2 ms that grow by ``change`` in the end."""
    t = np.arange(seconds)
    grown = 1 + change * -np.expm1(-t / constant_s)
    return 2e-3 * grown * (1 + noise * np.random.default_rng(seed).normal(size=seconds))


def test_cold_soaked_and_the_time_constant_are_recovered():
    found = summarise(soak(heating(300, change=0.2, constant_s=40.0, noise=0.005)))
    # The cold end is the mean of the first 6 s: 1 + 0.2 (1 - mean exp(-t / 40)) = 1.012.
    assert found.cold_s == pytest.approx(2e-3 * 1.012, rel=0.005)
    # The last 60 s lie above 1 + 0.2 (1 - exp(-6)) = 1.1995.
    assert found.soaked_s == pytest.approx(2e-3 * 1.2, rel=0.005)
    assert found.change == pytest.approx(1.2 / 1.012 - 1, abs=0.005)
    assert found.change_interval.low < found.change < found.change_interval.high
    assert found.change_interval.high - found.change_interval.low < 0.05
    assert found.time_constant_s == pytest.approx(40, rel=0.1)
    assert found.settled
    assert (found.duration_s, found.windows) == (300.0, 300)


def test_a_board_that_stays_as_it_was_has_no_change_and_no_time_constant():
    changes = []
    for seed in range(100):
        found = summarise(soak(heating(60, change=0.0, constant_s=1.0, noise=0.01, seed=seed)))
        assert found.time_constant_s is None
        changes.append(found.change_interval.low <= 0 <= found.change_interval.high)
    # 95 % less three standard deviations of 100 trials, 6.5 %.
    assert np.mean(changes) >= 0.885


def test_a_board_that_is_still_warming_up_has_not_settled():
    found = summarise(soak(heating(120, change=0.3, constant_s=100.0, noise=0.002)))
    assert not found.settled
    # 100 s is more than half of the soak: not to be told from a straight line.
    assert found.time_constant_s is None


def test_the_conditions_are_those_of_the_first_and_the_last_window():
    found = summarise(soak([1e-3] * 4, [41.0, 50.0, 55.0, 58.0]))
    assert (found.cold.temp_c, found.soaked.temp_c) == (41.0, 58.0)


def test_a_soak_of_a_single_window_has_no_interval():
    found = summarise(soak([1e-3]))
    assert found.change == 0.0
    assert found.change_interval is None
    assert not found.settled
