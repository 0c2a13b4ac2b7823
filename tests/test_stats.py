from dataclasses import replace

import numpy as np
import pytest

from harness import stats
from harness.records import Conditions, Interval, Measurement, Telemetry, TelemetrySample


def measurement(samples, rounds, *, label="a", campaign="c"):
    return Measurement(
        label=label,
        network_sha256="0" * 64,
        runtime="fake",
        runtime_version="1",
        precision="fp32",
        batch=1,
        threads=1,
        samples_s=tuple(samples),
        rounds=tuple(rounds),
        warmup_s=(),
        before=Conditions(),
        after=Conditions(),
        board="local",
        campaign=campaign,
        taken_at="2026-01-01T00:00:00Z",
    )


def test_percentile_is_trtexecs_and_not_an_interpolation():
    # 10 samples: p90 excludes int(0.1 * 10) = 1, so the last that stays is the ninth.
    samples = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert stats.percentile(samples, 90) == 9
    assert stats.percentile(samples, 100) == 10
    assert stats.percentile(samples, 0) == 1


def test_coefficient_of_variation_ignores_one_outlier():
    # Deviations from the median 10: 1, 0, 1, 0, 90; their median is 1: 1.4826 / 10.
    assert stats.coefficient_of_variation([9, 10, 11, 10, 100]) == pytest.approx(0.14826)
    assert stats.outliers([9, 10, 11, 10, 100]) == (4,)


def test_drift_compares_the_second_half_with_the_first():
    assert stats.drift([1.0, 1.0, 1.1, 1.1]) == pytest.approx(0.1)


def test_ratios_by_round_cancel_a_drift_that_both_engines_share():
    baseline = measurement([2.0, 2.0, 4.0, 4.0], [0, 0, 1, 1])
    ours = measurement([1.0, 1.0, 2.0, 2.0], [0, 0, 1, 1])
    assert stats.ratio_by_round(ours, baseline) == (0.5, 0.5)


def test_ratios_of_different_campaigns_are_refused():
    with pytest.raises(ValueError, match="same campaign"):
        stats.ratio_by_round(
            measurement([1.0], [0]), measurement([1.0], [0], label="b", campaign="d")
        )


def covered(intervals, truth):
    return sum(i.low <= truth <= i.high for i in intervals) / len(intervals)


def streams(count, rounds, calls, *, pace=0.0, memory=0.0):
    """Measurements of a true median of 1: 1 % of noise a call, ``pace`` a round.

    A round keeps ``memory`` of the pace of the one before.
    """
    generator = np.random.default_rng(0)
    numbers = np.repeat(np.arange(rounds), calls)
    for _ in range(count):
        paces = np.zeros(rounds)
        paces[0] = generator.normal()
        for r in range(1, rounds):
            fresh = np.sqrt(1 - memory**2) * generator.normal()
            paces[r] = memory * paces[r - 1] + fresh
        samples = (1 + pace * paces[numbers]) * (1 + 0.01 * generator.normal(size=len(numbers)))
        yield measurement(samples, numbers)


@pytest.mark.parametrize("pace", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("rounds", [6, 10, 30])
def test_the_intervals_of_the_median_cover_the_truth_as_often_as_they_say(pace, rounds):
    found = list(streams(200, rounds, 12, pace=pace))
    # 95 % within three standard deviations of 200 trials: 3 sqrt(0.95 x 0.05 / 200) = 4.6 %.
    assert covered([stats.interval_of_median(m) for m in found], 1.0) >= 0.904
    assert covered([stats.interval_over_time(m) for m in found], 1.0) >= 0.904


def test_the_interval_over_time_allows_for_a_pace_that_lasts_over_several_rounds():
    found = list(streams(100, 60, 5, pace=0.03, memory=0.8))
    over_time = [stats.interval_over_time(m) for m in found]
    assert covered(over_time, 1.0) >= 0.85
    # The span's interval does not speak of it.
    assert covered([stats.interval_of_median(m) for m in found], 1.0) <= 0.6


def test_the_interval_holds_the_median_of_the_span_through_a_slow_change_of_pace():
    # A span of 2,000 calls that slow down by 30 %; each of 20 repetitions has every 20th call.
    generator = np.random.default_rng(0)
    calls = np.linspace(1.0, 1.3, 2000) * (1 + 0.01 * generator.normal(size=2000))
    found = [stats.interval_of_median(measurement(calls[k::20], range(100))) for k in range(20)]
    assert covered(found, float(np.median(calls))) >= 0.9
    # Half the width is well below that of 100 independent draws from a span of 30 %:
    # 1.98 x 0.5 / sqrt(100) x 0.3 = 3 %.
    assert np.median([i.high - i.low for i in found]) / 2 < 0.02


def test_too_few_samples_for_the_coverage_are_the_whole_range_and_say_so():
    # Of three values all lie on one side of their median with probability 2 / 2^3.
    found = stats.interval_of_median(measurement([1.0, 2.0, 3.0], [0, 1, 2]))
    assert (found.low, found.high, found.coverage) == (1.0, 3.0, 0.75)
    assert stats.ratio_interval([2.0, 1.0, 3.0]) == Interval(1.0, 3.0, 0.75)
    assert stats.ratio_interval([2.0]) == Interval(2.0, 2.0, 0.0)


def test_the_interval_of_ratios_lies_between_order_statistics():
    # Of 11 values the 2nd and the 10th hold the median in 1 - 2 (1 + 11) / 2^11 = 98.8 % of all
    # cases, the 3rd and the 9th in 1 - 2 (1 + 11 + 55) / 2^11 = 93.5 %: 95 % lies between them.
    found = stats.ratio_interval([float(i) for i in range(1, 12)])
    assert 2 < found.low < 3 and 9 < found.high < 10
    assert found.low - 1 == pytest.approx(11 - found.high)


def test_the_interval_of_ratios_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for n in (6, 7, 10, 25):
        found = [stats.ratio_interval(generator.standard_t(3, n)) for _ in range(1000)]
        # Three standard deviations of 1,000 trials: 3 sqrt(0.95 x 0.05 / 1000) = 2.1 %.
        assert 0.929 <= covered(found, 0.0) <= 0.971


def test_the_median_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        stats.median([])


def test_joined_campaigns_are_compared_round_by_round():
    ours = stats.join([measurement([1.0, 1.0], [0, 1]), measurement([3.0], [0], campaign="d")])
    base = stats.join([measurement([2.0, 4.0], [0, 1]), measurement([6.0], [0], campaign="d")])
    assert ours.rounds == (0, 1, 2)
    assert stats.ratio_by_round(ours, base) == (0.5, 0.25, 0.5)


def test_joined_campaigns_keep_the_looks_at_their_timed_calls():
    def campaign(start_s, clock_hz):
        looks = tuple(TelemetrySample(at_s=float(i), cpu_clock_hz=clock_hz + i) for i in range(3))
        return replace(
            measurement([1.0], [0]),
            telemetry=Telemetry(period_s=1.0, cost_share=0.001, samples=looks),
            timed_from_s=start_s,
            warnings=("the fan stood still",),
        )

    found = stats.join([campaign(1.5, 1e9), campaign(0.5, 2e9)])
    # Of the first only the look at 2 s, of the second those at 1 and 2 s.
    assert [look.cpu_clock_hz for look in stats.looks(found)] == [1e9 + 2, 2e9 + 1, 2e9 + 2]
    assert found.warnings == ("the fan stood still",)
