"""The best strategies of a plan built and measured: what was predicted against what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import networks
from harness.candidates import Measured, Workbench
from harness.compression import build, student
from harness.errors import BuildError, ConfigError, StableBoardError
from harness.planning import loss
from harness.planning.subjects import Subject
from harness.records import (
    Candidate,
    Estimate,
    Option,
    Plan,
    PlannedStrategy,
    Predicted,
    Strategy,
    Verification,
    Verified,
)
from harness.units import format_time
from latency_models.calibration import LatencyModel

__all__ = ["Checked", "rows_of", "verify"]

COVERAGE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What verifying a plan found, and its ``subjects`` with what their losses teach."""

    verification: Verification
    subjects: tuple[Subject, ...]
    measured: Mapping[str, Measured]


def verify(
    plan: Plan,
    top: int,
    bench: Workbench,
    *,
    subjects: Sequence[Subject],
    model: LatencyModel,
    baseline: Measured,
    students: Mapping[str, networks.Network] | None = None,
) -> Checked:
    """Build and measure the ``top`` strategies of ``plan``; compare every column.

    ``subjects`` are those of the plan, ``students`` the networks of those that are students, by
    their names. Each build and each measurement is a stage of the bench's folder, which resumes,
    and every measurement goes to its store. A strategy that cannot be built or run is noted, and
    the others go on. The predictors of loss are recalibrated by what was built. ConfigError where
    the plan has a student that was not given.
    """
    by_student = {subject.student: subject for subject in subjects}
    rows: list[Verified] = []
    notes: list[str] = []
    measured: dict[str, Measured] = {}
    built: dict[str, list[loss.Built]] = {}
    for number, planned in enumerate(plan.strategies[:top], 1):
        subject = by_student.get(planned.strategy.student)
        if subject is None:
            raise ConfigError(
                f"strategy {planned.name} wants the student {planned.strategy.student}, which was "
                "not given; name it with --student"
            )
        try:
            found = _measured(planned, number, bench, subject, model, students or {})
        except (BuildError, StableBoardError) as error:
            notes.append(f"{planned.name} was not verified: {error}")
            continue
        measured[planned.name] = found
        rows += rows_of(planned.name, planned.predicted, found.candidate, baseline.candidate)
        pair = _pair(planned, subject, found.candidate, baseline.candidate, bench)
        if pair is not None:
            built.setdefault(subject.student, []).append(pair)
    if any(row.column == "latency" for row in rows):
        notes.insert(0, _at_pace(baseline.candidate))
    again = tuple(_taught_by(subject, built.get(subject.student, ())) for subject in subjects)
    return Checked(
        verification=Verification(
            rows=tuple(rows), recalibration=_learned(subjects, again, built), notes=tuple(notes)
        ),
        subjects=again,
        measured=measured,
    )


def rows_of(
    name: str, predicted: Predicted, candidate: Candidate, baseline: Candidate
) -> tuple[Verified, ...]:
    """Every column that was predicted of a strategy and that its measurement tells.

    A board's pace drifts between the measurement of the ``baseline``, on which the predictions
    stand, and that of the ``candidate``: its latency is its ratio to the original in the same
    interleaved rounds, times what the ``baseline`` took.
    """
    columns: list[tuple[str, Estimate | None, float | None]] = [
        ("size", predicted.size_bytes, float(candidate.size_bytes)),
        ("parameters", Estimate.exactly(predicted.parameters), float(candidate.parameters)),
        ("macs", Estimate.exactly(predicted.macs), float(candidate.macs)),
        ("latency", predicted.latency_s, candidate.ratio * baseline.latency_s),
        ("accuracy_drop", predicted.accuracy_drop, _drop(candidate, baseline)),
    ]
    return tuple(
        Verified(name=name, column=column, predicted=estimate, actual=actual)
        for column, estimate, actual in columns
        if estimate is not None and actual is not None
    )


def _at_pace(baseline: Candidate) -> str:
    """What the column of actual latencies is."""
    return (
        "Actual latencies are ratios to the original, measured in turn with it, times the "
        f"{format_time(baseline.latency_s)} that it took at first: a board's pace drifts."
    )


def _drop(candidate: Candidate, baseline: Candidate) -> float | None:
    """Points of the metric that a candidate lost; None where nobody counted."""
    if candidate.top1 is None or baseline.top1 is None:
        return None
    return 100 * (baseline.top1 - candidate.top1)


