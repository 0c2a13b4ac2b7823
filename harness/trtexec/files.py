"""trtexec's JSON files of times and profiles, read and written, and a Chrome trace.

Shapes of ``--exportTimes`` and ``--exportProfile`` from TensorRT's published
samples/common/sampleReporting.cpp (8.4 to 10), and from files that trtexec wrote which come with
its engine explorer (trt-engine-explorer, resnet on A100). The explorer reads ``latencyMs`` of every
call and profile entries with four or five keys. Of 8.0 (``endToEndMs``, warm-ups among the calls,
no ``medianMs``) and 7 (``inMs`` and ``outMs`` for ``h2dMs`` and ``d2hMs``) no file was at hand:
their keys are read as documented, unproven.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import stats
from harness.errors import ConfigError
from harness.records import Conditions, ImportedSummary, KernelTime, Measurement, Profile

__all__ = [
    "CallTimes",
    "as_measurement",
    "chrome_trace",
    "profile_entries",
    "read_profile",
    "read_times",
    "time_entries",
    "write",
]

# A file of ten minutes of calls of half a millisecond has 400 MB; what is larger is no such file.
MOST_BYTES = 1 << 30
# How TensorRT joins the names of what it fuses.
_FUSED = re.compile(r" \+ |PWN\(|, |\)")
REFORMAT = ("Reformatting CopyNode for Input Tensor ", "Reformatting CopyNode for Output Tensor ")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimes:
    """One call in a file of times; ``latency_s`` is copies in, GPU compute and copies out."""

    latency_s: float
    compute_s: float
    h2d_s: float
    d2h_s: float
    start_s: float
    end_to_end_s: float | None = None


# --- reading --------------------------------------------------------------------------------------


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _entries(path: Path, what: str) -> Sequence[Mapping[str, Any]]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has more than {MOST_BYTES >> 20} MiB: too large for {what}")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name {what}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not {what}: {error or 'nested too deeply'}") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ConfigError(f"{path} is not {what}: a list of objects is wanted")
    return content


def _number(entry: Mapping[str, Any], names: Sequence[str], where: str) -> float:
    """The first of ``names`` in milliseconds, as seconds."""
    name = next((name for name in names if name in entry), None)
    if name is None:
        raise ConfigError(f"{where} has no {' or '.join(names)}; trtexec 7 and later write it")
    value = entry[name]
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{where}: {name} is {str(value)[:40]}, which is no time")
    return float(f"{number * 1e-3:.12g}")


def read_times(path: Path) -> tuple[CallTimes, ...]:
    """Every call in a file that ``--exportTimes`` wrote; ConfigError names the file and the entry.

    Warm-up calls may be among them, which only the log tells: see ``as_measurement``.
    """
    found = []
    for number, entry in enumerate(_entries(path, "a file of --exportTimes"), 1):
        where = f"{path}, entry {number}"
        latency_s = _number(entry, ("latencyMs",), where)
        if latency_s <= 0:
            raise ConfigError(f"{where}: latencyMs is 0; a call takes time")
        end_to_end_s = _number(entry, ("endToEndMs",), where) if "endToEndMs" in entry else None
        found.append(
            CallTimes(
                latency_s=latency_s,
                compute_s=_number(entry, ("computeMs",), where),
                h2d_s=_number(entry, ("h2dMs", "inMs"), where),
                d2h_s=_number(entry, ("d2hMs", "outMs"), where),
                start_s=_number(entry, ("startComputeMs",), where),
                end_to_end_s=end_to_end_s,
            )
        )
    if not found:
        raise ConfigError(f"{path} holds no call; trtexec --exportTimes writes one entry a call")
    return tuple(found)


def as_measurement(summary: ImportedSummary, calls: Sequence[CallTimes]) -> Measurement:
    """The run of a log with its single calls; ConfigError if they are of another run.

    Until 8.4 the file holds the warm-up calls as well, which the log counts. A round is as many
    calls as the log averages, ten by default, since neighbours share their disturbances.
    """
    extra = len(calls) - summary.calls
    if extra not in {0, summary.warmup_calls}:
        raise ConfigError(
            f"{summary.source} timed {summary.calls} calls and {summary.warmup_calls} to warm up, "
            f"the file of times has {len(calls)}: they are of different runs; give the log and the "
            "times that one run wrote"
        )
    samples = tuple(call.latency_s for call in calls[extra:])
    logged_s = summary.times["Latency"].median_s
    if abs(stats.median(samples) - logged_s) > 1e-4 * logged_s:
        raise ConfigError(
            f"the median of the times is {stats.median(samples) * 1e3:.6g} ms, {summary.source} "
            f"says {logged_s * 1e3:.6g} ms: give the log and the times that one run wrote"
        )
    size = summary.windows[0].calls if summary.windows else 10
    unknown = Conditions()
    return Measurement(
        label=summary.label,
        network_sha256=summary.network_sha256,
        runtime=summary.runtime,
        runtime_version=summary.runtime_version,
        precision=summary.precision,
        batch=summary.batch or 1,
        threads=summary.threads,
        samples_s=samples,
        rounds=tuple(index // size for index in range(len(samples))),
        warmup_s=tuple(call.latency_s for call in calls[:extra]),
        before=unknown,
        after=unknown,
        board=summary.board,
        campaign=f"import {summary.source_sha256[:12]}",
        taken_at=summary.taken_at,
        power_mode=summary.power_mode,
        timed="trtexec",
    )


def read_profile(path: Path, summary: ImportedSummary, *, nodes: Collection[str] = ()) -> Profile:
    """The layers in a file that ``--exportProfile`` wrote, of the run that ``summary`` sums up.

    A layer's time is its median, or its mean where the file has none (before 8.4). Layers that
    took no time are kept: an engine's layers are compared by name. A reformatting copy serves the
    layer that it is named after. ``nodes`` are the network's: a layer is attributed to the first
    of them that its name holds ("Conv_0 + Relu_1", "PWN(PWN(Sigmoid_2), Mul_3)").
    """
    known = set(nodes)
    entries = _entries(path, "a file of --exportProfile")
    if not entries or set(entries[0]) != {"count"}:
        raise ConfigError(f"{path} does not begin with a count of runs; is it of --exportProfile?")
    kernels = []
    for number, entry in enumerate(entries[1:], 2):
        where = f"{path}, entry {number}"
        name = entry.get("name")
        if not isinstance(name, str):
            raise ConfigError(f"{where} has no name")
        serves = ""
        if name.startswith(REFORMAT):
            serves = name.partition(" to ")[2]
        kernels.append(
            KernelTime(
                name=name,
                op="Reformat" if serves else "",
                node="" if serves else _node(name, known),
                latency_s=_number(entry, ("medianMs", "averageMs"), where),
                serves=serves,
            )
        )
    return Profile(
        network_sha256=summary.network_sha256,
        runtime=summary.runtime,
        runtime_version=summary.runtime_version,
        kernels=tuple(kernels),
    )


def _node(name: str, known: Collection[str]) -> str:
    parts = [name, *(part.strip() for part in _FUSED.split(name))]
    return next((part for part in parts if part in known), "")


# --- writing --------------------------------------------------------------------------------------


def _ms(seconds: float) -> float:
    """Milliseconds to the nanosecond, finer than any clock here."""
    return round(seconds * 1e3, 6)


def time_entries(measurement: Measurement) -> list[dict[str, float]]:
    """A measurement in the shape of ``--exportTimes``, a call an entry, in the order measured.

    A runtime on the host copies nothing: a call is all compute, and enqueueing lasts as long. On a
    GPU the latency is copies in, compute and copies out. Only durations are measured; the starts
    are those of calls one right after the other.
    """
    entries = []
    start_s = 0.0
    for index, sample_s in enumerate(measurement.samples_s):
        h2d_s, compute_s, d2h_s, enqueue_s = 0.0, sample_s, 0.0, sample_s
        if measurement.parts is not None:
            parts = measurement.parts
            h2d_s, compute_s, d2h_s = parts.h2d_s[index], parts.compute_s[index], parts.d2h_s[index]
            enqueue_s = parts.enqueue_s[index]
        computing_s = start_s + h2d_s
        leaving_s = computing_s + compute_s
        spans = {"Enq": (start_s, start_s + enqueue_s), "H2d": (start_s, computing_s)}
        spans |= {"Compute": (computing_s, leaving_s), "D2h": (leaving_s, leaving_s + d2h_s)}
        entry: dict[str, float] = {}
        for name, (begin_s, finish_s) in spans.items():
            entry[f"start{name}Ms"], entry[f"end{name}Ms"] = _ms(begin_s), _ms(finish_s)
        took = {"h2dMs": _ms(h2d_s), "computeMs": _ms(compute_s), "d2hMs": _ms(d2h_s)}
        entries.append({**entry, **took, "latencyMs": _ms(h2d_s + compute_s + d2h_s)})
        start_s += sample_s
    return entries


def profile_entries(profile: Profile) -> list[dict[str, Any]]:
    """A profile in the shape of ``--exportProfile``: the count of runs, then one entry a kernel.

    Old profiles hold medians alone, which then count as one run.
    """
    runs = max((len(kernel.samples_s) for kernel in profile.kernels), default=0)
    totals = [sum(kernel.samples_s) or kernel.latency_s for kernel in profile.kernels]
    total_s = sum(totals)
    return [
        {"count": max(1, runs)},
        *(
            {
                "name": kernel.name,
                "timeMs": _ms(took_s),
                "averageMs": _ms(took_s / max(1, len(kernel.samples_s))),
                "medianMs": _ms(kernel.latency_s),
                "percentage": round(100 * took_s / total_s, 6) if total_s else 0.0,
            }
            for kernel, took_s in zip(profile.kernels, totals, strict=True)
        ),
    ]


def chrome_trace(profile: Profile, *, title: str) -> dict[str, Any]:
    """One inference as a Chrome trace (``chrome://tracing``, Perfetto): kernels by thread, in us.

    It is the profiled run of median duration. Where the runtime gives no single run, the kernels'
    medians stand one after the other, and ``otherData`` says so.
    """
    events: list[dict[str, Any]] = []
    if profile.trace is not None:
        spans = [(k.kernel, k.start_s, k.latency_s, k.thread) for k in profile.trace.kernels]
        whole_s, shown = profile.trace.run_s, "the profiled run of median duration"
    else:
        spans, start_s = [], 0.0
        for index, kernel in enumerate(profile.kernels):
            spans.append((index, start_s, kernel.latency_s, 0))
            start_s += kernel.latency_s
        whole_s, shown = start_s, "each kernel's median, one after the other: no run was recorded"
    threads = sorted({thread for *_, thread in spans})
    for thread in threads:
        named = {"name": f"thread {thread}"}
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": thread, "args": named})
    first = spans[0][3] if spans else 0
    events.append(_event(title, "inference", 0.0, whole_s, first, {}))
    for index, start_s, latency_s, thread in spans:
        kernel = profile.kernels[index]
        arguments = {"op": kernel.op, "node": kernel.node, "median_us": _us(kernel.latency_s)}
        if kernel.serves:
            arguments["serves"] = kernel.serves
        events.append(_event(kernel.name, "kernel", start_s, latency_s, thread, arguments))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "shows": shown,
            "network_sha256": profile.network_sha256,
            "runtime": f"{profile.runtime} {profile.runtime_version}",
        },
    }


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _event(
    name: str,
    category: str,
    start_s: float,
    latency_s: float,
    thread: int,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": _us(start_s),
        "dur": _us(latency_s),
        "pid": 0,
        "tid": thread,
        "args": dict(arguments),
    }


def write(content: Any, path: Path) -> None:
    """Write a list with one entry a line, as trtexec does, or an object, as JSON."""
    if isinstance(content, list):
        lines = "\n, ".join(json.dumps(entry, allow_nan=False) for entry in content)
        text = f"[\n  {lines}\n]\n"
    else:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another") from error
