"""What several tests need: a Python 3.6, and small networks that onnxruntime 1.10 runs too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
HOW_TO_GET_36 = (
    "no Python 3.6: name one with BOARDFIT_PYTHON36, or make .venv36 in the repository "
    "(python3.6 -m venv .venv36)"
)


def find_python36() -> str | None:
    """A real CPython 3.6, or None where there is none."""
    places = [
        Path(os.environ.get("BOARDFIT_PYTHON36") or "/nonexistent"),
        ROOT / ".venv36/bin/python",
        *sorted(Path.home().glob(".pyenv/versions/3.6*/bin/python")),
    ]
    return next((str(place) for place in places if place.is_file()), None)


def python36() -> str:
    """A real CPython 3.6; the test is skipped where there is none."""
    found = find_python36()
    if found is None:
        pytest.skip(HOW_TO_GET_36)
    return found


def python36_with_runtime() -> str:
    """A Python 3.6 that has onnxruntime; the test is skipped where there is none."""
    python = python36()
    probe = subprocess.run([python, "-c", "import onnxruntime"], capture_output=True)
    if probe.returncode:
        pytest.skip(f"{python} has no onnxruntime: pip install numpy==1.19.5 onnxruntime==1.10.0")
    return python


def python_of(version: str) -> str:
    """The interpreter for a test that runs under ``host`` and ``3.6``."""
    return sys.executable if version == "host" else python36()


def _array(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def _save(
    path: Path, nodes: list[onnx.NodeProto], arrays: list[onnx.TensorProto], shape: list[int]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        arrays,
    )
    # onnxruntime 1.10, the last for Python 3.6, reads IR version 8 and opset 15 at most.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def float_network(path: Path, *, seed: int = 0) -> Path:
    """conv - relu - conv - (+) - relu - pool - fc, as a residual network begins and ends."""
    random = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return _array(name, random.normal(scale=0.2, size=shape).astype(np.float32))

    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="/conv1/Conv", **same),
        helper.make_node("Relu", ["c1"], ["r1"], name="/relu1/Relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="/conv2/Conv", **same),
        helper.make_node("Add", ["c2", "r1"], ["a"], name="/Add"),
        helper.make_node("Relu", ["a"], ["r2"], name="/relu2/Relu"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="/pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="/flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="/fc/Gemm", transB=1),
    ]
    arrays = [
        weights("w1", 16, 3, 3, 3),
        weights("b1", 16),
        weights("w2", 16, 16, 3, 3),
        weights("b2", 16),
        weights("w3", 10, 16),
        weights("b3", 10),
    ]
    return _save(path, nodes, arrays, [1, 10])


def int8_network(path: Path) -> Path:
    """One quantized convolution as Q/DQ: uint8 activations, int8 weights per channel."""
    random = np.random.default_rng(1)
    scales = np.full(16, 0.01, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], name="x_q"),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], name="x_dq"),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], name="w_dq", axis=0),
        helper.make_node("DequantizeLinear", ["bq", "sb", "zb"], ["bd"], name="b_dq", axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], name="/conv/Conv"),
        helper.make_node("QuantizeLinear", ["c", "sy", "zy"], ["cq"], name="c_q"),
        helper.make_node("DequantizeLinear", ["cq", "sy", "zy"], ["y"], name="c_dq"),
    ]
    arrays = [
        _array("sx", np.float32(0.05)),
        _array("zx", np.uint8(128)),
        _array("wq", random.integers(-127, 128, (16, 3, 3, 3), np.int8)),
        _array("sw", scales),
        _array("zw", np.zeros(16, np.int8)),
        _array("bq", np.zeros(16, np.int32)),
        _array("sb", scales * np.float32(0.05)),
        _array("zb", np.zeros(16, np.int32)),
        _array("sy", np.float32(0.1)),
        _array("zy", np.uint8(128)),
    ]
    return _save(path, nodes, arrays, [1, 16, 6, 6])
