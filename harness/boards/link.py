"""A connection to a board that is opened again where it breaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from harness.boards import deploy
from harness.boards.transport import Transport, open_transport
from harness.boards.wire import Frame
from harness.errors import TransientBoardError
from harness.records import BoardSpec

__all__ = ["Link"]

CALL_TIMEOUT_S = 60.0
# A connection that held this long was a good one: what ended it is a new trouble.
LASTED_S = 60.0
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

Answer = TypeVar("Answer")


class Link:
    """Transport and agent of one board; ``tell`` hears of reconnections."""

    def __init__(self, spec: BoardSpec, tell: Callable[[Frame], None]) -> None:
        self._spec = spec
        self._tell = tell
        self._lost_pids: list[int] = []
        self._transport: Transport | None = None
        self._agent: deploy.Deployed | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is an agent to call."""
        return self._agent is not None

    @property
    def transport(self) -> Transport:
        """What moves files; a ``TransientBoardError`` where there is no connection."""
        if self._transport is None:
            raise TransientBoardError(f"there is no connection to board {self._spec.name}")
        return self._transport

    @property
    def agent_hash(self) -> str:
        """The hash of the agent that answers."""
        if self._agent is None:
            raise TransientBoardError(f"there is no connection to board {self._spec.name}")
        return self._agent.agent_hash

    def close(self) -> None:
        """Let go of the board; jobs that still run there go on."""
        agent, transport = self._agent, self._transport
        self._agent = self._transport = None
        if agent is not None:
            agent.connection.close()
        if transport is not None:
            transport.close()

    def open(self) -> None:
        """Connect, and start the agent."""
        self._transport = open_transport(self._spec)
        try:
            self._agent = deploy.launch(self._transport, self._spec)
            if self._lost_pids:
                # A link that went silent leaves its agent waiting for words that never come.
                self.call("retire", {"pids": self._lost_pids})
                self._lost_pids = []
        except BaseException:
            self.close()
            raise

    def _lose(self) -> None:
        """Give up a connection that broke."""
        if self._agent is not None:
            self._lost_pids.append(self._agent.pid)
        self.close()

    def call(
        self, method: str, params: Frame, timeout_s: float | None = None, **options: Any
    ) -> Frame:
        """The agent's answer, over the connection that there is."""
        if self._agent is None:
            raise TransientBoardError(f"there is no connection to board {self._spec.name}")
        timeout_s = CALL_TIMEOUT_S if timeout_s is None else timeout_s
        return self._agent.connection.call(method, params, timeout_s=timeout_s, **options)

    def lasting(self, action: Callable[[], Answer]) -> Answer:
        """What ``action`` returns; where the connection breaks it is opened and tried again.

        ``action`` must be safe to repeat. The back-off starts anew after a connection that lasted.
        """
        attempt, tried_s = 0, time.monotonic()
        while True:
            try:
                if self._agent is None:
                    self.open()
                return action()
            except TransientBoardError as error:
                self._lose()
                if time.monotonic() - tried_s > LASTED_S:
                    attempt = 0
                if attempt >= len(BACK_OFF_S):
                    raise
                pause_s = BACK_OFF_S[attempt]
                attempt += 1
                self._tell({"kind": "reconnect", "attempt": attempt, "reason": str(error)})
                time.sleep(pause_s)
                tried_s = time.monotonic()
