"""A Jetson Nano in a folder, and boards with a stand-in for TensorRT 8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boards.support import float_network
from tests.device_agent import cudart
from tests.device_agent.jetson import Jetson
from tests.device_agent.tensorrt_board import Board


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    return Jetson(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def cudart_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudart.compiled(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def board(tmp_path: Path, cudart_library: Path) -> Iterator[Board]:
    board = Board(tmp_path, cudart_library)
    yield board
    board.close()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return float_network(tmp_path / "net.onnx")
