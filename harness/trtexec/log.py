"""A trtexec log read into a summary: statistics, averages of windows, and what it ran.

Known from three whole logs of TensorRT 8.0.1 on a Jetson Nano: every line that is read here. From
TensorRT's published samples/common/sampleReporting.cpp of 8.4 to 10, and unproven by a log of our
own: "percentile" several times in a line (8.5 and later), "(enqueue ... ms)" without "end to end"
(8.4 and later), versions of five and six digits, "Input binding for ... is created".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

from harness import stats
from harness.errors import ConfigError
from harness.records import ImportedSummary, TimeSummary, WindowAverage

__all__ = ["contradictions", "read_log"]

# Names of fused layers make lines of several thousand characters; nothing that is read is longer.
LINE_LIMIT = 1 << 16
# A number of the log has six significant digits: two that should be equal differ by this at most.
DIGITS = 2e-5
# Of more calls any percentile below 99.999 excludes some: there is no need to count.
MOST_RANKED = 10**5
# trtexec prints those of --percentile, three by default.
MOST_PERCENTILES = 100

RUNNING = "&&&& RUNNING TensorRT.trtexec"
FAILED = "&&&& FAILED TensorRT.trtexec"
# The first major version whose times are read here.
OLDEST = 8
LONGEST_ERROR = 200
_PREFIX = re.compile(r"(?:\[[0-9/:\- ]{8,30}\] ?)+(?:\[[A-Z]\] )?")
_STAMP = re.compile(r"\[(\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d)\]")
_VERSION = re.compile(r"\[TensorRT v(\d{3,6})\]")
_MODEL = re.compile(r"--(?:onnx|loadEngine|uff|deploy)=(\S+)")
_NUMBER = r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?|[-+]?nan|[-+]?inf)"
_TIMES = re.compile(
    rf"([A-Z][A-Za-z0-9 -]{{1,40}}): min = {_NUMBER} ms, max = {_NUMBER} ms, mean = {_NUMBER} ms, "
    rf"median = {_NUMBER} ms(.*)"
)
_PERCENTILE = re.compile(rf", percentile\({_NUMBER}%\) = {_NUMBER} ms")
_WINDOW = re.compile(
    rf"Average on (\d{{1,9}}) runs - GPU latency: {_NUMBER} ms - Host latency: {_NUMBER} ms"
    rf"(?: \((?:end to end {_NUMBER} ms, )?enqueue {_NUMBER} ms\))?"
)
_RATE = re.compile(rf"Throughput: {_NUMBER} qps")
_TRACE = re.compile(rf"Timing trace has (\d{{1,12}}) queries over {_NUMBER} s")
_WARMUP = re.compile(rf"Warmup completed (\d{{1,12}}) queries over {_NUMBER} ms")
_INPUT = re.compile(
    r"(?:Created input binding for|Input binding for) .{1,400}? with dimensions (\d{1,9})(?:x|$| )"
)
_ENGINE = re.compile(r"Loaded engine size: (\d{1,9}) Mi?B")


@dataclass(slots=True)
class _Found:
    """What has been read of one run so far."""

    header: str
    line: int
    times: dict[str, TimeSummary] = field(default_factory=dict)
    windows: list[WindowAverage] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    calls: int | None = None
    duration_s: float = 0.0
    warmup_calls: int | None = None
    throughput_per_s: float | None = None
    taken_at: str = ""
    batch: int | None = None
    layers: int = 0
    engine_bytes: int | None = None
    failed: bool = False
    error: str = ""


def read_log(
    path: Path,
    *,
    network: Path | None = None,
    board: str | None = None,
    power_mode: str | None = None,
) -> tuple[ImportedSummary, ...]:
    """Every run of trtexec in a log; ConfigError names the file and the line that is wrong.

    ``network`` is the ONNX file that was run, ``board`` and ``power_mode`` what the log cannot
    know; without a board's name it is the device's.
    """
    digest = hashlib.sha256()
    runs: list[_Found] = []
    number = 0
    try:
        for number, line in _lines(path, digest):
            if line.startswith(RUNNING):
                runs.append(_Found(header=line, line=number))
            elif runs:
                _read_line(runs[-1], line, f"{path}, line {number}")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); name a trtexec log"
        ) from error
    if not runs:
        raise ConfigError(
            f"{path} is no trtexec log: none of its {number} lines begins with {RUNNING!r}; "
            "import what trtexec printed, from its first line on"
        )
    ends = [run.line - 1 for run in runs[1:]] + [number]
    return tuple(
        _summary(
            run,
            path=path,
            end=end,
            sha256=digest.hexdigest(),
            network_sha256="" if network is None else _sha256(network),
            board=board,
            power_mode=power_mode,
        )
        for run, end in zip(runs, ends, strict=True)
    )


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); name an .onnx file"
        ) from error


def _lines(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; what exceeds ``LINE_LIMIT`` of a line is skipped."""
    number, begins = 0, True
    with path.open("rb") as stream:
        while chunk := stream.readline(LINE_LIMIT):
            digest.update(chunk)
            if begins:
                number += 1
                yield number, chunk.decode(errors="replace").rstrip("\r\n")
            begins = chunk.endswith(b"\n")


