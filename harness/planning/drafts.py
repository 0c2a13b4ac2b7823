"""What a plan tries: every method with its settings, alone and in sequences, as allocations.

Every group cut to one share of its channels, in one precision; widths, precisions and both by
allocation, as the requirements ask and at some shares of the latency and of the file; students
sliced from the original and students that were named, each compressed further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from harness.errors import BoardfitError, InfeasibleBudget
from harness.planning.allotting import Allowed, Amount, Choice
from harness.planning.subjects import Subject
from harness.planning.verdicts import Reference
from harness.planning.within import is_relative, limits_of, within
from harness.records import Requirements

__all__ = ["Draft", "PlanSettings", "Task", "distinct", "of_original", "of_students"]

# Shares of the channels that uniform pruning keeps, and that students sliced from the original
# have.
KEEPS = (7 / 8, 3 / 4, 5 / 8, 1 / 2)
STUDENTS = (3 / 4, 1 / 2)
# Allocations are made for the requirements, and for these shares of the untouched latency and of
# the untouched file: those that tell most come first, for time may be up.
SHARES: tuple[tuple[Amount, float], ...] = (
    ("latency", 0.6),
    ("latency", 0.8),
    ("latency", 0.4),
    ("size", 0.5),
    ("size", 0.25),
    ("latency", 0.9),
    ("latency", 0.7),
    ("latency", 0.5),
    ("latency", 0.3),
    ("size", 0.75),
)


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
class Draft:
    """A strategy that has a name and an allocation, and no predictions yet."""

    name: str
    methods: tuple[str, ...]
    subject: Subject
    choice: Choice
    epochs: int
    width: float | None = None


@dataclass(slots=True)
class Task:
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
        """Whether a method is allowed."""
        return method in self.requirements.methods

    def precisions(self, subject: Subject) -> tuple[str, ...]:
        """Those that are allowed and that the board can use, the exact one first."""
        if not self.may("quantize"):
            return ("fp32",)
        return tuple(p for p in subject.precisions if p in self.requirements.precisions)


def of_original(task: Task, subject: Subject) -> Iterator[Draft]:
    """Everything that is made of the original."""
    settings, precisions = task.settings, task.precisions(subject)
    whole = subject.allotter.full()
    yield Draft(name="as it is", methods=(), subject=subject, choice=whole, epochs=0)
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
    ways: list[tuple[Allowed, int]] = []
    if len(precisions) > 1:
        allowed = subject.allowed(task.requirements, prune=False, precisions=precisions)
        ways.append((allowed, 0))
    if task.may("prune"):
        ways.append((subject.allowed(task.requirements, prune=True, precisions=exact), tune))
        if len(precisions) > 1:
            allowed = subject.allowed(task.requirements, prune=True, precisions=precisions)
            ways.append((allowed, tune))
    yield from _allocated(task, subject, ways)
    if task.may("distill") and task.may("prune"):
        width = STUDENTS[0]
        allowed = subject.allowed(task.requirements, prune=True, precisions=precisions, width=width)
        ways = [(allowed, settings.student_epochs)]
        yield from _allocated(task, subject, ways, shares=(), width=width)


def of_students(task: Task, students: Sequence[Subject]) -> Iterator[Draft]:
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
            for draft in _allocated(task, subject, [(allowed, 0)], shares=SHARES[:1]):
                yield _taught(task, draft, name)


def _taught(task: Task, draft: Draft, name: str) -> Draft:
    methods = tuple(dict.fromkeys(("distill", *draft.methods)))
    more = "" if draft.name == "fp32" else f", {draft.name}"
    return replace(draft, name=name + more, methods=methods, epochs=task.settings.student_epochs)


def _uniform(
    task: Task,
    subject: Subject,
    keeps: Sequence[float],
    precision: str,
    epochs: int,
    *,
    student: bool = False,
) -> Iterator[Draft]:
    for keep in keeps:
        allowed = subject.allowed(
            task.requirements, prune=keep < 1, precisions=(precision,), width=1.0
        )
        choice = subject.uniform(allowed, keep=keep)
        name = _student(keep) if student else f"pruned to {100 * keep:g} %"
        parts = ([name] if keep < 1 else []) + ([precision] if precision != "fp32" else [])
        yield _draft(
            subject,
            ", ".join(parts) or "fp32",
            choice,
            epochs=epochs,
            width=keep if student else None,
        )


def _draft(
    subject: Subject,
    name: str,
    choice: Choice,
    *,
    epochs: int,
    width: float | None = None,
    beyond: bool = False,
) -> Draft:
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
    return Draft(
        name=name,
        methods=tuple(methods),
        subject=subject,
        choice=choice,
        epochs=epochs if cuts else 0,
        width=width,
    )


def _allocated(
    task: Task,
    subject: Subject,
    ways: Sequence[tuple[Allowed, int]],
    *,
    shares: Sequence[tuple[Amount, float]] = SHARES,
    width: float | None = None,
) -> Iterator[Draft]:
    """Allocations of every way: as the requirements ask, then by shares of what is untouched."""
    asked = limits_of(task.requirements, subject, task.reference)
    whole = subject.allotter.full()
    relative = is_relative(task.requirements)
    points: list[tuple[str, dict[Amount, float], bool]] = []
    if asked:
        points.append(("as required", asked, relative))
    if "latency" in asked:
        # Where the model is not sure enough to promise anything, what it predicts may do.
        loosened = asked["latency"] * (1.0 if relative else subject.allotter.width)
        likely = {**asked, "latency": loosened}
        points.append(("as required if the prediction holds", likely, False))
    points += [
        (
            f"{share:.0%} of the {amount}",
            {amount: share * subject.allotter.amount(amount, whole)},
            False,
        )
        for amount, share in shares
    ]
    for point, limits, ratio in points:
        for allowed, epochs in ways:
            if task.clock() - task.began >= task.limit_s:
                task.left_out += 1
                continue
            try:
                choice = within(subject, allowed, limits, relative=ratio)
            except InfeasibleBudget:
                continue  # out of reach in this way: ``nearest`` says by how much, if in all
            except BoardfitError:
                task.left_out += 1
                continue
            cut = _cut(subject, allowed, choice)
            # What it came to, which may be less than was allowed.
            name = ", ".join(filter(None, (_student(width), _done(cut, choice), point)))
            yield _draft(subject, name, choice, epochs=epochs, width=width, beyond=cut)


def _student(width: float | None) -> str:
    """What a student sliced from the original is called; nothing for the original."""
    return "" if width is None else f"student {width:.0%} wide"


def _cut(subject: Subject, allowed: Allowed, choice: Choice) -> bool:
    """Whether a group is narrower than the widest that it was allowed to be."""
    return any(
        choice[name].channels < max(options[j].channels for j in own)
        for (name, options), own in zip(subject.allotter.options.items(), allowed, strict=True)
    )


def _done(cut: bool, choice: Choice) -> str:
    """What an allocation does; nothing where it leaves all as it is."""
    precisions = {option.precision for option in choice.values()}
    if precisions == {"fp32"}:
        return "pruned" if cut else ""
    if cut:
        return "pruned and quantized"
    return "mixed precision" if len(precisions) > 1 else precisions.pop()


def distinct(drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts without those that are the same as one before them.

    Of one name there are two where the solver was free to leave precisions alone and did: they do
    the same, as near to the best as it goes.
    """
    found: list[Draft] = []
    seen: set[object] = set()
    names: set[str] = set()
    for draft in drafts:
        key = (draft.subject.student, draft.epochs, tuple(draft.choice.items()))
        if key not in seen and draft.name not in names:
            seen.add(key)
            names.add(draft.name)
            found.append(draft)
    return found
