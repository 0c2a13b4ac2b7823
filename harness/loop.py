"""The one loop: allocate, build, measure, recalibrate, until the budget is met by measurement.

One measurement's way: ``strategies.generator`` makes a ``Strategy``; ``compression.build`` makes
its ONNX file; ``_predict`` writes a ``Prediction`` to the store; ``boards.Session`` ships the file
and returns a ``Measurement``, which the store keeps the moment it arrives; ``harness.candidates``
derives a ``Candidate`` from it; ``strategies.requirements`` judges that; ``report`` shows it.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness import calibrate, candidates, networks, pacing
from harness.boards.session import Session
from harness.candidates import Measured, Workbench
from harness.compression import build, groups, quantize
from harness.folder import Folder, Observer
from harness.records import (
    Budget,
    BudgetVerdict,
    Candidate,
    FitResult,
    Group,
    Option,
    Strategy,
)
from harness.sensitivity import curvature
from harness.store import Store
from harness.strategies import generator, requirements
from harness.strategies.proposal import ANCHORED, COVERAGE, FIRST, MISSED, Proposal, propose
from latency_models import calibration, graph

__all__ = ["FitSettings", "fit"]

# A budget is "met with much to spare" below this share of it: accuracy was given away.
MUCH_TO_SPARE = 0.93
# Channels that a convolution's kernels on this kind of runtime compute at once.
CHANNEL_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What a fit is asked to do, beside network, data and board."""

    network: str
    budgets: tuple[Budget, ...]
    max_rounds: int = 3
    epochs: int = 4
    sensitivity_images: int = 512
    board_images: int = 256
    seed: int = 0
    alternatives: bool = True
    methods: tuple[str, ...] = ("prune", "quantize")
    sustain_s: float = 0.0


