"""Quantization without training, beside what existing libraries reach on the same networks.

    python -m tests.benchmarks.compression --task T1 --images ../shared/images [--json]
        [--only resnet20 efl0] [--bits 3 4] [--cache FOLDER]
    python -m tests.benchmarks.compression --task correlation-quant --images ../shared/images
    python -m tests.benchmarks.compression --task correlation-prune --images ../shared/images
        [--json] [--only resnet20] [--cache FOLDER]

T2 and T3, pruning to measured time, alone and with quantization: ``tests.benchmarks.pruning``.

T1: weights of 2 to 8 bits within a budget of average bits, activations of 8 bits (a range a
tensor), every layer included, nothing trained, no label seen: only the calibration images. Rows
are those of ``peers/results.csv`` beside the images, with this project's as peer ``boardfit``, and
the divergence from the exact network (``kl``). The peers' file has no divergence: rows of the peer
``stand-in`` repeat two of its settings with this project's code, and their top-1 can be held
against the file's. ``loss`` is the change of top-1 with its 95 % interval, paired by image. Wall
times are of sensitivity and allocation, on one thread, and compare only within a run. ``--cache``
keeps every row as it is found, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from harness.networks import keep_freed_memory
from tests.benchmarks.compression_networks import NETWORKS, Absent, subject
from tests.benchmarks.quantizing import FULL_MENU, PEERS_MENU, Bench, Quality, logits, quality

BUDGETS = (6, 5, 4, 3)
TASKS = ("T1", "T2", "T3", "correlation-quant", "correlation-prune")
COLUMNS = ("task", "network", "peer", "setting", "budget", "achieved", "top1", "agreement")
COLUMNS += ("latency_ratio", "wall_s", "note")

Method = Literal["compensated", "plain", "reestimated"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One row to be run: whose, by which scores (None: the same bits everywhere), and how."""

    peer: str
    setting: str
    budget: int
    scores: str | None
    menu: tuple[int, ...]
    method: Method


# Peer, setting, scores, menu (None: the budget itself), and the quantizer's method.
SETTINGS: tuple[tuple[str, str, str | None, tuple[int, ...] | None, Method], ...] = (
    ("boardfit", "2 to 8 bits", "ours", FULL_MENU, "compensated"),
    ("boardfit", "{2,4,8} bits", "ours", PEERS_MENU, "compensated"),
    ("stand-in", "(e) Fisher, {2,4,8}, mse+bias corr", "fisher", PEERS_MENU, "plain"),
    ("stand-in", "(a) uniform, mse+bias corr", None, None, "plain"),
    ("boardfit", "uniform", None, None, "compensated"),
    ("boardfit", "uniform, nearest, BN re-estimated", None, None, "reestimated"),
)


def plans(budgets: Sequence[int]) -> Iterator[Plan]:
    """Setting by setting, so that a run that is stopped has each budget of the first ones."""
    for peer, setting, scores, menu, method in SETTINGS:
        for budget in budgets:
            yield Plan(
                peer=peer,
                setting=setting,
                budget=budget,
                scores=scores,
                menu=menu or (budget,),
                method=method,
            )


def run(bench: Bench, plan: Plan) -> dict[str, Any]:
    """One row: the columns of the peers' file, ``kl``, ``loss_low`` and ``loss_high``."""
    seconds = {"wall": 0.0, "cpu": 0.0}
    start, cpu = time.perf_counter(), time.process_time()
    if plan.scores is None:
        bits = dict.fromkeys(bench.layers, plan.budget)
    else:
        scores = bench.scores(plan.scores)
        seconds = {"wall": scores.wall_s, "cpu": scores.cpu_s}
        start, cpu = time.perf_counter(), time.process_time()
        bits = bench.allocate(plan.scores, plan.menu, plan.budget)
    seconds["wall"] += time.perf_counter() - start
    seconds["cpu"] += time.process_time() - cpu
    start, cpu = time.perf_counter(), time.process_time()
    network = getattr(bench, plan.method)(bits)
    rounding = f"{time.perf_counter() - start:.0f} s, cpu {time.process_time() - cpu:.0f} s"
    found = quality(logits(network, bench.subject.test), bench.exact, bench.subject.test_labels)
    counts = {b: list(bits.values()).count(b) for b in sorted(set(bits.values()))}
    note = f"hist {counts}; cpu {seconds['cpu']:.1f} s; rounding {rounding}"
    note += f"; n={len(bench.subject.test)}"
    if plan.peer == "stand-in":
        note = f"a peer's setting run with our code; {note}"
    return row(
        bench.subject.name, plan.peer, plan.setting, plan.budget, bench.average(bits), found,
        seconds["wall"], note,
    )  # fmt: skip


