"""Networks without some of their branches, from which allocations begin; nothing is measured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness import networks, proposing, starts
from harness.compression import shallow
from harness.compression.groups import find_groups
from harness.errors import ConfigError
from harness.folder import Folder
from harness.posing import FitSettings, Problem
from harness.records import Option, Strategy, StrategyEntry
from harness.sensitivity.curvature import Sensitivities
from harness.strategies import given
from harness.strategies.generator import options_for, restrict
from harness.strategies.proposal import Proposal
from harness.strategies.requirements import Limits
from latency_models import graph
from tests.compression.tiny import Bottleneck, confident, facts
from tests.strategies.test_tables import CPU, model_of
from tests.test_proposing import Watcher

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))
# Of one block's weights and biases, batch norm folded; 4 bytes each.
NUMBERS = (16 * 8 + 8) + (9 * 8 * 8 + 8) + (8 * 16 + 16)
FULL = Limits(latency_s=None, size_bytes=None)


@pytest.fixture
def problem(tmp_path):
    """A network of three branches of several groups, the second of which adds hardly anything."""
    network = confident(Bottleneck, IMAGES)
    path = tmp_path / "baseline.onnx"
    networks.export_onnx(network, IMAGES[:1], path)
    groups = find_groups(network, IMAGES[:1])
    bench = SimpleNamespace(
        folder=Folder(tmp_path / "run", {}, Watcher()),
        session=SimpleNamespace(facts=facts()),
        data=networks.Data(IMAGES, None, IMAGES, torch.zeros(96, dtype=torch.int64)),
        kernels=lambda path: graph.read(path, runtime=CPU),
    )
    return Problem(
        bench=bench,
        settings=FitSettings(network="net", budgets=(), epochs=0),
        network=network,
        size_bytes=path.stat().st_size,
        groups=groups,
        kernels=graph.read(path, runtime=CPU),
        options=options_for(groups, precisions=("fp32", "int8"), step=1),
        sensitivities=Sensitivities(options={}, values={}, channel_scores={}),
        limits=FULL,
        model=model_of(CPU),
        branches=starts.find(bench, network, groups),
    )


def whole(start, precision):
    return {g.name: Option(channels=g.channels, precision=precision) for g in start.groups}


def test_what_a_branch_saves_is_its_share_of_what_is_limited(problem):
    names = problem.branches.removable
    costs = problem.costs(0.0)
    by = {
        kind: starts.savings(costs, limits, names)
        for kind, limits in {
            "neither": FULL,
            "latency": Limits(latency_s=1.0, size_bytes=None),
            "size": Limits(latency_s=None, size_bytes=1.0),
            "both": Limits(latency_s=1.0, size_bytes=1.0),
        }.items()
    }
    assert by["neither"] == by["latency"]
    assert all(0 < share < 1 for share in by["latency"].values())
    for name in names:
        assert by["both"][name] == pytest.approx(by["latency"][name] + by["size"][name])
        gone = shallow.unread(problem.groups, shallow.together(problem.groups, [name]))
        weights = sum(4 * problem.network.get_submodule(layer).weight.numel() for layer in gone)
        biases = sum(4 * problem.network.get_submodule(layer).out_channels for layer in gone)
        assert by["size"][name] * problem.size_bytes == pytest.approx(weights + biases, rel=0.01)


def test_the_branch_that_adds_nothing_goes_first_and_a_start_has_the_kernels_that_are_left(problem):
    found = problem.branches
    assert found.removable == ("blocks.0.0", "blocks.1.0", "blocks.2.0")
    assert found.order[0].group == "blocks.1.0" and len(found.order) == 3
    gone = starts.left_out(problem.groups, found, 1)
    assert gone == ("blocks.1.0", "blocks.1.3")
    assert [starts.count(found, some) for some in ((), gone, gone[1:])] == [0, 1, 0]
    start = problem.start(gone)
    assert problem.start(gone) is start
    weights = [kernel.weight for kernel in start.kernels if kernel.weight]
    assert weights == [
        *("stem.weight", "blocks.0.0.weight", "blocks.0.3.weight", "blocks.0.6.weight"),
        *("blocks.2.0.weight", "blocks.2.3.weight", "blocks.2.6.weight", "classifier.weight"),
    ]
    # Their numbers, and a few hundred bytes of description for each of some eight nodes.
    assert 0 < problem.size_bytes - start.size_bytes - 4 * NUMBERS < 8 * 400
    priced = problem.costs(0.0, start).costs(whole(start, "fp32"))
    assert priced.size_bytes == pytest.approx(start.size_bytes)
    assert priced.macs == 64 * (9 * 16 + 2 * (16 * 8 + 9 * 8 * 8 + 8 * 16)) + 16 * 3


@pytest.mark.parametrize("quantity", ["latency", "size"])
@pytest.mark.parametrize("enough", [1, 2, 3])
def test_as_many_branches_go_as_full_widths_need(problem, quantity, enough):
    amounts = []
    for count in range(4):
        start = problem.start(starts.left_out(problem.groups, problem.branches, count))
        priced = problem.costs(0.0, start).costs(whole(start, "fp32"))
        gone = shallow.unread(problem.groups, start.left_out)
        nearly = problem.costs(0.0).costs_without(whole(problem, "fp32"), gone)
        assert nearly.latency_s == pytest.approx(priced.latency_s)
        # What a file says of a layer beside its numbers is not counted as gone.
        size = problem.size_bytes - 4 * NUMBERS * count
        amounts.append(priced.latency_s if quantity == "latency" else size)
    assert amounts == sorted(amounts, reverse=True)
    # Half way between what is enough and one fewer.
    limit = (amounts[enough] + amounts[enough - 1]) / 2
    limits = Limits(
        latency_s=limit if quantity == "latency" else None,
        size_bytes=limit if quantity == "size" else None,
    )
    options = restrict(problem.options, problem.groups, prune=True, precisions=("fp32",))
    costs = [problem.costs(0.0)]
    found = starts.depths(costs, options, limits, problem.branches)
    # Three quarters of 1, 2 and 3, rounded down.
    assert found == {1: (0, 1), 2: (0, 1, 2), 3: (0, 2, 3)}[enough]
    # Where nothing may be pruned no branch goes, nor where full widths fit as they are.
    full = restrict(problem.options, problem.groups, prune=False, precisions=("fp32",))
    assert starts.depths(costs, full, limits, problem.branches) == (0,)
    assert starts.depths(costs, options, FULL, problem.branches) == (0,)


def strategy(groups, left_out):
    entries = tuple(
        StrategyEntry(group=g.name, kept=tuple(range(g.channels)), of=g.channels, precision="fp32")
        for g in groups
        if g.name not in left_out
    )
    return Strategy(
        label="given", methods=("prune",), entries=entries, epochs=0, seed=0, left_out=left_out
    )


def test_a_strategy_that_is_given_leaves_out_branches_as_a_whole_and_no_others(problem):
    groups = problem.groups
    names = shallow.together(groups, ["blocks.0.0"])
    good = strategy(groups, names)
    given.check(good, groups, ("fp32",), 0)
    found = starts.find(problem.bench, problem.network, groups, good)
    assert starts.count(found, names) == 1
    half = strategy(groups, ("blocks.0.0",))
    with pytest.raises(ConfigError, match=r"keeps blocks\.0\.3, of which nothing is left"):
        given.check(half, groups, ("fp32",), 0)
    with pytest.raises(ConfigError, match=r"leaves out blocks\.0\.0, without which"):
        starts.find(problem.bench, problem.network, groups, half)
    everything = strategy(groups, tuple(g.name for g in groups))
    with pytest.raises(ConfigError, match="leaves out classifier, stem"):
        starts.find(problem.bench, problem.network, groups, everything)


def test_what_keeps_the_limits_leads_and_else_what_is_nearest_to_them(problem):
    problem.limits = Limits(latency_s=1e-3, size_bytes=1000.0)
    fits = Proposal(
        strategy=strategy(problem.groups, ()),
        loss=0.0,
        latency_s=1e-3,
        size_bytes=1000.0,
        coverage=0.0,
    )
    # 1.5 times the latency; 1.2 times the size.
    slow = replace(fits, infeasible="slow", nearest={"latency": 1.5e-3, "size": 1000.0})
    large = replace(fits, infeasible="large", nearest={"latency": 1e-3, "size": 1200.0})
    assert proposing.leading(problem, [slow, large, fits]) is fits
    assert proposing.leading(problem, [slow, large]) is large
    assert proposing.shortlisted(problem, problem.options, [slow, large]).proposal is large
