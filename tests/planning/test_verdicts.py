"""Every verdict that a prediction can get, by hand."""

import itertools

import pytest

from harness.planning.verdicts import (
    Reference,
    estimate,
    excess,
    front,
    limit_of,
    met,
    overall,
)
from harness.records import Estimate, Met
from tests.planning.tiny import predicted, require

REFERENCE = Reference(baseline=predicted(), accuracy=0.9, tails={99.0: 1.5})


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(0.014, "meets"), (0.0139, "cannot tell"), (0.010, "cannot tell"), (0.0099, "does not meet")],
)
def test_a_latency_is_judged_by_its_interval(limit, verdict):
    # 12 ms, from 10 to 14.
    found = met(require("latency", limit), predicted(), REFERENCE)
    assert found.verdict == verdict
    assert (found.low, found.value, found.high) == (0.010, 0.012, 0.014)


@pytest.mark.parametrize(
    ("quantity", "at", "unit"),
    [
        ("size", 1e6, 1.0),
        ("parameters", 250_000, 1.0),
        ("macs", 40_000_000, 1.0),
    ],
)
def test_what_is_exact_is_met_at_the_limit_and_missed_below(quantity, at, unit):
    assert met(require(quantity, at * unit), predicted(), REFERENCE).verdict == "meets"
    missed = met(require(quantity, at * unit * 0.999), predicted(), REFERENCE)
    assert missed.verdict == "does not meet" and missed.value == at


def test_what_nobody_predicted_cannot_be_told():
    bare = predicted(latency_s=None, accuracy_drop=None)
    for asked in (
        require("latency", 1.0),
        require("accuracy_drop", 50.0),
        require("accuracy_floor", 0.1),
        require("energy", 1.0),
        require("engine_size", 1e9),
    ):
        found = met(asked, bare, REFERENCE)
        assert found.verdict == "cannot tell" and found.value is None


@pytest.mark.parametrize(
    ("floor", "verdict"),
    # 90 % less 0.2 to 2.4 points: 87.6 to 89.8 %.
    [(0.876, "meets"), (0.877, "cannot tell"), (0.898, "cannot tell"), (0.899, "does not meet")],
)
def test_an_accuracy_floor_is_judged_from_the_originals_accuracy(floor, verdict):
    found = met(require("accuracy_floor", floor), predicted(), REFERENCE)
    assert found.verdict == verdict
    assert found.low == pytest.approx(0.876) and found.high == pytest.approx(0.898)
    unknown = Reference(baseline=predicted())
    assert met(require("accuracy_floor", floor), predicted(), unknown).verdict == "cannot tell"


def test_an_accuracy_drop_is_in_points():
    for limit, verdict in ((2.4, "meets"), (1.0, "cannot tell"), (0.1, "does not meet")):
        assert met(require("accuracy_drop", limit), predicted(), REFERENCE).verdict == verdict


def test_a_relative_limit_is_a_share_of_what_the_original_takes():
    half = predicted(size_bytes=Estimate.exactly(5e5))
    asked = require("size", 0.5, relative=True)
    assert limit_of(asked, REFERENCE) == 5e5
    found = met(asked, half, REFERENCE)
    assert found.verdict == "meets" and found.value == pytest.approx(0.5)
    assert met(asked, predicted(), REFERENCE).value == pytest.approx(1.0)


def test_a_percentile_is_judged_by_its_ratio_to_the_median_where_that_was_measured():
    # 1.5 times 10 to 14 ms.
    found = met(require("latency", 0.02, percentile=99), predicted(), REFERENCE)
    assert found.verdict == "cannot tell" and found.high == pytest.approx(0.021)
    assert met(require("latency", 0.021, percentile=99), predicted(), REFERENCE).verdict == "meets"


def test_an_unmeasured_percentile_above_the_median_can_be_missed_and_not_met():
    for limit, verdict in ((10.0, "cannot tell"), (0.0099, "does not meet")):
        found = met(require("latency", limit, percentile=90), predicted(), REFERENCE)
        assert found.verdict == verdict and found.high is None
    for limit, verdict in ((0.014, "meets"), (0.001, "cannot tell")):
        found = met(require("latency", limit, percentile=10), predicted(), REFERENCE)
        assert found.verdict == verdict and found.low == 0


def test_estimates_are_in_the_unit_of_the_limit():
    assert estimate("peak_memory", predicted(), REFERENCE).high == 2.5e5
    assert estimate("macs", predicted(), REFERENCE).value == 4e7
    assert estimate("accuracy_floor", predicted(), REFERENCE).value == pytest.approx(0.89)


def test_the_worst_verdict_counts():
    kinds = ("meets", "cannot tell", "does not meet")
    asked = require("size", 1.0)
    for some in itertools.product(kinds, repeat=3):
        worst = max(some, key=kinds.index)
        assert overall([Met(requirement=asked, verdict=v) for v in some]) == worst
    assert overall([]) == "meets"


def test_how_far_a_limit_is_missed_is_a_share_of_it():
    # 12 ms against 10, and 89 % against 95.
    late = met(require("latency", 0.010), predicted(), REFERENCE)
    assert excess(late) == pytest.approx(0.2)
    low = met(require("accuracy_floor", 0.95), predicted(), REFERENCE)
    assert excess(low) == pytest.approx(0.06 / 0.95)
    assert excess(met(require("latency", 0.1), predicted(), REFERENCE)) == 0
    # No points may be lost, and one is.
    assert excess(met(require("accuracy_drop", 0.0), predicted(), REFERENCE)) == pytest.approx(1.0)


def test_the_front_is_what_no_other_point_beats():
    points = [(1.0, 5.0, 3.0), (2.0, 4.0, 3.0), (2.0, 5.0, 3.0), (1.0, 5.0, 3.0), (3.0, 3.0, 9.0)]
    # The third is beaten by the first; equal ones stay both.
    assert front(points) == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(0.55, "meets"), (0.54, "cannot tell"), (0.46, "cannot tell"), (0.44, "does not meet")],
)
def test_a_relative_latency_is_judged_by_the_ratio_and_not_by_what_both_share(limit, verdict):
    # The times are known within a factor of three either way, their ratio within a tenth.
    open_ = {"latency_s": Estimate(value=0.006, low=0.002, high=0.018)}
    half = predicted(latency_ratio=Estimate(value=0.5, low=0.45, high=0.55), **open_)
    found = met(require("latency", limit, relative=True, percentile=99), half, REFERENCE)
    assert found.verdict == verdict
    assert (found.low, found.value, found.high) == (0.45, 0.5, 0.55)


def test_the_original_takes_exactly_what_it_takes():
    found = met(require("latency", 1.0, relative=True), predicted(), REFERENCE)
    assert (found.verdict, found.low, found.high) == ("meets", 1.0, 1.0)
    assert met(require("latency", 0.99, relative=True), predicted(), REFERENCE).verdict == (
        "does not meet"
    )
