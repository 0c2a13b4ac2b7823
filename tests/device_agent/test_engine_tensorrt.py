"""The real agent with a stand-in for TensorRT 8 and for CUDA: build, measure, profile, infer.

What that proves of a Nano stands in ``tensorrt8/tensorrt.py``. It runs under this Python and 3.6.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harness.boards.wire import validate
from tests.boards.support import float_network, int8_network, python36_with_runtime
from tests.contract.agent import PLAN, Frame, RawAgent
from tests.device_agent import cudart

VERSIONS = ("8.0.1.6", "8.2.1.8", "8.5.2.2")
STAND_IN = Path(__file__).with_name("tensorrt8")
CONV1 = "/conv1/Conv + /relu1/Relu"
CONV2 = "/conv2/Conv + /Add + /relu2/Relu"
BUILD: Frame = {
    "flags": ["fp16"],
    "layers": {},
    "constraints": "none",
    "strongly_typed": False,
    "workspace_bytes": None,
    "rebuild": 0,
    "cuda_graph": False,
    "spin_wait": False,
    "transfers": True,
}


class Board:
    """An agent on a board with TensorRT 8, and the jobs that a host would submit."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.calls_path = folder / "calls"
        self.python = sys.executable
        self.env = {
            "PYTHONPATH": str(STAND_IN),
            "BOARDFIT_CUDART": str(library),
            "BOARDFIT_TENSORRT8": "8.2.1.8",
            "BOARDFIT_TENSORRT8_CALLS": str(self.calls_path),
        }
        self._agent: RawAgent | None = None
        self._jobs = 0

    def agent(self) -> RawAgent:
        if self._agent is None:
            self._agent = RawAgent(self.python, self.folder / "cache", self.env)
        return self._agent

    def put(self, path: Path) -> str:
        return self.agent().put(path.read_bytes())

    def outcome(self, kind: str, **params: Any) -> Frame:
        self._jobs += 1
        common = {"runtime": "tensorrt", "nonce": ""}
        if kind != "build":
            common["threads"] = 1
        if kind in ("measure", "profile"):
            common["seed"] = 0
        params = common | params
        validate(f"{kind}.params", params)
        job = f"{self._jobs:032x}"
        self.agent().submit(job, kind, params)
        return self.agent().outcome(job)

    def result(self, kind: str, **params: Any) -> Frame:
        outcome = self.outcome(kind, **params)
        assert outcome["state"] == "done", outcome
        validate(f"{kind}.result", outcome["result"])
        found: Frame = outcome["result"]
        return found

    def failure(self, kind: str, **params: Any) -> tuple[str, str]:
        outcome = self.outcome(kind, **params)
        assert outcome["state"] == "failed", outcome
        return outcome["exception"]["type"], outcome["exception"]["message"]

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.calls_path.read_text().splitlines()]

    def builds(self) -> int:
        return [call[0] for call in self.calls()].count("builder.build_serialized_network")

    def restart(self, **env: str) -> None:
        self.close()
        self.env |= env
        self._jobs += 100

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudart.compiled(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def board(tmp_path: Path, library: Path) -> Iterator[Board]:
    board = Board(tmp_path, library)
    yield board
    board.close()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return float_network(tmp_path / "net.onnx")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("python", ["host", "3.6"])
def test_a_network_is_built_measured_profiled_and_run(
    board: Board, network: Path, version: str, python: str
) -> None:
    board.python = sys.executable if python == "host" else python36_with_runtime()
    board.env["BOARDFIT_TENSORRT8"] = version
    sha256 = board.put(network)
    measured = board.result("measure", engines=[sha256], builds=[BUILD], plan=PLAN)
    assert measured["runtime_version"] == version
    (engine,) = measured["engines"]
    assert engine["batch"] == 1
    # Reformatting, two fused convolutions, pooling and the fully connected layer.
    assert engine["engine"]["layers"] == 5
    assert engine["engine"]["workspace_bytes"] == 256 << 20
    assert not engine["engine"]["cached"] and engine["engine"]["build_s"] >= 0
    parts = engine["parts"]
    assert {len(part) for part in parts.values()} == {len(engine["samples_s"])}
    for index, whole_s in enumerate(engine["samples_s"]):
        # Each part lies within the call; both clocks are this computer's.
        assert sum(parts[name][index] for name in ("h2d_s", "compute_s", "d2h_s")) <= whole_s
        assert parts["enqueue_s"][index] <= whole_s

    profile = board.result("profile", network=sha256, build=BUILD, runs=3)
    kernels = {kernel["name"]: kernel for kernel in profile["kernels"]}
    assert list(kernels) == [
        f"Reformatting CopyNode for Input Tensor 0 to {CONV1}",
        CONV1,
        CONV2,
        "/pool",
        "/fc/Gemm",
    ]
    copy, first = list(kernels.values())[:2]
    assert (copy["op"], copy["node"], copy["serves"]) == ("Reformat", "", "/conv1/Conv")
    assert (first["op"], first["node"], first["serves"]) == ("Conv", "/conv1/Conv", "")
    assert kernels[CONV2]["nodes"] == ["/conv2/Conv", "/Add", "/relu2/Relu"]
    # The stand-in reports 0.25 ms for the first layer, 0.5 ms for the second, and so on.
    assert first["samples_s"] == [pytest.approx(0.5e-3)] * 3
    assert kernels["/fc/Gemm"]["latency_s"] == pytest.approx(1.25e-3)
    told = ("sm53_xmma_conv", "Float") if version > "8.1" else ("", "")
    assert (first["tactic"], first["precision"]) == told

    inputs = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8) + 1
    stream = io.BytesIO()
    np.save(stream, inputs)
    params = {"network": sha256, "build": BUILD, "inputs": board.agent().put(stream.getvalue())}
    inferred = board.result("infer", input_name="x", **params)
    outputs = np.load(inferred["path"])
    # Element i is i + 1 times the first element of the input: 1, and 193 = 3 * 8 * 8 + 1.
    assert outputs.shape == (2, 10)
    assert outputs[:, 2].tolist() == [3.0, 3.0 * 193]
    # One build served all three.
    assert board.builds() == 1


