"""A saved latency model in the place of a calibration: anchored, kept, and of this board only."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness import calibrate, networks, posing
from harness.boards import rules
from harness.errors import ConfigError
from harness.folder import Folder
from harness.posing import SavedModel
from harness.records import BoardSpec
from latency_models import calibration, graph
from latency_models.kernels import Work
from latency_models.profiles import load
from tests.compression.tiny import Twice, seeded
from tests.report.conftest import FACTS
from tests.test_proposing import Watcher

IMAGE = torch.zeros(1, 1, 8, 8)
BOARD = replace(FACTS, simd="avx512")
CPU = rules.fusion_rules(BOARD)
PRECISIONS = ("fp32", "int8")


class Listener(Watcher):
    """One who notes what is warned of."""

    def __init__(self):
        super().__init__()
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


@pytest.fixture
def baseline():
    return SimpleNamespace(candidate=SimpleNamespace(latency_s=1.0))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "baseline.onnx"
    networks.export_onnx(seeded(Twice), IMAGE, path)
    return path


@pytest.fixture
def bench(path):
    """What a fit asks about its network, without a board."""
    return SimpleNamespace(
        folder=Folder(path.parent / "run", {}, Listener()),
        kernels=lambda path: graph.read(path, runtime=CPU),
        path_of=lambda _: path,
    )


def works(path) -> tuple[Work, ...]:
    return tuple(graph.work(kernel) for kernel in graph.read(path, runtime=CPU))


def of_datasheet(profile="generic-cpu", runtime=CPU):
    return calibration.prior(load(profile), runtime=runtime)


def calibrated(path):
    """A model that saw every kernel of the network, each at twice the datasheet's time."""
    prior = of_datasheet()
    samples = [(work, 2 * float(prior.predict_kernels([work])[0])) for work in works(path)]
    return calibration.fit(samples, [], profile=prior.profile, runtime=CPU)


def test_a_saved_model_is_anchored_at_the_baseline_as_it_is_now(bench, path, baseline):
    model = calibrated(path)
    mine = works(path)
    # The board is found at a third of its former pace.
    baseline.candidate.latency_s = 3 * model.predict(mine)
    found = posing._anchored(bench, baseline, path, SavedModel(file="nano.json", model=model))
    assert found.kernel_samples == model.kernel_samples
    ((kept, seconds, *_),) = found.network_samples
    assert (tuple(kept), seconds) == (mine, baseline.candidate.latency_s)
    # One network: half of the log residual that the refitted formula leaves.
    left = math.log(baseline.candidate.latency_s / replace(found, anchor_=1.0).predict(mine))
    assert found.anchors == 1
    assert math.log(found.anchor_) == pytest.approx(left / 2)
    assert model.predict(mine) < found.predict(mine) < baseline.candidate.latency_s
    (stage,) = bench.folder.stages
    assert (stage.name, stage.detail) == ("anchor", f"nano.json ({model.sha256[:12]})")
    assert bench.folder.observer.warned == []


def test_a_resumed_fit_keeps_the_model_that_it_was_anchored_to(bench, path, baseline):
    saved = SavedModel(file="nano.json", model=calibrated(path))
    first = posing._anchored(bench, baseline, path, saved)
    baseline.candidate.latency_s = 99.0
    assert posing._anchored(bench, baseline, path, saved).to_json() == first.to_json()


def test_kernels_that_a_saved_model_never_saw_are_warned_of(bench, path, baseline):
    saved = SavedModel(file="sheet.json", model=of_datasheet())
    found = posing._anchored(bench, baseline, path, saved)
    (said,) = bench.folder.observer.warned
    assert said.startswith("sheet.json has no measurement of ")
    assert "conv_3x3 in fp32" in said and "leave --latency-model out" in said
    assert set(found.measured_groups) == {(work.kind, work.precision) for work in works(path)}


def session(**spec):
    return SimpleNamespace(spec=BoardSpec(name="desk", **spec), facts=BOARD)


def test_a_model_of_the_board_is_taken(path):
    assert BOARD.runtime == "onnxruntime"
    calibrate.check_model(calibrated(path), session(), precisions=PRECISIONS)
    nano = of_datasheet("jetson-nano-cpu")
    calibrate.check_model(nano, session(profile="jetson-nano-cpu"), precisions=("fp32",))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (of_datasheet(runtime="onnxruntime-cpu-arm"), "generic-cpu with onnxruntime-cpu-arm,"),
        (of_datasheet("jetson-nano-cpu"), f"jetson-nano-cpu with {CPU}"),
        (replace(of_datasheet(), precisions=("fp32",)), f"with {CPU}, without int8, and"),
    ],
)
def test_a_model_of_another_board_is_refused_with_both_named(model, said):
    with pytest.raises(ConfigError) as refused:
        calibrate.check_model(model, session(), precisions=PRECISIONS)
    text = str(refused.value)
    assert said in text
    assert f"board desk is generic-cpu with {CPU} and computes in fp32, int8" in text
    assert "boardfit calibrate --board desk --out DIR" in text
