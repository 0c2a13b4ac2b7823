"""Networks as ONNX graphs, for their costs alone: weights are random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.networks import export_onnx
from tests.benchmarks.compression_networks import EfficientNetLite0

__all__ = ["EXPORTED", "Chain", "MobileNetV2", "export"]

# Expansion, output channels, repeats, stride (Sandler et al., CVPR 2018, table 2).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _convolution(entering: int, channels: int, kernel: int, stride: int, groups: int) -> nn.Module:
    layer = nn.Conv2d(entering, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project linearly; a shortcut where the shapes allow it."""

    def __init__(self, entering: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = entering * expansion
        self.expand = _convolution(entering, inner, 1, 1, 1) if expansion > 1 else None
        self.depthwise = _convolution(inner, inner, 3, stride, inner)
        self.project = _convolution(inner, channels, 1, 1, 1)
        self.adds = stride == 1 and entering == channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Sandler et al., "MobileNetV2", CVPR 2018, table 2, at width 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 32, 3, 2, 1)
        blocks: list[nn.Module] = []
        entering = 32
        for expansion, channels, repeats, stride in _STAGES:
            for index in range(repeats):
                step = 1 if index else stride
                blocks.append(InvertedResidual(entering, channels, expansion, step))
                entering = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(320, 1280, 1, 1, 1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.head(self.blocks(functional.relu6(self.stem(x)))))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Chain(nn.Sequential):
    """Sixty 3x3 convolutions of 64 channels, one after the other."""

    def __init__(self) -> None:
        layers = [_convolution(64 if index else 3, 64, 3, 1, 1) for index in range(60)]
        super().__init__(*(part for layer in layers for part in (layer, nn.ReLU())))


EXPORTED: dict[str, type[nn.Module]] = {
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite0,
}


def export(kind: Callable[[], nn.Module], path: Path, *, size: int = 224) -> Path:
    """``path``, where such a network is now written for images of this size."""
    network = kind().eval()
    export_onnx(network, torch.zeros(1, 3, size, size), path)
    return path
