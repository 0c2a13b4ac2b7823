"""Strategies that meet requirements, the best first, without building one.

All methods that are allowed are enumerated, alone and together: every group cut to one share of its
channels, in one precision; widths, precisions and both by allocation, as the requirements ask and
at some shares of the latency; students sliced from the original and students that were named, each
compressed further. Everything is predicted (``subjects``), held against the requirements
(``verdicts``), ranked, and explained (``sentences``). Source: Wang et al., PRAI 2023, whose
generator enumerates methods with their settings; here allocations come from exact tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.errors import BoardfitError, ConfigError, InfeasibleBudget
from harness.planning import sentences, verdicts
from harness.planning.allotting import Allowed, Amount, Choice
from harness.planning.nearest import nearest
from harness.planning.subjects import Subject
from harness.planning.verdicts import Reference
from harness.planning.within import limits_of, within
from harness.records import Nearest, Plan, PlannedStrategy, Predicted, Requirements

__all__ = ["PlanSettings", "plan"]

# Shares of the channels that uniform pruning keeps, and that students sliced from the original
# have.
KEEPS = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
STUDENTS = (3 / 4, 1 / 2)
# Allocations are made for the requirements, and for these shares of the untouched latency.
SHARES = (0.6, 0.8, 0.4)
# So many points of accuracy weigh as much as the whole latency, or the whole size, where the
# objective weighs them alike.
POINTS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """How strategies train, and what the answer may take.

    A pruned network is trained for ``epochs``, a student for ``student_epochs``. Drops are
    predicted for a test on so many ``images``. Allocations that are not come to in
    ``time_limit_s`` (``hasty_s`` where no loss is predicted, and milder is only a guess) are left
    out.
    """

    epochs: int = 4
    student_epochs: int = 30
    images: int = 1000
    seed: int = 0
    time_limit_s: float = 20.0
    hasty_s: float = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A strategy that has a name and an allocation, and no predictions yet."""

    name: str
    methods: tuple[str, ...]
    subject: Subject
    choice: Choice
    epochs: int
    width: float | None = None


@dataclass(slots=True)
class _Task:
    """What all drafts share; ``notes`` are added as they come up."""

    requirements: Requirements
    settings: PlanSettings
    reference: Reference
    clock: Callable[[], float]
    began: float
    limit_s: float
    notes: list[str] = field(default_factory=list)
    left_out: int = 0

    def may(self, method: str) -> bool:
        return method in self.requirements.methods

    def precisions(self, subject: Subject) -> tuple[str, ...]:
        """Those that are allowed and that the board can use, the exact one first."""
        if not self.may("quantize"):
            return ("fp32",)
        return tuple(p for p in subject.precisions if p in self.requirements.precisions)


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
    task = _Task(
        requirements=requirements,
        settings=settings,
        reference=Reference(baseline=baseline, accuracy=accuracy, tails=tails or {}),
        clock=clock,
        began=began,
        limit_s=settings.hasty_s if original.loss is None else settings.time_limit_s,
    )
    _check(task, original)
    drafts = _distinct([*_original(task, original), *_students(task, subjects[1:])])
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


def _check(task: _Task, original: Subject) -> None:
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
        task.notes.append(
            "No loss of accuracy is predicted: give images (--data). Milder strategies come first."
        )
    elif not original.loss.learned:
        task.notes.append("What training gives back is a prior; --verify learns it.")
    if original.predicted(original.allotter.full(), epochs=0, images=1).latency_source == "prior":
        task.notes.append("Latencies rest on the board's datasheet: nothing was measured.")


def _original(task: _Task, subject: Subject) -> Iterator[_Draft]:
    """Everything that is made of the original."""
    settings, precisions = task.settings, task.precisions(subject)
    whole = subject.allotter.full()
    yield _Draft(name="as it is", methods=(), subject=subject, choice=whole, epochs=0)
    tune = settings.epochs if task.may("distill") else 0
    exact = precisions[:1]
    for precision in precisions:
        yield from _uniform(task, subject, (1.0,), precision, 0)
    if task.may("prune"):
        for precision in precisions:
            yield from _uniform(task, subject, KEEPS, precision, tune)
    if task.may("distill"):
        for precision in dict.fromkeys((precisions[0], precisions[-1])):
            yield from _uniform(
                task, subject, STUDENTS, precision, settings.student_epochs, student=True
            )
    ways: list[tuple[str, Allowed, int]] = []
    if len(precisions) > 1:
        allowed = subject.allowed(task.requirements, prune=False, precisions=precisions)
        ways.append(("mixed precision", allowed, 0))
    if task.may("prune"):
        allowed = subject.allowed(task.requirements, prune=True, precisions=exact)
        ways.append(("pruned", allowed, tune))
        if len(precisions) > 1:
            allowed = subject.allowed(task.requirements, prune=True, precisions=precisions)
            ways.append(("pruned and quantized", allowed, tune))
    yield from _allocated(task, subject, ways)
    if task.may("distill") and task.may("prune"):
        width = STUDENTS[0]
        allowed = subject.allowed(task.requirements, prune=True, precisions=precisions, width=width)
        name = f"student {width:.0%} wide, pruned" + (" and quantized" if precisions[1:] else "")
        yield from _allocated(
            task, subject, [(name, allowed, settings.student_epochs)], shares=(), width=width
        )


