"""Calibrating, validating and predicting from measurement tables, without a board."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from latency_models import calibration, graph, validation
from latency_models.calibration import LatencyModel, NetworkSample
from latency_models.errors import FormatError, LatencyError, UnsupportedGraph
from latency_models.graph import RUNTIMES
from latency_models.kernels import BYTES, Work
from latency_models.profiles import BoardProfile
from latency_models.validation import Item, NetworkError, TableRow

__all__ = [
    "LEAVE_OUT",
    "MIN_ROWS",
    "Fold",
    "Prediction",
    "calibrate",
    "check_precision",
    "check_runtime",
    "fold_out",
    "items",
    "predict",
    "predictions_csv",
    "read_works",
    "split",
    "validate",
    "works_of_row",
]

Progress = Callable[[int, int], None]

# Fewer rows say too little about a board for their residuals to mean anything.
MIN_ROWS = 5
LEAVE_OUT = ("family", "network", "power_mode")


class Fold(NamedTuple):
    """Networks to calibrate on, and the rest, which is then predicted; ``name`` says which.

    ``unlike``: the rest is of no family that is calibrated on.
    """

    name: str
    fit: tuple[Item, ...]
    rest: tuple[Item, ...]
    unlike: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row of a table, predicted: seconds, with the kinds that were never measured."""

    row: TableRow
    predicted_s: float
    low_s: float
    high_s: float
    unsupported: tuple[tuple[str, str], ...]


def check_runtime(runtime: str) -> str:
    """``runtime``, for which there are fusion rules; ``FormatError`` lists those there are."""
    if runtime not in RUNTIMES:
        raise FormatError(
            f"unknown runtime {runtime!r}: there are fusion rules for {', '.join(sorted(RUNTIMES))}"
        )
    return runtime


def check_precision(precision: str, model: LatencyModel) -> str:
    """``precision``, which ``model`` has parameters for; ``FormatError`` lists those there are."""
    if precision not in model.precisions:
        raise FormatError(
            f"the latency model of {model.profile.name} has no precision {precision!r}, only "
            f"{', '.join(model.precisions)}"
        )
    return precision


def works_of_row(
    network: Path, *, runtime: str, precision: str = "fp32", batch: int = 1
) -> tuple[Work, ...]:
    """What ``runtime`` executes for one row of a table.

    ``FormatError`` if there is no such ONNX file, runtime or precision.
    """
    check_runtime(runtime)
    if precision not in BYTES:
        raise FormatError(f"unknown precision {precision!r}: there are {', '.join(BYTES)}")
    try:
        if not network.is_file():
            raise FormatError(f"{network} does not exist; name an ONNX file")
        model = onnx.load(str(network), load_external_data=False)
    except FormatError:
        raise
    except Exception as error:  # protobuf raises its own kind, which differs by backend
        raise FormatError(f"{network} is not an ONNX file ({error}); export it anew") from error
    if not model.graph.node or not model.opset_import:
        raise FormatError(f"{network} is an ONNX file without a network; export it anew")
    # int8 is what stands between the network's own Q/DQ pairs.
    base = "fp32" if precision == "int8" else precision
    kernels = graph.read(model, runtime=runtime, precision=base, batch=batch)
    return tuple(graph.work(kernel) for kernel in kernels)


def read_works(
    rows: Sequence[TableRow], *, table: Path, runtime: str, progress: Progress
) -> tuple[tuple[Work, ...], ...]:
    """The kernels of each row; a graph that several rows share is read once.

    ``progress`` is called with the rows done and their number. Errors name the table's line.
    """
    check_runtime(runtime)
    read: dict[tuple[Path, str, int], tuple[Work, ...]] = {}
    for done, row in enumerate(rows):
        progress(done, len(rows))
        if row.runtime in RUNTIMES and row.runtime != runtime:
            raise FormatError(
                f"{table.name}, line {row.line}: measured with {row.runtime}, not {runtime}; keep "
                "one table for each runtime"
            )
        key = (row.network, row.precision, row.batch)
        if key not in read:
            try:
                read[key] = works_of_row(
                    row.network, runtime=runtime, precision=row.precision, batch=row.batch
                )
            except FormatError as error:
                raise FormatError(f"{table.name}, line {row.line}: {error}") from error
            except LatencyError as error:
                raise UnsupportedGraph(
                    f"{table.name}, line {row.line}: {row.network.name}: {error}"
                ) from error
    progress(len(rows), len(rows))
    return tuple(read[row.network, row.precision, row.batch] for row in rows)


