"""One file made ready for a board's TensorRT: checked, typed where that is needed, and sized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from harness.records import BoardFacts, BuildSettings
from harness.tensorrt import checks, memory, precision
from harness.tensorrt.chips import Capability, capability_of
from harness.tensorrt.options import EngineOptions
from harness.tensorrt.versions import release_of

__all__ = ["Prepared", "for_layers", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The file to send (the given one where it may stay as it is), how to build it, and notes."""

    path: Path
    build: BuildSettings
    notes: tuple[str, ...]


def prepare(
    path: Path,
    facts: BoardFacts,
    options: EngineOptions,
    *,
    folder: Path,
    free_bytes: int | None = None,
) -> Prepared:
    """The network in ``path`` for a whole engine in the precision of ``options``.

    What has to be rewritten is written into ``folder``. BuildError names an operator or a Q/DQ pair
    that the board cannot build, ConditionError a lack of memory; both before anything is sent.
    """
    model = checks.read(path)
    plan = precision.uniform(
        model,
        options.precision,
        release=release_of(facts.runtime, facts.runtime_version),
        capability=_capability(facts),
        settings=options.settings,
    )
    return _written(path, model, plan, facts, folder=folder, free_bytes=free_bytes)


def for_layers(
    path: Path,
    facts: BoardFacts,
    layers: Mapping[str, str],
    *,
    folder: Path,
    settings: BuildSettings | None = None,
) -> Prepared:
    """The network in ``path`` for an engine whose layer nodes run in ``layers[node]``."""
    model = checks.read(path)
    plan = precision.plan(
        model,
        layers,
        release=release_of(facts.runtime, facts.runtime_version),
        capability=_capability(facts),
        settings=settings,
    )
    return _written(path, model, plan, facts, folder=folder, free_bytes=None)


def _capability(facts: BoardFacts) -> Capability:
    if facts.gpu is None:
        return Capability(
            compute=None, fast_fp16=False, fast_int8=False, source="the board tells of no GPU"
        )
    return capability_of(facts.gpu)


def _written(
    path: Path,
    given: onnx.ModelProto,
    plan: precision.PrecisionPlan,
    facts: BoardFacts,
    *,
    folder: Path,
    free_bytes: int | None,
) -> Prepared:
    target = path
    if plan.model is not given:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / path.name
        if target.resolve() == path.resolve():
            target = folder / f"{path.stem}.tensorrt.onnx"
        draft = target.with_suffix(".draft")
        draft.write_bytes(plan.model.SerializeToString(deterministic=True))
        draft.replace(target)
    warnings = checks.require(target, facts)
    found = memory.require(
        plan.model, facts, free_bytes=free_bytes, workspace_bytes=plan.settings.workspace_bytes
    )
    notes = (*plan.notes, *warnings)
    if found.status == "tight":
        notes = (*notes, found.message)
    settings = plan.settings
    if (
        settings.workspace_bytes is None
        and found.free_bytes is not None
        and found.workspace_bytes < memory.WORKSPACE_BYTES
    ):
        # Only then: another limit is another engine, which is not in the board's cache.
        settings = replace(settings, workspace_bytes=found.workspace_bytes)
    return Prepared(path=target, build=settings, notes=notes)
