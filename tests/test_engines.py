"""``boardfit profile`` on a board with TensorRT: the real agent, with stand-ins for it and CUDA."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from harness.boards.session import PRESETS, EngineRequest, Session
from harness.errors import ConfigError
from harness.records import BoardSpec, Measurement, Profile
from harness.store import Store
from harness.trtexec import files
from tests.device_agent import cudart
from tests.tensorrt.nets import chain, network, node
from tests.tensorrt.test_placement import quantized
from tests.test_cli import run
from tests.trtexec.logs import write_log

STAND_IN = Path(__file__).parent / "device_agent" / "tensorrt8"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cudart.compiled(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def folder(tmp_path, monkeypatch, library):
    """A folder in which the board local has TensorRT 8.2 on a chip of compute capability 5.3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_IN)]))
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("BOARDFIT_CUDART", str(library))
    monkeypatch.setenv("BOARDFIT_TENSORRT8", "8.2.1.8")
    monkeypatch.setenv("BOARDFIT_TENSORRT8_CALLS", str(tmp_path / "calls"))
    cache = json.dumps(str(tmp_path / "cache"))
    Path("boards.toml").write_text(f'[boards.local]\nruntime = "tensorrt"\ncache_dir = {cache}\n')
    onnx.save(chain(), "net.onnx")
    return tmp_path


def profile(capsys, *options):
    short = ("--duration", "0.05", "--warmUp", "0", "--store", "s.db")
    return run(capsys, "profile", *options, *short)


def calls(folder):
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_an_fp16_profile_prints_trtexecs_summary_and_exports_its_parts(folder, capsys):
    code, out, err = profile(
        capsys, "net.onnx", "--fp16", "--workspace", "64", "--exportTimes", "times.json"
    )
    assert code == 0, err
    for name in ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"):
        assert name in out
    assert "p99" in out and "calls a second" in out
    assert "conv1 + relu1" in out
    assert any("FP16" in str(call) for call in calls(folder))
    times = files.read_times(Path("times.json"))
    assert all(one.h2d_s > 0 and one.d2h_s > 0 for one in times)
    for one in times:
        assert one.latency_s == pytest.approx(one.h2d_s + one.compute_s + one.d2h_s, abs=2e-9)


def test_several_builds_are_measured_and_the_fastest_is_kept(folder, capsys):
    code, out, err = profile(capsys, "net.onnx", "--fp16", "--rebuilds", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["builds"]["latencies_s"]) == 2
    fastest = min(found["builds"]["latencies_s"])
    assert found["builds"]["latencies_s"][found["builds"]["kept"]] == fastest
    assert found["performance"]["times"]["GPU Compute Time"]["min_s"] > 0
    builds = [call for call in calls(folder) if call[0] == "builder.build_serialized_network"]
    assert len(builds) == 2


def test_a_quantized_network_reaches_a_chip_without_int8_as_floats(folder, capsys):
    onnx.save(quantized(chain()), "int8.onnx")
    code, out, err = profile(capsys, "int8.onnx", "--fp16")
    assert code == 0, err
    assert "Q/DQ were taken out" in out
    sent = [path.read_bytes() for path in (folder / "cache" / "blobs").rglob("*") if path.is_file()]
    assert sent and not any(b"QuantizeLinear" in content for content in sent)
    # What was rewritten for the board is kept as the network that it is.
    own = hashlib.sha256(Path("int8.onnx").read_bytes()).hexdigest()
    with Store(Path("s.db")) as store:
        kept = [*store.all(Measurement), *store.all(Profile)]
    assert len(kept) == 2 and {one.network_sha256 for one in kept} == {own}


def test_what_cannot_be_built_is_told_before_anything_is_sent(folder, capsys):
    onnx.save(network([node("Det", ["x"], ["y"], "det")], shape=(1, 4)), "det.onnx")
    code, _, err = profile(capsys, "det.onnx", "--fp16")
    assert code == 1
    assert "node 'det' (Det)" in err and "was not sent there" in err
    assert not list((folder / "cache").glob("blobs/*"))


def test_a_build_that_memory_ends_says_what_is_tried_and_what_is_left_to_do(
    folder,
    capsys,
    monkeypatch,
):
    monkeypatch.setenv("BOARDFIT_TENSORRT8_NEEDS", "1")
    code, _, err = profile(capsys, "net.onnx", "--fp16")
    assert code == 1
    tries = [f"! memory ran out; building again with a workspace of {mib} MiB" for mib in (64, 16)]
    assert [line for line in err.splitlines() if line.startswith("!")] == tries
    (last,) = [line for line in err.splitlines() if line.startswith("boardfit: ")]
    assert "out of memory" in last and "killed by SIGKILL" in last and "add swap" in last
    assert not list((folder / "cache").glob("engines/*.json"))


def test_int8_for_a_chip_without_it_is_a_file_for_the_download(folder, capsys):
    onnx.save(chain(channels=64), "wide.onnx")
    rng = np.random.default_rng(0)
    np.savez("images.npz", train_images=rng.normal(size=(16, 4, 6, 6)).astype(np.float32))
    arguments = ("wide.onnx", "--data", "images.npz", "--out", "small.onnx")
    code, out, err = run(capsys, "quantize", *arguments)
    assert code == 0, err
    assert "store their weights in int8" in " ".join(out.split())
    assert Path("small.onnx").stat().st_size < 0.32 * Path("wide.onnx").stat().st_size
    kinds = [n.op_type for n in onnx.load("small.onnx").graph.node]
    assert "QuantizeLinear" not in kinds and kinds.count("DequantizeLinear") == 3
    assert not list((folder / "cache").glob("engines/*.json"))