@pytest.mark.parametrize(
    ("version", "features"),
    [
        ("8.0.1.6", {"weak_typing", "explicit_batch", "fast_precisions", "timing_cache"}),
        ("8.2.1.8", {"layer_info", "precision_constraints"}),
        ("8.5.2.2", {"memory_pools", "named_tensors"}),
    ],
)
def test_a_probe_tells_the_gpu_and_what_a_version_has_beyond_the_one_before(
    board: Board, version: str, features: set[str]
) -> None:
    board.env["BOARDFIT_TENSORRT8"] = version
    found = board.agent().result("probe", runtime="tensorrt")
    assert found["runtime_version"] == version
    assert features <= set(found["providers"])
    later = {"8.0": 4, "8.2": 6, "8.5": 8}
    assert len(found["providers"]) == later[version[:3]]
    assert found["gpu"] == {
        "name": "NVIDIA Tegra X1",
        "compute": "5.3",
        "fast_fp16": True,
        "fast_int8": False,
        "total_bytes": 4 << 30,
        "free_bytes": 3 << 30,
    }


def test_a_short_last_batch_is_filled_and_cut_off(board: Board, network: Path) -> None:
    model = onnx.load(str(network))
    for tensor in (model.graph.input[0], model.graph.output[0]):
        tensor.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(network))
    inputs = np.zeros((6, 3, 8, 8), np.float32)
    inputs[:, 0, 0, 0] = np.arange(6)
    stream = io.BytesIO()
    np.save(stream, inputs)
    params = {"network": board.put(network), "inputs": board.agent().put(stream.getvalue())}
    outputs = np.load(board.result("infer", input_name=None, **params)["path"])
    # Two calls, whose first inputs begin with 0 and with 4: element 1 of the second call's output
    # is 2 * 4, and element 10, which is the first of the next row, 11 * 4.
    assert outputs.shape == (6, 10)
    assert outputs[:4].tolist() == np.zeros((4, 10)).tolist()
    assert (outputs[4, 1], outputs[5, 0]) == (8.0, 44.0)


