"""The knapsack against brute force, against published optima, and by its properties."""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from harness.allocation import dynamic, knapsack
from harness.allocation.knapsack import front, solve
from harness.allocation.names import Names
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget

HAWQ = Path(__file__).parents[3] / "shared" / "measured" / "instances" / "hawq_v3.json"


def total(table, choice):
    return math.fsum(row[j] for row, j in zip(table, choice, strict=True))


def brute_force(values, costs, budgets, tied=()):
    """The least objective of all choices within the budgets, or None."""
    best = None
    for choice in itertools.product(*(range(len(row)) for row in values)):
        if any(choice[tie[0]] != choice[group] for tie in tied for group in tie):
            continue
        if all(total(table, choice) <= b for table, b in zip(costs, budgets, strict=True)):
            objective = total(values, choice)
            best = objective if best is None else min(best, objective)
    return best


def numbers(rng, kind):
    """One number: of a kind that makes ties, roundings, zeros and negative costs likely."""
    if kind == "whole":
        return float(rng.randint(-3, 9))
    if kind == "tenths":  # 0.1 has no exact binary form: sums round
        return rng.randint(-5, 20) / 10
    if kind == "wide":
        return rng.choice([-1, 1, 1]) * 10 ** rng.uniform(-6, 3)
    return rng.choice([0.0, rng.uniform(0, 1)])


def random_instance(rng, n_budgets):
    groups = rng.randint(1, 5)
    kinds = [rng.choice(["whole", "tenths", "wide", "zeros"]) for _ in range(n_budgets + 1)]
    sizes = [rng.randint(1, 4) for _ in range(groups)]
    tied = []
    if groups > 2 and rng.random() < 0.3:
        pair = rng.sample(range(groups), rng.choice([2, 2, 3]))
        for group in pair:
            sizes[group] = sizes[pair[0]]
        tied.append(tuple(pair))
    values, *costs = [[[numbers(rng, kind) for _ in range(n)] for n in sizes] for kind in kinds]
    if rng.random() < 0.3:  # a duplicate option
        group = rng.randrange(groups)
        if not any(group in tie for tie in tied):
            for table in (values, *costs):
                table[group].append(table[group][0])
    budgets = []
    for table in costs:
        if rng.random() < 0.5:  # exactly the cost of some choice
            budgets.append(total(table, [rng.randrange(len(row)) for row in table]))
        else:
            low, high = sum(min(r) for r in table), sum(max(r) for r in table)
            budgets.append(rng.uniform(low - 0.1 * abs(low), high))
    return values, costs, budgets, tied


def check_against_brute_force(values, costs, budgets, tied):
    """Whether there was a solution; fails if ``solve`` and brute force disagree."""
    best = brute_force(values, costs, budgets, tied)
    if best is None:
        with pytest.raises(InfeasibleBudget) as caught:
            solve(values, costs, budgets, tied=tied)
        check_nearest(costs, budgets, tied, caught.value)
        return False
    found = solve(values, costs, budgets, tied=tied)
    assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert found.objective == total(values, found.choice)
    assert found.costs == tuple(total(table, found.choice) for table in costs)
    assert all(cost <= budget for cost, budget in zip(found.costs, budgets, strict=True))
    assert all(found.choice[tie[0]] == found.choice[group] for tie in tied for group in tie)
    assert found.bound <= found.objective
    assert found.gap <= 1e-6
    return True


def check_nearest(costs, budgets, tied, error):
    """``nearest`` is the least cost of each budget, with the others held where that is possible."""
    assert len(error.nearest) == len(budgets)
    for b, table in enumerate(costs):
        others = [i for i in range(len(budgets)) if i != b]
        held = [costs[i] for i in others]
        least = brute_force(table, held, [budgets[i] for i in others], tied)
        if least is None:
            least = brute_force(table, [], [], tied)
        assert error.nearest[b] == pytest.approx(least, rel=1e-9, abs=1e-9)
        assert repr(error.nearest[b]) in str(error)


