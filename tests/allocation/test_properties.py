"""What holds for every knapsack, and the whole front of one against ``solve``."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.allocation import knapsack
from harness.allocation.knapsack import front, solve
from harness.allocation.reduction import decimals, quantum
from harness.errors import InfeasibleBudget
from tests.allocation.test_knapsack import hard_instance, total
from tests.benchmarks.knapsacks import FAMILIES, network, pisinger

AMOUNT = st.floats(-10, 10).map(lambda x: round(x, 2))


@st.composite
def instances(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    n_budgets = draw(st.sampled_from([1, 1, 1, 2]))

    def table():
        return [draw(st.lists(AMOUNT, min_size=n, max_size=n)) for n in sizes]

    costs = [table() for _ in range(n_budgets)]
    # A budget at or above the first option of every group can always be met.
    slack = st.floats(0, 20)
    return table(), costs, [total(t, [0] * len(sizes)) + draw(slack) for t in costs]


@settings(max_examples=100, deadline=None)
@given(instances(), st.floats(0, 10))
def test_loosening_a_budget_never_worsens(instance, more):
    values, costs, budgets = instance
    tight = solve(values, costs, budgets)
    assert solve(values, costs, [b + more for b in budgets]).objective <= tight.objective + 1e-9


@settings(max_examples=100, deadline=None)
@given(instances(), st.randoms(use_true_random=False))
def test_permuting_the_groups_changes_nothing(instance, rng):
    values, costs, budgets = instance
    order = list(range(len(values)))
    rng.shuffle(order)
    other = solve([values[i] for i in order], [[t[i] for i in order] for t in costs], budgets)
    assert other.objective == pytest.approx(solve(values, costs, budgets).objective, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(instances(), st.data())
def test_adding_an_option_never_worsens(instance, data):
    values, costs, budgets = instance
    before = solve(values, costs, budgets)
    group = data.draw(st.integers(0, len(values) - 1))
    for table in (values, *costs):
        table[group] = [*table[group], data.draw(AMOUNT)]
    assert solve(values, costs, budgets).objective <= before.objective + 1e-9


@settings(max_examples=100, deadline=None)
@given(instances(), st.integers(-30, 30), st.floats(0.001, 1000))
def test_scaling_changes_nothing(instance, power, factor):
    # A power of two scales floats exactly, so that the same choices stay within the budgets.
    values, costs, budgets = instance
    before = solve(values, costs, budgets)
    by = 2.0**power
    after = solve(
        [[factor * v for v in row] for row in values],
        [[[by * c for c in row] for row in table] for table in costs],
        [by * b for b in budgets],
    )
    assert after.objective == pytest.approx(factor * before.objective, abs=1e-9 * factor)


@settings(max_examples=100, deadline=None)
@given(instances(), st.data())
def test_no_budget_is_exceeded_and_ties_hold(instance, data):
    values, costs, budgets = instance
    by_size = {}
    for group, row in enumerate(values):
        by_size.setdefault(len(row), []).append(group)
    tied = [tuple(groups) for groups in by_size.values() if data.draw(st.booleans())]
    found = solve(values, costs, budgets, tied=tied)  # all first options are always within
    for table, budget, cost in zip(costs, budgets, found.costs, strict=True):
        assert cost == total(table, found.choice) <= budget
    assert all(len({found.choice[group] for group in tie}) == 1 for tie in tied)
    assert found.bound <= found.objective


def all_sums(rows):
    """The sums of all choices of integers: exact."""
    sums = np.zeros(1)
    for row in rows:
        sums = np.add.outer(sums, np.array(row)).ravel()
    return sums


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("states", [3, 20_000])
def test_families_agree_with_brute_force_at_any_budget(family, states, monkeypatch):
    # With three partial sums the bound is what is tested: integers sharpen it.
    monkeypatch.setattr(knapsack, "_MAX_STATES", (states,))
    rng = random.Random(7)
    for seed in range(25):
        instance = pisinger(family, 5, 5, seed, largest=rng.choice([20, 1000]))
        values, costs = all_sums(instance.values), all_sums(instance.costs)
        budget = float(rng.randint(int(costs.min()), int(costs.max())))
        found = solve(instance.values, [instance.costs], [budget])
        best = values[costs <= budget].min()
        assert found.bound <= best <= found.objective
        assert found.costs[0] <= budget
        if states > 3 or found.gap == 0:
            assert found.objective == best == found.bound


def by_every_cost(instance, budget):
    """The optimum by a table over every whole cost: nothing of it is shared with ``solve``."""
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    for values, costs in zip(instance.values, instance.costs, strict=True):
        after = np.full(budget + 1, np.inf)
        for value, cost in zip(values, costs, strict=True):
            c = int(cost)
            after[c:] = np.minimum(after[c:], best[: budget + 1 - c] + value)
        best = after
    return best.min()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree_with_a_table_over_every_cost(family):
    rng = random.Random(8)
    for seed in range(8):
        instance = pisinger(family, 40, 8, seed, largest=rng.choice([15, 120]))
        low, high = (sum(f(row) for row in instance.costs) for f in (min, max))
        budget = int(low + rng.random() * (high - low))
        found = solve(instance.values, [instance.costs], [float(budget)])
        assert found.objective == found.bound == by_every_cost(instance, budget)


def test_strongly_correlated_instances_are_proven_by_the_grid_they_lie_on():
    # Values plus costs are multiples of ten here. Without that the relaxation's bound stays 8
    # below the optimum, and partial sums without number lie in between.
    instance = pisinger("strong", 200, 10, 0)
    assert solve(instance.values, [instance.costs], [instance.budget]).gap == 0.0


@pytest.mark.parametrize(
    ("numbers", "size", "step"),
    [
        ([6.0, -9.0, 0.0], 30.0, 3.0),
        ([0.375, 0.25], 1.0, 0.125),
        ([1e20, 2e20], 3e20, 1e20),
        ([0.0, 0.0], 0.0, 1.0),
        ([0.1, 0.2], 1.0, None),  # their sums round: last bits of 2**-55 and 2**-54
        ([1.0, 2.0**-51], 2.0, None),
    ],
)
def test_quantum_is_what_all_numbers_are_multiples_of(numbers, size, step):
    assert quantum(np.array(numbers), size) == step


@pytest.mark.parametrize(
    ("numbers", "parts"),
    [([0.1, 2.5], 10), ([0.25, 3.0], 1), ([0.07, -12.3], 100), ([1 / 3], 1), ([0.1, 1e15], 1)],
)
def test_decimals_are_told_by_their_digits(numbers, parts):
    # Quarters are exact as they are; 1e16 tenths are more than floats count one by one.
    assert decimals(np.array(numbers), sum(map(abs, numbers))) == parts


@pytest.mark.parametrize("family", FAMILIES)
def test_decimal_tables_are_solved_as_the_integers_that_they_stand_for(family):
    instance = pisinger(family, 30, 8, 3)
    whole = solve(instance.values, [instance.costs], [instance.budget])
    found = solve(
        [[v / 10 for v in row] for row in instance.values],
        [[[c / 100 for c in row] for row in instance.costs]],
        [instance.budget / 100 + 1e-9],  # so that no rounding of the sums matters
    )
    assert found.objective == pytest.approx(whole.objective / 10, rel=1e-12)
    assert found.gap == 0.0
    assert found.bound <= found.objective


def test_proven_bounds_are_below_by_the_rounding_only():
    found = solve([[0.3, 0.1], [0.7, 0.2]], [[[0.1, 0.3], [0.1, 0.3]]], [0.4])
    assert (found.choice, found.gap) == ((0, 1), 0.0)  # 0.5 and not 0.8
    assert 0 < found.objective - found.bound < 1e-13
    whole = solve([[3, 1], [7, 2]], [[[1, 3], [1, 3]]], [4])
    assert (whole.objective, whole.bound, whole.gap) == (5.0, 5.0, 0.0)


# --- the whole front ----------------------------------------------------------------------------


def brute_force_front(values, costs, tied=()):
    """All undominated (cost, objective), the loosest first."""
    points = set()
    for choice in itertools.product(*(range(len(row)) for row in values)):
        if all(choice[tie[0]] == choice[group] for tie in tied for group in tie):
            points.add((total(costs, choice), total(values, choice)))
    best, found = math.inf, []
    for cost, objective in sorted(points):
        if objective < best:
            best = objective
            found.append((cost, objective))
    return found[::-1]


@pytest.mark.parametrize("seed", range(4))
def test_the_front_agrees_with_brute_force(seed):
    rng = random.Random(300 + seed)
    for _ in range(100):
        sizes = [rng.randint(1, 5) for _ in range(rng.randint(1, 5))]
        tied = [(0, 2)] if len(sizes) > 2 and rng.random() < 0.3 else []
        for _, other in tied:
            sizes[other] = sizes[0]
        # Eighths: negative, zero and equal numbers, and sums without rounding.
        values, costs = ([[rng.randint(-8, 40) / 8 for _ in range(n)] for n in sizes] for _ in "vc")
        points = front(values, costs, tied=tied)
        assert [(p.costs[0], p.objective) for p in points] == brute_force_front(values, costs, tied)
        assert all(p.gap == 0.0 and p.bound == p.objective for p in points)
        for p in points:
            assert (p.costs[0], p.objective) == (total(costs, p.choice), total(values, p.choice))
            assert all(p.choice[a] == p.choice[b] for a, b in tied)


@settings(max_examples=60, deadline=None)
@given(instances(), st.lists(st.floats(0, 30), min_size=3, max_size=3))
def test_the_front_holds_what_solve_finds_at_any_budget(instance, slacks):
    values, (costs, *_), _ = instance
    points = front(values, costs)
    for before, after in itertools.pairwise(points):
        assert before.costs[0] > after.costs[0]
        assert before.objective < after.objective
    for slack in slacks:
        budget = points[-1].costs[0] + slack
        taken = next(p for p in points if p.costs[0] <= budget)
        best = solve(values, [costs], [budget])
        assert taken.objective == pytest.approx(best.objective, abs=1e-9)
    with pytest.raises(InfeasibleBudget):
        solve(values, [costs], [points[-1].costs[0] - 1e-6])


def check_front_bounds(points, values, costs):
    """Each bound holds up to the next looser allocation's cost; how many gaps are open."""
    for looser, point in itertools.pairwise(points):
        for share in (0.0, 0.5, 1 - 1e-9):
            budget = point.costs[0] + share * (looser.costs[0] - point.costs[0])
            best = solve(values, [costs], [budget])
            assert point.costs[0] <= budget
            assert point.bound <= best.objective * (1 + 1e-12)
            assert best.objective <= point.objective * (1 + 1e-12)
            if point.gap == 0:
                assert best.objective == pytest.approx(point.objective, rel=1e-12)
    return sum(p.gap > 0 for p in points)


