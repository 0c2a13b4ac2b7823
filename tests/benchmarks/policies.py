"""Scores of quantization policies, and their true losses, for the correlation benchmark."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.batchnorm import Corrections, corrections, reestimate
from harness.compression.fakequant import fake_quantize, input_ranges
from harness.compression.quantizers import QuantizedWeight, quantize_weight
from harness.networks import fold_batchnorm, layers_in_order
from harness.records import Group, Option
from harness.sensitivity.curvature import rounded_weights, score, score_together
from harness.sensitivity.dynamic_bn import Predictor, Statistics
from tests.benchmarks.compression_networks import Subject

BITS = (2, 3, 4, 5, 6, 8)
# Statistics are re-estimated, and policies tried, on so many calibration images.
TRIED_ON = 256
# One network run for every layer and number of bits: few images, or it takes longer than all else.
ALONE_ON = 64
SPLITS = 8
HOW: dict[str, Statistics] = {
    "": "trained",
    ", Dynamic BN": "reestimated",
    ", anchored Dynamic BN": "anchored",
}

Policy: TypeAlias = tuple[int, ...]
# One value for each of BITS a layer.
Table: TypeAlias = dict[str, list[float]]


def precision(bits: int) -> str:
    return "int8" if bits == 8 else f"w{bits}a8"


def policies(layers: int, count: int, seed: int = 0) -> list[Policy]:
    """Half free, half within a step of 4, 5 or 6 bits in the menu."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        if index % 2:
            middle = int(rng.integers(2, 5))
            places = np.clip(middle + rng.integers(-1, 2, layers), 0, len(BITS) - 1)
        else:
            places = rng.integers(0, len(BITS), layers)
        found.append(tuple(BITS[place] for place in places))
    return found


# --- scores, one number a layer and number of bits ---------------------------------------------


def layer_groups(network: nn.Module, example: Tensor) -> list[Group]:
    """Every layer by itself: no policy here prunes."""
    return [
        Group(
            name=name,
            channels=layer.weight.shape[0],
            producers=(name,),
            consumers=(),
            prunable=False,
        )
        for name, layer in layers_in_order(network, example).items()
    ]


def layer_options(item: Subject) -> tuple[list[Group], dict[str, tuple[Option, ...]]]:
    groups = layer_groups(item.network, item.calibration[:1])
    options = {
        group.name: tuple(Option(channels=group.channels, precision=precision(b)) for b in BITS)
        for group in groups
    }
    return groups, options


def together(item: Subject, asked: Sequence[Policy], draws: int = 2) -> list[float]:
    """Every policy's label-free score around 4 bits, its layers' products summed first."""
    groups, options = layer_options(item)
    found = score_together(
        item.network, groups, options, item.calibration, draws=draws, around="w4a8"
    )
    return [
        found.total(
            {name: options[name][BITS.index(b)] for name, b in zip(options, p, strict=True)}
        )
        for p in asked
    ]


def fisher(item: Subject, labels: bool, around: str | None = None, draws: int = 4) -> Table:
    groups, options = layer_options(item)
    found = score(
        item.network,
        groups,
        options,
        item.calibration,
        item.calibration_labels if labels else None,
        draws=draws,
        around=around,
    )
    return {name: list(values) for name, values in found.values.items()}


def weight_errors(network: nn.Module, example: Tensor) -> Table:
    """Control: the squared error of the folded weights alone."""
    folded = fold_batchnorm(network, example).requires_grad_(False)
    return {
        name: [
            float(
                (rounded_weights(layer.weight, precision(b)) - layer.weight.detach()).square().sum()
            )
            for b in BITS
        ]
        for name, layer in layers_in_order(folded, example).items()
    }


def hessian_traces(
    network: nn.Module, images: Tensor, labels: Tensor, probes: int = 8
) -> dict[str, float]:
    """The mean of the diagonal of the loss's Hessian, layer by layer, by Hutchinson's probes."""
    folded = fold_batchnorm(network, images[:1])
    layers = layers_in_order(folded, images[:1])
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    stream = torch.Generator().manual_seed(0)
    sums = [0.0] * len(weights)
    loss = functional.cross_entropy(folded(images), labels)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    for _ in range(probes):
        signs = [
            torch.randint(0, 2, w.shape, generator=stream).to(w.dtype) * 2 - 1 for w in weights
        ]
        products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
        for index, (sign, product) in enumerate(zip(signs, products, strict=True)):
            sums[index] += float((sign * product).sum()) / (probes * sign.numel())
    return dict(zip(layers, sums, strict=True))


def measured_alone(item: Subject) -> Table:
    """Remedy and control: the divergence of each layer rounded alone, measured."""
    predictor = Predictor(item.network, item.calibration[:ALONE_ON])
    return {
        name: [
            predictor.predict({name: precision(b)}, statistics="trained").divergence for b in BITS
        ]
        for name in predictor.layers
    }