def _students(task: _Task, students: Sequence[Subject]) -> Iterator[_Draft]:
    """Everything that is made of named students."""
    if not task.may("distill"):
        return
    for subject in students:
        precisions, name = task.precisions(subject), f"student {subject.student}"
        for precision in precisions:
            for draft in _uniform(task, subject, (1.0,), precision, 0):
                yield _taught(task, draft, name)
        if task.may("prune"):
            allowed = subject.allowed(task.requirements, prune=True, precisions=precisions)
            way = ("pruned" + (" and quantized" if precisions[1:] else ""), allowed, 0)
            for draft in _allocated(task, subject, [way], shares=SHARES[:1]):
                yield _taught(task, draft, name)


def _taught(task: _Task, draft: _Draft, name: str) -> _Draft:
    methods = tuple(dict.fromkeys(("distill", *draft.methods)))
    more = "" if draft.name == "fp32" else f", {draft.name}"
    return replace(draft, name=name + more, methods=methods, epochs=task.settings.student_epochs)


def _uniform(
    task: _Task,
    subject: Subject,
    keeps: Sequence[float],
    precision: str,
    epochs: int,
    *,
    student: bool = False,
) -> Iterator[_Draft]:
    for keep in keeps:
        allowed = subject.allowed(
            task.requirements, prune=keep < 1, precisions=(precision,), width=1.0
        )
        choice = subject.uniform(allowed, keep=keep)
        name = f"student {keep:.0%} wide" if student else f"pruned to {100 * keep:g} %"
        parts = ([name] if keep < 1 else []) + ([precision] if precision != "fp32" else [])
        yield _draft(
            subject,
            ", ".join(parts) or "fp32",
            choice,
            epochs=epochs,
            width=keep if student else None,
            beyond=False,
        )


def _draft(
    subject: Subject,
    name: str,
    choice: Choice,
    *,
    epochs: int,
    width: float | None = None,
    beyond: bool = True,
) -> _Draft:
    """The draft of a choice, with the methods that it takes, in their order.

    ``width`` is that of a student sliced from the original, pruned ``beyond`` it or not.
    """
    cuts = subject.cuts(choice)
    if width is not None:
        methods = ["distill", "prune"] if beyond else ["distill"]
    elif cuts:
        methods = ["prune", "distill"] if epochs else ["prune"]
    else:
        methods = []
    if any(option.precision != "fp32" for option in choice.values()):
        methods.append("quantize")
    return _Draft(
        name=name,
        methods=tuple(methods),
        subject=subject,
        choice=choice,
        epochs=epochs if cuts else 0,
        width=width,
    )


def _allocated(
    task: _Task,
    subject: Subject,
    ways: Sequence[tuple[str, Allowed, int]],
    *,
    shares: Sequence[float] = SHARES,
    width: float | None = None,
) -> Iterator[_Draft]:
    """Allocations of every way: as the requirements ask, then by shares of the latency."""
    asked = limits_of(task.requirements, subject, task.reference)
    whole_s = subject.allotter.amount("latency", subject.allotter.full())
    points: list[tuple[str, dict[Amount, float]]] = []
    if asked:
        points.append(("as required", asked))
    if "latency" in asked:
        # Where the model is not sure enough to promise anything, what it predicts may do.
        loosened = asked["latency"] * subject.allotter.width
        points.append(("as required if the prediction holds", {**asked, "latency": loosened}))
    points += [(f"{share:.0%} of the latency", {"latency": share * whole_s}) for share in shares]
    for point, limits in points:
        for way, allowed, epochs in ways:
            if task.clock() - task.began >= task.limit_s:
                task.left_out += 1
                continue
            try:
                choice = within(subject, allowed, limits)
            except InfeasibleBudget:
                continue  # out of reach in this way: ``nearest`` says by how much, if in all
            except BoardfitError:
                task.left_out += 1
                continue
            yield _draft(subject, f"{way}, {point}", choice, epochs=epochs, width=width)


def _everything(task: _Task, subject: Subject) -> Allowed:
    """All options that the requirements leave a subject."""
    return subject.allowed(
        task.requirements, prune=task.may("prune"), precisions=task.precisions(subject)
    )


def _distinct(drafts: Sequence[_Draft]) -> list[_Draft]:
    """The drafts without those that are the same as one before them."""
    found: list[_Draft] = []
    seen: set[object] = set()
    for draft in drafts:
        key = (draft.subject.student, draft.epochs, tuple(draft.choice.items()))
        if key not in seen:
            seen.add(key)
            found.append(draft)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A planned strategy, and what it is ranked by: its milder-than score where no drop is."""

    planned: PlannedStrategy
    score: float


def _planned(task: _Task, draft: _Draft) -> _Judged:
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


def _ranked(task: _Task, judged: Sequence[_Judged]) -> list[PlannedStrategy]:
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
