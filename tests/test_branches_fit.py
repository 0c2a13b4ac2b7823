"""A fit that leaves residual branches out: the real agent, the real runtime, this computer."""

import onnx
import pytest

from harness.records import FitResult, Strategy, load
from tests.fits import boardfit, write_images

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width, share):
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.two.weight.mul_(share)
            self.two.bias.mul_(share)

    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        # The second and the third add next to nothing.
        self.blocks = nn.Sequential(*(Block(32, share) for share in (1, 1e-4, 1e-4, 1)))
        self.classifier = nn.Linear(32, 3)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        return 10 * self.classifier(x.mean((2, 3)))


def factory():
    torch.manual_seed(0)
    return Net()
"""
ARGUMENTS = (
    *("fit", "net.py:factory", "--data", "data.npz", "--methods", "prune", "--size", "60%"),
    *("--max-drop", "100", "--rounds", "1", "--epochs", "0"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("branches")
    (path / "net.py").write_text(NETWORK)
    write_images(path / "data.npz", train=256, test=300)
    return path


@pytest.fixture(scope="module")
def arguments(latency_model):
    """The board is calibrated already: what is left out goes by size."""
    return (*ARGUMENTS, "--latency-model", str(latency_model))


@pytest.fixture(scope="module")
def shallow(folder, arguments):
    """A finished fit, its standard output and error, and its folder."""
    done = boardfit(folder, *arguments, "--out", "run")
    assert done.returncode == 0, done.stderr
    return done, folder / "run"


def test_branches_that_add_nothing_go_whole_and_the_layers_keep_their_widths(shallow):
    done, run = shallow
    strategy = load(Strategy, (run / "strategy.json").read_bytes())
    # Each block is 2 (9 * 32 * 32 + 32) of 74,979 parameters, nearly a quarter: two have to go.
    assert strategy.left_out == ("blocks.1.one", "blocks.2.one")
    assert all(len(entry.kept) == entry.of for entry in strategy.entries)
    result = load(FitResult, (run / "result.json").read_bytes())
    assert result.verdict == "meets"
    assert result.result.notes == ("2 of 4 residual branches left out",)
    assert "2 of 4 residual branches left out" in done.stdout
    assert "2 of 4 residual branches left out" in (run / "report.html").read_text()
    kept = {g.group: (g.kept, g.precision) for g in result.result.allocation}
    assert kept["blocks.1.one"] == kept["blocks.2.one"] == (0, "left out")
    layers = [layer for g in result.result.allocation for layer in g.layers]
    assert len(layers) == len(set(layers)) == 10
    # What is left is what the original computes.
    assert result.result.host_agreement == 1.0
    assert result.result.board_agreement > 0.98
    block = 2 * (9 * 32 * 32 + 32)
    whole = 9 * 32 + 32 + 4 * block + 32 * 3 + 3
    assert (result.baseline.parameters, result.result.parameters) == (whole, whole - 2 * block)
    nodes = [node.op_type for node in onnx.load(run / "model.onnx").graph.node]
    assert nodes.count("Conv") == 5


def test_starts_are_told_apart_in_the_shortlist_and_the_best_was_taken(shallow):
    done, run = shallow
    result = load(FitResult, (run / "result.json").read_bytes())
    contenders = result.shortlist.contenders
    assert [c.branches for c in contenders[:3]] == [0, 1, 2]
    (taken,) = [c for c in contenders if c.taken]
    assert taken.branches == 2
    assert taken.divergence == min(c.divergence for c in contenders) < 0.01
    assert contenders[0].divergence > 10 * taken.divergence
    assert "the best as scored, 2 branches left out" in (run / "report.html").read_text()
    assert result.front.note == "The front is that of the network without 2 branches."
    assert [c.label for c in result.front.candidates] == ["joint 1"]
    for stage in ("branches", "allocate joint 1 without 1 branch", "shortlist joint 1"):
        assert f"✓ {stage}" in done.stderr


def test_a_rerun_resumes_and_the_strategy_alone_builds_the_same(shallow, folder, arguments):
    _, run = shallow
    before = load(FitResult, (run / "result.json").read_bytes())
    again = boardfit(folder, *arguments, "--out", "run")
    assert again.returncode == 0, again.stderr
    assert load(FitResult, (run / "result.json").read_bytes()).result == before.result
    given = ("--strategy", str(run / "strategy.json"))
    done = boardfit(folder, *arguments, *given, "--out", "given")
    assert done.returncode == 0, done.stderr
    other = load(FitResult, (folder / "given" / "result.json").read_bytes())
    assert other.result.onnx_sha256 == before.result.onnx_sha256
    assert other.result.notes == before.result.notes
    assert other.result.allocation == before.result.allocation
