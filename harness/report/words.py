"""Records as phrases and rows of text, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.records import BoardFacts, Budget, BudgetVerdict, Candidate, FitResult, Interval
from harness.units import format_points, format_size, format_time

__all__ = [
    "Cell",
    "Row",
    "also",
    "and_list",
    "between",
    "budget_phrase",
    "fingerprint",
    "heading",
    "headline",
    "limit_text",
    "measured_text",
    "metric_of",
    "nearest_text",
    "percent",
    "role_name",
    "title",
    "value_text",
    "verdict_hint",
]

Source = Literal["measured", "predicted", "counted"]

NAMES = {"latency": "latency", "size": "size", "accuracy_drop": "accuracy"}
_VERDICTS = {
    "meets": "Meets",
    "does not meet": "Does not meet",
    "cannot tell yet": "Cannot tell yet whether it meets",
}
_ROLES = {
    "baseline": "baseline",
    "joint": "pruning and int8",
    "int8_only": "int8 only",
    "prune_only": "pruning only",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows in one place: the value, and what is to stand smaller beside it."""

    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: its name, where its numbers come from, a cell for every column."""

    name: str
    source: Source
    cells: tuple[Cell, ...]


def percent(share: float, digits: int = 1) -> str:
    """``share`` in per cent, with ``digits`` after the point: "21.4 %"."""
    return f"{100 * share:.{digits}f} %"


def between(interval: Interval, text: Callable[[float], str]) -> str:
    """Both ends of an interval, their common unit once: "605 to 620 µs"."""
    low, high = text(interval.low), text(interval.high)
    number, _, unit = low.rpartition(" ")
    return f"{number if number and high.endswith(' ' + unit) else low} to {high}"


def and_list(parts: Sequence[str]) -> str:
    """The parts as an English list: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def role_name(role: str) -> str:
    """The method of a candidate in words; a role that is not known stays as it is."""
    return _ROLES.get(role, role.replace("_", " "))


def interval_text(interval: Interval, text: Callable[[float], str]) -> str:
    return f"{between(interval, text)} ({percent(interval.coverage, 0)})"


# --- budgets ------------------------------------------------------------------------------------


def amount_text(budget: Budget, amount: float) -> str:
    if budget.quantity == "accuracy_drop":
        return format_points(amount)
    if budget.relative:
        return percent(amount)
    return format_time(amount) if budget.quantity == "latency" else format_size(amount)


def limit_of(budget: Budget) -> str:
    if budget.relative and budget.quantity != "accuracy_drop":
        return f"{100 * budget.limit:.4g} %"  # as it was asked for: "22 %", not "22.0 %"
    return amount_text(budget, budget.limit)


def budget_phrase(budget: Budget) -> str:
    """What a budget asks for: "22 % of the baseline's latency"."""
    amount = limit_of(budget)
    if budget.quantity == "accuracy_drop":
        return f"at most {amount} of {budget.metric} lost"
    if budget.relative:
        return f"{amount} of the baseline's {budget.quantity}"
    return f"a {budget.quantity} of {amount}"


def title(budget: Budget) -> str:
    """The quantity of a budget as a heading."""
    lost = f"{heading(budget.metric)} lost"
    return {"latency": "Latency", "size": "File size", "accuracy_drop": lost}[budget.quantity]


def metric_of(result: FitResult) -> str:
    """What accuracy means in a result: top-1, or the name of the user's metric."""
    asked = [v.budget.metric for v in result.budgets if v.budget.quantity == "accuracy_drop"]
    return asked[0] if asked else "top-1"


def heading(metric: str) -> str:
    """A metric's name at the beginning of a line."""
    return metric[:1].upper() + metric[1:]


def _absolute(budget: Budget, share: float, baseline: Candidate) -> str:
    if budget.quantity == "latency":
        return format_time(share * baseline.latency_s)
    return format_size(share * baseline.size_bytes)


def limit_text(verdict: BudgetVerdict, baseline: Candidate) -> Cell:
    """The limit of a budget, and what a relative one comes to."""
    budget = verdict.budget
    if budget.relative and budget.quantity != "accuracy_drop":
        share = limit_of(budget)
        return Cell(f"{share} of the baseline", _absolute(budget, budget.limit, baseline))
    return Cell(limit_of(budget))


