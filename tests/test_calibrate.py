"""A calibration on a board that is made up: what is measured, kept, planned and accounted for."""

import dataclasses

import numpy as np
import onnx
import pytest

from harness import calibrate, pacing
from harness.boards import rules
from harness.records import BoardSpec, Conditions, KernelTime, Measurement, Profile
from harness.store import Store
from latency_models import choice, graph, profiles
from tests.report.conftest import FACTS

PRIOR = profiles.load("generic-cpu")
BOARD = dataclasses.replace(FACTS, simd="avx512")


class MadeUpBoard:
    """A session with a board whose kernels take what the datasheet says, times a factor.

    Each kind is off by a factor of its own, each kernel by a little, always the same. Raises
    ``KeyboardInterrupt`` instead of job number ``interrupt``.
    """

    def __init__(self, *, slower=1.0, interrupt=None, facts=BOARD):
        self.spec, self.facts = BoardSpec(name="local"), facts
        self.slower, self.interrupt = slower, interrupt
        self.jobs = []

    def put(self, path):
        return pacing.digest_of(path)

    def _begin(self, job):
        if self.interrupt is not None and len(self.jobs) == self.interrupt:
            raise KeyboardInterrupt
        self.jobs.append(job)

    def _kernels(self, path):
        kernels = graph.read(path, runtime=rules.fusion_rules(self.facts))
        works = [graph.work(kernel) for kernel in kernels]
        seconds = choice.predicted_seconds([[w] for w in works], PRIOR)
        odd = [1 + 0.3 * np.sin(len(w.kind)) + 0.05 * np.sin(w.shape.rows + w.macs) for w in works]
        return kernels, self.slower * seconds * np.array(odd)

    def engine_key(self, path, *, precision):
        del path, precision
        return ""  # onnxruntime makes one engine of a file

    def profile(self, path, *, runs, precision):
        del precision
        assert runs == pacing.PROFILE_RUNS
        self._begin(("profile", self.put(path)))
        kernels, seconds = self._kernels(path)
        ops = {"reorder_input": "ReorderInput", "reorder_output": "ReorderOutput"}
        rows = [
            KernelTime(
                name=k.name,
                op=ops.get(k.kind, "Transpose") if not k.nodes else "",
                node=k.nodes[0] if k.nodes else "",
                latency_s=float(s),
            )
            for k, s in zip(kernels, seconds, strict=True)
        ]
        return Profile(
            network_sha256=self.put(path),
            runtime="onnxruntime",
            runtime_version=self.facts.runtime_version,
            kernels=tuple(rows),
        )

    def measure(self, requests, *, plan, campaign):
        self._begin((campaign, *(self.put(r.path) for r in requests)))
        taken = []
        for request in requests:
            latency_s = float(self._kernels(request.path)[1].sum())
            taken.append(
                Measurement(
                    label=request.label,
                    network_sha256=self.put(request.path),
                    runtime="onnxruntime",
                    runtime_version=self.facts.runtime_version,
                    precision=request.precision,
                    batch=1,
                    threads=1,
                    samples_s=(latency_s,) * 2 * plan.rounds,
                    rounds=tuple(n for n in range(plan.rounds) for _ in range(2)),
                    warmup_s=(latency_s,) * 2,
                    before=Conditions(),
                    after=Conditions(),
                    board="local",
                    campaign=campaign,
                    taken_at="2024-05-01T12:00:00+00:00",
                )
            )
        return tuple(taken)


class Watcher:
    """An observer that writes down what it hears."""

    def __init__(self):
        self.heard = []

    def progress(self, done, total, *, left_s=None):
        self.heard.append((done, total, left_s))