@pytest.mark.parametrize("seed", range(10))
def test_one_budget_agrees_with_brute_force(seed):
    rng = random.Random(seed)
    solved = [check_against_brute_force(*random_instance(rng, 1)) for _ in range(500)]
    assert 250 < sum(solved) < 500


@pytest.mark.parametrize("seed", range(10))
def test_several_budgets_agree_with_brute_force(seed):
    rng = random.Random(100 + seed)
    solved = [
        check_against_brute_force(*random_instance(rng, rng.choice([2, 2, 3]))) for _ in range(40)
    ]
    assert 10 < sum(solved) < 40


@pytest.mark.parametrize("seed", range(5))
def test_exact_integers_agree_with_brute_force(seed, monkeypatch):
    # A first attempt that breaks the budget sends an instance the second way, on integers.
    real, ways = dynamic.minimise, []

    def first_attempt_spoilt(values, costs, first, owner, budget, **rest):
        ways.append(costs.dtype)
        if costs.dtype != object:
            ends = [*first[1:], len(costs)]
            dearest = [a + int(costs[a:b].argmax()) for a, b in zip(first, ends, strict=True)]
            return dynamic.Found(np.array(dearest), None, 0.0)
        return real(values, costs, first, owner, budget, **rest)

    monkeypatch.setattr(dynamic, "minimise", first_attempt_spoilt)
    rng = random.Random(200 + seed)
    for _ in range(150):
        values, costs, budgets, _ = random_instance(rng, 1)
        if sum(max(row) for row in costs[0]) > budgets[0] + 1e-6:
            check_against_brute_force(values, costs, budgets, ())
    assert ways.count(object) > 50


def test_a_budget_that_rounding_would_break_is_kept():
    # Three times 0.1 is 0.30000000000000004 in floats, more than 0.3: the third must do without.
    found = solve([[1.0, 0.0]] * 3, [[[0.0, 0.1]] * 3], [0.3])
    assert sorted(found.choice) == [0, 1, 1]
    assert found.costs[0] <= 0.3
    assert found.objective == 1.0


def test_a_budget_that_equals_the_sum_is_met():
    found = solve([[1.0, 0.0]] * 3, [[[0.0, 0.1]] * 3], [math.fsum([0.1] * 3)])
    assert found.choice == (1, 1, 1)
    assert (found.objective, found.gap) == (0.0, 0.0)


def test_without_budgets_every_group_takes_its_best():
    found = solve([[3.0, 1.0, 2.0], [0.5, 4.0]], [], [])
    assert (found.choice, found.objective, found.costs) == ((1, 0), 1.5, ())


def test_an_infinite_budget_is_no_limit():
    values, costs = [[1.0, 0.0]], [[[0.0, 5.0]], [[1.0, 2.0]]]
    assert solve(values, costs, [math.inf, 1.0]).choice == (0,)
    assert solve(values, costs, [math.inf, math.inf]).choice == (1,)


def test_tied_groups_are_chained():
    # All three take one index: option 1 costs 3 and option 2 costs 6, so a budget of 5 allows 1.
    values, costs = [[9.0, 5.0, 0.0]] * 3, [[[0.0, 1.0, 2.0]] * 3]
    assert solve(values, costs, [5.0], tied=[(0, 1), (1, 2)]).choice == (1, 1, 1)


def test_infeasible_budget_names_the_smallest_reachable():
    with pytest.raises(InfeasibleBudget, match=r"budget 0 of 2\.5 .* 3\.0") as caught:
        solve([[0.0, 1.0], [0.0, 1.0]], [[[4.0, 1.0], [5.0, 2.0]]], [2.5])
    assert caught.value.nearest == (3.0,)
    assert solve([[0.0, 1.0], [0.0, 1.0]], [[[4.0, 1.0], [5.0, 2.0]]], [3.0]).choice == (1, 1)


