"""Rows of what was measured on a GPU, as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import calibrate
from harness.records import Interval

__all__ = ["TOLERANCES", "Failed", "Measured", "content", "text"]

# The largest difference from onnxruntime's outputs on the host, over their largest value. fp32 may
# be TF32, of 10 bits of mantissa, as fp16 is; int8 rounds ties and sums of Q/DQ in other places.
TOLERANCES = {"fp32": 5e-3, "fp16": 2e-2, "int8": 0.1}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One network in one precision on the GPU; times are seconds, ``kernels`` the profile's.

    ``graph`` is the file that outputs are held against on the host: fp32's for fp16. ``median_s``
    is of whole calls on the host's clock, copies included; ``gpu_s`` of computing alone, by events.
    ``ran_on`` counts kernels by who executed them, ``integer_layers`` those of int8 that ran on
    integers. None is what the runtime does not tell.
    """

    network: str
    family: str
    precision: str
    graph: Path
    file_bytes: int
    engine_bytes: int | None
    build_s: float | None
    median_s: float
    interval: Interval
    p99_s: float
    gpu_s: float | None
    kernels: tuple[tuple[str, str, float], ...]
    ran_on: str
    integer_layers: int | None
    layers: int
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the outputs lie within the precision's tolerance."""
        return self.difference <= TOLERANCES[self.precision]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A network that the GPU's runtime did not build or run, and what it said."""

    network: str
    precision: str
    why: str


def content(
    found: Sequence[Measured],
    held: Sequence[calibrate.Validation],
    failed: Sequence[Failed],
    note: str,
) -> dict[str, Any]:
    """All rows as plain data: ``rows``, with ``predicted_s`` and ``error`` or None, ``failed``."""
    predicted = {(one.network, one.precision): one for one in held}
    rows = []
    for one in found:
        told = predicted.get((one.network, one.precision))
        row = asdict(one) | {"kernels": len(one.kernels), "agrees": one.agrees}
        row["graph"] = one.graph.name
        row["predicted_s"] = None if told is None else told.predicted_s
        row["predicted_interval"] = None if told is None else asdict(told.interval)
        row["error"] = None if told is None else told.error
        rows.append(row)
    return {"note": note, "rows": rows, "failed": [asdict(one) for one in failed]}


def text(
    found: Sequence[Measured],
    held: Sequence[calibrate.Validation],
    failed: Sequence[Failed] = (),
) -> str:
    """The rows as text, with what was predicted where a latency model was calibrated."""
    predicted = {(one.network, one.precision): one for one in held}
    head = ("network", "types", "file", "engine", "build", "median", "GPU", "p99")
    head += ("outputs", "within", "predicted")
    lines = ["{:13} {:5} {:>10} {:>10} {:>7} {:>10} {:>10} {:>10} {:>8} {:>6} {:>19}".format(*head)]
    for one in found:
        told = predicted.get((one.network, one.precision))
        cells = (
            one.network,
            one.precision,
            _megabytes(one.file_bytes),
            _megabytes(one.engine_bytes),
            "-" if one.build_s is None else f"{one.build_s:.2f} s",
            _milliseconds(one.median_s),
            _milliseconds(one.gpu_s),
            _milliseconds(one.p99_s),
            f"{one.difference:.2%}",
            "yes" if one.agrees else "NO",
            "-" if told is None else f"{_milliseconds(told.predicted_s)} ({told.error:+.0%})",
        )
        lines.append(
            "{:13} {:5} {:>10} {:>10} {:>7} {:>10} {:>10} {:>10} {:>8} {:>6} {:>19}".format(*cells)
            + f"  {one.ran_on}"
            + (
                f"; {one.integer_layers} of {one.layers} layers on integers"
                if one.integer_layers is not None
                else ""
            )
        )
    lines += [f"{one.network} {one.precision} failed: {one.why}" for one in failed]
    return "\n".join(lines)


def _megabytes(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.2f} MB"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f} ms"
