"""How well scores rank quantization policies by their true loss, on real networks.

    python -m tests.benchmarks.correlation --images ../shared/images [--only resnet20]
        [--policies 60] [--dynamic 30] [--cache FILE.jsonl] [--json] [--cost] [--ranking]

A policy gives every layer a number of weight bits out of 2, 3, 4, 5, 6, 8; activations have eight.
Half of the policies are drawn freely, half near 4, 5 or 6 bits, so that their losses are moderate.
The true loss is what the fake-quantized network (batch norm folded) loses on the test images: in
cross-entropy, and in KL divergence from fp32, which the labels' chance does not touch; and in
cross-entropy with batch norm re-estimated on calibration images, as it is and anchored to the
statistics of training. *Moderate* are policies
with at most twice fp32's cross-entropy. Scores know the calibration images alone. The *ceiling* is
what a perfect score would reach, from how well the losses on two halves of the test images agree.

``--cost`` compares the time of one pass for 24 options a group with a plain gradient pass;
``--ranking`` times the ranking of 100 policies by Dynamic BN with two threads.

What re-estimated statistics make of a policy on the test images takes three times as long as its
true loss, and is found for the first ``--dynamic`` policies; what Dynamic BN predicts from the
calibration images, for all. Results are appended to ``--cache``; a later run goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rich.table
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.groups import find_groups
from harness.networks import keep_freed_memory
from harness.records import Group, Option
from harness.sensitivity.correlation import FEWEST, correlate, spearman
from harness.sensitivity.curvature import score
from harness.sensitivity.dynamic_bn import Predictor
from tests.benchmarks.compression_networks import Absent, Subject, subject
from tests.benchmarks.policies import (
    BITS,
    HOW,
    TRIED_ON,
    Table,
    Truth,
    policies,
    precision,
    score_makers,
    together,
)

NETWORKS = ("resnet20", "resnet56")
TRUTHS = (
    "loss",
    "divergence",
    "loss, re-estimated batch norm",
    "loss, anchored batch norm",
)
# The one score of a policy that is no sum over its layers.
TOGETHER = "Fisher, label-free, around 4 bits, cross terms"
CALIBRATION = tuple(
    f"calibration {what}{how}" for what in ("loss", "divergence", "errors") for how in HOW
)


class Cache:
    """Records by their key in a JSON-lines file, or in memory where there is none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.known = {record["key"]: record["value"] for record in map(json.loads, lines)}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"key": key, "value": self.known[key]}) + "\n")
        return self.known[key]


# --- rows --------------------------------------------------------------------------------------


