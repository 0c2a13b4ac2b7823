"""Verified plans: built for real from a small network, measured by a stand-in for the board."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness import networks
from harness.candidates import Measured
from harness.compression.groups import find_groups
from harness.compression.quantize import form_of
from harness.compression.shapes import parameter_shapes
from harness.errors import ConfigError, StableBoardError
from harness.folder import Folder
from harness.planning.generator import PlanSettings, plan
from harness.planning.preparing import prepare
from harness.planning.verify import _pair, rows_of, verify
from harness.records import Candidate, Estimate, Interval, Profile, Requirements
from harness.sensitivity.anchors import Images
from tests.compression.tiny import Residual, confident, facts
from tests.planning.tiny import predicted, require
from tests.strategies.test_tables import CPU, model_of
from tests.test_proposing import Watcher

IMAGES = torch.randn(192, 1, 8, 8, generator=torch.Generator().manual_seed(1))
PROFILE = Profile(network_sha256="0", runtime="fake", runtime_version="1", kernels=())


def candidate(label, **more):
    base = Candidate(
        label=label,
        role="joint",
        round=1,
        onnx_sha256="0",
        size_bytes=10_000,
        parameters=100,
        macs=1000,
        latency_s=0.012,
        latency_interval_s=Interval(0.011, 0.013, 0.95),
        latency_cv=0.01,
        n_samples=100,
        ratio=0.5,
        ratio_interval=Interval(0.45, 0.55, 0.95),
        top1=0.8,
        board_agreement=None,
        host_agreement=None,
        n_board_images=0,
    )
    return replace(base, **more)


class Patient(Watcher):
    """Training tells how long it takes as well."""

    def progress(self, done, total, *, left_s=None):
        assert 0 < done <= total and (left_s is None or left_s >= 0)


class Bench:
    """As a Workbench builds and measures; every engine takes half of the original's time.

    It is as right as its file. Meanwhile the board has slowed down: the original, at first 12 ms,
    takes 16.
    """

    def __init__(self, folder, network):
        self.network, self.folder = network, folder
        labels = networks_classes(network, IMAGES)
        self.data = networks.Data(IMAGES[:128], None, IMAGES[128:], labels[128:])
        self.session = SimpleNamespace(facts=facts())
        self.refuses = ""
        self.measured = []

    def measure_variant(self, variant, strategy, _groups, **more):
        if strategy.label == self.refuses:
            raise StableBoardError("the board refuses this engine")
        self.measured.append(strategy.label)
        right = networks.top1(
            networks.onnx_logits(variant.onnx, self.data.test_images.numpy()),
            self.data.test_labels.numpy(),
        )
        found = candidate(
            strategy.label,
            size_bytes=variant.size_bytes,
            parameters=variant.parameters,
            macs=variant.macs,
            latency_s=0.008,
            ratio=0.5,
            top1=right,
            predicted_loss=more["predicted_loss"],
        )
        return Measured(candidate=found, profile=PROFILE, warnings=())


def networks_classes(network, images):
    with torch.no_grad():
        return network(images).argmax(1)


@pytest.fixture
def ready(tmp_path):
    """A network that is sure of its classes, a plan for it, and a bench."""
    network = confident(Residual, IMAGES)
    path = tmp_path / "baseline.onnx"
    networks.export_onnx(network, IMAGES[:1], path)
    groups = find_groups(network, IMAGES[:1])
    subject = prepare(
        network,
        path,
        groups,
        parameter_shapes(network, IMAGES[:1], groups),
        model_of(CPU),
        source="prior",
        form=form_of(facts()),
        precisions=("fp32", "int8"),
        step=2,
        fine_step=2,
        images=Images(scored=IMAGES[:64], judged=IMAGES[64:128]),
        cache=tmp_path / "cache",
    )
    found = plan(
        Requirements(limits=(require("size", 0.75, relative=True),)),
        [subject],
        network="net",
        board="local",
        accuracy=1.0,
        settings=PlanSettings(epochs=1, student_epochs=1, images=64),
    )
    bench = Bench(Folder(tmp_path / "run", {}, Patient()), network)
    return SimpleNamespace(
        subject=subject,
        plan=found,
        bench=bench,
        baseline=Measured(candidate=candidate("baseline", top1=1.0), profile=PROFILE, warnings=()),
    )


def check(ready, top, **more):
    return verify(
        ready.plan,
        top,
        ready.bench,
        subjects=[ready.subject],
        model=model_of(CPU),
        baseline=ready.baseline,
        **more,
    )


def test_what_was_predicted_exactly_is_what_is_built_and_the_loss_is_learned_from(ready):
    names = [s.name for s in ready.plan.strategies[:4]]
    found = check(ready, 4)
    rows = found.verification.rows
    assert {row.name for row in rows} == set(names) == set(found.measured)
    assert {row.column for row in rows} == {
        "size",
        "parameters",
        "macs",
        "latency",
        "accuracy_drop",
    }
    for row in rows:
        if row.column in ("parameters", "macs"):
            assert row.actual == row.predicted.value, row
        if row.column == "size":
            assert row.actual == pytest.approx(row.predicted.value, rel=0.01), row
        if row.column == "latency":
            assert row.actual == 0.006  # half of 12 ms, though it took 8
    assert "recalibrated from 4 built variants" in found.verification.recalibration
    before, after = ready.subject.loss, found.subjects[0].loss
    assert after.built == 4 and before.built == 0
    trained = sum("distill" in s.strategy.methods for s in ready.plan.strategies[:4])
    assert after.learned == trained
    assert len(after.anchors.anchors) == len(before.anchors.anchors) + 4 - trained


def test_a_rerun_in_the_same_folder_builds_and_measures_nothing(ready):
    first = check(ready, 2)
    assert len(ready.bench.measured) == 2
    second = check(ready, 2)
    assert second.verification == first.verification
    assert len(ready.bench.measured) == 2
    resumed = [name for name, resumed in ready.bench.folder.observer.seen if resumed]
    assert len(resumed) == 4  # two builds and two measurements


def test_a_strategy_that_the_board_refuses_is_noted_and_the_others_go_on(ready):
    ready.bench.refuses = ready.plan.strategies[0].strategy.label
    found = check(ready, 2)
    pace, note = found.verification.notes
    assert "ratios to the original" in pace and "12.0 ms" in pace
    assert "the board refuses this engine" in note and ready.plan.strategies[0].name in note
    assert set(found.measured) == {ready.plan.strategies[1].name}


def test_a_student_that_was_not_given_is_asked_for(ready):
    first = ready.plan.strategies[0]
    of_another = replace(first, strategy=replace(first.strategy, student="nets.py:small"))
    ready.plan = replace(ready.plan, strategies=(of_another,))
    with pytest.raises(ConfigError, match=r"wants the student nets\.py:small"):
        check(ready, 1)


def test_what_a_student_lost_teaches_nothing_of_what_compressing_costs(ready):
    planned = next(one for one in ready.plan.strategies if one.strategy.methods)
    found, whole = candidate("a", top1=0.8), candidate("baseline", top1=1.0)
    pair = _pair(planned, ready.subject, found, whole, ready.bench)
    assert pair is not None and pair.drop == pytest.approx(20.0)
    taught = replace(ready.subject, student="nets.py:small")
    assert _pair(planned, taught, found, whole, ready.bench) is None


def test_rows_are_of_what_was_predicted_and_measured_alone():
    drop = Estimate(value=3.0, low=1.0, high=5.0)
    rows = rows_of(
        "a",
        predicted(accuracy_drop=drop, parameters=100, macs=1000),
        candidate("a", top1=0.77),
        candidate("baseline", top1=0.8),
    )
    by_column = {row.column: row for row in rows}
    assert by_column["accuracy_drop"].actual == pytest.approx(3.0)
    assert by_column["accuracy_drop"].covered
    # Half of what the baseline took, whatever the clock said of it on a slower board.
    slow = candidate("a", latency_s=0.03, ratio=0.5)
    rows = rows_of("a", predicted(), slow, candidate("baseline", latency_s=0.022))
    (latency,) = [row for row in rows if row.column == "latency"]
    assert latency.actual == pytest.approx(0.011) and latency.covered
    assert by_column["parameters"].covered and not by_column["size"].covered
    bare = rows_of(
        "a",
        predicted(accuracy_drop=None, latency_s=None),
        candidate("a", top1=None),
        candidate("baseline"),
    )
    assert {row.column for row in bare} == {"size", "parameters", "macs"}
