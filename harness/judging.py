"""The loop's decisions on candidates: whether budgets are met, when to stop, which round wins."""

from collections.abc import Mapping, Sequence

from harness.records import Budget, BudgetVerdict, Candidate
from harness.strategies import requirements

__all__ = ["decided", "rank", "settled", "verdicts"]

# A budget is "met with much to spare" below this share of it: accuracy was given away.
MUCH_TO_SPARE = 0.93


def verdicts(
    budgets: Sequence[Budget],
    candidate: Candidate,
    baseline: Candidate,
    nearest: Mapping[str, float] | None = None,
) -> tuple[BudgetVerdict, ...]:
    """What the measurement of ``candidate`` says of each budget; ``nearest`` is by quantity."""
    return tuple(
        requirements.judge(
            budget,
            candidate=candidate,
            baseline=baseline,
            nearest=(nearest or {}).get(budget.quantity),
        )
        for budget in budgets
    )


def decided(budgets: Sequence[Budget], candidate: Candidate, baseline: Candidate) -> bool:
    """Whether no verdict waits for a narrower interval."""
    return all(
        v.verdict != "cannot tell yet" or v.interval is None
        for v in verdicts(budgets, candidate, baseline)
    )


def settled(budgets: Sequence[Budget], candidate: Candidate, baseline: Candidate) -> bool:
    """Whether every budget is met, and none that the allocator spends has much to spare."""
    judged = verdicts(budgets, candidate, baseline)
    spent = [
        v.value / v.budget.limit
        for v in judged
        if v.value is not None and v.budget.quantity != "accuracy_drop"
    ]
    return all(v.met for v in judged) and max(spent, default=1.0) >= MUCH_TO_SPARE


def rank(
    budgets: Sequence[Budget], candidate: Candidate, baseline: Candidate
) -> tuple[bool, float, int, float]:
    """Sort key: whether a budget is missed, by how much in all, how many are, then top-1.

    What keeps one budget and is far from the next helps nobody: shares of the budgets add up. Where
    no point of accuracy may be lost, a share is a point.
    """
    judged = verdicts(budgets, candidate, baseline)
    missed = [v for v in judged if not v.met]
    excess = sum(
        max(0.0, v.value - v.budget.limit) / (v.budget.limit or 1.0)
        for v in missed
        if v.value is not None
    )
    return bool(missed), excess, len(missed), -(candidate.top1 or 0.0)