def score_makers(item: Subject) -> dict[str, Callable[[], Table]]:
    """How every score is computed, by its name."""

    def errors() -> Table:
        return weight_errors(item.network, item.calibration[:1])

    def traced() -> Table:
        traces = hessian_traces(item.network, item.calibration[:128], item.calibration_labels[:128])
        return {name: [traces[name] * e for e in row] for name, row in errors().items()}

    return {
        "Fisher, labels": partial(fisher, item, labels=True),
        "Fisher, label-free": partial(fisher, item, labels=False),
        "Fisher, labels, around 4 bits": partial(fisher, item, labels=True, around="w4a8"),
        "Fisher, label-free, around 4 bits": partial(fisher, item, labels=False, around="w4a8"),
        "weight error": errors,
        "Hessian trace x weight error": traced,
        "divergence of each layer alone": partial(measured_alone, item),
    }


# --- the true loss -----------------------------------------------------------------------------


class Truth:
    """True losses of policies on the test images, and what calibration images say of them."""

    def __init__(self, item: Subject) -> None:
        self.item = item
        example = item.calibration[:1]
        self.ranges = input_ranges(item.network, item.calibration)
        # Channels last and few images at a time: a quarter less time on networks this narrow.
        folded = fold_batchnorm(item.network, example).to(memory_format=torch.channels_last)
        test = item.test.contiguous(memory_format=torch.channels_last)
        self.test = Predictor(folded, test, item.test_labels, ranges=self.ranges, batch=32)
        self.tried = Predictor(
            item.network,
            item.calibration[:TRIED_ON],
            item.calibration_labels[:TRIED_ON],
            ranges=self.ranges,
        )
        self.layers = self.test.layers
        fresh = copy.deepcopy(item.network)
        reestimate(fresh, item.calibration[:TRIED_ON], batch=TRIED_ON)
        self.corrected = corrections(item.network, fresh)
        self.known: dict[tuple[str, int], QuantizedWeight] = {}
        self.fp32 = float(functional.cross_entropy(self.test.reference, item.test_labels))
        rng = np.random.default_rng(0)
        half = len(item.test) // 2
        self.splits = [torch.from_numpy(rng.permutation(len(item.test))) for _ in range(SPLITS)]
        self.halves = [(order[:half], order[half : 2 * half]) for order in self.splits]

    def __call__(self, policy: Policy) -> dict[str, Any]:
        words = {name: precision(b) for name, b in zip(self.layers, policy, strict=True)}
        labels = self.item.test_labels
        logits = self.test.logits(words, statistics="trained")
        each = functional.cross_entropy(logits, labels, reduction="none")
        each -= functional.cross_entropy(self.test.reference, labels, reduction="none")
        expected = self.test.reference.log_softmax(1)
        divergence = (expected.exp() * (expected - logits.log_softmax(1))).sum(1)
        return {
            "bits": policy,
            "loss": float(each.mean()),
            "divergence": float(divergence.mean()),
            "top1": float((logits.argmax(1) == labels).float().mean()),
            "halves": [[float(each[part].mean()) for part in pair] for pair in self.halves],
        }

    def reestimated(self, policy: Policy) -> dict[str, float]:
        """What re-estimated and anchored statistics make of a policy on the test images."""
        labels = self.item.test_labels
        found: dict[str, float] = {}
        for statistics, corrected in (("re-estimated", None), ("anchored", self.corrected)):
            again = self._reestimated(policy, corrected)
            loss = float(functional.cross_entropy(again, labels)) - self.fp32
            found[f"loss, {statistics} batch norm"] = loss
            top1 = float((again.argmax(1) == labels).float().mean())
            found[f"top1, {statistics} batch norm"] = top1
        return found

    def predicted(self, policy: Policy) -> dict[str, float | None]:
        """What the calibration images say of a policy, for each kind of statistics."""
        words = {name: precision(b) for name, b in zip(self.layers, policy, strict=True)}
        found: dict[str, float | None] = {}
        for how, kind in HOW.items():
            predicted = self.tried.predict(words, statistics=kind)
            found[f"calibration loss{how}"] = predicted.loss
            found[f"calibration divergence{how}"] = predicted.divergence
            found[f"calibration errors{how}"] = 1 - (predicted.top1 or 0.0)
        return found

    def _quantized(self, name: str, bits: int) -> QuantizedWeight:
        if (name, bits) not in self.known:
            weight = self.item.network.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            self.known[name, bits] = quantize_weight(
                weight, bits, scale="max" if bits == 8 else "error"
            )
        return self.known[name, bits]

    def _reestimated(self, policy: Policy, corrected: Corrections | None) -> Tensor:
        """Test logits with the statistics of calibration images, which are not those judged."""
        network, example = self.item.network, self.item.calibration[:1]
        variant = fake_quantize(
            network,
            example,
            weights={
                name: self._quantized(name, bits)
                for name, bits in zip(self.layers, policy, strict=True)
            },
            ranges=self.ranges,
            fold=False,
        )
        chosen = self.item.calibration[:TRIED_ON]
        reestimate(variant, chosen, batch=TRIED_ON, corrected=corrected)
        with torch.no_grad():
            return torch.cat([variant(part) for part in self.item.test.split(256)])
