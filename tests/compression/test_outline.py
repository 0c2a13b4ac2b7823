"""Outlines of quantized files against the files that quantizing writes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from harness import networks
from harness.compression.quantize import form_of, quantize
from harness.compression.quantize.outline import outline
from harness.errors import BuildError
from tests.compression import tiny

X86 = tiny.facts()
ARM = dataclasses.replace(X86, machine="aarch64")
TENSORRT = dataclasses.replace(X86, runtime="tensorrt", runtime_version="8.2.1")
NETWORKS = {
    "residual": (tiny.Residual, ("stem", "inner", "wide", "classifier"), (1, 1, 8, 8)),
    "excited": (tiny.Excited, ("expand", "depthwise", "squeeze", "project"), (1, 1, 8, 8)),
    "concatenated": (tiny.Concatenated, ("left", "right", "classifier"), (1, 1, 8, 8)),
    "twice": (tiny.Twice, ("shared",), (1, 1, 8, 8)),
    "mobile": (tiny.Mobile, ("stem", "blocks.0.0", "head"), (1, 3, 32, 32)),
}


def skeleton(model):
    """Everything of a file but its numbers: nodes as they stand, constants by name."""
    nodes = [
        (n.op_type, n.name, tuple(n.input), tuple(n.output), len(n.attribute))
        for n in model.graph.node
    ]
    constants = {(i.name, i.data_type, tuple(i.dims)) for i in model.graph.initializer}
    return nodes, constants


@pytest.mark.parametrize("board", [X86, ARM, TENSORRT], ids=("x86", "arm", "tensorrt"))
@pytest.mark.parametrize("name", NETWORKS)
def test_an_outline_has_the_nodes_and_shapes_of_the_quantized_file(name, board, tmp_path):
    kind, layers, shape = NETWORKS[name]
    torch.manual_seed(0)
    path, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    networks.export_onnx(kind().eval(), torch.randn(shape), path)
    quantize(
        path,
        out,
        calibration=np.random.default_rng(0).standard_normal((2, *shape[1:])).astype(np.float32),
        int8_layers=layers,
        board=board,
        correct_bias=True,
    )
    drawn = outline(onnx.load(path), layers, form_of(board))
    assert skeleton(drawn) == skeleton(onnx.load(out))
    assert drawn.ByteSize() == out.stat().st_size


def test_an_outline_without_layers_is_the_file_itself(tmp_path):
    path = tmp_path / "float.onnx"
    networks.export_onnx(tiny.seeded(tiny.Residual), torch.randn(1, 1, 8, 8), path)
    assert outline(onnx.load(path), (), form_of(X86)) == onnx.load(path)


def test_a_layer_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "float.onnx"
    networks.export_onnx(tiny.seeded(tiny.Residual), torch.randn(1, 1, 8, 8), path)
    with pytest.raises(BuildError, match="nowhere"):
        outline(onnx.load(path), ("nowhere",), form_of(X86))
