"""How well scores rank pruning policies, and joint ones, by their true loss, on real networks.

    python -m tests.benchmarks.compression --task correlation-prune --images ../shared/images
        [--only resnet20] [--json] [--cache FOLDER]
    python -m tests.benchmarks.correlation_pruning [--images ../shared/images] [--only resnet20]
        [--policies 60] [--reconstructed 60] [--fine-tuned 16] [--cache FILE.jsonl] [--json]

A *pruning* policy gives every group a width among the product's options (multiples of 8 channels,
down to a quarter); how many groups it cuts is drawn first, so that losses reach from mild to
severe. A *joint* one also gives every group 3, 4, 5 or 8 bits, with 8-bit activations on the
ranges of the original network. Which channels stay is what the product decides: those with the
largest sensitivities.

The true losses are cross-entropies on the test images, less the original's:

- *loss*: the network sliced (and rounded), batch norm with the statistics of training;
- *loss, re-estimated batch norm*: the same network, its statistics estimated again on 256
  calibration images (one batch), then judged on the test images;
- *errors and loss, fine-tuned*: of some pruning policies, spread evenly by their score, after the
  fixed fine-tuning (``distill.FIXED_FINE_TUNING``) of the sliced and re-estimated network.

Scores know calibration images alone, and are: the sum of our sensitivities; the squared change of
the folded weights; the share of MACs removed; and what the variant loses on 256 calibration images
(cross-entropy, divergence from the original, share of errors) with the statistics of training,
Dynamic BN, anchored Dynamic BN, and after reconstruction. What is found is appended to
``--cache``; a later run goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.batchnorm import reestimate
from harness.compression.distill import FIXED_FINE_TUNING, distill
from harness.compression.fakequant import fake_quantize, input_ranges
from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.quantizers import QuantizedWeight, quantize_weight
from harness.compression.reconstruct import reconstruct
from harness.networks import count_macs, fold_batchnorm, keep_freed_memory
from harness.records import Group, Option, weight_bits
from harness.sensitivity.curvature import rounded_weights, score
from harness.sensitivity.dynamic_bn import (
    Performance,
    Statistics,
    corrections_of,
    cut_corrections,
    judge,
)
from harness.strategies.generator import options_for
from tests.benchmarks.compression_networks import Subject, training_data
from tests.benchmarks.correlation import Cache, correlated, say, show, subjects
from tests.benchmarks.policies import HOW, TRIED_ON

NETWORKS = ("resnet20", "resnet56")
STEP = 8
PRECISIONS = ("w3a8", "w4a8", "w5a8", "int8")
KINDS = ("pruning", "joint")
RECONSTRUCTED = ", reconstructed"
LOSSES = ("loss", "loss, re-estimated batch norm")
TUNED = ("errors, fine-tuned", "loss, fine-tuned")
CONTROLS = ("sensitivity", "weight change", "MACs removed")
CALIBRATION = tuple(
    f"calibration {what}{how}"
    for what in ("loss", "divergence", "errors")
    for how in (*HOW, RECONSTRUCTED)
)

Policy: TypeAlias = Mapping[str, Option]


def policies(
    options: Mapping[str, tuple[Option, ...]], count: int, *, joint: bool, seed: int = 0
) -> list[dict[str, Option]]:
    """``count`` different policies: of each, a drawn share of the groups loses some of its width.

    Every other policy keeps at least half of each group, and no fewer than 4 bits. Precisions are
    fp32, or where ``joint`` drawn for every group.
    """
    rng = np.random.default_rng(seed)
    found: list[dict[str, Option]] = []
    for index in itertools.count():
        if len(found) == count:
            break
        share, mild = rng.uniform(0.05, 0.8), index % 2
        policy = {}
        for group, menu in options.items():
            widths = sorted({option.channels for option in menu})
            narrow = [w for w in widths[:-1] if not mild or 2 * w >= widths[-1]]
            cut = rng.random() < share and narrow
            width = int(rng.choice(narrow)) if cut else widths[-1]
            precision = str(rng.choice(PRECISIONS[mild:])) if joint else "fp32"
            policy[group] = Option(channels=width, precision=precision)
        if policy not in found:
            found.append(policy)
    return found


def key_of(policy: Policy) -> str:
    return " ".join(f"{option.channels}{option.precision}" for option in policy.values())


class Bench:
    """One network: its options, their scores, and variants of it judged."""

    def __init__(self, item: Subject) -> None:
        self.item, self.example = item, item.calibration[:1]
        self.groups = find_groups(item.network, self.example)
        self.options = options_for(self.groups, precisions=("fp32", *PRECISIONS), step=STEP)
        self.sensitivities = score(
            item.network, self.groups, self.options, item.calibration, draws=4
        )
        self.ranges = input_ranges(item.network, item.calibration)
        self.tried = item.calibration[:TRIED_ON]
        self.tried_labels = item.calibration_labels[:TRIED_ON]
        with torch.no_grad():
            self.reference = item.network(self.tried)
        test = self.logits(copy.deepcopy(item.network))
        self.fp32 = float(functional.cross_entropy(test, item.test_labels))
        self.macs = count_macs(item.network, self.example)
        self.corrected = corrections_of(item.network, self.tried)
        self.changes = self._changes()

    def _changes(self) -> dict[str, list[float]]:
        """For each group's options the squared change of its producers' folded weights."""
        folded = fold_batchnorm(self.item.network, self.example)
        found = {}
        for group in self.groups:
            found[group.name] = [
                sum(self._change(folded, group, name, option) for name in group.producers)
                for option in self.options[group.name]
            ]
        return found

    def _change(self, folded: nn.Module, group: Group, layer: str, option: Option) -> float:
        weight = folded.get_parameter(f"{layer}.weight").detach()
        changed = torch.zeros_like(weight)
        kept = list(self.sensitivities.kept(group.name, option.channels))
        changed[kept] = rounded_weights(weight, option.precision)[kept]
        return float((weight - changed).square().sum())

    def kept(self, policy: Policy) -> dict[str, tuple[int, ...]]:
        return {
            name: self.sensitivities.kept(name, option.channels) for name, option in policy.items()
        }

    def sliced(self, policy: Policy) -> nn.Module:
        return prune(self.item.network, self.example, self.groups, self.kept(policy))

    def rounded(self, network: nn.Module, policy: Policy) -> nn.Module:
        """The sliced network with every group's layers in its precision, or itself in fp32."""
        words = {
            name: policy[group.name].precision
            for group in self.groups
            for name in group.producers
            if policy[group.name].precision != "fp32"
        }
        if not words:
            return network
        weights: dict[str, QuantizedWeight | int] = {
            name: quantize_weight(
                network.get_parameter(f"{name}.weight"),
                weight_bits(word),
                scale="max" if word == "int8" else "error",
            )
            for name, word in words.items()
        }
        ranges = {name: self.ranges[name] for name in words}
        return fake_quantize(network, self.example, weights=weights, ranges=ranges, fold=False)

    def logits(self, network: nn.Module) -> Tensor:
        """Of the test images; the network's memory format is changed."""
        # A quarter less time than in one batch on networks this narrow.
        network = network.to(memory_format=torch.channels_last)
        test = self.item.test.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return torch.cat([network(part) for part in test.split(32)])

    def loss(self, network: nn.Module) -> float:
        logits = self.logits(network)
        return float(functional.cross_entropy(logits, self.item.test_labels)) - self.fp32

    def scores(self, policy: Policy) -> dict[str, float]:
        return {
            "sensitivity": self.sensitivities.total(policy),
            "weight change": sum(
                self.changes[name][self.options[name].index(option)]
                for name, option in policy.items()
            ),
        }

    def truth(self, policy: Policy) -> dict[str, float]:
        """The two true losses, and everything known without running the network but the sums."""
        sliced = self.sliced(policy)
        macs = count_macs(sliced, self.example)
        variant = self.rounded(sliced, policy)
        found = {"MACs removed": 1 - macs / self.macs, "loss": self.loss(variant)}
        reestimate(variant, self.tried, batch=TRIED_ON)
        return found | {"loss, re-estimated batch norm": self.loss(variant)}

    def predicted(self, policy: Policy) -> dict[str, float]:
        """What calibration images say of a policy under each kind of statistics."""
        variant = self.rounded(self.sliced(policy), policy)
        cut = cut_corrections(
            self.corrected, self.item.network, self.example, self.groups, self.kept(policy)
        )
        found: dict[str, float] = {}
        for how, kind in HOW.items():
            corrected = cut if kind == "anchored" else None
            found |= named(how, self.judged(variant, kind, corrected))
        return found

    def reconstructed(self, policy: Policy) -> dict[str, float]:
        """What calibration images say after the layers have been fitted again, then rounded."""
        variant = self.sliced(policy)
        reconstruct(variant, self.item.network, self.groups, self.kept(policy), self.tried)
        return named(RECONSTRUCTED, self.judged(self.rounded(variant, policy), "trained", None))

    def judged(self, variant: nn.Module, kind: Statistics, corrected: Any) -> Performance:
        return judge(
            variant,
            self.tried,
            self.tried_labels,
            self.reference,
            statistics=kind,
            corrected=corrected,
            batch=TRIED_ON,
        )

    def fine_tuned(self, policy: Policy, train: Tensor, labels: Tensor) -> dict[str, float]:
        """Test errors and loss after the fixed fine-tuning."""
        variant = self.sliced(policy)
        reestimate(variant, self.item.calibration, batch=TRIED_ON)
        tuned = distill(variant, self.item.network, train, labels, **FIXED_FINE_TUNING)
        logits = self.logits(tuned)
        right = (logits.argmax(1) == self.item.test_labels).float().mean()
        loss = float(functional.cross_entropy(logits, self.item.test_labels)) - self.fp32
        return {"errors, fine-tuned": 1 - float(right), "loss, fine-tuned": loss}


