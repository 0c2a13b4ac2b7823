"""Every error that ``latency_models`` raises on purpose; ``harness`` translates them to its own.

::

    LatencyError
    ├── UnknownOperator        the graph holds an operator that no fusion rule knows
    ├── UnsupportedGraph       shapes or weights cannot be worked out, or a rewrite is impossible
    ├── CalibrationError       the samples cannot calibrate a model
    ├── FormatError            a file is not what it should be: profile, latency model, table
    ├── ProfileNotFound        no board profile of that name
    └── PowerModeNotFound      the board profile has no power mode of that name

A message says what happened, with the value, and what to do about it.
"""

__all__ = [
    "CalibrationError",
    "FormatError",
    "LatencyError",
    "PowerModeNotFound",
    "ProfileNotFound",
    "UnknownOperator",
    "UnsupportedGraph",
]


class LatencyError(Exception):
    """The root."""


class UnknownOperator(LatencyError):
    """The graph holds an operator that no fusion rule knows; ``operator`` and ``node`` name it."""

    def __init__(self, operator: str, node: str) -> None:
        super().__init__(
            f"operator {operator!r} of node {node!r} has no fusion rule: run the network through "
            "onnxslim (it folds what is constant), or add the operator to the table KINDS in "
            "latency_models/operators.py with the kind of kernel it runs as"
        )
        self.operator = operator
        self.node = node


class UnsupportedGraph(LatencyError):
    """Shapes or weights cannot be worked out, or the rewrite that was asked for is impossible."""


class CalibrationError(LatencyError):
    """The samples cannot calibrate a model: too few, not positive, or of unknown kinds."""


class FormatError(LatencyError):
    """A file is not what it should be: a board profile, a latency model, a measurement table."""


class ProfileNotFound(LatencyError):
    """There is no board profile of that name."""


class PowerModeNotFound(LatencyError):
    """The board profile has no power mode of that name."""