def test_inputs_of_another_shape_are_refused(board: Board, network: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3, 8, 9), np.float32))
    params = {"network": board.put(network), "inputs": board.agent().put(stream.getvalue())}
    kind, message = board.failure("infer", input_name="x", **params)
    assert (kind, "[3, 8, 8], these are [3, 8, 9]" in message) == ("ValueError", True)
    kind, message = board.failure("infer", input_name="z", **params)
    assert (kind, "the network has inputs ['x']" in message) == ("ValueError", True)


def test_calls_come_in_the_order_of_the_developer_guide(board: Board, network: Path) -> None:
    build = BUILD | {"layers": {"/fc/Gemm": "fp32"}, "constraints": "obey"}
    board.result("build", network=board.put(network), build=build)
    names = [call[0] for call in board.calls()]
    order = [
        "Builder",
        "builder.create_network",
        "parser.parse",
        "config.set_flag",
        "config_workspace",
        "layer.precision",
        "config.set_timing_cache",
        "builder.build_serialized_network",
    ]
    assert [names.index(name) for name in order] == sorted(names.index(name) for name in order)
    flags = [call[1] for call in board.calls() if call[0] == "config.set_flag"]
    assert flags == ["BuilderFlag.FP16", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"]
    assert ["config.clear_flag", "BuilderFlag.TF32"] in board.calls()
    assert ["layer.precision", "/fc/Gemm", "DataType.FLOAT"] in board.calls()


def test_8_0_obeys_precisions_by_its_own_flag(board: Board, network: Path) -> None:
    board.env["BOARDFIT_TENSORRT8"] = "8.0.1.6"
    build = BUILD | {"layers": {"/fc/Gemm": "fp32"}, "constraints": "prefer"}
    board.result("build", network=board.put(network), build=build)
    assert ["config.set_flag", "BuilderFlag.STRICT_TYPES"] in board.calls()


def test_precisions_for_nodes_that_are_not_there_are_refused(board: Board, network: Path) -> None:
    build = BUILD | {"layers": {"/fc/Gem": "fp32"}, "constraints": "obey"}
    kind, message = board.failure("build", network=board.put(network), build=build)
    assert (kind, board.builds()) == ("UnsupportedOption", 0)
    assert "nodes that the network has not: /fc/Gem" in message


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False),
        ({"cuda_graph": True, "spin_wait": True, "transfers": False}, False),  # only of running
        ({"flags": []}, True),
        ({"workspace_bytes": 32 << 20}, True),
        ({"rebuild": 1}, True),
    ],
)
def test_an_engine_comes_from_the_cache_unless_something_that_it_depends_on_differs(
    board: Board, network: Path, change: Frame, again: bool
) -> None:
    sha256 = board.put(network)
    first = board.result("build", network=sha256, build=BUILD)
    second = board.result("build", network=sha256, build=BUILD | change)
    assert board.builds() == 1 + again
    assert second["engine"]["cached"] is not again
    assert (second["engine"]["build_s"] is None) is not again
    assert not first["engine"]["cached"]


def test_another_version_or_chip_has_an_engine_of_its_own(board: Board, network: Path) -> None:
    sha256 = board.put(network)
    board.result("build", network=sha256, build=BUILD)
    board.restart(BOARDFIT_TENSORRT8="8.5.2.2")
    board.result("build", network=sha256, build=BUILD)
    board.restart(BOARDFIT_COMPUTE="7.2")
    board.result("build", network=sha256, build=BUILD)
    assert board.builds() == 3


