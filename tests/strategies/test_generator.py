import pytest

from harness.errors import BoardfitError, ConfigError, InfeasibleBudget
from harness.records import Option
from harness.strategies import generator, tabled
from harness.strategies.requirements import Limits
from tests.strategies.chains import brute_force, group, limits_at, problem


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("coupled", [False, True])
def test_the_best_allocation_is_found_and_proven(seed, coupled):
    costs, options, sensitivities = problem(seed, coupled=coupled)
    limits = limits_at(costs, 0.4, 0.25)
    found = generator.allocate(costs, options, sensitivities, limits)
    assert found.costs.upper_s <= limits.latency_s
    assert found.costs.size_bytes <= limits.size_bytes
    best = brute_force(costs, options, sensitivities, limits)
    assert found.loss == pytest.approx(best, rel=2e-4)
    assert found.proof.objective == found.loss
    assert found.proof.gap <= 1e-4
    assert found.proof.method == ("coupled" if coupled else "separable")
    assert found.proof.options == tuple(len(o) for o in options.values())


@pytest.mark.parametrize("latency", [0.3, 0.45, 0.7])
def test_a_host_that_cannot_keep_up_is_part_of_what_is_solved(latency):
    # Enqueuing four steps takes 4 ms, the full network's layers 19 ms.
    costs, options, sensitivities = problem(3, coupled=True, host_s=1e-3)
    limits = limits_at(costs, latency, 1.0)
    found = generator.allocate(costs, options, sensitivities, limits)
    assert found.costs.upper_s <= limits.latency_s
    best = brute_force(costs, options, sensitivities, limits)
    assert found.loss == pytest.approx(best, rel=2e-4)


def test_tables_that_hold_only_near_an_allocation_are_made_anew_around_the_last():
    costs, options, sensitivities = problem(1, coupled=True, exact=False)
    limits = limits_at(costs, 0.4, 0.25)
    found = generator.allocate(costs, options, sensitivities, limits)
    assert found.costs.upper_s <= limits.latency_s
    assert found.costs.size_bytes <= limits.size_bytes
    assert not found.proof.exact
    assert found.proof.solves >= 2
    best = brute_force(costs, options, sensitivities, limits)
    assert best <= found.loss <= 1.5 * best


def out_of_time(monkeypatch, times):
    """The solver finds nothing in time so many times."""
    solve, left = tabled.coupled.solve, [BoardfitError("no allocation was found in time")] * times

    def solve_or_not(*args, **more):
        if left:
            raise left.pop()
        return solve(*args, **more)

    monkeypatch.setattr(tabled.coupled, "solve", solve_or_not)


def test_where_exact_tables_are_too_hard_smaller_ones_are_solved(monkeypatch):
    costs, options, sensitivities = problem(1, coupled=True)
    limits = limits_at(costs, 0.4, 0.25)
    out_of_time(monkeypatch, 1)
    found = generator.allocate(costs, options, sensitivities, limits)
    assert costs.narrow
    assert not found.proof.exact
    assert found.costs.upper_s <= limits.latency_s
    assert found.costs.size_bytes <= limits.size_bytes


def test_where_nothing_is_solved_in_time_it_says_what_to_do(monkeypatch):
    costs, options, sensitivities = problem(1, coupled=True)
    out_of_time(monkeypatch, 100)
    with pytest.raises(BoardfitError, match="found in time; loosen the budget, or allow fewer"):
        generator.allocate(costs, options, sensitivities, limits_at(costs, 0.4, 0.25))


def test_an_answer_that_may_be_far_from_the_best_is_none(monkeypatch):
    costs, options, sensitivities = problem(1, coupled=True)
    monkeypatch.setattr(tabled, "LARGEST_GAP", -1.0)
    with pytest.raises(BoardfitError, match="is within 0% of the best"):
        generator.allocate(costs, options, sensitivities, limits_at(costs, 0.4, 0.25))


