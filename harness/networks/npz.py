"""Images and labels of an ``.npz`` file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import ConfigError
from harness.networks.data import IMAGE_CHANNELS, Data

__all__ = ["load_npz", "npz_images"]

Array: TypeAlias = npt.NDArray[Any]


def load_npz(
    path: Path, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Data:
    """The images and labels of an ``.npz`` file.

    Keys: ``train_images``, ``train_labels`` (optional), ``test_images``, ``test_labels``, ``mean``
    and ``std`` (one value, or one a channel), or the short forms ``xtr, ytr, xte, yte``. Images
    are ``(n, c, h, w)`` or ``(n, h, w, c)``; bytes are scaled to 0..1, then the mean is subtracted
    and the result divided by the standard deviation. ``mean`` and ``std`` given here replace the
    file's. Raises ConfigError.
    """
    arrays = _arrays(path, mean, std)
    needed = ("train_images", "test_images", "test_labels", "mean", "std")
    if missing := [name for name in needed if name not in arrays]:
        raise ConfigError(
            f"data file {path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}"
        )

    train = _images(path, "train_images", arrays)
    test = _images(path, "test_images", arrays)
    if train.shape[1:] != test.shape[1:]:
        raise ConfigError(
            f"data file {path}: train images are {tuple(train.shape[1:])}, "
            f"test images {tuple(test.shape[1:])}"
        )
    train_labels = _labels(path, "train_labels", arrays, len(train))
    test_labels = _labels(path, "test_labels", arrays, len(test))
    assert test_labels is not None  # its key was checked above
    return Data(train, train_labels, test, test_labels)


def npz_images(
    path: Path, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """The training images of an ``.npz`` file, or its ``images`` where it has no others."""
    arrays = _arrays(path, mean, std)
    name = next((key for key in ("train_images", "images") if key in arrays), None)
    if name is None:
        raise ConfigError(
            f"data file {path} lacks train_images or images; it has {', '.join(sorted(arrays))}"
        )
    return _images(path, name, {"mean": np.zeros(1), "std": np.ones(1), **arrays})


def _arrays(
    path: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, Array]:
    """The arrays of a file under their long names, mean and standard deviation replaced."""
    if not path.is_file():
        raise ConfigError(f"data file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(f"data file {path} is not a readable .npz file: {error}") from error

    for short, name in (
        ("xtr", "train_images"),
        ("ytr", "train_labels"),
        ("xte", "test_images"),
        ("yte", "test_labels"),
    ):
        if short in arrays:
            arrays.setdefault(name, arrays[short])
    if mean is not None:
        arrays["mean"] = np.asarray(mean)
    if std is not None:
        arrays["std"] = np.asarray(std)
    return arrays


def _images(path: Path, name: str, arrays: Mapping[str, Array]) -> Tensor:
    images = arrays[name]
    if images.ndim == 4 and images.shape[1] not in IMAGE_CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in IMAGE_CHANNELS:
        raise ConfigError(
            f"data file {path}: {name} has shape {arrays[name].shape}; "
            "expected (n, channels, h, w) or (n, h, w, channels) with 1, 3 or 4 channels"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ConfigError(f"data file {path}: {name} is {images.dtype}; expected uint8 or floats")
    channels = images.shape[1]
    statistics = []
    for key in ("mean", "std"):
        value = np.asarray(arrays[key], np.float32).reshape(-1)
        if len(value) not in (1, channels) or not np.isfinite(value).all():
            raise ConfigError(
                f"data file {path}: {key} is {value.tolist()}; expected one number, or {channels}"
            )
        statistics.append(value.reshape(1, -1, 1, 1))
    mean, std = statistics
    if (std <= 0).any():
        raise ConfigError(f"data file {path}: std is {std.reshape(-1).tolist()}; must be positive")
    scaled = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images
    normalised = np.ascontiguousarray((scaled - mean) / std, dtype=np.float32)
    if not np.isfinite(normalised).all():
        raise ConfigError(f"data file {path}: {name} holds values that are not finite")
    return torch.from_numpy(normalised)


def _labels(path: Path, name: str, arrays: Mapping[str, Array], count: int) -> Tensor | None:
    if name not in arrays:
        return None
    labels = arrays[name]
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"data file {path}: {name} is {labels.dtype} of shape {labels.shape}; "
            f"expected {count} whole numbers, one an image"
        )
    if labels.min() < 0:
        raise ConfigError(f"data file {path}: {name} holds the negative label {labels.min()}")
    return torch.from_numpy(labels.astype(np.int64))
