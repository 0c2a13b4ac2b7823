"""Boards for the tests: this computer, the same over a real SSH server, and the virtual Nano."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records import BoardSpec
from tests.boards.nano import Nano
from tests.boards.sshd import SSHD, Sshd
from tests.boards.support import float_network, int8_network


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """boardfit's settings in a folder of the test's own, and no working folder of note."""
    folder = tmp_path / "config"
    folder.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(folder))
    monkeypatch.setenv("BOARDFIT_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


@pytest.fixture
def local(tmp_path: Path) -> BoardSpec:
    return BoardSpec(name="local", python=sys.executable, cache_dir=str(tmp_path / "cache"))


@pytest.fixture(params=["local", "nano"])
def board(request: pytest.FixtureRequest, local: BoardSpec) -> BoardSpec:
    """This computer, and the virtual Nano; both keep their files in ``cache_dir``."""
    if request.param == "local":
        return local
    nano: Nano = request.getfixturevalue("nano")
    return replace(nano.spec, cache_dir=str(nano.cache))


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    if not Path(SSHD).is_file() or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server")
    server = Sshd(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def remote(tmp_path: Path) -> BoardSpec:
    return BoardSpec(
        name="nano", host="board", python=sys.executable, cache_dir=str(tmp_path / "cache")
    )


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return float_network(tmp_path / "float.onnx")


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    return int8_network(tmp_path / "int8.onnx")
