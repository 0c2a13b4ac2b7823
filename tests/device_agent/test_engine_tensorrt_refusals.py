"""What the agent refuses, and what it does when a build of TensorRT's goes wrong."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.boards.support import int8_network
from tests.contract.agent import PLAN, Frame
from tests.device_agent.tensorrt_board import BUILD, STAND_IN, Board


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


def test_a_damaged_timing_cache_is_begun_anew(board: Board, network: Path) -> None:
    sha256 = board.put(network)
    board.result("build", network=sha256, build=BUILD)
    (path,) = (board.folder / "cache/engines").glob("timing-*.cache")
    path.write_bytes(b"damaged")
    found = board.result("build", network=sha256, build=BUILD | {"flags": []})
    assert any("Magic tag" in line for line in found["log"])
    assert b"/conv1/Conv" in path.read_bytes()


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


def test_an_open_size_is_refused_with_the_inputs_name(board: Board, network: Path) -> None:
    model = onnx.load(str(network))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, str(network))
    kind, message = board.failure("build", network=board.put(network), build=BUILD)
    assert kind == "NetworkRefused"
    assert "input x has shape [1, 3, -1, 8]: export the network with fixed sizes" in message


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
