"""The simpler ways to allocate, on chains small enough to try everything."""

import itertools

import pytest

from harness.errors import BoardfitError
from harness.strategies import baselines
from harness.strategies.allocator import full_choice, tabled_around, values_of
from tests.strategies.chains import problem


def tabled(seed, **more):
    costs, options, sensitivities = problem(seed, **more)
    names = tuple(group.name for group in costs.groups)
    full = full_choice(names, options)
    values = values_of(names, options, sensitivities)
    return tabled_around(costs, options, values, full), full


def test_a_single_move_adds_what_the_tables_say():
    found, _ = tabled(0, coupled=True)
    start = (1, 4, 2, 3)
    moves = baselines.single_moves(found, start)
    here = found.amounts(start)
    for group, values in enumerate(found.values):
        for option in range(len(values)):
            moved = (*start[:group], option, *start[group + 1 :])
            there = found.amounts(moved)
            assert moves.latency_s[group][option] == pytest.approx(
                there.latency_s - here.latency_s, abs=1e-12
            )
            assert moves.size_bytes[group][option] == pytest.approx(
                there.size_bytes - here.size_bytes
            )
            assert moves.loss[group][option] == pytest.approx(found.loss(moved) - found.loss(start))


def test_a_separable_problem_that_is_not_solved_in_time_has_no_answer(monkeypatch):
    def too_slow(*_, **__):
        raise BoardfitError("HiGHS found no allocation: time limit reached; allow more time")

    found, full = tabled(0, coupled=True)
    monkeypatch.setattr(baselines.knapsack, "solve", too_slow)
    assert baselines.separable(found, full, latency_s=1.0, size_bytes=1e9) is None


@pytest.mark.parametrize("seed", range(4))
def test_where_no_costs_are_coupled_the_separable_way_is_the_best(seed):
    found, full = tabled(seed, coupled=False)
    limit = 0.45 * found.amounts(full).latency_s
    choice = baselines.separable(found, full, latency_s=limit, size_bytes=None)
    fitting = (
        c
        for c in itertools.product(*(range(len(v)) for v in found.values))
        if found.amounts(c).latency_s <= limit
    )
    assert found.loss(choice) == pytest.approx(min(map(found.loss, fitting)))


def test_where_costs_are_coupled_the_separable_way_misses_its_limit():
    # Around the full network a layer's saving counts the full width of its input, and that of the
    # next one as well: two neighbours at a half save a half each, where together it is less.
    found, full = tabled(1, coupled=True)
    limit = 0.4 * found.amounts(full).latency_s
    choice = baselines.separable(found, full, latency_s=limit, size_bytes=None)
    assert found.amounts(choice).latency_s > limit


def test_a_limit_out_of_reach_has_no_separable_allocation():
    found, full = tabled(1, coupled=False)
    assert baselines.separable(found, full, latency_s=1e-6, size_bytes=None) is None


@pytest.mark.parametrize("coupled", [False, True])
def test_greedy_keeps_both_limits_and_is_no_better_than_the_best(coupled):
    found, full = tabled(2, coupled=coupled)
    whole = found.amounts(full)
    greedy = baselines.Greedy(found, full)
    for share in (0.7, 0.4):
        limits = share * whole.latency_s, 0.3 * whole.size_bytes
        choice = greedy.allocate(latency_s=limits[0], size_bytes=limits[1])
        taken = found.amounts(choice)
        assert taken.latency_s <= limits[0]
        assert taken.size_bytes <= limits[1]
        assert found.minimise(*limits).objective <= found.loss(choice) * (1 + 1e-9)


def test_greedy_takes_the_cheapest_move_first():
    found, full = tabled(3, coupled=False)
    moves = baselines.single_moves(found, full)
    price = {
        (group, option): moves.loss[group][option] / -saved
        for group, row in enumerate(moves.latency_s)
        for option, saved in enumerate(row)
        if saved < 0
    }
    group, option = min(price, key=price.get)
    just_below = found.amounts(full).latency_s * (1 - 1e-9)
    choice = baselines.Greedy(found, full).allocate(latency_s=just_below, size_bytes=None)
    assert choice == (*full[:group], option, *full[group + 1 :])


def test_greedy_gives_up_where_no_move_saves_or_time_is_up():
    found, full = tabled(0, coupled=True)
    greedy = baselines.Greedy(found, full)
    assert greedy.allocate(latency_s=1e-6, size_bytes=None) is None
    half = 0.5 * found.amounts(full).latency_s
    assert greedy.allocate(latency_s=half, size_bytes=None, out_of_time=lambda: True) is None
