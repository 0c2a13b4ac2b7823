"""The real agent with a stand-in for TensorRT 8 and for CUDA: build, measure, profile, infer.

What that proves of a Nano stands in ``tensorrt8/tensorrt.py``. It runs under this Python and 3.6.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.boards.support import float_network, python36_with_runtime
from tests.contract.agent import PLAN, Frame
from tests.device_agent.tensorrt_board import BUILD, Board

VERSIONS = ("8.0.1.6", "8.2.1.8", "8.5.2.2")
CONV1 = "/conv1/Conv + /relu1/Relu"
CONV2 = "/conv2/Conv + /Add + /relu2/Relu"


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


def test_two_engines_alternate_with_a_build_for_each(board: Board, network: Path) -> None:
    sha256 = board.put(network)
    builds = [BUILD, BUILD | {"flags": []}]
    found = board.result("measure", engines=[sha256, sha256], builds=builds, plan=PLAN)["engines"]
    assert found[0]["engine"]["sha256"] and board.builds() == 2
    assert [engine["rounds"][0] for engine in found] == [0, 0]
    kind, message = board.failure("measure", engines=[sha256], builds=builds, plan=PLAN)
    assert (kind, message) == ("ValueError", "1 engines and 2 builds: there is one for each")