def measured_text(verdict: BudgetVerdict, baseline: Candidate) -> Cell:
    """What was measured against a budget, with its interval."""
    budget = verdict.budget
    if verdict.value is None:
        return Cell("not measured")
    details = []
    if budget.relative and budget.quantity != "accuracy_drop":
        details.append(_absolute(budget, verdict.value, baseline))
    if verdict.interval is not None:
        details.append(interval_text(verdict.interval, lambda amount: amount_text(budget, amount)))
    return Cell(amount_text(budget, verdict.value), ", ".join(details))


def nearest_text(verdict: BudgetVerdict, baseline: Candidate) -> Cell | None:
    """The smallest limit that is predicted to be reachable; None where none is recorded."""
    budget = verdict.budget
    if verdict.nearest is None:
        return None
    if budget.relative and budget.quantity != "accuracy_drop":
        detail = _absolute(budget, verdict.nearest, baseline)
        return Cell(f"{amount_text(budget, verdict.nearest)} of the baseline", detail)
    return Cell(amount_text(budget, verdict.nearest))


def verdict_hint(verdict: BudgetVerdict) -> str:
    """What to do about a budget that is not met; empty for one that is."""
    if verdict.verdict == "meets":
        return ""
    if verdict.nearest is not None:
        return "The nearest limit is the smallest that is predicted to be reachable; start there."
    if verdict.value is None:
        return "Nothing was measured against it."
    if verdict.verdict == "cannot tell yet":
        return "The limit lies inside the measured interval: measure longer, or on a quieter board."
    return "Loosen this limit, or the others that bind with it."


def value_text(verdict: BudgetVerdict, result: Candidate) -> str:
    """What the result measures in a budget's quantity, for a sentence."""
    quantity = verdict.budget.quantity
    if verdict.value is None:
        lost = f"{verdict.budget.metric} lost" if quantity == "accuracy_drop" else NAMES[quantity]
        return f"{lost} not measured"
    if quantity == "accuracy_drop":
        if verdict.value < 0:
            return f"{format_points(-verdict.value)} of {verdict.budget.metric} gained"
        return f"{format_points(verdict.value)} of {verdict.budget.metric} lost"
    absolute = (
        format_time(result.latency_s) if quantity == "latency" else format_size(result.size_bytes)
    )
    return f"{absolute} ({percent(verdict.value)})" if verdict.budget.relative else absolute


def headline(result: FitResult) -> str:
    """The verdict as one sentence, with the measured number that decides it first."""
    board = result.board.board
    if result.result is None:
        asked = and_list([budget_phrase(v.budget) for v in result.budgets])
        return f"No network was built for {board} that meets {asked or 'the budgets'}"
    deciding = _deciding(result)
    if not deciding:
        return f"{_VERDICTS[result.verdict]} the budgets on {board}"
    first = deciding[0]
    start = f"{_VERDICTS[result.verdict]} {budget_phrase(first.budget)} on {board}"
    return f"{start}: {value_text(first, result.result)}"


def also(result: FitResult) -> str:
    """The other budgets of the headline's verdict, and what was measured; empty if none."""
    if result.result is None:
        return ""
    parts = [
        f"{budget_phrase(v.budget)}: {value_text(v, result.result)}" for v in _deciding(result)[1:]
    ]
    start = {
        "meets": "Also meets ",
        "does not meet": "Nor does it meet ",
        "cannot tell yet": "The same holds for ",
    }[result.verdict]
    return start + "; ".join(parts) + "." if parts else ""


def _deciding(result: FitResult) -> list[BudgetVerdict]:
    return [v for v in result.budgets if v.verdict == result.verdict]


# --- boards -------------------------------------------------------------------------------------


def fingerprint(facts: BoardFacts) -> tuple[tuple[str, str], ...]:
    """The facts that tell whether two results may be compared, each under its name."""
    int8 = {
        "vnni": "fast and exact (VNNI)",
        "dotprod": "fast and exact (Arm dot product)",
        "avx2": "fast; saturates above seven bits (AVX2)",
        "slow": "not worth using",
    }
    return (
        ("Board", facts.board),
        ("Host name", facts.hostname),
        ("Processor", f"{facts.cpu_model} ({facts.machine})"),
        ("Cores", str(facts.cores)),
        ("Memory", format_size(facts.memory_bytes)),
        ("Integer kernels", int8[facts.int8]),
        ("Power mode", facts.power_mode or "not known"),
        ("System", facts.os),
        ("Python", facts.python),
        ("Runtime", f"{facts.runtime} {facts.runtime_version}"),
        ("Providers", ", ".join(facts.providers) or "none"),
        ("Agent", facts.agent_hash[:12]),
    )