def test_an_infeasible_budget_names_the_groups_that_bind():
    # The least is 1 + 2 + 4 = 7: the last group's 4 is more than half of it.
    costs = [[[3.0, 1.0], [2.0, 5.0], [4.0, 4.0]]]
    names = Names(("stem", "body", "head"))
    with pytest.raises(InfeasibleBudget, match=r"group 2 \(head\)") as caught:
        solve([[0.0, 1.0]] * 3, costs, [6.0], names=names)
    assert (caught.value.nearest, caught.value.binding) == ((7.0,), ((2,),))
    # Of the second budget 3 + 2 + 1 = 6 is the least: its first group is half of it.
    both = [*costs, [[3.0, 9.0], [9.0, 2.0], [1.0, 1.0]]]
    with pytest.raises(InfeasibleBudget, match=r"group 0 \(stem\)") as caught:
        solve([[0.0, 1.0]] * 3, both, [6.0, 5.0], names=names)
    assert caught.value.binding == ((2,), (0,))


def test_messages_name_groups_and_options():
    names = Names(("stem", "head"), (("full", "half"), ("full",)))
    with pytest.raises(ConfigError, match=r"option 1 \(half\) of group 0 \(stem\) is nan"):
        solve([[1.0, math.nan], [1.0]], [], [], names=names)
    with pytest.raises(ConfigError, match=r"costs\[0\]: group 1 \(head\) has 2 options"):
        solve([[1.0, 2.0], [1.0]], [[[1.0, 2.0], [1.0, 2.0]]], [1.0], names=names)


def test_prices_are_what_one_more_unit_buys():
    # Option 1 saves 2 of the budget: for a loss of 1 in group 0, half a unit each; for 3 in group
    # 1, one and a half each. One unit is to be saved, so the cheaper is split.
    values, costs = [[0.0, 1.0], [0.0, 3.0]], [[2.0, 0.0], [2.0, 0.0]]
    assert solve(values, [costs], [3.0]).prices == pytest.approx((0.5,))
    assert solve(values, [costs], [1.5]).prices == pytest.approx((1.5,))
    assert solve(values, [costs], [4.0]).prices == (0.0,)
    assert solve(values, [costs], [math.inf]).prices == (0.0,)
    several = solve(values, [costs, costs], [3.0, 3.5])
    assert (several.prices, several.method) == (pytest.approx((0.5, 0.0)), "highs")
    # Decimal costs, and losses of another unit: prices are of the units given.
    tenths = [[c / 10 for c in row] for row in costs]
    assert solve(values, [tenths], [0.3]).prices == pytest.approx((5.0,))
    assert [point.prices for point in front(values, costs)] == [(0.0,), (0.5,), (1.5,)]


def test_infeasible_budgets_hold_the_others():
    # Option 0 costs (1, 5), option 1 costs (4, 2): (2, 3) needs 4 of the first or 5 of the second.
    with pytest.raises(InfeasibleBudget, match="with the others held") as caught:
        solve([[0.0, 1.0]], [[[1.0, 4.0]], [[5.0, 2.0]]], [2.0, 3.0])
    assert caught.value.nearest == (4.0, 5.0)


