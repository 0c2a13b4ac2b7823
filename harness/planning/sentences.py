"""Two sentences on a strategy: what it does, and why it meets what is asked or does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from harness.records import Estimate, Group, Met, Option, Predicted, Requirement
from harness.units import (
    format_amount,
    format_count,
    format_points,
    format_size,
    format_time,
)

__all__ = ["WORDS", "amount", "does", "explained", "listed"]

# What a requirement's quantity is called.
WORDS = {
    "latency": "latency",
    "size": "file size",
    "engine_size": "engine size",
    "peak_memory": "peak memory",
    "parameters": "number of parameters",
    "macs": "number of MACs",
    "energy": "energy",
    "accuracy_floor": "accuracy",
    "accuracy_drop": "accuracy lost",
}


def amount(requirement: Requirement, value: float) -> str:
    """A value in the unit of a requirement's limit, as text that stands alone."""
    text = format_amount(requirement, value)
    return f"{text} of the original's" if requirement.relative else text


def listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def does(
    groups: Sequence[Group],
    choice: Mapping[str, Option],
    predicted: Predicted,
    baseline: Predicted,
    *,
    student: str,
    width: float | None,
    epochs: int,
) -> str:
    """What a strategy does to a network, and what is left of it.

    ``student`` takes the original's place, ``width`` is that of one sliced from it.
    """
    parts = []
    if student:
        parts.append(f"puts the student {student} in the original's place")
    if width is not None:
        parts.append(f"starts a student from {width:.0%} of the original's channels")
    cut = [group for group in groups if choice[group.name].channels < group.channels]
    if cut:
        whole = sum(group.channels for group in cut)
        kept = sum(choice[group.name].channels for group in cut)
        parts.append(f"prunes {len(cut)} of {len(groups)} groups to {kept} of {whole} channels")
    counts = Counter(choice[group.name].precision for group in groups)
    for precision in sorted(set(counts) - {"fp32"}):
        some = "all" if counts[precision] == len(groups) else f"{counts[precision]} of"
        parts.append(f"runs {some} {len(groups)} groups in {precision}")
    if epochs:
        parts.append(f"distils it from the original for {epochs} epochs")
    left = (
        f"{format_count(predicted.parameters)} parameters, {format_count(predicted.macs)} MACs and "
        f"{format_size(predicted.size_bytes.value)} are left of "
        f"{format_count(baseline.parameters)}, {format_count(baseline.macs)} and "
        f"{format_size(baseline.size_bytes.value)}"
    )
    what = listed(parts) if parts else "leaves the original as it is"
    return f"It {what}: {left}."


def explained(verdicts: Sequence[Met], predicted: Predicted) -> str:
    """Why a strategy meets the requirements, or does not, and what is uncertain, with numbers."""
    missed = [v for v in verdicts if v.verdict == "does not meet"]
    unsure = [v for v in verdicts if v.verdict == "cannot tell"]
    if missed:
        text = f"It does not meet {listed([_against(v) for v in missed])}"
    elif unsure:
        text = f"It may meet {listed([_against(v) for v in unsure])}"
    elif verdicts:
        tight = max(verdicts, key=_tightness)
        text = f"It meets what is asked, of which {_against(tight)} binds"
    else:
        text = "Nothing was asked that it could miss"
    return f"{text}; {_uncertain(predicted)}."


def _against(verdict: Met) -> str:
    """A requirement, with what is predicted in the place of its limit."""
    asked = verdict.requirement
    floor = asked.quantity == "accuracy_floor"
    name = WORDS[asked.quantity]
    if asked.quantity == "latency" and asked.percentile != 50:
        name = f"p{asked.percentile:g} latency"
    text = f"{name} {'at least' if floor else 'at most'} {amount(asked, asked.limit)}"
    if verdict.value is None or verdict.low is None:
        return f"{text} (nothing is predicted of it)"
    value, low = amount(asked, verdict.value), amount(asked, verdict.low)
    if verdict.low == verdict.high:
        return f"{text} ({value})"
    high = "no known bound" if verdict.high is None else amount(asked, verdict.high)
    return f"{text} ({value}, from {low} to {high})"


def _tightness(verdict: Met) -> float:
    """How much of a limit the worst that is likely takes."""
    limit = verdict.requirement.limit
    if verdict.requirement.quantity == "accuracy_floor":
        return limit / verdict.low if verdict.low else 0.0
    worst = verdict.value if verdict.high is None else verdict.high
    return (worst or 0.0) / limit if limit else 1.0


def _uncertain(predicted: Predicted) -> str:
    drop, latency = predicted.accuracy_drop, predicted.latency_s
    parts = []
    if latency is None:
        parts.append("its latency is not predicted")
    elif predicted.latency_source == "prior":
        parts.append(f"its latency rests on a datasheet alone, {_interval(latency, format_time)}")
    else:
        parts.append(f"its latency is predicted as {_interval(latency, format_time)}")
    if drop is None:
        parts.append("what it loses in accuracy is not predicted")
    else:
        text = f"it is predicted to lose {_interval(drop, format_points)}"
        parts.append(f"{text} ({drop.note})" if drop.note else text)
    return listed(parts)


def _interval(found: Estimate, text: Callable[[float], str]) -> str:
    if found.exact:
        return text(found.value)
    return f"{text(found.value)}, from {text(found.low)} to {text(found.high)}"