def items(
    table: Path, *, profile: BoardProfile, runtime: str, progress: Progress
) -> tuple[Item, ...]:
    """The measured networks of a table, with their kernels and the clocks they were measured at.

    A row without a family is a family of its own. ``FormatError`` and ``PowerModeNotFound`` name
    what the table has that the profile has not.
    """
    rows = validation.read_table(table)
    for row in rows:
        if row.precision not in profile.precisions:
            raise FormatError(
                f"{table.name}, line {row.line}: the profile {profile.name} has no precision "
                f"{row.precision!r}, only {', '.join(profile.precisions)}"
            )
    scales = [profile.scales(row.power_mode) for row in rows]
    works = read_works(rows, table=table, runtime=runtime, progress=progress)
    return tuple(
        Item(
            name=row.network.stem,
            works=kernels,
            measured_s=row.latency_s or math.nan,
            family=row.family or row.network.stem,
            precision=row.precision,
            batch=row.batch,
            power_mode=row.power_mode,
            scales=scale,
        )
        for row, kernels, scale in zip(rows, works, scales, strict=True)
    )


def split(measured: Sequence[Item], *, count: int | None, seed: int) -> Fold:
    """At least ``count`` rows to calibrate on, drawn by network, and the rows of all others.

    A network's rows (batches, precisions, power modes) stay together: a prediction is of a network
    that calibration never saw. None is half of the rows, and at most 50. ``FormatError`` if either
    side would be too small.
    """
    wanted = min(50, len(measured) // 2) if count is None else count
    names = sorted({item.name for item in measured})
    chosen: set[str] = set()
    taken = 0
    for index in np.random.default_rng(seed).permutation(len(names)):
        if taken >= wanted:
            break
        chosen.add(names[index])
        taken += sum(item.name == names[index] for item in measured)
    fit = tuple(item for item in measured if item.name in chosen)
    rest = tuple(item for item in measured if item.name not in chosen)
    if len(fit) < MIN_ROWS or not rest:
        raise FormatError(
            f"too few rows: {len(measured)} of {len(names)} networks, of which {len(fit)} would be "
            f"calibrated on and {len(rest)} predicted; at least {MIN_ROWS} and one are needed, so "
            "measure more networks, or choose another --split"
        )
    return Fold(f"{len(fit)} of {len(measured)} rows", fit, rest)


def fold_out(measured: Sequence[Item], *, key: str) -> tuple[Fold, ...]:
    """One fold for each family, network or power mode (``key``), which is predicted from the rest.

    ``FormatError`` for another key, where there is only one, or where too few rows would be left.
    """
    if key not in LEAVE_OUT:
        raise FormatError(f"cannot leave out {key!r}: there are {', '.join(LEAVE_OUT)}")

    def group(item: Item) -> str:
        return {"family": item.family, "network": item.name}.get(key) or item.power_mode or ""

    folds = []
    for name in sorted({group(item) for item in measured}):
        fit = tuple(item for item in measured if group(item) != name)
        rest = tuple(item for item in measured if group(item) == name)
        if len(fit) < MIN_ROWS:
            raise FormatError(
                f"too few rows: without the {key.replace('_', ' ')} {name!r} only {len(fit)} of "
                f"{len(measured)} are left to calibrate on, and at least {MIN_ROWS} are needed"
            )
        folds.append(Fold(name, fit, rest, unlike=key == "family"))
    return tuple(folds)


def calibrate(
    measured: Sequence[Item], *, profile: BoardProfile, runtime: str, unlike: bool = False
) -> LatencyModel:
    """A latency model fitted to whole networks, at the profile's reference clocks.

    ``FormatError`` if there are too few rows.
    """
    if len(measured) < MIN_ROWS:
        raise FormatError(
            f"too few rows to calibrate on: {len(measured)}, and at least {MIN_ROWS} are needed"
        )
    samples = [NetworkSample(i.works, i.measured_s, i.family, i.scales) for i in measured]
    return calibration.fit([], samples, profile=profile, runtime=runtime, unlike=unlike)


def validate(
    folds: Sequence[Fold],
    *,
    profile: BoardProfile,
    runtime: str,
    coverage: float,
    progress: Progress,
) -> validation.Report:
    """Each fold's rest, predicted by a model that was calibrated on its other rows."""
    return validation.summarise(
        [row for rows in _predicted(folds, profile, runtime, coverage, progress) for row in rows],
        coverage=coverage,
    )


def _predicted(
    folds: Sequence[Fold], profile: BoardProfile, runtime: str, coverage: float, progress: Progress
) -> Iterator[list[NetworkError]]:
    for done, fold in enumerate(folds):
        progress(done, len(folds))
        model = calibrate(fold.fit, profile=profile, runtime=runtime, unlike=fold.unlike)
        yield [validation.predict_item(model, item, coverage=coverage) for item in fold.rest]
    progress(len(folds), len(folds))


def predict(
    model: LatencyModel, table: Path, *, coverage: float, progress: Progress
) -> tuple[Prediction, ...]:
    """Every row of ``table`` predicted by ``model``, in the row's power mode.

    ``latency_ms`` may be missing. ``FormatError`` names what the model cannot predict.
    """
    rows = validation.read_table(table, measured=False)
    for row in rows:
        try:
            check_precision(row.precision, model)
        except FormatError as error:
            raise FormatError(f"{table.name}, line {row.line}: {error}") from error
    models = {mode: model.at(model.profile.scales(mode)) for mode in {r.power_mode for r in rows}}
    works = read_works(rows, table=table, runtime=model.runtime, progress=progress)
    found = []
    for row, kernels in zip(rows, works, strict=True):
        there = models[row.power_mode]
        low, high = there.interval(kernels, coverage)
        found.append(
            Prediction(
                row=row,
                predicted_s=there.predict(kernels),
                low_s=low,
                high_s=high,
                unsupported=there.unsupported(kernels),
            )
        )
    return tuple(found)


def predictions_csv(predictions: Sequence[Prediction], *, table: Path) -> str:
    """The predictions as CSV, in the table's order, networks named as the table names them.

    Columns: ``network``, ``precision``, ``batch``, ``predicted_ms``, ``lower_ms``, ``upper_ms``,
    ``measured_ms`` (empty if unknown), ``flagged`` (kinds that were never measured), and
    ``power_mode`` where the table has it.
    """
    modes = any(p.row.power_mode is not None for p in predictions)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["network", "precision", "batch", "predicted_ms", "lower_ms", "upper_ms", "measured_ms"]
        + ["flagged"]
        + ["power_mode"] * modes
    )
    for item in predictions:
        row = item.row
        numbers = [item.predicted_s, item.low_s, item.high_s, row.latency_s]
        writer.writerow(
            [row.network.relative_to(table.parent) if _below(row, table) else row.network]
            + [row.precision, row.batch]
            + ["" if seconds is None else f"{seconds * 1e3:.6g}" for seconds in numbers]
            + ["; ".join(" ".join(group) for group in item.unsupported)]
            + [row.power_mode or ""] * modes
        )
    return out.getvalue()


def _below(row: TableRow, table: Path) -> bool:
    return row.network.is_relative_to(table.parent)
