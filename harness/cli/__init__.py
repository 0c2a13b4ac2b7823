"""The command line: parse, call one function, print. Nothing heavy is imported at module level."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import typer

from harness.cli import (  # noqa: F401 (they add their commands)
    boards,
    fitting,
    measuring,
    models,
    planning,
)
from harness.cli.options import app
from harness.errors import BoardfitError

__all__ = ["app", "main"]

INTERRUPTED = 130
INTERRUPTED_MESSAGE = "interrupted; what was measured is kept, and the same command resumes"


def main() -> None:
    """Run the command line; every error ends in one message and the exit code of its class."""
    with _remembering_interrupts() as interrupts:
        try:
            code = app(standalone_mode=False)
            if code == INTERRUPTED:
                # Newer releases of typer answer Ctrl-C with this code, older ones raise.
                raise KeyboardInterrupt
        except (KeyboardInterrupt, typer.Abort) as error:
            # Typer turns Ctrl-C into Abort, which it also raises where a question was answered no.
            declined = isinstance(error, typer.Abort) and error.__cause__ is None
            code = _interrupted("nothing was changed" if declined else INTERRUPTED_MESSAGE)
        except Exception as error:
            code = _interrupted(INTERRUPTED_MESSAGE) if interrupts else _failed(error)
    sys.exit(code or 0)


@contextlib.contextmanager
def _remembering_interrupts() -> Iterator[list[int]]:
    """The Ctrl-C so far: libraries turn its exception into errors of their own.

    A class body, for one, makes a RuntimeError of it.
    """
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        seen.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen  # whoever started us wants it otherwise
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(what: str) -> int:
    print(f"boardfit: {what}", file=sys.stderr)
    # Ctrl-C inside code that a library compiled from a string is remembered by CPython, which
    # then ends `python -m` by the signal whatever the exit code; running such code clears it.
    exec("")
    return INTERRUPTED


def _failed(error: Exception) -> int:
    if isinstance(error, (BoardfitError, OSError)):
        # A full disk, a file that may not be read, a name that is too long: no bug of ours.
        print(f"boardfit: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BoardfitError) else 1
    return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Usage errors speak for themselves; anything else is our bug, and says so."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if os.environ.get("BOARDFIT_DEBUG"):
        traceback.print_exc()
    print(
        f"boardfit: internal error: {type(error).__name__}: {error}\n"
        "This is a bug. BOARDFIT_DEBUG=1 shows where; please report it with the command.",
        file=sys.stderr,
    )
    return 1
