"""A training run's state on disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import BuildError

__all__ = ["digest", "read", "write"]

# History: 1, the first.
VERSION = 1
# Enough images to tell one data set, and one order of it, from another.
DIGESTED = 256


def digest(settings: Mapping[str, Any], *tensors: Tensor | None) -> str:
    """SHA-256 of settings and of up to 256 evenly spaced rows of each tensor."""
    told = hashlib.sha256(repr(sorted(settings.items())).encode())
    for tensor in tensors:
        if tensor is None:
            told.update(b"none;")
            continue
        rows = tensor[:: max(1, len(tensor) // DIGESTED)].detach().contiguous()
        told.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        told.update(rows.numpy().tobytes())
    return told.hexdigest()


def write(path: Path, run: str, state: Mapping[str, Any]) -> None:
    """Write the state of the run with that digest: all of it, or the file stays as it was."""
    draft = path.with_name(f"{path.name}.draft")
    torch.save({"version": VERSION, "run": run, "state": dict(state)}, draft)
    draft.replace(path)


def read(path: Path, run: str) -> dict[str, Any] | None:
    """The state of the run with that digest; None if there is no file.

    BuildError if the file cannot be read or is another run's: training would go on from weights
    that are not this run's.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version, whose, state = found["version"], found["run"], found["state"]
    except (
        *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError),
        *(pickle.UnpicklingError, zipfile.BadZipFile),
    ) as error:
        raise BuildError(
            f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}; delete it to start "
            "this training again"
        ) from error
    if version != VERSION or whose != run:
        raise BuildError(
            f"checkpoint {path} is of another training (other settings, data or networks); name "
            "another file, or delete it to start this training from the beginning"
        )
    assert isinstance(state, dict)
    return state