def row(
    network: str,
    peer: str,
    setting: str,
    budget: float | None,
    achieved: float | None,
    found: Quality,
    wall_s: float,
    note: str,
) -> dict[str, Any]:
    return {
        "task": "T1",
        "network": network,
        "peer": peer,
        "setting": setting,
        "budget": budget,
        "achieved": achieved,
        "latency_ratio": None,
        "wall_s": wall_s,
        "note": note,
        **asdict(found),
    }


def quantization(
    images: Path,
    *,
    networks: Sequence[str],
    budgets: Sequence[int],
    cache: Path | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The rows of T1, the peers' first."""
    rows = peers(images.parent / "peers" / "results.csv", "T1", networks, budgets, say)
    for name in networks:
        kept = None if cache is None else cache / f"T1-{name}.jsonl"
        done = [] if kept is None or not kept.is_file() else _lines(kept)
        bench: Bench | None = None
        for plan in plans(budgets):
            found = next((r for r in done if _is(r, plan)), None)
            if found is None:
                try:
                    bench = Bench(subject(name, images), cache) if bench is None else bench
                except Absent as absent:
                    say(f"{name}: {absent}; skipped")
                    break
                say(f"{name}: {plan.peer}, {plan.setting}, {plan.budget} bits")
                found = run(bench, plan)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    with kept.open("a") as file:
                        file.write(json.dumps(found) + "\n")
            rows.append(found)
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _is(found: dict[str, Any], plan: Plan) -> bool:
    return (found["peer"], found["setting"], found["budget"]) == (
        plan.peer,
        plan.setting,
        plan.budget,
    )


def peers(
    path: Path,
    task: str,
    networks: Sequence[str],
    budgets: Sequence[int],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The rows of the peers' file for a task, its numbers as numbers."""
    if not path.is_file():
        say(f"{path} is absent: the peers' rows are left out")
        return []
    with path.open(newline="") as file:
        kept = [r for r in csv.DictReader(file) if r["task"] == task and r["network"] in networks]
    numbers = ("budget", "achieved", "top1", "agreement", "latency_ratio", "wall_s")
    rows = [{**r, **{key: _number(r[key]) for key in numbers}, "kl": None} for r in kept]
    return [r for r in rows if r["budget"] is None or r["budget"] in budgets]


def _number(text: str) -> float | None:
    return float(text) if text else None


def table(rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table(title="quantization without training")
    for heading in ("network", "bits", "peer", "setting"):
        shown.add_column(heading)
    for heading in ("achieved", "top-1 %", "loss", "agreement %", "KL", "wall s"):
        shown.add_column(heading, justify="right")

    def text(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value * factor, form)

    for r in sorted(rows, key=lambda r: (r["network"], -(r["budget"] or 99), r["peer"])):
        low, high = r.get("loss_low"), r.get("loss_high")
        shown.add_row(
            r["network"],
            text(r["budget"], "g"),
            r["peer"],
            r["setting"],
            text(r["achieved"], ".3f"),
            text(r["top1"], ".2f", 100),
            "" if low is None or high is None else f"{low * 100:+.1f} to {high * 100:+.1f}",
            text(r["agreement"], ".2f", 100),
            text(r["kl"], ".4f"),
            text(r["wall_s"], ".1f"),
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--task", choices=TASKS, default="T1")
    parser.add_argument("--images", type=Path, required=True, help="holds cifar10, imagenet_sample")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=NETWORKS)
    parser.add_argument("--bits", nargs="+", type=int, choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--cache", type=Path, help="a folder where rows are kept")
    parser.add_argument(
        "--measure-again", action="store_true", help="T2, T3: time the cached variants anew"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if arguments.task == "correlation-quant":
        from tests.benchmarks import correlation

        print(json.dumps(correlation.rows(arguments.images), indent=1))
        return
    if arguments.task == "correlation-prune":
        from tests.benchmarks import correlation_pruning

        correlation_pruning.report(
            arguments.images, only=arguments.only, folder=arguments.cache, as_json=arguments.json
        )
        return
    if arguments.task in ("T2", "T3"):
        from tests.benchmarks import pruning

        pruning.main(arguments, say)
        return
    rows = quantization(
        arguments.images,
        networks=arguments.only or ["resnet20", "efl0"],
        budgets=arguments.bits,
        cache=arguments.cache,
        say=say,
    )
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))
    else:
        Console(width=150).print(table(rows))


if __name__ == "__main__":
    main()
