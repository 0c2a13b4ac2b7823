"""What a pass found: the sensitivities of every option, as text, and kept by their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pydantic
from torch import Tensor

from harness.compression import groups
from harness.errors import ConfigError
from harness.records import Group, Option, dump, load

__all__ = ["Sensitivities", "Together", "best_channels", "cached", "digest", "kept_as"]

Kept = TypeVar("Kept")

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Expected loss increases: ``values[group][j]`` for ``options[group][j]``.

    ``channel_scores[group][c]`` is the increase that removing channel c alone is expected to cause.
    ``weights`` and ``activations`` have what each option's changed weights alone, and its rounded
    activations alone, are expected to cost; their sum is not the value, which squares the sum.
    ``blocks`` has the groups whose channels lie in several blocks (``Group.blocks``).

    Version history: 1, the first; 2 adds ``weights`` and ``activations`` (empty in a file of 1); 3
    adds ``blocks`` (an older file has no such groups).
    """

    options: Mapping[str, tuple[Option, ...]]
    values: Mapping[str, tuple[float, ...]]
    channel_scores: Mapping[str, tuple[float, ...]]
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    activations: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def kept(self, group: str, channels: int) -> tuple[int, ...]:
        """The ``channels`` channels of the group with the largest scores, in rising order.

        Of a group of several blocks the same places of each, rounded down to whole places.
        """
        return best_channels(self.channel_scores[group], channels, self.blocks.get(group, 1))

    def total(self, choice: Mapping[str, Option]) -> float:
        """The sum over the groups of a policy, one option a group; KeyError names a group."""
        return sum(
            self.values[group][self.options[group].index(option)]
            for group, option in choice.items()
        )

    def to_json(self) -> str:
        """The text that ``from_json`` reads."""
        return dump(self)

    @classmethod
    def from_json(cls, text: str) -> Sensitivities:
        """What ``to_json`` wrote, of this version or an older one; raises ConfigError."""
        try:
            version = json.loads(text).get("schema_version", 1)
            if version > SCHEMA_VERSION:
                raise ConfigError(
                    f"sensitivities of schema version {version} are newer than this boardfit, "
                    f"which reads up to {SCHEMA_VERSION}; update boardfit"
                )
            return load(cls, text)
        except (ValueError, AttributeError, TypeError, pydantic.ValidationError) as error:
            raise ConfigError(
                f"this text holds no sensitivities ({error}); score the network again"
            ) from error


@dataclass(frozen=True, slots=True)
class Together:
    """What options cost together, from inner products of losses' gradients with changes.

    ``products[group]`` is ``(options, images)``, where a draw counts as an image.
    """

    options: Mapping[str, tuple[Option, ...]]
    products: Mapping[str, npt.NDArray[np.float64]]

    def total(self, choice: Mapping[str, Option]) -> float:
        """The expected loss of a policy, one option a group; others stay as they are."""
        inner = sum(
            self.products[group][self.options[group].index(option)]
            for group, option in choice.items()
        )
        return float(np.square(inner).mean() / 2)


def best_channels(scores: Sequence[float], channels: int, blocks: int = 1) -> tuple[int, ...]:
    """The channels with the largest scores, in rising order; see ``groups.best_channels``."""
    whole = Group(
        name="", channels=len(scores), producers=(), consumers=(), prunable=True, blocks=blocks
    )
    return groups.best_channels(whole, scores, channels)


def digest(parts: Iterable[str | Tensor | None]) -> str:
    """SHA-256 of texts and tensors (their types, shapes and values), in their order."""
    result = hashlib.sha256()
    for part in parts:
        if part is None or isinstance(part, str):
            result.update(repr(part).encode())
        else:
            array = part.detach().contiguous().numpy()
            result.update(f"{array.dtype} {array.shape};".encode())
            result.update(array.tobytes())
        result.update(b"\n")
    return result.hexdigest()


def cached(folder: Path, key: str, compute: Callable[[], Sensitivities]) -> Sensitivities:
    """The sensitivities that ``folder`` keeps under ``key``, else ``compute()``, kept from now on.

    ``key`` names the content that they depend on (``digest``).
    """
    path = folder / f"sensitivities-{key[:32]}.json"
    return _kept(path, compute, Sensitivities.from_json)


def kept_as(kind: type[Kept], folder: Path, name: str, compute: Callable[[], Kept]) -> Kept:
    """The record of class ``kind`` that ``folder`` keeps by a name that tells its content.

    Else ``compute()``, kept from now on, as ``cached`` does with sensitivities.
    """
    return _kept(folder / f"{name}.json", compute, lambda text: load(kind, text))


def _kept(path: Path, compute: Callable[[], Kept], read: Callable[[str], Kept]) -> Kept:
    """What lies in ``path``. A file that is damaged is computed and written anew.

    Two processes may compute the same, and neither reads half a file.
    """
    if path.is_file():
        try:
            return read(path.read_text())
        except (ConfigError, UnicodeDecodeError, pydantic.ValidationError):
            pass
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(dump(found))
    draft.replace(path)
    return found
