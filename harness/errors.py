"""Every error that boardfit raises on purpose.

::

    BoardfitError                    exit code 1
    ├── ConfigError                  2   an input is wrong: file, option, budget, data, network
    ├── BoardError                   3   the board could not do what was asked
    │   ├── TransientBoardError          may be retried: connection, lease held, throttled
    │   │   └── BoardUnreachable
    │   └── StableBoardError             retrying gives the same answer
    │       └── HostKeyUnknown
    ├── AgentError                   1   the agent answered, but not with a result
    │   ├── AgentException               an exception on the board, with its traceback
    │   └── ProtocolError                the wire was not spoken correctly
    │       └── StreamDamaged                bytes that are no frame; transient, see BoardError
    ├── BuildError                   1   a variant or an engine could not be built
    ├── LatencyModelError            1   the latency model cannot answer
    ├── ConditionError               1   the board is not in the state that was required
    └── InfeasibleBudget             4   no allocation meets the budget

A message says what happened, with the value, and what to do about it. ``latency_models`` has
errors of its own; ``latency_errors`` translates them where the two meet.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from latency_models.errors import FormatError, LatencyError, PowerModeNotFound, ProfileNotFound

__all__ = [
    "AgentError",
    "AgentException",
    "BoardError",
    "BoardUnreachable",
    "BoardfitError",
    "BuildError",
    "ConditionError",
    "ConfigError",
    "HostKeyUnknown",
    "InfeasibleBudget",
    "LatencyModelError",
    "ProtocolError",
    "StableBoardError",
    "StreamDamaged",
    "TransientBoardError",
    "latency_errors",
]


class BoardfitError(Exception):
    """The root; ``exit_code`` is what the command line exits with."""

    exit_code = 1


class ConfigError(BoardfitError):
    """An input is wrong: a file, an option, a budget, data, a network."""

    exit_code = 2


class BoardError(BoardfitError):
    """The board could not do what was asked."""

    exit_code = 3


class TransientBoardError(BoardError):
    """Worth retrying: the connection broke, the lease is held, the board throttles."""


class BoardUnreachable(TransientBoardError):
    """No connection to the board could be opened."""


class StableBoardError(BoardError):
    """Retrying gives the same answer: no Python, no runtime, a refused key."""


class HostKeyUnknown(StableBoardError):
    """The board's host key is not trusted yet."""


class AgentError(BoardfitError):
    """The agent answered, but not with a result."""


class AgentException(AgentError):
    """An exception on the board: a failed build, or a bug.

    ``type_name`` and ``traceback`` are the board's own.
    """

    def __init__(self, message: str, *, type_name: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback = traceback


class ProtocolError(AgentError):
    """The wire was not spoken correctly by one of its two ends."""


class StreamDamaged(ProtocolError, TransientBoardError):
    """Bytes that are no frame came in the agent's stream: it is of no more use, a new one may be.

    Something else prints there (a library, a program of the login's), or the agent was cut off.
    """


class BuildError(BoardfitError):
    """A variant or an engine could not be built."""


class LatencyModelError(BoardfitError):
    """The latency model cannot answer: an operator or a kernel kind it has never seen."""


class ConditionError(BoardfitError):
    """The board is not in the state that was required."""


class InfeasibleBudget(BoardfitError):
    """No allocation meets the budget.

    ``nearest`` holds, for each budget in the order given, the smallest cost that can be reached,
    ``binding`` the indices of the groups that make up half of that or more, the largest first.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        nearest: tuple[float, ...] = (),
        binding: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.binding = binding


@contextmanager
def latency_errors() -> Iterator[None]:
    """Raise what ``latency_models`` raises as a LatencyModelError; a decorator too.

    What is wrong with a file or a name that the user gave is a ConfigError.
    """
    try:
        yield
    except (FormatError, PowerModeNotFound, ProfileNotFound) as error:
        raise ConfigError(str(error)) from error
    except LatencyError as error:
        raise LatencyModelError(str(error)) from error
