"""Budgets made concrete against a baseline, and judged by what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.records import Budget, BudgetVerdict, Candidate, Interval, Verdict

__all__ = ["Limits", "judge", "limits", "overall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the allocator may spend, in SI units; None where there is no such budget."""

    latency_s: float | None
    size_bytes: float | None


def limits(budgets: Sequence[Budget], *, latency_s: float, size_bytes: float) -> Limits:
    """The absolute limits that ``budgets`` mean for a baseline of this latency and size."""
    baseline = {"latency": latency_s, "size": size_bytes}
    absolute = {
        budget.quantity: budget.limit * (baseline[budget.quantity] if budget.relative else 1.0)
        for budget in budgets
        if budget.quantity in baseline
    }
    return Limits(latency_s=absolute.get("latency"), size_bytes=absolute.get("size"))


def judge(
    budget: Budget, *, candidate: Candidate, baseline: Candidate, nearest: float | None = None
) -> BudgetVerdict:
    """Whether the measured ``candidate`` meets ``budget``; never a guess.

    A relative latency is judged by the ratio to the baseline of the same interleaved rounds. Where
    the interval of the measurement holds the limit, the verdict is "cannot tell yet".
    """
    value, interval = _measured(budget, candidate, baseline)
    verdict = _verdict(value, interval, budget.limit)
    return BudgetVerdict(
        budget=budget,
        value=value,
        interval=interval,
        met=verdict == "meets",
        verdict=verdict,
        nearest=None if verdict == "meets" else nearest,
    )


def _measured(
    budget: Budget, candidate: Candidate, baseline: Candidate
) -> tuple[float | None, Interval | None]:
    if budget.quantity == "latency":
        if budget.relative:
            return candidate.ratio, candidate.ratio_interval
        return candidate.latency_s, candidate.latency_interval_s
    if budget.quantity == "size":
        size = float(candidate.size_bytes)
        return (size / baseline.size_bytes if budget.relative else size), None
    if candidate.top1 is None or baseline.top1 is None:
        return None, None
    # Shares of whole images: what lies beyond nine digits is float64's, and 1 point is 1 point.
    return round(100 * (baseline.top1 - candidate.top1), 9), None


def _verdict(value: float | None, interval: Interval | None, limit: float) -> Verdict:
    if value is None:
        return "cannot tell yet"
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    if high <= limit:
        return "meets"
    return "does not meet" if low > limit else "cannot tell yet"


def overall(verdicts: Sequence[BudgetVerdict]) -> Verdict:
    """The worst of several verdicts."""
    for worst in ("does not meet", "cannot tell yet"):
        if any(verdict.verdict == worst for verdict in verdicts):
            return worst
    return "meets"
