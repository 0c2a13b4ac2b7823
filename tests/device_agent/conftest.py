"""A Jetson Nano in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device_agent.jetson import Jetson


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    return Jetson(tmp_path, monkeypatch)
