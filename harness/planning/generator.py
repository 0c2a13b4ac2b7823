"""Strategies that meet requirements, the best first, without building one.

All methods that are allowed are enumerated, alone and together (``drafts``). Everything is
predicted (``subjects``), held against the requirements (``verdicts``), ranked, and explained
(``sentences``).
Source: Wang et al., PRAI 2023, whose generator enumerates methods with their settings; here
allocations come from exact tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import ConfigError
from harness.planning import sentences, verdicts
from harness.planning.allotting import Allowed
from harness.planning.choosing import POINTS
from harness.planning.drafts import Draft, PlanSettings, Task, distinct, of_original, of_students
from harness.planning.nearest import nearest
from harness.planning.subjects import Subject
from harness.planning.verdicts import Reference
from harness.records import Nearest, Plan, PlannedStrategy, Predicted, Requirements

__all__ = ["PlanSettings", "plan"]


def plan(
    requirements: Requirements,
    subjects: Sequence[Subject],
    *,
    network: str,
    board: str,
    accuracy: float | None = None,
    tails: Mapping[float, float] | None = None,
    settings: PlanSettings | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """The strategies for the first of ``subjects``, the original; the others are students.

    ``accuracy`` is the original's, of 1, if it is known, ``tails`` the ratio of percentiles of the
    latency to its median as it was measured. Where nothing meets the requirements, ``nearest``
    says for each what could be reached. ConfigError where they leave nothing to choose from.
    """
    began = clock()
    settings = settings or PlanSettings()
    original = subjects[0]
    whole = original.allotter.full()
    baseline = original.predicted(whole, epochs=0, images=settings.images)
    task = Task(
        requirements=requirements,
        settings=settings,
        reference=Reference(baseline=baseline, accuracy=accuracy, tails=tails or {}),
        clock=clock,
        began=began,
        limit_s=settings.hasty_s if original.loss is None else settings.time_limit_s,
    )
    _check(task, original)
    drafts = distinct([*of_original(task, original), *of_students(task, subjects[1:])])
    planned = _ranked(task, [_planned(task, draft) for draft in drafts])
    unreachable: tuple[Nearest, ...] = ()
    if requirements.limits and not any(one.verdict == "meets" for one in planned):
        ways = [(s, _everything(task, s)) for s in subjects]
        unreachable = nearest(
            requirements,
            ways,
            task.reference,
            planned,
            epochs=settings.epochs if task.may("distill") else 0,
            images=settings.images,
        )
    if task.left_out:
        task.notes.append(
            f"{task.left_out} allocations were left out: {task.limit_s:.0f} s were up, or "
            "none was found in time"
        )
    return Plan(
        network=network,
        board=board,
        requirements=requirements,
        baseline=baseline,
        strategies=tuple(planned),
        front=tuple(one.name for one in planned if one.on_front),
        nearest=unreachable,
        notes=tuple(dict.fromkeys(task.notes)),
        wall_s=clock() - began,
    )


def _check(task: Task, original: Subject) -> None:
    """Note what is left aside and why; ConfigError where nothing is left."""
    asked = task.requirements
    wide, _ = original.untouched(asked)
    usable = task.precisions(original)
    if not usable:
        raise ConfigError(
            f"precisions: the board can use {', '.join(original.precisions)}, and "
            f"{', '.join(asked.precisions)} are allowed; allow one of the board's"
        )
    if task.may("quantize"):
        for precision in asked.precisions:
            if precision not in original.precisions:
                task.notes.append(f"{precision} is left aside: the board does not gain from it.")
    if task.may("prune") and not any(g.prunable and g.name not in wide for g in original.groups):
        task.notes.append("Nothing can be pruned: no group is prunable, or all are to be kept.")
    if original.loss is None:
        why = (
            "it does little better than chance on its images: give its weights (--weights)"
            if original.untrained
            else "give images (--data)"
        )
        task.notes.append(f"No loss of accuracy is predicted: {why}. Milder strategies come first.")
    elif not original.loss.learned:
        task.notes.append("What training gives back is a prior; --verify learns it.")
    if original.predicted(original.allotter.full(), epochs=0, images=1).latency_source == "prior":
        task.notes.append("Latencies rest on the board's datasheet: nothing was measured.")


def _everything(task: Task, subject: Subject) -> Allowed:
    """All options that the requirements leave a subject."""
    return subject.allowed(
        task.requirements, prune=task.may("prune"), precisions=task.precisions(subject)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A planned strategy, and what it is ranked by: its milder-than score where no drop is."""

    planned: PlannedStrategy
    score: float


def _planned(task: Task, draft: Draft) -> _Judged:
    subject, asked = draft.subject, task.requirements
    predicted = subject.predicted(draft.choice, epochs=draft.epochs, images=task.settings.images)
    found = tuple(verdicts.met(one, predicted, task.reference) for one in asked.limits)
    does = sentences.does(
        subject.groups,
        draft.choice,
        predicted,
        task.reference.baseline,
        student=subject.student,
        width=draft.width,
        epochs=draft.epochs,
    )
    planned = PlannedStrategy(
        name=draft.name,
        methods=draft.methods,
        strategy=subject.strategy(
            draft.name, draft.choice, epochs=draft.epochs, seed=task.settings.seed
        ),
        predicted=predicted,
        verdicts=found,
        verdict=verdicts.overall(found),
        sentences=(does, sentences.explained(found, predicted)),
        on_front=False,
    )
    return _Judged(planned=planned, score=subject.allotter.loss(draft.choice))


def _ranked(task: Task, judged: Sequence[_Judged]) -> list[PlannedStrategy]:
    """The strategies by verdict; those that meet by the objective, others by how far they are."""
    largest = max((one.score for one in judged), default=0.0) or 1.0
    points = [
        (
            _lost(one, largest),
            _latency(one.planned.predicted),
            one.planned.predicted.size_bytes.value,
        )
        for one in judged
    ]
    on_front = verdicts.front(points)
    order = {"meets": 0, "cannot tell": 1, "does not meet": 2}
    base = task.reference.baseline

    def key(index: int) -> tuple[float, ...]:
        planned = judged[index].planned
        lost, latency_s, size = points[index]
        worth = sum(
            weight * value
            for weight, value in (
                (task.requirements.objective.get("accuracy", 0.0), lost / POINTS),
                (
                    task.requirements.objective.get("latency", 0.0),
                    latency_s / (_latency(base) or 1.0),
                ),
                (task.requirements.objective.get("size", 0.0), size / base.size_bytes.value),
            )
        )
        missed = sum(verdicts.excess(verdict) for verdict in planned.verdicts)
        far = 0.0 if planned.verdict == "meets" else missed
        # Of what is alike in the objective, what is milder, then what is faster.
        return (order[planned.verdict], far, worth, judged[index].score, latency_s, size)

    return [
        replace(judged[index].planned, on_front=on_front[index])
        for index in sorted(range(len(judged)), key=key)
    ]


def _lost(one: _Judged, largest: float) -> float:
    """The points lost; by score, up to ten of them, where nobody predicts points."""
    drop = one.planned.predicted.accuracy_drop
    return POINTS * one.score / largest if drop is None else drop.value


def _latency(predicted: Predicted) -> float:
    return 0.0 if predicted.latency_s is None else predicted.latency_s.value
