"""What is proven of an allocation, and the front of allocations around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.records.base import require_positive

Solved = Literal["coupled", "separable"]
Approach = Literal["coupled", "separable", "greedy"]
# How the contender was found that is no near tie of another.
AS_SCORED = "as scored"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationProof:
    """How an allocation was found, how far it can be from the best, and what its budgets are worth.

    ``options[l]`` is how many options group ``l`` had. ``method`` is "coupled" where what a group
    takes depends on its neighbours, "separable" where no two groups depend on each other.
    ``objective`` is the summed sensitivity. No allocation whose predicted size and latency keep the
    same limits (for the latency, the budget over the relative width of this prediction's bound) has
    one below ``bound``, and ``gap`` is the relative distance of the two.
    Not ``exact``: the costs are right at the allocation and only near it, and the bound holds for
    those approximate costs. ``prices`` are by quantity ("latency", "size"): by how much one more
    second, or one more byte, of the budget would lower the objective, at the margin.
    """

    method: Solved
    options: tuple[int, ...]
    objective: float
    bound: float
    gap: float
    prices: Mapping[str, float]
    solves: int
    wall_s: float
    exact: bool = True

    @property
    def groups(self) -> int:
        """How many groups were given an option."""
        return len(self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One allocation: predicted costs, the sum of sensitivities, and how it was found.

    ``limit_s`` is the predicted latency that was allowed, and ``fits`` whether that limit and that
    of the size are kept, when priced exactly. ``gap`` is how far, relatively, the loss can be from
    the least for these limits; None where nothing is proven.
    """

    approach: Approach
    limit_s: float
    latency_s: float
    size_bytes: float
    loss: float
    fits: bool
    gap: float | None = None

    def __post_init__(self) -> None:
        require_positive(limit_s=self.limit_s, latency_s=self.latency_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontCandidate:
    """A network that was built, placed on the front: by the same latency model as its points."""

    label: str
    latency_s: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The least summed sensitivity for any predicted latency, and two simpler ways to allocate.

    Every point is priced by the latency model as it stood after the last round. ``limit_s`` is the
    fit's latency budget and ``size_limit_bytes`` the size that every allocation was held to (None:
    no such budget). ``note`` says why there are no points, where there are none.
    """

    points: tuple[FrontPoint, ...] = ()
    candidates: tuple[FrontCandidate, ...] = ()
    limit_s: float | None = None
    size_limit_bytes: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An allocation that was near the best by its score, and what building it cheaply said.

    ``how`` is what it is the best by, ``loss`` its summed sensitivity, ``divergence`` how far its
    outputs were from the original's, untrained, with anchored batch-norm statistics. So many
    ``branches`` are left out, whose loss is not in the sum. Where its outputs were no numbers its
    divergence is None.
    """

    how: str
    loss: float
    latency_s: float
    size_bytes: float
    divergence: float | None
    taken: bool
    branches: int = 0

    @property
    def diverges(self) -> str:
        """Its divergence as a text."""
        return "∞" if self.divergence is None else f"{self.divergence:.3g}"

    @property
    def name(self) -> str:
        """What tells it from the others."""
        how = f"the best {self.how}" if self.how == AS_SCORED else f"the best by {self.how}"
        if not self.branches:
            return how
        return f"{how}, {self.branches} {'branch' if self.branches == 1 else 'branches'} left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """Contenders of one round, judged on so many ``images``; none where there was no choice."""

    contenders: tuple[Contender, ...] = ()
    images: int = 0

    def summary(self) -> str:
        """One line for whoever watches."""
        if not self.contenders:
            return "no other allocation is as near"
        taken = next(c for c in self.contenders if c.taken)
        first = self.contenders[0]
        text = f"{len(self.contenders)} allocations tried on {self.images} images"
        # Sums over the groups that are there do not compare where others are left out.
        shallow = any(c.branches for c in self.contenders)
        if taken is first:
            which = taken.name if shallow else "the one of least summed sensitivity"
            return f"{text}; {which} diverges least"
        other = first.name if shallow else "that of least summed sensitivity"
        return f"{text}; {taken.name} diverges by {taken.diverges}, {other} by {first.diverges}"
