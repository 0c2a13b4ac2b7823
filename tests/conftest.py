"""For all tests: a lease of their own, so that they do not wait for what else this machine does.

And the virtual Nano, for those which want a board that is not this computer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from harness.boards import ssh
from tests.boards import nano as virtual
from tests.boards.nano import Nano
from tests.fits import ARGUMENTS, Fitted, boardfit, write_inputs

LEASE_DIR = "BOARDFIT_LEASE_DIR"
# The same examples at every run, however busy the machine is; see tests/fuzz for others.
settings.register_profile("boardfit", deadline=None, derandomize=True, database=None)
settings.load_profile("boardfit")


def pytest_configure(config: pytest.Config) -> None:
    """Before anything starts an agent; everyone may write there, as other users' agents do.

    Processes that share the tests have one each: they do not wait for each other's jobs.
    """
    if LEASE_DIR not in os.environ or hasattr(config, "workerinput"):
        os.environ[LEASE_DIR] = tempfile.mkdtemp(prefix="boardfit-lease-")
        Path(os.environ[LEASE_DIR]).chmod(0o1777)
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(LEASE_DIR)))


@pytest.fixture(scope="session")
def nano_makers() -> Iterator[virtual.Makers]:
    """The account and the interpreter, made once: a second, and 120 MB where they are copied."""
    with virtual.makers() as made:
        yield made


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: in small networks two would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="session")
def fit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a tiny network and data."""
    folder = tmp_path_factory.mktemp("fit")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def fitted(fit_folder: Path) -> Fitted:
    """A fit to half of the size, for which this computer was calibrated."""
    done = boardfit(fit_folder, *ARGUMENTS, "--size", "50%", "--out", "run")
    return Fitted(done, fit_folder / "run")


@pytest.fixture(scope="session")
def latency_model(fitted: Fitted) -> Path:
    """This computer's, which that fit calibrated: half a minute less for every other fit."""
    assert fitted.done.returncode == 0, fitted.done.stderr
    assert "✓ calibrate" in fitted.done.stderr
    return fitted.run / "latency_model.json"
