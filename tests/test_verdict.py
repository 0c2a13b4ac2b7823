"""What is VALID and what is not: on streams whose truth is known, and on what boards tell."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import stats, verdict
from harness.records import Conditions, Telemetry, TelemetrySample
from tests.test_stats import measurement

CALM = Conditions(
    cpu_clock_hz=(2.0e9, 2.0e9),
    gpu_clock_hz=9.2e8,
    temp_c=40.0,
    throttled=False,
    load_1min=0.3,
    free_memory_bytes=1 << 30,
)
SHAPES = ((20, 20), (10, 8), (30, 10))
STREAMS = 60


def steady(n, _):
    return np.ones(n)


def drifting(n, _):
    return 1 + 0.10 * np.arange(n) / n


def throttling(n, _):
    return np.where(np.arange(n) < 0.7 * n, 1.0, 1.2)


def small_step(n, _):
    return np.where(np.arange(n) < 0.5 * n, 1.0, 1.05)


def few_outliers(n, generator):
    return np.where(generator.random(n) < 0.04, 3.0, 1.0)


def bimodal(n, generator):
    return np.where(generator.random(n) < 0.5, 1.3, 1.0)


def lopsided(n, generator):
    return np.where(generator.random(n) < 0.2, 1.3, 1.0)


def stream(shape, seed, *, rounds=20, calls=20):
    """A measurement of 1 ms with 3 % of noise a call and 0.5 % a round, times ``shape``."""
    generator = np.random.default_rng(seed)
    n = rounds * calls
    noise = 1 + 0.005 * np.repeat(generator.normal(size=rounds), calls)
    noise = noise * (1 + 0.03 * generator.normal(size=n))
    samples = 1e-3 * np.abs(shape(n, generator) * noise)
    return measurement(samples.tolist(), np.repeat(np.arange(rounds), calls).tolist())


def judge(taken, **options):
    return verdict.judge(taken, **{"percentiles": (50,), **options})


def unstable_share(shape, rounds, calls, *, streams=STREAMS):
    found = [judge(stream(shape, seed, rounds=rounds, calls=calls)) for seed in range(streams)]
    return sum(v.status == "UNSTABLE" for v in found) / streams


@pytest.mark.parametrize(("rounds", "calls"), SHAPES)
def test_steady_noise_is_valid(rounds, calls):
    assert unstable_share(steady, rounds, calls) <= 0.02


def test_a_few_outliers_do_not_invalidate():
    assert unstable_share(few_outliers, 20, 20) <= 0.02


@pytest.mark.parametrize(
    "shape", [drifting, throttling, small_step, bimodal, lopsided], ids=lambda s: s.__name__
)
@pytest.mark.parametrize(("rounds", "calls"), SHAPES)
def test_drift_steps_and_two_speeds_are_found(shape, rounds, calls):
    assert unstable_share(shape, rounds, calls) >= 0.9


def violated(taken, **options):
    return {criterion.name for criterion in judge(taken, **options).violated}


def test_the_criterion_names_what_is_wrong():
    assert violated(stream(drifting, 0)) >= {"first half against second half"}
    assert violated(stream(bimodal, 0)) >= {"coefficient of variation"}
    assert violated(stream(lopsided, 0)) == {"calls apart"}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scale=st.floats(1e-6, 10.0), seed=st.integers(0, 1000))
def test_a_verdict_does_not_depend_on_the_unit(scale, seed):
    taken = stream(steady, seed)
    scaled = replace(taken, samples_s=tuple(scale * s for s in taken.samples_s))
    outcomes = [[c.outcome for c in judge(one).criteria] for one in (taken, scaled)]
    assert outcomes[0] == outcomes[1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    samples=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60),
    rounds=st.integers(1, 12),
)
def test_any_measurement_gets_a_verdict_with_finite_figures(samples, rounds):
    numbers = [i * rounds // len(samples) for i in range(len(samples))]
    found = verdict.judge(measurement(samples, numbers))
    assert found.status == ("UNSTABLE" if found.violated else "VALID")
    assert all(c.figure is None or math.isfinite(c.figure) for c in found.criteria)
    assert all(c.remedy for c in found.criteria if c.outcome != "ok")


def test_a_clock_with_coarse_steps_makes_no_outliers():
    # 101 calls of 100 or 101 us: the MAD is 0, yet nothing lies apart.
    taken = measurement([1.00e-4] * 60 + [1.01e-4] * 41, [i // 10 for i in range(101)])
    assert "calls apart" not in violated(taken)


# --- percentiles --------------------------------------------------------------------------------


def miss(n, q):
    """How often fewer than two of ``n`` calls lie in a tail of ``q``, by the binomial formula."""
    return (1 - q) ** n + n * q * (1 - q) ** (n - 1)


@pytest.mark.parametrize(("percent", "needed"), [(50, 11), (90, 64), (99, 662), (10, 64)])
def test_the_calls_that_a_percentile_needs_follow_from_the_binomial_formula(percent, needed):
    # p50: (1 + 11) / 2^11 = 0.0059, and (1 + 10) / 2^10 = 0.0107 is more than 0.01.
    q = min(percent, 100 - percent) / 100
    assert miss(needed, q) <= 0.01 < miss(needed - 1, q)
    assert stats.samples_needed(percent) == needed


def test_a_percentile_without_the_calls_it_needs_has_no_value():
    taken = stream(steady, 0, rounds=10, calls=8)
    found = verdict.judge(taken, percentiles=(50, 99), shown=(90,))
    values = {figure.percent: figure.value_s for figure in found.percentiles}
    assert values[99] is None
    assert values[90] == stats.percentile(taken.samples_s, 90)
    assert [c.name for c in found.violated] == ["samples for p99"]
    assert "needs 662" in found.violated[0].finding


def test_a_percentile_that_is_only_shown_violates_nothing():
    found = judge(stream(steady, 0, rounds=10, calls=8), shown=(99,))
    assert found.status == "VALID"
    assert found.percentiles[-1].value_s is None


def test_the_longest_call_needs_no_number_of_calls():
    figure = verdict.percentile_figure(measurement([1.0, 3.0, 2.0], [0, 0, 0]), 100)
    assert (figure.value_s, figure.needed) == (3.0, None)


# --- the board ----------------------------------------------------------------------------------


def taken(before=CALM, after=CALM, *looks):
    telemetry = None
    if looks:
        telemetry = Telemetry(period_s=1.0, cost_share=0.001, samples=looks)
    return replace(stream(steady, 0), before=before, after=after, telemetry=telemetry)


def one(found):
    (criterion,) = found.violated
    return criterion


def test_what_the_board_does_not_tell_is_unknown_and_not_ok():
    found = judge(taken(Conditions(), Conditions()))
    assert found.status == "VALID"
    assert {c.name for c in found.unknown} == {
        "baseline drift",
        "CPU clock",
        "GPU clock",
        "throttling",
        "temperature",
        "memory",
        "load",
    }


def test_a_calm_board_has_nothing_against_it():
    found = judge(taken())
    assert found.violated == ()
    assert {c.name for c in found.unknown} == {"baseline drift"}


def test_a_clock_that_falls_is_told_with_both_values():
    # The mean of 2000 and 1000 MHz is 1500 MHz; 2000 / 1500 is a third more.
    found = one(judge(taken(CALM, replace(CALM, cpu_clock_hz=(2.0e9, 1.0e9)))))
    assert "1500 to 2000 MHz" in found.finding
    assert found.figure == pytest.approx(1 / 3)
    assert one(judge(taken(CALM, replace(CALM, gpu_clock_hz=6.4e8)))).name == "GPU clock"
    assert judge(taken(CALM, replace(CALM, cpu_clock_hz=(1.96e9, 1.96e9)))).status == "VALID"


def test_a_clock_that_fell_and_rose_again_between_the_ends_is_seen_by_telemetry():
    looks = [TelemetrySample(at_s=i, cpu_clock_hz=hz) for i, hz in enumerate((2e9, 1.5e9, 2e9))]
    assert one(judge(taken(CALM, CALM, *looks))).name == "CPU clock"


def test_throttling_heat_load_and_little_memory_are_violated():
    assert one(judge(taken(CALM, replace(CALM, throttled=True)))).name == "throttling"
    assert "40 °C to 65 °C" in one(judge(taken(CALM, replace(CALM, temp_c=65.0)))).finding
    # More than 1 + 0.25 x 4 = 2 programs wanted a core.
    busy = taken(replace(CALM, load_1min=2.5), CALM)
    assert "load 2.5 on 4 cores" in one(judge(busy, cores=4)).finding
    assert one(judge(taken(CALM, replace(CALM, free_memory_bytes=100 << 20)))).name == "memory"


def test_throttling_seen_only_during_the_run_is_violated():
    looks = [TelemetrySample(at_s=i, throttled=i == 1) for i in range(4)]
    # Before, after and four looks.
    assert "at 1 of 6 looks" in one(judge(taken(CALM, CALM, *looks))).finding


def test_a_temperature_that_has_settled_is_fine_however_much_it_rose():
    def looks(temperatures):
        return [TelemetrySample(at_s=i, temp_c=t) for i, t in enumerate(temperatures)]

    after = replace(CALM, temp_c=60.0)
    settled = [40.0, 52.0, 57.0, 59.0, 60.0, 60.0, 60.0, 60.0]
    rising = [40.0, 43.0, 46.0, 49.0, 52.0, 55.0, 58.0, 61.0]
    assert judge(taken(CALM, after, *looks(settled))).status == "VALID"
    # The last quarter is 59.5 °C on average, the one before 53.5 °C.
    assert "rose by 6.0 °C" in one(judge(taken(CALM, after, *looks(rising)))).finding


def test_looks_from_before_the_timed_calls_say_nothing_of_them():
    # Loading at 1 GHz and soaking throttled, for 3 s; then 2 GHz.
    looks = [
        TelemetrySample(at_s=i, cpu_clock_hz=1e9 if i < 3 else 2e9, throttled=i < 3)
        for i in range(6)
    ]
    before = taken(CALM, CALM, *looks)
    assert {c.name for c in judge(before).violated} == {"CPU clock", "throttling"}
    assert judge(replace(before, timed_from_s=2.5)).status == "VALID"


def test_a_setting_that_did_not_hold_is_violated_with_what_the_session_said():
    found = one(judge(replace(taken(), warnings=("power mode is 5W, MAXN was asked for",))))
    assert (found.name, found.finding) == ("settings", "power mode is 5W, MAXN was asked for")


def test_a_baseline_that_drifts_is_held_against_what_was_measured_beside_it():
    found = judge(taken(), baseline=stream(drifting, 0))
    assert one(found).name == "baseline drift"
    assert judge(taken(), baseline=stream(steady, 1)).unknown == ()
