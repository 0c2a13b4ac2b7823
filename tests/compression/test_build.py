"""A strategy applied to a network."""

from pathlib import Path

import numpy as np
import torch

from harness.compression import build
from harness.compression.groups import find_groups
from harness.compression.quantize import quantize
from harness.networks import Data, export_onnx, onnx_logits
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
    made = list(tmp_path.iterdir())
    export_onnx(network, IMAGES, tmp_path / "variant.fp32.onnx")
    quantize(
        variant.onnx.with_suffix(".fp32.onnx"),
        tmp_path / "nearest.onnx",
        calibration=IMAGES.numpy(),
        int8_layers=variant.int8_layers,
        board=facts(),
    )
    with torch.no_grad():
        wanted = network(IMAGES).numpy()
    error, nearest = (
        float(np.square(onnx_logits(path, IMAGES) - wanted).mean())
        for path in (variant.onnx, tmp_path / "nearest.onnx")
    )
    assert 0 < error < nearest
    assert sorted(path.name for path in made) == ["variant.onnx", "variant.pt2"]
