"""Coupled allocation against brute force and by hand."""

import math
import random

import numpy as np
import pytest

from harness.allocation import coupled, search
from harness.allocation.coupled import Names, Table, front, solve
from harness.errors import BoardfitError, ConfigError, InfeasibleBudget
from tests.allocation.couplings import Problem, random_problem
from tests.benchmarks.couplings import chain


def check_against_brute_force(problem, **how):
    """Whether there was a solution; fails if ``solve`` and brute force disagree."""
    best = problem.best()
    if best is None:
        with pytest.raises(InfeasibleBudget) as caught:
            problem.solved(solve, **how)
        for b, nearest in enumerate(caught.value.nearest):
            assert nearest == pytest.approx(problem.least(b), rel=1e-9, abs=1e-9)
        assert len(caught.value.nearest) == len(caught.value.binding) == len(problem.budgets)
        return False
    found = problem.solved(solve, **how)
    check_allocation(problem, found)
    assert found.bound <= best * (1 + math.copysign(1e-12, best))
    assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert found.gap <= 1e-6
    return True


def check_allocation(problem, found):
    """What holds whatever the bound is."""
    assert found.objective == problem.objective(found.choice)
    assert found.costs == problem.spent(found.choice)
    assert problem.keeps(found.choice)
    assert found.choice in set(problem.choices())
    assert found.bound <= found.objective
    assert len(found.prices) == len(problem.budgets)
    assert all(price >= 0 for price in found.prices)


@pytest.mark.parametrize("seed", range(15))
def test_one_budget_agrees_with_brute_force(seed):
    rng = random.Random(seed)
    solved = [check_against_brute_force(random_problem(rng, 1)) for _ in range(300)]
    assert 200 < sum(solved) < 300


@pytest.mark.parametrize("seed", range(5))
def test_several_budgets_agree_with_brute_force(seed):
    rng = random.Random(100 + seed)
    problems = [random_problem(rng, rng.choice([2, 2, 3]), groups=4) for _ in range(80)]
    assert 20 < sum(check_against_brute_force(problem) for problem in problems) < 80


@pytest.mark.parametrize("solver", ["labels", "highs"])
def test_each_solver_alone_agrees_with_brute_force(solver):
    rng = random.Random(7)
    problems = [random_problem(rng, rng.choice([1, 2]), groups=4) for _ in range(60)]
    assert sum(check_against_brute_force(p, solver=solver) for p in problems) > 30


def test_tables_that_hang_together_too_widely_go_to_highs(monkeypatch):
    monkeypatch.setattr(search, "_MAX_ENTRIES", 0)
    problem = random_problem(random.Random(3), 1)
    while problem.best() is None or len(problem.values) < 4:
        problem = random_problem(random.Random(len(problem.values) + 90), 1)
    found = problem.solved(solve)
    assert found.method == "highs"
    assert found.objective == pytest.approx(problem.best(), rel=1e-9)


def test_a_bound_is_below_the_optimum_where_labels_were_given_up(monkeypatch):
    rng = random.Random(11)
    gaps = 0
    for n in range(300):
        monkeypatch.setattr(search, "_LIMITS", (1 + n % 3,))
        problem = random_problem(rng, rng.choice([1, 1, 2]))
        best = problem.best()
        if best is None:
            continue
        try:
            found = problem.solved(solve, solver="labels")
        except BoardfitError as error:
            assert "allow more time" in str(error)  # it gave up all that keep the budgets
            continue
        check_allocation(problem, found)
        assert found.bound <= best + 1e-12 * abs(best)
        if found.gap == 0:
            assert found.objective == pytest.approx(best, rel=1e-9, abs=1e-9)
        gaps += found.gap > 1e-6
    assert gaps > 0


def test_the_bound_of_highs_holds_for_numbers_of_many_magnitudes():
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return rng.random(shape) * 10.0 ** rng.integers(-12, 3, shape)

    for _ in range(100):
        values, pair = numbers(3, 3), Table((0, 2), numbers(3, 3))
        found = solve(values.tolist(), [], [], value_tables=[pair], solver="highs")
        totals = values[0][:, None, None] + values[1][:, None] + values[2] + pair.costs[:, None]
        assert found.bound <= totals.min() * (1 + 1e-12)


