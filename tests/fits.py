"""``boardfit fit`` as its users run it: a process of its own, in a folder with a tiny network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = [
    "ARGUMENTS",
    "TINY",
    "Fitted",
    "boardfit",
    "command",
    "environment",
    "write_images",
    "write_inputs",
]

TINY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.a(x)))
        return self.fc(torch.relu(self.b(x)).mean((2, 3)))

def factory():
    torch.manual_seed(0)
    return Tiny()

def raising():
    raise RuntimeError("no such backbone")

def not_a_network():
    return 42

class Nothing(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).repeat(1, 3)

def nothing():
    return Nothing()

def four():
    network = Tiny()
    network.fc = nn.Linear(16, 4)
    return network
"""
ARGUMENTS = ("fit", "tiny.py:factory", "--data", "data.npz", "--max-drop", "100", "--rounds", "1")


class Fitted(NamedTuple):
    """A fit that ended: exit code and output, and its result folder."""

    done: subprocess.CompletedProcess[str]
    run: Path


def write_inputs(folder: Path) -> None:
    """A tiny network and data for ``ARGUMENTS``."""
    (folder / "tiny.py").write_text(TINY.replace("16", "32"))
    write_images(folder / "data.npz", train=256, test=300)


def write_images(path: Path, *, train: int, test: int) -> None:
    """Write an .npz of so many grey images of 8 x 8 with three classes, always the same ones."""
    rng = np.random.default_rng(0)
    np.savez(
        path,
        train_images=rng.integers(0, 255, (train, 1, 8, 8), np.uint8),
        train_labels=rng.integers(0, 3, train),
        test_images=rng.integers(0, 255, (test, 1, 8, 8), np.uint8),
        test_labels=rng.integers(0, 3, test),
        mean=np.float32([0.5]),
        std=np.float32([0.25]),
    )


def command(*arguments: str) -> list[str]:
    """boardfit's own command line, as this interpreter runs it."""
    return [sys.executable, "-m", "harness.cli", *arguments]


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Ours, with an empty folder of settings in ``folder``."""
    here = os.pathsep.join(sys.path)
    config = str(folder / "config")
    return {**os.environ, "PYTHONPATH": here, "BOARDFIT_CONFIG_DIR": config, **extra}


def boardfit(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A command that was run in ``folder`` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder, **extra),
        capture_output=True,
        text=True,
        timeout=280,
    )
