"""The interpreter of the virtual Nano: a Python 3.6 that an unprivileged user can run."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.boards.support import find_python36

# Of the standard library and of site-packages: large, and nothing that a board's agent imports.
NOT_COPIED = (
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "config-*",
    "site-packages",
    "pip*",
    "setuptools*",
    "pkg_resources",
)
DESCRIBE = """\
import json, sys, sysconfig
paths = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
print(json.dumps([sys.version_info[:3], sys.base_prefix] + paths))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardPython:
    """An interpreter, and where its shared library lies if the loader would not find it.

    ``runtime`` says whether it has onnxruntime.
    """

    executable: str
    version: tuple[int, int, int]
    runtime: bool
    library_dir: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who logs in to the board."""

    name: str
    uid: int
    gid: int
    home: Path


def _describe(python: str) -> tuple[tuple[int, int, int], str, list[str]]:
    done = subprocess.run([python, "-c", DESCRIBE], check=True, capture_output=True, text=True)
    version, prefix, *paths = json.loads(done.stdout)
    return tuple(version), prefix, paths


def run_as(
    user: User, argv: list[str], *, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A program run to its end as that user, who has nothing of the environment of the tests."""
    who = {"user": user.uid, "group": user.gid, "extra_groups": []} if os.getuid() == 0 else {}
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        cwd="/",
        env={"HOME": str(user.home), "PATH": os.defpath, **(env or {})},
        **who,  # type: ignore[arg-type]
    )


def _runs(user: User, python: str, command: str) -> bool:
    try:
        return run_as(user, [python, "-c", command]).returncode == 0
    except PermissionError:
        return False


def oldest_python() -> str:
    """The oldest Python 3 (3.6 or later) that is found here; that of the tests at the latest."""
    names = [f"python3.{minor}" for minor in range(6, sys.version_info[1])]
    places = [shutil.which(name) for name in names]
    for minor in range(6, sys.version_info[1]):
        places += map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
    known = [(_describe(place)[0], place) for place in places if place]
    return min(known)[1] if known else sys.executable


def _link(source: str, target: str) -> None:
    """A hard link where all may read the file and the file system is the same; else a copy."""
    if os.stat(source).st_mode & stat.S_IROTH:  # noqa: PTH116 (shutil gives texts)
        try:
            Path(target).hardlink_to(source)
            return
        except OSError:
            pass
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _tree(source: Path, target: Path) -> None:
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    shutil.copytree(source, target, ignore=ignore, copy_function=_link, dirs_exist_ok=True)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def for_user(user: User, folder: Path) -> BoardPython:
    """Python 3.6 with onnxruntime, or the oldest there is; copied to ``folder`` if it must be.

    pyenv's interpreters lie in the home of whoever installed them, where others cannot read.
    """
    python = find_python36() or oldest_python()
    version, prefix, (stdlib, *packages) = _describe(python)
    command = "import onnxruntime"
    runtime = subprocess.run([python, "-c", command], capture_output=True).returncode == 0
    if _runs(user, python, command if runtime else "import json"):
        return BoardPython(executable=python, version=version, runtime=runtime)
    name = f"python{version[0]}.{version[1]}"
    (folder / "bin").mkdir(parents=True)
    library = folder / "lib"
    executable = folder / "bin" / name
    _tree(Path(stdlib), library / name)
    for place in sorted(set(packages)):
        _tree(Path(place), library / name / "site-packages")
    for shared in Path(prefix, "lib").glob("libpython*.so*"):
        _link(str(shared.resolve()), str(library / shared.name))
    _link(str(Path(python).resolve()), str(executable))
    return BoardPython(
        executable=str(executable), version=version, runtime=runtime, library_dir=str(library)
    )
