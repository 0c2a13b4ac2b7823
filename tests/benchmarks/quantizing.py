"""What the quantization benchmark runs: scores, allocations, and quantizers of the table's rows."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.allocation.knapsack import solve
from harness.compression.batchnorm import reestimate
from harness.compression.bits import expected_losses, layer_options, rounded_options
from harness.compression.fakequant import corrected_biases, fake_quantize, input_ranges
from harness.compression.quantizers import Range, quantize_weight
from harness.compression.sequential import compensated_shares, quantize_in_turn
from harness.networks import Layer, fold_batchnorm, layers_in_order
from harness.sensitivity.curvature import RoundedWeights, score
from tests.benchmarks.compression_networks import Subject

FULL_MENU, PEERS_MENU = (2, 3, 4, 5, 6, 7, 8), (2, 4, 8)
# Scores settle with far fewer images than moments do: the pass is what the wall time goes into.
# By the scores of 128 other images EfficientNet-Lite0's policies of 3 and 4 bits from 32 or 64 cost
# at most 2 % more than the best, by those of 512 ResNet-20's from 64 at most 3 %.
_SCORED = 64
# One calibration image in so many is kept apart, for the scale of the outputs.
_APART = 15
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Expected losses ``[layer][bits]`` by ``FULL_MENU``, and the time they took."""

    values: Mapping[str, Sequence[float]]
    wall_s: float
    cpu_s: float


class Bench:
    """A subject with its folded network, and what its rows share."""

    def __init__(self, subject: Subject, cache: Path | None = None) -> None:
        self.subject = subject
        self._cache = cache
        self._scores: dict[str, Scores] = {}
        self.folded = fold_batchnorm(subject.network, subject.calibration[:1])
        self.layers: dict[str, Layer] = layers_in_order(self.folded, subject.calibration[:1])
        self.ranges = {
            name: Range(low=low, high=high)
            for name, (low, high) in self._kept("ranges", self._extremes).items()
        }
        self.exact: Tensor = self._kept("exact", lambda: logits(self.folded, subject.test))

    def _kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives, kept in the cache's folder: a run that was stopped goes on."""
        if self._cache is None:
            return compute()
        path = self._cache / f"T1-{self.subject.name}-{name}.pt"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(compute(), path)
        return torch.load(path, weights_only=True)

    def _extremes(self) -> dict[str, tuple[float, float]]:
        found = input_ranges(self.folded, self.subject.calibration, batch=BATCH)
        return {name: (interval.low, interval.high) for name, interval in found.items()}

    def scores(self, kind: str) -> Scores:
        """``"ours"``, or ``"fisher"``: the empirical Fisher of weights rounded to nearest."""

        def timed() -> dict[str, Any]:
            start, cpu = time.perf_counter(), time.process_time()
            values = self._ours() if kind == "ours" else self._fisher()
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
            return {"values": values, "wall_s": wall_s, "cpu_s": cpu_s}

        if kind not in self._scores:
            self._scores[kind] = Scores(**self._kept(kind, timed))
        return self._scores[kind]

    def _fisher(
        self, images: int | None = None, rounded: RoundedWeights | None = None
    ) -> dict[str, tuple[float, ...]]:
        """Of the weights' errors alone; with labels on all images, or without on the first."""
        # The pass wants channels first.
        network = copy.deepcopy(self.folded).to(memory_format=torch.contiguous_format)
        found = score(
            network,
            *layer_options(self.layers, FULL_MENU),
            self.subject.calibration[:images].contiguous(),
            self.subject.calibration_labels[:images] if images is None else None,
            draws=1,
            batch=BATCH,
            rounded=rounded_options(self.layers, FULL_MENU) if rounded is None else rounded,
            inputs=False,
        )
        assert found.weights is not None
        return dict(found.weights)

    def _ours(self) -> dict[str, tuple[float, ...]]:
        rounded = rounded_options(self.layers, FULL_MENU)
        shares = compensated_shares(self.folded, self.subject.calibration[:_SCORED], batch=BATCH)
        scores = self._fisher(_SCORED, rounded)
        return expected_losses(self.layers, FULL_MENU, scores, shares, rounded=rounded)

    def allocate(self, kind: str, menu: Sequence[int], budget: float) -> dict[str, int]:
        """Bits for every layer: at most ``budget`` on average over all weights."""
        values = self.scores(kind).values
        sizes = [layer.weight.numel() for layer in self.layers.values()]
        found = solve(
            [[values[name][FULL_MENU.index(bits)] for bits in menu] for name in self.layers],
            [[[float(bits * size) for bits in menu] for size in sizes]],
            [budget * sum(sizes)],
        )
        return {name: menu[j] for name, j in zip(self.layers, found.choice, strict=True)}

    def average(self, bits: Mapping[str, int]) -> float:
        """Bits a weight."""
        sizes = {name: layer.weight.numel() for name, layer in self.layers.items()}
        return sum(bits[name] * size for name, size in sizes.items()) / sum(sizes.values())

    def compensated(self, bits: Mapping[str, int]) -> nn.Module:
        """Quantized by this project, in full: each layer by the inputs that it will have."""
        images = self.subject.calibration
        return quantize_in_turn(
            self.folded,
            images,
            bits,
            ranges=self.ranges,
            batch=BATCH,
            apart=len(images) // _APART,
        ).network

    def plain(self, bits: Mapping[str, int]) -> nn.Module:
        """Quantized as in the peers' common engine: error search and analytic bias correction."""
        weights = {
            name: quantize_weight(self.layers[name].weight, b, scale="error")
            for name, b in bits.items()
        }
        images = self.subject.calibration
        biases = corrected_biases(self.folded, images, weights, batch=BATCH)
        return fake_quantize(
            self.folded, images[:1], weights=weights, biases=biases, ranges=self.ranges
        )

    def reestimated(self, bits: Mapping[str, int]) -> nn.Module:
        """Rounded to nearest with batch norm in place, whose statistics are then estimated again.

        Folding multiplies output channels, each of which has a scale of its own: the levels are
        the same as those of the folded weights.
        """
        network = fake_quantize(
            self.subject.network,
            self.subject.calibration[:1],
            weights=dict(bits),
            ranges=self.ranges,
            fold=False,
        )
        reestimate(network, self.subject.calibration, batch=50)
        return network


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [network(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        )


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Against the labels and against the exact network; ``loss_*`` is the interval of top-1's
    difference to it on the same images (paired bootstrap, 95 %)."""

    top1: float
    agreement: float
    kl: float
    loss_low: float
    loss_high: float


def quality(outputs: Tensor, exact: Tensor, labels: Tensor, *, draws: int = 4000) -> Quality:
    right = (outputs.argmax(1) == labels).double()
    difference = (right - (exact.argmax(1) == labels).double()).numpy()
    picks = np.random.default_rng(0).integers(len(labels), size=(draws, len(labels)))
    low, high = np.quantile(difference[picks].mean(1), (0.025, 0.975))
    return Quality(
        top1=float(right.mean()),
        agreement=float((outputs.argmax(1) == exact.argmax(1)).double().mean()),
        kl=float(
            functional.kl_div(
                outputs.log_softmax(1), exact.log_softmax(1), log_target=True, reduction="batchmean"
            )
        ),
        loss_low=float(low),
        loss_high=float(high),
    )
