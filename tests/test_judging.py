"""The loop's decisions, on candidates made by hand: when to stop, and which round wins."""

import dataclasses

from harness import judging, units
from tests.strategies.test_requirements import BASELINE, candidate

# At most 22 % of the latency, 20 % of 5000 bytes, one point of 93 %.
BUDGETS = (
    units.parse_latency("22%"),
    units.parse_size("20%"),
    units.parse_accuracy_drop(1.0),
)


def best(*candidates):
    return min(candidates, key=lambda c: judging.rank(BUDGETS, c, BASELINE))


def test_a_round_that_surely_meets_wins_over_a_more_accurate_one_that_may_not():
    sure = candidate(ratio=0.15, top1=0.921)
    unsure = candidate(ratio=0.219, top1=0.929)
    assert best(unsure, sure) == sure


def test_among_rounds_that_meet_every_budget_the_most_accurate_wins():
    fast, accurate = candidate(ratio=0.15, top1=0.921), candidate(ratio=0.2, top1=0.925)
    assert best(fast, accurate) == accurate


def test_where_none_meets_the_smallest_excess_wins():
    assert best(candidate(ratio=0.4), candidate(ratio=0.25)).ratio == 0.25


def test_two_budgets_nearly_kept_win_over_one_kept_and_the_other_far_away():
    kept, near = candidate(ratio=0.15, top1=0.2), candidate(ratio=0.24, top1=0.91)
    assert best(kept, near) == near


def test_without_a_point_to_lose_what_loses_fewer_wins():
    budgets = (units.parse_accuracy_drop(0.0),)
    few, many = candidate(ratio=0.15, top1=0.92), candidate(ratio=0.1, top1=0.9)
    assert min((many, few), key=lambda c: judging.rank(budgets, c, BASELINE)) == few


def test_a_budget_met_with_much_to_spare_asks_for_another_round():
    # 0.15 of 0.22 and 600 of 1000 bytes are both below 93 % of their budgets.
    assert not judging.settled(BUDGETS, candidate(ratio=0.15, size=600), BASELINE)
    # 0.21 of 0.22 is 95 %.
    assert judging.settled(BUDGETS, candidate(ratio=0.21, size=600), BASELINE)
    assert not judging.settled(BUDGETS, candidate(ratio=0.25, size=600), BASELINE)


def test_only_a_limit_inside_an_interval_asks_for_more_measuring():
    assert not judging.decided(BUDGETS, candidate(ratio=0.219), BASELINE)
    assert judging.decided(BUDGETS, candidate(ratio=0.25), BASELINE)
    # No further timing can tell an accuracy that is not known.
    assert judging.decided(BUDGETS, dataclasses.replace(candidate(), top1=None), BASELINE)
