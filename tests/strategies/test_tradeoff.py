"""The front of a chain: every point against the best by trying all."""

import itertools

import pytest

from harness.records import Front, Option, dump, load
from harness.strategies import tabled
from harness.strategies.requirements import Limits
from harness.strategies.tradeoff import trade_off
from tests.strategies.chains import limits_at, problem


def front(seed=4, *, limits=None, candidates=None, options_of=None, **more):
    costs, options, sensitivities = problem(seed, coupled=True)
    options = options_of(options) if options_of else options
    limits = limits or limits_at(costs, 0.4, 0.5)
    found = trade_off(costs, options, sensitivities, limits, candidates=candidates or {}, **more)
    return found, costs, options, sensitivities


def points_of(found, approach):
    return [p for p in found.points if p.approach == approach]


def test_the_points_are_the_best_for_their_limits():
    found, costs, options, sensitivities = front(points=5)
    names = [g.name for g in costs.groups]
    every = []
    for choice in itertools.product(*(range(len(options[n])) for n in names)):
        price = costs.costs({n: options[n][j] for n, j in zip(names, choice, strict=True)})
        loss = sum(sensitivities.values[n][j] for n, j in zip(names, choice, strict=True))
        every.append((price.latency_s, price.size_bytes, loss))
    exact = points_of(found, "coupled")
    assert len(exact) == 5
    for point in exact:
        assert point.fits
        best = min(
            loss
            for latency, size, loss in every
            if latency <= point.limit_s * (1 + 1e-9) and size <= found.size_limit_bytes
        )
        assert point.loss == pytest.approx(best, rel=2e-3)
        assert point.gap <= 1e-3
    # From the least that is reached to the best of any latency, in even ratios.
    within = [(loss, latency) for latency, size, loss in every if size <= found.size_limit_bytes]
    assert exact[0].limit_s == pytest.approx(min(latency for _, latency in within), rel=1e-6)
    assert exact[-1].loss == pytest.approx(min(within)[0], rel=2e-3)
    limits = [p.limit_s for p in exact]
    assert limits[1] / limits[0] == pytest.approx(limits[4] / limits[3])


def test_no_simpler_way_is_better_where_it_keeps_the_limits():
    found, *_ = front(points=6)
    best = {p.limit_s: p.loss for p in points_of(found, "coupled")}
    for approach in ("separable", "greedy"):
        mine = points_of(found, approach)
        assert mine
        for point in mine:
            if point.fits:
                assert point.loss >= best[point.limit_s] * (1 - 2e-3)


def test_networks_that_were_built_are_priced_like_the_points():
    narrow = {f"g{i}": Option(channels=16, precision="int8") for i in range(4)}
    found, costs, _, sensitivities = front(points=2, candidates={"joint 1": narrow})
    (placed,) = found.candidates
    assert placed.label == "joint 1"
    assert placed.latency_s == pytest.approx(costs.costs(narrow).latency_s)
    options = sensitivities.options
    assert placed.loss == pytest.approx(
        sum(sensitivities.values[n][options[n].index(o)] for n, o in narrow.items())
    )


def test_a_size_out_of_reach_is_raised_to_what_is_reached():
    found, costs, *_ = front(points=3, limits=Limits(latency_s=None, size_bytes=1.0))
    least = costs.costs({g.name: Option(channels=8, precision="int8") for g in costs.groups})
    assert found.size_limit_bytes == pytest.approx(least.size_bytes, rel=1e-6)
    assert found.limit_s is None
    assert points_of(found, "coupled")


def test_a_size_that_leaves_one_allocation_alone_has_a_front_of_that():
    costs, *_ = problem(4, coupled=True)
    least = costs.costs({g.name: Option(channels=8, precision="int8") for g in costs.groups})
    for limit in (1.0, 1 + 1e-9, 1 + 1e-6):
        held = Limits(latency_s=None, size_bytes=limit * least.size_bytes)
        found, *_ = front(points=3, limits=held)
        reached = {(p.latency_s, p.size_bytes) for p in points_of(found, "coupled")}
        assert reached == {(least.latency_s, least.size_bytes)}


def test_without_a_choice_there_is_a_note_and_no_point():
    found, *_ = front(options_of=lambda options: {n: o[-1:] for n, o in options.items()})
    assert found.points == ()
    assert "nothing to allocate" in found.note


def test_limits_that_no_time_is_left_for_are_left_out_and_that_is_said():
    ticks = itertools.count()
    # A quarter of a second a look at the clock: at 0 it begins, and is up at 10.
    found, *_ = front(points=15, time_limit_s=10.0, clock=lambda: next(ticks) / 4)
    assert 0 < len(points_of(found, "coupled")) < 15
    assert "of 15 limits were solved in 10 s" in found.note
    # What there is lies between both ends, not at one of them.
    limits = [p.limit_s for p in points_of(found, "coupled")]
    assert limits == sorted(limits)
    assert limits[-1] > 1.3 * limits[0]


def test_a_front_that_is_too_hard_says_so(monkeypatch):
    monkeypatch.setattr(tabled, "LARGEST_GAP", -1.0)
    found, costs, *_ = front(points=3)
    assert costs.narrow
    assert found.points == ()
    assert found.note.startswith("No front was worked out: the allocation found in time is within")


def test_a_front_survives_its_file():
    found, *_ = front(points=2)
    assert load(Front, dump(found)) == found
