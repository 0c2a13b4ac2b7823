"""What the GPU benchmark measures and writes, on a board of the stand-ins for TensorRT and CUDA.

The stand-in's outputs are made up, so that here they must be found to disagree. It cannot show that
TensorRT-RTX runs on any GPU, nor what anything takes there. What takes its place where it does not
run is measured by onnxruntime for once, on its CPU provider.
"""

from __future__ import annotations

import json
import shutil
import sys

import onnx
import pytest
import torch
from torch import nn

from harness import networks
from harness.boards.session import PRESETS, Session
from harness.compression import quantize
from harness.errors import BuildError
from harness.records import BoardSpec
from harness.tensorrt import placement, versions
from latency_models import profiles, synthetic, tables
from tests.benchmarks import latency_models, own, tensorrt_fallback, tensorrt_gpu
from tests.benchmarks.tensorrt import _name
from tests.benchmarks.tensorrt_networks import PUBLISHED, structure
from tests.benchmarks.tensorrt_rows import text
from tests.tensorrt.nets import facts
from tests.test_engines import folder, library  # noqa: F401  (fixtures)
from tests.test_engines_fit import brief  # noqa: F401

SIZES = {"resnet18": 11.69e6, "resnet50": 25.56e6, "mobilenet_v2": 3.50e6, "vgg16": 138.36e6}
PRECISIONS = ("fp32", "fp16", "int8")


def small():
    """Three networks of two families."""
    for name, family, width in (("narrow", "a", 16), ("wide", "a", 32), ("wider", "b", 48)):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4)
        ).eval()
        yield tensorrt_gpu.Subject(name=name, family=family, network=network, shape=(3, 8, 8))


@pytest.fixture
def board(folder, monkeypatch):  # noqa: F811
    """A GPU of compute capability 8.7, as the stand-ins have it."""
    monkeypatch.setenv("BOARDFIT_COMPUTE", "8.7")
    return BoardSpec(
        name="local", python=sys.executable, runtime="tensorrt", cache_dir=str(folder / "cache")
    )


@pytest.fixture
def found(folder, board):  # noqa: F811
    """Two small networks measured in all three precisions, and where their table is."""
    with Session(board) as session:
        rows = []
        for one in list(small())[:2]:
            taken, failed = tensorrt_gpu.attempt(session, one, folder)
            assert failed == ()
            rows += taken
        table = tensorrt_gpu.write(rows, session, folder / "out")
    return rows, table


def test_each_precision_is_measured_profiled_and_held_against_onnxruntime(found):
    rows, _ = found
    assert [(r.network, r.precision) for r in rows] == [
        (name, precision) for name in ("narrow", "wide") for precision in PRECISIONS
    ]
    for row in rows:
        assert 0 < row.median_s <= row.p99_s
        assert row.interval.low <= row.median_s <= row.interval.high
        assert 0 < row.gpu_s < row.median_s
        assert row.engine_bytes > 0 and row.build_s is not None
        assert row.ran_on == f"TensorRT {len(row.kernels)}"
        assert any(node for _, node, _ in row.kernels)
    # The stand-in's tactics name no integers.
    assert [row.integer_layers for row in rows] == 2 * [None, None, 0]
    assert {row.layers for row in rows} == {2}
    assert not any(row.agrees for row in rows)
    assert "NO" in text(rows, ())


def test_the_table_is_read_by_what_reads_measurement_tables(found):
    rows, table = found
    profile = profiles.load("generic-gpu")
    items = tables.items(
        table, profile=profile, runtime="tensorrt", progress=lambda _done, _of: None
    )
    assert [item.measured_s for item in items] == pytest.approx(
        [r.median_s for r in rows], abs=1e-9
    )
    precisions = [{work.precision for work in item.works if work.macs} for item in items]
    assert precisions == 2 * [{"fp32"}, {"fp16"}, {"int8"}]
    assert len((table.parent / "kernels.csv").read_text().splitlines()) > len(rows)
    told = json.loads((table.parent / "fingerprint.json").read_text())
    assert told["facts"]["runtime"] == "tensorrt" and told["facts"]["gpu"]["compute"] == "8.7"
    assert told["facts"]["hostname"] == ""
    assert (told["rules"], told["profile"]) == ("tensorrt", "generic-gpu")
    assert told["plan"]["rounds"] == PRESETS["standard"].rounds


