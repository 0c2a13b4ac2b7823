import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import ConfigError, InfeasibleBudget
from harness.records import Group, Option
from harness.strategies import generator
from harness.strategies.predictor import Costs
from harness.strategies.requirements import Limits


def group(name, channels=32, prunable=True):
    return Group(name=name, channels=channels, producers=(name,), consumers=(), prunable=prunable)


class Chain:
    """Costs of a chain of layers: time goes with width in times width out, int8 is faster."""

    def __init__(self, groups, *, coupled, overhead=1e-4):
        self.groups = tuple(groups)
        self.coupled = coupled
        self.overhead = overhead

    def costs(self, options):
        latency, size, before = 0.0, 0.0, 16
        for g in self.groups:
            option = options[g.name]
            speed = 3.0 if option.precision == "int8" else 1.0
            inputs = before if self.coupled else 16
            latency += self.overhead + inputs * option.channels * 1e-5 / speed
            size += inputs * option.channels * (1 if option.precision == "int8" else 4)
            before = option.channels
        return Costs(latency_s=latency, upper_s=latency * 1.1, size_bytes=size, macs=0)


def problem(seed, *, coupled, n=4):
    rng = np.random.default_rng(seed)
    groups = [group(f"g{i}", channels=24) for i in range(n)]
    options = generator.options_for(groups, precisions=("fp32", "int8"), step=8)
    values = {}
    for g in groups:
        scale = rng.uniform(0.5, 2)
        values[g.name] = tuple(
            scale * ((24 - o.channels) / 24) ** 2 + (0.01 * scale if o.precision == "int8" else 0)
            for o in options[g.name]
        )
    sensitivities = SimpleNamespace(options=options, values=values)
    return Chain(groups, coupled=coupled), options, sensitivities


def brute_force(costs, options, sensitivities, limits):
    best = None
    names = [g.name for g in costs.groups]
    for choice in itertools.product(*(range(len(options[name])) for name in names)):
        picked = {name: options[name][j] for name, j in zip(names, choice, strict=True)}
        price = costs.costs(picked)
        if price.upper_s <= limits.latency_s and price.size_bytes <= limits.size_bytes:
            loss = sum(sensitivities.values[n][j] for n, j in zip(names, choice, strict=True))
            best = loss if best is None else min(best, loss)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_separable_costs_are_allocated_exactly(seed):
    costs, options, sensitivities = problem(seed, coupled=False)
    full = costs.costs({g.name: Option(channels=24, precision="fp32") for g in costs.groups})
    limits = Limits(latency_s=0.45 * full.upper_s, size_bytes=0.3 * full.size_bytes)
    found = generator.allocate(costs, options, sensitivities, limits)
    assert found.loss == pytest.approx(brute_force(costs, options, sensitivities, limits))


def test_coupled_costs_are_kept_within_budget_and_close_to_the_optimum():
    gaps = []
    for seed in range(12):
        costs, options, sensitivities = problem(seed, coupled=True)
        full = costs.costs({g.name: Option(channels=24, precision="fp32") for g in costs.groups})
        limits = Limits(latency_s=0.35 * full.upper_s, size_bytes=0.2 * full.size_bytes)
        found = generator.allocate(costs, options, sensitivities, limits)
        assert found.costs.upper_s <= limits.latency_s
        assert found.costs.size_bytes <= limits.size_bytes
        gaps.append(found.loss / brute_force(costs, options, sensitivities, limits) - 1)
    assert min(gaps) >= -1e-9
    # Linearising is a heuristic: it may miss the optimum, but not by much, nor often.
    assert np.median(gaps) <= 0.02
    assert max(gaps) <= 0.25


def test_an_impossible_budget_names_what_binds_and_the_nearest_that_is_not():
    costs, options, sensitivities = problem(0, coupled=True)
    limits = Limits(latency_s=1e-6, size_bytes=1e9)
    with pytest.raises(InfeasibleBudget, match=r"latency: .* is the least") as error:
        generator.allocate(costs, options, sensitivities, limits)
    assert "size:" not in str(error.value)
    nearest = generator.nearest_limits(costs, options, sensitivities, limits)
    assert nearest.size_bytes == 1e9
    assert nearest.latency_s == pytest.approx(error.value.nearest[0])
    reached = generator.allocate(costs, options, sensitivities, nearest)
    assert reached.costs.upper_s <= nearest.latency_s
    # Nothing cheaper exists: every group at 8 channels in int8.
    assert all(o == Option(channels=8, precision="int8") for o in reached.choice.values())


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


def test_a_board_is_never_offered_what_only_studies_can_run():
    costs, options, sensitivities = problem(0, coupled=False)
    options = {**options, "g1": (*options["g1"], Option(channels=24, precision="w4a8"))}
    limits = Limits(latency_s=1.0, size_bytes=1e9)
    for ask in (generator.allocate, generator.nearest_limits):
        with pytest.raises(ConfigError, match=r"group g1 is offered w4a8 .* for studies"):
            ask(costs, options, sensitivities, limits)
