"""Predicted costs of variants against those of the variants that are then built."""

from __future__ import annotations

import random
from dataclasses import astuple, replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from harness import networks
from harness.compression import prune, quantize
from harness.compression.groups import find_groups
from harness.compression.shapes import parameter_shapes
from harness.errors import LatencyModelError
from harness.planning.costs import VariantCosts, engine_estimate, with_losses
from harness.records import Estimate, Option
from latency_models import calibration, graph, profiles
from latency_models.liveness import liveness
from latency_models.operators import Op
from tests.benchmarks.compression_networks import EfficientNetLite0
from tests.compression import tiny
from tests.latency_models.arena import allocated, local_runtime
from tests.planning.tiny import layer_cost
from tests.sensitivity import cifar_resnet

BOARD = tiny.facts()
RUNTIME = "onnxruntime-cpu"
SMALL = (
    tiny.Residual,
    tiny.Padded,
    tiny.Inverted,
    tiny.Concatenated,
    tiny.Grouped,
    tiny.Excited,
    tiny.Dense,
    tiny.Shuffled,
    tiny.Normalised,
    tiny.Twice,
)


class Case:
    """A network with its groups and costs, and variants of it that are really built."""

    def __init__(self, network, example, folder, *, runtime=RUNTIME, seed=0):
        self.network, self.example, self.folder = network, example, folder
        self.random = random.Random(seed)
        self.groups = find_groups(network, example, blocks=True)
        baseline = folder / "baseline.onnx"
        networks.export_onnx(network, example, baseline)
        self.costs = VariantCosts(
            baseline,
            self.groups,
            shapes=parameter_shapes(network, example, self.groups),
            runtime=runtime,
            form=quantize.form_of(BOARD),
        )

    def uniform(self, method):
        """Half the channels of wide groups, all layers in int8: what strategies begin with."""
        kept, options = {}, {}
        for group in self.groups:
            wide = group.prunable and group.channels >= 16 and method != "quantize"
            count = group.channels // 16 * 8 if wide else group.channels
            kept[group.name] = tuple(range(count))
            precision = "fp32" if method == "prune" else "int8"
            options[group.name] = Option(channels=count, precision=precision)
        return kept, options

    def allocation(self, method):
        """Any channels of every group that can be pruned, any layers in int8."""
        kept, options = {}, {}
        for group in self.groups:
            places = range(group.channels // group.blocks)
            chosen = list(places)
            if group.prunable and method != "quantize":
                count = self.random.randint(max(1, len(places) // 4), len(places))
                chosen = sorted(self.random.sample(places, count))
            size = len(places)
            kept[group.name] = tuple(b * size + p for b in range(group.blocks) for p in chosen)
            int8 = method != "prune" and self.random.random() < 0.7
            options[group.name] = Option(
                channels=len(kept[group.name]), precision="int8" if int8 else "fp32"
            )
        return kept, options

    def built(self, kept, options):
        """Size, parameters and MACs of the variant, as candidates have them."""
        variant = prune.prune(self.network, self.example, self.groups, kept)
        path = self.folder / "variant.onnx"
        networks.export_onnx(variant, self.example, path)
        int8 = [
            layer
            for group in self.groups
            if options[group.name].precision == "int8"
            for layer in group.producers
        ]
        if int8:
            images = np.random.default_rng(0).standard_normal((2, *self.example.shape[1:]))
            quantize.quantize(
                path,
                path,
                calibration=images.astype(np.float32),
                int8_layers=int8,
                board=BOARD,
                correct_bias=True,
            )
        parameters = networks.count_parameters(variant)
        return path.stat().st_size, parameters, networks.count_macs(variant, self.example)

    def check(self, method):
        kept, options = self.allocation(method)
        size, parameters, macs = self.built(kept, options)
        found = self.costs.predicted(options)
        assert (found.parameters, found.macs) == (parameters, macs)
        assert found.size_bytes.exact
        assert found.size_bytes.value == size
        assert found.engine_bytes.value == found.size_bytes.value
        held = liveness(graph.read(self.folder / "variant.onnx", runtime=RUNTIME), block=16)
        memory = self.costs.memory(options)
        assert memory.peak_bytes == pytest.approx(held.peak_bytes, rel=0.01)
        assert memory.grown_bytes == pytest.approx(held.grown_bytes, rel=0.01)
        peak = found.peak_activation_bytes
        assert peak.low <= peak.value <= peak.high
        assert sum(layer.macs for layer in found.layers) == macs


@pytest.fixture
def small(tmp_path):
    def make(kind, **options):
        return Case(tiny.seeded(kind), torch.randn(1, 1, 8, 8), tmp_path, **options)

    return make


@pytest.mark.parametrize("method", ["prune", "quantize", "joint"])
@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_costs_are_those_of_the_variant_that_is_built(kind, method, small):
    small(kind).check(method)


@pytest.mark.parametrize("method", ["prune", "quantize", "joint"])
def test_costs_of_resnet20_are_those_of_the_variant_that_is_built(method, tmp_path):
    torch.manual_seed(0)
    network = cifar_resnet.resnet20().eval()
    Case(network, torch.randn(1, 3, 32, 32), tmp_path).check(method)


@pytest.mark.parametrize(
    ("make", "size"), [(cifar_resnet.resnet56, 32), (EfficientNetLite0, 64)], ids=("r56", "lite0")
)
def test_costs_of_large_networks_are_those_of_the_variant_that_is_built(make, size, tmp_path):
    torch.manual_seed(0)
    Case(make().eval(), torch.randn(1, 3, size, size), tmp_path).check("joint")


def test_costs_of_the_demo_are_those_of_the_variant_that_is_built(tmp_path):
    network = networks.load_network("data/demo/network.py:factory", None)
    case = Case(network, torch.randn(1, 1, 28, 28), tmp_path)
    for method in ("prune", "quantize", "joint"):
        case.check(method)


@pytest.mark.skipif(local_runtime() != RUNTIME, reason="the arena is another without AVX-512")
@pytest.mark.parametrize("method", ["prune", "quantize", "joint"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (tiny.Mobile, (1, 3, 64, 64)),
        (cifar_resnet.resnet20, (1, 3, 32, 32)),
        (lambda: networks.load_network("data/demo/network.py:factory", None), (1, 1, 28, 28)),
    ],
    ids=("mobile", "resnet20", "demo"),
)
def test_memory_is_what_onnxruntime_allocates_for_the_variant(make, shape, method, tmp_path):
    torch.manual_seed(0)
    case = Case(make().eval(), torch.randn(shape), tmp_path)
    kept, options = case.uniform(method)
    case.built(kept, options)
    found = case.costs.predicted(options).peak_activation_bytes
    real = allocated(tmp_path / "variant.onnx")
    assert found.value == pytest.approx(real, rel=0.1)
    assert found.low <= real <= found.high


def test_the_original_costs_what_its_file_says(small, tmp_path):
    case = small(tiny.Residual)
    found = case.costs.predicted(case.costs.whole)
    assert found.size_bytes.value == (tmp_path / "baseline.onnx").stat().st_size
    assert found.parameters == networks.count_parameters(case.network)
    assert found.macs == networks.count_macs(case.network, case.example)


def test_the_size_is_known_of_a_file_without_its_weights(small, tmp_path):
    case = small(tiny.Residual)
    model = onnx.load(tmp_path / "baseline.onnx")
    onnx.save(model, tmp_path / "light.onnx", save_as_external_data=True, size_threshold=0)
    light = onnx.load(tmp_path / "light.onnx", load_external_data=False)
    costs = VariantCosts(
        light,
        case.groups,
        shapes=parameter_shapes(case.network, case.example, case.groups),
        runtime=RUNTIME,
    )
    assert costs.size_bytes(costs.whole) == (tmp_path / "baseline.onnx").stat().st_size


def test_rows_of_layers_say_what_each_reads_computes_and_writes(small):
    case = small(tiny.Inverted, runtime="onnxruntime-cpu-arm")
    options = case.costs.whole | {"classifier": Option(channels=3, precision="int8")}
    rows = {row.layer: row for row in case.costs.layers(options)}
    stem, depthwise, last = rows["stem"], rows["depthwise"], rows["classifier"]
    # 1 channel of 8 x 8 in, 4 out: 4 x 9 weights and 4 biases.
    assert (stem.channels_in, stem.channels_out, stem.parameters) == (1, 4, 40)
    assert (stem.macs, stem.weight_bytes) == (64 * 36, 4 * 40)
    assert (stem.read_bytes, stem.written_bytes) == (4 * 64, 4 * 256)
    assert (depthwise.kind, depthwise.macs, depthwise.parameters) == ("conv_depthwise", 64 * 72, 80)
    # 6 x 3 weights of a byte, 3 biases of four.
    assert (last.precision, last.weight_bytes, last.parameters) == ("int8", 18 + 12, 21)


def test_a_layer_that_is_called_twice_has_its_numbers_once(small):
    case = small(tiny.Twice)
    rows = [row for row in case.costs.layers(case.costs.whole) if row.layer == "shared"]
    assert [row.parameters for row in rows] == [64 * 64 * 9 + 64, 0]
    assert rows[0].macs == rows[1].macs == 64 * 64 * 64 * 9


def test_fp16_halves_the_weights_and_leaves_the_file(small):
    case = small(tiny.Residual, runtime="tensorrt")
    whole = case.costs.whole
    halves = {n: Option(channels=o.channels, precision="fp16") for n, o in whole.items()}
    before, after = case.costs.predicted(whole), case.costs.predicted(halves)
    assert after.size_bytes.value == before.size_bytes.value
    weights = [sum(r.weight_bytes - 4 * r.channels_out for r in p.layers) for p in (before, after)]
    assert weights[0] == 2 * weights[1]
    assert after.engine_bytes.value < before.engine_bytes.value
    assert not after.engine_bytes.exact


def test_an_engine_is_its_weights_and_what_kernels_add(small):
    case = small(tiny.Residual, runtime="tensorrt")
    found = case.costs.predicted(case.costs.whole)
    weights = sum(layer.weight_bytes for layer in found.layers)
    kernels = sum(bool(kernel.nodes) for kernel in case.costs.rewritten(case.costs.whole))
    assert found.engine_bytes.low == weights
    assert found.engine_bytes.high == weights + 45_000 * kernels
    assert found.size_bytes.exact


def test_engines_that_were_built_on_a_nano_lie_within_the_estimate():
    """EfficientDet-D0 in fp16: 3.9 million parameters, 403 layers, 19 MB."""
    layer = layer_cost("all", precision="fp16", parameters=3_900_000, weight_bytes=7_800_000)
    found = engine_estimate("tensorrt", 0, [layer], kernels=403)
    assert found.low <= 19 * 2**20 <= found.high
    assert found.value == pytest.approx(19 * 2**20, rel=0.25)


def test_seconds_of_merged_layers_are_shared_by_what_they_compute(small):
    """A GPU runs both branches as one kernel where they are alike; no model is needed for that."""
    case = small(tiny.Concatenated, runtime="tensorrt-6")
    kernels = case.costs.rewritten(case.costs.whole)
    assert any(_weighted(kernel.ops) > 1 for kernel in kernels)

    class Timed:
        runtime = "tensorrt-6"

        def predict_kernels(self, works):
            return [1.0] * len(works)

    rows = {r.layer: r for r in case.costs.layers(case.costs.whole, model=Timed())}
    # 4 and 6 channels of 3 x 3 over the same input: two fifths and three fifths of a second.
    assert rows["left"].latency_s == pytest.approx(0.4)
    assert rows["right"].latency_s == pytest.approx(0.6)
    assert rows["left"].read_bytes == 4 * 64
    assert rows["right"].read_bytes == 0


def test_variants_are_known_by_their_ratio_to_a_measured_original(small):
    """The datasheet says what it says of both; the original was measured at twice as much."""
    case = small(tiny.Residual)
    model = calibration.prior(profiles.load("generic-cpu"), runtime=RUNTIME)
    whole = case.costs.whole
    narrow = {g.name: replace(whole[g.name], channels=1) for g in case.groups if g.prunable}
    unmeasured = case.costs.predicted(whole | narrow, model=model)
    took_s = 2 * model.predict(case.costs.works)
    measured = Estimate(value=took_s, low=0.98 * took_s, high=1.03 * took_s)
    same, variant = (
        case.costs.predicted(options, model=model, measured=measured)
        for options in (whole, whole | narrow)
    )
    # As long as it took, give or take what measuring it leaves open; and as long as itself.
    assert astuple(same.latency_s) == pytest.approx(astuple(measured))
    assert same.latency_ratio == Estimate.exactly(1.0)
    assert variant.latency_s.value == pytest.approx(2 * unmeasured.latency_s.value)
    assert variant.latency_ratio.value == pytest.approx(unmeasured.latency_ratio.value)
    doubts = [e.high / e.low for e in (variant.latency_s, unmeasured.latency_s)]
    assert doubts[0] < doubts[1]


def test_neither_latency_nor_ratio_is_known_worse_for_a_poor_measurement(small):
    case = small(tiny.Residual)
    model = calibration.prior(profiles.load("generic-cpu"), runtime=RUNTIME)
    whole = case.costs.whole
    narrow = {g.name: replace(whole[g.name], channels=1) for g in case.groups if g.prunable}
    took_s = model.predict(case.costs.works)
    measured = Estimate(value=took_s, low=took_s / 1000, high=1000 * took_s)
    before = case.costs.predicted(whole | narrow, model=model)
    after = case.costs.predicted(whole | narrow, model=model, measured=measured)
    assert (after.latency_s, after.latency_ratio) == (before.latency_s, before.latency_ratio)


def _weighted(ops: tuple[Op, ...]) -> int:
    return sum(op.weight is not None for op in ops)


def test_losses_are_given_to_the_layers_that_are_named(small):
    case = small(tiny.Residual)
    found = with_losses(case.costs.predicted(case.costs.whole), {"stem": 0.5})
    assert {row.layer: row.loss for row in found.layers if row.loss is not None} == {"stem": 0.5}


def test_widths_that_do_not_fit_are_an_error_of_the_latency_model(small):
    case = small(tiny.Grouped)
    whole = case.costs.whole
    group = next(g for g in case.groups if g.blocks > 1)
    options = whole | {group.name: Option(channels=1, precision="fp32")}
    with pytest.raises(LatencyModelError):
        case.costs.size_bytes(options)


def test_a_layer_that_the_file_has_not_is_an_error(small, tmp_path):
    case = small(tiny.Residual)
    shapes = parameter_shapes(case.network, case.example, case.groups)
    other = tmp_path / "other.onnx"
    networks.export_onnx(nn.Sequential(nn.Conv2d(1, 4, 3)).eval(), case.example, other)
    with pytest.raises(LatencyModelError, match="has no kernel"):
        VariantCosts(other, case.groups, shapes=shapes, runtime=RUNTIME)
    assert graph.read(other)
