"""Images of a folder, with the labels that its names or a table give."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from harness.errors import ConfigError
from harness.networks.data import IMAGE_CHANNELS, Preparation, Progress, require_memory
from harness.networks.loading import blaming, load_callable

__all__ = ["read_folder"]

# What the folders of the two parts may be called.
TRAIN, TEST = ("train",), ("test", "val", "valid", "validation")
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# The shorter side before the middle is cut out, as ImageNet's networks are evaluated.
RESIZE = 256 / 224
# Modes of PIL's: one channel of grey, and those that turn into eight bits a channel unharmed.
GREY = frozenset({"1", "L", "LA", "La"})
EIGHT_BITS = GREY | {"CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"}
_NUMBERED = re.compile(r"(\d+)_")

Part = tuple[Tensor, Tensor | None]


def read_folder(
    folder: Path, preparation: Preparation, progress: Progress | None = None
) -> tuple[Part, Part | None]:
    """Images ``(n, c, h, w)`` and labels of a folder: one part, or training and test.

    Folders ``train`` and ``test`` (``val``, ``valid``, ``validation``) in it are the two parts; one
    of them alone is read as ``folder`` itself would be. Labels, the first that there are: the table
    ``--labels`` or ``labels.csv`` with the columns ``file`` and ``label``; the rank of the
    sub-folder in which an image lies, in order of name; the number that every file's name begins
    with (``0017_fish.jpg``); none. Hidden files and folders are passed over. The images have one
    channel where all are grey, else three. Raises ConfigError.
    """
    if not folder.is_dir():
        raise ConfigError(f"data folder {folder} does not exist")
    inside = _folders(folder)
    first, second = (next((n for n in names if n in inside), None) for names in (TRAIN, TEST))
    if first is not None and second is not None:
        parts = folder / first, folder / second
        classes = sorted({name for part in parts for name in _folders(part)})
        grey = _all_grey([path for part in parts for path in _files(part)], preparation)
        train, test = (_read(part, classes, grey, preparation, progress) for part in parts)
        return train, test
    lone = first or second
    if lone is not None and inside == [lone] and not (folder / "labels.csv").is_file():
        return read_folder(folder / lone, preparation, progress)
    grey = _all_grey(_files(folder), preparation)
    return _read(folder, inside, grey, preparation, progress), None


def _folders(folder: Path) -> list[str]:
    """The names of the sub-folders that are not hidden, in order."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _files(folder: Path) -> list[Path]:
    """The images in ``folder`` and below, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def _all_grey(files: Sequence[Path], preparation: Preparation) -> bool:
    """Whether all images have one channel; one of colour among them makes all have three."""
    if preparation.function is not None:
        return False  # that is the function's to decide
    for path in files:
        with _readable(path), Image.open(path) as image:
            if image.mode not in GREY:
                return False
    return True


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error


def _read(
    folder: Path,
    classes: Sequence[str],
    grey: bool,
    preparation: Preparation,
    progress: Progress | None,
) -> Part:
    files = _files(folder)
    if not files:
        raise ConfigError(
            f"data folder {folder} holds no images ({', '.join(sorted(SUFFIXES))}); give a folder "
            "of images, an .npz file or file.py:function"
        )
    labels = _labels(folder, files, classes, preparation)
    taken = preparation.drawn(len(files))
    labels = None if labels is None else [labels[index] for index in taken]
    images = _images([files[index] for index in taken], grey, preparation, progress)
    return images, None if labels is None else torch.tensor(labels, dtype=torch.int64)


def _labels(
    folder: Path, files: Sequence[Path], classes: Sequence[str], preparation: Preparation
) -> list[int] | None:
    table = Path(preparation.labels) if preparation.labels else folder / "labels.csv"
    if preparation.labels or table.is_file():
        return _from_table(table, folder, files)
    inside = [path.relative_to(folder).parts for path in files]
    if classes and all(len(parts) > 1 for parts in inside):
        return [classes.index(parts[0]) for parts in inside]
    if any(len(parts) > 1 for parts in inside):
        loose = next(parts for parts in inside if len(parts) == 1)
        raise ConfigError(
            f"data folder {folder}: {loose[0]} lies beside sub-folders with images; put every "
            "image into the sub-folder of its class, or none"
        )
    numbers = [_NUMBERED.match(path.name) for path in files]
    if all(number is not None for number in numbers):
        return [int(number[1]) for number in numbers if number is not None]
    return None


def _from_table(table: Path, folder: Path, files: Sequence[Path]) -> list[int]:
    try:
        # Spreadsheets begin their CSV files with a byte order mark.
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"label table {table} cannot be read: {error}") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise ConfigError(f"label table {table}: expected rows with the columns file and label")
    found = {row["file"]: row["label"] for row in rows}
    labels = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        label = found.get(name, found.get(path.name))
        if label is None:
            raise ConfigError(f"label table {table} has no row for {name}")
        if not re.fullmatch(r"[0-9]+", label.strip()):
            raise ConfigError(
                f"label table {table}: the label of {name} is {label!r}; expected the class as a "
                "number from 0"
            )
        labels.append(int(label))
    return labels


def _images(
    files: Sequence[Path], grey: bool, preparation: Preparation, progress: Progress | None
) -> Tensor:
    """All images in one tensor, which is made when the first one's shape is known."""
    prepare = _preparing(preparation, grey)
    images: Tensor | None = None
    for index, path in enumerate(files):
        with _readable(path), Image.open(path) as opened:
            if preparation.function is None and opened.mode not in EIGHT_BITS:
                raise ConfigError(
                    f"image {path} is of mode {opened.mode}, whose values have no common scale; "
                    "give a function that knows it (--preprocess file.py:function)"
                )
            opened.load()
            image = prepare(opened)
        if not image.isfinite().all():
            raise ConfigError(
                f"image {path} has values that are not finite after --preprocess "
                f"{preparation.function}"
            )
        if images is None:
            require_memory(len(files), tuple(image.shape), source=str(path.parent))
            images = torch.empty((len(files), *image.shape), dtype=torch.float32)
        if image.shape != images.shape[1:]:
            raise ConfigError(
                f"image {path} is {tuple(image.shape)} and {files[0]} is "
                f"{tuple(images.shape[1:])}; --image-size makes them one size"
            )
        images[index] = image
        if progress is not None:
            progress(index + 1, len(files))
    assert images is not None  # there are files
    return images


