"""Coupled tables along a path: one class after another, with a small frontier between.

Classes are taken in an order in which few classes at a time still have tables with classes to
come: the frontier. What is to come depends on the classes taken only through the frontier's cell,
so a dynamic programme over cells minimises any weighted sum of the layers exactly. Options that no
table to come tells apart share a cell. Networks are chains with skips: two or three classes wide.

Sources: Bertele, Brioschi, *Nonserial Dynamic Programming* (1972): elimination orders; Dechter,
*Bucket elimination* (1999); Koller, Friedman, *Probabilistic Graphical Models* (2009), section
13.3, for min-marginals by passing forwards and backwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.allocation.reduction import decimals, quantum
from harness.allocation.tables import Coupling, Term

__all__ = ["Path", "Step", "neighbours", "order", "scales", "widths"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

_EPS = float(np.finfo(float).eps)
# Greedy orders from so many classes; the one with the least work is taken.
_STARTS = 16


def neighbours(coupling: Coupling) -> list[set[int]]:
    """For every class those that some term couples with it."""
    near: list[set[int]] = [set() for _ in coupling.kept]
    for term in coupling.terms:
        for k in term.classes:
            near[k].update(term.classes)
    return [others - {k} for k, others in enumerate(near)]


def order(coupling: Coupling) -> tuple[int, ...]:
    """The classes in an order with little work: as they come, reversed, or greedily."""
    near = neighbours(coupling)
    sizes = [len(options) for options in coupling.kept]
    count = len(sizes)
    by_degree = sorted(range(count), key=lambda k: (len(near[k]), sizes[k]))
    orders: list[Sequence[int]] = [range(count), range(count - 1, -1, -1)]
    orders += [_greedy(near, sizes, start) for start in by_degree[:_STARTS]]
    return tuple(min(orders, key=lambda each: math.fsum(widths(near, sizes, each))))


def widths(near: Sequence[set[int]], sizes: Sequence[int], classes: Iterable[int]) -> list[float]:
    """How many entries each step has: its frontier's options, times those of its class."""
    taken: set[int] = set()
    frontier: set[int] = set()
    result = []
    for k in classes:
        frontier.add(k)
        taken.add(k)
        result.append(math.prod(float(sizes[i]) for i in frontier))
        frontier = {i for i in frontier if near[i] - taken}
    return result


def _greedy(near: Sequence[set[int]], sizes: Sequence[int], start: int) -> list[int]:
    """From ``start`` always the class that leaves the smallest frontier."""
    taken: list[int] = []
    left = set(range(len(near)))
    frontier: set[int] = set()

    def after(k: int) -> tuple[float, float, int]:
        behind = left - {k}
        wide = frontier | {k}
        return (
            math.fsum(math.log(sizes[i]) for i in wide if near[i] & behind),
            math.fsum(math.log(sizes[i]) for i in wide),
            k,
        )

    following = start
    while True:
        taken.append(following)
        left.discard(following)
        frontier = {i for i in frontier | {following} if near[i] & left}
        if not left:
            return taken
        close = set().union(*(near[i] for i in frontier)) & left or left
        following = min(close, key=after)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One class taken: ``amounts[layer, cell, option]`` is what each option adds in each cell.

    ``after[cell, option]`` is the cell behind it, of ``cells``.
    """

    k: int
    amounts: Floats
    after: Ints
    cells: int

    def forwards(self, sums: Floats) -> Floats:
        """The least of ``sums[cell, option]`` that leads to each cell behind."""
        flat = self.after.ravel()
        by_cell = np.argsort(flat, kind="stable")
        starts = np.searchsorted(flat[by_cell], np.arange(self.cells))
        least: Floats = np.minimum.reduceat(sums.ravel()[by_cell], starts)
        return least


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A coupling's steps, with numbers as the search takes them.

    Layers of decimal numbers are multiplied by ``parts[layer]``, which makes them whole: sums of
    those do not round. ``size[layer]`` is what no sum exceeds in size, ``hair[b]`` what a sum of
    budget ``b``'s costs may be off by (0 where all sums are exact), ``budgets[b]`` the budget and
    that much more: what is beyond it breaks the budget for certain.
    """

    steps: tuple[Step, ...]
    parts: Floats
    size: Floats
    hair: Floats
    budgets: Floats
    terms: int

    @staticmethod
    def of(coupling: Coupling, classes: Sequence[int]) -> Path:
        """The path of the classes in this order."""
        parts, size, hair = scales(coupling)
        limits = np.array(coupling.budgets, dtype=np.float64)
        budgets = (limits + hair[1:]) * parts[1:]
        budgets += np.where(hair[1:] > 0, 2 * _EPS * np.abs(budgets), 0.0)
        steps = tuple(_steps(coupling, classes, parts))
        return Path(
            steps,
            parts,
            size * parts,
            hair[1:] * parts[1:],
            budgets,
            len(coupling.terms),
        )

    def rounding(self, prices: Floats) -> float:
        """What a sum of layers, budgets' at these prices, may be off by."""
        size = float(self.size[0] + prices @ (self.size[1:] + np.abs(self.budgets)))
        return 4 * _EPS * (self.terms + len(self.steps) + 4) * size

    def backwards(self, weights: Floats) -> list[Floats]:
        """For every step, and behind the last, the least that is to come from each cell.

        ``weights`` are those of the layers, ``result[i][cell]`` is before step ``i``.
        """
        result = [np.zeros(1)]
        for step in reversed(self.steps):
            sums = np.tensordot(weights, step.amounts, 1) + result[-1][step.after]
            result.append(sums.min(axis=1))
        return result[::-1]

    def walk(self, weights: Floats, to_come: Sequence[Floats]) -> tuple[Ints, Floats]:
        """Picks with the least weighted sum, and their layers' sums."""
        picks = np.zeros(len(self.steps), dtype=np.intp)
        sums = np.zeros(len(weights))
        cell = 0
        for i, step in enumerate(self.steps):
            amounts = step.amounts[:, cell]
            after = step.after[cell]
            option = int((weights @ amounts + to_come[i + 1][after]).argmin())
            picks[step.k] = option
            sums += amounts[:, option]
            cell = int(after[option])
        return picks, sums

    def marginals(self, weights: Floats, to_come: Sequence[Floats]) -> list[Floats]:
        """For every class and option, the least weighted sum of all picks that hold it."""
        result: list[Floats] = [np.zeros(0)] * len(self.steps)
        behind = np.zeros(1)
        for i, step in enumerate(self.steps):
            sums = np.tensordot(weights, step.amounts, 1) + behind[:, None]
            result[step.k] = (sums + to_come[i + 1][step.after]).min(axis=0)
            behind = step.forwards(sums)
        return result


