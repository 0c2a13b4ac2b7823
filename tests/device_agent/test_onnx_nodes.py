from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from device_agent.onnx_nodes import Node, Origin, read_nodes, strip
from tests.boards.support import float_network, int8_network


def _origin(path: Path) -> Origin:
    return Origin(*read_nodes(str(path)))


@pytest.mark.parametrize("make", [float_network, int8_network])
def test_reader_finds_what_the_onnx_package_finds(tmp_path: Path, make) -> None:
    path = make(tmp_path / "n.onnx")
    graph = onnx.load(str(path)).graph
    nodes, initialisers = read_nodes(str(path))
    assert nodes == [Node(n.name, n.op_type, list(n.input), list(n.output)) for n in graph.node]
    assert initialisers == {one.name for one in graph.initializer}


def test_reader_refuses_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(b"\x0f not an ONNX file")
    with pytest.raises(ValueError, match="no ONNX file"):
        read_nodes(str(tmp_path / "n.onnx"))


def test_what_onnxruntime_appends_to_names_is_stripped() -> None:
    assert strip("/conv/Conv_token_12") == "/conv/Conv"
    assert strip("r1_nchwc_token_3") == "r1"
    assert strip("/token/Conv_1") == "/token/Conv_1"


def test_a_fused_matmul_finds_its_matmul() -> None:
    nodes = [Node("/m", "MatMul", ["x", "w"], ["t"]), Node("/a", "Add", ["t", "b"], ["y"])]
    fused = Node("/m/MatMulAddFusion", "Gemm", ["x", "w", "b"], ["y"])
    assert Origin(nodes, {"w", "b"}).of(fused) == "/m"
    assert Origin(nodes, set()).of(fused) == "/m"


# Kernels as onnxruntime 1.10 and 1.31 name them (optimised graphs of these two networks).
@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        (Node("r1_nchwc", "Conv", ["x", "reorder", "b1"], ["reorder_token_0"]), "/conv1/Conv"),
        # Fused with the addition and the last activation: named after their output.
        (
            Node("r2_nchwc", "Conv", ["q", "reorder_1", "b2", "q"], ["reorder_token_2"]),
            "/conv2/Conv",
        ),
        # The same without a bias to go by: the nearest convolution before r2.
        (Node("r2_nchwc", "Conv", ["q", "reorder_1"], ["reorder_token_2"]), "/conv2/Conv"),
        (Node("g_nchwc", "GlobalAveragePool", ["p"], ["reorder_token_3"]), "/pool"),
        (Node("ReorderOutput", "ReorderOutput", ["reorder_token_3"], ["g"]), ""),
        (Node("/fc/Gemm", "Gemm", ["f", "w3", "b3"], ["y"]), "/fc/Gemm"),
        (Node("", "FusedConv", ["x", "w1", "b1"], ["r1"]), "/conv1/Conv"),
        (Node("fused 7", "Relu", ["z"], ["nobody"]), ""),
    ],
)
def test_float_kernels_find_their_nodes(tmp_path: Path, kernel: Node, node: str) -> None:
    assert _origin(float_network(tmp_path / "n.onnx")).of(kernel) == node


@pytest.mark.parametrize(
    ("kernel", "node"),
    [
        (Node("x_q", "QuantizeLinear", ["x"], ["xq"]), "x_q"),
        (Node("Transpose", "Transpose", ["xq"], ["Transpose_out0"]), ""),
        # 1.10 leaves integer kernels nameless; their output has the node's name. 1.31 names them.
        (Node("QLinearConv", "QLinearConv", ["t"], ["/conv/Conv"]), "/conv/Conv"),
        (Node("/conv/Conv_token_1", "QLinearConv", ["t"], ["o"]), "/conv/Conv"),
    ],
)
def test_integer_kernels_find_their_nodes(tmp_path: Path, kernel: Node, node: str) -> None:
    assert _origin(int8_network(tmp_path / "n.onnx")).of(kernel) == node