def test_a_front_without_time_has_the_corners_and_states_its_gaps():
    instance = network(8, 6, 1)
    ticks = itertools.count()
    points = front(
        instance.values,
        instance.costs,
        time_limit_s=0.5,
        clock=lambda: float(next(ticks)),
    )
    assert len(points) < 8 * 5 + 1
    assert check_front_bounds(points, instance.values, instance.costs) > len(points) / 2


def test_a_front_of_few_partial_sums_states_its_gaps(monkeypatch):
    monkeypatch.setattr(knapsack, "_FRONT_STATES", (5, 40))
    instance = network(8, 6, 2)
    points = front(instance.values, instance.costs)
    assert check_front_bounds(points, instance.values, instance.costs) > 0


def test_a_front_of_few_points_states_what_was_left_out():
    instance = network(8, 6, 3)
    whole = front(instance.values, instance.costs)
    assert all(p.gap == 0 for p in whole)
    few = front(instance.values, instance.costs, max_points=12)
    assert 6 < len(few) <= 12 < len(whole)
    assert (few[0], few[-1].costs) == (whole[0], whole[-1].costs)
    assert check_front_bounds(few, instance.values, instance.costs) > 6
    # Thinned for equal gaps: no step between the allocations shown is much larger than the rest.
    gaps = sorted(p.gap for p in few)
    assert gaps[-1] < 5 * gaps[len(gaps) // 2]


def test_a_front_of_one_choice_is_that_choice():
    (only,) = front([[2.0], [3.0, 4.0]], [[1.0], [1.0, 2.0]])
    assert (only.choice, only.costs, only.objective, only.gap) == ((0, 0), (2.0,), 5.0, 0.0)


def test_bounds_hold_whenever_the_clock_stops():
    values, costs, budgets = hard_instance(30, 6, 5)
    exact = solve(values, costs, budgets)
    assert exact.gap == 0
    for ticks_left in range(1, 30, 4):
        ticks = itertools.count()
        found = solve(
            values, costs, budgets, time_limit_s=ticks_left, clock=lambda t=ticks: float(next(t))
        )
        assert found.bound <= exact.objective <= found.objective
        assert found.costs[0] <= budgets[0]
