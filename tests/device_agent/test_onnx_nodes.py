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


def test_a_fusion_that_carries_a_nodes_name_finds_that_node() -> None:
    nodes = [
        Node("/act/Sigmoid", "Sigmoid", ["x"], ["s"]),
        Node("/act/Mul", "Mul", ["x", "s"], ["y"]),
    ]
    fused = Node("/act/Mul/QuickGeluFusion/", "QuickGelu", ["reorder_1"], ["reorder_2"])
    assert Origin(nodes, set()).of(fused) == "/act/Mul"


def test_a_batch_norm_that_runs_as_a_convolution_is_not_taken_for_the_one_before_it() -> None:
    nodes = [
        Node("/conv", "Conv", ["x", "w"], ["c"]),
        Node("/norm", "BatchNormalization", ["c", "scale", "b", "m", "v"], ["n"]),
    ]
    kernel = Node("n_bn_nchwc", "Conv", ["reorder", "bn_scale", "bn_B"], ["reorder_token_3"])
    assert Origin(nodes, {"w"}).of(kernel) == "/norm"


# onnxruntime 1.10's integer pooling keeps neither its node's name nor a tensor of the network.
POOLED = [
    Node("/conv", "Conv", ["x", "w"], ["c"]),
    Node("c_q", "QuantizeLinear", ["c"], ["cq"]),
    Node("c_dq", "DequantizeLinear", ["cq"], ["cd"]),
    Node("/pool", "MaxPool", ["cd"], ["p"]),
]
POOLED_KERNELS = [
    Node("Transpose", "Transpose", ["xq"], ["Transpose"]),
    Node("QLinearConv", "QLinearConv", ["Transpose"], ["/conv"]),
    Node("NhwcMaxPool", "NhwcMaxPool", ["/conv"], ["NhwcMaxPool"]),
    Node("Transpose_token_7", "Transpose", ["NhwcMaxPool"], ["y"]),
]


def test_a_nameless_kernel_is_the_next_node_of_its_kind_behind_its_input() -> None:
    origin = Origin(POOLED, {"w"}, POOLED_KERNELS)
    assert [origin.of(kernel) for kernel in POOLED_KERNELS] == ["", "/conv", "/pool", ""]


def test_of_two_nodes_that_a_nameless_kernel_could_be_neither_is_taken() -> None:
    twice = [*POOLED, Node("/other", "MaxPool", ["cd"], ["q"])]
    assert Origin(twice, {"w"}, POOLED_KERNELS).of(POOLED_KERNELS[2]) == ""


def test_a_layout_kernel_serves_the_node_that_reads_it_or_at_the_end_the_one_before() -> None:
    origin = Origin(POOLED, {"w"}, POOLED_KERNELS)
    assert [origin.serves(kernel) for kernel in POOLED_KERNELS] == ["/conv", "", "", "/pool"]


def test_a_chain_of_layout_kernels_serves_the_node_behind_them() -> None:
    kernels = [
        Node("ReorderOutput", "ReorderOutput", ["r0"], ["t"]),
        Node("ReorderInput", "ReorderInput", ["t"], ["r1"]),
        Node("r2_nchwc", "Conv", ["r1"], ["reorder_token_2"]),
    ]
    nodes = [Node("/conv", "Conv", ["x", "w"], ["r2"])]
    origin = Origin(nodes, set(), kernels)
    assert [origin.serves(kernel) for kernel in kernels] == ["/conv", "/conv", ""]