def _read_line(run: _Found, line: str, where: str) -> None:
    prefix = _PREFIX.match(line)
    text = line[prefix.end() :] if prefix else line
    run.failed = run.failed or line.startswith(FAILED)
    if prefix and prefix[0].rstrip().endswith("[E]"):
        run.error = run.error or text[:LONGEST_ERROR]
    if text.startswith("[TRT]"):
        run.layers += text.startswith("[TRT] [GpuLayer] ")
        if match := _ENGINE.search(text):
            # Printed as MB by 8.0, and meant as MiB.
            run.engine_bytes = int(match[1]) << 20
    elif match := _TIMES.fullmatch(text):
        run.times[match[1]] = _time_summary(match, where)
        stamp = _STAMP.match(line)
        run.taken_at = run.taken_at or (_moment(stamp[1], where) if stamp else "")
    elif match := _WINDOW.match(text):
        run.windows.append(_window(match, where))
    elif match := _TRACE.match(text):
        run.calls, run.duration_s = int(match[1]), _positive(match[2], where)
    elif match := _WARMUP.match(text):
        run.warmup_calls = int(match[1])
    elif match := _INPUT.match(text):
        run.batch = run.batch or int(match[1])
    elif match := _RATE.match(text):
        run.throughput_per_s = _positive(match[1], where)
    elif ": min = " in text[:60]:
        raise ConfigError(f"{where}: {text[:80]!r} is cut off or damaged")
    else:
        name, colon, value = text.partition(": ")
        if colon and len(name) < 60:
            run.options.setdefault(name, value.strip())


def _positive(text: str, where: str) -> float:
    """The number in ``text``, neither negative nor infinite nor NaN."""
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is no number; the log is damaged") from error
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{where}: {text} is no time; the log is damaged")
    return value


def _seconds(text: str, where: str) -> float:
    """Milliseconds in the log as seconds, without binary dust: 97.4092 is 0.0974092."""
    value = _positive(text, where)
    return float(f"{value * 1e-3:.9g}")


def _moment(stamp: str, where: str) -> str:
    try:
        return datetime.strptime(stamp, "%m/%d/%Y-%H:%M:%S").isoformat()
    except ValueError as error:
        raise ConfigError(f"{where}: {stamp} is no time of day; the log is damaged") from error


def _time_summary(match: re.Match[str], where: str) -> TimeSummary:
    rest = match[6]
    percentiles = tuple(
        (_positive(one[1], where), _seconds(one[2], where)) for one in _PERCENTILE.finditer(rest)
    )
    if len(percentiles) > MOST_PERCENTILES:
        raise ConfigError(f"{where}: {len(percentiles)} percentiles; the log is damaged")
    return TimeSummary(
        min_s=_seconds(match[2], where),
        max_s=_seconds(match[3], where),
        mean_s=_seconds(match[4], where),
        median_s=_seconds(match[5], where),
        percentiles=percentiles,
    )


def _window(match: re.Match[str], where: str) -> WindowAverage:
    calls = int(match[1])
    if calls < 1:
        raise ConfigError(f"{where}: an average of no calls; the log is damaged")
    gpu_s, latency_s = _seconds(match[2], where), _seconds(match[3], where)
    return WindowAverage(
        calls=calls,
        gpu_s=gpu_s,
        latency_s=latency_s,
        end_to_end_s=None if match[4] is None else _seconds(match[4], where),
        enqueue_s=None if match[5] is None else _seconds(match[5], where),
    )


def _version(run: _Found) -> str:
    """ "8.0.1" of v8001, "10.3.0" of v100300; "" where the log does not say."""
    match = _VERSION.search(run.header)
    text = match[1] if match else run.options.get("TensorRT version", "")
    if not text.isdecimal() or len(text) > 6:
        return text
    number = int(text)
    if number < 10000:
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _precision(text: str) -> str:
    """The narrowest precision that the builder was allowed; other texts as they are."""
    allowed = text.lower().split("+")
    for precision in ("int8", "fp16", "fp32"):
        if precision in allowed and set(allowed) <= {"int8", "fp16", "fp32"}:
            return precision
    return text.lower().split(" (")[0] or "unknown"


def _hertz(text: str) -> float | None:
    match = re.fullmatch(r"([0-9.]{1,12}) GHz", text)
    try:
        value = float(match[1]) * 1e9 if match else math.nan
    except ValueError:
        return None
    return value if value > 0 else None


