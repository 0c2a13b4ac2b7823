"""Every record that crosses a module border: frozen, validated, plain data.

Units are SI and stand in the name (``latency_s``, ``size_bytes``). ``None`` means "not measured" or
"not known", never zero. Raw samples are kept; statistics are derived from them in ``stats``.
``dump`` and ``load`` turn any of these records into JSON text and back.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pydantic

__all__ = [
    "BoardFacts",
    "BoardSettings",
    "BoardSpec",
    "Budget",
    "BudgetVerdict",
    "CacheState",
    "Candidate",
    "Check",
    "CheckStatus",
    "Conditions",
    "Criterion",
    "Diagnosis",
    "Failure",
    "FitResult",
    "Group",
    "GroupAllocation",
    "ImportedSummary",
    "Interval",
    "KernelPoint",
    "KernelTime",
    "LeaseHolder",
    "Measurement",
    "MeasurementVerdict",
    "Option",
    "PercentileFigure",
    "Prediction",
    "Profile",
    "Soak",
    "SoakSummary",
    "SoakWindow",
    "Stage",
    "Strategy",
    "StrategyEntry",
    "SweepTimes",
    "Telemetry",
    "TelemetrySample",
    "TimeSummary",
    "Trace",
    "TracedKernel",
    "WindowAverage",
    "dump",
    "load",
]

PRECISIONS = ("fp32", "fp16", "int8")
Verdict = Literal["meets", "does not meet", "cannot tell yet"]
CheckStatus = Literal["ok", "warn", "fail", "skip"]
Record = TypeVar("Record")


_ADAPTERS: dict[type[Any], pydantic.TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> pydantic.TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = pydantic.TypeAdapter(kind)
    return _ADAPTERS[kind]


def dump(record: Any, *, indent: int | None = None) -> str:
    """JSON text of a record; numbers that JSON cannot hold (NaN, infinity) are an error."""
    text: bytes = _adapter(type(record)).dump_json(record, indent=indent)
    return text.decode()


def load(kind: type[Record], text: str | bytes) -> Record:
    """The record of class ``kind`` in JSON ``text``; ``pydantic.ValidationError`` if it is none."""
    record: Record = _adapter(kind).validate_json(text)
    return record


_LARGEST = sys.float_info.max


def _require_positive(**values: float | None) -> None:
    for name, value in values.items():
        # No comparison: an integer may be too large to be compared with infinity.
        if value is not None and not (value > 0 and value <= _LARGEST):
            raise ValueError(f"{name} must be positive and finite, got {value}")


# --- boards -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSpec:
    """One entry of ``boards.toml``: how a board is reached and what runs there.

    ``host`` is a name that ``~/.ssh/config`` knows, or None for this computer. ``threads`` is the
    number of inference threads. Files that the board keeps for later stay under ``cache_bytes``. A
    job is killed ``job_timeout_s`` after what it is planned to take.

    ``power_mode`` (a name of nvpmodel.conf or its number), ``lock_clocks``, ``governor`` (of the
    CPUs) and ``fan`` (a share up to 1, or a pwm above) are set while a session measures, and put
    back. ``conditions`` says what becomes of a run where they do not hold: with ``set`` it is
    flagged, with ``require`` it is an error, with ``off`` nothing is asked for. The board is looked
    at every ``telemetry_s`` during a run, or never if that is 0.
    """

    name: str
    host: str | None = None
    profile: str | None = None
    python: str = "python3"
    runtime: str = "onnxruntime"
    threads: int = 1
    cache_dir: str | None = None
    cache_bytes: int = 2_000_000_000
    job_timeout_s: float = 900.0
    power_mode: str | None = None
    lock_clocks: bool = False
    governor: str | None = None
    fan: float | None = None
    conditions: Literal["set", "require", "off"] = "set"
    telemetry_s: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(
            threads=self.threads, cache_bytes=self.cache_bytes, job_timeout_s=self.job_timeout_s
        )
        if self.fan is not None and not 0 <= self.fan <= 255:
            raise ValueError(f"fan must be a share up to 1 or a pwm up to 255, got {self.fan}")
        if not (math.isfinite(self.telemetry_s) and self.telemetry_s >= 0):
            raise ValueError(f"telemetry_s must be 0 or positive, got {self.telemetry_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFacts:
    """What the agent found on a board: enough to tell whether two results may be compared.

    ``int8`` says what integer kernels are worth there: ``vnni`` (fast and exact), ``dotprod``
    (Arm's equivalent), ``avx2`` (fast, but saturates unless weights keep to seven bits) or
    ``slow``. ``simd`` is the widest vector unit that runtimes lay tensors out for.
    """

    board: str
    hostname: str
    machine: str
    cpu_model: str
    cores: int
    memory_bytes: int
    os: str
    python: str
    runtime: str
    runtime_version: str
    providers: tuple[str, ...]
    int8: Literal["vnni", "dotprod", "avx2", "slow"]
    agent_hash: str
    power_mode: str | None = None
    simd: Literal["avx512", "avx2", "neon"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The state of a board at one moment; whatever it cannot tell is None."""

    cpu_clock_hz: tuple[float, ...] | None = None
    gpu_clock_hz: float | None = None
    temp_c: float | None = None
    throttled: bool | None = None
    load_1min: float | None = None
    free_memory_bytes: int | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardSettings:
    """The settings that a run was taken under; whatever the board cannot tell is None.

    ``cpu_max_hz`` is the highest clock that an online CPU may take, ``clocks_locked`` whether
    lowest, highest and current clock were the same on every CPU and the GPU.
    """

    power_mode: str | None = None
    clocks_locked: bool | None = None
    governor: str | None = None
    cpus_online: int | None = None
    cpu_max_hz: int | None = None
    gpu_max_hz: int | None = None
    fan_pwm: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySample:
    """One look at a board during a run, ``at_s`` after its start; unknown values are None.

    ``cpu_clock_hz`` is the mean over the CPUs, ``temp_c`` the hottest zone, ``power_w`` the whole
    board's. ``throttled``: now, or at any time since the look before.
    """

    at_s: float
    cpu_clock_hz: float | None = None
    gpu_clock_hz: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    throttled: bool | None = None
    free_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Looks at a board during a run, every ``period_s`` (rarer in very long runs).

    ``cost_share`` is the processor time of looking by the time that passed: 0.01 is 1 % of one CPU.
    """

    period_s: float
    cost_share: float
    samples: tuple[TelemetrySample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHolder:
    """Who holds a board's lease: since ``held_s``, and by its plan for ``left_s`` more at least."""

    owner: str
    kind: str
    job_id: str
    held_s: float
    left_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
    """What a clean-up removed from a board (a count a kind), and what is left."""

    removed: Mapping[str, int]
    freed_bytes: int
    cache_bytes: int
    blob_bytes: int
    jobs: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that the doctor looked at, what was ``found``, and what to do about it.

    ``fail`` makes the board unusable, ``warn`` does not; ``skip`` was not looked at, because
    something else failed or because a board of that kind has none. ``facts`` are the values behind
    the sentence: JSON, in SI units, with the unit in the name.
    """

    name: str
    status: CheckStatus
    found: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status in ("warn", "fail") and not self.remedy:
            raise ValueError(f"check {self.name!r}: a {self.status} needs a remedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the doctor found on a board, in the order in which it looked."""

    board: str
    checks: tuple[Check, ...]
    reached: bool

    @property
    def verdict(self) -> Literal["usable", "unusable", "unreachable"]:
        """Whether boardfit can work with the board; warnings do not matter here."""
        if not self.reached:
            return "unreachable"
        failed = any(check.status == "fail" for check in self.checks)
        return "unusable" if failed else "usable"


# --- measurements -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTimes:
    """Where the time of a calibration went.

    ``measure_s`` is what the board spent running networks, warm-ups included; ``fit_s`` choosing
    and fitting; ``build_s`` the rest: making files, sending them, creating sessions there.
    ``planned_s`` was the measuring predicted at the start, which is kept within ``budget_s``.
    ``kept`` networks of ``networks`` were measured by an earlier run and cost nothing now.
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
        _require_positive(every=self.every)


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
    measured. ``soak`` is what came before the samples where the board was to be warm.

    Fields since the first version: busy_s; telemetry, settings and warnings; timed, machine and
    agent_hash; soak and timed_from_s. They have defaults, so that older stores are read.
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

    def __post_init__(self) -> None:
        if not self.samples_s or min(self.samples_s) <= 0:
            raise ValueError(f"measurement of {self.label}: samples must be positive, and some")
        if len(self.rounds) != len(self.samples_s):
            raise ValueError(f"measurement of {self.label}: one round number a sample, please")


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
    (onnxruntime: the middle of a microsecond); old profiles have none.
    """

    name: str
    op: str
    node: str
    latency_s: float
    serves: str = ""
    samples_s: tuple[float, ...] = ()


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
    a single pass has neither.
    """

    network_sha256: str
    runtime: str
    runtime_version: str
    kernels: tuple[KernelTime, ...]
    runs_s: tuple[float, ...] = ()
    trace: Trace | None = None
    campaign: str = ""
    rounds: tuple[int, ...] = ()


# --- imported from trtexec ------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One question that a measurement was asked, and the answer.

    ``figure`` and ``limit`` are in SI units or shares, None where there is nothing to compare;
    ``finding`` is the answer as a sentence, ``remedy`` what to do where it is not "ok".
    """

    name: str
    outcome: Literal["ok", "violated", "unknown"]
    figure: float | None
    limit: float | None
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileFigure:
    """A percentile of a measurement; ``value_s`` is None where ``needed`` calls were not made.

    ``needed`` is None for a percentile that no number of calls supports (0 and 100).
    """

    percent: float
    value_s: float | None
    needed: int | None
    n_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementVerdict:
    """Whether a measurement can be trusted: VALID unless a criterion is violated."""

    status: Literal["VALID", "UNSTABLE"]
    criteria: tuple[Criterion, ...]
    percentiles: tuple[PercentileFigure, ...]

    @property
    def violated(self) -> tuple[Criterion, ...]:
        """What speaks against the measurement."""
        return tuple(c for c in self.criteria if c.outcome == "violated")

    @property
    def unknown(self) -> tuple[Criterion, ...]:
        """What nobody can tell of it."""
        return tuple(c for c in self.criteria if c.outcome == "unknown")


@dataclass(frozen=True, slots=True)
class Interval:
    """``low <= value <= high`` with probability ``coverage``."""

    low: float
    high: float
    coverage: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"interval with low {self.low} above high {self.high}")


