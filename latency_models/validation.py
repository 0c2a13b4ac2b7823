"""Predicted against measured: errors by network, family, precision and kernel kind; coverage."""

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
from latency_models.profiles import Scales

__all__ = [
    "Item",
    "KindError",
    "NetworkError",
    "Report",
    "TableRow",
    "predict_item",
    "read_table",
    "summarise",
    "validate",
]


class Item(NamedTuple):
    """One measured network: ``measured_s`` seconds a call; ``family`` and ``precision`` group.

    ``scales`` are the clocks that it was measured at over the model's own, in ``power_mode``.
    """

    name: str
    works: Sequence[Work]
    measured_s: float
    family: str
    precision: str
    batch: int = 1
    power_mode: str | None = None
    scales: Scales = Scales()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkError:
    """One network: ``error`` is predicted over measured, less one.

    ``shares`` are the kernel kinds' shares of the predicted kernel time; they add up to 1.
    """

    name: str
    family: str
    precision: str
    predicted_s: float
    low_s: float
    high_s: float
    measured_s: float
    unsupported: tuple[tuple[str, str], ...]
    shares: tuple[tuple[str, float], ...] = ()
    batch: int = 1
    power_mode: str | None = None

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def covered(self) -> bool:
        """True if the measurement lies in the predicted interval."""
        return self.low_s <= self.measured_s <= self.high_s


@dataclass(frozen=True, slots=True, kw_only=True)
class KindError:
    """How one kind of kernel goes with the errors of the networks that it runs in.

    ``share`` is the kind's mean share of the predicted time of all networks; ``networks`` how many
    hold it. ``mape`` and ``bias`` are the networks' absolute and signed errors, each weighted by
    the kind's share in that network. ``correlation`` is Spearman's between share and signed error
    over all networks: near 1 or -1, the kind is likely what is predicted too slow or too fast;
    None below three networks or where either never changes.
    """

    kind: str
    share: float
    networks: int
    mape: float
    bias: float
    correlation: float | None


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
    by_kind: tuple[KindError, ...] = ()


class TableRow(NamedTuple):
    """One row of a measurement table; ``network`` is the ONNX file, None what the table lacks.

    ``line`` is where it stands in the file.
    """

    network: Path
    precision: str
    batch: int
    latency_s: float | None
    power_mode: str | None
    runtime: str | None
    family: str | None
    line: int = 0


def validate(model: LatencyModel, items: Sequence[Item], *, coverage: float = 0.9) -> Report:
    """How well ``model`` predicts networks that it was not fitted to.

    ``ValueError`` if there are none. Errors are absolute and relative to the measured time.
    """
    if not items:
        raise ValueError("nothing to validate against: give measured networks")
    return summarise(
        [predict_item(model, item, coverage=coverage) for item in items], coverage=coverage
    )


def predict_item(model: LatencyModel, item: Item, *, coverage: float) -> NetworkError:
    """``item`` as ``model`` predicts it at the clocks it was measured at."""
    there = model.at(item.scales)
    low, high = there.interval(item.works, coverage)
    seconds = there.predict_kernels(item.works)
    shares: dict[str, float] = {}
    for work, taken in zip(item.works, seconds, strict=True):
        shares[work.kind] = shares.get(work.kind, 0.0) + float(taken / seconds.sum())
    return NetworkError(
        name=item.name,
        family=item.family,
        precision=item.precision,
        predicted_s=there.predict(item.works),
        low_s=low,
        high_s=high,
        measured_s=item.measured_s,
        unsupported=there.unsupported(item.works),
        shares=tuple(sorted(shares.items())),
        batch=item.batch,
        power_mode=item.power_mode,
    )


def summarise(rows: Sequence[NetworkError], *, coverage: float) -> Report:
    """The report over ``rows``, predictions that were made before measuring."""
    errors = np.array([abs(row.error) for row in rows])
    return Report(
        networks=tuple(rows),
        median_error=float(np.median(errors)),
        mape=float(errors.mean()),
        within10=float((errors <= 0.1).mean()),
        spearman=_rank([r.predicted_s for r in rows], [r.measured_s for r in rows]),
        coverage=coverage,
        covered=float(np.mean([row.covered for row in rows])),
        width=float(np.median([row.high_s / row.low_s for row in rows])),
        by_family=_medians([(row.family, row.error) for row in rows]),
        by_precision=_medians([(row.precision, row.error) for row in rows]),
        by_kind=_kinds(rows),
    )


def _kinds(rows: Sequence[NetworkError]) -> tuple[KindError, ...]:
    """Every kind that takes time anywhere, that with the largest share first."""
    tables = [dict(row.shares) for row in rows]
    errors = np.array([row.error for row in rows])
    found = []
    for kind in {kind for table in tables for kind, share in table.items() if share > 0}:
        shares = np.array([table.get(kind, 0.0) for table in tables])
        found.append(
            KindError(
                kind=kind,
                share=float(shares.mean()),
                networks=int((shares > 0).sum()),
                mape=float(np.average(np.abs(errors), weights=shares)),
                bias=float(np.average(errors, weights=shares)),
                correlation=_rank(shares.tolist(), errors.tolist()),
            )
        )
    return tuple(sorted(found, key=lambda kind: (-kind.share, kind.kind)))


def _rank(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's correlation; None below three pairs, or where either never changes."""
    if np.size(first) < 3 or not (np.ptp(first) and np.ptp(second)):
        return None
    return float(stats.spearmanr(first, second).statistic)


def _medians(pairs: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    groups: dict[str, list[float]] = {}
    for key, error in pairs:
        groups.setdefault(key, []).append(abs(error))
    return tuple((key, float(np.median(errors))) for key, errors in sorted(groups.items()))


def read_table(path: Path, *, measured: bool = True) -> tuple[TableRow, ...]:
    """The rows of a measurement table (CSV).

    Columns: ``network`` (an ONNX file, relative to the table), ``precision``, ``batch``,
    ``latency_ms``; any of ``power_mode``, ``runtime``, ``family``; others are ignored. Unless
    ``measured``, ``latency_ms`` may be missing or empty. ``FormatError`` names what is wrong and
    its line.
    """
    needed = {"network", "precision", "batch"} | ({"latency_ms"} if measured else set())
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = needed - set(reader.fieldnames or ())
            if missing:
                raise FormatError(f"{path.name} has no column {', '.join(sorted(missing))}")
            rows = tuple(_row(path, reader.line_num, row, measured=measured) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} cannot be read as a measurement table: {error}") from error
    if not rows:
        raise FormatError(f"{path.name} has no rows; write one for each measured network")
    return rows


def _row(path: Path, line: int, row: dict[str, str], *, measured: bool) -> TableRow:
    text = row.get("latency_ms")
    try:
        latency_s = float(text) * 1e-3 if text else None
        batch = int(row["batch"])
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path.name}, line {line}: {error}") from error
    if not (batch > 0 and row["network"] and row["precision"]):
        raise FormatError(
            f"{path.name}, line {line}: a network, its precision and a positive batch, please"
        )
    known = latency_s is not None and math.isfinite(latency_s) and latency_s > 0
    if not known and (measured or text):
        raise FormatError(f"{path.name}, line {line}: a positive latency_ms, please")
    return TableRow(
        network=path.parent / row["network"],
        precision=row["precision"],
        batch=batch,
        latency_s=latency_s,
        power_mode=row.get("power_mode") or None,
        runtime=row.get("runtime") or None,
        family=row.get("family") or None,
        line=line,
    )
