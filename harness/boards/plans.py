"""What is to be measured, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.records import BuildSettings, LayerPrecision

__all__ = ["PRESETS", "EngineRequest", "MeasurePlan", "TrtexecRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """An ONNX file on the host that is to be measured under ``label``.

    ``build`` says how TensorRT is to make its engine of a file that is ready for it; without, the
    file is made ready for ``precision``, or for that of every node in ``layers``. Other runtimes
    need neither.
    """

    label: str
    path: Path
    precision: str
    build: BuildSettings | None = None
    layers: tuple[LayerPrecision, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePlan:
    """How long to measure: per round and engine one block of ``block_s`` and ``block_min`` calls.

    A block's first ``drop`` calls are not timed. ``warmup_s`` is for each engine, and longer (up
    to four times) where its times have not settled.
    """

    warmup_s: float
    rounds: int
    block_s: float
    block_min: int
    drop: int
    soak_s: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.block_min < 1 or self.drop < 0:
            raise ValueError(f"a plan needs rounds and calls, got {self}")
        if not all(math.isfinite(t) and t >= 0 for t in (self.warmup_s, self.block_s, self.soak_s)):
            raise ValueError(f"a plan's times cannot be negative, got {self}")

    @property
    def duration_s(self) -> float:
        """What one engine is measured for where its calls are short; a long warm-up is four."""
        return 4 * self.warmup_s + self.rounds * self.block_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecRun:
    """The files of one run of trtexec by kind (``log``, ``times``, ``profile``, ``engine``, ...).

    ``unproven`` are options that no log of that version has shown to work.
    """

    files: Mapping[str, Path]
    unproven: tuple[str, ...]
    build: BuildSettings | None


# Calls an engine at least, for a percentile with 99 % confidence: p50 11, p90 64, p99 662. MLPerf's
# single stream wants 1,024 queries and a minute or more.
PRESETS = {
    "quick": MeasurePlan(warmup_s=0.2, rounds=6, block_s=0.05, block_min=4, drop=2),
    "standard": MeasurePlan(warmup_s=0.5, rounds=20, block_s=0.1, block_min=4, drop=3),
    "mlperf": MeasurePlan(warmup_s=2.0, rounds=20, block_s=3.0, block_min=52, drop=3),
}
