"""What may be said of a measurement: intervals, criteria, percentiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Interval:
    """``low <= value <= high`` with probability ``coverage``."""

    low: float
    high: float
    coverage: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"interval with low {self.low} above high {self.high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One question that a measurement was asked, and the answer.

    ``figure`` and ``limit`` are in SI units or shares, None where there is nothing to compare;
    ``finding`` is the answer as a sentence, ``remedy`` what to do where it is not "ok".
    """

    name: str
    outcome: Literal["ok", "violated", "unknown"]
    figure: float | None
    limit: float | None
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileFigure:
    """A percentile of a measurement; ``value_s`` is None where ``needed`` calls were not made.

    ``needed`` is None for a percentile that no number of calls supports (0 and 100).
    """

    percent: float
    value_s: float | None
    needed: int | None
    n_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementVerdict:
    """Whether a measurement can be trusted: VALID unless a criterion is violated."""

    status: Literal["VALID", "UNSTABLE"]
    criteria: tuple[Criterion, ...]
    percentiles: tuple[PercentileFigure, ...]

    @property
    def violated(self) -> tuple[Criterion, ...]:
        """What speaks against the measurement."""
        return tuple(c for c in self.criteria if c.outcome == "violated")

    @property
    def unknown(self) -> tuple[Criterion, ...]:
        """What nobody can tell of it."""
        return tuple(c for c in self.criteria if c.outcome == "unknown")
