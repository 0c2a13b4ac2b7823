"""Data from wherever users have it: an ``.npz`` file, a folder of images, a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

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
from harness.networks.loading import blaming, load_callable
from harness.networks.npz import load_npz, npz_images

__all__ = ["load_data", "load_images"]

Labels: TypeAlias = Tensor | None


def load_data(
    source: Path | str,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    preparation: Preparation | None = None,
    progress: Progress | None = None,
    classes: bool = True,
) -> Data:
    """The training and test images of ``source``, with labels for the test at least.

    An ``.npz`` file (``npz.load_npz``); a folder of images (``folders.read_folder``); or
    ``module:function`` or ``file.py:function``, which returns (training, test), each part a
    tensor of images, a pair of images and labels, or an iterable of (image, label), such as a
    Dataset or a DataLoader. What comes in one part is split by a seeded permutation.
    Labels are classes; without ``classes`` whatever a metric takes. ``progress(done, of)`` counts
    images. Raises ConfigError, also where ``preparation`` says what a source cannot heed.
    """
    preparation = preparation or Preparation(mean=mean, std=std)
    if _is_file(source):
        preparation.refuse(f"the .npz file {source}", ("size", "function", "labels"))
        data = load_npz(Path(source), mean=preparation.mean, std=preparation.std, classes=classes)
        train_images, train_labels = _limited(data.train_images, data.train_labels, preparation)
        test_images, test_labels = _limited(data.test_images, data.test_labels, preparation)
        assert test_labels is not None  # an .npz file has them
        return Data(train_images, train_labels, test_images, test_labels)
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
    data = Data(train, train_labels, test, test_labels)
    return _with_classes(data, str(source)) if classes else data


def _with_classes(data: Data, source: str) -> Data:
    """The data with labels as int64; ConfigError where they are no classes."""
    for labels in (data.train_labels, data.test_labels):
        if labels is None:
            continue
        if labels.ndim != 1 or labels.is_floating_point():
            raise ConfigError(
                f"{source}: labels are {str(labels.dtype).removeprefix('torch.')} of shape "
                f"{tuple(labels.shape)}; expected a class an image, or name a --metric for them"
            )
        if int(labels.min()) < 0:
            raise ConfigError(
                f"{source}: there is the label {int(labels.min())}; classes count from 0, so leave "
                "out the images that have none"
            )
    train_labels = None if data.train_labels is None else data.train_labels.long()
    return replace(data, train_labels=train_labels, test_labels=data.test_labels.long())


def load_images(
    source: Path | str, *, preparation: Preparation, progress: Progress | None = None
) -> Tensor:
    """All images of ``source`` that are not for testing, ``(n, c, h, w)``; labels do not matter."""
    if _is_file(source):
        preparation.refuse(f"the .npz file {source}", ("size", "function", "labels"))
        images = npz_images(Path(source), mean=preparation.mean, std=preparation.std)
        return _limited(images, None, preparation)[0]
    (images, _), _ = _parts(source, preparation, progress)
    return images


def _limited(images: Tensor, labels: Labels, preparation: Preparation) -> tuple[Tensor, Labels]:
    """The images that ``limit`` takes, drawn by seed, with their labels."""
    if preparation.limit is None or preparation.limit >= len(images):
        return images, labels
    taken = preparation.drawn(len(images))
    return images[taken], None if labels is None else labels[taken]


def _is_file(source: Path | str) -> bool:
    return Path(source).suffix == ".npz" or (":" not in str(source) and not Path(source).is_dir())


def _parts(
    source: Path | str, preparation: Preparation, progress: Progress | None
) -> tuple[Part, Part | None]:
    if Path(source).is_dir():
        return read_folder(Path(source), preparation, progress)
    name = str(source)
    preparation.refuse(f"what {name} makes", ("mean", "std", "size", "function", "labels"))
    function = load_callable(name, "data")
    with blaming(f"data {name}"):
        made: Any = function()
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
    elif _is_pair(made):
        images = torch.as_tensor(made[0])
        labels = None if made[1] is None else torch.as_tensor(made[1])
    elif isinstance(made, Iterable):
        total = len(made) if isinstance(made, Sized) else 0
        images, labels = _collected(made, total, source, preparation, progress)
    elif isinstance(made, torch.utils.data.Dataset) and isinstance(made, Sized):
        # They are read by index, and their length alone says where they end.
        items = (made[index] for index in range(len(made)))
        images, labels = _collected(items, len(made), source, preparation, progress)
    else:
        raise ConfigError(
            f"data {source}: {type(made).__name__} is no tensor, no (images, labels) and cannot be "
            "iterated over"
        )
    _require_images(images, source)
    if labels is not None and (labels.ndim == 0 or len(labels) != len(images)):
        count = len(labels) if labels.ndim else "a single number for"
        raise ConfigError(
            f"data {source}: {len(images)} images and {count} labels; give one an image"
        )
    images, labels = _limited(images.float(), labels, preparation)
    if not images.isfinite().all():
        raise ConfigError(f"data {source}: images hold values that are not finite; leave them out")
    return images, labels


def _is_pair(made: Any) -> bool:
    """Whether it is (images, labels), and not two images or two pairs of one image and its label.

    Images may be of the wrong shape, which is then said.
    """
    if not isinstance(made, tuple | list) or len(made) != 2:
        return False
    images, labels = made
    if not isinstance(images, Tensor | np.ndarray):
        return False
    return images.ndim == 4 or (isinstance(labels, Tensor | np.ndarray) and labels.ndim == 1)


def _collected(
    items: Iterable[Any],
    total: int,
    source: str,
    preparation: Preparation,
    progress: Progress | None,
) -> Part:
    """The items of a dataset, or the batches of a loader, in one tensor."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for done, item in enumerate(_blamed(items, source), 1):
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
            coming = max(total, 1) * len(part)
            taken = coming if preparation.limit is None else min(coming, preparation.limit)
            require_memory(taken, tuple(part.shape[1:]), source=source)
        images.append(part)
        count += len(part)
        if progress is not None:
            progress(done, total)
        if preparation.limit is not None and count >= preparation.limit:
            break
    if not images:
        raise ConfigError(f"data {source} has no images")
    if labels and len({label.shape[1:] for label in labels}) > 1:
        raise ConfigError(
            f"data {source}: labels have different shapes: "
            f"{sorted({tuple(label.shape[1:]) for label in labels})[:3]}"
        )
    shapes = {tuple(part.shape[1:]) for part in images}
    if len(shapes) > 1:
        raise ConfigError(f"data {source}: images have different shapes: {sorted(shapes)[:3]}")
    first = slice(preparation.limit)
    return torch.cat(images)[first], torch.cat(labels)[first] if labels else None


def _blamed(items: Iterable[Any], source: str) -> Iterator[Any]:
    """The items; what making one raises is the user's own."""
    with blaming(f"data {source}"):
        yield from items


def _require_images(images: Tensor, source: str) -> None:
    if images.ndim == 4 and len(images) and images.shape[1] in IMAGE_CHANNELS:
        return
    if images.ndim and not len(images):
        raise ConfigError(f"data {source} has no images")
    last = images.ndim == 4 and images.shape[-1] in IMAGE_CHANNELS
    hint = "; they look channels-last: images.permute(0, 3, 1, 2)" if last else ""
    raise ConfigError(
        f"data {source}: images have shape {tuple(images.shape)}; expected (n, channels, h, w) "
        f"with 1, 3 or 4 channels{hint}"
    )
