"""For all tests: a lease of their own, so that they do not wait for what else this machine does."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

LEASE_DIR = "BOARDFIT_LEASE_DIR"


def pytest_configure(config: pytest.Config) -> None:
    """Before anything starts an agent; everyone may write there, as other users' agents do."""
    if LEASE_DIR not in os.environ:
        os.environ[LEASE_DIR] = tempfile.mkdtemp(prefix="boardfit-lease-")
        Path(os.environ[LEASE_DIR]).chmod(0o1777)
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(LEASE_DIR)))
