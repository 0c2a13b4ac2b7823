"""What holds for every coupled allocation."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.allocation.coupled import Table, front, solve
from harness.allocation.dual import maximise
from harness.allocation.frontier import Path, order
from harness.allocation.local import improved
from harness.allocation.tables import Coupling
from tests.allocation.couplings import random_problem
from tests.benchmarks.couplings import chain


@st.composite
def feasible(draw):
    """A problem whose budgets allow some choice, of one or two budgets."""
    rng = random.Random(draw(st.integers(0, 10**9)))
    problem = random_problem(rng, draw(st.sampled_from([1, 1, 1, 1, 2])), groups=6)
    some = problem.spent(next(problem.choices()))
    slack = draw(st.floats(0, 20))
    return replace(
        problem, budgets=[max(b, s + slack) for b, s in zip(problem.budgets, some, strict=True)]
    )


def close(number):
    return pytest.approx(number, rel=1e-9, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(feasible(), st.floats(0, 10))
def test_loosening_a_budget_never_worsens(problem, more):
    loose = replace(problem, budgets=[budget + more for budget in problem.budgets])
    tight = problem.solved(solve).objective
    assert loose.solved(solve).objective <= tight + 1e-9 * max(1, abs(tight))


@settings(max_examples=80, deadline=None)
@given(feasible(), st.data())
def test_adding_an_option_never_worsens(problem, data):
    before = problem.solved(solve).objective
    free = [g for g in range(len(problem.values)) if not any(g in tie for tie in problem.tied)]
    if not free:
        return
    group = data.draw(st.sampled_from(free))
    amounts = random.Random(data.draw(st.integers(0, 1000)))

    def wider(table):
        if group not in table.groups:
            return table
        axis = table.groups.index(group)
        states = list(table.states)
        if states[axis] is not None:
            states[axis] = np.append(states[axis], amounts.randrange(table.costs.shape[axis]))
            return Table(table.groups, table.costs, tuple(states))
        row = np.take(table.costs, [0], axis=axis) + amounts.randint(-3, 3)
        return Table(table.groups, np.concatenate((table.costs, row), axis=axis), tuple(states))

    values = [list(row) for row in problem.values]
    values[group].append(float(amounts.randint(-3, 9)))
    more = replace(
        problem,
        values=values,
        costs=[[wider(table) for table in tables] for tables in problem.costs],
        value_tables=[wider(table) for table in problem.value_tables],
    )
    assert more.solved(solve).objective <= before + 1e-9 * max(1, abs(before))


@settings(max_examples=80, deadline=None)
@given(feasible(), st.randoms(use_true_random=False))
def test_permuting_the_groups_changes_nothing(problem, rng):
    place = list(range(len(problem.values)))
    rng.shuffle(place)  # group g becomes place[g]

    def moved(table):
        return Table(tuple(place[g] for g in table.groups), table.costs, table.states)

    values = [None] * len(place)
    for group, row in enumerate(problem.values):
        values[place[group]] = row
    other = replace(
        problem,
        values=values,
        costs=[[moved(table) for table in tables] for tables in problem.costs],
        value_tables=[moved(table) for table in problem.value_tables],
        tied=[tuple(place[g] for g in tie) for tie in problem.tied],
        pinned={place[g]: option for g, option in problem.pinned.items()},
    )
    assert other.solved(solve).objective == close(problem.solved(solve).objective)


@settings(max_examples=80, deadline=None)
@given(feasible(), st.integers(-30, 30))
def test_scaling_costs_and_budgets_changes_nothing(problem, power):
    # A power of two scales floats exactly, so that the same choices stay within the budgets.
    by = 2.0**power
    scaled = replace(
        problem,
        costs=[
            [Table(t.groups, by * t.costs, t.states) for t in tables] for tables in problem.costs
        ],
        budgets=[by * budget for budget in problem.budgets],
    )
    assert scaled.solved(solve).objective == close(problem.solved(solve).objective)


@settings(max_examples=60, deadline=None)
@given(feasible())
def test_a_front_has_what_solve_finds(problem):
    tables, *others = problem.costs
    held = list(zip(others, problem.budgets[1:], strict=True))
    points = front(
        problem.values,
        tables,
        points=4,
        held=held,
        value_tables=problem.value_tables,
        tied=problem.tied,
        pinned=problem.pinned,
    )
    for point in points:
        at = replace(problem, budgets=[point.costs[0], *problem.budgets[1:]])
        assert at.keeps(point.choice)
        assert point.objective == close(at.solved(solve).objective)
    objectives = [point.objective for point in points]
    assert objectives == sorted(objectives)


@settings(max_examples=60, deadline=None)
@given(feasible(), st.sampled_from(["auto", "highs"]))
def test_prices_maximise_the_relaxation(problem, solver):
    # By brute force: no other prices nearby, and none at all, give a better bound.
    prices = np.array(problem.solved(solve, solver=solver).prices)
    every = [(problem.objective(c), *problem.spent(c)) for c in problem.choices()]
    objectives, spent = np.split(np.array(every), [1], axis=1)

    def bound(at):
        return (objectives[:, 0] + (spent - np.array(problem.budgets)) @ at).min()

    size = np.abs(objectives).max() + float(np.abs(spent).max(axis=0) @ prices)
    for factor in (0.0, 0.5, 0.9, 1.1, 2.0):
        assert bound(prices) >= bound(factor * prices) - 1e-6 * (size + 1)


def coupling_of(problem, budgets):
    """The coupling of a chain, untied."""
    rows = tuple(Table((g,), np.array(row)) for g, row in enumerate(problem.values))
    sizes = tuple(len(row) for row in problem.values)
    members = tuple((g,) for g in range(len(sizes)))
    kept = tuple(np.arange(size) for size in sizes)
    return Coupling.of((rows, tuple(problem.tables)), budgets, sizes, members, kept)


def test_a_path_has_the_least_sum_and_the_least_of_every_option():
    problem = chain(4, 6, 5)
    coupling = coupling_of(problem, (problem.budget,))
    path = Path.of(coupling, order(coupling))
    weights = np.array([1.0, 300.0])
    to_come = path.backwards(weights)
    every = np.stack(np.meshgrid(*[np.arange(6)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    sums = np.array([weights @ coupling.sums(choice) for choice in every])
    picks, layers = path.walk(weights, to_come)
    assert to_come[0][0] == pytest.approx(sums.min())
    assert weights @ layers == pytest.approx(sums.min())
    assert coupling.sums(coupling.expand(picks)) == pytest.approx(tuple(layers))
    for group, marginals in enumerate(path.marginals(weights, to_come)):
        for option, least in enumerate(marginals):
            assert least == pytest.approx(sums[every[:, group] == option].min())


@pytest.mark.parametrize("seed", range(3))
def test_the_dual_is_at_its_height(seed):
    # The dual is concave: what is least at the prices beside the best is no higher.
    problem = chain(10, 8, seed)
    coupling = coupling_of(problem, (problem.budget,))
    path = Path.of(coupling, order(coupling))
    dual = maximise(path, lambda: False)
    assert dual is not None

    def bound(price):
        return path.backwards(np.array([1.0, price]))[0][0] - price * problem.budget

    price = float(dual.prices[0])
    assert dual.bound == pytest.approx(bound(price))
    assert bound(price) >= max(bound(0.99 * price), bound(1.01 * price))


def test_a_local_search_keeps_budgets_and_ends_where_no_pair_betters():
    problem = chain(6, 6, 2)
    coupling = coupling_of(problem, (problem.budget,))
    cheapest = np.array([5] * 6)
    picks = improved(coupling, cheapest, lambda: False)
    best, spent = coupling.sums(picks)
    assert best < coupling.sums(cheapest)[0]
    assert spent <= problem.budget
    for a in range(6):
        for b in range(6):
            for i in range(6):
                for j in range(6):
                    other = picks.copy()
                    other[a], other[b] = i, j
                    sums = coupling.sums(other)
                    assert sums[0] >= best - 1e-12 or sums[1] > problem.budget
