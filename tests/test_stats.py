import numpy as np
import pytest

from harness import stats
from harness.records import Conditions, Measurement


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


def test_the_interval_of_the_median_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    rounds = np.repeat(np.arange(12), 20)
    covered = 0
    for seed in range(100):
        # Rounds differ by 2 %, samples within a round by 1 %: the true median is 1.
        shared = generator.normal(1, 0.02, 12)[rounds]
        samples = shared * generator.normal(1, 0.01, len(rounds))
        interval = stats.interval_of_median(measurement(samples, rounds), coverage=0.9, seed=seed)
        covered += interval.low <= 1 <= interval.high
    assert 80 <= covered <= 98


def test_the_median_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        stats.median([])


def test_joined_campaigns_are_compared_round_by_round():
    ours = stats.join([measurement([1.0, 1.0], [0, 1]), measurement([3.0], [0], campaign="d")])
    base = stats.join([measurement([2.0, 4.0], [0, 1]), measurement([6.0], [0], campaign="d")])
    assert ours.rounds == (0, 1, 2)
    assert stats.ratio_by_round(ours, base) == (0.5, 0.25, 0.5)
