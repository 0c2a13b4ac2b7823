"""The benchmark's images, and that it can be run where its network is installed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks import detector


def test_words_are_drawn_onto_photos(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    out.mkdir()
    for index in range(3):
        Image.new("RGB", (32, 24), (90, 90, 90)).save(photos / f"{index}.png")
    detector.draw(photos, out, count=2)
    drawn = [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]
    assert [image.shape for image in drawn] == [(640, 640, 3)] * 2
    for image in drawn:
        assert 0.01 < (image != 90).any(axis=2).mean() < 0.9


def test_the_detector_is_found_where_it_is_installed() -> None:
    path = detector.detector()
    if path is None:
        pytest.skip("rapidocr-onnxruntime is not installed (the extra benchmark)")
    assert path.name.endswith("det_infer.onnx")
