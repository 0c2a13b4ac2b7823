"""Two simpler ways to allocate, to compare with: separable costs, and greedy moves.

Both see the same tables as the exact solver. The first is what a knapsack over independent layers
gives. The second makes the move that loses least for what it saves, again and again, as NetAdapt
does with measured accuracies (Yang et al., ECCV 2018, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.allocation import knapsack
from harness.allocation.coupled import Table
from harness.errors import BoardfitError, ConfigError
from harness.strategies.tabled import Tabled

__all__ = ["Greedy", "Moves", "separable", "single_moves"]

Floats = npt.NDArray[np.float64]
# Moves a group, after which greedy gives up: it can go in circles where two budgets pull apart.
MAX_MOVES = 40
# Seconds for one separable problem.
TIME_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Moves:
    """What changing one group's option adds, linearised: a row of options for every group."""

    latency_s: tuple[Floats, ...]
    size_bytes: tuple[Floats, ...]
    loss: tuple[Floats, ...]


def single_moves(tabled: Tabled, choice: Sequence[int]) -> Moves:
    """What each option of each group would add to what ``choice`` takes, if it alone changed.

    The latency by its cut at ``choice``: exact where the latency adds up itself.
    """
    sizes = [len(values) for values in tabled.values]
    return Moves(
        latency_s=_added(tabled.cut(choice).tables, choice, sizes),
        size_bytes=_added(tabled.tables.size_bytes.tables, choice, sizes),
        loss=tuple(
            np.asarray(values, dtype=np.float64) - values[j]
            for values, j in zip(tabled.values, choice, strict=True)
        ),
    )


def _added(
    tables: Sequence[Table], choice: Sequence[int], sizes: Sequence[int]
) -> tuple[Floats, ...]:
    added = tuple(np.zeros(size) for size in sizes)
    for table in tables:
        here = tuple(
            choice[group] if states is None else int(states[choice[group]])
            for group, states in zip(table.groups, table.states, strict=True)
        )
        for axis, (group, states) in enumerate(zip(table.groups, table.states, strict=True)):
            index: tuple[int | slice, ...] = (*here[:axis], slice(None), *here[axis + 1 :])
            row = table.costs[index]
            added[group][:] += (row if states is None else row[states]) - table.costs[here]
    return added


def separable(
    tabled: Tabled, around: Sequence[int], *, latency_s: float, size_bytes: float | None
) -> tuple[int, ...] | None:
    """The best allocation if each option cost what it does where ``around`` is all else.

    Optimal for those costs, which are not what it takes: price it. None where even the least of
    such costs exceed a limit, or nothing is found in ``TIME_LIMIT_S``.
    """
    amounts, moves = tabled.amounts(around), single_moves(tabled, around)
    costs, room = [[row.tolist() for row in moves.latency_s]], [latency_s - amounts.latency_s]
    if size_bytes is not None:
        costs.append([row.tolist() for row in moves.size_bytes])
        room.append(size_bytes - amounts.size_bytes)
    try:
        return knapsack.solve(tabled.values, costs, room, time_limit_s=TIME_LIMIT_S).choice
    except ConfigError:
        raise
    except BoardfitError:
        return None


class Greedy:
    """Moves from ``start``, one group's option at a time, until every limit is kept.

    What was worked out for one limit is kept for the next.
    """

    def __init__(self, tabled: Tabled, start: Sequence[int]) -> None:
        self._tabled = tabled
        self._start = tuple(start)
        self._moves: dict[tuple[int, ...], Moves] = {}

    def allocate(
        self,
        *,
        latency_s: float,
        size_bytes: float | None,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> tuple[int, ...] | None:
        """The first allocation on the way that keeps the limits; None where no move leads there.

        Each move is the one that adds least loss for the share of the exceeded limits that it
        saves.
        """
        choice = self._start
        for _ in range(MAX_MOVES * len(choice)):
            amounts = self._tabled.amounts(choice)
            over_latency = amounts.latency_s > latency_s
            over_size = size_bytes is not None and amounts.size_bytes > size_bytes
            if not over_latency and not over_size:
                return choice
            if out_of_time():
                return None
            moves = self._from(choice)
            best: tuple[float, int, int] | None = None
            for group, loss in enumerate(moves.loss):
                saved = np.zeros(len(loss))
                if over_latency:
                    saved -= moves.latency_s[group] / latency_s
                if over_size and size_bytes is not None:
                    saved -= moves.size_bytes[group] / size_bytes
                price = np.full(len(loss), math.inf)
                np.divide(loss, saved, out=price, where=saved > 1e-12)
                option = int(price.argmin())
                if price[option] < math.inf and (best is None or price[option] < best[0]):
                    best = float(price[option]), group, option
            if best is None:
                return None
            choice = (*choice[: best[1]], best[2], *choice[best[1] + 1 :])
        return None

    def _from(self, choice: tuple[int, ...]) -> Moves:
        if choice not in self._moves:
            self._moves[choice] = single_moves(self._tabled, choice)
        return self._moves[choice]