# --- compression --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Channels that must be pruned together.

    ``producers`` are the layers whose output channels these are (several at a residual sum),
    ``consumers`` those that read them. A layer whose outputs must stay (the classifier) forms a
    group that is not ``prunable``: precision is its only choice.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Option:
    """One choice for a group: how many channels stay, and in which precision its producers run."""

    channels: int
    precision: str

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        _require_positive(channels=self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyEntry:
    """What a strategy does to one group: which of its channels stay, and the precision."""

    group: str
    kept: tuple[int, ...]
    of: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Methods and settings that turn the original network into one variant (``strategy.json``).

    Version history: 1, the first.
    """

    label: str
    methods: tuple[str, ...]
    entries: tuple[StrategyEntry, ...]
    epochs: int
    seed: int
    schema_version: int = 1


# --- budgets and results ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit: ``limit`` is in SI units (s, bytes) or, if ``relative``, a share of the baseline.

    ``text`` is what the user wrote. ``accuracy_drop`` is in points of top-1 and always absolute.
    """

    quantity: Literal["latency", "size", "accuracy_drop"]
    limit: float
    relative: bool
    text: str

    def __post_init__(self) -> None:
        if self.quantity != "accuracy_drop":
            _require_positive(limit=self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """What measurement says of one budget.

    ``value`` and ``interval`` are in the unit of the budget's ``limit``. ``nearest`` is the
    smallest limit that is predicted to be reachable, where the budget could not be met.
    """

    budget: Budget
    value: float | None
    interval: Interval | None
    met: bool
    verdict: Verdict
    nearest: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted latency, with the latency model that made it; frozen before the measurement."""

    label: str
    network_sha256: str
    latency_s: float
    interval: Interval
    latency_model_sha256: str
    made_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAllocation:
    """One group in a candidate: for the report's picture along the depth of the network."""

    group: str
    layers: tuple[str, ...]
    channels: int
    kept: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPoint:
    """One kernel of one candidate: its work, what was predicted and what the profiler measured."""

    candidate: str
    name: str
    kind: str
    precision: str
    macs: int
    moved_bytes: int
    predicted_s: float | None
    measured_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One network that was built and measured; the baseline is one too.

    ``latency_s`` is the median host time of one call, ``ratio`` that median against the baseline's
    in the same interleaved rounds. ``predicted_*`` are the frozen predictions. ``top1`` is
    computed from the shipped ONNX file on the full test set; ``board_agreement`` is the share of
    test images on which the engine, on the board, gives the original network's class, and
    ``host_agreement`` the share on which it gives the class that the host computes from the file.
    ``int8_layers_real`` of ``int8_layers`` layers allocated int8 ran as integer kernels.
    ``verdict`` says whether its measurement can be trusted, ``soak`` what running without a pause
    before it did to its time; both are None in results from before they existed.
    """

    label: str
    role: Literal["baseline", "joint", "int8_only", "prune_only"]
    round: int
    onnx_sha256: str
    size_bytes: int
    parameters: int
    macs: int
    latency_s: float
    latency_interval_s: Interval
    latency_cv: float
    n_samples: int
    ratio: float
    ratio_interval: Interval
    top1: float | None
    board_agreement: float | None
    host_agreement: float | None
    n_board_images: int
    predicted_latency_s: float | None = None
    predicted_interval_s: Interval | None = None
    predicted_size_bytes: int | None = None
    predicted_loss: float | None = None
    int8_layers: int = 0
    int8_layers_real: int = 0
    allocation: tuple[GroupAllocation, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: MeasurementVerdict | None = None
    soak: SoakSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a fit and the wall time it took (of the run that did it, when resumed)."""

    name: str
    wall_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Everything that ``report.html`` shows of one ``boardfit fit`` (``result.json``).

    ``result`` is None where no variant could be built. ``verdict`` sums the budgets up.
    ``alternative_budgets`` holds the verdicts of the budgets on each of ``alternatives``.
    Version history: 1, the first.
    """

    boardfit_version: str
    created_at: str
    network: str
    board: BoardFacts
    baseline: Candidate
    result: Candidate | None
    candidates: tuple[Candidate, ...]
    alternatives: Mapping[str, Candidate]
    budgets: tuple[BudgetVerdict, ...]
    verdict: Verdict
    explanation: str
    kernels: tuple[KernelPoint, ...]
    peak_macs_per_s: Mapping[str, float]
    bandwidth_bytes_per_s: float
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()
    fake: bool = False
    alternative_budgets: Mapping[str, tuple[BudgetVerdict, ...]] = field(default_factory=dict)
    schema_version: int = 1
