"""Measurement tables of the project's own: written by a benchmark, found under ``data/measured``.

A table is a folder with ``networks.csv`` (a measurement table), ``graphs/`` (its networks without
their weights), ``kernels.csv`` (what the profiler told of each) and ``fingerprint.json``, which
says what was measured on, and by which fusion rules and profile the table is read. A folder that
lies under ``data/measured`` takes part in ``tests.benchmarks.latency_models`` from then on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tests.benchmarks import published
from tests.benchmarks.protocols import Protocol, leave_out
from tests.benchmarks.published import Item, Published
from tests.benchmarks.tensorrt_networks import structure

__all__ = ["FOLDER", "SCHEMA", "Own", "Row", "found", "load", "protocols", "write"]

FOLDER = Path(__file__).parents[2] / "data" / "measured"
# 1: networks.csv, kernels.csv, graphs/ and fingerprint.json with "schema", "rules", "profile".
SCHEMA = 1
INT8 = ".int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured network; ``graph`` is its file, ``kernels`` are name, node and seconds."""

    network: str
    family: str
    precision: str
    graph: Path
    median_s: float
    p99_s: float
    kernels: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A table that is there: ``key`` is its folder's name."""

    key: str
    table: Path
    rules: str
    profile: str


def write(
    rows: Iterable[Row], out: Path, *, rules: str, profile: str, fingerprint: Mapping[str, Any]
) -> Path:
    """The measurement table in ``out``, which is made; times are written in milliseconds.

    Of fp32 and fp16, which are told to the builder, one file is kept: the structure is the same.
    """
    rows = tuple(rows)
    graphs = out / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    path = out / "networks.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(("network", "family", "precision", "batch", "latency_ms", "p99_ms"))
        for row in rows:
            name = f"{row.network}{INT8 if row.precision == 'int8' else ''}.onnx"
            light = structure(onnx.load(row.graph))
            (graphs / name).write_bytes(light.SerializeToString(deterministic=True))
            times = (f"{1e3 * row.median_s:.6f}", f"{1e3 * row.p99_s:.6f}")
            lines.writerow((f"graphs/{name}", row.family, row.precision, 1, *times))
    with (out / "kernels.csv").open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(("network", "precision", "kernel", "node", "latency_ms"))
        for row in rows:
            for name, node, seconds in row.kernels:
                lines.writerow((row.network, row.precision, name, node, f"{1e3 * seconds:.6f}"))
    content = {"schema": SCHEMA, "rules": rules, "profile": profile, **fingerprint}
    text = json.dumps(content, indent=2, default=str, allow_nan=False)
    (out / "fingerprint.json").write_text(text + "\n", encoding="utf-8")
    return path


def found(root: Path = FOLDER) -> tuple[Own, ...]:
    """The tables under ``root``, by name; ValueError where one is of another schema."""
    tables = []
    for path in sorted(root.glob("*/fingerprint.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("schema") != SCHEMA:
            raise ValueError(f"{path} has schema {told.get('schema')}, not {SCHEMA}; write it anew")
        tables.append(
            Own(
                key=path.parent.name,
                table=path.parent / "networks.csv",
                rules=told["rules"],
                profile=told["profile"],
            )
        )
    return tuple(tables)


def load(key: str, root: Path = FOLDER) -> Published:
    """The table ``key`` as the latency benchmark takes data sets; KeyError where it is absent."""
    one = {own.key: own for own in found(root)}[key]
    return published.networks(one.table, profile=one.profile, runtime=one.rules)


def _network(item: Item) -> str:
    """The network, whatever its precision: its rows stay on one side of every split."""
    return item.name.removesuffix(INT8)


def protocols(root: Path = FOLDER) -> tuple[Protocol, ...]:
    """For each table: each network predicted from the others, and each family."""
    return tuple(
        Protocol(
            key=f"{own.key}_{how}",
            data=own.key,
            splits=leave_out(key),
            seeds=[0],
            baseline="none",
            target="none",
            unlike=how == "family",
        )
        for own in found(root)
        for how, key in (("loo", _network), ("family", lambda item: item.group))
    )
