"""Proposals for a real graph, against all its allocations priced by rewriting it."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from harness.records import dump, load
from harness.strategies.predictor import NetworkCosts
from harness.strategies.proposal import COVERAGE, Proposal, propose
from harness.strategies.requirements import Limits
from latency_models import graph
from latency_models.model import HeldOut
from tests.benchmarks.allocation_real import groups_of, options_of
from tests.latency_models.networks import joined
from tests.strategies.test_tables import CPU, TENSORRT, model_of


class Problem:
    """Two branches that are concatenated: every allocation's costs from scratch, and its loss."""

    def __init__(self, runtime, precisions):
        self.kernels = graph.read(joined(), runtime=runtime)
        self.groups = groups_of(self.kernels)
        # Nothing was measured, so the parameters are open by a lot; the held-out networks say that
        # predictions are a hundred times better than that.
        self.model = replace(model_of(runtime), held_out_=(HeldOut(0.1, 10.0),) * 10)
        self.options = options_of(self.groups, precisions, widths=2)
        rng = np.random.default_rng(0)
        widest = {name: max(o.channels for o in own) for name, own in self.options.items()}
        self.sensitivities = SimpleNamespace(
            options=self.options,
            values={
                name: tuple(
                    rng.uniform(0.5, 1.5) * (1 - o.channels / widest[name]) ** 2
                    + (0.0 if o.precision == "fp32" else rng.uniform(0.01, 0.05))
                    for o in own
                )
                for name, own in self.options.items()
            },
            kept=lambda _, channels: tuple(range(channels)),
        )
        costs = self.costs(COVERAGE)
        self.every = []
        for choice in itertools.product(*(range(len(own)) for own in self.options.values())):
            pairs = zip(self.options.items(), choice, strict=True)
            price = costs.costs({name: own[j] for (name, own), j in pairs})
            pairs = zip(self.sensitivities.values.values(), choice, strict=True)
            self.every.append((price, sum(values[j] for values, j in pairs)))
        self.full = max((price for price, _ in self.every), key=lambda price: price.size_bytes)

    def costs(self, coverage):
        return NetworkCosts(
            self.kernels,
            self.groups,
            model=self.model,
            baseline_size_bytes=1_000_000,
            coverage=coverage,
        )

    def propose(self, limits, coverages=(COVERAGE,)):
        return propose(
            self.costs,
            self.options,
            self.sensitivities,
            limits,
            label="joint 1",
            epochs=0,
            seed=0,
            coverages=coverages,
        )


@pytest.fixture(scope="module", params=[(CPU, ("fp32", "int8")), (TENSORRT, ("fp32", "fp16"))])
def problem(request):
    return Problem(*request.param)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_proposal_is_the_best_whose_bound_keeps_the_budget(problem, share):
    least = min(price.upper_s for price, _ in problem.every)
    latency_s = least + share * (problem.full.upper_s - least)
    limits = Limits(latency_s=latency_s, size_bytes=problem.full.size_bytes)
    found = problem.propose(limits)
    fitting = [loss for price, loss in problem.every if price.upper_s <= limits.latency_s]
    assert found.loss == pytest.approx(min(fitting), rel=2e-4)
    assert found.proof.exact
    assert found.proof.method == "coupled"
    assert not found.infeasible
    assert load(Proposal, dump(found)) == found


def test_a_proposal_for_a_size_alone_needs_no_latency(problem):
    limits = Limits(latency_s=None, size_bytes=0.97 * problem.full.size_bytes)
    found = problem.propose(limits)
    fitting = [loss for price, loss in problem.every if price.size_bytes <= limits.size_bytes]
    assert found.loss == pytest.approx(min(fitting), rel=2e-4)
    assert set(found.proof.prices) == {"size"}


def test_a_latency_out_of_reach_is_explained_and_the_nearest_is_kept(problem):
    found = problem.propose(Limits(latency_s=1e-9, size_bytes=2e6), coverages=(COVERAGE, 0.0))
    least = min(price.upper_s for price, _ in problem.every)
    assert found.nearest["latency"] == pytest.approx(least, rel=1e-6)
    assert found.nearest["size"] == 2e6
    assert "latency: at most 1.00 ns asked" in found.infeasible
    assert set(found.binding) == {"latency"}
    names = {group.name for group in problem.groups}
    assert names.issuperset(found.binding["latency"])
    assert found.binding["latency"]
    assert found.proof is not None


def test_a_bound_that_cannot_be_kept_is_loosened_to_the_prediction(problem):
    upper = min(price.upper_s for price, _ in problem.every)
    point = min(price.latency_s for price, _ in problem.every)
    limits = Limits(latency_s=(upper + point) / 2, size_bytes=None)
    found = problem.propose(limits, coverages=(COVERAGE, 0.0))
    assert found.coverage == 0.0
    assert found.latency_s <= limits.latency_s


def test_a_proposal_from_before_there_were_proofs_is_read(problem):
    found = problem.propose(Limits(latency_s=None, size_bytes=2e6))
    text = dump(found)
    start = text.index(',"proof"')
    old = load(Proposal, text[:start] + "}")
    assert old.proof is None
    assert old.strategy == found.strategy
