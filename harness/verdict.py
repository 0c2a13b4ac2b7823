"""Whether a measurement can be trusted: the one place that knows the criteria.

Every criterion says what was found, in which figure, against which limit, and what to do. What the
board could not tell is unknown, and neither speaks for a measurement nor against it.

How often ``judge`` is right was counted on synthetic streams (``tests/test_verdict.py`` repeats it
with fewer), 1,000 of each, with 3 % of noise a call and 0.5 % a round:

    ==========================================  ==============  ==============
    UNSTABLE, of                                20 rounds of 20 10 rounds of 8
    ==========================================  ==============  ==============
    steady noise: the false alarms                       0.0 %           0.1 %
    a twentieth of the calls 3 times slower              0.0 %           3.1 %
    a drift of 5 % over the run                           38 %            50 %
    a drift of 10 %                                      100 %          99.4 %
    a step of 5 % at half time                           100 %          98.8 %
    a step of 10 % or of 20 % after 70 %                 100 %           100 %
    half of the calls, at random, 30 % slower           99.8 %          98.8 %
    a fifth of the calls 30 % slower                     100 %          96.3 %
    two rounds of five 30 % slower                      98.0 %          94.6 %
    ==========================================  ==============  ==============

A drift of 5 % is half as much from half to half, which is below the limit; it is found where the
pace of the board makes the median too uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness import stats
from harness.records import (
    Conditions,
    Criterion,
    Measurement,
    MeasurementVerdict,
    PercentileFigure,
)
from harness.units import format_time

__all__ = ["judge", "percentile_figure"]

# Robust spread of single calls; pyperf calls a standard deviation of a tenth unstable too.
MAX_SPREAD = 0.10
# Calls far from the median are a second speed of the board if they are more than a few.
MAX_APART = 0.10
FAR = 0.05
# How much a half may differ from the other; less is of no consequence for a budget.
MAX_HALVES = 0.03
# Half the interval of the median over a longer time, as a share of the median.
MAX_PACE = 0.05
CONFIDENCE = 0.99
# Clocks of a board with a fixed governor repeat to a part in a thousand; boost steps are larger.
MAX_CLOCK_CHANGE = 0.03
MAX_RISE_C = 10.0
# Between the last two quarters of what telemetry saw; sensors have steps of half a degree.
MAX_LATE_RISE_C = 1.5
MIN_LATE_READINGS = 8
MIN_FREE_BYTES = 200 << 20
# The measurement's own threads may be running already; anything much above is someone else's.
MAX_LOAD_PER_CORE = 0.25


def judge(
    measurement: Measurement,
    *,
    baseline: Measurement | None = None,
    percentiles: Sequence[float] = (50, 90, 99),
    shown: Sequence[float] = (),
    cores: int | None = None,
) -> MeasurementVerdict:
    """VALID, or UNSTABLE where a criterion is violated, with every criterion and its answer.

    ``percentiles`` are those that are claimed of the measurement: too few calls for one of them
    violate a criterion. ``shown`` are reported only if there are enough calls. ``baseline`` was
    measured in the same rounds. ``cores`` are the board's, for its load; else as many as have a
    clock.
    """
    figures = [percentile_figure(measurement, p) for p in dict.fromkeys((*percentiles, *shown))]
    claimed = [figure for figure in figures if figure.percent in percentiles]
    criteria = (
        *map(_enough_samples, claimed),
        _spread(measurement),
        _one_speed(measurement),
        _halves("first half against second half", measurement),
        _pace(measurement),
        _baseline_drift(baseline),
        _clock("CPU", _cpu_clocks(measurement)),
        _clock("GPU", _gpu_clocks(measurement)),
        _throttling(measurement),
        _temperature(measurement),
        _memory(measurement),
        _load(measurement, cores),
        _settings(measurement),
    )
    unstable = any(c.outcome == "violated" for c in criteria)
    return MeasurementVerdict(
        status="UNSTABLE" if unstable else "VALID", criteria=criteria, percentiles=tuple(figures)
    )


def percentile_figure(measurement: Measurement, percent: float) -> PercentileFigure:
    """A percentile as trtexec defines it; without a value where too few calls were made.

    The smallest and the largest call are what they are: 0 and 100 need no number of calls.
    """
    n = len(measurement.samples_s)
    needed = stats.samples_needed(percent)
    known = needed is None or n >= needed
    value_s = stats.percentile(measurement.samples_s, percent) if known else None
    return PercentileFigure(percent=percent, value_s=value_s, needed=needed, n_samples=n)


def _criterion(
    name: str,
    figure: float | None,
    limit: float | None,
    violated: bool | None,
    finding: str,
    remedy: str = "",
) -> Criterion:
    """A criterion whose ``violated`` is None where nobody can tell."""
    if violated is None:
        return Criterion(
            name=name, outcome="unknown", figure=None, limit=limit, finding=finding, remedy=remedy
        )
    return Criterion(
        name=name,
        outcome="violated" if violated else "ok",
        figure=figure,
        limit=limit,
        finding=finding,
        remedy=remedy if violated else "",
    )


# --- what the samples say -----------------------------------------------------------------------


def _enough_samples(figure: PercentileFigure) -> Criterion:
    name = f"samples for p{figure.percent:g}"
    n, needed = figure.n_samples, figure.needed
    if needed is None:
        return _criterion(name, n, 1, False, f"{n} calls; any number has an extreme")
    return _criterion(
        name,
        n,
        needed,
        n < needed,
        f"{n} calls; p{figure.percent:g} needs {needed} for {100 * CONFIDENCE:.0f} % confidence",
        f"measure at least {needed} calls (--iterations {needed})",
    )


def _spread(measurement: Measurement) -> Criterion:
    spread = stats.coefficient_of_variation(measurement.samples_s)
    return _criterion(
        "coefficient of variation",
        spread,
        MAX_SPREAD,
        spread > MAX_SPREAD,
        f"single calls spread by {_percent(spread)} of the median",
        "stop other programs, fix the clocks (lock_clocks), and repeat",
    )


def _one_speed(measurement: Measurement) -> Criterion:
    n = len(measurement.samples_s)
    apart = len(stats.outliers(measurement.samples_s, at_least=FAR)) / n
    return _criterion(
        "calls apart",
        apart,
        MAX_APART,
        apart > MAX_APART,
        f"{_percent(apart)} of the calls lie far from the median",
        "the board has more than one speed: see clocks and throttling, or what else runs there "
        "at times, and repeat",
    )


def _halves(name: str, measurement: Measurement) -> Criterion:
    """Welch's t test on the medians of the blocks, besides the size of the change."""
    drift = stats.drift(measurement.samples_s)
    told = f"the second half took {_signed(drift)} against the first"
    medians = np.array(stats.block_medians(measurement))
    if len(medians) < 4:
        return _criterion(
            name,
            None,
            MAX_HALVES,
            None,
            f"{len(medians)} blocks of calls are too few to tell a change from noise",
            "measure longer",
        )
    first, second = np.array_split(medians, 2)
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    significant = stats.student(CONFIDENCE, len(medians) - 2) * error
    changed = abs(second.mean() - first.mean()) > significant and abs(drift) > MAX_HALVES
    return _criterion(
        name,
        drift,
        MAX_HALVES,
        changed,
        told,
        "the board was slowing down or speeding up: warm up longer (--warm-up, --sustain) or fix "
        "the clocks, and repeat",
    )


