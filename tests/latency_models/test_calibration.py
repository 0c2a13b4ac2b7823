import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from latency_models import calibration, errors, graph, profiles, roofline, sweep
from latency_models.profiles import Scales
from tests.latency_models.networks import inverted, joined, residual

PROFILE = profiles.load("generic-cpu")
# What the version that wrote latency_model_v1.json predicted for its network.
PREDICTED_BY_V1 = 0.001865014154615167
TRUE = {"q": 2.0, "bw_act": 4e10, "bw_far": 2e10, "bw_w": 1e10, "c0": 3e-5}


def works_of(model):
    return tuple(graph.work(kernel) for kernel in graph.read(model))


class Machine:
    """A made-up computer that follows the formula, with parameters that are not the prior's."""

    def __init__(self, plan, *, noise=0.0, gap_s=-3e-6, seed=0):
        self.generator = np.random.default_rng(seed)
        self.noise, self.gap_s = noise, gap_s
        works = [w for n in plan.networks for w in n.expected.values()]
        works += [w for p in plan.probes for w in works_of(p.model)]
        self.layout = roofline.Layout.of({(w.kind, w.precision) for w in works}, PROFILE)
        self.theta = self.layout.start()
        for index, prior in enumerate(self.layout.priors):
            if prior.name.startswith(("eta", "t0")):
                self.theta[index] += self.generator.normal(0, 0.4)
        for name, value in TRUE.items():
            self.theta[self.layout.index(name)] = math.log(value)

    def kernel(self, work):
        seconds = roofline.kernel_seconds(
            self.theta, roofline.features([work], self.layout), self.layout
        )[0]
        return float(seconds) * math.exp(self.generator.normal(0, self.noise))

    def network(self, works):
        return TRUE["c0"] + sum(self.kernel(w) + self.gap_s for w in works)

    def samples(self, plan):
        kernels = [(w, self.kernel(w)) for n in plan.networks for w in n.expected.values()]
        networks = [(ws, self.network(ws)) for ws in (works_of(p.model) for p in plan.probes)]
        return kernels, networks


@pytest.fixture(scope="module")
def plan():
    return sweep.plan()


@pytest.fixture(scope="module")
def machine(plan):
    return Machine(plan)


@pytest.fixture(scope="module")
def model(plan, machine):
    return calibration.fit(*machine.samples(plan), profile=PROFILE)


def parameter(model, name):
    return next(p for p in model.parameters if p.name == name)


def test_calibration_recovers_what_the_machine_is(model, machine):
    for name in ("bw_w", "eta[conv_3x3,fp32]", "eta[conv_1x1,int8]", "t0[dequantize,int8]"):
        true = math.exp(machine.theta[machine.layout.index(name)])
        assert parameter(model, name).value == pytest.approx(true, rel=0.1), name


@pytest.mark.parametrize("build", [residual, inverted, joined])
def test_unseen_networks_are_predicted(model, machine, build):
    # The prior pulls where the sweep says little: a few percent, and no more.
    works = works_of(build())
    assert model.predict(works) == pytest.approx(machine.network(works), rel=0.06)


def test_one_stray_measurement_costs_little(plan, machine):
    kernels, networks = machine.samples(plan)
    kernels = [(w, s * (20 if i == 5 else 1)) for i, (w, s) in enumerate(kernels)]
    model = calibration.fit(kernels, networks, profile=PROFILE)
    works = works_of(residual())
    assert model.predict(works) == pytest.approx(machine.network(works), rel=0.05)


def test_ten_measurements_already_help(plan, machine):
    kernels, _ = machine.samples(plan)
    few = [sample for sample in kernels if sample[0].kind.startswith("conv")][:10]
    model = calibration.fit(few, [], profile=PROFILE)
    works = works_of(residual())
    naive = calibration.fit(few[:1], [], profile=PROFILE)
    truth = machine.network(works)
    assert abs(math.log(model.predict(works) / truth)) < abs(math.log(naive.predict(works) / truth))


def test_what_the_profiler_adds_is_found(plan):
    machine = Machine(plan, gap_s=-1e-6)
    model = calibration.fit(*machine.samples(plan), profile=PROFILE)
    works = works_of(inverted())
    assert model.predict(works) == pytest.approx(machine.network(works), rel=0.08)
    assert parameter(model, "gap").value == pytest.approx(-1.0, abs=1.0)


def test_a_kind_that_was_never_measured_is_flagged_and_not_free(plan, machine):
    kernels, _ = machine.samples(plan)
    kept = [(w, s) for w, s in kernels if w.kind != "conv_depthwise"]
    model = calibration.fit(kept, [], profile=PROFILE)
    works = works_of(inverted())
    assert ("conv_depthwise", "fp32") in model.unsupported(works)
    assert all(seconds > 0 for seconds in model.predict_kernels(works))
    known = calibration.fit(kernels, [], profile=PROFILE)
    low, high = model.interval(works)
    assert high / low > np.divide(*known.interval(works)[::-1])


