"""Names of fused layers are led back to the nodes of the network, reformatting copies apart."""

from __future__ import annotations

import re

import pytest

from device_agent import onnx_nodes, trt_names
from tests.boards.support import ROOT

JOINTS = r" \+ | \|\| "
LOGS = ROOT.parent / "shared/measured/jetson_nano/trtexec_logs"
OPS = {
    "Conv_0": "Conv",
    "BatchNormalization_1": "BatchNormalization",
    "Relu_2": "Relu",
    "Conv_3": "Conv",
    "Add_4": "Add",
    "Relu_5": "Relu",
    "/act/Sigmoid": "Sigmoid",
    "/act/Mul": "Mul",
    "fc, the last": "Gemm",
    "QuantizeLinear_9": "QuantizeLinear",
}
NODES = [onnx_nodes.Node(name, op, [], [name + "_out"]) for name, op in OPS.items()]
NODES.append(onnx_nodes.Node("Concat_12", "Concat", ["363", "384"], ["385"]))
NAMES = trt_names.Names([*NODES, onnx_nodes.Node("", "Softmax", [], ["prob"])])


@pytest.mark.parametrize(
    ("layer", "node", "nodes"),
    [
        ("Conv_0", "Conv_0", ["Conv_0"]),
        ("Conv_0 + Relu_2", "Conv_0", ["Conv_0", "Relu_2"]),
        # The convolution stands for the kernel, wherever it is in the name.
        ("Add_4 + Conv_3 + Relu_5", "Conv_3", ["Conv_3", "Add_4", "Relu_5"]),
        ("Conv_0 || Conv_3", "Conv_0", ["Conv_0", "Conv_3"]),
        ("PWN(/act/Sigmoid, /act/Mul)", "/act/Sigmoid", ["/act/Sigmoid", "/act/Mul"]),
        ("PWN(PWN(/act/Sigmoid), /act/Mul)", "/act/Sigmoid", ["/act/Sigmoid", "/act/Mul"]),
        ("{ForeignNode[Conv_3...Relu_5]}", "Conv_3", ["Conv_3", "Add_4", "Relu_5"]),
        # A name may hold what stands between names.
        ("fc, the last", "fc, the last", ["fc, the last"]),
        # A node that becomes two layers: the second is numbered.
        ("Conv_0_7", "Conv_0", ["Conv_0"]),
        ("QuantizeLinear_9_quantize_scale_node", "QuantizeLinear_9", ["QuantizeLinear_9"]),
        (
            "QuantizeLinear_9_quantize_scale_node + Conv_3",
            "Conv_3",
            ["Conv_3", "QuantizeLinear_9"],
        ),
        # As 8.0.1 names what a Concat has to copy.
        ("384 copy", "Concat_12", ["Concat_12"]),
        ("node_of_prob", "node_of_prob", ["node_of_prob"]),
        ("(Unnamed Layer* 12) [Shuffle]", "", []),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_3 + Add_4", "", []),
    ],
)
def test_a_layer_is_led_back_to_its_nodes(layer: str, node: str, nodes: list[str]) -> None:
    assert NAMES.node(layer) == node
    assert NAMES.nodes(layer) == nodes


def test_metadata_knows_better_than_a_name_that_myelin_made_up() -> None:
    metadata = "[ONNX Layer: Relu_2]\x1e[ONNX Layer: Conv_0]\x1e[ONNX Layer: gone]"
    assert NAMES.nodes("__myl_ConvRelu_myl0_3", metadata) == ["Conv_0", "Relu_2"]
    assert NAMES.node("__myl_ConvRelu_myl0_3", metadata) == "Conv_0"


@pytest.mark.parametrize(
    ("layer", "serves"),
    [
        ("Reformatting CopyNode for Input Tensor 0 to Conv_3 + Add_4", "Conv_3"),
        ("Reformatting CopyNode for Output Tensor 1 to Conv_0", "Conv_0"),
        ("Conv_0 + Relu_2 input reformatter 0", "Conv_0"),
        ("Conv_0 output reformatter 0", "Conv_0"),
        ("Reformatting CopyNode for Input Tensor 0 to (Unnamed Layer* 3) [Scale]", ""),
        ("Conv_0", ""),
    ],
)
def test_a_reformatting_copy_serves_a_node_and_computes_none(layer: str, serves: str) -> None:
    assert NAMES.serves(layer) == serves
    assert NAMES.node(layer) == ("Conv_0" if layer == "Conv_0" else "")


def test_the_layers_of_a_real_nano_are_taken_apart_at_the_joints_alone() -> None:
    """TensorRT 8.0.1's own lists of layers: names that tf2onnx made hold "/", ";" and "_1"."""
    if not LOGS.is_dir():
        pytest.skip(f"{LOGS} is not here")
    mark = "[TRT] [GpuLayer] "
    fused = 0
    for log in sorted(LOGS.glob("*.log")):
        text = log.read_text(errors="replace")
        layers = [line.partition(mark)[2] for line in text.splitlines() if mark in line]
        plain = [name for name in layers if "(" not in name and not trt_names.is_reformat(name)]
        parts = {part for name in plain for part in re.split(JOINTS, name)}
        names = trt_names.Names([onnx_nodes.Node(part, "Relu", [], []) for part in sorted(parts)])
        for name in plain:
            fused += " + " in name
            assert set(names.nodes(name)) == set(re.split(JOINTS, name))
    assert fused > 50
