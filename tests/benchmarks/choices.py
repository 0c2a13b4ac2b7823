"""Choices among networks that were published with their measured latencies.

A latency model predicts every network without having seen its time, nor that of any network of its
kind: the whole family, or the whole width, is held out. Then limits are drawn, the planner's rule
chooses a network for each, and the published measurement says whether it was right.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from harness.planning import choosing
from tests.benchmarks import latency_models, protocols
from tests.benchmarks.latency_models import COVERAGE
from tests.benchmarks.protocols import Split
from tests.benchmarks.published import Item, Published

DRAWS = 200
SEED = 0
# NAS-Bench-201 has no families: a search ends with about so many cells to choose from.
SHORTLIST = 8
FITTED_CELLS = 100


class Known(NamedTuple):
    """A network with its published latency, its held-out prediction, and its accuracy if any."""

    name: str
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float
    accuracy: float | None

    def offer(self) -> choosing.Offer:
        """What the planner may know of it: all but the measurement."""
        return choosing.Offer(
            name=self.name,
            latency_s=self.predicted_s,
            low_s=self.low_s,
            high_s=self.high_s,
            coverage=COVERAGE,
            worth=self.accuracy,
        )


Sets = dict[str, list[Known]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where networks to choose from come from.

    ``splits`` holds out, ``candidates`` names the set that an item belongs to (its choice is among
    those), ``shortlist`` of which are drawn each time (0: all).
    """

    key: str
    data: str
    what: str
    splits: Callable[[Published, int], Iterator[Split]]
    candidates: Callable[[Item], str]
    unlike: bool
    shortlist: int = 0


def _condition(item: Item) -> str:
    return " ".join(item.labels[key] for key in ("precision", "power_mode", "batch"))


def _family(item: Item) -> str:
    return item.group


SOURCES = (
    Source(
        key="tx2_widths",
        data="tx2",
        what="CNV at 4 widths, TensorRT, 48 conditions",
        splits=protocols.leave_out(lambda item: item.labels["width_percent"]),
        candidates=_condition,
        unlike=True,
    ),
    Source(
        key="tx2_unseen_modes",
        data="tx2",
        what="the same in power modes that were not measured",
        splits=protocols.by_label("power_mode", ["maxn"]),
        candidates=_condition,
        unlike=False,
    ),
    Source(
        key="nano_trt_fp16",
        data="torchvision_trt_fp16",
        what="torchvision, a family held out",
        splits=protocols.leave_out(_family),
        candidates=_family,
        unlike=True,
    ),
    Source(
        key="nano_ort_gpu",
        data="timm_ort_fp32_gpu",
        what="timm on the GPU, a family held out",
        splits=protocols.leave_out(_family),
        candidates=_family,
        unlike=True,
    ),
    Source(
        key="nano_ort_cpu",
        data="timm_ort_fp32_cpu",
        what="timm on the CPU, a family held out",
        splits=protocols.leave_out(_family),
        candidates=_family,
        unlike=True,
    ),
    *(
        Source(
            key=f"nb201_{precision}",
            data=f"nasbench201_{precision}",
            what=f"{SHORTLIST} cells of NAS-Bench-201, {FITTED_CELLS} others fitted",
            splits=protocols.at_random(FITTED_CELLS),
            candidates=lambda _: "cells",
            unlike=False,
            shortlist=SHORTLIST,
        )
        for precision in ("fp32", "fp16")
    ),
)


def accuracies(folder: Path, name: str) -> dict[str, float]:
    """Published CIFAR-10 accuracies by the item's name; empty where the table has none."""
    if name == "tx2":
        with (folder / "jetson_tx2" / "cnv_pruned_trt.csv").open(newline="") as stream:
            return {
                " ".join(row[k] for k in ("width_percent", "precision", "power_mode", "batch")): (
                    float(row["cifar10_top1"])
                )
                for row in csv.DictReader(stream)
            }
    if name.startswith("nasbench201"):
        with (folder / "jetson_nano" / "nasbench201.csv").open(newline="") as stream:
            return {row["arch"]: float(row["cifar10_top1"]) for row in csv.DictReader(stream)}
    return {}