def with_held_out(*residuals, spread=0.05):
    """A model whose networks were held out with these residuals, each claimed to ``spread``."""
    pairs = tuple(calibration.HeldOut(residual, spread) for residual in residuals)
    return dataclasses.replace(simple_model(), held_out_=pairs)


def half_width(model, works, coverage=0.9):
    low, high = model.interval(works, coverage)
    assert math.sqrt(low * high) == pytest.approx(model.predict(works))
    return math.log(high / low) / 2


def test_intervals_hold_what_they_promise():
    # 19 residuals 0.01 to 0.19 of a claimed 0.05: the 18th smallest (ceil(20 x 0.9)) is 3.6 times
    # what was claimed.
    model = with_held_out(*(0.01 * (i + 1) * (-1) ** i for i in range(19)))
    works = works_of(residual())
    assert half_width(model, works) == pytest.approx(3.6 * model.spread(works))


def test_few_residuals_are_stretched_and_not_believed():
    model = with_held_out(0.05, -0.02, 0.1)
    works = works_of(residual())
    # Three residuals vouch for 3/4: twice what was claimed, stretched by 1.645 / 1.150.
    expected = 2.0 * 1.6449 / 1.1503 * model.spread(works)
    assert half_width(model, works) == pytest.approx(expected, rel=1e-3)


def test_what_is_far_from_all_that_was_measured_gets_a_wider_interval(plan, machine):
    kernels, _ = machine.samples(plan)
    narrow = [(w, s) for w, s in kernels if w.kind != "conv_3x3" or w.shape.outputs < 40]
    model = calibration.fit(narrow, [], profile=PROFILE)
    known = calibration.fit(kernels, [], profile=PROFILE)
    works = works_of(residual())
    assert model.spread(works) > known.spread(works)


def simple_model():
    works = works_of(residual())
    return calibration.fit([(w, 1e-5) for w in works], [], profile=PROFILE)


def test_what_was_measured_since_corrects_the_model(model, machine):
    works = works_of(residual())
    truth = machine.network(works) * 1.3
    anchored = calibration.refit(model, network_samples=[(works, truth)])
    before, after = (abs(math.log(m.predict(works) / truth)) for m in (model, anchored))
    assert after < before / 2
    assert anchored.anchors == 1
    again = calibration.refit(anchored, network_samples=[(works, truth)])
    assert abs(math.log(again.predict(works) / truth)) < after


def test_a_variant_takes_its_baselines_times_in_the_models_ratio(model):
    kernels = graph.read(residual())
    baseline = [graph.work(k) for k in kernels]
    # Each kernel takes twice what the model thinks; so should the variant's, but for c0.
    times = {w.name: 2 * s for w, s in zip(baseline, model.predict_kernels(baseline), strict=True)}
    variant = [graph.work(k) for k in graph.rewrite(kernels, out_channels={"conv_2": 16})]
    expected = model.predict(variant) + model.predict_kernels(variant).sum()
    assert model.predict_anchored(variant, baseline, times) == pytest.approx(expected, rel=1e-6)


def test_a_model_survives_its_file(model):
    text = model.to_json()
    again = calibration.LatencyModel.from_json(text)
    assert again == model
    assert again.sha256 == model.sha256
    works = works_of(inverted())
    assert again.predict(works) == model.predict(works)


def test_the_file_says_units_priors_and_uncertainty(model):
    content = json.loads(model.to_json())
    assert content["schema_version"] == 3
    entry = next(p for p in content["parameters_"] if p["name"] == "bw_w")
    assert entry["unit"] == "bytes/s"
    assert entry["prior"] == pytest.approx(1.8e10)
    assert 0 < entry["uncertainty"] < 0.7
    assert content["profile"]["peak_flops"]["fp32"]["source"]


def test_a_model_keeps_its_runtime_and_its_boards_clocks():
    nano = profiles.load("jetson-nano")
    fitted = calibration.fit(
        [(w, 1e-5) for w in works_of(residual())], [], profile=nano, runtime="onnxruntime-cpu-arm"
    )
    again = calibration.LatencyModel.from_json(fitted.to_json())
    assert again.runtime == "onnxruntime-cpu-arm"
    assert again.profile == nano
    assert (
        calibration.refit(again, kernel_samples=fitted.kernel_samples[:1]).runtime
        == "onnxruntime-cpu-arm"
    )