def _measured(
    planned: PlannedStrategy,
    number: int,
    bench: Workbench,
    subject: Subject,
    model: LatencyModel,
    students: Mapping[str, networks.Network],
) -> Measured:
    """The strategy's variant, built and measured: stages of the folder."""
    strategy = planned.strategy
    network = bench.network
    if strategy.student:
        network = _student(strategy, bench, students[strategy.student])
        # What is left to do to it: it is trained again only where it is pruned.
        done = tuple(m for m in strategy.methods if m != "distill" or "prune" in strategy.methods)
        strategy = replace(strategy, methods=done)
    variant = bench.folder.stage(
        f"build {strategy.label}",
        build.Variant,
        lambda: build.build(
            strategy,
            network,
            bench.data,
            subject.groups,
            stem=_stem(bench, strategy.label),
            board=bench.session.facts,
            teacher=bench.network,
            trained=bench.folder.networks / "trained",
            progress=bench.folder.observer.progress,
        ),
    )
    drop = planned.predicted.accuracy_drop
    return bench.folder.stage(
        f"measure {strategy.label}",
        Measured,
        lambda: bench.measure_variant(
            variant,
            strategy,
            subject.groups,
            role="joint",
            round_number=number,
            model=model,
            coverage=COVERAGE,
            predicted_size_bytes=round(planned.predicted.size_bytes.value),
            predicted_loss=0.0 if drop is None else drop.value,
        ),
        detail=lambda m: m.summary(),
    )


def _stem(bench: Workbench, label: str) -> Path:
    return bench.folder.networks / label.replace(" ", "-")


def _student(strategy: Strategy, bench: Workbench, learner: networks.Network) -> networks.Network:
    """The student, taught by the original: a stage of the folder."""
    name = f"student {strategy.student}".replace("/", "_").replace(":", " ")
    found = bench.folder.stage(
        name,
        student.Student,
        lambda: student.teach(
            learner,
            bench.network,
            bench.data,
            stem=_stem(bench, name),
            epochs=strategy.epochs,
            seed=strategy.seed,
            progress=bench.folder.observer.progress,
        ),
        detail=student.Student.summary,
    )
    return student.taught(learner, found)


def _pair(
    planned: PlannedStrategy,
    subject: Subject,
    candidate: Candidate,
    baseline: Candidate,
    bench: Workbench,
) -> loss.Built | None:
    """What a variant teaches of the loss; nothing where none is known.

    Of a student nothing either: what it lost as a student is not told apart from what
    compressing it cost.
    """
    drop = _drop(candidate, baseline)
    if drop is None or subject.loss is None or subject.student or not planned.strategy.methods:
        return None
    pruning, rounding = subject.score(
        {
            entry.group: Option(channels=len(entry.kept), precision=entry.precision)
            for entry in planned.strategy.entries
        }
    )
    return loss.Built(
        label=planned.name,
        pruning=pruning,
        rounding=rounding,
        epochs=planned.strategy.epochs if "distill" in planned.strategy.methods else 0,
        drop=drop,
        images=len(bench.data.test_images),
    )


def _taught_by(subject: Subject, built: Sequence[loss.Built]) -> Subject:
    if subject.loss is None or not built:
        return subject
    return replace(subject, loss=loss.recalibrated(subject.loss, built))


def _learned(
    before: Sequence[Subject], after: Sequence[Subject], built: Mapping[str, Sequence[loss.Built]]
) -> str:
    """How far off predictions of the loss were, and are now; empty where nothing was learned."""
    was: list[float] = []
    now: list[float] = []
    for old, new in zip(before, after, strict=True):
        for one in built.get(old.student, ()):
            if old.loss is not None and new.loss is not None:
                was.append(_off(old.loss, one))
                now.append(_off(new.loss, one))
    if not was:
        return ""
    return (
        f"The predictor of loss was recalibrated from {len(was)} built variants: off by a median "
        f"of {statistics.median(was):.2f} points before, and of {statistics.median(now):.2f} "
        "points on the same variants now."
    )


def _off(model: loss.LossModel, one: loss.Built) -> float:
    predicted = model.predict(one.pruning, one.rounding, epochs=one.epochs, images=one.images)
    return abs(predicted.value - one.drop)
