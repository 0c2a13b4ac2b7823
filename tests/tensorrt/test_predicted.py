"""What is predicted of an int8 variant before it is built is what its file turns out to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from harness import networks
from harness.compression import quantize
from latency_models import graph
from tests.tensorrt.nets import facts


class Blocks(nn.Module):
    """Residual blocks with and without a convolution in the shortcut, pools and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.shortcut = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.d, self.e = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 3, padding=1)
        self.f, self.fc = nn.Conv2d(32, 24, 3, groups=8, padding=1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        x = torch.relu(self.c(x) + self.shortcut(x))
        x = torch.cat([self.d(x), torch.relu(self.e(x))], 1)
        x = self.f(torch.nn.functional.avg_pool2d(x, 2))
        return self.fc(x.mean((2, 3)))


LAYERS = ("stem", "a", "b", "c", "shortcut", "d", "e", "f", "fc")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("blocks") / "plain.onnx"
    networks.export_onnx(Blocks().eval(), torch.randn(1, 3, 16, 16), path)
    return path


def works(kernels):
    """What kernels do, whatever they are called, in any order."""
    found = [dataclasses.replace(graph.work(kernel), name="") for kernel in kernels]
    return sorted(found, key=repr)


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0"])
@pytest.mark.parametrize(
    "integer",
    [LAYERS, LAYERS[::2], LAYERS[1::2], LAYERS[:4], LAYERS[4:], ("a",), ("c",), ("shortcut", "f")],
    ids="+".join,
)
def test_the_kernels_of_an_int8_variant_are_those_of_its_file(plain, tmp_path, version, integer):
    path = tmp_path / "int8.onnx"
    images = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    board = facts(version, compute="8.7")
    quantize.quantize(plain, path, calibration=images, int8_layers=integer, board=board)
    layer = networks.layer_of_node(onnx.load(plain))
    kernels = graph.read(plain, runtime="tensorrt")
    names = {
        kernel.name: "int8" if layer[kernel.name] in integer else "fp32"
        for kernel in kernels
        if kernel.weight
    }
    predicted = graph.rewrite(kernels, precision=names, runtime="tensorrt")
    assert works(predicted) == works(graph.read(path, runtime="tensorrt"))


def test_an_addition_is_a_part_of_the_integer_convolution_before_it(plain):
    kernels = graph.read(plain, runtime="tensorrt")
    names = {kernel.name: "int8" for kernel in kernels if kernel.weight}
    variant = graph.rewrite(kernels, precision=names, runtime="tensorrt")
    assert "binary" not in {kernel.kind for kernel in variant}
    assert {kernel.precision for kernel in variant if kernel.weight} == {"int8"}
