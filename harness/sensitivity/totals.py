"""What the inner products of a group's options add up to."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.records import Group, Option
from harness.sensitivity.inner import Rows
from harness.sensitivity.results import best_channels

__all__ = ["Totals", "input_of"]


def input_of(precision: str) -> str:
    """How a layer in ``precision`` rounds its input: all but fp16 read eight bits."""
    return "fp16" if precision == "fp16" else "int8"


class Totals:
    """What a group's inner products add up to; rows of channels only where options differ in them.

    Double precision: channels are summed with mixed signs before squaring. Without ``inputs``
    options count by their weights alone.
    """

    def __init__(self, group: Group, options: tuple[Option, ...], *, inputs: bool = True) -> None:
        self.group, self.options = group, options
        self.prunes = any(option.channels < group.channels for option in options)
        self.precisions = sorted({option.precision for option in options} - {"fp32"})
        self.inputs = sorted({input_of(precision) for precision in self.precisions if inputs})
        self._squares = torch.zeros(group.channels, dtype=torch.float64)
        self._count = 0
        self._rows: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """The rows of some images, summed over the group's producers."""
        self._squares += rows.removed.double().square().sum(0)
        self._count += len(rows.removed)
        if not self.prunes:
            rows = Rows(rows.removed[:, :0], rows.weights, rows.inputs)
        self._rows.append(rows)

    def scores(self) -> tuple[float, ...]:
        """What removing each channel alone is expected to cost."""
        return tuple((self._squares / (2 * self._count)).tolist())

    def products(self) -> tuple[Tensor, Tensor]:
        """Of every option the inner products of its weights and of its activations.

        Both ``(options, images)`` in double precision, where a draw counts as an image.
        """
        removed = torch.cat([rows.removed for rows in self._rows]).double()
        weights = torch.cat([rows.weights for rows in self._rows], 1).double()
        inputs = torch.cat([rows.inputs for rows in self._rows], 1).double()
        scores = self.scores()
        by_weights = torch.zeros(len(self.options), self._count, dtype=torch.float64)
        by_inputs = torch.zeros_like(by_weights)
        for j, option in enumerate(self.options):
            keep = torch.zeros(self.group.channels, dtype=torch.bool)
            keep[list(best_channels(scores, option.channels, self.group.blocks))] = True
            chosen = keep if self.prunes else torch.ones(1, dtype=torch.bool)
            if self.prunes:
                by_weights[j] += removed[:, ~keep].sum(1)
            if option.precision != "fp32":
                by_weights[j] += weights[self.precisions.index(option.precision)][:, chosen].sum(1)
                if self.inputs:
                    kind = self.inputs.index(input_of(option.precision))
                    by_inputs[j] += inputs[kind][:, chosen].sum(1)
        return by_weights, by_inputs

    def columns(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        """The options' values, those of their weights alone and of their activations alone."""
        by_weights, by_inputs = self.products()
        values, weights, inputs = (
            tuple((inner.square().mean(1) / 2).tolist())
            for inner in (by_weights + by_inputs, by_weights, by_inputs)
        )
        return values, weights, inputs
