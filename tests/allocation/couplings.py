"""Small coupled problems of every kind, and what brute force says of them."""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np

from harness.allocation.coupled import Table
from tests.allocation.test_knapsack import numbers


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What ``solve`` takes."""

    values: list
    costs: list
    budgets: list
    value_tables: list = field(default_factory=list)
    tied: list = field(default_factory=list)
    pinned: dict = field(default_factory=dict)

    def solved(self, solve, **how):
        return solve(
            self.values,
            self.costs,
            self.budgets,
            value_tables=self.value_tables,
            tied=self.tied,
            pinned=self.pinned,
            **how,
        )

    def choices(self):
        """All choices that ties and pins allow."""
        for choice in itertools.product(*(range(len(row)) for row in self.values)):
            if all(choice[tie[0]] == choice[group] for tie in self.tied for group in tie) and all(
                choice[group] == option for group, option in self.pinned.items()
            ):
                yield choice

    def objective(self, choice):
        own = [row[j] for row, j in zip(self.values, choice, strict=True)]
        return math.fsum([*own, *(table.at(choice) for table in self.value_tables)])

    def spent(self, choice):
        return tuple(math.fsum(t.at(choice) for t in tables) for tables in self.costs)

    def best(self):
        """The least objective within the budgets, or None."""
        return min((self.objective(c) for c in self.choices() if self.keeps(c)), default=None)

    def keeps(self, choice):
        return all(s <= b for s, b in zip(self.spent(choice), self.budgets, strict=True))

    def least(self, b):
        """The least cost of budget ``b`` with the others held, or on its own."""
        others = [math.inf if i == b else budget for i, budget in enumerate(self.budgets)]
        held = replace(self, budgets=others)
        sums = [self.spent(c)[b] for c in held.choices() if held.keeps(c)]
        return min(sums or (self.spent(c)[b] for c in self.choices()))


def random_table(rng, sizes, groups, kind):
    shape, states = [], []
    for group in groups:
        if rng.random() < 0.3:
            width = rng.randint(1, 3)
            states.append(np.array([rng.randrange(width) for _ in range(sizes[group])]))
            shape.append(width)
        else:
            states.append(None)
            shape.append(sizes[group])
    costs = np.array([numbers(rng, kind) for _ in range(math.prod(shape))]).reshape(shape)
    return Table(tuple(groups), costs, tuple(states))


def random_problem(rng, n_budgets, *, groups=5, widest=3):
    """Tables of one to ``widest`` groups, ties, pins, states, duplicates, budgets at a cost."""
    count = rng.randint(1, groups)
    sizes = [rng.randint(1, 4) for _ in range(count)]
    tied = []
    if count > 2 and rng.random() < 0.3:
        tie = rng.sample(range(count), rng.choice([2, 2, 3]))
        for group in tie:
            sizes[group] = sizes[tie[0]]
        tied.append(tuple(tie))
    kinds = [rng.choice(["whole", "tenths", "wide", "zeros"]) for _ in range(n_budgets + 1)]

    def tables(kind, most):
        result = []
        for _ in range(rng.randint(1, most)):
            wide = min(rng.choice([1, 1, 2, 2, widest]), count)
            result.append(random_table(rng, sizes, rng.sample(range(count), wide), kind))
        return result

    values = [[numbers(rng, kinds[0]) for _ in range(size)] for size in sizes]
    costs = [tables(kind, 7) for kind in kinds[1:]]
    pinned = {}
    if rng.random() < 0.2:
        group = rng.randrange(count)
        pinned[group] = rng.randrange(sizes[group])
    problem = Problem(
        values=values,
        costs=costs,
        budgets=[math.inf] * n_budgets,
        value_tables=tables(kinds[0], 1) if rng.random() < 0.3 else [],
        tied=tied,
        pinned=pinned,
    )
    some = [problem.spent([rng.randrange(size) for size in sizes]) for _ in range(20)]
    budgets = []
    for sums in zip(*some, strict=True):
        low, high = min(sums), max(sums)
        exact = rng.random() < 0.5  # exactly the cost of some choice
        budgets.append(sums[0] if exact else rng.uniform(low - 0.1 * abs(low), high))
    return replace(problem, budgets=budgets)