def test_infeasible_budgets_say_where_the_others_cannot_be_held():
    with pytest.raises(InfeasibleBudget, match="the others cannot be held either") as caught:
        solve([[0.0, 1.0]], [[[1.0, 4.0]], [[5.0, 2.0]]], [0.5, 1.0])
    assert caught.value.nearest == (1.0, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "there are no groups"),
        (([[]], [], []), "values: group 0 has no option"),
        (([[1.0], [1.0, math.nan]], [], []), "values: option 1 of group 1 is nan"),
        (([[1.0]], [[[math.inf]]], [1.0]), r"costs\[0\]: option 0 of group 0 is inf"),
        (([[0.0, 5e-324]], [], []), "values: option 1 of group 0 is 5e-324; scale so"),
        (([[0.0, 1e300]], [], []), r"is 1e\+300; scale so"),
        (([[1.0, 2.0]], [[[1.0]]], [1.0]), "group 0 has 1 options, values has 2"),
        (([[1.0]], [[[1.0], [1.0]]], [1.0]), "has 2 groups, values has 1"),
        (([[1.0]], [], [1.0]), "0 cost tables for 1 budgets"),
        (([[1.0]], [[[1.0]]], [math.nan]), "budget 0 is nan"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        solve(*arguments)


@pytest.mark.parametrize(
    ("tied", "message"),
    [([(0, 2)], "tied group 2 does not exist"), ([(0, 1)], "have 1 and 2 options")],
)
def test_wrong_ties_are_named(tied, message):
    with pytest.raises(ConfigError, match=message):
        solve([[1.0], [1.0, 2.0]], [], [], tied=tied)


def hard_instance(groups, options, seed):
    """Values and costs that nearly trade off one to one, which leaves little to prune."""
    rng = random.Random(seed)
    costs = [sorted(rng.uniform(0, 1000) for _ in range(options)) for _ in range(groups)]
    values = [[1000 - c + rng.uniform(-5, 5) for c in row] for row in costs]
    return values, [costs], [0.5 * sum(row[-1] for row in costs)]


def test_a_large_instance_is_solved_exactly():
    values, costs, budgets = hard_instance(120, 12, 1)
    assert solve(values, costs, budgets).gap == 0.0


def test_out_of_time_gives_a_choice_and_a_gap():
    values, costs, budgets = hard_instance(40, 8, 2)
    ticks = itertools.count()
    stopped = solve(values, costs, budgets, time_limit_s=4.5, clock=lambda: float(next(ticks)))
    exact = solve(values, costs, budgets)
    assert stopped.costs[0] <= budgets[0]
    assert stopped.bound <= exact.objective <= stopped.objective
    assert 0 < stopped.gap < 0.01
    assert stopped.gap == pytest.approx(1 - stopped.bound / stopped.objective)


def test_too_many_states_give_a_choice_and_a_gap(monkeypatch):
    values, costs, budgets = hard_instance(40, 8, 3)
    exact = solve(values, costs, budgets)
    monkeypatch.setattr(knapsack, "_MAX_STATES", (5,))
    beam = solve(values, costs, budgets)
    assert beam.costs[0] <= budgets[0]
    assert beam.bound <= exact.objective <= beam.objective


def test_several_budgets_out_of_time_say_so():
    values, costs, budgets = hard_instance(60, 8, 4)
    with pytest.raises(BoardfitError, match="allow more time"):
        solve(values, costs * 2, budgets * 2, time_limit_s=0.0)


@pytest.mark.skipif(not HAWQ.exists(), reason="../shared/measured/instances is not here")
def test_published_hawq_instances_are_solved_to_their_optimum():
    instances = json.loads(HAWQ.read_text())["instances"]
    assert len(instances) == 18
    for instance in instances:
        values, costs, tied = instance["values"], instance["costs"], instance["tied"]
        found = solve(values, [costs], [instance["budget"]], tied=tied)
        assert found.objective == pytest.approx(instance["exact_optimum"], rel=1e-6, abs=1e-12)
        assert total(costs, found.choice) <= instance["budget"], instance["name"]
        assert sum(row[j] for row, j in zip(costs, found.choice, strict=True)) <= instance["budget"]
        assert found.gap == 0.0
        # So does the whole front, where its budget cuts it.
        points = front(values, costs, tied=tied)
        taken = next(p for p in points if p.costs[0] <= instance["budget"])
        assert taken.objective == pytest.approx(found.objective, rel=1e-12)
        assert taken.gap == 0.0
        # The same budget twice goes the other way, through HiGHS.
        both = solve(values, [costs, costs], [instance["budget"]] * 2, tied=tied)
        assert both.objective == pytest.approx(found.objective, rel=1e-6, abs=1e-12)
        assert both.costs[0] <= instance["budget"]
