"""A strategy applied to a network."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from harness.compression import build
from harness.compression.groups import find_groups
from harness.networks import Data, onnx_logits
from harness.records import Strategy, StrategyEntry
from tests.compression.tiny import Residual, facts, seeded

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_int8_layers_are_rounded_with_their_errors_made_up_for(tmp_path: Path) -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    strategy = Strategy(
        label="all int8",
        methods=("quantize",),
        entries=tuple(
            StrategyEntry(
                group=group.name,
                kept=tuple(range(group.channels)),
                of=group.channels,
                precision="int8",
            )
            for group in groups
        ),
        epochs=0,
        seed=0,
    )
    data = Data(IMAGES, None, IMAGES, torch.zeros(32, dtype=torch.int64))
    variant = build.build(strategy, network, data, groups, stem=tmp_path / "variant", board=facts())
    assert set(variant.int8_layers) == {layer for group in groups for layer in group.producers}
    found = {i.name: numpy_helper.to_array(i) for i in onnx.load(variant.onnx).graph.initializer}
    levels = found["outer.weight_quantized"].astype(float)
    exact = network.get_submodule("outer").weight.detach().numpy()
    nearest = np.rint(exact / found["outer.weight_scale"].reshape(-1, 1, 1, 1))
    assert (levels != nearest).any()  # moved, to make up for the rounding of others
    assert np.abs(levels - nearest).max() <= 16
    with torch.no_grad():
        wanted = network(IMAGES).numpy()
    got = onnx_logits(variant.onnx, IMAGES)
    assert np.abs(wanted - got).max() < 0.03 * np.abs(wanted).max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["variant.onnx", "variant.pt2"]
