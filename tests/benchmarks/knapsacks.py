"""Separable knapsacks to test and to time: published, Pisinger's families, networks' shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HAWQ = Path(__file__).parents[3] / "shared" / "measured" / "instances" / "hawq_v3.json"
FAMILIES = ("uncorrelated", "weak", "strong", "subset-sum", "monotone")

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One knapsack; ``optimum`` where it was published."""

    name: str
    values: Rows
    costs: Rows
    budget: float
    tied: Sequence[Sequence[int]] = ()
    optimum: float | None = None


def published() -> Iterator[Instance]:
    """The instances of HAWQ-V3: bit widths of ResNets under a size, BOPs or latency limit."""
    for item in json.loads(HAWQ.read_text())["instances"]:
        yield Instance(
            name=item["name"],
            values=item["values"],
            costs=item["costs"],
            budget=item["budget"],
            tied=item["tied"],
            optimum=item["exact_optimum"],
        )


def pisinger(family: str, classes: int, options: int, seed: int, largest: int = 1000) -> Instance:
    """One of Pisinger's instances (1995, section 5): integers.

    He maximises profits; a value here is the largest profit of its class less the profit. The
    budget is in the middle between the cheapest choice and that of the best profits. (His is in the
    middle between the least and the largest weights, which leaves the uncorrelated ones nothing to
    give up; for the others it is the same or nearly so.)
    """
    rng = np.random.default_rng([seed, classes, options, FAMILIES.index(family)])
    weights = rng.integers(1, largest + 1, (classes, options))
    if family == "weak":
        profits = np.maximum(weights + rng.integers(-10, 11, weights.shape), 1)
    elif family == "strong":  # sums of sorted items whose profit is the weight and ten more
        steps = np.sort(weights, axis=1)
        weights, profits = steps.cumsum(axis=1), (steps + 10).cumsum(axis=1)
    elif family == "subset-sum":
        profits = weights
    else:
        profits = rng.integers(1, largest + 1, weights.shape)
    if family == "monotone":  # more weight, more profit: nothing is dominated
        weights, profits = np.sort(weights, axis=1), np.sort(profits, axis=1)
    values = profits.max(axis=1, keepdims=True) - profits
    dearest = np.take_along_axis(weights, profits.argmax(axis=1)[:, None], axis=1)
    budget = (weights.min(axis=1).sum() + dearest.sum()) // 2
    return Instance(
        name=f"{family} {classes}x{options} #{seed}",
        values=values.astype(float).tolist(),
        costs=weights.astype(float).tolist(),
        budget=float(budget),
    )


def network(classes: int, options: int, seed: int) -> Instance:
    """A network's shape: real costs that fall and losses that rise with less width, with noise."""
    rng = np.random.default_rng([seed, classes, options])
    share = np.linspace(1 / options, 1, options)
    cost = (
        10 ** rng.normal(0, 0.6, (classes, 1)) * share * rng.uniform(0.8, 1.2, (classes, options))
    )
    loss = 10 ** rng.normal(0, 1.0, (classes, 1)) * (1 - share) ** 2
    loss = loss * rng.uniform(0.5, 1.5, (classes, options))
    return Instance(
        name=f"network {classes}x{options} #{seed}",
        values=loss.tolist(),
        costs=cost.tolist(),
        budget=0.5 * float(cost.max(axis=1).sum()),
    )
