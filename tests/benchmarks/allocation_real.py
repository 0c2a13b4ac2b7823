"""Networks' own costs under millisecond budgets: exact tables, solved, and priced again.

Groups come from each network's ONNX graph, the Jetson Nano's latency model from measured networks,
the computer's from its datasheet alone. Losses are made up (weights are random), in the shape that
measured ones have. Every answer is priced again by rewriting the network: ``mismatch``. Run by
``python -m tests.benchmarks.allocation --only real``.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.allocation import coupled
from harness.errors import BoardfitError, InfeasibleBudget
from harness.records import Group, Option
from harness.strategies.predictor import NetworkCosts
from harness.strategies.tables import TOLERANCE, NetworkTables, Sum, network_tables
from latency_models import calibration, graph, profiles
from latency_models.calibration import LatencyModel, NetworkSample
from latency_models.graph import Kernel
from latency_models.operators import Op
from tests.benchmarks import published
from tests.benchmarks.allocation_networks import EXPORTED, Chain, export

DATA = Path(__file__).parents[3] / "shared" / "measured"
# Graphs that come without their weights; those of EXPORTED are written when they are needed.
GRAPHS = {"resnet18": "jetson_nano/graphs_torchvision/resnet18__224.onnx"}
_MEASURED = "jetson_nano/torchvision_trt_fp16.csv"
SHARES = (0.70, 0.50, 0.35)
WIDTHS = 8
GAP = 1e-4
# Seconds that tables may take, and then each answer.
TARGET_S = 5.0
# Seconds that the tables of sixty groups of sixteen options may take.
TABLES_S = 1.0
# Tangent cuts before a budget is given up as not closed.
_CUTS = 8


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
    found = published.networks(data / _MEASURED, profile="jetson-nano", runtime="tensorrt")
    samples = [NetworkSample(i.works, i.seconds, i.group, i.scales) for i in found.items]
    return calibration.fit([], samples, profile=found.profile, runtime=found.runtime)


def rows(
    *, limit_s: float = 60.0, data: Path = DATA, seed: int = 0, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """A row a network, board and budget; ``limit_s`` bounds each search.

    Seconds are those of the processor, all threads together, so that other work does not count.
    """
    boards = [("pc", unmeasured("generic-cpu", "onnxruntime-cpu"), ("fp32", "int8"))]
    if (data / _MEASURED).exists():
        boards.append(("jetson-nano", nano(data), ("fp32", "fp16")))
    else:
        say(f"real: {data / _MEASURED} is not here; the Jetson Nano is left out")
    result = []
    with _files(data, say) as files:
        with tempfile.TemporaryDirectory() as folder:
            chain = export(Chain, Path(folder) / "chain.onnx", size=28)
            for board, model, _ in boards:
                result.append({"network": "60 x 16", "board": board, **_chain(chain, model)})
                say(", ".join(f"{key} {value}" for key, value in result[-1].items()))
        for network, file in files:
            for board, model, precisions in boards:
                for row in _network(file, model, precisions, limit_s, seed):
                    result.append({"network": network, "board": board, **row})
                    say(", ".join(f"{key} {value}" for key, value in result[-1].items()))
    return result


@contextlib.contextmanager
def _files(data: Path, say: Callable[[str], None]) -> Iterator[list[tuple[str, Path]]]:
    """The networks' ONNX files, by name."""
    with tempfile.TemporaryDirectory() as folder:
        found = [(name, data / path) for name, path in GRAPHS.items() if (data / path).exists()]
        for name in GRAPHS.keys() - dict(found).keys():
            say(f"real: {data / GRAPHS[name]} is not here; {name} is left out")
        found += [
            (name, export(EXPORTED[name], Path(folder) / f"{name}.onnx")) for name in EXPORTED
        ]
        yield found


def _chain(file: Path, model: LatencyModel) -> dict[str, Any]:
    """How long the tables of sixty groups of sixteen options take."""
    kernels = graph.read(file, runtime=model.runtime)
    groups = groups_of(kernels)
    costs = NetworkCosts(
        kernels, groups, model=model, baseline_size_bytes=file.stat().st_size, coverage=0.0
    )
    options = options_of(groups, ("fp32",), widths=16)
    started = time.process_time()
    tables = network_tables(costs, options)
    build_s = time.process_time() - started
    return {
        "groups": len(groups),
        "options": max(map(len, options.values())),
        "build_s": build_s,
        "variants": tables.variants,
        "exact": tables.exact,
        "mismatch": tables.mismatch,
        "target": f"exact, {TABLES_S:.0f} s",
        "met": tables.exact and build_s < TABLES_S,
    }


