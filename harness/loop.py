"""The one loop: allocate, build, measure, recalibrate, until the budget is met by measurement.

One measurement's way: ``strategies.generator`` makes a ``Strategy``; ``compression.build`` makes
its ONNX file; ``_predict`` writes a ``Prediction`` to the store; ``boards.Session`` ships the file
and returns a ``Measurement``, which the store keeps the moment it arrives; ``harness.candidates``
derives a ``Candidate`` from it; ``strategies.requirements`` judges that; ``report`` shows it.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from harness import candidates, judging, networks, outcome, proposing, starts
from harness.boards.session import Session
from harness.candidates import Measured, Workbench
from harness.compression import build, groups, quantize
from harness.folder import Folder, Observer
from harness.posing import FitSettings, Problem, pose
from harness.records import (
    Candidate,
    FitResult,
    Front,
    Option,
    Shortlist,
    Strategy,
)
from harness.store import Store
from harness.strategies import generator, given, requirements, tradeoff
from harness.strategies.proposal import (
    ANCHORED,
    COVERAGE,
    Proposal,
    TabledCosts,
)
from harness.strategies.shortlist import Shortlisted
from latency_models import calibration, graph

__all__ = ["FitSettings", "fit"]


def fit(
    network: networks.Network,
    data: networks.Data,
    session: Session,
    *,
    out: Path,
    settings: FitSettings,
    fingerprint: Mapping[str, str],
    observer: Observer,
    metric: networks.Metric = networks.TOP1,
    student: networks.Network | None = None,
) -> FitResult:
    """Fit ``network`` to the session's board; the result folder ``out`` holds everything.

    ``fingerprint`` names the contents of network, weights and data: a folder resumes only where
    they and the settings are unchanged. ``metric`` takes the place of top-1 throughout.
    ``student`` is a smaller network, which is taught by this one and compressed in its place.
    """
    folder = Folder(out, _asked(settings, session, fingerprint), observer)
    with Store(out / "measurements.db") as store:
        bench = Workbench(
            network=network,
            data=data,
            session=session,
            store=store,
            folder=folder,
            board_images=settings.board_images,
            sustain_s=settings.sustain_s,
            metric=metric,
            student=student,
        )
        try:
            return _fit(bench, settings)
        finally:
            store.export_csv(out)


def _asked(
    settings: FitSettings, session: Session, fingerprint: Mapping[str, str]
) -> dict[str, object]:
    """What a folder resumes for: all that is asked but the rounds, of which more may follow."""
    facts = session.facts
    return {
        **fingerprint,
        "network": settings.network,
        "budgets": [f"{b.quantity} {b.text}" for b in settings.budgets],
        "methods": list(settings.methods),
        "epochs": settings.epochs,
        "seed": settings.seed,
        "board": facts.board,
        "runtime": f"{facts.runtime} {facts.runtime_version}",
        "threads": session.spec.threads,
        # Only where there is one: folders from before there were soaks resume.
        **({"sustain_s": settings.sustain_s} if settings.sustain_s else {}),
        **({"student": settings.student} if settings.student else {}),
        **({"strategy_sha256": given.digest(settings.given)} if settings.given else {}),
        **({"latency_model_sha256": settings.saved.model.sha256} if settings.saved else {}),
    }


def _fit(bench: Workbench, settings: FitSettings) -> FitResult:
    found = groups.find_groups(
        bench.network if bench.student is None else bench.student, bench.data.example
    )
    if settings.given is not None:
        given.check(
            settings.given,
            found,
            quantize.available_precisions(bench.session.facts),
            settings.epochs,
        )
    baseline = bench.folder.stage(
        "baseline", Measured, bench.measure_baseline, detail=lambda m: m.summary()
    )
    problem = pose(bench, settings, found, baseline)
    if settings.given is not None:
        return _fit_given(problem, settings.given, baseline)
    budgets = settings.budgets
    tried: list[Measured] = []
    seen: list[tuple[Proposal, ...]] = []
    taken: list[Shortlisted] = []
    for number in range(1, settings.max_rounds + 1):
        coverages = proposing.coverages(problem, tried, baseline)
        proposals = proposing.proposed(
            problem, problem.options, f"joint {number}", coverages=coverages
        )
        if any(_same(proposals, earlier) for earlier in seen):
            break
        seen.append(proposals)
        shortlisted = proposing.shortlisted(problem, problem.options, proposals)
        if any(_same((shortlisted.proposal,), (earlier.proposal,)) for earlier in taken):
            break
        taken.append(shortlisted)
        tried.append(
            _build_and_measure(problem, shortlisted.proposal, role="joint", round_number=number)
        )
        _recalibrate(problem, baseline, tried[-1])
        if judging.settled(budgets, tried[-1].candidate, baseline.candidate):
            break
    alternatives = _alternatives(problem) if settings.alternatives else {}
    front = _front(
        problem,
        [m.candidate for m in (*alternatives.values(), *tried)],
        taken[-1].proposal,
        rounds=len(tried),
    )

    def best_of(measured: Sequence[Measured]) -> int:
        """The index of the best round, by measurements that begin with baseline and rounds."""
        base, *rounds = (m.candidate for m in measured[: 1 + len(tried)])
        return min(range(len(rounds)), key=lambda i: judging.rank(budgets, rounds[i], base))

    final = bench.final_measurements(
        [baseline, *tried, *alternatives.values()],
        decided=lambda m: judging.decided(budgets, m[1 + best_of(m)].candidate, m[0].candidate),
    )
    best = best_of(final)
    base, rounds, others = final[0], final[1 : 1 + len(tried)], final[1 + len(tried) :]
    return _conclude(
        problem,
        base=base,
        result=rounds[best],
        rounds=rounds,
        alternatives=dict(zip(alternatives, others, strict=True)),
        chosen=taken[best],
        last=proposing.leading(problem, proposals),
        front=front,
    )


def _fit_given(problem: Problem, strategy: Strategy, baseline: Measured) -> FitResult:
    """The result of one strategy, built as it is written and judged by its measurement."""
    bench, choice = problem.bench, given.choice(strategy)
    costs = problem.costs(0.0, problem.start(strategy.left_out)).costs(choice)
    proposal = Proposal(
        strategy=given.to_build(strategy),
        loss=problem.sensitivities.total(choice),
        latency_s=costs.latency_s,
        size_bytes=costs.size_bytes,
        coverage=0.0,
        branches=starts.count(problem.branches, strategy.left_out),
    )
    tried = _build_and_measure(problem, proposal, role="joint", round_number=1)
    budgets = problem.settings.budgets
    base, result = bench.final_measurements(
        [baseline, tried],
        decided=lambda m: judging.decided(budgets, m[1].candidate, m[0].candidate),
    )
    return _conclude(
        problem,
        base=base,
        result=result,
        rounds=[result],
        alternatives={},
        chosen=Shortlisted(proposal=replace(proposal, strategy=strategy), shortlist=Shortlist()),
        last=proposal,
        front=Front(note="The strategy was given: nothing was allocated."),
    )


def _build_and_measure(
    problem: Problem, proposal: Proposal, *, role: candidates.Role, round_number: int
) -> Measured:
    bench, label = problem.bench, proposal.strategy.label
    variant = bench.folder.stage(
        f"build {label}",
        build.Variant,
        lambda: build.build(
            proposal.strategy,
            problem.network,
            bench.data,
            problem.groups,
            stem=bench.folder.networks / label.replace(" ", "-"),
            board=bench.session.facts,
            teacher=bench.network,
            progress=bench.folder.observer.progress,
        ),
    )
    return bench.folder.stage(
        f"measure {label}",
        Measured,
        lambda: bench.measure_variant(
            variant,
            proposal.strategy,
            problem.groups,
            role=role,
            round_number=round_number,
            model=problem.model,
            coverage=COVERAGE,
            predicted_size_bytes=round(proposal.size_bytes),
            predicted_loss=proposal.loss,
            notes=_notes(problem, proposal),
        ),
        detail=lambda m: m.summary(),
    )


def _notes(problem: Problem, proposal: Proposal) -> tuple[str, ...]:
    if not proposal.branches:
        return ()
    of = len(problem.branches.removable)
    return (f"{proposal.branches} of {of} residual branches left out",)


def _recalibrate(problem: Problem, baseline: Measured, measured: Measured) -> None:
    """Correct the latency model and the size prediction by what was just measured."""
    works = tuple(graph.work(k) for k in problem.bench.kernels_of(measured))
    # As a ratio in the baseline's terms, so that drift between the campaigns cancels.
    latency_s = measured.candidate.ratio * baseline.candidate.latency_s
    problem.model = calibration.refit(problem.model, network_samples=((works, latency_s),))
    predicted = measured.candidate.predicted_size_bytes
    assert predicted is not None
    problem.size_scale *= measured.candidate.size_bytes / predicted


def _same(proposals: Sequence[Proposal], others: Sequence[Proposal]) -> bool:
    def content(proposal: Proposal) -> object:
        return proposal.strategy.entries, proposal.strategy.left_out

    return [*map(content, proposals)] == [*map(content, others)]


def _front(
    problem: Problem, measured: Sequence[Candidate], last: Proposal, *, rounds: int
) -> Front:
    """What any latency would cost, by the latency model as the rounds left it.

    Of the start of the ``last`` round, and of the candidates those without the same branches: sums
    of other groups do not compare.
    """
    start = problem.start(last.strategy.left_out)
    note = (
        f"The front is that of the network without {proposing.counted(last.branches)}."
        if last.branches
        else ""
    )

    def compute() -> Front:
        front = tradeoff.trade_off(
            TabledCosts(
                problem.costs(0.0, start),
                narrow=last.proof is not None and not last.proof.exact,
            ),
            proposing.within(problem.options, start),
            problem.sensitivities,
            problem.limits,
            candidates={
                candidate.label: {
                    group.group: Option(channels=group.kept, precision=group.precision)
                    for group in candidate.allocation
                    if group.kept
                }
                for candidate in measured
                if candidate.allocation
                and {g.group for g in candidate.allocation if not g.kept} == set(start.left_out)
            },
        )
        return replace(front, note=" ".join(filter(None, [note, front.note])))

    return problem.bench.folder.stage(
        f"front after round {rounds}",
        Front,
        compute,
        detail=lambda front: front.note or f"{len(front.points)} allocations",
    )


def _alternatives(problem: Problem) -> dict[str, Measured]:
    """The best that one method alone gets to under the same budgets, built and measured."""
    result: dict[str, Measured] = {}
    precisions = quantize.available_precisions(problem.bench.session.facts)
    singles: tuple[tuple[candidates.Role, bool, tuple[str, ...]], ...] = (
        ("int8_only", False, precisions),
        ("prune_only", True, ("fp32",)),
    )
    if set(problem.settings.methods) != {"prune", "quantize"} or "int8" not in precisions:
        return {}
    for role, prune, allowed in singles:
        options = generator.restrict(
            problem.options, problem.groups, prune=prune, precisions=allowed
        )
        # The rounds have anchored the model; a wide bound would make the comparison too easy.
        found = proposing.proposed(problem, options, role.replace("_", " "), coverages=ANCHORED)
        proposal = proposing.shortlisted(problem, options, found).proposal
        result[role] = _build_and_measure(problem, proposal, role=role, round_number=0)
    return result


def _conclude(
    problem: Problem,
    *,
    base: Measured,
    result: Measured,
    rounds: Sequence[Measured],
    alternatives: Mapping[str, Measured],
    chosen: Shortlisted,
    last: Proposal,
    front: Front,
) -> FitResult:
    """The result of ``chosen``'s round; ``last`` says what the allocation ran into in the end."""
    bench, settings = problem.bench, problem.settings
    nearest: dict[str, float] = {}
    for budget in settings.budgets:
        limit = last.nearest.get(budget.quantity)
        if limit is not None:
            whole = {"latency": base.candidate.latency_s, "size": base.candidate.size_bytes}
            nearest[budget.quantity] = limit / (whole[budget.quantity] if budget.relative else 1.0)
    verdicts = judging.verdicts(settings.budgets, result.candidate, base.candidate, nearest)
    verdict = requirements.overall(verdicts)
    peaks, bandwidth = problem.model.roofs()
    fitted = FitResult(
        boardfit_version=version("boardfit"),
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        network=settings.network,
        board=bench.session.facts,
        baseline=base.candidate,
        result=result.candidate,
        candidates=tuple(m.candidate for m in rounds),
        alternatives={role: m.candidate for role, m in alternatives.items()},
        alternative_budgets={
            role: judging.verdicts(settings.budgets, m.candidate, base.candidate)
            for role, m in alternatives.items()
        },
        budgets=verdicts,
        verdict=verdict,
        explanation="" if verdict == "meets" else last.infeasible,
        kernels=outcome.kernel_points(bench, (base, result), problem.model),
        peak_macs_per_s=peaks,
        bandwidth_bytes_per_s=bandwidth,
        stages=tuple(bench.folder.stages),
        warnings=tuple(dict.fromkeys((*base.warnings, *result.warnings))),
        fake=bench.session.facts.runtime == "fake",
        proof=chosen.proposal.proof,
        front=front,
        shortlist=chosen.shortlist if chosen.shortlist.contenders else None,
        binding={} if verdict == "meets" else last.binding,
        latency_model="" if settings.saved is None else str(settings.saved),
    )
    strategy = chosen.proposal.strategy
    if settings.student:
        methods = tuple(dict.fromkeys(("distill", *strategy.methods)))
        strategy = replace(strategy, methods=methods, student=settings.student)
    outcome.write(bench, fitted, strategy, result, problem.model)
    return fitted
