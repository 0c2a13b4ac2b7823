"""What is quantized between integer layers, and what predictions take to be.

Neither side may import the other: this is what holds the two rules together.
"""

import itertools
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from harness.compression.quantize import carriers as built
from harness.networks import export_onnx, layer_of_node
from latency_models import graph, quantization
from tests.compression.tiny import (
    Concatenated,
    Dense,
    Excited,
    Inverted,
    Padded,
    Residual,
    Shuffled,
)


def test_the_operators_are_the_same() -> None:
    assert built.CARRIERS == quantization.CARRIERS
    assert built.ABSORBED == quantization._REMOVABLE
    assert built.PASSING == quantization.PASSING


@pytest.mark.parametrize(
    "network", [Concatenated, Dense, Excited, Inverted, Padded, Residual, Shuffled]
)
def test_what_is_built_is_what_is_predicted(network: type[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    export_onnx(network().eval(), torch.rand(1, 1, 8, 8), path)
    model = onnx.load(path)
    ops = graph.operators(graph.read(path))
    layers = tuple(layer_of_node(model))
    found = 0
    for count in (1, 2, len(layers) - 1, len(layers)):
        for integer in itertools.islice(itertools.combinations(layers, count), 12):
            wanted = set(built.carriers(model, integer))
            assert quantization.carriers(ops, {*integer}) == wanted, integer
            found += len(wanted)
    assert found