@dataclass(slots=True)
class _Problem:
    """What the rounds share; ``model`` and ``size_scale`` are corrected after each round."""

    bench: Workbench
    settings: FitSettings
    groups: tuple[Group, ...]
    kernels: tuple[graph.Kernel, ...]
    options: Mapping[str, tuple[Option, ...]]
    sensitivities: curvature.Sensitivities
    limits: requirements.Limits
    model: calibration.LatencyModel
    size_scale: float = 1.0


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
) -> FitResult:
    """Fit ``network`` to the session's board; the result folder ``out`` holds everything.

    ``fingerprint`` names the contents of network, weights and data: a folder resumes only where
    they and the settings are unchanged. ``metric`` takes the place of top-1 throughout.
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
        )
        try:
            return _fit(bench, settings)
        finally:
            store.export_csv(out)


def _asked(
    settings: FitSettings, session: Session, fingerprint: Mapping[str, str]
) -> dict[str, object]:
    facts = session.facts
    return {
        **fingerprint,
        "network": settings.network,
        "budgets": [f"{b.quantity} {b.text}" for b in settings.budgets],
        "methods": list(settings.methods),
        "epochs": settings.epochs,
        "max_rounds": settings.max_rounds,
        "seed": settings.seed,
        "board": facts.board,
        "runtime": f"{facts.runtime} {facts.runtime_version}",
        "threads": session.spec.threads,
        # Only where there is one: folders from before there were soaks resume.
        **({"sustain_s": settings.sustain_s} if settings.sustain_s else {}),
    }


def _fit(bench: Workbench, settings: FitSettings) -> FitResult:
    found = groups.find_groups(bench.network, bench.data.example)
    baseline = bench.folder.stage(
        "baseline", Measured, bench.measure_baseline, detail=lambda m: m.summary()
    )
    problem = _pose(bench, settings, found, baseline)
    tried: list[Measured] = []
    strategies: list[Strategy] = []
    proposal: Proposal | None = None
    for number in range(1, settings.max_rounds + 1):
        label = f"joint {number}"
        proposal = _propose(
            problem, problem.options, label, coverages=_coverages(problem, tried, baseline)
        )
        if any(_same(proposal.strategy, earlier) for earlier in strategies):
            break
        strategies.append(proposal.strategy)
        tried.append(_build_and_measure(problem, proposal, role="joint", round_number=number))
        _recalibrate(problem, baseline, tried[-1])
        if _settled(settings.budgets, tried[-1].candidate, baseline.candidate):
            break
    assert proposal is not None
    alternatives = _alternatives(problem) if settings.alternatives else {}

    def best_of(measured: Sequence[Measured]) -> int:
        """The index of the best round, by measurements that begin with baseline and rounds."""
        base, *rounds = (m.candidate for m in measured[: 1 + len(tried)])
        return min(range(len(rounds)), key=lambda i: _rank(settings.budgets, rounds[i], base))

    final = bench.final_measurements(
        [baseline, *tried, *alternatives.values()],
        decided=lambda m: _decided(settings.budgets, m[1 + best_of(m)].candidate, m[0].candidate),
    )
    best = best_of(final)
    base, rounds, others = final[0], final[1 : 1 + len(tried)], final[1 + len(tried) :]
    return _conclude(
        problem,
        base=base,
        result=rounds[best],
        rounds=rounds,
        alternatives=dict(zip(alternatives, others, strict=True)),
        strategy=strategies[best],
        proposal=proposal,
    )


def _pose(
    bench: Workbench, settings: FitSettings, found: tuple[Group, ...], baseline: Measured
) -> _Problem:
    precisions = quantize.available_precisions(bench.session.facts)
    if "quantize" not in settings.methods:
        precisions = ("fp32",)
    kernels = bench.kernels(bench.path_of(baseline))
    limits = requirements.limits(
        settings.budgets,
        latency_s=baseline.candidate.latency_s,
        size_bytes=baseline.candidate.size_bytes,
    )

    def calibrated() -> str:
        works = tuple(graph.work(kernel) for kernel in kernels)
        return calibrate.calibrate(
            bench.session,
            bench.store,
            bench.folder.observer,
            reference=kernels,
            precisions=precisions,
            yardstick=pacing.Yardstick(
                path=bench.baseline_path, latency_s=baseline.candidate.latency_s
            ),
            known=[calibration.NetworkSample(works, baseline.candidate.latency_s)],
        ).model.to_json()

    text = bench.folder.stage("calibrate", str, calibrated)
    options = generator.options_for(
        found, precisions=precisions, step=CHANNEL_STEP, prune="prune" in settings.methods
    )
    sensitivities = bench.folder.stage(
        "sensitivity",
        curvature.Sensitivities,
        lambda: curvature.score(
            bench.network,
            found,
            options,
            bench.data.train_images[: settings.sensitivity_images],
            seed=settings.seed,
            seven_bit_weights=bench.session.facts.int8 == "avx2",
            progress=bench.folder.observer.progress,
        ),
        detail=lambda s: f"{sum(map(len, s.options.values()))} options in {len(s.options)} groups",
    )
    return _Problem(
        bench=bench,
        settings=settings,
        groups=found,
        kernels=kernels,
        options=options,
        sensitivities=sensitivities,
        limits=limits,
        model=calibration.LatencyModel.from_json(text),
    )


def _propose(
    problem: _Problem,
    options: Mapping[str, tuple[Option, ...]],
    label: str,
    *,
    coverages: Sequence[float],
) -> Proposal:
    return problem.bench.folder.stage(
        f"allocate {label}",
        Proposal,
        lambda: propose(
            problem.kernels,
            problem.groups,
            options,
            problem.sensitivities,
            problem.limits,
            model=problem.model,
            baseline_size_bytes=problem.bench.baseline_size_bytes,
            size_scale=problem.size_scale,
            label=label,
            epochs=problem.settings.epochs,
            seed=problem.settings.seed,
            coverages=coverages,
        ),
        detail=Proposal.summary,
    )


def _coverages(
    problem: _Problem, tried: Sequence[Measured], baseline: Measured
) -> tuple[float, ...]:
    """How far the next proposal trusts the model: by how the last one turned out."""
    if not tried:
        return FIRST
    limit = problem.limits.latency_s
    # Within the budget by its median is not enough: the verdict asks for the whole interval.
    last_s = tried[-1].candidate.ratio_interval.high * baseline.candidate.latency_s
    return MISSED if limit is not None and last_s > limit else ANCHORED


def _build_and_measure(
    problem: _Problem, proposal: Proposal, *, role: candidates.Role, round_number: int
) -> Measured:
    bench, label = problem.bench, proposal.strategy.label
    variant = bench.folder.stage(
        f"build {label}",
        build.Variant,
        lambda: build.build(
            proposal.strategy,
            bench.network,
            bench.data,
            problem.groups,
            stem=bench.folder.networks / label.replace(" ", "-"),
            board=bench.session.facts,
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
        ),
        detail=lambda m: m.summary(),
    )


def _recalibrate(problem: _Problem, baseline: Measured, measured: Measured) -> None:
    """Correct the latency model and the size prediction by what was just measured."""
    works = tuple(graph.work(k) for k in problem.bench.kernels(problem.bench.path_of(measured)))
    # As a ratio in the baseline's terms, so that drift between the campaigns cancels.
    latency_s = measured.candidate.ratio * baseline.candidate.latency_s
    problem.model = calibration.refit(problem.model, network_samples=((works, latency_s),))
    predicted = measured.candidate.predicted_size_bytes
    assert predicted is not None
    problem.size_scale *= measured.candidate.size_bytes / predicted


def _same(strategy: Strategy, other: Strategy) -> bool:
    return strategy.entries == other.entries


def _verdicts(
    budgets: Sequence[Budget],
    candidate: Candidate,
    baseline: Candidate,
    nearest: Mapping[str, float] | None = None,
) -> tuple[BudgetVerdict, ...]:
    return tuple(
        requirements.judge(
            budget,
            candidate=candidate,
            baseline=baseline,
            nearest=(nearest or {}).get(budget.quantity),
        )
        for budget in budgets
    )


def _decided(budgets: Sequence[Budget], candidate: Candidate, baseline: Candidate) -> bool:
    """Whether no verdict waits for a narrower interval."""
    return all(
        v.verdict != "cannot tell yet" or v.interval is None
        for v in _verdicts(budgets, candidate, baseline)
    )


def _settled(budgets: Sequence[Budget], candidate: Candidate, baseline: Candidate) -> bool:
    """Whether every budget is met, and none that the allocator spends has much to spare."""
    verdicts = _verdicts(budgets, candidate, baseline)
    spent = [
        v.value / v.budget.limit
        for v in verdicts
        if v.value is not None and v.budget.quantity != "accuracy_drop"
    ]
    return all(v.met for v in verdicts) and max(spent, default=1.0) >= MUCH_TO_SPARE


def _rank(
    budgets: Sequence[Budget], candidate: Candidate, baseline: Candidate
) -> tuple[int, float, float]:
    """Sort key: budgets missed, by how much in all, then accuracy lost."""
    verdicts = _verdicts(budgets, candidate, baseline)
    excess = sum(
        max(0.0, v.value / v.budget.limit - 1)
        for v in verdicts
        if v.value is not None and not v.met and v.budget.limit > 0
    )
    return sum(not v.met for v in verdicts), excess, -(candidate.top1 or 0.0)


def _alternatives(problem: _Problem) -> dict[str, Measured]:
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
        proposal = _propose(problem, options, role.replace("_", " "), coverages=ANCHORED)
        result[role] = _build_and_measure(problem, proposal, role=role, round_number=0)
    return result


def _conclude(
    problem: _Problem,
    *,
    base: Measured,
    result: Measured,
    rounds: Sequence[Measured],
    alternatives: Mapping[str, Measured],
    strategy: Strategy,
    proposal: Proposal,
) -> FitResult:
    bench, settings = problem.bench, problem.settings
    nearest: dict[str, float] = {}
    for budget in settings.budgets:
        limit = proposal.nearest.get(budget.quantity)
        if limit is not None:
            whole = {"latency": base.candidate.latency_s, "size": base.candidate.size_bytes}
            nearest[budget.quantity] = limit / (whole[budget.quantity] if budget.relative else 1.0)
    verdicts = _verdicts(settings.budgets, result.candidate, base.candidate, nearest)
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
            role: _verdicts(settings.budgets, m.candidate, base.candidate)
            for role, m in alternatives.items()
        },
        budgets=verdicts,
        verdict=verdict,
        explanation="" if verdict == "meets" else proposal.infeasible,
        kernels=bench.kernel_points((base, result), problem.model),
        peak_macs_per_s=peaks,
        bandwidth_bytes_per_s=bandwidth,
        stages=tuple(bench.folder.stages),
        warnings=tuple(dict.fromkeys((*base.warnings, *result.warnings))),
        fake=bench.session.facts.runtime == "fake",
    )
    bench.write_results(fitted, strategy, result, problem.model)
    return fitted
