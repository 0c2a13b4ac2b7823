"""The command line: parse, call one function, print. Nothing heavy is imported at module level."""

import os
import sys
import traceback

import typer

from harness.cli import boards, fitting, measuring, models  # noqa: F401 (they add their commands)
from harness.cli.options import app
from harness.errors import BoardfitError

__all__ = ["app", "main"]

INTERRUPTED = 130
INTERRUPTED_MESSAGE = "interrupted; what was measured is kept, and the same command resumes"


def main() -> None:
    """Run the command line; every error ends in one message and the exit code of its class."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            # Newer releases of typer answer Ctrl-C with this code, older ones raise.
            raise KeyboardInterrupt
    except BoardfitError as error:
        print(f"boardfit: {error}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        # Typer turns Ctrl-C into Abort, which it also raises where a question was answered no.
        declined = isinstance(error, typer.Abort) and error.__cause__ is None
        what = "nothing was changed" if declined else INTERRUPTED_MESSAGE
        print(f"boardfit: {what}", file=sys.stderr)
        code = INTERRUPTED
        # Ctrl-C inside code that a library compiled from a string is remembered by CPython, which
        # then ends `python -m` by the signal whatever the exit code; running such code clears it.
        exec("")
    except OSError as error:
        # A full disk, a file that may not be read, a name that is too long: no bug of ours.
        print(f"boardfit: {error}", file=sys.stderr)
        code = 1
    except Exception as error:
        code = _unexpected(error)
    sys.exit(code or 0)


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
