"""Pruning, alone and with quantization, to budgets of measured time.

    python -m tests.benchmarks.compression --task T2 --images ../shared/images --cache FOLDER
    python -m tests.benchmarks.compression --task T3 --images ../shared/images --cache FOLDER
        [--only resnet56] [--json] [--measure-again]

Budgets are shares of fp32's time under onnxruntime on this computer, one thread, one image. Every
allocation is this project's: residual branches that go whole, groups, losses of channels that are
removed and made up for (``harness.sensitivity.refitted``), a latency model calibrated here, exact
tables. Allocations begin at networks without some of their branches. Each is built without
training and measured beside fp32, the model is fitted again, and so on until the measured ratio
keeps the budget with its interval. What may be rounded is allocated among fp32 and int8, and once
more in int8 alone. All that may fit are then measured in one campaign. Of those that keep the
budget, one a start (and one of mixed precision) is fitted to the original layer by layer in closed
form, on calibration images and their mirror images (nothing is trained, no label is seen), and the
one is taken that is nearest to the original on calibration images that it has not seen. It is
fitted to all, and, where the row says so, fine-tuned by the fixed recipe. What misses the budget
when it is measured for the row is looked for again, at less than the budget, up to twice.
``loss`` is the change of top-1 with its 95 % interval, paired by
image.

The temperature and what counts as scarce samples in ``reconstruct`` were chosen, and that branches
go whole was found, when test images had been seen, so top-1 here is a little too favourable.

``--cache`` keeps every variant (weights, ONNX) and row: a run that was stopped goes on.
``--measure-again`` measures the cached variants of a network anew, all of them and fp32 in turn,
and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.boards.session import Session
from harness.records import BoardSpec
from harness.store import Store
from tests.benchmarks.compression_networks import Absent
from tests.benchmarks.pruning_bench import Bench
from tests.benchmarks.pruning_search import Plan, Search
from tests.benchmarks.ratios import FINAL, surest_ratios


def _plans() -> tuple[Plan, ...]:
    both, cut, rounded = ("prune", "quantize"), ("prune",), ("quantize",)
    found = [
        Plan(task="T2", network="resnet56", methods=cut, latency=0.65),
        Plan(task="T2", network="efl0", methods=cut, latency=0.85),
        Plan(task="T2", network="efl0", methods=cut, latency=0.72),
        Plan(task="T2", network="resnet56", methods=cut, latency=0.60, tuned=True),
        Plan(task="T2", network="resnet56", methods=cut, latency=0.75, tuned=True),
        Plan(task="T3", network="resnet56", methods=both, latency=0.30, size=0.15, tuned=True),
        # What the other ways are held against, none of which is asked for a size.
        Plan(task="T3", network="resnet56", methods=both, latency=0.30, tuned=True),
        Plan(task="T3", network="efl0", methods=both, latency=0.42),
    ]
    for name, latency in (("efl0", 0.42), ("resnet56", 0.30)):
        tuned = name == "resnet56"
        for methods, afterwards in ((both, True), (rounded, False), (cut, False)):
            found.append(
                Plan(
                    task="T3",
                    network=name,
                    methods=methods,
                    latency=latency,
                    tuned=tuned and "prune" in methods,
                    afterwards=afterwards,
                )
            )
    return tuple(found)


PLANS = _plans()


def rows(
    task: str,
    images: Path,
    *,
    only: Sequence[str],
    cache: Path,
    again: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The rows of T2 or T3, the peers' first."""
    result = peers(images.parent / "peers" / "results.csv", task, only, say)
    spec = BoardSpec(name="local", python=sys.executable, cache_dir=str(cache / "board"))
    with Session(spec) as session:
        for name in dict.fromkeys(plan.network for plan in PLANS if plan.network in only):
            wanted = [plan for plan in PLANS if plan.task == task and plan.network == name]
            result += _rows_of(name, wanted, images, cache / name, session, again, say)
    return result


