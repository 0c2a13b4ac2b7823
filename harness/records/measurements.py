"""What was measured: samples, kernels, soaks, sweeps, and what was imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.records.base import require_positive
from harness.records.boards import BoardSettings, Conditions, Telemetry
from harness.records.engines import CallParts, EngineFacts
from harness.records.verdicts import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTimes:
    """Where the time of a calibration went.

    ``measure_s`` is what the board spent running networks, warm-ups included; ``fit_s`` choosing
    and fitting; ``build_s`` the rest: making files, sending them, creating sessions there.
    ``planned_s`` was the measuring predicted at the start, which is kept within ``budget_s``.
    ``networks`` counts one that is measured in several turns in each; ``kept`` of them were
    measured by an earlier run and cost nothing now.
    """

    planned_s: float
    budget_s: float
    measure_s: float
    build_s: float
    fit_s: float
    kernels: int
    networks: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakWindow:
    """A second or more of an engine running without a pause, and the board's state at its end.

    ``at_s`` counts from the start of the soak; ``n`` calls with these quantiles.
    """

    at_s: float
    n: int
    median_s: float
    p10_s: float
    p90_s: float
    conditions: Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """How an engine's time changed while the board ran without a pause, before the measurement.

    ``samples_s`` holds every ``every``-th call, so that a long soak stays within one frame.
    """

    every: int
    samples_s: tuple[float, ...]
    windows: tuple[SoakWindow, ...]

    def __post_init__(self) -> None:
        if not self.windows:
            raise ValueError("a soak without a window")
        require_positive(every=self.every)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakSummary:
    """What a soak did to an engine's time: cold is its first windows, soaked its last.

    ``change`` is ``soaked_s / cold_s - 1``, with no interval where the windows are too few;
    ``time_constant_s`` is that of an exponential approach,
    None where none is visible. ``settled`` says whether the time had stopped changing.
    """

    duration_s: float
    windows: int
    cold_s: float
    soaked_s: float
    change: float
    change_interval: Interval | None
    settled: bool
    time_constant_s: float | None
    cold: Conditions
    soaked: Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Timed calls of one engine, with the conditions under which they were taken.

    ``samples_s[i]`` is the host time of one call, in the order taken, and belongs to interleaving
    round ``rounds[i]``; ``warmup_s`` holds the calls that were dropped. ``campaign`` is shared by
    all engines that were measured interleaved with each other; ``busy_s`` is what all of them
    together took on the board, loading included. ``settings`` and ``telemetry`` are of the whole
    campaign; the timed rounds began ``timed_from_s`` on the telemetry's clock. ``warnings`` say
    which settings that were asked for did not hold. ``timed`` says what a sample is: ``host``, a
    call as the board's host sees it, or ``trtexec``, copies in, GPU and copies out by the GPU's
    events (imported). ``machine`` is the processor that it ran on and ``agent_hash`` the agent that
    measured. ``soak`` is what came before the samples where the board was to be warm. ``parts`` and
    ``engine`` are what TensorRT tells of each call and of the engine.

    Fields since the first version: busy_s; telemetry, settings and warnings; timed, machine and
    agent_hash; soak and timed_from_s; parts and engine. They have defaults, so that older stores
    are read.
    """

    label: str
    network_sha256: str
    runtime: str
    runtime_version: str
    precision: str
    batch: int
    threads: int
    samples_s: tuple[float, ...]
    rounds: tuple[int, ...]
    warmup_s: tuple[float, ...]
    before: Conditions
    after: Conditions
    board: str
    campaign: str
    taken_at: str
    power_mode: str | None = None
    timed: Literal["host", "trtexec"] = "host"
    machine: str | None = None
    agent_hash: str | None = None
    busy_s: float | None = None
    telemetry: Telemetry | None = None
    settings: BoardSettings | None = None
    warnings: tuple[str, ...] = ()
    soak: Soak | None = None
    timed_from_s: float | None = None
    parts: CallParts | None = None
    engine: EngineFacts | None = None

    def __post_init__(self) -> None:
        if not self.samples_s or min(self.samples_s) <= 0:
            raise ValueError(f"measurement of {self.label}: samples must be positive, and some")
        if len(self.rounds) != len(self.samples_s):
            raise ValueError(f"measurement of {self.label}: one round number a sample, please")
        if self.parts is not None and len(self.parts.compute_s) != len(self.samples_s):
            raise ValueError(f"measurement of {self.label}: the parts are of other calls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A candidate of a campaign that could not be measured: the error's class and what it said."""

    label: str
    campaign: str
    kind: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """One kernel as the runtime's own profiler saw it: median time of one call.

    ``op`` is the runtime's operator (``QLinearConv``); ``node`` the ONNX node it came from, "" if
    the runtime put the kernel in itself; one that changes a layout ``serves`` a node then.
    ``samples_s`` holds its time in every profiled run, as coarse as the profiler's clock
    (onnxruntime: the middle of a microsecond); old profiles have none. ``tactic`` and ``precision``
    are the implementation and its output's type in TensorRT's words, as far as its version tells.
    ``provider`` is what executed it, as onnxruntime names its providers; "" in old profiles.
    """

    name: str
    op: str
    node: str
    latency_s: float
    serves: str = ""
    samples_s: tuple[float, ...] = ()
    tactic: str = ""
    precision: str = ""
    provider: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedKernel:
    """Kernel number ``kernel`` of a profile in one run: start, from the run's, and duration."""

    kernel: int
    start_s: float
    latency_s: float
    thread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The profiled run of median duration, kernel by kernel in the order of execution."""

    run_s: float
    kernels: tuple[TracedKernel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Per-kernel times of one engine, in the order of execution.

    ``runs_s`` are the whole runs under the profiler, which slows them down: their difference from
    a measurement is what profiling costs. Both it and ``trace`` are empty where the runtime cannot
    tell, and in profiles that older versions stored. Run ``i`` belongs to pass ``rounds[i]``, each
    in a session of its own, of the ``campaign`` in which several engines were profiled in turn;
    a single pass has neither. ``engine_key`` sets apart engines that TensorRT made of one file;
    "" for runtimes whose engines the file alone decides, and in profiles of old.
    """

    network_sha256: str
    runtime: str
    runtime_version: str
    kernels: tuple[KernelTime, ...]
    runs_s: tuple[float, ...] = ()
    trace: Trace | None = None
    campaign: str = ""
    rounds: tuple[int, ...] = ()
    engine_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSummary:
    """What a log says of one time over all calls; ``percentiles`` are (percent, seconds)."""

    min_s: float
    max_s: float
    mean_s: float
    median_s: float
    percentiles: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAverage:
    """Mean times of ``calls`` calls in a row: never samples of single calls.

    ``latency_s`` is copies in, GPU and copies out; ``enqueue_s`` the host's time to enqueue.
    """

    calls: int
    gpu_s: float
    latency_s: float
    end_to_end_s: float | None = None
    enqueue_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedSummary:
    """One run of trtexec as its log sums it up; the single calls are not in a log.

    ``network`` is the file that trtexec ran, ``network_sha256`` "" where it is not at hand.
    ``times`` maps trtexec's names ("Latency", "GPU Compute Time", "Enqueue Time", ...) to what it
    printed. ``taken_at`` is the board's local time: a log names no zone. ``threads`` are streams,
    ``gpu_clock_hz`` the device's rated clock and not the one in force. ``warnings`` name what in
    the log contradicts itself.
    """

    label: str
    network: str
    network_sha256: str
    source: str
    source_sha256: str
    runtime: str
    runtime_version: str
    precision: str
    batch: int | None
    threads: int
    board: str
    device: str
    taken_at: str
    calls: int
    duration_s: float
    warmup_calls: int | None
    times: Mapping[str, TimeSummary]
    windows: tuple[WindowAverage, ...]
    throughput_per_s: float | None = None
    layers: int | None = None
    engine_bytes: int | None = None
    gpu_clock_hz: float | None = None
    power_mode: str | None = None
    command: str = ""
    timed: Literal["trtexec"] = "trtexec"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if "Latency" not in self.times or self.calls < 1:
            raise ValueError(f"summary of {self.label}: a latency of at least one call is wanted")
