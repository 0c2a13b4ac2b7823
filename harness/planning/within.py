"""Requirements as limits on what tables add up, and allocations that keep them as predicted."""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import BoardfitError
from harness.planning.allotting import Allowed, Amount
from harness.planning.subjects import Subject
from harness.planning.verdicts import Reference, judged
from harness.records import Option, Predicted, Requirements

__all__ = ["ALLOCATED", "is_relative", "limits_of", "within"]

# Quantities of requirements that an allocation is solved for, and what of the tables bounds them.
# Energy goes with the time that a call takes.
ALLOCATED: Mapping[str, Amount] = {
    "latency": "latency",
    "size": "size",
    "macs": "macs",
    "parameters": "parameters",
    "energy": "latency",
}
# Tables say nearly what the prediction does: an allocation that keeps a limit by them alone is
# looked for again below it.
ATTEMPTS = 3


def is_relative(requirements: Requirements) -> bool:
    """Whether the latency is limited by what the original takes."""
    asked = requirements.limit("latency")
    return asked is not None and asked.relative


def limits_of(
    requirements: Requirements, subject: Subject, reference: Reference
) -> dict[Amount, float]:
    """The requirements on what tables add up, in the tables' own amounts."""
    whole = subject.allotter.full()
    predicted = subject.pricer(whole)
    limits: dict[Amount, float] = {}
    for asked in requirements.limits:
        amount = ALLOCATED.get(asked.quantity)
        found, limit = judged(asked, predicted, reference)
        if amount is None or limit is None or found is None:
            continue
        if asked.quantity == "latency" and not asked.relative and asked.percentile > 50:
            limit /= reference.tails.get(asked.percentile, 1.0)
        own = limit * subject.allotter.amount(amount, whole) / found.high
        limits[amount] = min(own, limits.get(amount, own))
    return limits


def within(
    subject: Subject, allowed: Allowed, limits: Mapping[Amount, float], *, relative: bool = False
) -> dict[str, Option]:
    """The mildest allocation whose predictions keep ``limits`` (of the tables).

    ``relative``: the limit on the latency is one on its ratio to the original's, whose interval
    is narrower than that of either time. InfeasibleBudget where there is none; BoardfitError where
    none was found.
    """
    whole = subject.allotter.full()
    scale = _ratios(subject, whole, subject.pricer(whole), relative=relative)
    held = dict(limits)
    for _ in range(ATTEMPTS):
        choice = subject.allotter.best(allowed, held)
        here = _ratios(subject, choice, subject.pricer(choice), relative=relative)
        over = {
            amount: subject.allotter.amount(amount, choice) * here[amount] / scale[amount] / limit
            for amount, limit in limits.items()
        }
        if all(share <= 1 + 1e-9 for share in over.values()):
            return choice
        held = {amount: limit / max(over[amount], 1.0) for amount, limit in held.items()}
    raise BoardfitError("no allocation was found whose prediction keeps the limits")


def _ratios(
    subject: Subject, choice: Mapping[str, Option], predicted: Predicted, *, relative: bool
) -> dict[Amount, float]:
    """By how much predictions exceed what the tables say of a choice."""
    exact: dict[Amount, float] = {
        "size": predicted.size_bytes.high,
        "macs": float(predicted.macs),
        "parameters": float(predicted.parameters),
    }
    if relative and predicted.latency_ratio is not None:
        exact["latency"] = predicted.latency_ratio.high
    elif predicted.latency_s is not None:
        exact["latency"] = predicted.latency_s.high
    found = {amount: exact[amount] / subject.allotter.amount(amount, choice) for amount in exact}
    return {"latency": 1.0, **found}