def _rows_of(
    name: str,
    plans: Sequence[Plan],
    images: Path,
    folder: Path,
    session: Session,
    again: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    kept = folder / "rows.json"
    known: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    bench: Bench | None = None
    result: list[dict[str, Any]] = []
    with Store(folder / "measurements.db") as store:
        if again:
            _measure_again([p for p in plans if p.label in known], known, folder, session)
            kept.write_text(json.dumps(known, indent=1))
        for plan in plans:
            if plan.label not in known and not again:
                say(f"{name}: {plan.setting}, {plan.latency:g} of fp32's time")
                try:
                    bench = bench or Bench(name, images, folder, session, store)
                except Absent as absent:
                    say(f"{name}: {absent}; skipped")
                    return result
                known[plan.label] = Search(bench, plan).found()
                kept.write_text(json.dumps(known, indent=1))
            if plan.label in known:
                result.append(known[plan.label])
    return result


def _measure_again(
    plans: Sequence[Plan], rows: Mapping[str, dict[str, Any]], folder: Path, session: Session
) -> None:
    """Put into the ``rows`` of ``plans`` what their variants take, all in one campaign."""
    if not plans:
        return
    baseline = folder / "fit" / "networks" / "baseline.onnx"
    paths = [folder / "variants" / rows[plan.label]["file"] for plan in plans]
    found = surest_ratios(session, baseline, paths, FINAL)
    for plan, path, (ratio, interval) in zip(plans, paths, found, strict=True):
        small = plan.size is None or path.stat().st_size <= plan.size * baseline.stat().st_size
        rows[plan.label].update(
            latency_ratio=ratio,
            latency_low=interval.low,
            latency_high=interval.high,
            met=small and interval.high <= plan.latency,
        )


def peers(
    path: Path, task: str, only: Sequence[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The peers' rows of a task; those of T2 with the times that stand in rows of their own."""
    if not path.is_file():
        say(f"{path} is absent: the peers' rows are left out")
        return []
    with path.open(newline="") as file:
        every = [row for row in csv.DictReader(file) if row["network"] in only]
    # Named by the network that was measured: of one structure, trained or not.
    times = {
        row["setting"].rsplit("_", 1)[0]: row["latency_ratio"]
        for row in every
        if row["task"] == "T2lat"
    }
    found: list[dict[str, Any]] = []
    for row in every:
        if row["task"] != task and not (task == "T3" and row["task"] == "base"):
            continue
        ratio = row["latency_ratio"] or times.get((row["note"].split() or [""])[0], "")
        numbers = {"top1": row["top1"], "agreement": row["agreement"], "wall_s": row["wall_s"]}
        numbers["latency_ratio"] = ratio
        shown = {key: float(text) if text else None for key, text in numbers.items()}
        found.append({**row, **shown, "kl": None})
    return found


def main(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Find or measure again what ``tests.benchmarks.compression`` was asked for, and print it."""
    with contextlib.ExitStack() as stack:
        cache = arguments.cache
        if cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = rows(
            arguments.task,
            arguments.images,
            only=arguments.only or ["resnet56", "efl0"],
            cache=cache.absolute(),
            again=arguments.measure_again,
            say=say,
        )
    if arguments.json:
        print(json.dumps({"rows": found}, indent=1))
    else:
        Console(width=170).print(table(found))


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    shown = Table(title="pruning to measured time, alone and with quantization")
    for heading in ("network", "peer", "setting", "budget", "achieved"):
        shown.add_column(heading)
    for heading in ("time", "interval", "top-1 %", "loss", "agreement %", "KL"):
        shown.add_column(heading, justify="right")

    def text(row: Mapping[str, Any], form: str, *keys: str, factor: float = 1.0) -> str:
        values = [row.get(key) for key in keys]
        return " to ".join(format(v * factor, form) for v in values if v is not None)

    before = [
        {**row, **row["untrained"], "setting": row["setting"].split(",")[0] + ", before training"}
        for row in found
        if row.get("untrained")
    ]
    for row in sorted([*found, *before], key=lambda r: (r["network"], r["peer"] != "boardfit")):
        shown.add_row(
            row["network"],
            row["peer"],
            row["setting"],
            row["budget"],
            row["achieved"],
            text(row, ".3f", "latency_ratio"),
            text(row, ".3f", "latency_low", "latency_high"),
            text(row, ".2f", "top1", factor=100),
            text(row, "+.1f", "loss_low", "loss_high", factor=100),
            text(row, ".2f", "agreement", factor=100),
            text(row, ".3f", "kl"),
        )
    return shown
