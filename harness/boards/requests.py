"""What a job on a board is asked with: who asks, for which files, built how."""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
from pathlib import Path

from harness.boards import answers
from harness.boards.wire import Frame
from harness.records import BuildSettings

__all__ = ["asking", "owner", "sha256_of"]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, by which the board knows it."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def owner() -> str:
    """Who asks, as others read it that wait for the board."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return re.sub(r"[^ -~]", "?", f"{user}@{socket.gethostname()}")[:120]


def asking(settings: BuildSettings | None) -> Frame:
    """The parameter that says how an engine is built; none where the runtime builds none."""
    return {} if settings is None else {"build": answers.build(settings)}
