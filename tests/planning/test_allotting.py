"""Allocations within limits, against every allocation of a small network priced from scratch."""

import itertools
import math

import pytest

from harness.errors import BoardfitError, ConfigError
from harness.planning.verdicts import Reference
from harness.planning.within import limits_of, within
from harness.records import Requirements
from tests.planning.tiny import CPU, TENSORRT, Branches, require


@pytest.fixture(scope="module", params=[(CPU, ("fp32", "int8")), (TENSORRT, ("fp32", "fp16"))])
def branches(request):
    return Branches(*request.param)


def everything(branches):
    return branches.subject.allotter.allowed(lambda *_: True)


def test_amounts_are_what_pricing_from_scratch_says(branches):
    allotter = branches.subject.allotter
    assert len(branches.every) > 50
    for choice in branches.every[:: len(branches.every) // 40]:
        price = branches.costs.costs(choice)
        assert allotter.amount("latency", choice) == price.upper_s
        assert allotter.amount("size", choice) == pytest.approx(price.size_bytes, rel=1e-9)
        assert allotter.amount("macs", choice) == pytest.approx(price.macs, rel=1e-9)
        assert allotter.loss(choice) == pytest.approx(branches.score(choice))


def test_parameters_are_the_fp32_files_whatever_the_precision(branches):
    allotter = branches.subject.allotter
    whole = allotter.full()
    lowest = {
        name: max((o for o in own if o.precision != "fp32"), key=lambda o: o.channels)
        for name, own in branches.options.items()
    }
    amount = allotter.amount("parameters", whole)
    assert allotter.amount("parameters", lowest) == pytest.approx(amount)
    # The folded weights of the network, and a bias a channel.
    biases = sum(group.channels * len(group.producers) for group in branches.groups)
    assert amount == pytest.approx(branches.price(whole).parameters + biases)


def between(branches, quantity, place):
    """A limit that so large a share of all allocations keeps."""
    amounts = sorted(branches.subject.allotter.amount(quantity, c) for c in branches.every)
    return amounts[int(place * (len(amounts) - 1))] * (1 + 1e-6)


@pytest.mark.parametrize(
    ("latency", "size", "macs", "parameters"),
    [
        (0.3, None, None, None),
        (None, 0.1, None, None),
        (0.5, 0.3, None, None),
        (0.01, 0.01, None, None),
        (None, None, 0.2, None),
        (None, None, None, 0.4),
        (0.6, None, 0.5, 0.5),
    ],
)
def test_the_mildest_allocation_within_limits_is_found(branches, latency, size, macs, parameters):
    allotter = branches.subject.allotter
    places = {"latency": latency, "size": size, "macs": macs, "parameters": parameters}
    limits = {
        quantity: between(branches, quantity, place)
        for quantity, place in places.items()
        if place is not None
    }
    prices = [branches.costs.costs(choice) for choice in branches.every]
    widest = max(price.upper_s / price.latency_s for price in prices)

    def taken(quantity, choice):
        """Of the latency what keeps its limit however wide the bound is."""
        if quantity == "latency":
            return branches.costs.costs(choice).latency_s * widest
        return allotter.amount(quantity, choice)

    keeping = [
        choice
        for choice in branches.every
        if all(taken(quantity, choice) <= limit for quantity, limit in limits.items())
    ]
    try:
        found = allotter.best(everything(branches), limits)
    except BoardfitError:
        assert not keeping
        return
    assert all(allotter.amount(q, found) <= limit * (1 + 1e-9) for q, limit in limits.items())
    least = min(map(branches.score, keeping), default=math.inf)
    assert branches.score(found) <= least * (1 + 2e-3) + 1e-12


def test_only_what_is_allowed_is_taken(branches):
    allotter = branches.subject.allotter
    only = allotter.allowed(
        lambda name, option: option.precision == "fp32" or name != branches.groups[0].name
    )
    found = allotter.best(only, {"latency": between(branches, "latency", 0.9)})
    assert found[branches.groups[0].name].precision == "fp32"
    with pytest.raises(ConfigError, match="has no option left"):
        allotter.allowed(lambda _, option: option.channels > 10_000)


def held_pairs():
    return itertools.product(("latency", "size", "macs", "parameters"), repeat=2)


@pytest.mark.parametrize(("quantity", "other"), [p for p in held_pairs() if p[0] != p[1]])
def test_the_least_of_a_quantity_with_another_held_is_that_of_all_allocations(
    branches, quantity, other
):
    allotter = branches.subject.allotter
    # Half of all allocations keep it: the bound of the latency has many widths here, where nothing
    # was measured, and is met with some to spare.
    limit = between(branches, other, 1 / 2)

    def taken(choice):
        price = branches.costs.costs(choice)
        return price.latency_s if quantity == "latency" else allotter.amount(quantity, choice)

    reached = allotter.least(quantity, everything(branches), {other: limit, quantity: 1.0})
    keeping = [c for c in branches.every if allotter.amount(other, c) <= limit]
    assert not reached.alone
    assert allotter.amount(other, reached.choice) <= limit * (1 + 1e-6)
    # Raised by the least room that lets an allocation in.
    assert taken(reached.choice) == pytest.approx(min(map(taken, keeping)), rel=2e-3)
    assert reached.binding and set(reached.binding) <= set(range(len(branches.groups)))


def test_where_the_other_limit_cannot_be_held_it_is_set_aside_and_said(branches):
    allotter = branches.subject.allotter
    reached = allotter.least("macs", everything(branches), {"size": 1.0})
    assert reached.alone
    least = min(allotter.amount("macs", choice) for choice in branches.every)
    assert allotter.amount("macs", reached.choice) == pytest.approx(least, rel=1e-5)


def test_requirements_become_limits_and_what_keeps_them_is_predicted_to(branches):
    baseline = branches.price(branches.subject.allotter.full())
    reference = Reference(baseline=baseline, tails={99.0: 1.25})
    share = between(branches, "latency", 0.4) / baseline.latency_s.high
    asked = Requirements(
        limits=(
            require("latency", share * baseline.latency_s.high),
            require("size", 0.97 * baseline.size_bytes.value),
            require("accuracy_drop", 1.0),
        )
    )
    limits = limits_of(asked, branches.subject, reference)
    assert set(limits) == {"latency", "size"}
    assert limits["latency"] == pytest.approx(share * baseline.latency_s.high)
    choice = within(branches.subject, everything(branches), limits)
    price = branches.price(choice)
    assert price.latency_s.high <= share * baseline.latency_s.high * (1 + 1e-9)
    assert price.size_bytes.value <= 0.97 * baseline.size_bytes.value
    tail = Requirements(limits=(require("latency", 0.01, percentile=99),))
    assert limits_of(tail, branches.subject, reference)["latency"] == pytest.approx(0.008)


def test_a_limit_relative_to_the_original_is_a_share_of_what_the_tables_say_of_it(branches):
    whole = branches.subject.allotter.full()
    baseline = branches.price(whole)
    asked = Requirements(limits=(require("latency", 0.8, relative=True),))
    limits = limits_of(asked, branches.subject, Reference(baseline=baseline))
    assert limits == {
        "latency": pytest.approx(0.8 * branches.subject.allotter.amount("latency", whole))
    }
