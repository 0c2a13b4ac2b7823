import math
from dataclasses import replace

import pytest
from scipy import stats

from harness.planning import choosing
from harness.planning.choosing import Offer, choose, price_of_missing
from harness.records import Requirements
from tests.report import plans

# Half of a two-sided 90 % interval, in standard deviations.
HALF = 1.6448536269514722


def offer(name, latency_s, spread, worth=None):
    width = math.exp(HALF * spread)
    return Offer(
        name=name,
        latency_s=latency_s,
        low_s=latency_s / width,
        high_s=latency_s * width,
        worth=worth,
    )


def chance(limit_s, latency_s, spread):
    return stats.norm.cdf(math.log(limit_s / latency_s) / spread)


def test_a_spread_is_the_intervals_half_width_over_its_quantile():
    assert offer("a", 2.0, 0.1).spread == pytest.approx(0.1)


def test_the_chances_of_two_offers_are_those_of_their_distributions():
    offers = [offer("fast", 1.0, 0.1), offer("slow", 2.0, 0.1)]
    found = choose(offers, 2.2)
    # The slow one keeps 2.2 s if its error stays below ln 1.1 = 0.0953, that is 0.953 spreads.
    assert found.name == "slow"
    assert found.meets == pytest.approx(chance(2.2, 2.0, 0.1))
    assert found.meets == pytest.approx(0.8297, abs=1e-4)
    # Nothing is worth more, so whenever it keeps the limit it is the best that does.
    assert found.best == found.meets
    assert found.verdict == "cannot tell"


def test_an_offer_is_best_where_it_keeps_the_limit_and_none_of_more_worth_does():
    offers = [offer("fast", 1.0, 0.1), offer("slow", 2.0, 0.1)]
    found = choose(offers, 1.8)
    assert found.name == "fast"
    assert found.meets == pytest.approx(1.0, abs=1e-6)
    assert found.best == pytest.approx(1.0 - chance(1.8, 2.0, 0.1))
    assert found.verdict == "meets"


def test_worth_counts_and_not_speed_where_it_is_given():
    offers = [offer("small", 1.0, 0.05, worth=70.0), offer("large", 1.5, 0.05, worth=60.0)]
    assert choose(offers, 3.0).name == "small"


def test_where_nothing_can_keep_the_limit_the_likeliest_is_taken_and_told():
    offers = [offer("slow", 2.0, 0.05), offer("fast", 1.0, 0.05)]
    found = choose(offers, 0.5)
    assert (found.name, found.index) == ("fast", 1)
    assert found.verdict == "does not meet"


def test_measured_offers_are_chosen_as_a_table_would():
    exact = [
        Offer(name=str(t), latency_s=t, low_s=t, high_s=t, worth=t) for t in (1.0, 2.0, 3.0, 4.0)
    ]
    for limit_s in (1.0, 1.5, 2.0, 3.9, 4.0, 9.0):
        assert float(choose(exact, limit_s).name) == min(math.floor(limit_s), 4)


def test_missing_costs_nothing_where_the_predictions_are_tight():
    assert price_of_missing([offer("a", 1.0, 0.01), offer("b", 2.0, 0.01)]) == 0.0


def test_missing_costs_more_the_more_often_the_limit_is_to_be_kept():
    offers = [offer(str(t), t, 0.2) for t in (1.0, 1.3, 1.7, 2.2)]
    prices = [price_of_missing(offers, wanted=wanted) for wanted in (0.8, 0.9, 0.95)]
    assert prices == sorted(prices)
    assert prices[-1] > prices[0]


@pytest.mark.parametrize("wanted", [0.85, 0.88, 0.95])
def test_over_limits_on_the_logarithm_the_rule_keeps_the_share_that_was_asked_for(wanted):
    times = (1.0, 1.3, 1.7, 2.2)
    offers = [offer(str(t), t, 0.2) for t in times]
    # Other limits than those that the price was found on.
    limits = [2.2 ** ((i + 0.5) / 75) for i in range(75)]
    kept = sum(choose(offers, limit_s, wanted=wanted).meets for limit_s in limits) / len(limits)
    # The fastest is the likeliest to keep any limit: no rule keeps more than it does.
    most = sum(chance(limit_s, 1.0, 0.2) for limit_s in limits) / len(limits)
    free = sum(choose(offers, limit_s, wanted=0.01).meets for limit_s in limits) / len(limits)
    assert free < 0.85 < 0.88 < most < 0.95
    # The share has steps, an offer's worth of limits each, so that it can be more than asked for.
    assert min(wanted, most) - 0.01 <= kept <= min(wanted + 0.03, most + 1e-9)


