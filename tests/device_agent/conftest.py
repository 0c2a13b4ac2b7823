"""A Jetson Nano in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device_agent.nano import Nano


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nano:
    return Nano(tmp_path, monkeypatch)