def run(board, folder, *, watcher=None, **options):
    folder.mkdir(exist_ok=True)
    with Store(folder / "measurements.db") as store:
        return calibrate.calibrate(
            board,
            store,
            watcher or Watcher(),
            reference=(),
            precisions=("fp32",),
            yardstick=calibrate.folder_yardstick(board, store, folder),
            **options,
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    board, watcher = MadeUpBoard(), Watcher()
    return run(board, tmp_path_factory.mktemp("whole"), watcher=watcher), board, watcher


def test_the_second_stage_follows_the_first_and_the_whole_networks(finished):
    _, board, _ = finished
    kinds = ["profile" if job[0] == "profile" else job[0].split()[0] for job in board.jobs]
    paced = ["pace", "profile", "pace"]
    # Nine networks, eight a job, in three turns.
    assert kinds == ["yardstick", *2 * paced, *calibrate.TURNS * 2 * ["sweep"], *2 * paced]


@pytest.mark.parametrize("jobs", [2, 7, 9])
def test_what_an_interrupted_calibration_measured_is_not_measured_again(finished, tmp_path, jobs):
    whole, uninterrupted, _ = finished
    first = MadeUpBoard(interrupt=jobs)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    second = MadeUpBoard()
    resumed = run(second, tmp_path)
    assert len(first.jobs) == jobs
    assert [*first.jobs, *second.jobs] == uninterrupted.jobs
    assert resumed.model.to_json() == whole.model.to_json()
    assert resumed.times.kernels == whole.times.kernels
    assert resumed.times.measure_s < whole.times.measure_s


def test_a_finished_calibration_measures_nothing_and_says_so(finished, tmp_path):
    run(MadeUpBoard(), tmp_path)
    again = MadeUpBoard()
    found = run(again, tmp_path)
    assert again.jobs == []
    assert found.times.measure_s == 0.0
    assert found.times.kept == found.times.networks == finished[0].times.networks


def test_the_times_are_accounted_for(finished):
    times = finished[0].times
    assert times.budget_s == calibrate.MEASURING_S
    assert 0 < times.planned_s < times.budget_s
    assert times.measure_s > 0 and times.build_s >= 0 and times.fit_s > 0
    assert times.kept == 0
    # Nine whole networks in three turns, and two packed ones a stage.
    assert times.networks == 31


def test_the_time_left_is_known_from_the_start_and_comes_to_nothing(finished):
    *_, watcher = finished
    left = [left_s for _, _, left_s in watcher.heard]
    assert left[0] == pytest.approx(finished[0].times.planned_s)
    assert left[-1] == pytest.approx(0.0, abs=1e-6)
    done = [done for done, _, _ in watcher.heard]
    assert done == sorted(done)
    assert watcher.heard[-1][:2] == (31, 31)


class ChangingBoard(MadeUpBoard):
    """A board on which all but the yardstick takes half as long again in the second turn."""

    def measure(self, requests, *, plan, campaign):
        return tuple(
            m
            if m.label == pacing.YARDSTICK or not campaign.startswith("sweep 1")
            else dataclasses.replace(m, samples_s=tuple(1.5 * s for s in m.samples_s))
            for m in super().measure(requests, plan=plan, campaign=campaign)
        )


def test_a_network_takes_what_it_took_in_all_turns(finished, tmp_path):
    steady, changed = (
        np.array([sample.seconds for sample in found.model.network_samples])
        for found in (finished[0], run(ChangingBoard(), tmp_path))
    )
    assert changed / steady == pytest.approx(np.full(len(steady), 1.5 ** (1 / calibrate.TURNS)))


@pytest.mark.parametrize(("slower", "packed", "whole"), [(30.0, 4, 2), (1000.0, 2, 0)])
def test_a_slow_board_is_measured_within_the_budget(tmp_path, slower, packed, whole):
    board = MadeUpBoard(slower=slower)
    found = run(board, tmp_path, budget_s=60.0)
    assert found.times.planned_s <= 60.0
    # The plan went by one network's time; kinds are up to 30 % off.
    assert found.times.measure_s < 60.0 * 1.3
    assert len({job[1:] for job in board.jobs if job[0].startswith("sweep")}) == (whole > 0)
    assert found.times.networks == packed + whole
    assert (found.times.kernels == 100) == (slower < 100)


def test_the_model_knows_the_rules_that_its_board_fuses_by(tmp_path):
    old = dataclasses.replace(BOARD, machine="aarch64", simd="neon", runtime_version="1.10.0")
    found = run(MadeUpBoard(facts=old), tmp_path)
    assert found.model.runtime == "onnxruntime-1.10-cpu-arm"
    assert not any(w.kind == "reorder_input" for w, _ in found.model.kernel_samples)
    assert onnx.load(tmp_path / "yardstick.onnx").graph.node
