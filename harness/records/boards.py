"""What a board is, how it is reached, and the state that it is in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.records.base import require_positive
from harness.records.engines import GpuFacts

CheckStatus = Literal["ok", "warn", "fail", "skip"]


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
        require_positive(
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
    ``slow``. ``simd`` is the widest vector unit that runtimes lay tensors out for. ``gpu`` is what
    TensorRT runs on; None on other runtimes.
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
    gpu: GpuFacts | None = None


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
