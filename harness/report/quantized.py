"""What became of a quantized file, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rich.console import Group
from rich.text import Text

from harness.report.tables import add_row, new_table, show
from harness.report.words import percent
from harness.units import format_size

__all__ = ["Quantized", "print_quantized", "quantized_json"]


class Difference(Protocol):
    """How far one output is from the original's."""

    @property
    def name(self) -> str: ...  # the class says it
    @property
    def max_error(self) -> float: ...
    @property
    def error_ratio(self) -> float | None: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def kl(self) -> float | None: ...


class Quantized(Protocol):
    """A quantized file: its layers, sizes and the differences of its outputs."""

    @property
    def out(self) -> str: ...  # noqa: D102  # the class says it
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def calibration_images(self) -> int: ...  # noqa: D102
    @property
    def test_images(self) -> int: ...  # noqa: D102
    @property
    def layers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def integer_layers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def float_layers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def size_before_bytes(self) -> int: ...  # noqa: D102
    @property
    def size_bytes(self) -> int: ...  # noqa: D102
    @property
    def outputs(self) -> Sequence[Difference]: ...  # noqa: D102


def quantized_json(result: Any) -> dict[str, Any]:
    """The record as it is."""
    return asdict(result)


def print_quantized(result: Quantized) -> None:
    """Print sizes, which layers are integer, and how far the outputs moved."""
    share = result.size_bytes / result.size_before_bytes
    lines = [
        f"{result.out}: {format_size(result.size_bytes)}, {percent(share)} of "
        f"{format_size(result.size_before_bytes)}",
    ]
    if result.precision == "int8":
        lines.append(
            f"{len(result.integer_layers)} of {len(result.layers)} layers run as integer kernels, "
            f"calibrated on {result.calibration_images} images"
        )
        lines += [f"Warning: {text}" for text in result.float_layers]
    elif result.precision == "weights int8":
        lines.append(
            f"{len(result.layers)} layers store their weights in int8, which the board has no fast "
            "kernels for: a smaller file to download, from which boardfit builds the float engine"
        )
    else:
        lines.append(
            f"{len(result.layers)} layers hold weights of four bits; they compute in float, and "
            "slower than before: a smaller file is all there is to win"
        )
    table = new_table(
        f"Outputs against the original's, {result.test_images} other images",
        "output",
        "largest error",
        "error ratio",
        "same class",
        "KL divergence",
    )
    for output in result.outputs:
        add_row(
            table,
            output.name,
            f"{output.max_error:.4g}",
            "-" if output.error_ratio is None else percent(output.error_ratio, 2),
            "-" if output.agreement is None else percent(output.agreement, 2),
            "-" if output.kl is None else f"{output.kl:.5f}",
        )
    show(Group(*map(Text, lines), table))