def test_a_built_engine_is_fetched_with_what_came_of_its_build(folder, tmp_path):
    board = BoardSpec(
        name="local", python=sys.executable, runtime="tensorrt", cache_dir=str(folder / "cache")
    )
    request = EngineRequest(label="n", path=Path("net.onnx"), precision="fp16")
    with Session(board) as session:
        found = session.build(request, tmp_path / "engine.plan")
        again = session.build(request, tmp_path / "again.plan")
    content = (tmp_path / "engine.plan").read_bytes()
    assert hashlib.sha256(content).hexdigest() == found.engine.sha256
    assert len(content) == found.engine.size_bytes
    assert found.build.flags == ("tf32", "fp16")
    assert not found.engine.cached and again.engine.cached
    assert (tmp_path / "engine.timing").exists()
    assert found.attempts and found.runtime_version == "8.2.1.8"


TRTEXEC = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
print((here / "log").read_text(), end="")
given = dict(word.partition("=")[::2] for word in sys.argv[1:])
if "--help" in given:
    sys.exit(0)
(here / "given").write_text(json.dumps(given))
for option in ("times", "profile"):
    target = given["--export" + option.capitalize()]
    pathlib.Path(target).write_text((here / option).read_text())
pathlib.Path(given["--saveEngine"]).write_text("ptrt")
"""


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """A board whose only TensorRT is a trtexec that prints a log and writes its files."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "trtexec").write_text(TRTEXEC.format(python=sys.executable))
    (place / "trtexec").chmod(0o755)
    samples_ms = [5.0 + 0.01 * (i % 7) for i in range(40)]
    write_log(place / "log", samples_ms, version="8201")
    entry = {"h2dMs": 0.0, "d2hMs": 0.0}
    calls = [
        {**entry, "startComputeMs": 5.0 * i, "computeMs": took, "latencyMs": took}
        for i, took in enumerate(samples_ms)
    ]
    (place / "times").write_text(json.dumps(calls))
    kernels = [{"count": 40}, {"name": "conv1 + relu1", "averageMs": 4.0}]
    (place / "profile").write_text(json.dumps(kernels))
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    cache = json.dumps(str(tmp_path / "cache"))
    Path("boards.toml").write_text(f'[boards.local]\nruntime = "trtexec"\ncache_dir = {cache}\n')
    onnx.save(chain(), "net.onnx")
    return place


def test_a_board_with_trtexec_alone_is_profiled_by_it(trtexec, capsys):
    code, out, err = profile(capsys, "net.onnx", "--fp16", "--workspace", "64", "--json")
    assert code == 0, err
    found = json.loads(out)
    # The middle of 40 values of 5.00 to 5.06 ms that repeat every seven.
    taken = found["measurement"]
    assert taken["latency_s"] == pytest.approx(5.03e-3)
    assert taken["runtime_version"] == "8.2.1" and taken["timed"] == "trtexec"
    assert found["performance"]["throughput_per_s"] == 54.1791
    assert found["performance"]["times"]["Latency"]["min_s"] == 5e-3
    assert [(k["name"], k["node"]) for k in found["kernels"]] == [("conv1 + relu1", "conv1")]
    assert "proves" in found["notes"][-1]
    given = json.loads((trtexec / "given").read_text())
    assert "--fp16" in given and given["--workspace"] == "64"


@pytest.mark.usefixtures("trtexec")
def test_trtexec_is_not_asked_for_what_it_cannot_do(capsys):
    code, _, err = profile(capsys, "net.onnx", "--rebuilds", "3")
    assert code == 2 and "measures once" in err
    onnx.save(network([node("Det", ["x"], ["y"], "det")], shape=(1, 4)), "det.onnx")
    code, _, err = profile(capsys, "det.onnx")
    assert code == 1 and "TensorRT 8.2 does not read the operator Det" in err
    board = BoardSpec(name="local", python=sys.executable, runtime="trtexec", cache_dir="cache")
    request = EngineRequest(label="n", path=Path("net.onnx"), precision="fp32")
    with Session(board) as session, pytest.raises(ConfigError, match="one network at a time"):
        session.measure([request], plan=PRESETS["quick"], campaign="c")


@pytest.mark.parametrize(
    ("options", "ended", "words"),
    [
        (("--int8",), 2, "not quantized"),
        (("--fp16", "--workspace", "9000"), 1, "in all"),
        (("--memPoolSize", "dlaSRAM:1"), 2, "the workspace alone"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_options_that_cannot_be_met_are_told(capsys, options, ended, words):
    code, _, err = profile(capsys, "net.onnx", *options)
    assert code == ended
    assert words in err


@pytest.mark.usefixtures("folder")
def test_options_of_tensorrt_on_another_runtime_are_told(capsys):
    Path("boards.toml").unlink()
    code, _, err = profile(capsys, "net.onnx", "--fp16")
    assert code == 2
    assert "runs onnxruntime" in err
