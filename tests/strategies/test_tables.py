"""Tables of costs against the network rewritten, and priced from scratch, for each allocation."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from harness import networks
from harness.compression.groups import find_groups
from harness.strategies import tables as tables_of
from harness.strategies.generator import options_for
from harness.strategies.predictor import NetworkCosts
from harness.strategies.tables import network_tables
from latency_models import graph, profiles
from latency_models.calibration import LatencyModel
from latency_models.model import HeldOut
from tests.benchmarks.allocation_real import groups_of, options_of, unmeasured
from tests.compression.tiny import Concatenated, Inverted, Mobile, Residual, Twice, seeded
from tests.latency_models.networks import inverted, joined
from tests.sensitivity.cifar_resnet import resnet20

CPU, AVX2, ARM, TENSORRT = (
    "onnxruntime-cpu",
    "onnxruntime-cpu-avx2",
    "onnxruntime-cpu-arm",
    "tensorrt",
)
COLOURED = (Mobile, resnet20)
PROFILES = {
    CPU: "generic-cpu",
    AVX2: "generic-cpu",
    ARM: "jetson-nano-cpu",
    TENSORRT: "jetson-nano",
}


def model_of(runtime: str) -> LatencyModel:
    """What the datasheet says, of int8 too where it says nothing."""
    model = unmeasured(PROFILES[runtime], runtime)
    return dataclasses.replace(model, precisions=tuple(sorted({*model.precisions, "int8"})))


def trained(kind, example, folder):
    """A network of layers, as groups and kernels for a runtime."""
    network = kind().eval() if kind in COLOURED else seeded(kind)
    path = folder / "network.onnx"
    networks.export_onnx(network, example, path)
    return path, find_groups(network, example)


def costs_of(kind, runtime, folder, *, model=None):
    """The costs of a network of torch layers, or of an ONNX graph built by hand."""
    if kind in (inverted, joined):
        kernels = graph.read(kind(), runtime=runtime)
        found = groups_of(kernels)
    else:
        shape = (1, 3, 32, 32) if kind in COLOURED else (1, 1, 8, 8)
        path, found = trained(kind, torch.zeros(shape), folder)
        kernels = graph.read(path, runtime=runtime)
    return NetworkCosts(
        kernels,
        found,
        model=model or model_of(runtime),
        baseline_size_bytes=1_000_000,
        coverage=0.0,
        size_scale=1.25,
    )


def random_choices(options, count, seed=1):
    rng = np.random.default_rng(seed)
    return [[int(rng.integers(len(own))) for own in options.values()] for _ in range(count)]


def picked(options, choice):
    pairs = zip(options.items(), choice, strict=True)
    return {name: own[j] for (name, own), j in pairs}


def assert_same(tables, costs, options, choice):
    alone = costs.costs(picked(options, choice))
    assert tables.latency_s(choice) == pytest.approx(alone.latency_s, rel=1e-9)
    assert tables.size_bytes.at(choice) == pytest.approx(alone.size_bytes, rel=1e-9)
    assert tables.macs.at(choice) == pytest.approx(alone.macs, rel=1e-9)


@pytest.mark.parametrize("runtime", [CPU, AVX2, ARM, TENSORRT])
@pytest.mark.parametrize(
    "kind", [Residual, Inverted, Mobile, Concatenated, Twice, inverted, joined]
)
def test_tables_add_up_to_what_the_rewritten_network_is_predicted_to_cost(kind, runtime, tmp_path):
    costs = costs_of(kind, runtime, tmp_path)
    precisions = ("fp32", "fp16") if runtime == TENSORRT else ("fp32", "int8")
    # Eighths of the channels: full blocks, parts of one, and numbers that no vector divides.
    options = options_of(costs.groups, precisions)
    tables = network_tables(costs, options)
    assert tables.exact
    for choice in random_choices(options, 25):
        assert_same(tables, costs, options, choice)


@pytest.mark.parametrize("kind", [Residual, Mobile])
def test_a_table_of_mixed_precisions_is_of_neighbours_alone(kind, tmp_path):
    """A layer's group, those of the layers before and behind it: what a solver can use."""
    costs = costs_of(kind, CPU, tmp_path)
    tables = network_tables(costs, options_of(costs.groups, ("fp32", "int8")))
    assert tables.exact
    assert max(len(table.groups) for table in tables.kernels_s.tables) <= 3
    assert tables.variants <= 100


@pytest.mark.parametrize(
    ("runtime", "precisions"),
    [
        (CPU, ("fp32",)),
        (AVX2, ("fp32",)),
        (ARM, ("fp32",)),
        (TENSORRT, ("fp32", "fp16")),
    ],
)
def test_tables_of_a_residual_network_are_exact(runtime, precisions, tmp_path):
    costs = costs_of(resnet20, runtime, tmp_path)
    options = options_for(costs.groups, precisions=precisions, step=8)
    tables = network_tables(costs, options)
    assert tables.exact
    for choice in random_choices(options, 10):
        assert_same(tables, costs, options, choice)


