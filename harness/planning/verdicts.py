"""Whether predictions keep requirements, and which of them are on the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.records import Estimate, Met, Predicted, Requirement
from harness.records.planning import PlanVerdict

__all__ = ["Reference", "estimate", "excess", "front", "judged", "limit_of", "met", "overall"]

WORST: tuple[PlanVerdict, ...] = ("does not meet", "cannot tell")
# What sums of predictions may differ by where nothing differs.
HAIR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What predictions are held against: the original's own costs, and its accuracy (of 1).

    ``accuracy`` is None where nobody measured it. ``tails`` has, for a percentile of the latency,
    its ratio to the median as it was measured on the board.
    """

    baseline: Predicted
    accuracy: float | None = None
    tails: Mapping[float, float] = field(default_factory=dict)


def estimate(quantity: str, predicted: Predicted, reference: Reference) -> Estimate | None:
    """The prediction of a requirement's quantity, in the unit of its absolute limit."""
    if quantity == "accuracy_floor":
        drop = predicted.accuracy_drop
        if drop is None or reference.accuracy is None:
            return None
        whole = reference.accuracy
        return Estimate(
            value=whole - drop.value / 100,
            low=whole - drop.high / 100,
            high=whole - drop.low / 100,
            note=drop.note,
        )
    exact = {"parameters": predicted.parameters, "macs": predicted.macs}
    if quantity in exact:
        return Estimate.exactly(float(exact[quantity]))
    return {
        "latency": predicted.latency_s,
        "size": predicted.size_bytes,
        "engine_size": predicted.engine_bytes,
        "peak_memory": predicted.peak_activation_bytes,
        "energy": predicted.energy_j,
        "accuracy_drop": predicted.accuracy_drop,
    }[quantity]


def limit_of(requirement: Requirement, reference: Reference) -> float | None:
    """The absolute limit that a requirement means; None where the original's own is not known."""
    if not requirement.relative:
        return requirement.limit
    whole = estimate(requirement.quantity, reference.baseline, reference)
    return None if whole is None else requirement.limit * whole.value


def judged(
    requirement: Requirement, predicted: Predicted, reference: Reference
) -> tuple[Estimate | None, float | None]:
    """What is judged, and its limit in the same unit.

    A relative latency is judged by its ratio to the original's: what the model gets wrong in both
    says nothing of it. A percentile of both is taken to be as far from either median.
    """
    if requirement.relative and requirement.quantity == "latency":
        return predicted.latency_ratio, requirement.limit
    return estimate(requirement.quantity, predicted, reference), limit_of(requirement, reference)


def met(requirement: Requirement, predicted: Predicted, reference: Reference) -> Met:
    """Whether a prediction keeps a requirement: "cannot tell" where its interval holds the limit.

    A percentile of the latency other than the median is judged by its ratio to that on the board;
    where it is not known, by what is certain of any: one above the median is no less than it.
    """
    found, limit = judged(requirement, predicted, reference)
    if found is None or limit is None:
        return Met(requirement=requirement, verdict="cannot tell")
    low, value, high = found.low, found.value, found.high
    absolute = not requirement.relative
    if requirement.quantity == "latency" and absolute and requirement.percentile != 50:
        tail = reference.tails.get(requirement.percentile)
        if tail is not None:
            low, value, high = (tail * number for number in (low, value, high))
        elif requirement.percentile > 50:
            high = math.inf
        else:
            low = 0.0
    unit = requirement.limit / limit if limit else 1.0
    return Met(
        requirement=requirement,
        verdict=_verdict(requirement, low, high, limit),
        value=value * unit,
        low=low * unit,
        high=high * unit if math.isfinite(high) else None,
    )


def _verdict(requirement: Requirement, low: float, high: float, limit: float) -> PlanVerdict:
    room = HAIR * abs(limit)
    if requirement.quantity == "accuracy_floor":
        if low >= limit - room:
            return "meets"
        return "does not meet" if high < limit - room else "cannot tell"
    if high <= limit + room:
        return "meets"
    return "does not meet" if low > limit + room else "cannot tell"


def overall(verdicts: Sequence[Met]) -> PlanVerdict:
    """The worst of several verdicts."""
    return next((worst for worst in WORST if any(v.verdict == worst for v in verdicts)), "meets")


def excess(verdict: Met) -> float:
    """By what share of its limit the predicted value misses it; 0 where it does not."""
    if verdict.value is None:
        return 0.0
    limit = verdict.requirement.limit
    over = verdict.value - limit
    if verdict.requirement.quantity == "accuracy_floor":
        over = -over
    # No points may be lost at all: every point counts as the whole limit would.
    return max(over / limit if limit else over, 0.0)


def front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Whether no other point is as good everywhere and better somewhere (less is better)."""

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]
