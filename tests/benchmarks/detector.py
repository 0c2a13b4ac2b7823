"""A text detector that exists as ONNX alone: quantized, measured and predicted.

    python -m tests.benchmarks.detector --photos FOLDER [--latency-model FILE] [--json]

The network is PP-OCRv4's detector out of the package ``rapidocr-onnxruntime`` (the extra
``benchmark``; its file alone is used). Words are drawn onto the photos, so that there is something
to detect; three quarters of the images calibrate, the others compare. Prints the error of the
probability map, the share of pixels and the overlap of the areas that are text in both, which
layers run on integers, latencies interleaved with fp32's and, with a latency model, the
predictions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import string
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness import commands, networks, quantizing, stats
from harness.boards import inventory
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.compression.quantize import ready
from harness.networks import onnx_outputs

FILE = "models/ch_PP-OCRv4_det_infer.onnx"
SIDE = 640
IMAGES = 24
WORDS = 8
# The probability from which the detector's own post-processing takes a pixel for text.
TEXT = 0.3


def detector() -> Path | None:
    """The detector's ONNX file, None where the package is not installed."""
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    folders = [] if found is None else list(found.submodule_search_locations or ())
    return next((path for folder in folders if (path := Path(folder, FILE)).is_file()), None)


def draw(photos: Path, out: Path, *, count: int = IMAGES, seed: int = 0) -> None:
    """Write ``count`` of the photos, with words on them, into a folder."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    letters = list(string.ascii_letters + string.digits + " ")
    for index in rng.permutation(len(files))[:count]:
        with Image.open(files[index]) as opened:
            image = opened.convert("RGB").resize((SIDE, SIDE))
        pen = ImageDraw.Draw(image)
        for _ in range(WORDS):
            text = "".join(rng.choice(letters, 12))
            place = (float(rng.integers(0, 400)), float(rng.integers(0, 600)))
            font = ImageFont.load_default(float(rng.integers(18, 48)))
            colour = tuple(int(value) for value in rng.integers(0, 255, 3))
            box = pen.textbbox(place, text, font=font)
            pen.rectangle(box, fill=tuple(255 - value for value in colour))
            pen.text(place, text, fill=colour, font=font)
        image.save(out / f"{files[index].stem}.png")


def rows(
    photos: Path, *, board: str = "local", latency_model: Path | None = None
) -> list[dict[str, Any]]:
    """One row for each way to choose the ranges; see the module."""
    network = detector()
    if network is None:
        raise SystemExit("rapidocr-onnxruntime is not installed: pip install .[benchmark]")
    preparation = networks.Preparation(mean=(0.5,), std=(0.5,))
    made = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        draw(photos, images)
        fp32 = folder / "fp32.onnx"
        shape = (1, 3, SIDE, SIDE)
        networks.write_file(fp32, ready(network, shape).SerializeToString())
        test = networks.load_images(images, preparation=preparation).numpy()[: IMAGES // 4]
        for calibrate in ("minmax", "error"):
            int8 = folder / f"{calibrate}.onnx"
            result = quantizing.quantize_file(
                network,
                data=str(images),
                preparation=preparation,
                out=int8,
                calibrate=calibrate,
                exclude=(),
                board=board,
            )
            row = {**asdict(result), **_text(fp32, int8, test), **_latency(fp32, int8, board)}
            if latency_model is not None:
                for label, path in (("fp32", fp32), ("int8", int8)):
                    found = commands.predict(path, latency_model=latency_model, coverage=0.9)
                    row[f"predicted_{label}_s"] = found.latency_s
                    row[f"unmeasured_kinds_{label}"] = found.unsupported
            made.append(row)
    return made


def _text(fp32: Path, int8: Path, images: np.ndarray) -> dict[str, float]:
    """Pixels judged alike, and the overlap of the areas that are text, over all images."""
    wanted, got = (onnx_outputs(path, images)[0] >= TEXT for path in (fp32, int8))
    return {
        "pixels_alike": float((wanted == got).mean()),
        "text_overlap": float((wanted & got).sum() / max(int((wanted | got).sum()), 1)),
    }


def _latency(fp32: Path, int8: Path, board: str) -> dict[str, Any]:
    with Session(inventory.find(board)) as session:
        base, ours = session.measure(
            [
                EngineRequest(label="fp32", path=fp32, precision="fp32"),
                EngineRequest(label="int8", path=int8, precision="int8"),
            ],
            plan=PRESETS["quick"],
            campaign="detector",
        )
    ratios = stats.ratio_by_round(ours, base)
    return {
        "fp32_s": stats.median(base.samples_s),
        "int8_s": stats.median(ours.samples_s),
        "ratio": stats.median(ratios),
        "ratio_interval": asdict(stats.ratio_interval(ratios)),
    }


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--board", default="local")
    parser.add_argument("--latency-model", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = rows(given.photos, board=given.board, latency_model=given.latency_model)
    if given.json:
        print(json.dumps({"rows": found}, indent=2))
        return
    for row in found:
        print(
            f"{row['calibrate']}: {len(row['integer_layers'])} of {len(row['layers'])} layers on "
            f"integers, {row['size_bytes'] / row['size_before_bytes']:.1%} of the file, error "
            f"ratio {row['outputs'][0]['error_ratio']:.1%}, pixels alike {row['pixels_alike']:.2%},"
            f" overlap of text {row['text_overlap']:.1%}, {row['int8_s'] * 1e3:.0f} ms, "
            f"{row['ratio']:.2f} of fp32's {row['fp32_s'] * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
