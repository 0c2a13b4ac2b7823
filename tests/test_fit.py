"""The main job on a tiny network: the real agent, the real runtime, this computer."""

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas
import pytest

from harness.records import FitResult, Measurement, Prediction, Strategy, dump, load
from harness.store import Store
from latency_models import calibration
from tests.boards.sshd import SSHD, Sshd
from tests.boards.support import python36_with_runtime
from tests.fits import ARGUMENTS, Fitted, boardfit, command, environment


def test_a_budget_that_is_met_exits_with_0_and_prints_baseline_against_result(fitted):
    done, _ = fitted
    assert done.returncode == 0, done.stderr
    for word in ("baseline", "result", "Latency", "File size", "Top-1", "meets", "report.html"):
        assert word in done.stdout, done.stdout
    for stage in ("baseline", "calibrate", "sensitivity", "allocate joint 1", "build joint 1"):
        assert f"✓ {stage}" in done.stderr


@pytest.fixture(scope="module")
def given(fit_folder, fitted, latency_model):
    """The same fit by its strategy and its latency model."""
    shutil.copy(latency_model, fit_folder / "desk.json")
    known = ("--strategy", str(fitted.run / "strategy.json"), "--latency-model", "desk.json")
    done = boardfit(fit_folder, *ARGUMENTS, *known, "--size", "50%", "--out", "given")
    assert done.returncode == 0, done.stderr
    return Fitted(done, fit_folder / "given")


def test_a_strategy_that_is_given_is_built_as_it_stands_and_judged(fit_folder, fitted, given):
    _, first = fitted
    done, _ = given
    assert "allocate" not in done.stderr
    again = load(FitResult, (fit_folder / "given" / "result.json").read_bytes())
    before = load(FitResult, (first / "result.json").read_bytes())
    assert again.result.allocation == before.result.allocation
    assert again.result.parameters == before.result.parameters
    # The same seed and the same images: the same file, to the byte.
    assert again.result.onnx_sha256 == before.result.onnx_sha256
    assert [b.budget.quantity for b in again.budgets] == ["size", "accuracy_drop"]
    strategies = [(path / "strategy.json").read_text() for path in (first, fit_folder / "given")]
    assert strategies[0] == strategies[1]
    # Another strategy is no resumption of this one, nor is a calibration one of a saved model.
    changed = replace(load(Strategy, strategies[0]), seed=1)
    (fit_folder / "changed.json").write_text(dump(changed))
    done = boardfit(fit_folder, *ARGUMENTS, "--strategy", "changed.json", "--out", "given")
    assert done.returncode == 2, done.stderr
    assert "strategy_sha256" in done.stderr and "latency_model_sha256" in done.stderr


def test_a_latency_model_that_was_saved_takes_the_place_of_calibrating(given, latency_model):
    done, run = given
    assert "✓ anchor" in done.stderr and "calibrate" not in done.stderr
    saved = calibration.LatencyModel.from_json(latency_model.read_text())
    named = f"desk.json ({saved.sha256[:12]})"
    result = load(FitResult, (run / "result.json").read_bytes())
    assert result.latency_model == named
    assert f"by the saved latency model {named}" in (run / "report.html").read_text()
    with Store(run / "measurements.db") as store:
        (first,) = [m for m in store.all(Measurement) if m.campaign == "baseline"]
        (prediction,) = store.all(Prediction)
        # Beside the original only what was built was measured.
        assert {m.label for m in store.all(Measurement)} == {"baseline", result.result.label}
    # What it knew and the baseline as measured now; this is what the frozen prediction is of.
    state = json.loads((run / "state" / "anchor.json").read_text())
    model = calibration.LatencyModel.from_json(state["value"])
    assert model.kernel_samples == saved.kernel_samples
    *known, base = model.network_samples
    assert tuple(known) == saved.network_samples
    assert base.seconds == pytest.approx(float(np.median(first.samples_s)))
    assert model.anchors == saved.anchors + 1
    assert prediction.latency_model_sha256 == model.sha256