def _pace(measurement: Measurement) -> Criterion:
    interval = stats.interval_over_time(measurement)
    middle = stats.median(measurement.samples_s)
    half = (interval.high - interval.low) / 2 / middle
    return _criterion(
        "pace of the board",
        half,
        MAX_PACE,
        half > MAX_PACE,
        f"measured at other times the median may be {format_time(interval.low)} to "
        f"{format_time(interval.high)} ({_percent(interval.coverage, 0)})",
        "the board runs faster and slower by turns: measure longer, fix the clocks, or compare "
        "interleaved with a baseline, as boardfit fit does",
    )


def _baseline_drift(baseline: Measurement | None) -> Criterion:
    name = "baseline drift"
    if baseline is None:
        return _criterion(
            name,
            None,
            MAX_HALVES,
            None,
            "no baseline was measured in the same rounds",
            "boardfit fit measures one",
        )
    return _halves(name, baseline)


# --- what the board says ------------------------------------------------------------------------


def _readings(measurement: Measurement) -> tuple[Conditions, ...]:
    return (measurement.before, measurement.after)


def _known(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(value for value in values if value is not None and value > 0)


def _cpu_clocks(measurement: Measurement) -> tuple[float, ...]:
    """The mean clock of the CPUs at every reading, in Hz."""
    means = [
        sum(c.cpu_clock_hz) / len(c.cpu_clock_hz) if c.cpu_clock_hz else None
        for c in _readings(measurement)
    ]
    during = stats.looks(measurement)
    return _known([*means, *(sample.cpu_clock_hz for sample in during)])


def _gpu_clocks(measurement: Measurement) -> tuple[float, ...]:
    during = stats.looks(measurement)
    ends = [c.gpu_clock_hz for c in _readings(measurement)]
    return _known([*ends, *(sample.gpu_clock_hz for sample in during)])


def _clock(name: str, clocks_hz: tuple[float, ...]) -> Criterion:
    if len(clocks_hz) < 2:
        return _criterion(
            f"{name} clock",
            None,
            MAX_CLOCK_CHANGE,
            None,
            f"the board does not tell its {name} clock",
            "look at it on the board itself",
        )
    low, high = min(clocks_hz), max(clocks_hz)
    change = high / low - 1
    return _criterion(
        f"{name} clock",
        change,
        MAX_CLOCK_CHANGE,
        change > MAX_CLOCK_CHANGE,
        f"the {name} clock was {low / 1e6:.0f} to {high / 1e6:.0f} MHz during the measurement",
        "fix the clocks (lock_clocks, or the governor 'performance') and repeat",
    )


def _throttling(measurement: Measurement) -> Criterion:
    flags = [c.throttled for c in _readings(measurement)]
    flags += [sample.throttled for sample in stats.looks(measurement)]
    known = [flag for flag in flags if flag is not None]
    if not known:
        return _criterion(
            "throttling",
            None,
            None,
            None,
            "the board does not tell whether it throttles",
            "watch its clocks and temperature",
        )
    share = sum(known) / len(known)
    return _criterion(
        "throttling",
        share,
        0.0,
        share > 0,
        f"the board throttled at {sum(known)} of {len(known)} looks",
        "cool it, check its power supply, and repeat",
    )


def _temperature(measurement: Measurement) -> Criterion:
    during = stats.looks(measurement)
    readings = [sample.temp_c for sample in during if sample.temp_c is not None]
    if len(readings) >= MIN_LATE_READINGS:
        quarter = len(readings) // 4
        earlier, late = readings[-2 * quarter : -quarter], readings[-quarter:]
        rise_c = sum(late) / quarter - sum(earlier) / quarter
        limit_c, end_c = MAX_LATE_RISE_C, readings[-1]
        told = f"in its last quarter the temperature rose by {rise_c:.1f} °C, to {end_c:.0f} °C"
    elif measurement.before.temp_c is not None and measurement.after.temp_c is not None:
        rise_c = measurement.after.temp_c - measurement.before.temp_c
        limit_c, end_c = MAX_RISE_C, measurement.after.temp_c
        told = f"the temperature went from {measurement.before.temp_c:.0f} °C to {end_c:.0f} °C"
    else:
        return _criterion(
            "temperature",
            None,
            MAX_RISE_C,
            None,
            "the board does not tell its temperature",
            "compare with a sustained run (--sustain 5min)",
        )
    return _criterion(
        "temperature",
        rise_c,
        limit_c,
        rise_c > limit_c,
        told,
        "the board was still warming up: measure it soaked (--sustain 5min), or with a fan",
    )


def _memory(measurement: Measurement) -> Criterion:
    free = [c.free_memory_bytes for c in _readings(measurement)]
    free += [sample.free_memory_bytes for sample in stats.looks(measurement)]
    known = [value for value in free if value is not None]
    if not known:
        return _criterion(
            "memory",
            None,
            MIN_FREE_BYTES,
            None,
            "the board does not tell its free memory",
            "look at it on the board itself",
        )
    least = min(known)
    return _criterion(
        "memory",
        least,
        MIN_FREE_BYTES,
        least < MIN_FREE_BYTES,
        f"{least >> 20} MiB of memory were left",
        "the board may be swapping: stop other programs, or choose a smaller network",
    )


def _load(measurement: Measurement, cores: int | None) -> Criterion:
    before = measurement.before
    if cores is None and before.cpu_clock_hz:
        cores = len(before.cpu_clock_hz)
    if before.load_1min is None or cores is None:
        return _criterion(
            "load",
            None,
            None,
            None,
            "what else ran on the board is not known",
            "stop other programs",
        )
    limit = measurement.threads + MAX_LOAD_PER_CORE * cores
    return _criterion(
        "load",
        before.load_1min,
        limit,
        before.load_1min > limit,
        f"load {before.load_1min:.1f} on {cores} core{'' if cores == 1 else 's'} before the "
        "measurement",
        "the board was busy: stop other programs and repeat",
    )


def _settings(measurement: Measurement) -> Criterion:
    """What the board's entry asks for and did not hold; the session says what to do with each."""
    missed = len(measurement.warnings)
    return _criterion(
        "settings",
        missed,
        0,
        missed > 0,
        "; ".join(measurement.warnings) or "every setting that was asked for held",
        "put it right on the board, or in boards.toml, and repeat",
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"
