"""The error where no allocation meets the budgets: how near one comes, and which groups bind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.allocation.names import Names
from harness.errors import InfeasibleBudget

__all__ = ["Reach", "binding", "infeasible"]

# So many of the binding groups stand in the message; all of them in the error.
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Reach:
    """The smallest value of a budget's sum that can be reached, and each group's share of it.

    A group's share is what its option costs there; what a table says of several groups together
    is shared out evenly. ``how`` says what was held meanwhile; empty for one budget.
    """

    nearest: float
    shares: tuple[float, ...]
    how: str = ""


def binding(reach: Reach) -> tuple[int, ...]:
    """The groups with the largest shares, the largest first, that make up half of the value.

    The fewest that do; one at least.
    """
    by_share = sorted(range(len(reach.shares)), key=lambda group: -reach.shares[group])
    for count in range(1, len(by_share)):
        taken = by_share[:count]
        if math.fsum(reach.shares[group] for group in taken) >= reach.nearest / 2:
            return tuple(taken)
    return tuple(by_share)


def infeasible(
    budgets: Sequence[float], reaches: Sequence[Reach], names: Names
) -> InfeasibleBudget:
    """The error that says, for every budget, what could be reached and where it goes."""
    groups = [binding(reach) for reach in reaches]
    lines = []
    for b, (reach, budget) in enumerate(zip(reaches, budgets, strict=True)):
        if not reach.how and reach.nearest <= budget:
            continue  # without others to hold it is met
        most = ", ".join(names.group(group) for group in groups[b][:_MOST_NAMED])
        more = len(groups[b]) - _MOST_NAMED
        rest = f" and {more} more" if more > 0 else ""
        lines.append(
            f"budget {b} of {budget!r}{': ' if reach.how else ' cannot be met: '}"
            f"{reach.nearest!r} is the smallest reachable{', ' if reach.how else ''}{reach.how}; "
            f"half of it or more is spent in {most}{rest}"
        )
    head = "the budgets cannot be met together: " if any(reach.how for reach in reaches) else ""
    return InfeasibleBudget(
        f"{head}{'; '.join(lines)}. Loosen it, or allow cheaper options there",
        nearest=tuple(reach.nearest for reach in reaches),
        binding=tuple(groups),
    )
