"""What the loop builds next, on a small network by a board's datasheet: nothing is measured."""

from types import SimpleNamespace

import pytest
import torch

from harness import networks, proposing
from harness.compression.groups import find_groups
from harness.folder import Folder
from harness.posing import FitSettings, Problem
from harness.records import AllocationProof, Stage
from harness.sensitivity.curvature import score
from harness.strategies import shortlist
from harness.strategies.generator import options_for
from harness.strategies.requirements import Limits
from latency_models import graph
from tests.compression.tiny import Residual, confident, facts
from tests.strategies.test_tables import CPU, model_of

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Watcher:
    def __init__(self):
        self.seen = []

    def begin(self, stage, *, resumed):
        self.seen.append((stage, resumed))

    def progress(self, done, total, *, left_s=None):
        assert 0 < done <= total and left_s is None

    def end(self, stage):
        assert isinstance(stage, Stage)

    def warn(self, text):
        raise AssertionError(text)


@pytest.fixture
def problem(tmp_path):
    """A network that is sure of its classes, its options scored, on no board."""
    network = confident(Residual, IMAGES)
    path = tmp_path / "baseline.onnx"
    networks.export_onnx(network, IMAGES[:1], path)
    groups = find_groups(network, IMAGES[:1])
    options = options_for(groups, precisions=("fp32", "int8"), step=1)
    return Problem(
        bench=SimpleNamespace(
            folder=Folder(tmp_path / "run", {}, Watcher()),
            session=SimpleNamespace(facts=facts()),
            data=networks.Data(IMAGES, None, IMAGES, torch.zeros(96, dtype=torch.int64)),
        ),
        settings=FitSettings(network="net", budgets=(), epochs=0, seed=1),
        network=network,
        size_bytes=path.stat().st_size,
        groups=groups,
        kernels=graph.read(path, runtime=CPU),
        options=options,
        sensitivities=score(network, groups, options, IMAGES, seed=1),
        limits=Limits(latency_s=None, size_bytes=0.4 * path.stat().st_size),
        model=model_of(CPU),
    )


def narrow(problem):
    """Full precision only, so that the size is reached by pruning."""
    return {
        name: tuple(option for option in own if option.precision == "fp32")
        for name, own in problem.options.items()
    }


def test_of_near_ties_the_one_that_diverges_least_is_built_and_a_rerun_takes_the_same(
    problem, monkeypatch
):
    # Three groups have few near ties: more is called near here, and noise goes further.
    monkeypatch.setattr(shortlist, "NEAR", 3.0)
    monkeypatch.setattr(shortlist, "NOISE", 1.0)
    options = narrow(problem)
    (first,) = proposing.proposed(problem, options, "joint 1", coverages=(0.0,))
    taken = proposing.shortlisted(problem, options, [first])
    contenders = taken.shortlist.contenders
    assert 2 <= len(contenders) <= 6
    assert contenders[0].how == "as scored" and contenders[0].loss == first.loss
    (chosen,) = [c for c in contenders if c.taken]
    assert chosen.divergence == min(c.divergence for c in contenders)
    assert taken.proposal.loss == chosen.loss
    for contender in contenders:
        assert contender.size_bytes <= problem.limits.size_bytes
        assert first.loss <= contender.loss * (1 + 1e-9) <= 3 * first.loss * (1 + 2e-9)
    proof = taken.proposal.proof
    assert isinstance(proof, AllocationProof)
    assert proof.objective == pytest.approx(chosen.loss) and proof.bound <= chosen.loss * (1 + 1e-9)
    assert taken.proposal.strategy.label == "joint 1"
    assert proposing.shortlisted(problem, options, [first]) == taken
    watcher = problem.bench.folder.observer
    assert watcher.seen == [
        ("allocate joint 1", False),
        ("shortlist joint 1", False),
        ("shortlist joint 1", True),
    ]
    assert "allocations tried on 96 images" in problem.bench.folder.stages[-1].detail


def test_where_nothing_is_pruned_or_the_budget_is_out_of_reach_there_is_no_shortlist(problem):
    whole = {name: own[-2:] for name, own in problem.options.items()}  # full width
    (quantized,) = proposing.proposed(problem, whole, "int8 only", coverages=(0.0,))
    assert quantized.strategy.methods == ("quantize",)
    problem.limits = Limits(latency_s=None, size_bytes=10.0)
    (out_of_reach,) = proposing.proposed(problem, narrow(problem), "joint 1", coverages=(0.0,))
    assert out_of_reach.infeasible
    for first in (quantized, out_of_reach):
        taken = proposing.shortlisted(problem, narrow(problem), [first])
        assert taken.proposal is first and not taken.shortlist.contenders
    assert [name for name, _ in problem.bench.folder.observer.seen] == [
        "allocate int8 only",
        "allocate joint 1",
    ]