def test_the_timing_cache_is_kept_and_grows_but_not_for_a_rebuild(
    board: Board, network: Path, tmp_path: Path
) -> None:
    first = board.result("build", network=board.put(network), build=BUILD)
    found = first["timing_cache"]
    content = Path(found["path"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == found["sha256"]
    assert CONV1.encode() in content
    other = float_network(tmp_path / "other.onnx", seed=1)
    second = board.result("build", network=board.put(other), build=BUILD)
    third = board.result("build", network=board.put(network), build=BUILD | {"rebuild": 1})
    given = [int(call[1]) for call in board.calls() if call[0] == "config.set_timing_cache"]
    assert given[0] == 0 and given[1] > 0 and len(given) == 2
    assert second["timing_cache"] is not None and third["timing_cache"] is None


def test_a_damaged_timing_cache_is_begun_anew(board: Board, network: Path) -> None:
    sha256 = board.put(network)
    board.result("build", network=sha256, build=BUILD)
    (path,) = (board.folder / "cache/engines").glob("timing-*.cache")
    path.write_bytes(b"damaged")
    found = board.result("build", network=sha256, build=BUILD | {"flags": []})
    assert any("Magic tag" in line for line in found["log"])
    assert CONV1.encode() in path.read_bytes()


def test_an_engine_that_the_cache_has_lost_is_built_again(board: Board, network: Path) -> None:
    sha256 = board.put(network)
    first = board.result("build", network=sha256, build=BUILD)
    Path(first["path"]).unlink()
    second = board.result("build", network=sha256, build=BUILD)
    assert Path(second["path"]).is_file()
    assert board.builds() == 2


def test_what_is_known_of_old_engines_is_cleaned_away_and_what_is_in_use_stays(
    board: Board, network: Path
) -> None:
    sha256 = board.put(network)
    board.result("build", network=sha256, build=BUILD)
    known = board.folder / "cache/engines"
    # Two records, of the build and of the engine, and the timing cache.
    assert len(list(known.iterdir())) == 3
    for path in known.iterdir():
        os.utime(path, (0, 0))
    board.result("build", network=sha256, build=BUILD)
    removed = board.agent().result("clean", keep_s=86400.0, unfetched=False)["removed"]
    assert removed["engines"] == 1
    assert {path.suffix for path in known.iterdir()} == {".json"}


def test_a_built_engine_can_be_measured_by_its_own_hash(board: Board, network: Path) -> None:
    built = board.result("build", network=board.put(network), build=BUILD)
    sha256 = built["engine"]["sha256"]
    (found,) = board.result("measure", engines=[sha256], plan=PLAN)["engines"]
    assert "engine" not in found and found["parts"]["compute_s"]
    # Its network is known, and so are the nodes.
    kernels = board.result("profile", network=sha256, runs=1)["kernels"]
    assert kernels[1]["node"] == "/conv1/Conv"
    assert board.builds() == 1


def test_an_engine_of_another_version_is_refused_with_tensorrts_reason(
    board: Board, network: Path
) -> None:
    built = board.result("build", network=board.put(network), build=BUILD)
    board.restart(BOARDFIT_TENSORRT8="8.0.1.6")
    kind, message = board.failure("measure", engines=[built["engine"]["sha256"]], plan=PLAN)
    assert kind == "EngineRefused"
    assert "TensorRT 8.0.1.6 does not take this engine: 1: [stdArchiveReader" in message
    assert "build it here" in message


def test_parser_errors_name_the_node_that_8_only_numbers(board: Board, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="/relu"),
        helper.make_node("Einsum", ["r", "r"], ["y"], name="/attention/Einsum", equation="i,i->"),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph), str(tmp_path / "e.onnx"))
    kind, message = board.failure("build", network=board.put(tmp_path / "e.onnx"), build=BUILD)
    assert kind == "NetworkRefused"
    assert message == (
        "TensorRT 8.2.1.8 cannot parse this network: node 1, /attention/Einsum (Einsum): "
        "No importer registered for op: Einsum [UNSUPPORTED_NODE in parseGraph]"
    )


