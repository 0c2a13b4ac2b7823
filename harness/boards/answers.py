"""The agent's answers as records; the wire's schema has checked them."""

from __future__ import annotations

import signal

from harness.boards.wire import Frame
from harness.records import (
    BuildAttempt,
    BuildSettings,
    BuiltEngine,
    CallParts,
    Conditions,
    EngineFacts,
    GpuFacts,
    KernelTime,
    Soak,
    SoakWindow,
    Telemetry,
    TelemetrySample,
    Trace,
    TracedKernel,
)


def conditions(content: Frame) -> Conditions:
    """The state of a board."""
    clocks = content["cpu_clock_hz"]
    return Conditions(**{**content, "cpu_clock_hz": None if clocks is None else tuple(clocks)})


def soak(content: Frame | None) -> Soak | None:
    """What a board did while it was heated up; None where it was not."""
    if content is None:
        return None
    windows = tuple(
        SoakWindow(**{**window, "conditions": conditions(window["conditions"])})
        for window in content["windows"]
    )
    return Soak(every=content["every"], samples_s=tuple(content["samples_s"]), windows=windows)


def telemetry(content: Frame | None) -> Telemetry | None:
    """What was looked at during a job; None where nothing was."""
    if content is None:
        return None
    samples = tuple(TelemetrySample(**one) for one in content["samples"])
    return Telemetry(**{**content, "samples": samples})


def kernel(content: Frame) -> KernelTime:
    """One kernel of a profile."""
    return KernelTime(
        name=content["name"],
        op=content["op"],
        node=content["node"],
        latency_s=content["latency_s"],
        serves=content.get("serves", ""),
        samples_s=tuple(content.get("samples_s", ())),
        tactic=content.get("tactic", ""),
        precision=content.get("precision", ""),
        provider=content.get("provider", ""),
    )


def trace(content: Frame) -> Trace:
    """The kernels of one run, in time."""
    kernels = tuple(TracedKernel(**kernel) for kernel in content["kernels"])
    return Trace(run_s=content["run_s"], kernels=kernels)


def build(settings: BuildSettings) -> Frame:
    """How an engine is to be built, as the wire has it."""
    return {
        "flags": list(settings.flags),
        "layers": {one.node: one.precision for one in settings.layers},
        "constraints": settings.constraints,
        "strongly_typed": settings.strongly_typed,
        "workspace_bytes": settings.workspace_bytes,
        "rebuild": settings.rebuild,
        "cuda_graph": settings.cuda_graph,
        "spin_wait": settings.spin_wait,
        "transfers": settings.transfers,
    }


def parts(content: Frame | None) -> CallParts | None:
    """What every call is made of; None where the runtime does not tell."""
    return None if content is None else CallParts(**{k: tuple(v) for k, v in content.items()})


def engine(content: Frame | None) -> EngineFacts | None:
    """An engine as built; None where the runtime builds none."""
    return None if content is None else EngineFacts(**content)


def built(content: Frame, *, build: BuildSettings) -> BuiltEngine:
    """What the board tells of a build."""
    return BuiltEngine(
        engine=EngineFacts(**content["engine"]),
        build=build,
        runtime_version=content["runtime_version"],
        attempts=tuple(BuildAttempt(**one) for one in content["attempts"]),
        log=tuple(content["log"]),
        without_precision=tuple(content.get("without_precision", ())),
    )


def gpu(content: Frame | None) -> GpuFacts | None:
    """The GPU that a runtime uses; None where it uses none."""
    return None if content is None else GpuFacts(**content)


def signal_name(number: int) -> str:
    """The name of a signal on this computer, as far as it has one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "which has no name here"