def test_no_rule_that_holds_one_quantile_to_the_limit_finds_the_best_more_often():
    """The Lagrangian's optimum against every threshold that keeps the same share."""
    offers = [offer(str(t), t, s) for t, s in ((1.0, 0.05), (1.3, 0.3), (1.7, 0.1), (2.2, 0.2))]
    limits = [2.2 ** ((i + 0.5) / 150) for i in range(150)]
    ours = [choose(offers, limit_s) for limit_s in limits]
    kept = sum(choice.meets for choice in ours)
    found = sum(choice.best for choice in ours)
    rivals = 0
    for quantile in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        meets = best = 0.0
        for limit_s in limits:
            chances = [chance(limit_s, o.latency_s, o.spread) for o in offers]
            allowed = [i for i, value in enumerate(chances) if value >= quantile]
            taken = max(allowed, default=0)
            meets += chances[taken]
            best += max(chances[taken] - max(chances[taken + 1 :], default=0.0), 0.0)
        if meets >= kept - 1e-9:
            rivals += 1
            assert best <= found + 1e-9
    assert rivals


def test_nothing_to_choose_and_no_limit_are_errors():
    with pytest.raises(ValueError, match="nothing to choose"):
        choose([], 1.0)
    with pytest.raises(ValueError, match="positive"):
        choose([offer("a", 1.0, 0.1)], 0.0)
    with pytest.raises(ValueError, match="a: "):
        Offer(name="a", latency_s=1.0, low_s=1.1, high_s=1.2)
    with pytest.raises(ValueError, match="coverage"):
        Offer(name="a", latency_s=1.0, low_s=0.9, high_s=1.2, coverage=1.0)


def test_the_share_wanted_is_that_of_the_requirement():
    assert choosing.WANTED == 0.9


def test_of_a_plan_the_likeliest_best_is_taken_among_what_keeps_everything_else():
    plan = plans.plan()
    # Under 40 ms all strategies are fast enough; below 3 MB and one point only one is not out.
    assert choosing.of_plan(plan).name == "prune and int8, 40 ms"
    limits = (replace(plans.LATENCY, limit=0.020),)
    fast = plans.plan(limits=limits)
    chosen = choosing.of_plan(fast)
    # int8 everywhere loses least and is predicted at 20.6 ms, 10 % too slow as often as not; what
    # loses less than 1 point and is fast enough is pruned by allocation, at 18.0 ms.
    assert chosen.name == "prune by allocation"
    assert fast.strategies[chosen.index].name == chosen.name
    # A tenth each way at 90 %: ln(20 / 18) is 0.105, ln(1.1) / 1.645 = 0.0579 the spread.
    spread = math.log(1.1) / HALF
    value = fast.strategies[chosen.index].predicted.latency_s.value
    assert chosen.meets == pytest.approx(chance(0.020, value, spread))


def test_of_a_plan_without_accuracy_the_slowest_that_fits_is_worth_most():
    plan = plans.plan(accuracy=False, limits=(plans.LATENCY,))
    slowest = max(plan.strategies, key=lambda one: one.predicted.latency_s.value)
    assert choosing.of_plan(plan).name == slowest.name
    small = replace(plan, requirements=Requirements(limits=(plans.LATENCY,), objective={"size": 1}))
    assert choosing.of_plan(small).name == "prune to 25 % and int8"


def test_of_a_plan_without_a_latency_there_is_nothing_to_bet_on():
    assert choosing.of_plan(plans.plan(limits=(plans.SIZE,))) is None
    assert choosing.of_plan(plans.plan(latency=False)) is None
    nothing = plans.plan(limits=(plans.LATENCY, replace(plans.SIZE, limit=10.0)))
    assert choosing.of_plan(nothing) is None
    # What is known of the original's percentile is no interval of it.
    tail = replace(plans.LATENCY, percentile=90)
    assert choosing.of_plan(plans.plan(limits=(tail,))) is None


def test_of_a_plan_the_objective_weighs_accuracy_and_latency():
    plan = plans.plan(limits=(plans.LATENCY,))
    fits = [one for one in plan.strategies if one.predicted.latency_s.high <= plans.LATENCY.limit]
    fastest = min(fits, key=lambda one: one.predicted.latency_s.value)
    mildest = min(fits, key=lambda one: one.predicted.accuracy_drop.value)
    assert fastest.name != mildest.name
    for objective, wanted in (
        ({"accuracy": 1.0}, mildest),
        ({"accuracy": 1e-3, "latency": 1.0}, fastest),
    ):
        asked = Requirements(limits=(plans.LATENCY,), objective=objective)
        assert choosing.of_plan(replace(plan, requirements=asked)).name == wanted.name