def listed(folder, monkeypatch):  # noqa: F811
    """An nvidia-smi that lists a GPU."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: Made-up GPU (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(folder))  # the cache of the board local
    monkeypatch.setenv(tensorrt_fallback.PROVIDER, "")  # and undo what a run sets


@pytest.mark.usefixtures("board")
def test_one_command_measures_calibrates_and_feeds_the_latency_benchmark(
    folder,  # noqa: F811
    monkeypatch,
    capsys,
):
    listed(folder, monkeypatch)
    out = folder / "measured" / "made-up-gpu"
    # The stand-in's sweep takes a minute, and is tested on its own.
    monkeypatch.setattr(tensorrt_gpu, "validate", lambda *_: ())
    code = tensorrt_gpu.run(None, small(), out, folder, as_json=True)
    assert code == 1  # made-up outputs do not agree
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["note"] == "measured with tensorrt; TensorRT-RTX is not installed"
    assert f"{out} holds the measurement table" in printed.err
    assert json.loads((out / "fingerprint.json").read_text())["gpu"].startswith("GPU 0: Made-up")
    assert [(r["network"], r["precision"]) for r in told["rows"]] == [
        (one.name, precision) for one in small() for precision in PRECISIONS
    ]
    assert told["failed"] == []

    monkeypatch.setattr(own, "FOLDER", out.parent)
    keys = [protocol.key for protocol in latency_models.every_protocol()][-2:]
    assert keys == ["made-up-gpu_loo", "made-up-gpu_family"]
    rows = latency_models.run(folder, "made-up-gpu_loo", 0)
    files = {one.name: (one.name, one.name, f"{one.name}.int8") for one in small()}
    assert sorted((row.item, row.measured_s) for row in rows) == [
        (item, pytest.approx(seconds, abs=1e-9))
        for item, seconds in sorted(
            (files[row["network"]][PRECISIONS.index(row["precision"])], row["median_s"])
            for row in told["rows"]
        )
    ]
    assert all(0 < row.low_s <= row.predicted_s <= row.high_s for row in rows)
    assert all(row.datasheet_s > 0 for row in rows)
    # All precisions of a network stay on one side.
    protocol, data = latency_models.every_protocol()[-2], latency_models.load(folder, out.name)
    for fit, test in protocol.splits(data, 0):
        assert (len(fit), len(test)) == (6, 3)


def test_a_table_of_another_schema_is_told_of(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "fingerprint.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="has schema 0, not 1; write it anew"):
        own.found(tmp_path)


def test_there_is_no_table_where_none_was_measured(tmp_path):
    assert own.found(tmp_path) == () and own.protocols(tmp_path / "absent") == ()


def test_a_precision_that_fails_takes_no_other_along(folder, board, monkeypatch):  # noqa: F811
    measured = tensorrt_gpu.measure

    def measure(session, one, made, images):
        if any(file.precision == "int8" for file in made):
            raise BuildError("no int8 today")
        return measured(session, one, made, images)

    monkeypatch.setattr(tensorrt_gpu, "measure", measure)
    with Session(board) as session:
        rows, failed = tensorrt_gpu.attempt(session, next(small()), folder)
    assert [row.precision for row in rows] == ["fp32", "fp16"]
    assert [(one.precision, one.why) for one in failed] == [("int8", "no int8 today")]
    assert "narrow int8 failed: no int8 today" in text(rows, (), failed)


def test_where_tensorrt_does_not_run_onnxruntime_runs_all_three(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(tensorrt_fallback.PROVIDER, "CPUExecutionProvider")
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    spec = BoardSpec(
        name="local",
        python=sys.executable,
        runtime="onnxruntime",
        cache_dir=str(tmp_path / "cache"),
    )
    out = tmp_path / "out"
    # Probe networks on a CPU take a minute: two families of one precision will do.
    every = tensorrt_fallback.probes.probes
    few = [one for one in every(("fp32",), runtime="onnxruntime-cuda") if "fire" in one.name]
    monkeypatch.setattr(tensorrt_fallback.probes, "probes", lambda *_, **__: iter(few))
    code = tensorrt_gpu.on_board(spec, small(), out, tmp_path, note="no GPU", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == [] and told["note"] == "no GPU"
    assert [row["precision"] for row in told["rows"]] == 3 * list(PRECISIONS)
    for row in told["rows"]:
        assert row["agrees"], row
        assert row["ran_on"].startswith("CPUExecutionProvider")
        assert row["engine_bytes"] is None and row["gpu_s"] is None
        assert row["layers"] == 2
        assert row["predicted_s"] > 0
    assert code == 0
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert fingerprint["rules"] == "onnxruntime-cuda"
    assert fingerprint["kernels"] == "the host's clock: enqueueing alone"
    # fp16 is a file of its own for onnxruntime, whose structure in the table is fp32's.
    kinds = {n.op_type for n in onnx.load(tmp_path / "wide.fp16.onnx").graph.node}
    assert "Cast" in kinds
    assert {path.name for path in (out / "graphs").iterdir()} == {
        f"{one.name}{suffix}.onnx" for one in small() for suffix in ("", ".int8")
    }


def test_the_q_dq_of_the_fallback_are_tensorrts(tmp_path):
    one = next(small())
    images = torch.randn(2, *one.shape)
    networks.export_onnx(one.network, images[:1], tmp_path / "n.onnx")
    made = tensorrt_fallback.files(
        tmp_path / "n.onnx", calibration=images.numpy(), facts=facts(runtime="onnxruntime")
    )
    model = onnx.load(made["int8"])
    assert placement.has_pairs(model)
    assert list(placement.violations(model, versions.release_of("tensorrt", "10.3"))) == []
    assert quantize.form_of(facts(runtime="onnxruntime")).integer_bias  # which a GPU has not


def test_a_structure_has_no_weights_and_can_be_filled_again(found):
    rows, _ = found
    given = onnx.load(rows[0].graph)
    light = structure(given)
    assert len(light.SerializeToString()) < 0.5 * len(given.SerializeToString())
    filled = synthetic.fill(light)
    onnx.checker.check_model(filled)
    before = {t.name: tuple(t.dims) for t in given.graph.initializer}
    assert {t.name: tuple(t.dims) for t in filled.graph.initializer} == before


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_published_networks_have_their_published_sizes(name):
    with torch.device("meta"):
        network = PUBLISHED[name].make()
    # As torchvision's documentation tells them, in millions to two places.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(SIZES[name], abs=6e3)


def test_a_table_is_named_after_its_gpu():
    assert _name("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: x") == "nvidia-h100-80gb-hbm3"
    assert _name("GPU 0: Orin (nvgpu) (UUID: 1)") == "orin-nvgpu"


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out"
    assert tensorrt_gpu.run(None, small(), out, tmp_path, as_json=False) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert not out.exists()


def test_a_gpu_on_which_nothing_runs_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here, on which something may run")
    listed(tmp_path, monkeypatch)
    assert tensorrt_gpu.run(None, small(), tmp_path / "out", tmp_path, as_json=False) == 1
    err = capsys.readouterr().err
    assert "neither TensorRT-RTX, TensorRT nor onnxruntime-gpu runs here" in err
    assert tensorrt_fallback.CUDA in err
