"""The networks of a fit side by side: rows of text, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable

from harness.records import Candidate, FitResult
from harness.report.words import (
    NAMES,
    Cell,
    Row,
    Source,
    amount_text,
    and_list,
    heading,
    interval_text,
    limit_of,
    metric_of,
    percent,
    role_name,
)
from harness.units import format_count, format_points, format_size, format_time

__all__ = [
    "all_candidates",
    "alternative_sentences",
    "candidate_rows",
    "columns",
    "comparison",
]


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
        format_time(candidate.latency_s), interval_text(candidate.latency_interval_s, format_time)
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
    return Cell(percent(candidate.ratio), interval_text(candidate.ratio_interval, percent))


def _predicted(candidate: Candidate) -> Cell:
    if candidate.predicted_latency_s is None:
        return Cell("not predicted")
    interval = candidate.predicted_interval_s
    detail = "" if interval is None else interval_text(interval, format_time)
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
        (heading(metric_of(result)), "measured", lambda c: _top1(c, base)),
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
            f"the {NAMES[v.budget.quantity]} budget with {amount_text(v.budget, v.value)} "
            f"against {limit_of(v.budget)}"
            for v in judged
            if v.verdict == "does not meet" and v.value is not None
        ]
        open_ = [NAMES[v.budget.quantity] for v in judged if v.verdict == "cannot tell yet"]
        parts = []
        if missed:
            parts.append(f"misses {and_list(missed)}")
        if open_:
            parts.append(f"whether it meets the {and_list(open_)} budget cannot be told yet")
        if judged and not parts:
            parts.append("meets every budget")
        parts += _against(result.result, other, metric_of(result))
        sentence = ("; ".join(parts) or "no result to compare it with") + "."
        sentences.append((role_name(role), sentence[0].upper() + sentence[1:]))
    return tuple(sentences)


def _against(result: Candidate | None, other: Candidate, metric: str) -> list[str]:
    if result is None:
        return []
    differences = [
        _compared(result.latency_s, other.latency_s, "slower", "faster"),
        _compared(result.size_bytes, other.size_bytes, "larger", "smaller"),
    ]
    if result.top1 is not None and other.top1 is not None:
        points = round(100 * (other.top1 - result.top1), 2)
        word = "higher" if points > 0 else "lower"
        differences.append(f"{metric} {format_points(abs(points))} {word}" if points else "")
    told = [difference for difference in differences if difference]
    return [f"{and_list(told)} than the result"] if told else ["like the result in every respect"]
