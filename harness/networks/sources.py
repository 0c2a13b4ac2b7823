"""Data from wherever users have it: an ``.npz`` file, a folder of images, a function."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError
from harness.networks.data import (
    IMAGE_CHANNELS,
    Data,
    Preparation,
    Progress,
    require_memory,
    split,
)
from harness.networks.folders import Part, read_folder
from harness.networks.loading import load_callable
from harness.networks.npz import load_npz, npz_images

__all__ = ["load_data", "load_images"]


def load_data(
    source: Path | str,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    preparation: Preparation | None = None,
    progress: Progress | None = None,
) -> Data:
    """The training and test images of ``source``, with labels for the test at least.

    An ``.npz`` file (``npz.load_npz``); a folder of images (``folders.read_folder``); or
    ``module:function`` or ``file.py:function``, which returns (training, test), each part a
    tensor of images, a pair of images and labels, or an iterable of (image, label), such as a
    Dataset or a DataLoader. What comes in one part is split by a seeded permutation.
    ``progress(done, of)`` counts images. Raises ConfigError.
    """
    preparation = preparation or Preparation(mean=mean, std=std)
    if _is_file(source):
        return load_npz(Path(source), mean=preparation.mean, std=preparation.std)
    first, second = _parts(source, preparation, progress)
    if second is None:
        train, train_labels, test, test_labels = split(*first, preparation, source=str(source))
    else:
        (train, train_labels), (test, test_labels) = first, second
    if train.shape[1:] != test.shape[1:]:
        raise ConfigError(
            f"{source}: training images are {tuple(train.shape[1:])}, "
            f"test images {tuple(test.shape[1:])}"
        )
    if test_labels is None:
        raise ConfigError(
            f"{source} has no labels, and accuracy cannot be measured without: put the images into "
            "one sub-folder a class, or give --labels, a CSV with the columns file and label"
        )
    return Data(train, train_labels, test, test_labels)


def load_images(
    source: Path | str, *, preparation: Preparation, progress: Progress | None = None
) -> Tensor:
    """All images of ``source`` that are not for testing, ``(n, c, h, w)``; labels do not matter."""
    if _is_file(source):
        images = npz_images(Path(source), mean=preparation.mean, std=preparation.std)
    else:
        (images, _), _ = _parts(source, preparation, progress)
    return images if preparation.limit is None else images[: preparation.limit]


def _is_file(source: Path | str) -> bool:
    return Path(source).suffix == ".npz" or (":" not in str(source) and not Path(source).is_dir())


def _parts(
    source: Path | str, preparation: Preparation, progress: Progress | None
) -> tuple[Part, Part | None]:
    if Path(source).is_dir():
        return read_folder(Path(source), preparation, progress)
    name = str(source)
    made: Any = load_callable(name, "data")()
    if not isinstance(made, tuple | list) or len(made) != 2:
        kind = f"{len(made)} parts" if isinstance(made, tuple | list) else type(made).__name__
        raise ConfigError(f"data {name} returned {kind}; expected (training data, test data)")
    return (
        _part(made[0], f"{name}, training", preparation, progress),
        _part(made[1], f"{name}, test", preparation, progress),
    )


def _part(made: Any, source: str, preparation: Preparation, progress: Progress | None) -> Part:
    if isinstance(made, Tensor | np.ndarray):
        images, labels = torch.as_tensor(made), None
    elif isinstance(made, tuple | list) and len(made) == 2 and _is_batch(made[0]):
        images = torch.as_tensor(made[0])
        labels = None if made[1] is None else torch.as_tensor(made[1])
    elif isinstance(made, Iterable):
        images, labels = _collected(made, source, preparation, progress)
    else:
        raise ConfigError(
            f"data {source}: {type(made).__name__} is no tensor, no (images, labels) and cannot be "
            "iterated over"
        )
    if preparation.limit is not None:
        images = images[: preparation.limit]
        labels = None if labels is None else labels[: preparation.limit]
    _require_images(images, source)
    if labels is not None and len(labels) != len(images):
        raise ConfigError(f"data {source}: {len(images)} images and {len(labels)} labels")
    return images.float(), labels


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 4


def _collected(
    items: Iterable[Any], source: str, preparation: Preparation, progress: Progress | None
) -> Part:
    """The items of a dataset, or the batches of a loader, in one tensor."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    total = len(items) if isinstance(items, Sized) else 0
    for done, item in enumerate(items, 1):
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        try:
            part = torch.as_tensor(image, dtype=torch.float32)
            part = part if part.ndim == 4 else part[None]
            if label is not None:
                wanted = torch.as_tensor(label)
                labels.append(wanted if wanted.ndim and len(wanted) == len(part) else wanted[None])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"data {source}: item {done - 1} is {type(image).__name__} and "
                f"{type(label).__name__}; expected tensors (image, label)"
            ) from error
        if not images:
            require_memory(max(total, 1) * len(part), tuple(part.shape[1:]), source=source)
        images.append(part)
        count += len(part)
        if progress is not None:
            progress(done, total)
        if preparation.limit is not None and count >= preparation.limit:
            break
    if not images:
        raise ConfigError(f"data {source} has no images")
    shapes = {tuple(part.shape[1:]) for part in images}
    if len(shapes) > 1:
        raise ConfigError(f"data {source}: images have different shapes: {sorted(shapes)[:3]}")
    return torch.cat(images), torch.cat(labels) if labels else None


def _require_images(images: Tensor, source: str) -> None:
    if images.ndim == 4 and len(images) and images.shape[1] in IMAGE_CHANNELS:
        return
    last = images.ndim == 4 and images.shape[-1] in IMAGE_CHANNELS
    hint = "; they look channels-last: images.permute(0, 3, 1, 2)" if last else ""
    raise ConfigError(
        f"data {source}: images have shape {tuple(images.shape)}; expected (n, channels, h, w) "
        f"with 1, 3 or 4 channels{hint}"
    )
