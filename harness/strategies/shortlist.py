"""A few near-best allocations, built cheaply and judged as Dynamic BN judges policies.

The summed sensitivity is a second-order estimate, in which groups do not know of each other: what
differs by less than its noise may well be the other way round. So a few allocations that keep the
same limits are built as far as costs little (sliced, fitted again, rounded in float arithmetic, not
trained) and the one whose outputs stay nearest to the original's is taken. So are allocations to
networks without some of their branches, whose sums say nothing of what was left out. Source:
Dynamic BN (Chen, Wang and Cheng, Pattern Recognition 140, 2023), which evaluates policies in this
way; here with layers that are fitted again, and anchored statistics (``sensitivity.untrained``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.errors import BoardfitError
from harness.records import AS_SCORED, Contender, Option, Shortlist, Strategy
from harness.sensitivity.curvature import Sensitivities
from harness.strategies.proposal import Proposal

__all__ = ["Shortlisted", "contenders", "shortlist"]

# An allocation whose summed sensitivity is larger than this many times the least is no near tie.
NEAR = 1.5
# Two draws of signs on 512 images leave the sensitivities off by a quarter (``curvature``).
NOISE = 0.25
# By how much less of the latency is allowed, and powers of the sensitivities: above 1 deep cuts
# of one group cost more, below 1 less than the second order says.
TIGHTER = 0.98
POWERS = (1.5, 0.67)
DRAWS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlisted:
    """The proposal that was taken, and what it was taken from."""

    proposal: Proposal
    shortlist: Shortlist

    def summary(self) -> str:
        """One line for whoever watches."""
        return self.shortlist.summary()


# A proposal by other sensitivities, at a share of the latency limit.
Propose = Callable[[Sensitivities, float], Proposal]


def contenders(
    first: Proposal, sensitivities: Sensitivities, propose: Propose, *, seed: int
) -> tuple[tuple[str, Proposal], ...]:
    """``first`` and up to five near ties of it, each with what it is the best by.

    Others are the best by sensitivities that differ from those given by their noise or to a power,
    or within a limit that is a little tighter. Their losses are all by the sensitivities given.
    """
    found = [(AS_SCORED, first)]
    for how, changed, limit in _ways(sensitivities, seed):
        try:
            other = propose(changed, limit)
        except BoardfitError:
            continue  # out of reach within the tighter limit, or too hard: one contender fewer
        loss = sensitivities.total(_choice(other.strategy))
        known = [proposal.strategy.entries for _, proposal in found]
        near = loss <= NEAR * first.loss and not other.infeasible
        if near and other.strategy.entries not in known:
            found.append((how, _judged_by(first, other, loss)))
    return tuple(found)


def _ways(sensitivities: Sensitivities, seed: int) -> Iterator[tuple[str, Sensitivities, float]]:
    yield f"{TIGHTER:.0%} of the latency limit", sensitivities, TIGHTER
    for power in POWERS:
        values = {
            name: tuple(value**power for value in own) for name, own in sensitivities.values.items()
        }
        yield f"sensitivities to the power {power}", replace(sensitivities, values=values), 1.0
    generator = np.random.default_rng(seed)
    for draw in range(1, DRAWS + 1):
        # One factor a group: options of one group err together.
        factors = {name: generator.lognormal(sigma=NOISE) for name in sensitivities.values}
        values = {
            name: tuple(factors[name] * value for value in own)
            for name, own in sensitivities.values.items()
        }
        yield f"sensitivities with noise {draw}", replace(sensitivities, values=values), 1.0


def _choice(strategy: Strategy) -> dict[str, Option]:
    return {e.group: Option(channels=len(e.kept), precision=e.precision) for e in strategy.entries}


def _judged_by(first: Proposal, other: Proposal, loss: float) -> Proposal:
    """``other`` with its loss, and how far that is from what is proven of the first problem."""
    proof = first.proof
    if proof is not None:
        gap = 0.0 if loss <= proof.bound else (loss - proof.bound) / loss
        proof = replace(proof, objective=loss, gap=gap)
    return replace(other, loss=loss, proof=proof)


def shortlist(
    found: Sequence[tuple[str, Proposal]],
    divergence_of: Callable[[Strategy], float],
    *,
    images: int,
    progress: Callable[[int, int], None] | None = None,
) -> Shortlisted:
    """The proposal of least divergence; ``progress`` counts contenders."""
    seen: list[tuple[float, str, Proposal]] = []
    for index, (how, proposal) in enumerate(found):
        seen.append((divergence_of(proposal.strategy), how, proposal))
        if progress is not None:
            progress(index + 1, len(found))
    best = min(range(len(seen)), key=lambda index: seen[index][0])
    return Shortlisted(
        proposal=seen[best][2],
        shortlist=Shortlist(
            contenders=tuple(
                Contender(
                    how=how,
                    loss=proposal.loss,
                    latency_s=proposal.latency_s,
                    size_bytes=proposal.size_bytes,
                    divergence=divergence if math.isfinite(divergence) else None,
                    taken=index == best,
                    branches=proposal.branches,
                )
                for index, (divergence, how, proposal) in enumerate(seen)
            ),
            images=images,
        ),
    )