def predicted(folder: Path, source: Source, seed: int = SEED) -> Sets:
    """The sets of networks to choose from, each predicted by a model that has not seen it.

    Identical networks are one, with the median of their times; a set has at least two.
    """
    data = latency_models.load(folder, source.data)
    known = accuracies(folder, source.data)
    several = _sets_with_a_choice(data, source)
    sets: dict[str, dict[str, list[Known]]] = {}
    for fitted, tested in source.splits(data, seed):
        items = [data.items[i] for i in tested if source.candidates(data.items[i]) in several]
        if not items:
            continue
        model = latency_models.fit(data, fitted, unlike=source.unlike)
        for item in items:
            row = Known(
                item.name,
                item.seconds,
                *latency_models.predict(model, data, item),
                known[item.name] if known else None,
            )
            sets.setdefault(source.candidates(item), {}).setdefault(item.twin, []).append(row)
    return {key: [_one(twins) for twins in rows.values()] for key, rows in sorted(sets.items())}


def _sets_with_a_choice(data: Published, source: Source) -> set[str]:
    twins: dict[str, set[str]] = {}
    for item in data.items:
        twins.setdefault(source.candidates(item), set()).add(item.twin)
    return {key for key, found in twins.items() if len(found) > 1}


def _one(twins: Sequence[Known]) -> Known:
    return twins[0]._replace(measured_s=float(np.median([row.measured_s for row in twins])))


class Draw(NamedTuple):
    """One limit, what was chosen for it, and what the published measurements say of it.

    ``best`` is what knowing every measurement would have chosen.
    """

    source: str
    candidates: str
    limit_s: float
    chosen: str
    measured_s: float
    best: str
    chance: float

    @property
    def met(self) -> bool:
        """Whether the published latency of what was chosen keeps the limit."""
        return self.measured_s <= self.limit_s

    @property
    def right(self) -> bool:
        """Whether it is the best that does."""
        return self.chosen == self.best


Rule = Callable[[Sequence[choosing.Offer], float], int]


def planned(offers: Sequence[choosing.Offer], limit_s: float) -> int:
    """The planner's rule."""
    return choosing.choose(offers, limit_s).index


def held_to(bound: Callable[[choosing.Offer], float]) -> Rule:
    """The best offer whose ``bound`` keeps the limit; that with the least bound if none does."""

    def rule(offers: Sequence[choosing.Offer], limit_s: float) -> int:
        keeping = [i for i, offer in enumerate(offers) if bound(offer) <= limit_s]
        if not keeping:
            return min(range(len(offers)), key=lambda i: bound(offers[i]))
        return max(keeping, key=lambda i: offers[i].worth or offers[i].latency_s)

    return rule


RULES: dict[str, Rule] = {
    "planner": planned,
    "prediction <= limit": held_to(lambda offer: offer.latency_s),
    "upper end <= limit": held_to(lambda offer: offer.high_s),
}


def drawn(
    source: Source, sets: Sets, *, draws: int = DRAWS, seed: int = SEED, rule: Rule = planned
) -> list[Draw]:
    """Limits drawn log-uniformly between the least and the largest published latency of a set."""
    random = np.random.default_rng(seed)
    names = sorted(sets)
    found = []
    for _ in range(draws):
        name = names[int(random.integers(len(names)))]
        chosen_from = sets[name]
        if source.shortlist:
            picked = random.choice(len(chosen_from), size=source.shortlist, replace=False)
            chosen_from = [chosen_from[i] for i in picked]
        times = [row.measured_s for row in chosen_from]
        limit_s = float(np.exp(random.uniform(np.log(min(times)), np.log(max(times)))))
        limit_s = max(limit_s, min(times))  # rounding must not put it below the fastest
        offers = [row.offer() for row in chosen_from]
        taken = chosen_from[rule(offers, limit_s)]
        feasible = [row for row in chosen_from if row.measured_s <= limit_s]
        best = max(feasible, key=lambda row: row.accuracy or row.measured_s)
        chance = choosing.choose(offers, limit_s).meets
        found.append(
            Draw(source.key, name, limit_s, taken.name, taken.measured_s, best.name, chance)
        )
    return found


def worst(draws: Sequence[Draw]) -> tuple[str, float]:
    """The set of networks from which the best was chosen least often, and how often it was."""
    hits: dict[str, list[bool]] = {}
    for draw in draws:
        hits.setdefault(draw.candidates, []).append(draw.right)
    shares = {name: sum(own) / len(own) for name, own in hits.items()}
    name = min(sorted(shares), key=lambda name: shares[name])
    return name, shares[name]


class Rate(NamedTuple):
    """A share of draws, with Clopper and Pearson's exact 95 % interval.

    It is that of other limits for the same networks: other networks are not covered by it.
    """

    share: float
    low: float
    high: float
    n: int


def rate(hits: Sequence[bool]) -> Rate:
    """The share of ``hits`` that are true."""
    n = len(hits)
    found = stats.binomtest(sum(hits), n).proportion_ci(0.95, method="exact")
    return Rate(sum(hits) / n, float(found.low), float(found.high), n)
