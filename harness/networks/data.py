"""Images and labels as a network wants them, and where they may come from."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError

__all__ = [
    "IMAGE_CHANNELS",
    "Data",
    "Preparation",
    "data_fingerprint",
    "preparation",
    "require_memory",
    "split",
]

# Images may have these numbers of channels; it is how channels-first and -last are told apart.
IMAGE_CHANNELS = (1, 3, 4)
# What images may take of this computer's memory; the rest is for training and its copies.
MEMORY_SHARE = 0.4
# What the settings are called on the command line.
_OPTIONS = {
    "mean": "--mean",
    "std": "--std",
    "size": "--image-size",
    "function": "--preprocess",
    "labels": "--labels",
}

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Data:
    """Images as the network wants them, float32 ``(n, channels, h, w)``, and their labels.

    Labels are int64 classes ``(n,)``; where a metric other than top-1 judges the network, whatever
    ``(n, ...)`` that metric takes for targets.
    """

    train_images: Tensor
    train_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor

    @property
    def example(self) -> Tensor:
        """One image, ``(1, channels, h, w)``: what tracing and export run through a network."""
        return self.train_images[:1]

    @property
    def classes(self) -> bool:
        """Whether the labels are classes."""
        return self.test_labels.ndim == 1 and not self.test_labels.is_floating_point()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How images become what the network reads.

    Pixels are scaled to 0..1, the ``mean`` is subtracted and the result divided by ``std`` (one
    value, or one a channel; None: the file's own, or 0 and 1). ``size``: the shorter side is
    resized to 256/224 of it (bilinear, antialiased) and the middle cut out; an image that has the
    size already is left alone. ``function`` (``file.py:function``) replaces all of this: it gets
    the PIL image and returns a float array or tensor ``(channels, h, w)``. ``labels`` is a CSV
    with the columns ``file`` and ``label``; ``limit`` takes so many images of each part, drawn
    with ``seed`` (the first ones of what can only be iterated over). ``seed`` also splits what
    comes in one part: ``test_share`` of it is for testing.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    function: str | None = None
    labels: str | None = None
    limit: int | None = None
    seed: int = 0
    test_share: float = 0.25

    def __post_init__(self) -> None:
        if self.function is not None and (self.mean, self.std, self.size) != (None, None, None):
            raise ConfigError(
                f"--preprocess {self.function} does all that is done to an image; leave --mean, "
                "--std and --image-size out"
            )
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"--mean {self.mean}: every value must be a finite number")
        if self.std is not None and not all(math.isfinite(s) and s > 0 for s in self.std):
            raise ConfigError(f"--std {self.std}: every value must be finite and positive")

    def drawn(self, count: int) -> list[int]:
        """The indices, ascending, of the images that ``limit`` takes of so many."""
        order = np.random.default_rng(self.seed).permutation(count)
        return sorted(order[: count if self.limit is None else self.limit].tolist())

    def refuse(self, source: str, names: Sequence[str]) -> None:
        """Raise ConfigError where one of these settings is given, which ``source`` cannot heed."""
        given = [_OPTIONS[name] for name in names if getattr(self, name) is not None]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: {source} is taken as it is; leave this out, or give a folder "
                "of images"
            )


def preparation(
    *,
    mean: str | None,
    std: str | None,
    size: int | None,
    function: str | None,
    labels: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Preparation:
    """How the options say that images become what the network reads."""
    return Preparation(
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        size=size,
        function=function,
        labels=labels,
        limit=limit,
        seed=seed,
    )


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{name} {text!r}: expected numbers such as 0.5 or 0.5,0.4,0.4"
        ) from error


def split(
    images: Tensor, labels: Tensor | None, preparation: Preparation, *, source: str
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Training and test images and labels out of one part, by a seeded permutation."""
    if len(images) < 2:
        raise ConfigError(f"{source} has {len(images)} image; at least 2 are needed, far more help")
    generator = torch.Generator().manual_seed(preparation.seed)
    order = torch.randperm(len(images), generator=generator)
    count = max(1, round(preparation.test_share * len(images)))
    test, train = order[:count], order[count:]
    if labels is None:
        return images[train], None, images[test], None
    return images[train], labels[train], images[test], labels[test]


def require_memory(count: int, shape: tuple[int, ...], *, source: str) -> None:
    """Raise ConfigError unless so many float32 images of a shape fit into this computer."""
    needed = 4.0 * count
    for side in shape:
        needed *= side
    try:
        available = MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not known on every system
        return
    if needed > available:
        fitting = int(available / needed * count)
        raise ConfigError(
            f"{source}: {count} images of {shape} take {needed / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB are to be had; take fewer (--limit {fitting})"
        )


def data_fingerprint(data: Data) -> str:
    """SHA-256 of the images and labels as the network reads them."""
    digest = hashlib.sha256()
    for part in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        if part is not None:
            digest.update(f"{part.dtype} {tuple(part.shape)};".encode())
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()
