"""Predict published measurements of real Jetson boards, calibrated on a part of them.

    python -m tests.benchmarks.latency_models --data ../shared/measured [--json] [--out FOLDER]

Each protocol splits a data set, calibrates a latency model on one part and predicts the other;
identical graphs or layers stay on one side. The same code and the same defaults for every board.
Tables of our own under ``data/measured`` (``own``) take part as well.
Prints ours beside the datasheet roofline, the best simple calibrated roofline and the target, and
writes every prediction to ``predictions.csv`` and a figure per data set to ``figures.html``.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from latency_models import calibration
from latency_models.calibration import LatencyModel, NetworkSample
from tests.benchmarks import own, published
from tests.benchmarks.protocols import PROTOCOLS, Protocol
from tests.benchmarks.published import Item, Published

COVERAGE = 0.9


class Row(NamedTuple):
    """One prediction, in seconds."""

    protocol: str
    seed: int
    item: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float
    datasheet_s: float


def every_protocol() -> tuple[Protocol, ...]:
    """Those of the published tables, and of our own where there are any."""
    return (*PROTOCOLS, *own.protocols(own.FOLDER))


@functools.cache
def load(data: Path, name: str) -> Published:
    """The data set called ``name`` under the folder ``data``."""
    nano = data / "jetson_nano"
    if name == "torchvision_trt_fp16":
        return published.networks(nano / f"{name}.csv", profile="jetson-nano", runtime="tensorrt")
    if name == "timm_ort_fp32_gpu":
        path = nano / f"{name}.csv"
        return published.networks(path, profile="jetson-nano", runtime="onnxruntime-cuda")
    if name == "timm_ort_fp32_cpu":
        path = nano / f"{name}.csv"
        return published.networks(path, profile="jetson-nano-cpu", runtime="onnxruntime-cpu-arm")
    if name == "nasbench201_fp32":
        # Measured with TensorFlow, which folds and fuses like onnxruntime here.
        path = nano / "nasbench201.csv"
        return published.nasbench(path, precision="fp32", runtime="onnxruntime-cuda")
    if name == "nasbench201_fp16":
        path = nano / "nasbench201.csv"
        return published.nasbench(path, precision="fp16", runtime="tensorrt-6")
    if name == "tx2":
        return published.tx2(data / "jetson_tx2" / "cnv_pruned_trt.csv")
    if name in {table.key for table in own.found(own.FOLDER)}:
        return own.load(name, own.FOLDER)
    if name == "orin":
        return published.orin(data / "jetson_orin" / "mobilenet_v2_trt_per_layer.csv")
    return published.xavier(data / "jetson_agx_xavier" / "googlenet_trt_per_layer.csv")


def fit(data: Published, indices: Sequence[int], *, unlike: bool = False) -> LatencyModel:
    """The model calibrated on these items, for items of other groups if ``unlike``."""
    chosen = [data.items[index] for index in indices]
    kernels = [(item.works[0], item.seconds) for item in chosen] if data.kernels else []
    networks = [NetworkSample(i.works, i.seconds, i.group, i.scales) for i in chosen]
    return calibration.fit(
        kernels,
        [] if data.kernels else networks,
        profile=data.profile,
        runtime=data.runtime,
        unlike=unlike,
    )


def predict(model: LatencyModel, data: Published, item: Item) -> tuple[float, ...]:
    """Seconds, and the interval, of one item."""
    if data.kernels:
        return float(model.predict_kernels(item.works)[0]), *model.kernel_interval(
            item.works[0], COVERAGE
        )
    there = model.at(item.scales)
    return there.predict(item.works), *there.interval(item.works, COVERAGE)


def datasheet_s(item: Item, data: Published) -> float:
    """The roofline of the datasheet: no parameter is fitted."""
    board = data.profile
    fp32 = board.peak_flops["fp32"].value
    peaks = {precision: peak.value for precision, peak in board.peak_flops.items()}
    bandwidth = board.bandwidth_bytes_per_s.value
    return sum(
        max(
            2 * work.macs / peaks.get(work.precision, fp32) / item.scales.gpu,
            (work.bytes_in + work.bytes_out + work.bytes_weights) / bandwidth / item.scales.memory,
        )
        for work in item.works
    )


def run(data_folder: Path, key: str, seed: int) -> list[Row]:
    """All predictions of one protocol with one seed."""
    protocol = next(p for p in every_protocol() if p.key == key)
    data = load(data_folder, protocol.data)
    rows = []
    for fitted, tested in protocol.splits(data, seed):
        judged = [index for index in tested if protocol.judged(data.items[index])]
        if not judged:
            continue
        model = fit(data, fitted, unlike=protocol.unlike)
        for item in (data.items[index] for index in judged):
            seconds = predict(model, data, item)
            rows.append(Row(key, seed, item.name, item.seconds, *seconds, datasheet_s(item, data)))
    return rows


def score(rows: Sequence[Row]) -> dict[str, float]:
    """The figures of one protocol, each the mean over its seeds; shares and errors in percent."""
    by_seed = [[row for row in rows if row.seed == seed] for seed in sorted({r.seed for r in rows})]
    scored = [_score(rows) for rows in by_seed]
    return {key: float(np.mean([each[key] for each in scored])) for key in scored[0]}


def _score(rows: Sequence[Row]) -> dict[str, float]:
    measured = np.array([row.measured_s for row in rows])
    predicted = np.array([row.predicted_s for row in rows])
    low, high = np.array([row.low_s for row in rows]), np.array([row.high_s for row in rows])
    errors = np.abs(predicted / measured - 1)
    sheet = np.abs(np.array([row.datasheet_s for row in rows]) / measured - 1)
    return {
        "mape": 100 * float(errors.mean()),
        "median_error": 100 * float(np.median(errors)),
        "within10": 100 * float((errors <= 0.1).mean()),
        "spearman": float(stats.spearmanr(predicted, measured).statistic),
        "n": len(rows),
        "coverage90": 100 * float(((low <= measured) & (measured <= high)).mean()),
        "median_width": 100 * float(np.median((high - low) / predicted)),
        "datasheet_mape": 100 * float(sheet.mean()),
    }


def fit_seconds(data_folder: Path) -> float:
    """Seconds to calibrate on all networks of the largest table, in one process."""
    data = load(data_folder, "timm_ort_fp32_gpu")
    started = time.perf_counter()
    fit(data, range(len(data.items)))
    return time.perf_counter() - started


def figures(rows: Sequence[Row]) -> str:
    """A page with predicted against measured for each protocol."""
    parts = []
    for protocol in every_protocol():
        chosen = [row for row in rows if row.protocol == protocol.key and row.seed == 0]
        if not chosen:
            continue
        measured = [row.measured_s * 1e3 for row in chosen]
        ends = [min(measured) * 0.8, max(measured) * 1.25]
        figure = go.Figure()
        figure.add_scatter(
            x=measured,
            y=[row.predicted_s * 1e3 for row in chosen],
            error_y={
                "type": "data",
                "array": [(row.high_s - row.predicted_s) * 1e3 for row in chosen],
                "arrayminus": [(row.predicted_s - row.low_s) * 1e3 for row in chosen],
                "thickness": 0.7,
                "width": 0,
            },
            mode="markers",
            text=[row.item for row in chosen],
            name="predicted, 90 % interval",
        )
        figure.add_scatter(x=ends, y=ends, mode="lines", name="equal")
        title = f"{protocol.key}: {len(chosen)} predictions, seed 0"
        figure.update_layout(title=title, width=760, height=560, template="plotly_white")
        figure.update_xaxes(type="log", title="measured, ms")
        figure.update_yaxes(type="log", title="predicted, ms")
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
    return "<!doctype html><meta charset=utf-8>" + "\n".join(parts)


def write_predictions(rows: Sequence[Row], path: Path) -> None:
    """``predictions.csv``, in milliseconds: anyone can score it."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["protocol", "seed", "item", "measured_ms", "predicted", "lower", "upper"])
        for row in rows:
            numbers = (row.measured_s, row.predicted_s, row.low_s, row.high_s)
            texts = [f"{seconds * 1e3:.6g}" for seconds in numbers]
            writer.writerow([row.protocol, row.seed, row.item, *texts])