def test_tables_of_a_network_that_is_not_local_say_so_and_hold_at_the_reference(tmp_path):
    """Layouts are passed on along ResNet-20's padded shortcuts, from integer layer to layer."""
    costs = costs_of(resnet20, AVX2, tmp_path)
    options = options_for(costs.groups, precisions=("fp32", "int8"), step=8)
    for choice in random_choices(options, 2):
        at = picked(options, choice)
        tables = network_tables(costs, options, reference=at, largest_scope=16, checks=6)
        assert not tables.exact
        assert_same(tables, costs, options, choice)
        # Nearby they err by little, and sizes never do.
        assert 0 < tables.mismatch < 0.2
        for other in random_choices(options, 3):
            size = costs.costs(picked(options, other)).size_bytes
            assert tables.size_bytes.at(other) == pytest.approx(size, rel=1e-9)


def test_the_learned_residual_and_the_anchor_are_in_the_tables(tmp_path):
    model = model_of(CPU)
    costs = costs_of(Residual, CPU, tmp_path, model=model)
    sampled = tuple((w, 3e-6) for w in map(graph.work, costs.baseline))
    model = dataclasses.replace(
        model,
        kernel_samples=sampled,
        residual_=0.2,
        anchor_=1.3,
        held_out_=(HeldOut(0.1, 0.1),),
    )
    _, residual = model.parts([work for work, _ in sampled])
    assert np.abs(np.log(residual)).max() > 0.01
    costs = NetworkCosts(
        costs.baseline, costs.groups, model=model, baseline_size_bytes=10**6, coverage=0.0
    )
    options = options_of(costs.groups, ("fp32", "int8"))
    tables = network_tables(costs, options)
    for choice in random_choices(options, 10):
        assert_same(tables, costs, options, choice)


def test_where_the_host_queues_kernels_cuts_touch_the_latency_and_stay_below_it(tmp_path):
    costs = costs_of(Inverted, TENSORRT, tmp_path)
    options = options_of(costs.groups, ("fp32", "fp16"))
    tables = network_tables(costs, options)
    assert not tables.linear
    choices = random_choices(options, 12)
    for at in choices[:4]:
        cut = tables.cut(at)
        assert cut.at(at) == pytest.approx(tables.latency_s(at), rel=1e-9)
        for other in choices:
            assert cut.at(other) <= tables.latency_s(other) * (1 + 1e-12)
    with pytest.raises(ValueError, match="needs an allocation"):
        tables.cut()


def test_where_no_host_queues_kernels_one_cut_is_the_latency(tmp_path):
    costs = costs_of(Inverted, CPU, tmp_path)
    options = options_of(costs.groups, ("fp32", "int8"))
    tables = network_tables(costs, options)
    assert tables.linear
    cut = tables.cut()
    for choice in random_choices(options, 10):
        assert cut.at(choice) == pytest.approx(tables.latency_s(choice), rel=1e-9)


def test_no_two_tables_are_of_the_same_groups_and_states_are_told_apart(tmp_path):
    costs = costs_of(Residual, CPU, tmp_path)
    tables = network_tables(costs, options_of(costs.groups, ("fp32", "int8")))
    for quantity in (tables.kernels_s, tables.size_bytes, tables.macs):
        groups = [table.groups for table in quantity.tables]
        assert len(set(groups)) == len(groups)
        for table in quantity.tables:
            for axis, states in enumerate(table.states):
                assert set(states) == set(range(table.costs.shape[axis]))


def test_merging_tables_adds_what_each_says():
    rng = np.random.default_rng(0)
    sizes = (4, 3, 5)
    one = tables_of.Table(
        (0, 2), rng.random((2, 3)), (np.array([0, 1, 1, 0]), np.array([0, 1, 2, 0, 1]))
    )
    other = tables_of.Table((0, 2), rng.random((4, 2)), (np.arange(4), np.array([0, 0, 1, 1, 1])))
    alone = tables_of.Table((1,), rng.random(3), (np.arange(3),))
    wide = tables_of.Table((0, 1, 2), rng.random(sizes), tuple(map(np.arange, sizes)))
    apart = tables_of.Sum(1.0, (one, alone)), tables_of.Sum(2.0, (other, wide))
    both = apart[0].plus(apart[1])
    assert [table.groups for table in both.tables] == [(0, 1, 2)]
    for choice in itertools.product(*map(range, sizes)):
        expected = 3.0 + sum(table.at(choice) for table in (one, other, alone, wide))
        assert both.at(choice) == pytest.approx(expected)


def test_profiles_used_here_have_the_form_that_they_stand_for():
    assert profiles.load(PROFILES[CPU]).form == "mlas"
    assert profiles.load(PROFILES[TENSORRT]).form == "tiled"