def named(how: str, found: Performance) -> dict[str, float]:
    assert found.loss is not None and found.top1 is not None
    return {
        f"calibration loss{how}": found.loss,
        f"calibration divergence{how}": found.divergence,
        f"calibration errors{how}": 1 - found.top1,
    }


def spread(scores: Sequence[float], count: int) -> list[int]:
    """The places of ``count`` of the scores, evenly from the least to the largest."""
    order = np.argsort(np.asarray(scores), kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def rows(
    images: Path,
    *,
    only: Iterable[str] = NETWORKS,
    count: int = 60,
    reconstructed: int = 60,
    fine_tuned: int = 16,
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Every score's correlations with every truth, for pruning policies and for joint ones.

    Half as many policies of ResNet-56, four times as deep; fine-tuned are those of ResNet-20.
    """
    known = Cache(cache)
    found = []
    for item in subjects(only, images):
        share = 1 if item.name == "resnet20" else 2
        found += rows_of(
            item,
            images,
            (count // share, reconstructed // share, fine_tuned if share == 1 else 0),
            known,
        )
    return found


def rows_of(
    item: Subject, images: Path, counts: tuple[int, int, int], cache: Cache
) -> list[dict[str, Any]]:
    count, reconstructed, fine_tuned = counts
    bench = Bench(item)
    asked = {kind: policies(bench.options, count, joint=kind == "joint") for kind in KINDS}
    results = {kind: [bench.scores(policy) for policy in asked[kind]] for kind in KINDS}

    def fill(kind: str, what: str, made: Callable[[Policy], Any], places: Sequence[int]) -> None:
        for done, index in enumerate(places, 1):
            policy = asked[kind][index]
            result = results[kind][index]
            result |= cache.get(
                f"{item.name} {kind} {what} {key_of(policy)}", partial(made, policy)
            )
            say(f"{item.name}: {kind}, {what} {done} of {len(places)}, loss {result['loss']:.3f}")

    for kind in KINDS:
        fill(kind, "truth", bench.truth, range(count))
        fill(kind, "predicted", bench.predicted, range(count))
    for kind in KINDS:
        fill(kind, "reconstructed", bench.reconstructed, range(min(reconstructed, count)))
    if fine_tuned:
        known = training_data(images)
        chosen = spread([result["sensitivity"] for result in results["pruning"]], fine_tuned)
        tune = partial(bench.fine_tuned, train=known.train_images, labels=known.train_labels)
        fill("pruning", "fine-tuned", tune, chosen)
    return [row for kind in KINDS for row in correlations(item.name, kind, results[kind])]


def correlations(
    network: str, kind: str, results: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    head = {"task": "correlation-prune", "network": network, "policies": kind}
    columns = {name: [r.get(name) for r in results] for name in (*CONTROLS, *CALIBRATION)}
    return correlated(head, columns, (*LOSSES, *TUNED), results)


def report(images: Path, *, only: Iterable[str], folder: Path | None, as_json: bool) -> None:
    """Print the rows of those of our networks that are asked for; ``folder`` keeps results."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    kept = None if folder is None else folder / "correlation-prune.jsonl"
    write(rows(images, only=[name for name in only if name in NETWORKS], cache=kept), as_json)


def write(found: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=1))
    elif found:
        show(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--images", type=Path, default=Path("../shared/images"))
    parser.add_argument("--only", nargs="+", default=list(NETWORKS))
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--reconstructed", type=int, default=60)
    parser.add_argument("--fine-tuned", type=int, default=16)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    found = rows(
        arguments.images,
        only=arguments.only,
        count=arguments.policies,
        reconstructed=arguments.reconstructed,
        fine_tuned=arguments.fine_tuned,
        cache=arguments.cache,
    )
    write(found, arguments.json)


if __name__ == "__main__":
    main()