def _why(run: _Found) -> str:
    """What became of a run that has no times, and what to do."""
    if run.failed:
        return f"trtexec failed ({run.error or 'it does not say why'}); mend that and run it again"
    version = _version(run)
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST:
        which = f"TensorRT {version}" if version else "a trtexec that names no version"
        return (
            f"it is of {which}, and times are read from TensorRT {OLDEST}.0 on; measure with that "
            "(JetPack 4.6 or later)"
        )
    return "trtexec was cut off or was not to time anything; run it again, and keep all it prints"


def _summary(
    run: _Found,
    *,
    path: Path,
    end: int,
    sha256: str,
    network_sha256: str,
    board: str | None,
    power_mode: str | None,
) -> ImportedSummary:
    if run.calls is None or run.calls < 1 or "Latency" not in run.times:
        missing = "Timing trace has" if not run.calls else "Latency: min ="
        raise ConfigError(
            f"{path}, lines {run.line} to {end}: no line {missing + ' ...'!r}: {_why(run)}"
        )
    command = run.header.partition(" # ")[2]
    named = _MODEL.search(command)
    network = named[1] if named else run.options.get("Model", "")
    file = (PureWindowsPath if "\\" in network else PurePosixPath)(network).name
    batch = run.options.get("Batch", "")
    streams = run.options.get("Streams", "")
    device = run.options.get("Selected Device", "")
    found = ImportedSummary(
        label=file or path.stem,
        network=network,
        network_sha256=network_sha256,
        source=path.name,
        # Runs of one log are told apart by where they begin.
        source_sha256=sha256 if run.line == 1 else f"{sha256}:{run.line}",
        runtime="tensorrt",
        runtime_version=_version(run),
        precision=_precision(run.options.get("Precision", "")),
        batch=int(batch) if batch.isdecimal() and len(batch) < 10 else run.batch,
        threads=int(streams) if streams.isdecimal() and len(streams) < 10 else 1,
        board=board or device or "unknown",
        device=device,
        taken_at=run.taken_at,
        calls=run.calls,
        duration_s=run.duration_s,
        warmup_calls=run.warmup_calls,
        times=run.times,
        windows=tuple(run.windows),
        throughput_per_s=run.throughput_per_s,
        layers=run.layers or None,
        engine_bytes=run.engine_bytes,
        gpu_clock_hz=_hertz(run.options.get("Compute Clock Rate", "")),
        power_mode=power_mode,
        command=command,
    )
    return replace(found, warnings=contradictions(found))


def contradictions(summary: ImportedSummary) -> tuple[str, ...]:
    """What in a summary cannot be, in words; () if all that can be checked without samples holds.

    Of ``n`` calls: min <= median, mean, percentile <= max; a percentile that excludes no call
    (``stats.percentile``'s rule) is the maximum itself, one from 50 on no less than the median;
    each window's mean lies between the extremes; and mean latency is the sum of its parts' means.
    """
    found = []
    for name, time in summary.times.items():
        slack = DIGITS * time.max_s

        def wrong(low_s: float, high_s: float, slack: float = slack) -> bool:
            return low_s > high_s + slack

        if any(wrong(time.min_s, x) or wrong(x, time.max_s) for x in (time.median_s, time.mean_s)):
            found.append(f"{name}: the median or the mean is not between min and max")
        for percent, value_s in time.percentiles:
            if not 0 <= percent <= 100:
                found.append(f"{name}: there is no percentile({percent:g}%)")
                continue
            is_maximum = summary.calls <= MOST_RANKED and (
                stats.percentile(range(summary.calls), percent) == summary.calls - 1
            )
            if wrong(value_s, time.max_s) or (is_maximum and wrong(time.max_s, value_s)):
                found.append(f"{name}: percentile({percent:g}%) of {summary.calls} calls is not so")
            elif percent >= 50 and wrong(time.median_s, value_s):
                found.append(f"{name}: percentile({percent:g}%) lies below the median")
    latency = summary.times["Latency"]
    slack = DIGITS * latency.max_s
    outside = [
        window
        for window in summary.windows
        if not latency.min_s - slack <= window.latency_s <= latency.max_s + slack
    ]
    if outside:
        found.append(f"{len(outside)} averages of windows lie outside of the latency's range")
    if sum(window.calls for window in summary.windows) > summary.calls:
        found.append(f"the windows hold more than {summary.calls} calls")
    parts = [summary.times.get(n) for n in ("H2D Latency", "GPU Compute Time", "D2H Latency")]
    means = [part.mean_s for part in parts if part is not None]
    if len(means) == 3 and abs(sum(means) - latency.mean_s) > 4 * slack:
        found.append("the mean latency is not the sum of copies in, GPU and copies out")
    return tuple(found)