def scales(coupling: Coupling) -> tuple[Floats, Floats, Floats]:
    """Every layer's parts, size, and hair: as in ``Path``, not scaled."""
    parts, sizes, hairs = [], [], []
    budgets = (0.0, *coupling.budgets)
    for tables, budget in zip(coupling.layers, budgets, strict=True):
        numbers = np.concatenate([np.zeros(1), *(t.costs.ravel() for t in tables)])
        size = math.fsum(float(np.abs(t.costs).max()) for t in tables)
        size += abs(budget) if math.isfinite(budget) else 0.0
        exact = quantum(numbers, size) is not None
        parts.append(float(decimals(numbers, size)))
        sizes.append(size)
        hairs.append(0.0 if exact else 4 * (len(tables) + 4) * _EPS * size)
    return np.array(parts), np.array(sizes), np.array(hairs)


def _steps(coupling: Coupling, classes: Sequence[int], parts: Floats) -> Iterable[Step]:
    """The steps along ``classes``."""
    rank = {k: i for i, k in enumerate(classes)}
    mine: list[list[Term]] = [[] for _ in classes]
    last: dict[int, list[tuple[int, Ints]]] = {k: [] for k in classes}
    for term in coupling.terms:
        at = max(rank[k] for k in term.classes)
        mine[at].append(term)
        for k, states in zip(term.classes, term.maps, strict=True):
            last[k].append((at, states))
    frontier: list[tuple[int, Ints]] = []  # classes, and the first option of each cell
    for i, k in enumerate(classes):
        every = np.arange(len(coupling.kept[k]), dtype=np.intp)
        axes = [*frontier, (k, every)]
        shape = [len(first) for _, first in axes]
        amounts = np.zeros([len(parts), *shape])
        dims = {u: dim for dim, (u, _) in enumerate(axes)}
        for term in mine[i]:
            whole = parts[term.layer]
            table = np.rint(term.amounts * whole) if whole > 1 else term.amounts
            index = tuple(
                _along(states[axes[dims[u]][1]], dims[u], len(shape))
                if u in dims
                else states[0]  # of one state only
                for u, states in zip(term.classes, term.maps, strict=True)
            )
            amounts[term.layer] += table[index]
        frontier, after, cells = _after(axes, last, i)
        yield Step(k, amounts.reshape(len(parts), -1, shape[-1]), after, cells)


def _along(row: Ints, dim: int, dims: int) -> Ints:
    """The row as an array of so many axes, along one of them."""
    shape = [1] * dims
    shape[dim] = -1
    return row.reshape(shape)


def _after(
    axes: Sequence[tuple[int, Ints]], last: dict[int, list[tuple[int, Ints]]], i: int
) -> tuple[list[tuple[int, Ints]], Ints, int]:
    """The frontier behind step ``i``, the cell each of the step's entries leads to, their count."""
    frontier: list[tuple[int, Ints]] = []
    shape = [len(first) for _, first in axes]
    after = np.zeros([1] * len(shape), dtype=np.intp)
    count = 1
    for dim, (k, first) in enumerate(axes):
        rows = [states[first] for at, states in last[k] if at > i]
        if not rows:
            continue
        cells, one, inverse = np.unique(
            np.stack(rows), axis=1, return_index=True, return_inverse=True
        )
        width = cells.shape[1]
        if width > 1:
            frontier.append((k, first[one]))
            after = after * width + _along(inverse.ravel(), dim, len(shape))
            count *= width
    whole = np.broadcast_to(after, shape)
    return frontier, np.ascontiguousarray(whole.reshape(-1, shape[-1])), count
