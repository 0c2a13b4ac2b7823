"""What the loop builds next: of a few allocations and near ties the one that promises most."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness import starts
from harness.candidates import Measured
from harness.compression import quantize
from harness.posing import Problem
from harness.records import AS_SCORED, Option, Shortlist
from harness.sensitivity.curvature import Sensitivities
from harness.sensitivity.untrained import Judge
from harness.starts import Start
from harness.strategies import shortlist
from harness.strategies.proposal import (
    ANCHORED,
    COVERAGE,
    FIRST,
    MISSED,
    Proposal,
    TabledCosts,
    propose,
)
from harness.strategies.requirements import Limits
from harness.strategies.shortlist import Shortlisted

__all__ = ["counted", "coverages", "leading", "proposed", "shortlisted", "within"]


def proposed(
    problem: Problem,
    options: Mapping[str, tuple[Option, ...]],
    label: str,
    *,
    coverages: Sequence[float],
) -> tuple[Proposal, ...]:
    """The best allocations by the latency model as it is now, one a start (``starts.depths``).

    The first is that to the whole network. Each is a stage of the folder.
    """
    found = problem.branches
    costs = [problem.costs(coverage) for coverage in coverages]
    return tuple(
        _proposed(problem, options, label, branches, coverages)
        for branches in starts.depths(costs, options, problem.limits, found)
    )


def _proposed(
    problem: Problem,
    options: Mapping[str, tuple[Option, ...]],
    label: str,
    branches: int,
    coverages: Sequence[float],
) -> Proposal:
    def compute() -> Proposal:
        left_out = starts.left_out(problem.groups, problem.branches, branches)
        start = problem.start(left_out)
        return propose(
            lambda coverage: problem.costs(coverage, start),
            within(options, start),
            problem.sensitivities,
            problem.limits,
            label=label,
            epochs=problem.settings.epochs,
            seed=problem.settings.seed,
            coverages=coverages,
            left_out=left_out,
            branches=branches,
        )

    return problem.bench.folder.stage(
        f"allocate {label}" + (f" without {counted(branches)}" if branches else ""),
        Proposal,
        compute,
        detail=Proposal.summary,
    )


def counted(branches: int) -> str:
    """A number of branches in words."""
    return f"{branches} {'branch' if branches == 1 else 'branches'}"


def within(
    options: Mapping[str, tuple[Option, ...]], start: Start
) -> dict[str, tuple[Option, ...]]:
    """The options of the groups that are there."""
    return {group.name: options[group.name] for group in start.groups}


def leading(problem: Problem, proposals: Sequence[Proposal]) -> Proposal:
    """The first that keeps the limits; where none does, that which is nearest to them."""
    return min(proposals, key=lambda proposal: _excess(problem.limits, proposal))


def _excess(limits: Limits, proposal: Proposal) -> float:
    if not proposal.infeasible:
        return 1.0
    asked = {"latency": limits.latency_s, "size": limits.size_bytes}
    return max(
        (nearest / (asked[quantity] or nearest) for quantity, nearest in proposal.nearest.items()),
        default=math.inf,
    )


def shortlisted(
    problem: Problem, options: Mapping[str, tuple[Option, ...]], proposals: Sequence[Proposal]
) -> Shortlisted:
    """Of ``proposals`` and near ties of the best, what is nearest to the original when untrained.

    Each start's proposal is built, then the near ties of the one that diverges least. Where there
    is one start and nothing is pruned the sum of sensitivities is near enough to the truth, and
    where the budget is out of reach there is only one least.
    """
    reached = [proposal for proposal in proposals if not proposal.infeasible]
    if not reached:
        return Shortlisted(proposal=leading(problem, proposals), shortlist=Shortlist())
    if len(reached) == 1 and "prune" not in reached[0].strategy.methods:
        return Shortlisted(proposal=reached[0], shortlist=Shortlist())

    def compute() -> Shortlisted:
        if len(reached) == 1:
            found = _near_ties(problem, options, reached[0])
            if len(found) == 1:
                return Shortlisted(proposal=reached[0], shortlist=Shortlist())
        judge = _judge(problem)
        # What was built to find the best start is not built again.
        divergence_of = functools.cache(judge)
        if len(reached) > 1:
            best = min(reached, key=lambda proposal: divergence_of(proposal.strategy))
            found = (
                *((AS_SCORED, proposal) for proposal in reached),
                *_near_ties(problem, options, best)[1:],
            )
        return shortlist.shortlist(
            found,
            divergence_of,
            images=len(judge.judged),
            progress=problem.bench.folder.observer.progress,
        )

    return problem.bench.folder.stage(
        f"shortlist {reached[0].strategy.label}", Shortlisted, compute, detail=Shortlisted.summary
    )


def _near_ties(
    problem: Problem, options: Mapping[str, tuple[Option, ...]], first: Proposal
) -> tuple[tuple[str, Proposal], ...]:
    """``first`` and its near ties, allocations to the same start."""
    settings, strategy = problem.settings, first.strategy
    start = problem.start(strategy.left_out)
    tabled = TabledCosts(problem.costs(COVERAGE, start))

    def again(sensitivities: Sensitivities, share: float) -> Proposal:
        limits = problem.limits
        if limits.latency_s is not None:
            limits = replace(limits, latency_s=share * limits.latency_s)
        return propose(
            lambda coverage: problem.costs(coverage, start),
            within(options, start),
            sensitivities,
            limits,
            label=strategy.label,
            epochs=settings.epochs,
            seed=settings.seed,
            coverages=(first.coverage,),
            tabled=tabled,
            left_out=strategy.left_out,
            branches=first.branches,
        )

    return shortlist.contenders(first, problem.sensitivities, again, seed=settings.seed)


def _judge(problem: Problem) -> Judge:
    bench = problem.bench
    form = quantize.form_of(bench.session.facts)
    return Judge(
        problem.network,
        problem.groups,
        bench.data.train_images,
        classes=bench.data.classes,
        weight_bits=form.weight_bits,
        symmetric=form.symmetric,
        seed=problem.settings.seed,
    )


def coverages(problem: Problem, tried: Sequence[Measured], baseline: Measured) -> tuple[float, ...]:
    """How far the next proposal trusts the model: by how the last one turned out."""
    if not tried:
        return FIRST
    limit = problem.limits.latency_s
    # Within the budget by its median is not enough: the verdict asks for the whole interval.
    last_s = tried[-1].candidate.ratio_interval.high * baseline.candidate.latency_s
    return MISSED if limit is not None and last_s > limit else ANCHORED
