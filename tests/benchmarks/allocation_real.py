"""Allocate real networks under millisecond budgets over exact tables, and check the answers.

    python -m tests.benchmarks.allocation_real --data ../shared/measured [--json] [--limit 60]

Groups come from each network's ONNX graph, the Jetson Nano's latency model from measured networks,
the PC's from its datasheet alone. Losses are made up (no weights are at hand), in the shape that
measured ones have. Every answer is priced again by rewriting the network: ``mismatch``.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import BoardfitError
from harness.records import Group, Option
from harness.strategies.predictor import NetworkCosts
from harness.strategies.structure import LARGEST_SCOPE
from harness.strategies.tables import NetworkTables, Sum, network_tables
from latency_models import calibration, graph, profiles
from latency_models.calibration import LatencyModel, NetworkSample
from latency_models.graph import Kernel
from latency_models.operators import Op
from tests.benchmarks import published

DATA = Path(__file__).parents[3] / "shared" / "measured"
NETWORKS = (
    ("resnet18", "graphs_torchvision/resnet18__224.onnx"),
    ("mobilenet_v2", "graphs_torchvision/mobilenet_v2__224.onnx"),
    ("mnasnet_small", "graphs_timm/mnasnet_small__224.onnx"),
    ("efficientnet_es", "graphs_timm/efficientnet_es__224.onnx"),
    ("efficientnet_b0", "graphs_timm/efficientnet_b0__224.onnx"),
)
SHARES = (0.70, 0.50, 0.35)
WIDTHS = 8
# Tangent cuts before a budget is given up as not closed.
_CUTS = 8
# Integer layers pass their layout on far; tables of so many groups are more than a solver can use.
# Narrow ones hold near the allocation that they are made at, and are made again at each answer.
_NARROW = 16
_ANCHORS = 4


def groups_of(kernels: Sequence[Kernel]) -> tuple[Group, ...]:
    """The groups of a network's layers: tied by sums, products and depthwise convolutions.

    Layers are called as their weights. What the network gives out, and what grouped convolutions
    read or write, keeps its width.
    """
    return _Channels(graph.operators(kernels)).groups()


class _Channels:
    """Which layer's channels each tensor holds: a list of layers' indices, in order."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.layers = [op for op in ops if op.kind in ("conv", "gemm") and op.weight]
        self.parent = list(range(len(self.layers)))
        self.fixed: set[int] = set()
        self.read: set[int] = set()
        held: dict[str, tuple[int, ...]] = {}
        index = {op.name: place for place, op in enumerate(self.layers)}
        for op in ops:
            inputs = [held.get(tensor, ()) for tensor in op.inputs]
            found = self._written(op, inputs, index.get(op.name))
            held.update(dict.fromkeys(op.outputs, found))
            if op.exported:
                self.fixed.update(found)

    def _written(
        self, op: Op, inputs: Sequence[tuple[int, ...]], own: int | None
    ) -> tuple[int, ...]:
        if own is not None:
            if op.depthwise and len(inputs[0]) == 1:
                self._tie(inputs[0][0], own)
            elif op.groups > 1:
                self.fixed.update((*inputs[0], own))
            self.read.update(inputs[0])
            return (own,)
        if op.kind == "concat":
            return tuple(layer for part in inputs for layer in part)
        if len(inputs) > 1 and op.kind == "binary":
            if all(len(part) == 1 for part in inputs):
                for part in inputs[1:]:
                    self._tie(inputs[0][0], part[0])
            else:
                self.fixed.update(layer for part in inputs for layer in part)
        return next((part for part in inputs if part), ())

    def _root(self, layer: int) -> int:
        while self.parent[layer] != layer:
            layer = self.parent[layer]
        return layer

    def _tie(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self.parent[second] = first

    def groups(self) -> tuple[Group, ...]:
        members: dict[int, list[int]] = {}
        for layer in range(len(self.layers)):
            members.setdefault(self._root(layer), []).append(layer)
        fixed = {self._root(layer) for layer in self.fixed}
        read = {self._root(layer) for layer in self.read}
        result = []
        for root, own in members.items():
            names = tuple(str(self.layers[i].weight).removesuffix(".weight") for i in own)
            widths = {self.layers[i].out_shapes[0][1 if self._image(i) else -1] for i in own}
            result.append(
                Group(
                    name=names[0],
                    channels=self.layers[root].weight_shape[0],
                    producers=names,
                    consumers=(),
                    prunable=root not in fixed and root in read and len(widths) == 1,
                )
            )
        return tuple(result)

    def _image(self, layer: int) -> bool:
        return len(self.layers[layer].out_shapes[0]) == 4


def options_of(
    groups: Sequence[Group], precisions: Sequence[str], widths: int = WIDTHS
) -> dict[str, tuple[Option, ...]]:
    """Eighths of each group's channels times ``precisions``; all channels where they must stay."""
    result = {}
    for group in groups:
        kept = {max(group.channels * (i + 1) // widths, 1) for i in range(widths)}
        own = sorted(kept) if group.prunable else [group.channels]
        result[group.name] = tuple(
            Option(channels=width, precision=precision) for width in own for precision in precisions
        )
    return result


def losses(
    groups: Sequence[Group], options: dict[str, tuple[Option, ...]], seed: int
) -> list[list[float]]:
    """Made-up losses, a row a group: convex in the share that is removed, more for fewer bits.

    The scale of each group is drawn from a log-normal distribution, as wide as that of curvatures
    measured on trained networks: a factor of ten between the lower and the upper tenth.
    """
    rng = np.random.default_rng(seed)
    bits = {"fp32": 0.0, "fp16": 1e-4, "int8": 5e-3}
    rows = []
    for group in groups:
        scale, noise = float(rng.lognormal(0.0, 0.9)), float(rng.lognormal(0.0, 0.5))
        rows.append(
            [
                scale * (1 - option.channels / group.channels) ** 1.7
                + noise * bits[option.precision]
                for option in options[group.name]
            ]
        )
    return rows


def unmeasured(profile: str, runtime: str) -> LatencyModel:
    """The latency model that a board's datasheet gives, before anything is measured."""
    board = profiles.load(profile)
    return LatencyModel(
        profile=board,
        precisions=tuple(sorted({*board.precisions, "fp32"})),
        parameters=(),
        measured_groups=(),
        kernel_samples=(),
        network_samples=(),
        held_out_=(),
        runtime=runtime,
    )


@functools.cache
def nano(data: Path) -> LatencyModel:
    """The Jetson Nano's latency model under TensorRT, fitted to measured networks."""
    path = data / "jetson_nano" / "torchvision_trt_fp16.csv"
    found = published.networks(path, profile="jetson-nano", runtime="tensorrt")
    samples = [NetworkSample(i.works, i.seconds, i.group, i.scales) for i in found.items]
    return calibration.fit([], samples, profile=found.profile, runtime=found.runtime)


def rows(*, limit_s: float = 60.0, data: Path = DATA, seed: int = 0) -> list[dict[str, Any]]:
    """A row a network, board and budget; ``limit_s`` bounds each solution's seconds."""
    result = []
    boards = (
        ("jetson-nano", nano(data), ("fp32", "fp16"), LARGEST_SCOPE),
        ("pc, fp32", unmeasured("generic-cpu", "onnxruntime-cpu"), ("fp32",), LARGEST_SCOPE),
        ("pc", unmeasured("generic-cpu", "onnxruntime-cpu"), ("fp32", "int8"), _NARROW),
    )
    for network, path in NETWORKS:
        file = data / "jetson_nano" / path
        if not file.exists():
            continue
        for board, model, precisions, scope in boards:
            kernels = graph.read(file, runtime=model.runtime)
            groups = groups_of(kernels)
            costs = NetworkCosts(
                kernels, groups, model=model, baseline_size_bytes=file.stat().st_size, coverage=0.0
            )
            options = options_of(groups, precisions)
            started = time.perf_counter()
            tables = network_tables(costs, options, largest_scope=scope)
            row = {
                "network": network,
                "board": board,
                "groups": len(groups),
                "options": max(map(len, options.values())),
                "build_s": time.perf_counter() - started,
                "variants": tables.variants,
                "exact": tables.exact,
                "tables": len(tables.kernels_s.tables),
                "numbers": sum(table.costs.size for table in tables.kernels_s.tables),
            }
            full = [len(options[group.name]) - len(precisions) for group in groups]
            full_s = tables.latency_s(full)
            values = losses(groups, options, seed)
            for share in SHARES:
                solved = _solved(tables, costs, options, values, share * full_s, full, limit_s)
                result.append({**row, "share": share, "full_s": full_s, **solved})
    return result


def _solved(
    tables: NetworkTables,
    costs: NetworkCosts,
    options: dict[str, tuple[Option, ...]],
    values: list[list[float]],
    budget_s: float,
    full: list[int],
    limit_s: float,
) -> dict[str, Any]:
    """The allocation within ``budget_s`` by its price from scratch, and how it was found."""
    started, cuts, anchors = time.perf_counter(), 0, 0
    while anchors < _ANCHORS:
        anchors += 1
        try:
            answer, made = _cut(tables, values, budget_s, full, limit_s)
        except BoardfitError as error:
            return {"solve_s": time.perf_counter() - started, "failed": str(error)}
        cuts += made
        choice = list(answer.choice)
        chosen = {g.name: options[g.name][j] for g, j in zip(costs.groups, choice, strict=True)}
        alone = costs.costs(chosen).latency_s
        mismatch = abs(tables.latency_s(choice) - alone) / alone
        if tables.exact or alone <= budget_s * (1 + 1e-9):
            break
        tables = network_tables(costs, options, reference=chosen, largest_scope=_NARROW)
    return {
        "solve_s": time.perf_counter() - started,
        "anchors": anchors,
        "cuts": cuts,
        "objective": answer.objective,
        "gap": answer.gap,
        "latency_s": alone,
        "within": alone <= budget_s * (1 + 1e-9),
        "mismatch": mismatch,
    }


def _cut(
    tables: NetworkTables,
    values: list[list[float]],
    budget_s: float,
    full: list[int],
    limit_s: float,
) -> tuple[Any, int]:
    """The solver's answer, cut after cut until the tables' time keeps the budget; and the cuts."""
    from harness.allocation import coupled

    cuts: list[Sum] = []
    at, answer = full, None
    while len(cuts) < _CUTS and (answer is None or tables.latency_s(at) > budget_s * (1 + 1e-9)):
        cuts.append(tables.cut(at))
        answer = coupled.solve(
            values,
            [[coupled.Table(t.groups, t.costs, t.states) for t in cut.tables] for cut in cuts],
            [budget_s - cut.constant for cut in cuts],
            time_limit_s=limit_s,
        )
        at = list(answer.choice)
    return answer, len(cuts)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = rows(limit_s=arguments.limit, data=arguments.data)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for row in found:
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