@pytest.mark.parametrize(
    "content", [b"\x00" * 64, b"\x08\x08\x3a\xff\x7f"], ids=["zeros", "cut off"]
)
def test_a_file_that_is_no_network_is_refused(board: Board, content: bytes) -> None:
    kind, message = board.failure("build", network=board.agent().put(content), build=BUILD)
    assert kind == "NoOnnxFile"
    assert "ONNX file" in message


@pytest.mark.parametrize("compute", ["5.3", "6.2"])
def test_a_chip_without_fast_int8_refuses_quantized_networks(
    board: Board, tmp_path: Path, compute: str
) -> None:
    board.env["BOARDFIT_COMPUTE"] = compute
    sha256 = board.put(int8_network(tmp_path / "q.onnx"))
    kind, message = board.failure("build", network=sha256, build=BUILD)
    assert (kind, board.builds()) == ("NetworkRefused", 0)
    assert message.startswith("node x_q (QuantizeLinear): this chip has no fast int8")
    assert "dequantize the weights" in message


def test_a_quantized_network_gets_the_flag_on_a_chip_that_has_int8(
    board: Board, tmp_path: Path
) -> None:
    board.env["BOARDFIT_COMPUTE"] = "7.2"
    sha256 = board.put(int8_network(tmp_path / "q.onnx"))
    board.result("build", network=sha256, build=BUILD | {"flags": []})
    assert ["config.set_flag", "BuilderFlag.INT8"] in board.calls()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flags": ["int8"]}, "int8 needs a quantized network"),
        ({"flags": [], "strongly_typed": True}, "8.2.1.8 has no strongly typed networks"),
    ],
)
def test_an_option_that_there_is_not_is_refused(
    board: Board, network: Path, change: Frame, text: str
) -> None:
    kind, message = board.failure("build", network=board.put(network), build=BUILD | change)
    assert kind == "UnsupportedOption"
    assert text in message


@pytest.mark.parametrize("sign", ["", "-"], ids=["killed", "refused"])
def test_a_build_that_memory_runs_out_for_is_tried_with_less(
    board: Board, network: Path, sign: str
) -> None:
    # 100 MB are too much: 256 MiB end the builder, and so 64 MiB are tried.
    board.env["BOARDFIT_TENSORRT8_NEEDS"] = f"{sign}{100 * 10**6}"
    found = board.result("build", network=board.put(network), build=BUILD)
    assert [attempt["workspace_bytes"] for attempt in found["attempts"]] == [256 << 20, 64 << 20]
    first, second = (attempt["ended"] for attempt in found["attempts"])
    assert ("out of memory" if sign else "killed by SIGKILL") in first
    assert second == "built"
    assert found["engine"]["workspace_bytes"] == 64 << 20


def test_a_build_that_dies_with_the_least_workspace_says_what_was_tried(
    board: Board, network: Path
) -> None:
    board.env["BOARDFIT_TENSORRT8_NEEDS"] = "1"
    build = BUILD | {"workspace_bytes": 32 << 20}
    kind, message = board.failure("build", network=board.put(network), build=build)
    assert kind == "BuildDied"
    assert "32 MiB workspace" in message and "16 MiB workspace" in message
    assert "killed by SIGKILL" in message and "add swap" in message


def test_a_cancelled_build_leaves_no_builder_behind(board: Board, network: Path) -> None:
    board.env["BOARDFIT_TENSORRT8_SLEEP"] = "60"
    agent, sha256 = board.agent(), board.put(network)
    job = "c" * 32
    agent.submit(job, "build", {"runtime": "tensorrt", "network": sha256, "nonce": ""})
    deadline = time.monotonic() + 30
    while not board.calls_path.exists() or not board.builds():
        assert time.monotonic() < deadline, "the build does not begin"
        time.sleep(0.05)
    pid = int(board.calls()[-1][1])
    assert Path(f"/proc/{pid}").exists()
    assert agent.result("cancel", job_id=job)["state"] == "cancelled"
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the builder lives on"
        time.sleep(0.05)


