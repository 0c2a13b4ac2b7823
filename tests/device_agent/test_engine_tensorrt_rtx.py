"""The same engine module with TensorRT-RTX, which parses and builds real engines without a GPU.

It is taken from this Python or from the one that BOARDFIT_RTX_PYTHON names; without either
these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.boards.support import float_network, int8_network
from tests.contract.agent import PLAN, Frame, RawAgent

VARIABLE = "BOARDFIT_RTX_PYTHON"
TYPED: Frame = {
    "flags": [],
    "layers": {},
    "constraints": "none",
    "strongly_typed": True,
    "workspace_bytes": None,
    "rebuild": 0,
    "cuda_graph": False,
    "spin_wait": False,
    "transfers": True,
}
Build = Callable[..., Frame]


def _python() -> str:
    """A Python with TensorRT-RTX's bindings and numpy."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(f"no tensorrt_rtx here: pip install tensorrt-rtx-cu13, or set {VARIABLE}")
    return sys.executable


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawAgent]:
    agent = RawAgent(_python(), tmp_path_factory.mktemp("rtx") / "cache")
    yield agent
    agent.close()


@pytest.fixture(scope="module")
def build(agent: RawAgent) -> Build:
    """The outcome of building a file; ``change`` is what differs from a strongly typed build."""
    jobs = iter(range(1, 1000))

    def run(path: Path, **change: object) -> Frame:
        params = {"network": agent.put(path.read_bytes()), "build": TYPED | change, "nonce": ""}
        job = f"{next(jobs):032x}"
        agent.submit(job, "build", {"runtime": "tensorrt_rtx"} | params)
        return agent.outcome(job)

    return run


def _without_gpu() -> None:
    probe = [sys.executable, "-c", "from device_agent import cuda; cuda.Cuda()"]
    if subprocess.run(probe, capture_output=True).returncode == 0:
        pytest.skip("there is a GPU here, which takes what this test wants refused")


def _save(path: Path, nodes: list[onnx.NodeProto], arrays: list[onnx.TensorProto]) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], arrays)
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def symmetric_network(path: Path) -> Path:
    """The quantized convolution as TensorRT takes it: int8 without zero points, floats for bias."""
    model = onnx.load(str(int8_network(path)))
    arrays = {array.name: array for array in model.graph.initializer}
    for name in ("zx", "zy"):
        arrays[name].CopyFrom(numpy_helper.from_array(np.int8(0), name))
    nodes = [node for node in model.graph.node if node.name != "b_dq"]
    conv = next(node for node in nodes if node.op_type == "Conv")
    del conv.input[2:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
    return path


def half_network(path: Path) -> Path:
    """A convolution in fp16 between two casts: a typed network."""
    weights = numpy_helper.from_array(np.full((16, 3, 3, 3), 0.1, np.float16), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="/in", to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"], name="/conv/Conv"),
        helper.make_node("Cast", ["c"], ["y"], name="/out", to=TensorProto.FLOAT),
    ]
    return _save(path, nodes, [weights])


@pytest.mark.parametrize("make", [float_network, symmetric_network, half_network])
def test_real_engines_are_built_without_a_gpu(
    build: Build, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    outcome = build(make(tmp_path / "n.onnx"))
    assert outcome["state"] == "done", outcome
    found = outcome["result"]
    content = Path(found["path"]).read_bytes()
    assert content[:4] == b"vtrt"
    assert len(content) == found["engine"]["size_bytes"] > 10_000
    assert found["strongly_typed"] is True
    assert [attempt["ended"] for attempt in found["attempts"]] == ["built"]
    assert found["timing_cache"] is None  # RTX has none that does anything
    assert [line for line in found["log"] if line.startswith("[E]")] == []


def test_an_engine_is_built_once(build: Build, tmp_path: Path) -> None:
    path = float_network(tmp_path / "n.onnx", seed=5)
    first, second = build(path)["result"], build(path)["result"]
    assert not first["engine"]["cached"] and second["engine"]["cached"]
    assert second["engine"]["sha256"] == first["engine"]["sha256"]
    third = build(path, rebuild=1)["result"]
    assert not third["engine"]["cached"]


def test_a_network_is_strongly_typed_even_where_that_was_not_asked_for(
    build: Build, tmp_path: Path
) -> None:
    outcome = build(float_network(tmp_path / "n.onnx", seed=6), strongly_typed=False)
    assert outcome["result"]["strongly_typed"] is True


def _refusal(outcome: Frame, kind: str) -> str:
    assert outcome["state"] == "failed", outcome
    assert outcome["exception"]["type"] == kind, outcome
    message: str = outcome["exception"]["message"]
    return message


@pytest.mark.parametrize(
    "change", [{"flags": ["fp16"]}, {"layers": {"/fc/Gemm": "fp16"}, "constraints": "obey"}]
)
def test_flags_are_refused_where_types_decide(
    build: Build, tmp_path: Path, change: dict[str, object]
) -> None:
    outcome = build(float_network(tmp_path / "n.onnx"), strongly_typed=False, **change)
    message = _refusal(outcome, "UnsupportedOption")
    assert "takes precisions from the ONNX file's own types here: convert the network" in message


def test_the_parsers_error_names_the_node_and_says_why(build: Build, tmp_path: Path) -> None:
    message = _refusal(build(int8_network(tmp_path / "n.onnx")), "NetworkRefused")
    assert "cannot parse this network: node 0, x_q (QuantizeLinear): Assertion failed:" in message
    assert "Non-zero zero point is not supported." in message
    assert message.endswith("[INVALID_NODE in buildZeroPointTensor]")


def test_an_operator_that_the_parser_does_not_know_is_named(build: Build, tmp_path: Path) -> None:
    node = helper.make_node("Swirl", ["x"], ["y"], name="/swirl", domain="com.example")
    outcome = build(_save(tmp_path / "n.onnx", [node], []))
    message = _refusal(outcome, "NetworkRefused")
    assert "node 0, /swirl (Swirl): " in message
    assert "Plugin not found" in message or "No importer registered" in message


def test_shapes_that_do_not_fit_are_the_parsers_error(build: Build, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros((16, 5, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/conv/Conv")
    message = _refusal(build(_save(tmp_path / "n.onnx", [node], [weights])), "NetworkRefused")
    assert "/conv/Conv (Conv)" in message


def test_a_file_that_is_cut_off_is_refused(build: Build, tmp_path: Path) -> None:
    path = float_network(tmp_path / "n.onnx")
    path.write_bytes(path.read_bytes()[:3000])
    assert "cut off" in _refusal(build(path), "NoOnnxFile")


def test_measuring_without_a_gpu_says_what_is_missing(
    agent: RawAgent, build: Build, tmp_path: Path
) -> None:
    _without_gpu()
    engine = build(float_network(tmp_path / "n.onnx"))["result"]["engine"]["sha256"]
    params = {"runtime": "tensorrt_rtx", "threads": 1, "seed": 0, "plan": PLAN, "nonce": ""}
    agent.submit("f" * 32, "measure", params | {"engines": [engine]})
    message = _refusal(agent.outcome("f" * 32), "NoCuda")
    assert "\n" not in message and ("no GPU" in message or "libcudart" in message)


def test_what_the_bindings_have_is_what_the_table_says(agent: RawAgent) -> None:
    found = agent.result("probe", runtime="tensorrt_rtx")
    assert found["runtime_version"].startswith("1.")
    assert {"strong_typing", "memory_pools", "layer_info", "named_tensors"} <= set(
        found["providers"]
    )
    assert not {"weak_typing", "timing_cache", "fast_precisions"} & set(found["providers"])