def _network(
    file: Path, model: LatencyModel, precisions: Sequence[str], limit_s: float, seed: int
) -> Iterator[dict[str, Any]]:
    """A row a budget: shares of what all channels in fp32 take."""
    kernels = graph.read(file, runtime=model.runtime)
    groups = groups_of(kernels)
    costs = NetworkCosts(
        kernels, groups, model=model, baseline_size_bytes=file.stat().st_size, coverage=0.0
    )
    options = options_of(groups, precisions)
    started = time.process_time()
    tables = network_tables(costs, options)
    built = {
        "groups": len(groups),
        "options": max(map(len, options.values())),
        "build_s": time.process_time() - started,
        "variants": tables.variants,
        "exact": tables.exact,
        "tables": len(tables.kernels_s.tables),
        "numbers": sum(table.costs.size for table in tables.kernels_s.tables),
    }
    # All channels, in the first precision: fp32.
    full = [len(options[group.name]) - len(precisions) for group in groups]
    full_s = tables.latency_s(full)
    values = losses(groups, options, seed)
    for share in SHARES:
        solved = _solved(tables, costs, options, values, share * full_s, full, limit_s)
        fast = built["build_s"] < TARGET_S and solved["solve_s"] < TARGET_S
        right = solved["outcome"] == "infeasible" or (
            solved["outcome"] == "solved"
            and solved["gap"] <= GAP
            and solved["mismatch"] <= TOLERANCE
        )
        yield {
            **built,
            "budget": f"{share:.0%} of {full_s:.3g} s",
            **solved,
            "target": f"exact, {TARGET_S:.0f} s each, gap <= {GAP:g}, mismatch <= {TOLERANCE:g}",
            "met": bool(tables.exact and fast and right),
        }


def _solved(
    tables: NetworkTables,
    costs: NetworkCosts,
    options: dict[str, tuple[Option, ...]],
    values: list[list[float]],
    budget_s: float,
    full: list[int],
    limit_s: float,
) -> dict[str, Any]:
    """The allocation within ``budget_s`` by its price from scratch, and how it was found.

    Where there is none, ``latency_s`` is the nearest that can be reached.
    """
    started, cuts, at = time.process_time(), [tables.cut(full)], full
    row: dict[str, Any] = {"outcome": "solved", "objective": None, "gap": None, "mismatch": None}
    try:
        answer = _answer(cuts, values, budget_s, limit_s)
        at = list(answer.choice)
        while not _within(tables.latency_s(at), budget_s) and len(cuts) < _CUTS:
            cuts.append(tables.cut(at))
            answer = _answer(cuts, values, budget_s, limit_s)
            at = list(answer.choice)
    except InfeasibleBudget as error:
        row["outcome"] = "infeasible"
        nearest = max(
            float(cut.constant + least) for cut, least in zip(cuts, error.nearest, strict=True)
        )
        return {**row, "latency_s": nearest, **_effort(started, cuts)}
    except BoardfitError as error:
        return {**row, "outcome": str(error), "latency_s": None, **_effort(started, cuts)}
    effort = _effort(started, cuts)
    chosen = {g.name: options[g.name][j] for g, j in zip(costs.groups, at, strict=True)}
    alone = costs.costs(chosen).latency_s
    return {
        "outcome": "solved" if _within(alone, budget_s) else "over the budget",
        "objective": answer.objective,
        "gap": answer.gap,
        "mismatch": abs(tables.latency_s(at) - alone) / alone,
        "latency_s": alone,
        **effort,
    }


def _within(seconds: float, budget_s: float) -> bool:
    return seconds <= budget_s * (1 + TOLERANCE)


def _effort(started: float, cuts: Sequence[Sum]) -> dict[str, Any]:
    return {"cuts": len(cuts), "solve_s": time.process_time() - started}


def _answer(
    cuts: Sequence[Sum], values: Sequence[Sequence[float]], budget_s: float, limit_s: float
) -> coupled.Allocation:
    return coupled.solve(
        values,
        [cut.tables for cut in cuts],
        [budget_s - cut.constant for cut in cuts],
        gap=GAP / 10,
        time_limit_s=limit_s,
    )