def test_highs_closes_the_gap_that_labels_leave(monkeypatch):
    monkeypatch.setattr(search, "_LIMITS", (1,))
    rng = random.Random(11)
    left = 0
    for _ in range(100):
        problem = random_problem(rng, rng.choice([1, 1, 2]))
        if problem.best() is None:
            continue
        try:
            left += problem.solved(solve, solver="labels").gap > 1e-6
        except BoardfitError:
            left += 1
        check_against_brute_force(problem)
    assert left > 0


def test_a_budget_that_only_rounding_breaks_is_kept():
    # 0.1 + 0.2 is 0.30000000000000004 in floats: more than 0.3, which 0.15 + 0.15 is exactly.
    # As whole hundredths both are 30: what the search finds first is checked, and breaks it.
    pair = Table((0, 1), np.array([[0.0, 9.0], [9.0, 0.0]]))
    rows = [Table((0,), np.array([0.1, 0.15])), Table((1,), np.array([0.2, 0.15]))]
    values = [[0.0, 1.0], [0.0, 1.0]]
    found = solve(values, [[pair, *rows]], [0.3])
    assert found.choice == (1, 1)
    assert found.costs == (0.3,)
    assert found.gap == 0
    assert solve(values, [[pair, *rows]], [0.30000000000000004]).choice == (0, 0)


def test_a_conversion_is_paid_only_where_precisions_differ():
    # Alone, int8 (1) saves 2 in group 0 and nothing in group 1, and loses 1 each. A conversion
    # costs 3, so both in int8 take 2 + 4 = 6, one alone 2 + 4 + 3 = 9, none 4 + 4 = 8.
    rows = [Table((0,), np.array([4.0, 2.0])), Table((1,), np.array([4.0, 4.0]))]
    convert = Table((0, 1), np.array([[0.0, 3.0], [3.0, 0.0]]))
    values = [[0.0, 1.0], [0.0, 1.0]]
    assert solve(values, [[*rows, convert]], [8.0]).choice == (0, 0)
    assert solve(values, [[*rows, convert]], [7.0]).choice == (1, 1)


def test_options_share_states():
    # Options 0 and 1 of group 0 are of one width: state 0. With state 1 the pair takes 5 less.
    pair = Table((0, 1), np.array([[9.0, 7.0], [4.0, 2.0]]), (np.array([0, 0, 1]), None))
    assert solve([[0.0, 1.0, 2.0], [0.0, 9.0]], [[pair]], [8.0]).choice == (2, 0)
    assert solve([[1.0, 0.0, 2.0], [0.0, 9.0]], [[pair]], [9.0]).choice == (1, 0)


def test_prices_are_the_slope_of_the_relaxation():
    # From cost 10 to cost 4 the loss rises by 3: half a unit of loss saved a unit of budget.
    pair = Table((0, 1), np.array([[10.0, 12.0], [12.0, 4.0]]))
    found = solve([[0.0, 1.0], [0.0, 2.0]], [[pair]], [9.0])
    assert found.choice == (1, 1)
    assert found.prices == pytest.approx((0.5,))
    assert solve([[0.0, 1.0], [0.0, 2.0]], [[pair]], [10.0]).prices == (0.0,)
    assert solve([[0.0, 1.0], [0.0, 2.0]], [[pair]], [9.0], solver="highs").prices == (
        pytest.approx((0.5,))
    )


def test_without_coupling_the_separable_solver_answers():
    rows = [Table((0,), np.array([1.0, 0.0])), Table((1,), np.array([1.0, 0.0]))]
    found = solve([[0.0, 1.0], [0.0, 2.0]], [rows], [1.0])
    assert found.choice == (1, 0)
    assert found.method == "separable"
    assert found.prices == (1.0,)  # one unit less costs 1, from (1, 0) on 2: the split is at 1
    pair = Table((0, 1), np.array([[2.0, 1.0], [1.0, 0.0]]))
    pinned = solve([[0.0, 1.0], [0.0, 2.0]], [[pair]], [1.0], pinned={1: 0})
    assert (pinned.choice, pinned.method) == ((1, 0), "separable")
    tied = solve([[0.0, 1.0], [0.0, 2.0]], [[pair]], [1.0], tied=[(0, 1)])
    assert (tied.choice, tied.method) == ((1, 1), "separable")
    wide = Table((0, 1), np.array([[2.0, 1.0], [1.0, 0.5]]))
    assert solve([[0.0, 1.0], [0.0, 2.0]], [[wide]], [1.0]).method == "coupled"


