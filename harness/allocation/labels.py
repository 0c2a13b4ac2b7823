"""Partial choices along a path: exact, or with a proven bound where there are too many.

A label is a partial choice: its frontier cell, and its sums. It is kept only if what is to come
from its cell could keep every budget, and at several prices could bring it below the best choice
known; and if no other label of its cell is as good in every sum. Where that leaves too many, the
least promising are given up, and their least bound is returned: it is proven.

Comparisons of costs are loose by what sums may be rounded by: no choice within the budgets is lost
by that. With a ``margin`` no label goes because of another's cost that is the same but for
rounding; the choices that are left are then checked one by one by whoever asked.

Sources: Kellerer, Pferschy, Pisinger, *Knapsack Problems* (2004), chapter 11; Handler, Zang, *A
dual algorithm for the constrained shortest path problem* (1980), for bounds at several prices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.allocation.frontier import Path

__all__ = ["Ahead", "Swept", "sweep"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

_EPS = float(np.finfo(float).eps)
# With several budgets each label is compared with so many before it, in the order of their
# weighted sums: all pairs would be too many, and what dominates a label is mostly near.
_COMPARED = 24
# At most so many labels are made in one step (each is a few numbers a layer).
_MAX_MADE = 3_000_000


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is to come from every cell: at every one of some prices, and of every budget alone."""

    prices: tuple[Floats, ...]
    priced: tuple[list[Floats], ...]
    least: tuple[list[Floats], ...]

    @staticmethod
    def of(path: Path, prices: Sequence[Floats]) -> Ahead:
        """``prices``: the most telling first."""
        ones = np.eye(1 + len(path.budgets))
        return Ahead(
            tuple(prices),
            tuple(path.backwards(np.concatenate(([1.0], price))) for price in prices),
            tuple(path.backwards(row) for row in ones[1:]),
        )


@dataclass(frozen=True, slots=True)
class Swept:
    """Whole choices, by rising objective, and a bound below which none was given up."""

    picks: Ints  # choices x classes
    values: Floats
    given_up: float


def sweep(
    path: Path,
    ahead: Ahead,
    threshold: float,
    *,
    limit: int,
    margin: bool,
    out_of_time: Callable[[], bool],
) -> Swept:
    """All choices with an objective below ``threshold`` that no other dominates.

    No more than ``limit`` labels are kept in a step. In the path's units.
    """
    cell = np.zeros(1, dtype=np.intp)
    sums = np.zeros((1 + len(path.budgets), 1))
    given_up = np.inf
    trail: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]] = []
    slack = path.hair if margin else np.zeros(len(path.budgets))
    bounds = np.zeros(1)
    for i, step in enumerate(path.steps):
        if out_of_time():
            lowest = float(bounds.min()) if i else -np.inf
            return _nothing(path, min(given_up, lowest))
        options = step.after.shape[1]
        after = step.after[cell].ravel()
        made = (sums[:, :, None] + step.amounts[:, cell]).reshape(len(sums), -1)
        alive, bounds = _alive(path, ahead, i + 1, after, made, threshold)
        after, made = after[alive], made[:, alive]
        keep = _undominated(after, made, ahead.prices[0], slack)
        alive, bounds = alive[keep], bounds[keep]
        after, made = after[keep], made[:, keep]
        following = path.steps[i + 1].after.shape[1] if i + 1 < len(path.steps) else 1
        most = max(min(limit, _MAX_MADE // following), 1)
        if len(alive) > most:
            by_bound = np.argpartition(bounds, most)
            given_up = min(given_up, float(bounds[by_bound[most:]].min()))
            chosen = np.sort(by_bound[:most])
            alive, bounds = alive[chosen], bounds[chosen]
            after, made = after[chosen], made[:, chosen]
        parents, taken = np.divmod(alive, options)
        trail.append((parents.astype(np.int32), taken.astype(np.int16)))
        cell, sums = after, made
        if len(cell) == 0:
            return _nothing(path, given_up)
    by_value = np.argsort(sums[0], kind="stable")
    picks = np.zeros((len(by_value), len(path.steps)), dtype=np.intp)
    state: npt.NDArray[np.signedinteger[Any]] = by_value
    for (parents, taken), step in zip(reversed(trail), reversed(path.steps), strict=True):
        picks[:, step.k], state = taken[state], parents[state]
    return Swept(picks, sums[0][by_value], given_up)


def _nothing(path: Path, given_up: float) -> Swept:
    return Swept(np.zeros((0, len(path.steps)), dtype=np.intp), np.zeros(0), given_up)


def _alive(
    path: Path, ahead: Ahead, i: int, cell: Ints, sums: Floats, threshold: float
) -> tuple[Ints, Floats]:
    """Which labels before step ``i`` may still lead to something, and their bounds."""
    index = np.arange(len(cell))
    for b, budget in enumerate(path.budgets):
        index = index[sums[1 + b, index] + ahead.least[b][i][cell[index]] <= budget]
    bounds = np.full(len(index), -np.inf)
    for prices, to_come in zip(ahead.prices, ahead.priced, strict=True):
        here = sums[:, index]
        left = here[1:] - path.budgets[:, None]
        np.maximum(bounds, here[0] + prices @ left + to_come[i][cell[index]], out=bounds)
        below = bounds < threshold
        index, bounds = index[below], bounds[below]
    return index, bounds


def _undominated(cell: Ints, sums: Floats, prices: Floats, slack: Floats) -> Ints:
    """Indices of the labels that none of their cell is known to dominate."""
    if len(cell) < 2:
        return np.arange(len(cell))
    if len(sums) == 2:
        return _undominated_pairs(cell, sums[1], sums[0], float(slack[0]))
    scale = np.maximum(prices, 1e-9 * np.ptp(sums[0]) / np.maximum(np.ptp(sums[1:], axis=1), 1e-60))
    by_weight = np.lexsort((sums[0] + scale @ sums[1:], cell))
    cell, sums = cell[by_weight], sums[:, by_weight].copy()
    worse = np.zeros(len(cell), dtype=np.bool_)
    for n in range(1, min(_COMPARED, len(cell) - 1) + 1):
        beats = (cell[n:] == cell[:-n]) & (sums[0, :-n] <= sums[0, n:])
        for b, hair in enumerate(slack):
            beats &= sums[1 + b, :-n] <= sums[1 + b, n:] - hair
        worse[n:] |= beats
    return np.sort(by_weight[~worse])


def _undominated_pairs(cell: Ints, costs: Floats, values: Floats, hair: float) -> Ints:
    """The same with one budget, for all pairs at once.

    Values are made ranks, and those of later cells are made lower than all of earlier cells': so
    the least rank up to here is that of this cell.
    """
    order = np.lexsort((values, costs, cell))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[np.argsort(values[order], kind="stable")] = np.arange(len(order))
    ranks -= cell[order] * np.int64(len(order))
    least = np.minimum.accumulate(ranks)
    if hair == 0.0:
        return np.sort(order[ranks == least])
    cell, costs = cell[order], costs[order]
    # The last of this cell that costs less by a hair: costs rise within a cell. Cells are laid side
    # by side, and the hair is made as wide as that lets floats tell apart.
    span = float(np.ptp(costs)) + hair
    place = cell * (2 * span) + (costs - costs[0])
    hair = max(hair, 8 * _EPS * float(np.abs(place).max()))
    before = np.maximum(np.searchsorted(place, place - hair, side="right") - 1, 0)
    beaten = (cell[before] == cell) & (costs[before] <= costs - hair / 2) & (least[before] < ranks)
    return np.sort(order[~beaten])
