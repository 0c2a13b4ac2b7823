"""Coupled allocation problems to test and to time: chains with skips, of layers' shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.allocation.coupled import Table

# A small board's: multiply-accumulates a second of each precision, bytes a second, and seconds a
# kernel. Only their ratios matter here.
PEAK = (250e9, 500e9)  # fp16, int8
BANDWIDTH = 20e9
START_S = 8e-6
TILES = (8, 16)  # channels are rounded up to these: int8 kernels take 16 at a time
BYTES = (2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coupled:
    """One problem with one budget; ``full`` is the choice that removes nothing."""

    name: str
    values: Sequence[Sequence[float]]
    tables: Sequence[Table]
    budget: float
    tied: Sequence[Sequence[int]]
    full: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    channels: int
    pixels: int
    kernel: int


def chain(groups: int, options: int, seed: int, *, share: float = 0.6) -> Coupled:
    """A chain of convolutions whose every second or third output is also added to one later.

    Options are widths, each in fp16 and int8. A kernel's time is its start and the larger of its
    arithmetic and its traffic, on channels rounded up to the precision's tile; a tensor that is
    made in one precision and taken in the other is converted. Losses are convex in the share of
    channels removed. The budget is ``share`` of what the whole network takes in fp16.
    """
    rng = np.random.default_rng([seed, groups, options])
    widths = options // 2
    kept = np.linspace(1, 1 / widths, widths)
    layers = []
    channels, pixels = 32, 56 * 56
    for g in range(groups):
        if g and g % max(groups // 4, 3) == 0:
            channels, pixels = min(channels * 2, 512), max(pixels // 4, 49)
        layers.append(_Layer(channels, pixels, int(rng.choice([1, 9, 9]))))
    values = []
    for _ in layers:
        weight = 10 ** rng.normal(-1, 0.6)
        curve = weight * (1 - kept) ** rng.uniform(1.3, 2.5)
        quantized = curve + weight * rng.uniform(0.01, 0.2) * (0.5 + 0.5 * kept)
        values.append([*curve.tolist(), *quantized.tolist()])
    tables = []
    tied = []
    every = int(rng.integers(2, 4))
    for g in range(groups):
        tables.append(Table((g,), _first(layers[g], kept) if g == 0 else _start(options)))
        if g:
            tables.append(Table((g - 1, g), _convolution(layers[g - 1], layers[g], kept)))
        if g > 1 and g % every == 0:
            tables.append(Table((g - 2, g), _addition(layers[g], kept)))
            if layers[g - 2].channels == layers[g].channels and rng.random() < 0.4:
                tied.append((g - 2, g))
    full = (0,) * groups
    whole = sum(table.at(full) for table in tables)
    return Coupled(
        name=f"chain {groups}x{options} #{seed}",
        values=values,
        tables=tables,
        budget=share * whole,
        tied=tied,
        full=full,
    )


def _rows(layer: _Layer, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The channels of every option, and its precision."""
    channels = np.maximum(np.rint(layer.channels * kept), 1)
    return np.tile(channels, 2), np.repeat([0, 1], len(kept))


def _tiled(channels: np.ndarray, precision: np.ndarray) -> np.ndarray:
    tile = np.array(TILES)[precision]
    return np.ceil(channels / tile) * tile


def _start(options: int) -> np.ndarray:
    return np.full(options, START_S)


def _first(layer: _Layer, kept: np.ndarray) -> np.ndarray:
    channels, precision = _rows(layer, kept)
    macs = 3 * layer.kernel * layer.pixels * _tiled(channels, precision)
    return START_S + macs / np.array(PEAK)[precision]


def _convolution(before: _Layer, layer: _Layer, kept: np.ndarray) -> np.ndarray:
    """Seconds by the option before and this layer's own, which its precision is that of."""
    taken, was = _rows(before, kept)
    made, precision = _rows(layer, kept)
    inputs = _tiled(taken[:, None], precision[None, :])
    outputs = _tiled(made, precision)
    size = np.array(BYTES)[precision]
    macs = inputs * outputs * layer.kernel * layer.pixels
    weights = inputs * outputs * layer.kernel
    traffic = (weights + (inputs + outputs) * layer.pixels) * size
    seconds = np.maximum(macs / np.array(PEAK)[precision], traffic / BANDWIDTH)
    converted = taken[:, None] * before.pixels * sum(BYTES) / BANDWIDTH + START_S
    return seconds + np.where(was[:, None] != precision[None, :], converted, 0.0)


def _addition(layer: _Layer, kept: np.ndarray) -> np.ndarray:
    """Seconds to add an earlier output to this one, in this one's precision."""
    earlier, was = _rows(layer, kept)
    now, precision = _rows(layer, kept)
    both = np.maximum(earlier[:, None], now[None, :])
    size = np.array(BYTES)[precision][None, :]
    converted = earlier[:, None] * layer.pixels * sum(BYTES) / BANDWIDTH + START_S
    different = was[:, None] != precision[None, :]
    return 3 * both * layer.pixels * size / BANDWIDTH + np.where(different, converted, 0.0)
