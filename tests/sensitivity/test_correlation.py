"""Rank correlations by hand and against scipy, and what their intervals must do."""

import math

import numpy as np
import pytest
import scipy.stats

from harness.sensitivity.correlation import (
    _RESAMPLED,
    MEASURES,
    compare,
    correlate,
    kendall,
    pearson,
    spearman,
)


def test_correlations_of_four_pairs_are_those_worked_out_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]
    # Ranks 1 3 2 4: rho = 1 - 6 (1 + 1) / (4 * 15) = 0.8; one of six pairs is discordant: 4 / 6.
    assert spearman(x, y) == pytest.approx(0.8)
    assert kendall(x, y) == pytest.approx(4 / 6)
    # Deviations -1.5 -0.5 0.5 1.5 and -15 5 -5 15: 40 / sqrt(5 * 500).
    assert pearson(x, y) == pytest.approx(40 / math.sqrt(2500))


def test_ties_are_counted_as_scipy_counts_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 30), rng.integers(0, 4, 30)
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert kendall(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic)
        assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)


def test_a_constant_score_has_no_correlation() -> None:
    for function in (spearman, kendall, pearson):
        assert math.isnan(function([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_rank_correlations_do_not_see_a_rising_transform_and_pearson_does() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 5, 40)
    found = correlate(np.exp(truth).tolist(), truth.tolist(), resamples=50)
    assert found["spearman"].value == pytest.approx(1)
    assert found["kendall"].value == pytest.approx(1)
    assert found["pearson"].value < 0.95
    assert found["spearman"].n == 40


def test_intervals_hold_the_true_correlation_about_as_often_as_they_say() -> None:
    rho = 0.8
    # Spearman's rho of a bivariate normal: 6 / pi * asin(r / 2) (Pearson, 1907).
    true = 6 / math.pi * math.asin(rho / 2)
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(100):
        x = rng.standard_normal(60)
        y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(60)
        interval = correlate(x.tolist(), y.tolist(), resamples=200, seed=seed)["spearman"].interval
        held += interval.low <= true <= interval.high
    assert 85 <= held <= 100  # 95 +- 2 standard errors, and the bootstrap is known to be short


def test_paired_differences_are_known_better_than_either_correlation() -> None:
    rng = np.random.default_rng(3)
    truth = rng.standard_normal(100)
    shared = truth + 0.8 * rng.standard_normal(100)
    worse = shared + 0.4 * rng.standard_normal(100)
    scores = {"better": shared.tolist(), "worse": worse.tolist()}
    paired = compare(scores, truth.tolist(), resamples=400)["better", "worse"]
    own = [correlate(values, truth.tolist(), resamples=400) for values in scores.values()]
    intervals = [found["spearman"].interval for found in own]
    assert paired.high - paired.low < min(interval.high - interval.low for interval in intervals)
    assert paired.low <= own[0]["spearman"].value - own[1]["spearman"].value <= paired.high


@pytest.mark.parametrize("measure", MEASURES)
def test_resamples_at_once_are_those_taken_one_by_one(measure: str) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 4, 7) / 3, rng.standard_normal(7)
    drawn = rng.integers(0, 7, (300, 7))
    drawn[0] = 3  # one pair over and over has no correlation
    counts = np.array([np.bincount(row, minlength=7) for row in drawn], float)
    found = _RESAMPLED[measure](x, y, counts)
    expected = [MEASURES[measure](x[row], y[row]) for row in drawn]
    assert math.isnan(found[0])
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_intervals_repeat_with_their_seed() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 20)).tolist()
    assert correlate(x, y, resamples=100, seed=1) == correlate(x, y, resamples=100, seed=1)
    assert correlate(x, y, resamples=100, seed=1) != correlate(x, y, resamples=100, seed=2)


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0], "paired"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "too few"),
        ([1.0, 2.0, 3.0, math.inf], [1.0, 2.0, 3.0, 4.0], "not finite"),
    ],
)
def test_what_cannot_be_correlated_is_refused(
    scores: list[float], truth: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        correlate(scores, truth)