def rows(
    images: Path,
    *,
    only: Iterable[str] = NETWORKS,
    count: int = 60,
    dynamic: int = 30,
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Every score's correlations with every true loss, all policies and the moderate ones.

    Of ``count`` policies the first ``dynamic`` are also judged with batch norm re-estimated.
    """
    known = Cache(cache)
    return [row for item in subjects(only, images) for row in rows_of(item, count, dynamic, known)]


def rows_of(item: Subject, count: int, dynamic: int, cache: Cache) -> list[dict[str, Any]]:
    truth = Truth(item)
    asked = policies(len(truth.layers), count)
    results: list[dict[str, Any]] = [{} for _ in asked]
    for what, made, few in (
        ("policy", truth, count),
        ("predicted", truth.predicted, count),
        ("re-estimated", truth.reestimated, dynamic),
    ):
        for index, policy in enumerate(asked[:few]):
            key = f"{item.name} {what} {'-'.join(map(str, policy))}"
            results[index] |= cache.get(key, partial(made, policy))
            say(f"{item.name}: {what} {index + 1} of {few}, loss {results[index]['loss']:.3f}")
    scores = {
        name: cache.get(f"{item.name} score {name}", make)
        for name, make in score_makers(item).items()
    }
    sums = cache.get(f"{item.name} {TOGETHER} {count}", partial(together, item, asked))
    for result, value in zip(results, sums, strict=True):
        result[TOGETHER] = value
    return correlations(item.name, truth.layers, scores, results, truth.fp32)


def correlations(
    network: str,
    layers: Sequence[str],
    scores: Mapping[str, Table],
    results: Sequence[Mapping[str, Any]],
    fp32: float,
) -> list[dict[str, Any]]:
    columns = {
        name: [
            sum(table[layer][BITS.index(b)] for layer, b in zip(layers, r["bits"], strict=True))
            for r in results
        ]
        for name, table in scores.items()
    }
    found_alone = (TOGETHER, *CALIBRATION)
    columns |= {name: [result.get(name) for result in results] for name in found_alone}
    found = []
    for chosen in ("all", "moderate"):
        places = [i for i, r in enumerate(results) if chosen == "all" or r["loss"] <= fp32]
        head = {"task": "correlation-quant", "network": network, "policies": chosen}
        part = {name: [values[i] for i in places] for name, values in columns.items()}
        for row in correlated(head, part, TRUTHS, [results[i] for i in places]):
            judged = [i for i in places if columns[row["score"]][i] is not None]
            row["ceiling"] = (
                ceiling([results[i] for i in judged]) if row["truth"] == "loss" else None
            )
            found.append(row)
    return found


def correlated(
    head: Mapping[str, Any],
    columns: Mapping[str, Sequence[float | None]],
    truths: Iterable[str],
    results: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A row for every truth and column of which enough policies have both, not all the same."""
    found = []
    for truth, (name, values) in itertools.product(truths, columns.items()):
        pairs = [
            (x, result[truth])
            for x, result in zip(values, results, strict=True)
            if x is not None and truth in result
        ]
        if len(pairs) < FEWEST or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
            continue
        row: dict[str, Any] = {**head, "truth": truth, "score": name, "n": len(pairs)}
        for measure, result in correlate(*zip(*pairs, strict=True)).items():
            row[measure] = result.value
            row[f"{measure}_low"] = result.interval.low
            row[f"{measure}_high"] = result.interval.high
        found.append(row)
    return found


def ceiling(results: Sequence[Mapping[str, Any]]) -> float:
    """The correlation of a perfect score with losses on so few images.

    Two halves agree by r; all images repeat themselves by 2 r / (1 + r) (Spearman and Brown, 1910),
    and the error-free value correlates with the observed one by the root of that.
    """
    splits = zip(*(result["halves"] for result in results), strict=True)
    agreed = statistics.mean(spearman(*zip(*split, strict=True)) for split in splits)
    return math.sqrt(2 * agreed / (1 + agreed))


# --- cost --------------------------------------------------------------------------------------


def cost(images: Path, only: Iterable[str], count: int = 512) -> list[dict[str, Any]]:
    """CPU time of one pass for 24 options a group over that of a plain gradient pass, interleaved.

    CPU time of one thread, not wall time: what else the computer does stays out of the ratio.
    """
    return [cost_of(item, count) for item in subjects(only, images)]


def cost_of(item: Subject, count: int) -> dict[str, Any]:
    part, labels = item.calibration[:count], item.calibration_labels[:count]
    groups = find_groups(item.network, part[:1])
    options = {group.name: options_24(group) for group in groups}
    seconds: dict[str, list[float]] = {"pass": [], "plain": []}
    for _ in range(3):
        for what, run in (
            ("plain", lambda: plain_pass(item.network, part, labels)),
            ("pass", lambda: score(item.network, groups, options, part, labels)),
        ):
            start = time.process_time()
            run()
            seconds[what].append(time.process_time() - start)
    return {
        "network": item.name,
        "images": len(part),
        "options": sum(map(len, options.values())),
        "groups": len(groups),
        "plain_s": min(seconds["plain"]),
        "pass_s": min(seconds["pass"]),
        "ratio": min(seconds["pass"]) / min(seconds["plain"]),
    }


def ranking(images: Path, only: Iterable[str], threads: int = 2) -> list[dict[str, Any]]:
    """CPU and wall seconds in which 100 policies are ranked by Dynamic BN."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [ranking_of(item) | {"threads": threads} for item in subjects(only, images)]
    finally:
        torch.set_num_threads(before)


def ranking_of(item: Subject) -> dict[str, Any]:
    """The ranker's own start included."""
    cpu, wall = time.process_time(), time.perf_counter()
    predictor = Predictor(item.network, item.calibration[:TRIED_ON])
    asked = [
        {name: precision(b) for name, b in zip(predictor.layers, policy, strict=True)}
        for policy in policies(len(predictor.layers), 100)
    ]
    predictor.rank(asked, best=10)
    return {
        "network": item.name,
        "policies": len(asked),
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
    }


def options_24(group: Group) -> tuple[Option, ...]:
    """Three widths times eight precisions; eight where nothing can be pruned."""
    words = ("fp32", *(precision(b) for b in range(2, 9)))
    widths = {group.channels}
    if group.prunable:
        widths |= {math.ceil(group.channels * share) for share in (0.5, 0.75)}
    return tuple(Option(channels=w, precision=p) for w in sorted(widths) for p in words)


def plain_pass(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 64) -> None:
    """Forward and backward to all parameters of the network as it was given."""
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        loss = functional.cross_entropy(network(images[part]), labels[part])
        loss.backward()  # type: ignore[no-untyped-call]
    network.zero_grad()


def subjects(only: Iterable[str], images: Path) -> Iterator[Subject]:
    """The networks that are here; of the others it is said what they lack."""
    for name in only:
        try:
            item = subject(name, images)
        except Absent as error:
            say(f"{name} is skipped: {error}")
        else:
            yield item


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--images", type=Path, default=Path("../shared/images"))
    parser.add_argument("--only", nargs="+", default=list(NETWORKS))
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--dynamic", type=int, default=30)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--ranking", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if arguments.cost:
        found = cost(arguments.images, arguments.only)
    elif arguments.ranking:
        found = ranking(arguments.images, arguments.only)
    else:
        found = rows(
            arguments.images,
            only=arguments.only,
            count=arguments.policies,
            dynamic=arguments.dynamic,
            cache=arguments.cache,
        )
    if arguments.json:
        print(json.dumps(found, indent=1))
    elif found:
        show(found)


def show(found: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name in found[0] if not name.endswith(("_low", "_high")) and name != "task"]
    table = rich.table.Table(*names)
    for row in found:
        table.add_row(*(cell(row, name) for name in names))
    Console(width=160).print(table)


def cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if f"{name}_low" in row:
        return f"{value:.3f} ({row[f'{name}_low']:.2f} .. {row[f'{name}_high']:.2f})"
    return f"{value:.3f}"


if __name__ == "__main__":
    main()
