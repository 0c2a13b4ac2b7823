"""How TensorRT is to build and run a network, and what a build gave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from harness.records.base import require_positive

FLAGS = ("fp16", "int8", "tf32")
Constraints = Literal["none", "prefer", "obey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPrecision:
    """The precision in which one ONNX node is to compute."""

    node: str
    precision: str

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "fp16", "int8"):
            raise ValueError(f"{self.node}: precision {self.precision!r} is no engine's")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How TensorRT builds an engine from an ONNX file, and how its calls are made.

    ``flags`` are what the builder may use beside fp32 where typing is weak. ``layers`` bind single
    nodes to a precision, as firmly as ``constraints`` says (trtexec's ``--precisionConstraints``).
    ``strongly_typed``: the file's own types decide, and there are no flags. ``workspace_bytes``
    None leaves the limit to the board. ``rebuild`` counts builds of the same file that are not to
    come from the cache. Of the rest, ``cuda_graph`` replays a captured graph, ``spin_wait`` waits
    in a busy loop, and without ``transfers`` nothing is copied to the GPU and back.
    """

    flags: tuple[str, ...] = ()
    layers: tuple[LayerPrecision, ...] = ()
    constraints: Constraints = "none"
    strongly_typed: bool = False
    workspace_bytes: int | None = None
    rebuild: int = 0
    cuda_graph: bool = False
    spin_wait: bool = False
    transfers: bool = True

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.flags) - set(FLAGS)):
            raise ValueError(f"builder flags {', '.join(unknown)} are none of {', '.join(FLAGS)}")
        if self.strongly_typed and ({"fp16", "int8"} & set(self.flags) or self.layers):
            raise ValueError("a strongly typed network takes its precisions from the file alone")
        if self.layers and self.constraints == "none":
            raise ValueError("precisions of single layers need constraints: prefer or obey")
        if self.workspace_bytes is not None:
            require_positive(workspace_bytes=self.workspace_bytes)
        if self.rebuild < 0:
            raise ValueError(f"a rebuild's number cannot be negative, got {self.rebuild}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallParts:
    """What the samples of a GPU's measurement are made of, one value a sample, in seconds.

    ``h2d_s`` and ``d2h_s`` are the copies, ``compute_s`` the GPU's work between them, all three by
    the GPU's events; ``enqueue_s`` is the host's time to hand the work over. trtexec's terms.
    """

    h2d_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    d2h_s: tuple[float, ...]
    enqueue_s: tuple[float, ...]

    def __post_init__(self) -> None:
        parts = (self.h2d_s, self.compute_s, self.d2h_s, self.enqueue_s)
        if len({len(part) for part in parts}) != 1:
            raise ValueError("the parts of calls need one value a call each")
        if not all(math.isfinite(value) and value >= 0 for part in parts for value in part):
            raise ValueError("the parts of calls must be finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """An engine as it was built on the board.

    ``build_s`` is None where the engine came from the cache of an earlier build. ``sha256`` is the
    serialized engine's; ``layers`` counts what it executes, as far as the version tells.
    """

    sha256: str
    size_bytes: int
    build_s: float | None = None
    cached: bool = False
    layers: int | None = None
    workspace_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildAttempt:
    """One try to build, with what workspace and memory, and how it ended."""

    workspace_bytes: int
    free_memory_bytes: int | None
    ended: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine with how it came about: settings, version, tries, and what TensorRT said.

    ``without_precision`` are nodes that were bound to a precision and took none.
    """

    engine: EngineFacts
    build: BuildSettings
    runtime_version: str
    attempts: tuple[BuildAttempt, ...] = ()
    log: tuple[str, ...] = ()
    without_precision: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """The GPU that the runtime uses; None is what the board does not tell.

    ``compute`` is its compute capability ("5.3"); ``fast_fp16`` and ``fast_int8`` are the
    runtime's own word, not concluded from it.
    """

    name: str
    compute: str | None = None
    fast_fp16: bool | None = None
    fast_int8: bool | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