def test_an_infeasible_budget_names_the_groups_that_bind():
    # The least is (1, 1): 2 of group 0 alone, and 8 shared evenly by groups 1 and 2.
    tables = [
        Table((0,), np.array([5.0, 2.0])),
        Table((1, 2), np.array([[20.0, 20.0], [20.0, 8.0]])),
    ]
    names = Names(("stem", "body", "head"))
    with pytest.raises(
        InfeasibleBudget, match=r"10\.0 is the smallest.*group 1 \(body\)"
    ) as caught:
        solve([[0.0, 1.0]] * 3, [tables], [9.0], names=names)
    assert caught.value.nearest == (10.0,)
    assert caught.value.binding == ((1, 2),)  # 4 alone is less than half of 10; 4 + 4 is not


def test_infeasible_budgets_hold_the_others_or_say_that_they_cannot():
    # As for the separable solver: (cost, cost) is (1, 5), (4, 2) on the diagonal, else 9s.
    first = Table((0, 1), np.array([[1.0, 9.0], [9.0, 4.0]]))
    second = Table((0, 1), np.array([[5.0, 9.0], [9.0, 2.0]]))
    values = [[0.0, 1.0], [0.0, 1.0]]
    with pytest.raises(InfeasibleBudget, match="with the others held") as caught:
        solve(values, [[first], [second]], [2.0, 3.0])
    assert caught.value.nearest == (4.0, 5.0)
    with pytest.raises(InfeasibleBudget, match="the others cannot be held either") as caught:
        solve(values, [[first], [second]], [0.5, 1.0])
    assert caught.value.nearest == (1.0, 2.0)


TWO = [[0.0, 1.0], [0.0, 1.0, 2.0]]
NAMED = Names(("stem", "head"), (("full", "half"), ("a", "b", "c")))


@pytest.mark.parametrize(
    ("arguments", "how", "message"),
    [
        (([], [], []), {}, "there are no groups"),
        ((TWO, [], [1.0]), {}, "0 lists of tables for 1 budgets"),
        ((TWO, [[]], [math.nan]), {}, "budget 0 is nan"),
        (([[0.0], []], [], []), {"names": Names(("a", "b"))}, r"group 1 \(b\) has no option"),
        ((TWO, [[Table((2,), np.zeros(2))]], [1.0]), {}, r"costs\[0\]: group 2 does not exist"),
        (
            (TWO, [[Table((0, 1), np.zeros((2, 2)))]], [1.0]),
            {"names": NAMED},
            r"group 1 \(head\) has 3 options, axis 1 of the table of groups \(0, 1\) has 2",
        ),
        (
            (TWO, [[Table((1,), np.zeros(2), (np.array([0, 2, 1]),))]], [1.0]),
            {"names": NAMED},
            r"option 1 \(b\) of group 1 \(head\) has state 2; the table has 2",
        ),
        (
            (TWO, [[Table((0, 1), np.array([[0, 1, 2], [3, math.inf, 4]]))]], [1.0]),
            {"names": NAMED},
            r"option 1 \(half\) of group 0 \(stem\) with option 1 \(b\) of group 1 \(head\) is inf",
        ),
        ((TWO, [], []), {"pinned": {0: 2}}, "group 0 is pinned to option 2; it has 2"),
        ((TWO, [], []), {"pinned": {5: 0}}, "pinned group 5 does not exist"),
        (
            ([[0.0, 1.0]] * 2, [], []),
            {"pinned": {0: 0, 1: 1}, "tied": [(0, 1)]},
            "group 0 and group 1 are tied but pinned to options 0 and 1",
        ),
        ((TWO, [], []), {"gap": -0.1}, "a gap of -0.1"),
        ((TWO, [], []), {"names": Names(("a",))}, "names of 1 groups, of 2"),
        ((TWO, [], []), {"names": Names((), (("a",), ()))}, "group 0 has 1 labels, 2 options"),
    ],
)
def test_a_wrong_input_is_named(arguments, how, message):
    with pytest.raises(ConfigError, match=message):
        solve(*arguments, **how)


