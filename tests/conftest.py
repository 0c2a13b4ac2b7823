"""The virtual Nano, for all tests that want a board which is not this computer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.boards import ssh
from tests.boards import nano as virtual
from tests.boards.nano import Nano


@pytest.fixture(scope="session")
def nano_makers() -> Iterator[virtual.Makers]:
    """The account and the interpreter, made once: a second, and 120 MB where they are copied."""
    with virtual.makers() as made:
        yield made


@pytest.fixture
def nano(
    nano_makers: virtual.Makers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nano]:
    """A board that is trusted, with an empty home; nothing of it is left afterwards."""
    board = Nano(nano_makers)
    settings = tmp_path / "nano-settings"
    settings.mkdir()
    monkeypatch.setenv("BOARDFIT_SSH_CONFIG", str(board.ssh_config))
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(settings))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    try:
        ssh.trust(board.spec)
        yield board
    finally:
        board.close()
