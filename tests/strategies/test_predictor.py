"""What the predictor says of a variant against the variant itself, built for real."""

from pathlib import Path

import pytest
import torch

from harness import networks
from harness.compression import groups, prune, quantize
from harness.errors import LatencyModelError
from harness.records import BoardFacts, Group, Option
from harness.strategies.predictor import NetworkCosts
from latency_models import graph, profiles
from tests.compression.tiny import Twice

DEMO = Path(__file__).parents[2] / "data" / "demo"
FACTS = BoardFacts(
    board="local",
    hostname="h",
    machine="x86_64",
    cpu_model="c",
    cores=2,
    memory_bytes=1,
    os="Linux",
    python="3.11",
    runtime="onnxruntime",
    runtime_version="1.20",
    providers=("CPUExecutionProvider",),
    int8="vnni",
    agent_hash="a",
)


class OneSecondAGigaMac:
    """A latency model whose arithmetic can be done by hand."""

    profile = profiles.load("generic-cpu")
    runtime = "onnxruntime-cpu"

    def predict(self, works):
        return sum(work.macs for work in works) / 1e9

    def interval(self, works, _coverage):
        seconds = self.predict(works)
        return seconds / 2, seconds * 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    network = networks.load_network(f"{DEMO / 'network.py'}:factory", None)
    example = torch.zeros(1, 1, 28, 28)
    path = tmp_path_factory.mktemp("demo") / "baseline.onnx"
    networks.export_onnx(network, example, path)
    return network, example, groups.find_groups(network, example), path


def costs_of(demo, **options):
    _, _, found, path = demo
    return NetworkCosts(
        graph.read(path),
        found,
        model=OneSecondAGigaMac(),
        baseline_size_bytes=path.stat().st_size,
        **options,
    )


@pytest.mark.parametrize(
    ("share", "int8"), [(1.0, "none"), (0.5, "none"), (1.0, "all"), (0.625, "all"), (0.75, "some")]
)
def test_macs_are_exact_and_size_is_close_for_variants_built_for_real(demo, tmp_path, share, int8):
    network, example, found, _ = demo
    chosen = {}
    for index, group in enumerate(found):
        integer = int8 == "all" or (int8 == "some" and index % 2 == 0)
        chosen[group.name] = Option(
            channels=round(group.channels * share) if group.prunable else group.channels,
            precision="int8" if integer else "fp32",
        )
    predicted = costs_of(demo).costs(chosen)

    kept = {group.name: tuple(range(chosen[group.name].channels)) for group in found}
    variant = prune.prune(network, example, found, kept)
    path = tmp_path / "variant.onnx"
    networks.export_onnx(variant, example, path)
    layers = [layer for g in found if chosen[g.name].precision == "int8" for layer in g.producers]
    if layers:
        quantize.quantize(
            path,
            path,
            calibration=torch.randn(8, 1, 28, 28).numpy(),
            int8_layers=layers,
            board=FACTS,
        )
    built = [graph.work(kernel) for kernel in graph.read(path)]
    assert predicted.macs == sum(work.macs for work in built)
    assert predicted.macs == networks.count_macs(variant, example)
    assert predicted.size_bytes == pytest.approx(path.stat().st_size, rel=0.03)
    assert predicted.latency_s == pytest.approx(predicted.macs / 1e9)


def test_the_upper_bound_is_the_models_and_at_coverage_0_the_prediction(demo):
    full = {g.name: Option(channels=g.channels, precision="fp32") for g in demo[2]}
    bounded = costs_of(demo, coverage=0.9).costs(full)
    assert bounded.upper_s == pytest.approx(2 * bounded.latency_s)
    plain = costs_of(demo, coverage=0.0).costs(full)
    assert plain.upper_s == plain.latency_s


def test_a_group_without_a_kernel_is_named(demo):
    _, _, found, path = demo
    ghost = Group(name="ghost", channels=8, producers=("ghost",), consumers=(), prunable=True)
    with pytest.raises(LatencyModelError, match="ghost"):
        NetworkCosts(
            graph.read(path), (*found, ghost), model=OneSecondAGigaMac(), baseline_size_bytes=1
        )


def test_a_layer_that_is_called_twice_is_stored_once(tmp_path):
    example = torch.rand(2, 1, 8, 8)
    wide, narrow = Twice(64).eval(), tmp_path / "narrow.onnx"
    networks.export_onnx(wide, example, tmp_path / "wide.onnx")
    networks.export_onnx(Twice(32).eval(), example, narrow)
    found = groups.find_groups(wide, example)
    demo = wide, example, found, tmp_path / "wide.onnx"
    costs = costs_of(demo).costs(
        {
            group.name: Option(channels=32 if group.prunable else group.channels, precision="fp32")
            for group in found
        }
    )
    assert costs.size_bytes == pytest.approx(narrow.stat().st_size, rel=0.01)