def test_a_file_of_version_1_is_read():
    # As version 1 wrote it: no runtime, facts of two fields, a profile without clocks.
    old = (Path(__file__).parent / "latency_model_v1.json").read_text()
    assert json.loads(old)["schema_version"] == 1
    model = calibration.LatencyModel.from_json(old)
    assert model.runtime == "onnxruntime-cpu"
    assert (model.profile.clocks, dict(model.profile.power_modes)) == (None, {})
    assert model.profile.cache_bytes.confirmed
    works = model.network_samples[0][0]
    # What the release that wrote the file predicted.
    assert model.predict(works) == pytest.approx(PREDICTED_BY_V1)


def test_a_file_of_version_2_predicts_what_it_did(model):
    content = json.loads(model.to_json()) | {"schema_version": 2}
    del content["light_step"]
    old = calibration.LatencyModel.from_json(json.dumps(content))
    works = works_of(inverted())
    # All steps counted alike then.
    light = sum(1 - model.step(work.kind) for work in works)
    gap = next(p.value for p in model.parameters if p.name == "gap")
    assert light > 0 > gap
    assert old.predict(works) == pytest.approx(model.predict(works) + 1e-6 * gap * light)
    assert calibration.refit(old, kernel_samples=old.kernel_samples[:1]).light_step < 1


def test_a_model_at_other_clocks_scales_each_part_by_its_own():
    model = simple_model()
    works = works_of(residual())
    # Twice every clock is twice as fast, whatever the kernels are bound by.
    fast = model.at(Scales(gpu=2.0, cpu=2.0, memory=2.0))
    assert fast.predict(works) == pytest.approx(model.predict(works) / 2)
    assert model.at(Scales()) is model
    # Half of an overhead waits for the host: at half its clock that half takes twice as long.
    slow = model.at(Scales(cpu=0.5))
    view = [dataclasses.replace(works[0], kind="view", bytes_in=0, bytes_out=0)]
    assert slow.predict_kernels(view) == pytest.approx(1.5 * model.predict_kernels(view))
    assert slow.parameters == model.parameters
    # Back again is the same.
    back = slow.at(Scales(cpu=2.0))
    assert back.predict(works) == pytest.approx(model.predict(works))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "of version 99"),
        ({"parameters_": None}, "damaged"),
        ({"works": [["conv_1x1"]]}, "damaged"),
    ],
)
def test_a_file_that_is_not_right_is_refused(model, change, message):
    content = json.loads(model.to_json()) | change
    with pytest.raises(errors.FormatError, match=message):
        calibration.LatencyModel.from_json(json.dumps(content))


def test_text_that_is_no_model_is_refused():
    with pytest.raises(errors.FormatError, match="no latency model"):
        calibration.LatencyModel.from_json("[]")


def test_nothing_measured_calibrates_nothing():
    with pytest.raises(errors.CalibrationError, match="nothing was measured"):
        calibration.fit([], [], profile=PROFILE)


def test_a_time_that_is_not_positive_is_refused():
    item = works_of(residual())[0]
    with pytest.raises(errors.CalibrationError, match="measure it again"):
        calibration.fit([(item, 0.0)], [], profile=PROFILE)


def test_roofs_are_what_the_best_dense_kernel_reaches(model):
    peaks, bandwidth = model.roofs()
    assert set(peaks) == {"fp32", "int8"}
    # eta of the best kind x 160 Gflop/s / 2.
    dense = [p.value for p in model.parameters if p.name == "eta[conv_3x3,fp32]"]
    assert peaks["fp32"] >= dense[0] * 80e9
    assert bandwidth == parameter(model, "bw_act").value


def test_a_prior_is_the_datasheet_with_its_uncertainty_and_knows_that_nothing_was_measured():
    board = profiles.load("jetson-nano")
    model = calibration.prior(board, runtime="tensorrt")
    assert all(parameter.value == pytest.approx(parameter.prior) for parameter in model.parameters)
    assert not model.measured_groups
    work = graph.Work(
        kind="conv_1x1",
        macs=28 * 28 * 512 * 512,
        bytes_in=2 * 28 * 28 * 512,
        bytes_out=2 * 28 * 28 * 512,
        bytes_weights=2 * 512 * 512,
        shape=graph.Dims(28 * 28, 512, 512, 1, 1, 28),
        precision="fp16",
        name="conv",
    )
    assert model.unsupported([work]) == (("conv_1x1", "fp16"),)
    low, high = model.interval([work])
    # At the data sheet's 472 Gflop/s the arithmetic alone takes 2 * 205.5e6 / 471.9e9 = 0.87 ms.
    assert low < 2 * work.macs / 471.9e9 < high
    assert high / low > 4
    assert calibration.LatencyModel.from_json(model.to_json()).predict([work]) == model.predict(
        [work]
    )
    # Less certain than a wider coverage of itself, and wider than anything that was calibrated.
    assert model.interval([work], 0.5)[1] < high
