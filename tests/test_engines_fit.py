"""``boardfit fit`` and ``validate`` on a board with TensorRT: the real agent, with stand-ins.

The stand-in computes nothing and its profiler tells made-up times, so that what is asserted is
which engines are asked for, built, told apart and predicted, and never how fast or right they are.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx
import pytest

from harness.boards.session import PRESETS, MeasurePlan
from harness.records import FitResult, Measurement, Prediction, Profile, load
from harness.store import Store
from harness.strategies import generator
from latency_models import calibration, graph, sweep
from tests.fits import write_images
from tests.tensorrt.nets import chain
from tests.test_cli import TINY, run
from tests.test_engines import calls, folder, library  # noqa: F401  (fixtures)

SHORT = MeasurePlan(warmup_s=0.0, rounds=6, block_s=0.004, block_min=2, drop=0)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Measurements of the stand-in say nothing, and may be short."""
    for name in ("quick", "standard"):
        monkeypatch.setitem(PRESETS, name, SHORT)


@pytest.fixture
def data(folder):  # noqa: F811
    Path("tiny.py").write_text(TINY)
    write_images("data.npz", train=64, test=32)
    return folder


@pytest.fixture
def half(monkeypatch):
    """Every group of a fit has to be fp16: by the stand-in's times any choice would be chance."""
    every = generator.options_for

    def options_for(*arguments, **named):
        found = every(*arguments, **named)
        return {
            group: tuple(option for option in options if option.precision == "fp16")
            for group, options in found.items()
        }

    monkeypatch.setattr(generator, "options_for", options_for)


@pytest.mark.usefixtures("half")
def test_a_fit_in_fp16_is_calibrated_built_and_predicted_as_fp16(data, capsys):
    arguments = ("tiny.py:factory", "--data", "data.npz", "--methods", "quantize", "--latency")
    limits = ("1%", "--max-drop", "100", "--rounds", "1", "--epochs", "0", "--out", "run")
    code, _, err = run(capsys, "fit", *arguments, *limits)
    # No allocation reaches 1 %, and the nearest was built and measured.
    assert code == 4, err
    result = load(FitResult, Path("run/result.json").read_bytes())
    assert {group.precision for group in result.result.allocation} == {"fp16"}
    assert result.alternatives == {}  # there is no int8 on this chip
    weighted = [k for k in result.kernels if k.kind.startswith(("conv", "gemm"))]
    told = {(k.candidate, k.precision) for k in weighted}
    assert told == {("baseline", "fp32"), ("joint 1", "fp16")}
    assert all(k.measured_s for k in weighted)

    # The file is the original's: what differs is what the builder is told.
    assert result.result.onnx_sha256 == result.baseline.onnx_sha256
    with Store(Path("run/measurements.db")) as store:
        (prediction,) = store.all(Prediction)
        own = [p for p in store.all(Profile) if p.network_sha256 == result.result.onnx_sha256]
        taken = store.all(Measurement)
    assert {layer.precision for layer in prediction.layers} == {"fp16"}
    assert len({profile.engine_key for profile in own}) == 2
    assert {m.precision for m in taken if m.label == "joint 1"} == {"fp16"}
    model = calibration.LatencyModel.from_json(Path("run/latency_model.json").read_text())
    for precision in ("fp32", "fp16"):
        kernels = graph.read("run/model.onnx", runtime="tensorrt", precision=precision)
        weights = tuple(graph.work(kernel) for kernel in kernels if kernel.weight)
        assert model.unsupported(weights) == ()  # the sweep measured their kinds
    assert any("FP16" in str(call) for call in calls(data))
    assert Path("run/engine.plan").stat().st_size > 0

    # The same model, beside a yardstick, predicts and measures another network in both.
    Path("cal").mkdir()
    shutil.copy("run/latency_model.json", "cal")
    onnx.save(sweep.yardstick(), "cal/yardstick.onnx")
    onnx.save(chain(), "net.onnx")
    code, out, err = run(
        capsys, "validate", "net.onnx", "--latency-model", "cal/latency_model.json", "--out", "val"
    )
    assert code == 0, err
    assert "fp32" in out and "fp16" in out
    with Store(Path("val/measurements.db")) as store:
        precisions = {m.precision for m in store.all(Measurement) if m.label.startswith("net")}
    assert precisions == {"fp32", "fp16"}


@pytest.mark.usefixtures("folder")
def test_a_profile_without_the_boards_precisions_is_told_before_anything_is_swept(capsys):
    text = Path("boards.toml").read_text()
    Path("boards.toml").write_text(text + 'profile = "jetson-nano-cpu"\n')
    code, _, err = run(capsys, "calibrate", "--out", "cal")
    assert code == 2
    assert "jetson-nano-cpu has no peak for fp16" in " ".join(err.split())


def test_a_network_read_with_the_precisions_of_its_nodes_is_that_of_its_engine():
    whole = graph.read(chain(), runtime="tensorrt", precision="fp16")
    nodes = [op.name for kernel in whole for op in kernel.ops if op.weight]
    bound = graph.read(chain(), runtime="tensorrt", layers=dict.fromkeys(nodes, "fp16"))
    weighted = [kernel.precision for kernel in bound if kernel.weight]
    assert weighted == ["fp16"] * len(nodes)
    half = graph.read(chain(), runtime="tensorrt", layers={nodes[0]: "fp16"})
    assert [k.precision for k in half if k.weight][:2] == ["fp16", "fp32"]
    with pytest.raises(graph.UnsupportedGraph, match="no kernel or node is called 'x'"):
        graph.read(chain(), runtime="tensorrt", layers={"x": "fp16"})


def test_a_kept_prediction_is_of_the_same_precisions(tmp_path):
    from harness.records import Interval, LayerPrecision

    layers = (LayerPrecision(node="conv", precision="fp16"),)
    one = Prediction(
        label="a",
        network_sha256="0" * 64,
        latency_s=1.0,
        interval=Interval(0.9, 1.1, 0.9),
        latency_model_sha256="1" * 64,
        made_at="2026-01-01T00:00:00+00:00",
    )
    half = dataclasses.replace(one, label="b", latency_s=0.5, layers=layers)
    with Store(tmp_path / "s.db") as store:
        store.add(one)
        store.add(half)
        assert store.first_prediction("0" * 64) == one
        assert store.first_prediction("0" * 64, layers) == half
