"""A stand-in for libcudart, compiled where a C compiler is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("cudart.c")
KINDS = {"device": 1, "pinned": 2, "stream": 3, "event": 4, "graph": 5, "exec": 6}


def compiled(folder: Path) -> Path:
    """The stand-in as a shared library; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: install gcc to test against the stand-in for libcudart")
    path = folder / "libcudart.so"
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-O1"]
    subprocess.run([compiler, *flags, "-o", str(path), str(SOURCE)], check=True)
    return path