def test_prices_say_what_more_of_a_budget_would_buy():
    costs, options, sensitivities = problem(5, coupled=True, n=5)
    limits = limits_at(costs, 0.4, 10.0)
    found = generator.allocate(costs, options, sensitivities, limits)
    # The size is no matter here.
    assert found.proof.prices["size"] == 0
    price = found.proof.prices["latency"]
    assert price > 0
    # From 30 % to 50 % of the latency, the price lies between what the steps to and from here buy.
    step = limits_at(costs, 0.1, 1.0).latency_s
    looser, tighter = (
        generator.allocate(costs, options, sensitivities, limits_at(costs, share, 10.0)).loss
        for share in (0.5, 0.3)
    )
    assert 0.5 * (found.loss - looser) / step <= price <= 2 * (tighter - found.loss) / step


def test_an_impossible_budget_names_what_binds_and_the_nearest_that_is_not():
    costs, options, sensitivities = problem(0, coupled=True)
    limits = Limits(latency_s=1e-6, size_bytes=1e9)
    with pytest.raises(InfeasibleBudget, match=r"latency: .* is the least") as error:
        generator.allocate(costs, options, sensitivities, limits)
    assert "size:" not in str(error.value)
    assert any(group.name in str(error.value) for group in costs.groups)
    nearest = generator.nearest_limits(costs, options, sensitivities, limits)
    assert nearest.size_bytes == 1e9
    assert nearest.latency_s == pytest.approx(error.value.nearest[0], rel=1e-6)
    reached = generator.allocate(costs, options, sensitivities, nearest)
    assert reached.costs.upper_s <= nearest.latency_s
    # Nothing cheaper exists: every group at 8 channels in int8.
    assert all(o == Option(channels=8, precision="int8") for o in reached.choice.values())


def test_of_two_budgets_that_cannot_both_be_met_the_nearer_is_raised():
    costs, options, sensitivities = problem(2, coupled=True)
    cheapest = costs.costs({g.name: Option(channels=8, precision="int8") for g in costs.groups})
    limits = Limits(latency_s=0.9 * cheapest.upper_s, size_bytes=0.5 * cheapest.size_bytes)
    nearest = generator.nearest_limits(costs, options, sensitivities, limits)
    # Neither is reached even alone, so both are raised, and no further than needed.
    assert nearest.latency_s == pytest.approx(cheapest.upper_s, rel=1e-6)
    assert nearest.size_bytes == pytest.approx(cheapest.size_bytes, rel=1e-6)


def test_options_are_multiples_of_the_step_and_full_width_where_pruning_is_off():
    groups = [group("a", channels=36), group("b", channels=10, prunable=False)]
    options = generator.options_for(groups, precisions=("fp32", "int8"), step=8)
    # At least a quarter of 36 is 9, so 16, 24, 32 and the full 36.
    assert [o.channels for o in options["a"]] == [16, 16, 24, 24, 32, 32, 36, 36]
    assert [o.channels for o in options["b"]] == [10, 10]
    single = generator.restrict(options, groups, prune=False, precisions=("int8",))
    assert single["a"] == (Option(channels=36, precision="int8"),)
    pruned = generator.restrict(options, groups, prune=True, precisions=("fp32",))
    assert {o.precision for o in pruned["a"]} == {"fp32"}
    assert len(pruned["a"]) == 4


def test_groups_of_few_steps_have_finer_options():
    groups = [group("wide", channels=128), group("narrow", channels=48), group("least", channels=8)]
    options = generator.options_for(groups, precisions=("fp32",), step=16, fine_step=8)
    # 128 is 8 steps of 16, from a quarter of it on; 48 is 3, so it has multiples of 8 from 12 on.
    assert [o.channels for o in options["wide"]] == [32, 48, 64, 80, 96, 112, 128]
    assert [o.channels for o in options["narrow"]] == [16, 24, 32, 40, 48]
    assert [o.channels for o in options["least"]] == [8]
    # A step below the finer one stays.
    smaller = generator.options_for(groups, precisions=("fp32",), step=4, fine_step=8)
    assert [o.channels for o in smaller["least"]] == [4, 8]


def test_a_board_is_never_offered_what_only_studies_can_run():
    costs, options, sensitivities = problem(0, coupled=False)
    options = {**options, "g1": (*options["g1"], Option(channels=24, precision="w4a8"))}
    limits = Limits(latency_s=1.0, size_bytes=1e9)
    for ask in (generator.allocate, generator.nearest_limits):
        with pytest.raises(ConfigError, match=r"group g1 is offered w4a8 .* for studies"):
            ask(costs, options, sensitivities, limits)
