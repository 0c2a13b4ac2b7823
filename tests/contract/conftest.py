"""Agents for the contract tests, under the host's Python and under a real 3.6."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boards.support import python_of
from tests.contract.agent import RawAgent

StartAgent = Callable[..., RawAgent]


@pytest.fixture(params=["host", "3.6"])
def start_agent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartAgent]:
    python = python_of(request.param)
    started: list[RawAgent] = []

    def start(env: dict[str, str] | None = None) -> RawAgent:
        started.append(RawAgent(python, tmp_path / "cache", env))
        return started[-1]

    yield start
    for agent in started:
        agent.close()


@pytest.fixture
def agent(start_agent: StartAgent) -> RawAgent:
    return start_agent()
