"""Two runs held against each other: how much slower or faster, kernel by kernel, and what changed.

Runs that were interleaved are compared round by round, so that drift cancels. Others are compared
by their own intervals; what drifted between the two runs is in neither interval.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from harness import stats
from harness.comparison.differences import COVERAGE, Difference, by_ratios, difference_of
from harness.comparison.kernel_changes import KernelChange, kernel_change, matched, shared_rounds
from harness.errors import ConfigError
from harness.records import (
    BoardSettings,
    ImportedSummary,
    Interval,
    KernelTime,
    Measurement,
    Profile,
)
from harness.store import MUST_MATCH

__all__ = [
    "Change",
    "Comparison",
    "Run",
    "Side",
    "compare",
]

# Engines of one campaign were interleaved in order to be compared: they are meant to differ.
CAMPAIGN_MAY_DIFFER = ("network_sha256", "precision")
# Differences of conditions that are worth a word: shares of a clock, degrees, load.
CLOCK_SHARE, TEMP_C, LOAD = 0.01, 5.0, 0.5
Value = str | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run to compare: where it was found, what was measured, and its kernels if profiled."""

    source: str
    record: Measurement | ImportedSummary
    profile: Profile | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What a comparison says of one of its runs; ``calls`` were timed."""

    source: str
    label: str
    taken_at: str
    median_s: float
    interval_s: Interval | None
    calls: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A version or condition of both runs; ``must_match`` if unlike runs are refused for it."""

    name: str
    a: Value
    b: Value
    changed: bool
    must_match: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that ``boardfit compare`` shows. ``unlike`` names what was allowed to differ.

    ``sum_of_kernels`` has no interval: the kernels of one run are not independent of each other.
    ``usual_ratio`` is the median over kernels of B over A: what all kernels share is rather the
    board's doing than theirs.
    """

    a: Side
    b: Side
    total: Difference
    sum_of_kernels: Difference | None
    usual_ratio: float | None
    kernels: tuple[KernelChange, ...]
    only_a: tuple[KernelTime, ...]
    only_b: tuple[KernelTime, ...]
    conditions: tuple[Change, ...]
    unlike: tuple[str, ...]
    notes: tuple[str, ...]


def compare(
    a: Run, b: Run, *, may_differ: Collection[str] = (), allow_unlike: bool = False
) -> Comparison:
    """B held against A. ConfigError naming the fields if they are unlike and that is not allowed.

    ``may_differ`` names fields that need not match, ``allow_unlike`` allows all.
    """
    if a.record == b.record:
        raise ConfigError(
            f"{a.source} and {b.source} are the same run of {a.record.label}; name two, such as "
            "boardfit.db~1 (the last but one) and boardfit.db"
        )
    unknown = set(may_differ) - {*MUST_MATCH, "machine"}
    if unknown:
        raise ConfigError(
            f"--may-differ {', '.join(sorted(unknown))}: no such field; it is one of "
            f"{', '.join((*MUST_MATCH, 'machine'))}"
        )
    together = _interleaved(a.record, b.record)
    excused = {*may_differ, *(CAMPAIGN_MAY_DIFFER if together else ())}
    versions = _versions(a.record, b.record)
    unlike = tuple(change for change in versions if change.must_match and change.changed)
    refused = [change for change in unlike if change.name not in excused]
    if refused and not allow_unlike:
        raise ConfigError(_refusal(a, b, refused))
    both, only_a, only_b = matched(a.profile, b.profile)
    rounds = shared_rounds(a.profile, b.profile)
    kernels = tuple(kernel_change(key, one, other, rounds) for key, one, other in both)
    ratios = [one.difference.ratio for one in kernels if one.difference.ratio is not None]
    return Comparison(
        a=_side(a),
        b=_side(b),
        total=_by_rounds(a.record, b.record) if together else _by_intervals(a.record, b.record),
        sum_of_kernels=_sums(a.profile, b.profile),
        usual_ratio=stats.median(ratios) if ratios else None,
        kernels=kernels,
        only_a=only_a,
        only_b=only_b,
        conditions=(*versions, *_conditions(a.record, b.record)),
        unlike=tuple(change.name for change in unlike),
        notes=tuple(_notes(a, b, together=together)),
    )


# --- may they be compared? ------------------------------------------------------------------------


def _interleaved(a: Measurement | ImportedSummary, b: Measurement | ImportedSummary) -> bool:
    """Whether both were measured in the same rounds; the campaign's name alone does not tell.

    Everything that a campaign's engines share must be equal: repeated runs of one command carry
    the same name.
    """
    if not (isinstance(a, Measurement) and isinstance(b, Measurement)):
        return False
    shared = ("campaign", "taken_at", "before", "after", "busy_s", "board", "runtime_version")
    same = all(getattr(a, name) == getattr(b, name) for name in shared)
    return same and set(a.rounds) == set(b.rounds) and len(set(a.rounds)) > 1


def _versions(
    a: Measurement | ImportedSummary, b: Measurement | ImportedSummary
) -> tuple[Change, ...]:
    found = []
    for name in MUST_MATCH:
        ours, theirs = getattr(a, name), getattr(b, name)
        changed = ours != theirs
        if name == "network_sha256" and not (ours or theirs):
            # Neither log's network is at hand: the files' names are all there is.
            ours, theirs = f"file {a.label}", f"file {b.label}"
            changed = ours != theirs
        found.append(Change(name=name, a=ours, b=theirs, changed=changed, must_match=True))
    for name, required in (("machine", True), ("agent_hash", False)):
        ours, theirs = getattr(a, name, None), getattr(b, name, None)
        if ours is not None or theirs is not None:
            # A run of an older boardfit does not know: that is shown, and refuses nothing.
            changed = ours != theirs and None not in (ours, theirs)
            found.append(Change(name=name, a=ours, b=theirs, changed=changed, must_match=required))
    return tuple(found)


def _refusal(a: Run, b: Run, refused: Sequence[Change]) -> str:
    fields = "; ".join(
        f"{change.name} is {_short(change.a)} in A and {_short(change.b)} in B"
        for change in refused
    )
    options = " ".join(f"--may-differ {change.name}" for change in refused)
    return (
        f"{a.source} and {b.source} are unlike: {fields}. Measure both alike, or allow it with "
        f"{options} (--allow-unlike allows everything)"
    )


def _short(value: Value) -> str:
    if value is None or value == "":
        return "unknown"
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text


def _conditions(
    a: Measurement | ImportedSummary, b: Measurement | ImportedSummary
) -> tuple[Change, ...]:
    if not (isinstance(a, Measurement) and isinstance(b, Measurement)):
        return ()
    found = []
    for when, ours, theirs in (("before", a.before, b.before), ("after", a.after, b.after)):
        for name, x, y in (
            ("cpu_clock_hz", _mean(ours.cpu_clock_hz), _mean(theirs.cpu_clock_hz)),
            ("gpu_clock_hz", ours.gpu_clock_hz, theirs.gpu_clock_hz),
            ("temp_c", ours.temp_c, theirs.temp_c),
            ("load_1min", ours.load_1min, theirs.load_1min),
        ):
            if x is None and y is None:
                continue
            limit = {"temp_c": TEMP_C, "load_1min": LOAD}.get(name, CLOCK_SHARE * (x or 0.0))
            changed = x is not None and y is not None and abs(x - y) > limit
            found.append(Change(name=f"{name} {when}", a=x, b=y, changed=changed))
    found += _during(a, b)
    throttled = a.after.throttled, b.after.throttled
    if throttled != (None, None):
        changed = None not in throttled and throttled[0] != throttled[1]
        found.append(Change(name="throttled", a=throttled[0], b=throttled[1], changed=changed))
    return tuple(found)


def _during(a: Measurement, b: Measurement) -> list[Change]:
    """Settings of both campaigns, and what telemetry saw: mean clocks, and the hottest moment."""
    found = []
    for name in (field.name for field in fields(BoardSettings) if field.name != "power_mode"):
        ours, theirs = (getattr(run.settings, name, None) for run in (a, b))
        if ours is not None or theirs is not None:
            changed = ours != theirs and None not in (ours, theirs)
            found.append(Change(name=name, a=ours, b=theirs, changed=changed))
    looks = [() if run.telemetry is None else run.telemetry.samples for run in (a, b)]
    for name in ("cpu_clock_hz", "gpu_clock_hz", "temp_c"):
        known = [[x for s in samples if (x := getattr(s, name)) is not None] for samples in looks]
        ours, theirs = (
            None if not values else max(values) if name == "temp_c" else _mean(values)
            for values in known
        )
        if ours is None or theirs is None:
            continue
        limit = TEMP_C if name == "temp_c" else CLOCK_SHARE * ours
        changed = abs(ours - theirs) > limit
        found.append(Change(name=f"{name} during", a=ours, b=theirs, changed=changed))
    return found


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


# --- in total -------------------------------------------------------------------------------------


def _median(record: Measurement | ImportedSummary) -> float:
    if isinstance(record, Measurement):
        return stats.median(record.samples_s)
    return record.times["Latency"].median_s


def _interval(record: Measurement | ImportedSummary) -> Interval | None:
    """The interval of a run's median; of a log, from the spread of its windows' means.

    The median of ``k`` windows lies between the smallest and the largest with probability
    ``1 - 2 ** (1 - k)``: six are needed for 95 %, and with fewer there is no interval.
    """
    if isinstance(record, Measurement):
        if len(set(record.rounds)) < 2:
            return None
        # The runs were taken at different times: the board's changing pace is between them too.
        return stats.interval_over_time(record, coverage=COVERAGE)
    means = sorted(window.latency_s for window in record.windows)
    rank = _rank(len(means))
    if rank is None:
        return None
    centre, median_s = stats.median(means), _median(record)
    low, high = means[rank] / centre * median_s, means[-1 - rank] / centre * median_s
    return Interval(min(low, median_s), max(high, median_s), COVERAGE)


def _rank(count: int) -> int | None:
    """How many of ``count`` values may be left out at each end of an interval of their median."""
    outside, found = 0.0, None
    for left_out in range(count // 2):
        outside += 2 * math.comb(count, left_out) / 2.0**count
        if 1 - outside < COVERAGE:
            break
        found = left_out
    return found


def _by_rounds(a: Measurement | ImportedSummary, b: Measurement | ImportedSummary) -> Difference:
    assert isinstance(a, Measurement) and isinstance(b, Measurement)
    return by_ratios(_median(a), _median(b), stats.ratio_by_round(b, a))


def _by_intervals(a: Measurement | ImportedSummary, b: Measurement | ImportedSummary) -> Difference:
    return difference_of(_median(a), _interval(a), _median(b), _interval(b))


def _sums(a: Profile | None, b: Profile | None) -> Difference | None:
    if a is None or b is None:
        return None
    a_s, b_s = (sum(kernel.latency_s for kernel in profile.kernels) for profile in (a, b))
    return difference_of(a_s, None, b_s, None)


# --- what is said about it ------------------------------------------------------------------------


def _side(run: Run) -> Side:
    record = run.record
    calls = len(record.samples_s) if isinstance(record, Measurement) else record.calls
    return Side(
        source=run.source,
        label=record.label,
        taken_at=record.taken_at,
        median_s=_median(record),
        interval_s=_interval(record),
        calls=calls,
        note=run.note,
    )


def _notes(a: Run, b: Run, *, together: bool) -> list[str]:
    notes = []
    if together:
        rounds = len(set(getattr(a.record, "rounds", ())))
        notes.append(
            f"interleaved in {rounds} rounds of one campaign: compared round by round, so that "
            "drift cancels"
        )
    else:
        notes.append(
            "measured one after the other: compared by each run's own interval; drift between the "
            "two runs is in neither"
        )
    for name, run in (("A", a), ("B", b)):
        if isinstance(run.record, ImportedSummary):
            windows = len(run.record.windows)
            notes.append(
                f"{name} is a log without single calls: its interval is from the averages of "
                f"{windows} windows"
                if _interval(run.record) is not None
                else f"{name} is a log of {windows} windows, too few for an interval (6 are "
                "needed); import it with --times, or measure for longer"
            )
        if run.profile is None and (a.profile is not None or b.profile is not None):
            notes.append(f"{name} was not profiled: there is nothing to compare kernel by kernel")
        if isinstance(run.record, Measurement) and run.record.runtime == "fake":
            notes.append(f"{name} was measured with the fake engine: its numbers say nothing")
    return notes
