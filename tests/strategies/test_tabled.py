"""A problem in tables: the limits that are raised as little as it takes, and what time allows."""

import pytest

from harness.allocation import coupled
from harness.errors import InfeasibleBudget
from harness.strategies.allocator import full_choice, tabled_around, values_of
from harness.strategies.tabled import TooHard
from tests.strategies.chains import problem


def tabled(seed=3, **more):
    costs, options, sensitivities = problem(seed, coupled=True, **more)
    names = [group.name for group in costs.groups]
    values = values_of(names, options, sensitivities)
    return tabled_around(costs, options, values, full_choice(names, options))


@pytest.mark.parametrize("host_s", [0.0, 3e-4])
def test_limits_that_can_be_kept_are_not_raised(host_s):
    made = tabled(host_s=host_s)
    full = made.amounts([len(row) - 1 for row in made.values])
    solved, latency_s, size_bytes = made.nearest(full.latency_s, full.size_bytes)
    assert (latency_s, size_bytes) == (full.latency_s, full.size_bytes)
    assert solved.amounts.latency_s <= latency_s and solved.amounts.size_bytes <= size_bytes


@pytest.mark.parametrize("host_s", [0.0, 3e-4])
def test_a_limit_out_of_reach_is_raised_and_the_other_kept(host_s):
    made = tabled(host_s=host_s)
    cheapest = made.amounts([0] * len(made.values))  # the fewest channels
    full = made.amounts([len(row) - 1 for row in made.values])
    solved, latency_s, size_bytes = made.nearest(0.01 * cheapest.latency_s, full.size_bytes)
    assert size_bytes == full.size_bytes
    assert 0.01 * cheapest.latency_s < latency_s <= cheapest.latency_s * (1 + 1e-6)
    assert solved.amounts.latency_s <= latency_s * (1 + 1e-6)


def test_limits_that_are_each_reached_alone_when_time_is_up_are_too_hard(monkeypatch):
    made = tabled()
    full = made.amounts([len(row) - 1 for row in made.values])

    def out_of_time(*arguments, **_):
        budgets = arguments[2]
        raise InfeasibleBudget(
            "time was up before the others could be held",
            nearest=tuple(0.5 * budget for budget in budgets),
            binding=((0,),) * len(budgets),
        )

    monkeypatch.setattr(coupled, "solve", out_of_time)
    with pytest.raises(TooHard, match="not found in time"):
        made.nearest(full.latency_s, full.size_bytes)
