"""Records as phrases and rows of text, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.records import BoardFacts, Budget, BudgetVerdict, Candidate, FitResult, Interval
from harness.units import format_count, format_size, format_time

__all__ = [
    "Cell",
    "Row",
    "all_candidates",
    "also",
    "alternative_sentences",
    "and_list",
    "between",
    "budget_phrase",
    "candidate_rows",
    "columns",
    "comparison",
    "fingerprint",
    "headline",
    "limit_text",
    "measured_text",
    "nearest_text",
    "percent",
    "role_name",
    "title",
    "value_text",
    "verdict_hint",
]

Source = Literal["measured", "predicted", "counted"]

_NAMES = {"latency": "latency", "size": "size", "accuracy_drop": "accuracy"}
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


def _points(points: float) -> str:
    return f"{points:.2f}".rstrip("0").rstrip(".") + (" point" if points == 1 else " points")


def _interval(interval: Interval, text: Callable[[float], str]) -> str:
    return f"{between(interval, text)} ({percent(interval.coverage, 0)})"


# --- budgets ------------------------------------------------------------------------------------


def _amount(budget: Budget, amount: float) -> str:
    if budget.quantity == "accuracy_drop":
        return _points(amount)
    if budget.relative:
        return percent(amount)
    return format_time(amount) if budget.quantity == "latency" else format_size(amount)


def _limit(budget: Budget) -> str:
    if budget.relative and budget.quantity != "accuracy_drop":
        return f"{100 * budget.limit:.4g} %"  # as it was asked for: "22 %", not "22.0 %"
    return _amount(budget, budget.limit)


def budget_phrase(budget: Budget) -> str:
    """What a budget asks for: "22 % of the baseline's latency"."""
    amount = _limit(budget)
    if budget.quantity == "accuracy_drop":
        return f"at most {amount} of top-1 lost"
    if budget.relative:
        return f"{amount} of the baseline's {budget.quantity}"
    return f"a {budget.quantity} of {amount}"


def title(budget: Budget) -> str:
    """The quantity of a budget as a heading."""
    return {"latency": "Latency", "size": "File size", "accuracy_drop": "Top-1 lost"}[
        budget.quantity
    ]


def _absolute(budget: Budget, share: float, baseline: Candidate) -> str:
    if budget.quantity == "latency":
        return format_time(share * baseline.latency_s)
    return format_size(share * baseline.size_bytes)


def limit_text(verdict: BudgetVerdict, baseline: Candidate) -> Cell:
    """The limit of a budget, and what a relative one comes to."""
    budget = verdict.budget
    if budget.relative and budget.quantity != "accuracy_drop":
        share = _limit(budget)
        return Cell(f"{share} of the baseline", _absolute(budget, budget.limit, baseline))
    return Cell(_limit(budget))


def measured_text(verdict: BudgetVerdict, baseline: Candidate) -> Cell:
    """What was measured against a budget, with its interval."""
    budget = verdict.budget
    if verdict.value is None:
        return Cell("not measured")
    details = []
    if budget.relative and budget.quantity != "accuracy_drop":
        details.append(_absolute(budget, verdict.value, baseline))
    if verdict.interval is not None:
        details.append(_interval(verdict.interval, lambda amount: _amount(budget, amount)))
    return Cell(_amount(budget, verdict.value), ", ".join(details))


def nearest_text(verdict: BudgetVerdict, baseline: Candidate) -> Cell | None:
    """The smallest limit that is predicted to be reachable; None where none is recorded."""
    budget = verdict.budget
    if verdict.nearest is None:
        return None
    if budget.relative and budget.quantity != "accuracy_drop":
        detail = _absolute(budget, verdict.nearest, baseline)
        return Cell(f"{_amount(budget, verdict.nearest)} of the baseline", detail)
    return Cell(_amount(budget, verdict.nearest))


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
        return f"{title(verdict.budget).lower()} not measured"
    if quantity == "accuracy_drop":
        if verdict.value < 0:
            return f"{_points(-verdict.value)} of top-1 gained"
        return f"{_points(verdict.value)} of top-1 lost"
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


# --- candidates ---------------------------------------------------------------------------------


def columns(result: FitResult) -> tuple[tuple[str, Candidate], ...]:
    """The networks that are compared side by side, each under its heading."""
    found = [("baseline", result.baseline)]
    if result.result is not None:
        found.append(("result", result.result))
    found += [(role_name(role), other) for role, other in result.alternatives.items()]
    return tuple(found)


def all_candidates(result: FitResult) -> tuple[Candidate, ...]:
    """Every network that was measured, each once, the baseline first.

    The result and the alternatives stand for earlier records of the same label: theirs are the
    final measurements.
    """
    found = {c.label: c for c in (result.baseline, *result.candidates)}
    found |= {c.label: c for c in result.alternatives.values()}
    if result.result is not None:
        found[result.result.label] = result.result
    return tuple(found.values())


def _latency(candidate: Candidate) -> Cell:
    return Cell(
        format_time(candidate.latency_s), _interval(candidate.latency_interval_s, format_time)
    )


def _spread(candidate: Candidate) -> Cell:
    return Cell(percent(candidate.latency_cv), f"{candidate.n_samples} samples")


def _verdict(candidate: Candidate) -> Cell:
    found = candidate.verdict
    if found is None:
        return Cell("not judged")
    return Cell(found.status, and_list([c.name for c in found.violated]))


def _soak(candidate: Candidate) -> Cell:
    found = candidate.soak
    if found is None:
        return Cell("not sustained")
    warm = "" if found.soaked.temp_c is None else f", {found.soaked.temp_c:.0f} °C"
    settled = "" if found.settled else ", still changing"
    detail = f"after {found.duration_s:.0f} s{warm}{settled}"
    return Cell(f"{100 * found.change:+.1f} %", detail)


def _ratio(candidate: Candidate) -> Cell:
    if candidate.role == "baseline":
        return Cell("100 %")
    return Cell(percent(candidate.ratio), _interval(candidate.ratio_interval, percent))


def _predicted(candidate: Candidate) -> Cell:
    if candidate.predicted_latency_s is None:
        return Cell("not predicted")
    interval = candidate.predicted_interval_s
    detail = "" if interval is None else _interval(interval, format_time)
    return Cell(format_time(candidate.predicted_latency_s), detail)


def _size(candidate: Candidate, baseline: Candidate) -> Cell:
    share = percent(candidate.size_bytes / baseline.size_bytes)
    return Cell(
        format_size(candidate.size_bytes), "" if candidate.role == "baseline" else f"{share}"
    )


def _predicted_size(candidate: Candidate) -> Cell:
    size = candidate.predicted_size_bytes
    return Cell("not predicted" if size is None else format_size(size))


def _top1(candidate: Candidate, baseline: Candidate) -> Cell:
    if candidate.top1 is None:
        return Cell("not measured")
    if candidate.role == "baseline" or baseline.top1 is None:
        return Cell(percent(candidate.top1, 2))
    points = 100 * (candidate.top1 - baseline.top1)
    return Cell(percent(candidate.top1, 2), f"{points:+.2f} points")


def _agreement(share: float | None, candidate: Candidate) -> Cell:
    if share is None:
        return Cell("not measured")
    return Cell(percent(share), f"{candidate.n_board_images} images")


def _integer(candidate: Candidate) -> Cell:
    if candidate.int8_layers == 0:
        return Cell("none")
    return Cell(f"{candidate.int8_layers_real} of {candidate.int8_layers}")


def comparison(result: FitResult) -> tuple[Row, ...]:
    """The rows of the table of ``columns(result)``."""
    base = result.baseline
    named: tuple[tuple[str, Source, Callable[[Candidate], Cell]], ...] = (
        ("Latency", "measured", _latency),
        ("Latency", "predicted", _predicted),
        ("Against the baseline", "measured", _ratio),
        ("Spread of latency", "measured", _spread),
        ("From cold to soaked", "measured", _soak),
        ("The measurement is", "measured", _verdict),
        ("File size", "measured", lambda c: _size(c, base)),
        ("File size", "predicted", _predicted_size),
        ("Parameters", "counted", lambda c: Cell(format_count(c.parameters))),
        ("MACs", "counted", lambda c: Cell(format_count(c.macs))),
        ("Top-1", "measured", lambda c: _top1(c, base)),
        (
            "On the board, class as the original's",
            "measured",
            lambda c: _agreement(c.board_agreement, c),
        ),
        (
            "On the board, class as on the host",
            "measured",
            lambda c: _agreement(c.host_agreement, c),
        ),
        ("int8 layers run as integers", "measured", _integer),
    )
    compared = [candidate for _, candidate in columns(result)]
    return tuple(
        Row(name, source, tuple(cell(candidate) for candidate in compared))
        for name, source, cell in named
    )


def candidate_rows(result: FitResult) -> tuple[tuple[Candidate, tuple[Cell, ...]], ...]:
    """For every candidate: predicted, measured, verdict, predicted over measured, size, top-1."""
    rows = []
    for candidate in all_candidates(result):
        predicted = candidate.predicted_latency_s
        error = "" if predicted is None else f"{100 * (predicted / candidate.latency_s - 1):+.1f} %"
        cells = (
            _predicted(candidate),
            _latency(candidate),
            _verdict(candidate),
            Cell(error),
            _size(candidate, result.baseline),
            _top1(candidate, result.baseline),
        )
        rows.append((candidate, cells))
    return tuple(rows)


def _compared(value: float, other: float, more: str, less: str) -> str:
    change = other / value - 1
    if abs(change) < 0.005:
        return ""
    return f"{percent(abs(change), 0)} {more if change > 0 else less}"


def alternative_sentences(result: FitResult) -> tuple[tuple[str, str], ...]:
    """For every alternative: its name, the budgets it misses, and how the result compares."""
    sentences = []
    for role, other in result.alternatives.items():
        judged = result.alternative_budgets.get(role, ())
        missed = [
            f"the {_NAMES[v.budget.quantity]} budget with {_amount(v.budget, v.value)} "
            f"against {_limit(v.budget)}"
            for v in judged
            if v.verdict == "does not meet" and v.value is not None
        ]
        open_ = [_NAMES[v.budget.quantity] for v in judged if v.verdict == "cannot tell yet"]
        parts = []
        if missed:
            parts.append(f"misses {and_list(missed)}")
        if open_:
            parts.append(f"whether it meets the {and_list(open_)} budget cannot be told yet")
        if judged and not parts:
            parts.append("meets every budget")
        parts += _against(result.result, other)
        sentence = ("; ".join(parts) or "no result to compare it with") + "."
        sentences.append((role_name(role), sentence[0].upper() + sentence[1:]))
    return tuple(sentences)


def _against(result: Candidate | None, other: Candidate) -> list[str]:
    if result is None:
        return []
    differences = [
        _compared(result.latency_s, other.latency_s, "slower", "faster"),
        _compared(result.size_bytes, other.size_bytes, "larger", "smaller"),
    ]
    if result.top1 is not None and other.top1 is not None:
        points = round(100 * (other.top1 - result.top1), 2)
        word = "higher" if points > 0 else "lower"
        differences.append(f"top-1 {_points(abs(points))} {word}" if points else "")
    told = [difference for difference in differences if difference]
    return [f"{and_list(told)} than the result"] if told else ["like the result in every respect"]


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
