"""EfficientNet-Lite0 and its images as ``boardfit fit`` takes them.

    boardfit fit tests/benchmarks/lite0.py:network --data tests/benchmarks/lite0.py:images \\
      --methods quantize --latency 60% --max-drop 1 --out runs/lite0

From the folder that holds ``tests``; the images are those of ``../shared/images``, or of the folder
that BOARDFIT_IMAGES names.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn

from tests.benchmarks.compression_networks import subject

IMAGES = Path(os.environ.get("BOARDFIT_IMAGES", "../shared/images"))


def network() -> nn.Module:
    """The trained network."""
    return subject("efl0", IMAGES).network


def images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The 300 calibration images and the 700 test images, with labels."""
    found = subject("efl0", IMAGES)
    return (found.calibration, found.calibration_labels), (found.test, found.test_labels)