@pytest.mark.parametrize(
    ("groups", "shape", "states", "message"),
    [
        ((), (), (), "one or more"),
        ((1, 1), (2, 2), (), r"groups \(1, 1\)"),
        ((0, 1), (2,), (), "has 1 axes"),
        ((0, 1), (2, 2), (None,), "states of 1 axes"),
    ],
)
def test_a_wrong_table_is_named(groups, shape, states, message):
    with pytest.raises(ConfigError, match=message):
        Table(groups, np.zeros(shape), states)


def ticking(step):
    """A clock that goes on by ``step`` at every look."""
    now = [0.0]

    def clock():
        now[0] += step
        return now[0]

    return clock


def test_what_is_known_when_time_is_up_has_a_true_bound():
    problem = chain(12, 8, 0)
    exact = solve(problem.values, [problem.tables], [problem.budget], tied=problem.tied)
    for step in (0.05, 0.3, 2.0):
        found = solve(
            problem.values,
            [problem.tables],
            [problem.budget],
            tied=problem.tied,
            time_limit_s=1.0,
            clock=ticking(step),
        )
        assert found.bound <= exact.objective <= found.objective + 1e-12
        assert found.costs[0] <= problem.budget


def test_time_that_is_up_without_any_allocation_is_an_error(monkeypatch):
    monkeypatch.setattr(coupled, "narrow", lambda _: None)
    problem = chain(30, 8, 0)
    with pytest.raises(BoardfitError, match="allow more time"):
        solve(problem.values, [problem.tables], [problem.budget], time_limit_s=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_chains_agree_with_highs(seed):
    problem = chain(8, 8, seed)
    arguments = (problem.values, [problem.tables], [problem.budget])
    ours = solve(*arguments, tied=problem.tied)
    theirs = solve(*arguments, tied=problem.tied, solver="highs")
    assert ours.method == "coupled"
    assert ours.gap == 0
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-9)


def test_a_gap_is_kept_to():
    problem = chain(30, 8, 2)
    exact = solve(problem.values, [problem.tables], [problem.budget], tied=problem.tied)
    found = solve(problem.values, [problem.tables], [problem.budget], tied=problem.tied, gap=0.02)
    assert exact.gap == 0
    assert found.gap <= 0.02
    assert found.bound <= exact.objective <= found.objective


def test_a_front_is_the_best_for_each_budget():
    problem = chain(5, 4, 1)
    whole = Problem(values=problem.values, costs=[problem.tables], budgets=[math.inf])
    points = front(problem.values, problem.tables, points=6)
    assert points[0].objective == whole.best()
    assert [p.costs[0] for p in points] == sorted((p.costs[0] for p in points), reverse=True)
    assert points[-1].costs[0] == whole.least(0)
    for point in points:
        at = Problem(values=problem.values, costs=[problem.tables], budgets=[point.costs[0]])
        assert point.objective == pytest.approx(at.best(), rel=1e-9)


def test_a_front_leaves_out_what_cannot_be_met_and_holds_the_others():
    problem = chain(4, 4, 3)
    size = [Table((g,), np.array([4.0, 2.0, 2.0, 1.0])) for g in range(4)]
    both = Problem(values=problem.values, costs=[problem.tables, size], budgets=[0.0, 9.0])
    least = both.least(0)
    asked = [0.5 * least, 1.1 * least, 1.6 * least]
    points = front(problem.values, problem.tables, budgets=asked, held=[(size, 9.0)])
    best = [
        Problem(values=problem.values, costs=both.costs, budgets=[b, 9.0]).best()
        for b in reversed(asked[1:])
    ]
    assert [p.objective for p in points] == pytest.approx(sorted(set(best)))
    assert all(p.costs[1] <= 9.0 for p in points)
    with pytest.raises(InfeasibleBudget):
        front(problem.values, problem.tables, budgets=asked[:1], held=[(size, 9.0)])
    with pytest.raises(ConfigError, match="needs two or more"):
        front(problem.values, problem.tables, points=1)
