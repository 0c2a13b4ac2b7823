"""What the loop builds next: an allocation, and of its near ties the one that promises most."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.candidates import Measured
from harness.compression import quantize
from harness.posing import Problem
from harness.records import Option, Shortlist
from harness.sensitivity.curvature import Sensitivities
from harness.sensitivity.untrained import Judge
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
from harness.strategies.shortlist import Shortlisted

__all__ = ["coverages", "proposed", "shortlisted"]


def proposed(
    problem: Problem,
    options: Mapping[str, tuple[Option, ...]],
    label: str,
    *,
    coverages: Sequence[float],
) -> Proposal:
    """The best allocation by the latency model as it is now: a stage of the folder."""
    return problem.bench.folder.stage(
        f"allocate {label}",
        Proposal,
        lambda: propose(
            problem.costs,
            options,
            problem.sensitivities,
            problem.limits,
            label=label,
            epochs=problem.settings.epochs,
            seed=problem.settings.seed,
            coverages=coverages,
        ),
        detail=Proposal.summary,
    )


def shortlisted(
    problem: Problem, options: Mapping[str, tuple[Option, ...]], first: Proposal
) -> Shortlisted:
    """Of ``first`` and its near ties, what is nearest to the original when built untrained.

    Where nothing is pruned the sum of sensitivities is near enough to the truth, and where the
    budget is out of reach there is only one least.
    """
    if first.infeasible or "prune" not in first.strategy.methods:
        return Shortlisted(proposal=first, shortlist=Shortlist())
    bench, settings, label = problem.bench, problem.settings, first.strategy.label
    tabled = TabledCosts(problem.costs(COVERAGE))

    def again(sensitivities: Sensitivities, share: float) -> Proposal:
        limits = problem.limits
        if limits.latency_s is not None:
            limits = replace(limits, latency_s=share * limits.latency_s)
        return propose(
            problem.costs,
            options,
            sensitivities,
            limits,
            label=label,
            epochs=settings.epochs,
            seed=settings.seed,
            coverages=(first.coverage,),
            tabled=tabled,
        )

    def compute() -> Shortlisted:
        found = shortlist.contenders(first, problem.sensitivities, again, seed=settings.seed)
        if len(found) == 1:
            return Shortlisted(proposal=first, shortlist=Shortlist())
        form = quantize.form_of(bench.session.facts)
        judge = Judge(
            problem.network,
            problem.groups,
            bench.data.train_images,
            classes=bench.data.classes,
            weight_bits=form.weight_bits,
            symmetric=form.symmetric,
            seed=settings.seed,
        )
        images = len(judge.judged)
        return shortlist.shortlist(
            found, judge, images=images, progress=bench.folder.observer.progress
        )

    return bench.folder.stage(
        f"shortlist {label}", Shortlisted, compute, detail=Shortlisted.summary
    )


def coverages(problem: Problem, tried: Sequence[Measured], baseline: Measured) -> tuple[float, ...]:
    """How far the next proposal trusts the model: by how the last one turned out."""
    if not tried:
        return FIRST
    limit = problem.limits.latency_s
    # Within the budget by its median is not enough: the verdict asks for the whole interval.
    last_s = tried[-1].candidate.ratio_interval.high * baseline.candidate.latency_s
    return MISSED if limit is not None and last_s > limit else ANCHORED