def test_a_graph_is_launched_instead_of_the_engine(board: Board, network: Path) -> None:
    build = BUILD | {"cuda_graph": True, "spin_wait": True}
    (found,) = board.result("measure", engines=[board.put(network)], builds=[build], plan=PLAN)[
        "engines"
    ]
    assert min(found["parts"]["enqueue_s"]) > 0


def test_without_transfers_copies_take_no_time(board: Board, network: Path) -> None:
    build = BUILD | {"transfers": False}
    (found,) = board.result("measure", engines=[board.put(network)], builds=[build], plan=PLAN)[
        "engines"
    ]
    assert set(found["parts"]["h2d_s"]) == set(found["parts"]["d2h_s"]) == {0.0}
    assert min(found["parts"]["compute_s"]) > 0


def test_an_open_batch_is_built_for_one_input(board: Board, network: Path) -> None:
    model = onnx.load(str(network))
    for tensor in (model.graph.input[0], model.graph.output[0]):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, str(network))
    (found,) = board.result("measure", engines=[board.put(network)], builds=[BUILD], plan=PLAN)[
        "engines"
    ]
    assert found["batch"] == 1


def test_an_open_size_is_refused_with_the_inputs_name(board: Board, network: Path) -> None:
    model = onnx.load(str(network))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, str(network))
    kind, message = board.failure("build", network=board.put(network), build=BUILD)
    assert kind == "NetworkRefused"
    assert "input x has shape [1, 3, -1, 8]: export the network with fixed sizes" in message


def test_two_engines_alternate_with_a_build_for_each(board: Board, network: Path) -> None:
    sha256 = board.put(network)
    builds = [BUILD, BUILD | {"flags": []}]
    found = board.result("measure", engines=[sha256, sha256], builds=builds, plan=PLAN)["engines"]
    assert found[0]["engine"]["sha256"] and board.builds() == 2
    assert [engine["rounds"][0] for engine in found] == [0, 0]
    kind, message = board.failure("measure", engines=[sha256], builds=builds, plan=PLAN)
    assert (kind, message) == ("ValueError", "1 engines and 2 builds: there is one for each")


def test_a_board_without_a_gpu_says_so(board: Board, network: Path) -> None:
    board.env["BOARDFIT_NO_GPU"] = "1"
    kind, message = board.failure("measure", engines=[board.put(network)], plan=PLAN)
    assert kind == "NoCuda"
    assert "finds no GPU" in message


def test_other_runtimes_build_no_engines(board: Board, network: Path) -> None:
    kind, message = board.failure("build", runtime="fake", network=board.put(network))
    assert (kind, message) == ("ValueError", "fake builds no engines: it loads networks")


def _strict(function: Callable[[Any], Any]) -> str:
    """What the stand-in says to a call that the documentation does not have."""
    sys.path.insert(0, str(STAND_IN))
    try:
        import tensorrt
    finally:
        sys.path.remove(str(STAND_IN))
    with pytest.raises((AttributeError, TypeError)) as caught:
        function(tensorrt)
    return str(caught.value)


def test_the_stand_in_takes_nothing_that_the_documentation_has_not() -> None:
    def config(trt: Any) -> Any:
        return trt.Builder(trt.Logger()).create_builder_config()

    assert "no attribute workspace" in _strict(lambda trt: setattr(config(trt), "workspace", 1))
    assert "is <class 'float'>" in _strict(
        lambda trt: setattr(config(trt), "max_workspace_size", 1.0)
    )
    assert "set_memory_pool_limit" in _strict(lambda trt: config(trt).set_memory_pool_limit)
    # An ILogger whose own constructor was not called ends the process in pybind11's bindings.
    assert "__init__() must be called" in _strict(lambda trt: trt.Runtime(_without_init(trt)))


def _without_init(trt: Any) -> Any:
    class Forgetful(trt.ILogger):
        def __init__(self) -> None:
            pass

    return Forgetful()