def test_the_result_folder_is_complete_and_agrees_with_its_files(fitted):
    _, run = fitted
    result = load(FitResult, (run / "result.json").read_bytes())
    for name in ("model.pt2", "latency_model.json", "engine.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert result.result.size_bytes == (run / "model.onnx").stat().st_size
    assert result.result.size_bytes <= 0.5 * result.baseline.size_bytes
    assert result.verdict == "meets"
    assert set(result.alternatives) == {"int8_only", "prune_only"}
    assert result.result.n_board_images == 256
    assert result.result.host_agreement == 1.0
    onnx.checker.check_model(onnx.load(run / "model.onnx"))
    strategy = load(Strategy, (run / "strategy.json").read_bytes())
    kept = {g.group: g.kept for g in result.result.allocation}
    assert kept == {entry.group: len(entry.kept) for entry in strategy.entries}


def test_every_candidate_has_a_verdict_on_its_measurement(fitted):
    done, run = fitted
    result = load(FitResult, (run / "result.json").read_bytes())
    everyone = [result.baseline, result.result, *result.candidates, *result.alternatives.values()]
    for candidate in everyone:
        assert candidate.verdict.status in ("VALID", "UNSTABLE")
        named = {criterion.name for criterion in candidate.verdict.criteria}
        assert {"samples for p50", "throttling", "CPU clock", "baseline drift"} <= named
        assert candidate.soak is None  # local is not sustained unless asked
    assert "The measurement is" in done.stdout
    assert result.result.verdict.status in done.stdout
    assert "The measurement is" in (run / "report.html").read_text()


def test_the_top1_is_that_of_the_shipped_file(fitted, fit_folder):
    import onnxruntime

    _, run = fitted
    result = load(FitResult, (run / "result.json").read_bytes())
    with np.load(fit_folder / "data.npz") as data:
        images = (data["test_images"].astype(np.float32) / 255 - 0.5) / 0.25
        labels = data["test_labels"]
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    classes = [session.run(None, {name: image[None]})[0].argmax() for image in images]
    assert np.mean(np.array(classes) == labels) == pytest.approx(result.result.top1, abs=0.005)


def test_predictions_were_frozen_before_the_first_measurement(fitted):
    _, run = fitted
    predictions = pandas.read_csv(run / "predictions.csv")
    measured = pandas.read_csv(run / "measurements.csv")
    result = load(FitResult, (run / "result.json").read_bytes())
    for prediction in predictions.itertuples():
        first = measured[measured.label == prediction.label].taken_at.min()
        assert pandas.Timestamp(prediction.made_at) < pandas.Timestamp(first)
    (ours,) = predictions[predictions.label == result.result.label].itertuples()
    assert ours.latency_ms / 1e3 == pytest.approx(result.result.predicted_latency_s)


def test_a_rerun_resumes_and_measures_nothing_again(fitted, fit_folder):
    _, run = fitted
    with Store(run / "measurements.db") as store:
        before = store.all(Measurement)
    again = boardfit(fit_folder, *ARGUMENTS, "--size", "50%", "--out", "run")
    assert again.returncode == 0, again.stderr
    assert "kept from an earlier run" in again.stderr
    with Store(run / "measurements.db") as store:
        assert store.all(Measurement) == before


@pytest.mark.usefixtures("fitted")
def test_other_settings_in_the_same_folder_are_refused(fit_folder):
    done = boardfit(fit_folder, *ARGUMENTS, "--size", "40%", "--out", "run")
    assert done.returncode == 2
    assert "size 50%" in done.stderr and "size 40%" in done.stderr


def test_an_impossible_budget_exits_with_4_and_leaves_a_complete_folder(fit_folder, latency_model):
    arguments = (*ARGUMENTS, "--latency-model", str(latency_model), "--no-alternatives")
    done = boardfit(fit_folder, *arguments, "--size", "1%", "--out", "impossible")
    assert done.returncode == 4, done.stderr
    assert "size: at most" in done.stdout
    result = load(FitResult, (fit_folder / "impossible" / "result.json").read_bytes())
    assert result.verdict == "does not meet"
    (size,) = [b for b in result.budgets if b.budget.quantity == "size"]
    assert 0.01 < size.nearest < 1
    assert (fit_folder / "impossible" / "report.html").exists()
    # With more rounds it goes on behind the first.
    more = boardfit(fit_folder, *arguments, "--rounds", "2", "--size", "1%", "--out", "impossible")
    assert more.returncode == 4, more.stderr
    assert "build joint 1 (kept from an earlier run)" in more.stderr
    assert "✓ allocate joint 2 (" in more.stderr


@pytest.mark.parametrize("stage", ["calibrate", "build joint 1"])
def test_ctrl_c_inside_a_stage_loses_no_measurement_and_a_rerun_finishes(
    fit_folder, latency_model, stage
):
    out = f"interrupted-{stage.split()[0]}"
    arguments = (*ARGUMENTS, "--size", "50%", "--out", out, "--no-alternatives")
    if stage != "calibrate":
        arguments = (*arguments, "--latency-model", str(latency_model))
    with subprocess.Popen(
        command(*arguments),
        cwd=fit_folder,
        env=environment(fit_folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith(f"… {stage}"):
                break
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "the same command resumes" in rest
    assert "Traceback" not in rest
    with Store(fit_folder / out / "measurements.db") as store:
        before = store.all(Measurement)
    assert [m.label for m in before][:1] == ["baseline"]
    done = boardfit(fit_folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "✓ baseline (kept from an earlier run)" in done.stderr
    with Store(fit_folder / out / "measurements.db") as store:
        assert store.all(Measurement)[: len(before)] == before


def test_result_json_holds_the_promised_keys(fitted):
    _, run = fitted
    result = json.loads((run / "result.json").read_text())
    for key in ("latency_s", "top1"):
        assert result["baseline"][key] > 0
    for key in ("latency_s", "predicted_latency_s", "top1", "size_bytes", "board_agreement"):
        assert result["result"][key] > 0
    assert all(isinstance(budget["met"], bool) for budget in result["budgets"])
    assert result["verdict"] == "meets"
    assert 0 <= result["proof"]["gap"] <= 0.05
    assert {point["approach"] for point in result["front"]["points"]} >= {"coupled", "greedy"}


def test_the_same_fit_runs_over_ssh_on_python_36_with_onnxruntime_110(fit_folder, tmp_path):
    if not Path(SSHD).is_file() or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server")
    python = python36_with_runtime()
    server = Sshd(tmp_path)
    server.start()
    (fit_folder / "boards.toml").write_text(
        f'[boards.nano]\nhost = "board"\npython = "{python}"\ncache_dir = "{tmp_path / "cache"}"\n'
    )
    extra = {"BOARDFIT_SSH_CONFIG": str(tmp_path / "ssh_config")}
    try:
        refused = boardfit(fit_folder, "boards", "show", "nano", **extra)
        assert refused.returncode == 3
        assert server.fingerprint() in refused.stderr
        assert "boardfit boards trust nano" in refused.stderr
        trusted = boardfit(fit_folder, "boards", "trust", "nano", "--yes", **extra)
        assert trusted.returncode == 0, trusted.stderr
        arguments = (*ARGUMENTS, "--size", "50%", "--board", "nano", "--out", "over-ssh")
        arguments = (*arguments, "--no-alternatives", "--sustain", "3s")
        done = boardfit(fit_folder, *arguments, **extra)
        assert done.returncode == 0, done.stderr
    finally:
        server.stop()
    result = load(FitResult, (fit_folder / "over-ssh" / "result.json").read_bytes())
    assert result.board.python.startswith("3.6.")
    assert result.board.runtime_version == "1.10.0"
    # The verdict is of a board that ran both networks for three seconds without a pause.
    assert result.result.soak.duration_s >= 3.0
    with Store(fit_folder / "over-ssh" / "measurements.db") as store:
        soaked = {m.campaign for m in store.all(Measurement) if m.soak is not None}
    assert "final campaign 1" in soaked and "baseline" not in soaked
    assert result.result.int8_layers_real == result.result.int8_layers > 0


def test_profile_prints_the_measurement_and_every_kernel(fitted, fit_folder):
    done = boardfit(fit_folder, "profile", "run/model.onnx", "--duration", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["measurement"]["latency_s"] > 0
    assert any(kernel["op"].startswith("QLinear") for kernel in shown["kernels"])
    assert fitted[0].returncode == 0


def test_predict_uses_the_latency_model_of_a_fit(fitted, fit_folder):
    model = "run/latency_model.json"
    done = boardfit(fit_folder, "predict", "run/model.onnx", "--latency-model", model, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    low, high = (shown["interval_s"][end] for end in ("low", "high"))
    assert 0 < low < shown["latency_s"] < high
    assert fitted[0].returncode == 0


def test_validate_calibrates_predicts_and_then_measures(fitted, fit_folder):
    done = boardfit(fit_folder, "validate", "run/networks/baseline.onnx", "--out", "val", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["precision"] for row in rows} == {"fp32", "int8"}
    for row in rows:
        # A network of 13 microseconds is mostly overhead: the scale must be right, no more.
        assert 0.2 < row["predicted_s"] / row["measured_s"] < 5
    with Store(fit_folder / "val" / "measurements.db") as store:
        campaigns = {m.campaign for m in store.all(Measurement)}
    assert "yardstick" in campaigns
    assert fitted[1].exists()
