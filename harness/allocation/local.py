"""Better choices near a known one: moves of one class, and of any two at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from harness.allocation.tables import Coupling, Term

__all__ = ["improved"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

# Beyond so many options in all only moves of one class are tried: pairs are their square.
_MAX_PAIRED = 1200
# Each move looks at all pairs; the search finds better choices than the last of many would.
_MOVES = 30


def improved(coupling: Coupling, picks: Ints, out_of_time: Callable[[], bool]) -> Ints:
    """Picks that no move within the budgets betters, from ``picks``, which keep them.

    Sums are those of floats, so whether budgets are kept is for the caller to check.
    """
    picks = picks.copy()
    sizes = [len(options) for options in coupling.kept]
    first = np.cumsum([0, *sizes])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    option = np.arange(len(owner)) - first[owner]
    budgets = np.array(coupling.budgets)
    paired = len(owner) <= _MAX_PAIRED
    for _ in range(_MOVES):
        if out_of_time():
            break
        moves = _moves(coupling, picks, first)
        now = np.zeros(len(coupling.layers))
        for term in coupling.terms:
            now[term.layer] += term.amounts[_index(term, picks)]
        left = (budgets - now[1:])[:, None]
        gain = np.where((moves[1:] <= left).all(axis=0), moves[0], 0.0)
        best = int(gain.argmin())
        taken = [best] if gain[best] < 0 else []
        if paired and not taken:
            taken = _best_pair(coupling, picks, moves, left[:, 0], first, owner)
        if not taken:
            break
        for move in taken:
            picks[owner[move]] = option[move]
    return picks


def _index(term: Term, picks: Ints) -> tuple[int, ...]:
    return tuple(int(states[picks[k]]) for k, states in zip(term.classes, term.maps, strict=True))


def _moves(coupling: Coupling, picks: Ints, first: Ints) -> Floats:
    """What each layer changes by when one class moves to one option: layers x options."""
    moves = np.zeros((len(coupling.layers), int(first[-1])))
    for term in coupling.terms:
        index = _index(term, picks)
        here = term.amounts[index]
        for axis, (k, states) in enumerate(zip(term.classes, term.maps, strict=True)):
            place: list[int | slice] = list(index)
            place[axis] = slice(None)
            row = term.amounts[tuple(place)]
            moves[term.layer, first[k] : first[k + 1]] += row[states] - here
    return moves


def _best_pair(
    coupling: Coupling, picks: Ints, moves: Floats, left: Floats, first: Ints, owner: Ints
) -> list[int]:
    """The two moves that together better the objective most and keep the budgets; or none.

    What two moves change is the sum of both, but for tables that hold both classes.
    """
    both = moves[:, :, None] + moves[:, None, :]
    for term in coupling.terms:
        index = _index(term, picks)
        here = term.amounts[index]
        for a, b in itertools.combinations(range(len(term.classes)), 2):
            rows = [slice(None) if axis in (a, b) else i for axis, i in enumerate(index)]
            block = term.amounts[tuple(rows)]
            change = block - block[:, [index[b]]] - block[[index[a]], :] + here
            change = change[np.ix_(term.maps[a], term.maps[b])]
            k, other = term.classes[a], term.classes[b]
            mine, theirs = slice(first[k], first[k + 1]), slice(first[other], first[other + 1])
            both[term.layer, mine, theirs] += change
            both[term.layer, theirs, mine] += change.T
    fits = (both[1:] <= left[:, None, None]).all(axis=0) & (owner[:, None] != owner)
    gain = np.where(fits, both[0], 0.0)
    best = int(gain.argmin())
    if not gain.flat[best] < 0:
        return []
    return [int(i) for i in np.unravel_index(best, gain.shape)]
