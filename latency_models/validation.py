"""Predicted against measured: errors by network, family and precision, and coverage."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from latency_models.calibration import LatencyModel
from latency_models.errors import FormatError
from latency_models.kernels import Work

__all__ = ["Item", "NetworkError", "Report", "TableRow", "read_table", "validate"]


class Item(NamedTuple):
    """One measured network: ``measured_s`` seconds a call; ``family`` and ``precision`` group."""

    name: str
    works: Sequence[Work]
    measured_s: float
    family: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkError:
    """One network: ``error`` is predicted over measured, less one."""

    name: str
    family: str
    precision: str
    predicted_s: float
    low_s: float
    high_s: float
    measured_s: float
    unsupported: tuple[tuple[str, str], ...]

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def covered(self) -> bool:
        """True if the measurement lies in the predicted interval."""
        return self.low_s <= self.measured_s <= self.high_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Errors over a set of networks; shares are 0 to 1, ``spearman`` None below three networks.

    ``covered`` is the share of measurements inside intervals that were to hold ``coverage``, and
    ``width`` the median of their high over low ends.
    """

    networks: tuple[NetworkError, ...]
    median_error: float
    mape: float
    within10: float
    spearman: float | None
    coverage: float
    covered: float
    width: float
    by_family: tuple[tuple[str, float], ...]
    by_precision: tuple[tuple[str, float], ...]


class TableRow(NamedTuple):
    """One row of a measurement table; ``network`` is the ONNX file, None what the table lacks."""

    network: Path
    precision: str
    batch: int
    latency_s: float
    power_mode: str | None
    runtime: str | None
    family: str | None


def validate(model: LatencyModel, items: Sequence[Item], *, coverage: float = 0.9) -> Report:
    """How well ``model`` predicts networks that it was not fitted to.

    ``ValueError`` if there are none. Errors are absolute and relative to the measured time.
    """
    if not items:
        raise ValueError("nothing to validate against: give measured networks")
    rows = []
    for item in items:
        low, high = model.interval(item.works, coverage)
        rows.append(
            NetworkError(
                name=item.name,
                family=item.family,
                precision=item.precision,
                predicted_s=model.predict(item.works),
                low_s=low,
                high_s=high,
                measured_s=item.measured_s,
                unsupported=model.unsupported(item.works),
            )
        )
    return summarise(rows, coverage=coverage)


def summarise(rows: Sequence[NetworkError], *, coverage: float) -> Report:
    """The report over ``rows``, predictions that were made before measuring."""
    errors = np.array([abs(row.error) for row in rows])
    rank = None
    if len(rows) >= 3:
        predicted, measured = [r.predicted_s for r in rows], [r.measured_s for r in rows]
        rank = float(stats.spearmanr(predicted, measured).statistic)
    return Report(
        networks=tuple(rows),
        median_error=float(np.median(errors)),
        mape=float(errors.mean()),
        within10=float((errors <= 0.1).mean()),
        spearman=rank,
        coverage=coverage,
        covered=float(np.mean([row.covered for row in rows])),
        width=float(np.median([row.high_s / row.low_s for row in rows])),
        by_family=_medians([(row.family, row.error) for row in rows]),
        by_precision=_medians([(row.precision, row.error) for row in rows]),
    )


def _medians(pairs: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    groups: dict[str, list[float]] = {}
    for key, error in pairs:
        groups.setdefault(key, []).append(abs(error))
    return tuple((key, float(np.median(errors))) for key, errors in sorted(groups.items()))


def read_table(path: Path) -> tuple[TableRow, ...]:
    """The rows of a measurement table (CSV).

    Columns: ``network`` (an ONNX file, relative to the table), ``precision``, ``batch``,
    ``latency_ms``; any of ``power_mode``, ``runtime``, ``family``; others are ignored.
    ``FormatError`` names the line that is wrong.
    """
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"network", "precision", "batch", "latency_ms"} - set(reader.fieldnames or ())
        if missing:
            raise FormatError(f"{path.name} has no column {', '.join(sorted(missing))}")
        return tuple(_row(path, reader.line_num, row) for row in reader)


def _row(path: Path, line: int, row: dict[str, str]) -> TableRow:
    try:
        latency_s, batch = float(row["latency_ms"]) * 1e-3, int(row["batch"])
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path.name}, line {line}: {error}") from error
    if not (math.isfinite(latency_s) and latency_s > 0 and batch > 0 and row["network"]):
        raise FormatError(
            f"{path.name}, line {line}: a network, a positive batch and a positive latency, please"
        )
    return TableRow(
        network=path.parent / row["network"],
        precision=row["precision"],
        batch=batch,
        latency_s=latency_s,
        power_mode=row.get("power_mode") or None,
        runtime=row.get("runtime") or None,
        family=row.get("family") or None,
    )