def _preparing(preparation: Preparation, grey: bool) -> Callable[[Image.Image], Tensor]:
    if preparation.function is None:
        return lambda image: _prepared(image, preparation, grey)
    function = load_callable(preparation.function, "preprocess")

    def prepare(image: Image.Image) -> Tensor:
        with blaming(f"preprocess {preparation.function}"):
            made: Any = function(image)
        try:
            tensor = torch.as_tensor(made, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"preprocess {preparation.function} returned {type(made).__name__}; expected a "
                "float array or tensor (channels, h, w)"
            ) from error
        if tensor.ndim != 3 or tensor.shape[0] not in IMAGE_CHANNELS:
            raise ConfigError(
                f"preprocess {preparation.function} returned shape {tuple(tensor.shape)}; expected "
                "(channels, h, w) with 1, 3 or 4 channels"
            )
        return tensor

    return prepare


def _prepared(image: Image.Image, preparation: Preparation, grey: bool) -> Tensor:
    image = image.convert("L" if grey else "RGB")
    size = preparation.size
    if size is not None and image.size != (size, size):
        scale = round(size * RESIZE) / min(image.size)
        sides = [max(size, round(side * scale)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
        left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / 255
    channels = pixels.shape[2]
    statistics = []
    for name, value, default in (
        ("mean", preparation.mean, 0.0),
        ("std", preparation.std, 1.0),
    ):
        numbers = value or (default,)
        if len(numbers) not in (1, channels):
            raise ConfigError(f"--{name} {numbers}: the images have {channels} channels")
        statistics.append(np.asarray(numbers, np.float32))
    pixels = (pixels - statistics[0]) / statistics[1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
