"""What could be reached where no strategy meets every requirement, and what binds there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import BoardfitError, InfeasibleBudget
from harness.planning import verdicts
from harness.planning.allotting import Allowed, Amount, Choice
from harness.planning.subjects import Subject
from harness.planning.verdicts import Reference
from harness.planning.within import ALLOCATED, is_relative, limits_of, within
from harness.records import Met, Nearest, PlannedStrategy, Predicted, Requirement, Requirements
from harness.records.planning import Quantity

__all__ = ["nearest"]

# Problems solved for the least that a quantity can be while the accuracy is kept: each halves the
# ratio of what is known to be enough to what is not.
HALVINGS = 6
# So many layers are named.
NAMED = 6


def nearest(
    requirements: Requirements,
    ways: Sequence[tuple[Subject, Allowed]],
    reference: Reference,
    planned: Sequence[PlannedStrategy],
    *,
    epochs: int,
    images: int,
) -> tuple[Nearest, ...]:
    """For each requirement the nearest limit that could be promised with the others held.

    ``ways`` are networks with the options that they have; pruned ones are trained for ``epochs``.
    Of what no allocation is solved for (peak memory, the engine's size) the least of the
    ``planned`` strategies. Requirements that could be kept with all the others come last; those
    that are kept only where others give way do not bind, and are left out if some do.
    """
    found = []
    for asked in requirements.limits:
        searches = [
            _Search(requirements, subject, allowed, reference, epochs, images)
            for subject, allowed in ways
        ]
        reached = [one for search in searches for one in search.reached(asked)]
        # What is planned may promise more than was found: tables are not always exact.
        reached += _of_planned(asked, planned)
        if not reached:
            continue
        best = min(reached, key=lambda one: (one.alone, _worse(asked, one.value)))
        spent = [one.binding for one in (best, *reached) if one.binding]
        found.append(
            Nearest(
                quantity=asked.quantity,
                asked=asked.limit,
                reachable=best.value,
                binding=spent[0][:NAMED] if spent else (),
                alone=best.alone,
                aside=best.aside if best.alone else (),
            )
        )
    # Where others give way and this one is kept, it is the others that bind; unless all do so.
    binding = [one for one in found if not (one.alone and _is_kept(one))]
    return tuple(sorted(binding or found, key=_is_kept))


@dataclass(frozen=True, slots=True)
class _Promise:
    """The limit that a choice could be promised to keep, and the layers that take most of it.

    ``aside`` are the other requirements that it does not promise.
    """

    value: float
    binding: tuple[str, ...]
    alone: bool
    aside: tuple[Quantity, ...] = ()


def _is_floor(found: Nearest | Requirement) -> bool:
    return found.quantity == "accuracy_floor"


def _is_kept(found: Nearest) -> bool:
    return found.reachable >= found.asked if _is_floor(found) else found.reachable <= found.asked


def _worse(asked: Requirement, value: float) -> float:
    return -value if _is_floor(asked) else value


def _promised(asked: Requirement, predicted: Predicted, reference: Reference) -> float | None:
    """The limit for which the verdict on ``asked`` would be "meets"."""
    met = verdicts.met(asked, predicted, reference)
    return met.low if _is_floor(asked) else met.high


def _of_planned(asked: Requirement, planned: Sequence[PlannedStrategy]) -> Iterator[_Promise]:
    """What the planned strategies promise of one requirement; those that keep the others first."""
    for one in planned:
        (own,) = [v for v in one.verdicts if v.requirement == asked]
        value = own.low if _is_floor(asked) else own.high
        if value is not None:
            others = [v for v in one.verdicts if v.requirement != asked]
            yield _Promise(value, (), verdicts.overall(others) != "meets", _missed(others))


def _missed(others: Sequence[Met]) -> tuple[Quantity, ...]:
    """What is not promised of the other requirements."""
    return tuple(one.requirement.quantity for one in others if one.verdict != "meets")


class _Search:
    """What one network reaches."""

    def __init__(
        self,
        requirements: Requirements,
        subject: Subject,
        allowed: Allowed,
        reference: Reference,
        epochs: int,
        images: int,
    ) -> None:
        self.requirements, self.subject, self.allowed = requirements, subject, allowed
        self.reference, self.epochs, self.images = reference, epochs, images
        self.limits = limits_of(requirements, subject, reference)

    def reached(self, asked: Requirement) -> list[_Promise]:
        """What could be promised of ``asked``; nothing where it is not known."""
        try:
            if asked.quantity.startswith("accuracy"):
                return self._accuracy(asked)
            if asked.quantity in ALLOCATED:
                return self._amount(asked, ALLOCATED[asked.quantity])
        except BoardfitError:
            return []  # it was not found in time, and what the strategies reach says enough
        return []

    def _amount(self, asked: Requirement, amount: Amount) -> list[_Promise]:
        least = self.subject.allotter.least(amount, self.allowed, self._others(asked))
        choice, alone = least.choice, least.alone
        if not self._keeps(choice):
            milder = self._milder(amount, choice, asked, alone)
            alone = alone or milder is None
            choice = choice if milder is None else milder
        predicted = self._predicted(choice)
        value = _promised(asked, predicted, self.reference)
        if value is None:
            return []
        aside = self._aside(asked, predicted)
        return [_Promise(value, self.subject.layers(least.binding), alone, aside)]

    def _accuracy(self, asked: Requirement) -> list[_Promise]:
        alone = False
        try:
            choice: Choice = within(
                self.subject,
                self.allowed,
                self.limits,
                relative=is_relative(self.requirements),
            )
        except InfeasibleBudget:
            choice, alone = self.subject.allotter.full(), True
        predicted = self._predicted(choice)
        value = _promised(asked, predicted, self.reference)
        if value is None:
            return []
        return [_Promise(value, self._losing(choice), alone, self._aside(asked, predicted))]

    def _aside(self, asked: Requirement, predicted: Predicted) -> tuple[Quantity, ...]:
        """The requirements beside ``asked`` that are not promised where it comes nearest."""
        others = [one for one in self.requirements.limits if one != asked]
        return _missed([verdicts.met(one, predicted, self.reference) for one in others])

    def _others(self, asked: Requirement) -> Mapping[Amount, float]:
        """The limits without ``asked``; one amount may stand for several requirements."""
        others = tuple(one for one in self.requirements.limits if one != asked)
        kept = Requirements(limits=others)
        return limits_of(kept, self.subject, self.reference)

    def _milder(
        self, amount: Amount, least: Choice, asked: Requirement, alone: bool
    ) -> Choice | None:
        """The choice with the least of ``amount`` that keeps the accuracy, too; None if none does.

        The mildest choice for a limit loses the less the looser it is: limits are halved between
        the least that is reached and where the mildest of all is.
        """
        others = {} if alone else self._others(asked)
        try:
            mild: Choice = within(self.subject, self.allowed, others)
        except InfeasibleBudget:
            return None
        if not self._keeps(mild):
            return None
        low = self.subject.allotter.amount(amount, least)
        high = self.subject.allotter.amount(amount, mild)
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            try:
                choice = within(self.subject, self.allowed, {**others, amount: middle})
            except BoardfitError:
                low = middle
                continue
            if self._keeps(choice):
                mild, high = choice, min(middle, self.subject.allotter.amount(amount, choice))
            else:
                low = middle
        return mild

    def _keeps(self, choice: Choice) -> bool:
        """Whether the accuracy is promised to be kept; also where nothing was asked of it."""
        asked = [one for one in self.requirements.limits if one.quantity.startswith("accuracy")]
        predicted = self._predicted(choice) if asked else None
        return predicted is None or all(
            verdicts.met(one, predicted, self.reference).verdict == "meets" for one in asked
        )

    def _predicted(self, choice: Choice) -> Predicted:
        epochs = self.epochs if self.subject.cuts(choice) else 0
        return self.subject.predicted(choice, epochs=epochs, images=self.images)

    def _losing(self, choice: Choice) -> tuple[str, ...]:
        """The layers of the groups that make up half of the summed sensitivity, or more."""
        own = self.subject.allotter.losses(choice)
        whole, taken = sum(own), 0.0
        order: list[int] = []
        for index in sorted(range(len(own)), key=lambda index: -own[index]):
            if taken >= whole / 2:
                break
            order.append(index)
            taken += own[index]
        return self.subject.layers(order)
