"""What the GPU benchmark measures and writes, on a board of the stand-ins for TensorRT and CUDA.

The stand-in's outputs are made up, so that here they must be found to disagree. It cannot show that
TensorRT-RTX runs on any GPU, nor what anything takes there.
"""

from __future__ import annotations

import json
import sys

import onnx
import pytest
from torch import nn

from harness.boards.session import PRESETS, Session
from harness.records import BoardSpec
from latency_models import profiles, synthetic, tables
from tests.benchmarks import tensorrt_gpu
from tests.benchmarks.tensorrt_networks import PUBLISHED, structure
from tests.test_engines import folder, library  # noqa: F401  (fixtures)
from tests.test_engines_fit import brief  # noqa: F401

SIZES = {"resnet18": 11.69e6, "resnet50": 25.56e6, "mobilenet_v2": 3.50e6, "vgg16": 138.36e6}


@pytest.fixture
def found(folder, monkeypatch):  # noqa: F811
    """Two small networks measured in all three precisions, and where their table is."""
    monkeypatch.setenv("BOARDFIT_COMPUTE", "8.7")
    spec = BoardSpec(
        name="local", python=sys.executable, runtime="tensorrt", cache_dir=str(folder / "cache")
    )
    out = folder / "out"
    with Session(spec) as session:
        rows = []
        for name, width in (("narrow", 16), ("wide", 32)):
            network = nn.Sequential(
                nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4)
            ).eval()
            one = tensorrt_gpu.Subject(name=name, family=name, network=network, shape=(3, 8, 8))
            rows += tensorrt_gpu.measure(session, one, folder)
        table = tensorrt_gpu.write(rows, session, out)
    return rows, table


def test_each_precision_is_measured_profiled_and_held_against_onnxruntime(found):
    rows, _ = found
    assert [(r.network, r.precision) for r in rows] == [
        (name, precision) for name in ("narrow", "wide") for precision in ("fp32", "fp16", "int8")
    ]
    assert all(0 < row.median_s <= row.p99_s for row in rows)
    assert all(any(node for _, node, _ in row.kernels) for row in rows)
    assert not any(row.agrees for row in rows)
    assert "NO" in tensorrt_gpu.text(rows, ())


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
    assert told["plan"]["rounds"] == PRESETS["standard"].rounds


def test_a_structure_has_no_weights_and_can_be_filled_again(found):
    rows, _ = found
    given = onnx.load(rows[0].file)
    light = structure(given)
    assert len(light.SerializeToString()) < 0.5 * len(given.SerializeToString())
    filled = synthetic.fill(light)
    onnx.checker.check_model(filled)
    before = {t.name: tuple(t.dims) for t in given.graph.initializer}
    assert {t.name: tuple(t.dims) for t in filled.graph.initializer} == before


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_published_networks_have_their_published_sizes(name):
    import torch

    with torch.device("meta"):
        network = PUBLISHED[name].make()
    # As torchvision's documentation tells them, in millions to two places.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(SIZES[name], abs=6e3)


def test_without_a_gpu_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    demo = tensorrt_gpu.Subject(name="d", family="d", network=nn.ReLU(), shape=(1, 4, 4))
    assert tensorrt_gpu.run(None, (), demo, tmp_path / "out") == 1
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "out").exists()