def table(scores: dict[str, dict[str, float]], seconds: float) -> Table:
    """Ours, the datasheet, the baseline and the target, a protocol a line."""
    result = Table(title="Predictions of published measurements (errors and shares in percent)")
    columns = "protocol n MAPE median within10 Spearman coverage width datasheet baseline target"
    for column in columns.split():
        result.add_column(column, justify="left" if column == "protocol" else "right")
    for protocol in every_protocol():
        if protocol.key not in scores:
            continue
        s = scores[protocol.key]
        result.add_row(
            protocol.key,
            f"{s['n']:.0f}",
            f"{s['mape']:.1f}",
            f"{s['median_error']:.1f}",
            f"{s['within10']:.1f}",
            f"{s['spearman']:.3f}",
            f"{s['coverage90']:.0f}",
            f"{s['median_width']:.0f}",
            f"{s['datasheet_mape']:.0f}",
            protocol.baseline,
            protocol.target,
        )
    result.caption = f"fitting 123 networks takes {seconds:.1f} s (target 5 s)"
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the protocols; 0, or 2 without the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the measurements")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, default=Path("runs/latency_models"))
    parser.add_argument("--only", nargs="*", help="protocols to run (all)")
    options = parser.parse_args(arguments)
    if not (options.data / "jetson_nano").is_dir():
        print(f"{options.data} has no folder jetson_nano: give --data", file=sys.stderr)
        return 2
    started = time.perf_counter()
    wanted = [p for p in every_protocol() if not options.only or p.key in options.only]
    seconds = fit_seconds(options.data)
    jobs = [(p.key, seed) for p in wanted for seed in p.seeds]
    rows: list[Row] = []
    console = Console(stderr=True)
    # Two processes of one thread each: numpy's own threads would only wait for each other.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    workers = ProcessPoolExecutor(max_workers=2, mp_context=multiprocessing.get_context("spawn"))
    with workers as pool, Progress(console=console) as progress:
        bar = progress.add_task("protocols", total=len(jobs))
        running = [pool.submit(run, options.data, *job) for job in jobs]
        for done in running:
            rows += done.result()
            progress.advance(bar)
    options.out.mkdir(parents=True, exist_ok=True)
    write_predictions(rows, options.out / "predictions.csv")
    (options.out / "figures.html").write_text(figures(rows))
    scores = {p.key: score([r for r in rows if r.protocol == p.key]) for p in wanted}
    if options.json:
        shown: dict[str, object] = dict(scores)
        shown["coverage_90"] = {
            key: {name: s[name] for name in ("coverage90", "median_width", "n")}
            for key, s in scores.items()
        }
        shown["fit_seconds"] = {"seconds": seconds, "networks": 123}
        print(json.dumps(shown, indent=1))
    else:
        Console(width=150).print(table(scores, seconds))
    print(f"predictions and figures in {options.out}", file=sys.stderr)
    print(f"{time.perf_counter() - started:.0f} s in all", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
