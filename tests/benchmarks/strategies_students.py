"""Narrower and shallower relatives of the networks that strategies are planned for."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from harness.networks import load_network
from tests.sensitivity.cifar_resnet import Block, ResNet

_DEMO = Path(__file__).parents[2] / "data" / "demo" / "network.py"


def _demo(width: int, blocks: tuple[int, int, int]) -> nn.Module:
    network: nn.Module = type(load_network(f"{_DEMO}:factory", None))(width=width, blocks=blocks)
    return network


def narrower() -> nn.Module:
    """The demo network at half its width, 64."""
    return _demo(32, (1, 1, 1))


def shallower() -> nn.Module:
    """The demo network without the block of its first stage."""
    return _demo(64, (0, 1, 1))


def narrow_resnet56() -> nn.Module:
    """ResNet-56 with half the channels of every stage."""
    network, entering = ResNet(9), 8
    network.conv1, network.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
    stages = []
    for stage, channels in enumerate((8, 16, 32)):
        blocks = []
        for index in range(9):
            blocks.append(Block(entering, channels, 2 if stage and not index else 1))
            entering = channels
        stages.append(nn.Sequential(*blocks))
    network.layer1, network.layer2, network.layer3 = stages
    network.linear = nn.Linear(32, 10)
    return network
