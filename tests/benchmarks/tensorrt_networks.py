"""Networks of the literature with random weights, for their times alone, and their structure.

ResNets as of He et al., CVPR 2016, table 1, with the stride in the 3x3 convolution of a bottleneck;
VGG-16 is configuration D of Simonyan and Zisserman, ICLR 2015, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from tests.benchmarks.allocation_networks import MobileNetV2

__all__ = ["PUBLISHED", "Published", "structure"]

# Constants of fewer values are kept: shapes, scales of tensors, and what shape inference reads.
_SMALL = 64


def _convolution(entering: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(entering, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


class _Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, beside a shortcut."""

    def __init__(self, entering: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        leaving = width * expansion
        if expansion == 1:
            parts = [_convolution(entering, width, 3, stride), _convolution(width, width, 3)]
        else:
            parts = [
                _convolution(entering, width, 1),
                _convolution(width, width, 3, stride),
                _convolution(width, leaving, 1),
            ]
        self.parts = nn.ModuleList(parts)
        changes = stride > 1 or entering != leaving
        self.shortcut = _convolution(entering, leaving, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index, part in enumerate(self.parts):
            y = torch.relu(y) if index else y
            y = part(y)
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Four stages of so many blocks each."""

    def __init__(self, repeats: tuple[int, ...], expansion: int) -> None:
        super().__init__()
        self.stem, self.pool = _convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        entering = 64
        for stage, count in enumerate(repeats):
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(_Block(entering, 64 * 2**stage, stride, expansion))
                entering = 64 * 2**stage * expansion
        self.blocks, self.classifier = nn.Sequential(*blocks), nn.Linear(entering, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(torch.relu(self.stem(x))))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def vgg16() -> nn.Module:
    """Thirteen 3x3 convolutions in five stages, and three matrix products."""
    layers: list[nn.Module] = []
    entering = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(entering, width, 3, padding=1), nn.ReLU()]
            entering = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000))


@dataclass(frozen=True, kw_only=True)
class Published:
    """What makes a network, its family in a measurement table, and the shape of its input."""

    make: Callable[[], nn.Module]
    family: str
    shape: tuple[int, ...] = (3, 224, 224)


PUBLISHED = {
    "resnet18": Published(make=lambda: ResNet((2, 2, 2, 2), 1), family="resnet"),
    "resnet50": Published(make=lambda: ResNet((3, 4, 6, 3), 4), family="resnet"),
    "mobilenet_v2": Published(make=MobileNetV2, family="mobilenet"),
    "vgg16": Published(make=vgg16, family="vgg"),
}


def structure(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants are names, types and shapes only (``synthetic.fill`` redraws).

    ``onnx.checker`` refuses such a file; measurement tables are of them.
    """
    light = onnx.ModelProto()
    light.CopyFrom(model)
    for tensor in light.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            continue
        stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="absent")
        tensor.CopyFrom(stub)
    return light
