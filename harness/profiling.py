"""One network measured alone: how long, whether to trust it, and how it resumes."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from harness import stats, sustain, units, verdict
from harness.boards.session import MeasurePlan
from harness.errors import ConditionError, TransientBoardError
from harness.folder import write_atomically
from harness.records import (
    BoardSpec,
    FitResult,
    Measurement,
    MeasurementVerdict,
    SoakSummary,
)

__all__ = [
    "SHOWN",
    "judge",
    "plan",
    "require_valid",
    "require_valid_fit",
    "resumable",
    "soaking",
    "sustain_s",
]

# Pieces of a measurement outside a fit: enough to see how the board's pace changes within it.
ROUNDS = 30
ITERATIONS = 64
# Shown where nothing was asked for and there are enough calls.
SHOWN = (90.0, 99.0)
# A passively cooled board is warm to the touch after two minutes; this computer is cooled.
SUSTAIN_BOARD_S = 120.0


def plan(
    *,
    warm_up_s: float,
    duration_s: float,
    iterations: int | None,
    percentile: float | None,
    soak_s: float = 0.0,
) -> MeasurePlan:
    """The plan of a measurement alone on the board.

    Without ``iterations`` as many calls as ``percentile`` needs, and at least 64.
    """
    if iterations is None:
        needed = None if percentile is None else stats.samples_needed(percentile)
        iterations = max(ITERATIONS, needed or 0)
    rounds = min(ROUNDS, iterations)
    return MeasurePlan(
        warmup_s=warm_up_s,
        rounds=rounds,
        block_s=duration_s / rounds,
        block_min=-(-iterations // rounds),
        drop=0,
        soak_s=soak_s,
    )


def judge(measurement: Measurement, *, percentile: float | None) -> MeasurementVerdict:
    """The verdict on a measurement of which the median and, if given, a percentile is claimed."""
    claimed = (50.0,) if percentile is None else (50.0, percentile)
    return verdict.judge(measurement, percentiles=claimed, shown=SHOWN)


def soaking(measurement: Measurement) -> SoakSummary | None:
    """What soaking did before the measurement; None where there was none."""
    return None if measurement.soak is None else sustain.summarise(measurement.soak)


def require_valid(label: str, found: MeasurementVerdict, *, kept: str) -> None:
    """Nothing; ``ConditionError`` if the measurement is UNSTABLE. ``kept`` is where it is."""
    if found.status == "VALID":
        return
    reasons = "; ".join(f"{c.finding} ({c.remedy})" for c in found.violated)
    raise ConditionError(
        f"--strict: the measurement of {label} is UNSTABLE: {reasons}. It is kept in {kept}"
    )


def require_valid_fit(result: FitResult, folder: Path) -> None:
    """Nothing; ``ConditionError`` if what the fit's verdict rests on is UNSTABLE."""
    for candidate in (result.baseline, result.result):
        if candidate is not None and candidate.verdict is not None:
            require_valid(candidate.label, candidate.verdict, kept=str(folder))


def sustain_s(text: str | None, board: BoardSpec) -> float:
    """How long a fit soaks the board before its verdict: as asked, else 2 min but for local."""
    if text is not None:
        return units.parse_duration(text, name="--sustain")
    return 0.0 if board.host is None else SUSTAIN_BOARD_S


@contextmanager
def resumable(store: Path, network: Path, board: BoardSpec, asked: MeasurePlan) -> Iterator[str]:
    """A nonce for the session: the same one where a run of the same job did not come back.

    It lies beside ``store`` while the job runs. A run that was killed, or lost the board for good,
    leaves it there, and the same command then finds the job on the board, finished or not.
    """
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    asked_for = json.dumps([digest, board.name, asdict(asked)], sort_keys=True)
    key = hashlib.sha256(asked_for.encode()).hexdigest()[:16]
    path = store.with_name(f"{store.name}.{key}.running")
    if path.exists():
        nonce = path.read_text().strip()
    else:
        nonce = secrets.token_hex(8)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, nonce)
    try:
        yield nonce
    except TransientBoardError:
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)
