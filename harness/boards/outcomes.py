"""What the end of a job on the board means: a result, an error, or another attempt."""

from __future__ import annotations

import signal

from harness.boards import answers
from harness.boards.wire import Frame, exception_of, sensible, validate
from harness.errors import ProtocolError, StableBoardError, TransientBoardError

__all__ = ["AnotherTime", "result_of"]


class AnotherTime(TransientBoardError):
    """A job ended by the board's state, or ``died``, and may succeed when it is run again."""

    def __init__(self, text: str, *, died: bool = False) -> None:
        super().__init__(text)
        self.died = died


def result_of(kind: str, outcome: Frame, *, board: str) -> Frame:
    """The result of a job that is over, or the error that it ended with."""
    where = f"board {board}"
    if outcome["state"] == "failed":
        with sensible():
            error = exception_of(outcome["exception"])
        raise AnotherTime(f"{where}: {error}") if outcome.get("transient") else error
    if outcome["state"] == "cancelled":
        raise StableBoardError(f"{where}: the {kind} job was cancelled")
    if outcome["state"] == "died":
        raise _death(kind, outcome, where)
    if outcome["state"] != "done" or "result" not in outcome:
        raise ProtocolError(f"the agent ended a {kind} job without a result")
    result: Frame = outcome["result"]
    validate(f"{kind}.result", result)
    return result


def _death(kind: str, outcome: Frame, where: str) -> StableBoardError | TransientBoardError:
    """The error for a job that died: of its own, by a signal; or of the board's state."""
    number, free = outcome.get("signal"), outcome.get("free_memory_bytes")
    how = "without a word"
    if outcome.get("rebooted"):
        how = "when the board restarted"
    elif number:
        how = f"by signal {number} ({answers.signal_name(number)})"
    elif outcome.get("exit_code") is not None:
        how = f"with exit code {outcome['exit_code']}"
    text = f"{where}: the {kind} job died {how}"
    if outcome.get("memory_kill"):
        text += f"; the kernel says {outcome['memory_kill']!r}: add swap or stop programs"
    elif number == signal.SIGKILL and free is not None:
        text += f" (out of memory? {free >> 20} MiB are free now; add swap or stop programs)"
    tail = outcome.get("stderr_tail", "").strip()
    text = f"{text}. Its last words: {tail}" if tail else text
    if number is None or number == signal.SIGKILL:
        return AnotherTime(text, died=True)
    return StableBoardError(text)
