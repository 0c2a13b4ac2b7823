"""What building an engine takes of a board's memory, estimated before the network is sent.

Known from three whole logs of trtexec 8.0.1 on a Jetson Nano: builds of small networks ended with
881 to 1,007 MiB more in use than before CUDA was loaded, of which TensorRT's allocators held 29 to
195; the libraries (CUDA, cuBLAS, cuDNN, TensorRT) are the rest, 812 to 852. Other versions and
chips are not proven by a log of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from harness.errors import ConditionError
from harness.records import BoardFacts
from harness.units import format_size

__all__ = ["BuildMemory", "Preflight", "estimate", "preflight", "require"]

MIB = 1 << 20
LIBRARIES_BYTES = 852 * MIB
# The parser's copy, the builder's, and the engine that is serialized while both are there.
WEIGHT_COPIES = 3
# Inputs and outputs of the layer that is being timed are allocated beside those of the network.
ACTIVATION_COPIES = 2
# The agent's limit where nobody says otherwise.
WORKSPACE_BYTES = 256 * MIB
# The rest of the system needs some, or the board swaps while it times tactics.
MARGIN_BYTES = 128 * MIB
LEAST_WORKSPACE_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildMemory:
    """What a build takes, in bytes, part by part; activations are the largest set alive at once."""

    libraries_bytes: int
    weights_bytes: int
    activations_bytes: int
    workspace_bytes: int

    @property
    def buffers_bytes(self) -> int:
        """What the GPU must hold: it cannot be swapped out."""
        return (
            WEIGHT_COPIES * self.weights_bytes
            + ACTIVATION_COPIES * self.activations_bytes
            + self.workspace_bytes
        )

    @property
    def total_bytes(self) -> int:
        """All of it, libraries included."""
        return self.libraries_bytes + self.buffers_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Whether a build will fit: ``tight`` may swap or be killed, ``impossible`` cannot succeed.

    ``workspace_bytes`` is the limit to build with: the one asked for, else what memory leaves.
    """

    status: Literal["fits", "tight", "impossible", "unknown"]
    needed: BuildMemory
    free_bytes: int | None
    workspace_bytes: int
    message: str


def estimate(model: onnx.ModelProto, *, workspace_bytes: int = WORKSPACE_BYTES) -> BuildMemory:
    """The memory that building ``model`` takes; free dimensions count as one."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    weights = sum(_tensor_bytes(item.data_type, item.dims) for item in graph.initializer)
    return BuildMemory(
        libraries_bytes=LIBRARIES_BYTES,
        weights_bytes=weights,
        activations_bytes=_most_alive(graph),
        workspace_bytes=workspace_bytes,
    )


def _tensor_bytes(kind: int, dims: object) -> int:
    try:
        size = int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError:
        size = 4
    return size * int(np.prod(np.array(dims, dtype=np.int64)))


def _most_alive(graph: onnx.GraphProto) -> int:
    """Bytes of the most activations that are alive at once, in the order of the graph."""
    sizes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type != TensorProto.UNDEFINED:
            dims = [dim.dim_value or 1 for dim in tensor.shape.dim]
            sizes[value.name] = _tensor_bytes(tensor.elem_type, dims)
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    for output in graph.output:
        last[output.name] = len(graph.node)
    alive = sum(sizes.get(value.name, 0) for value in graph.input)
    most = alive
    for index, node in enumerate(graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        most = max(most, alive)
        done = {name for name in (*node.input, *node.output) if last.get(name, -1) <= index}
        alive -= sum(sizes.get(name, 0) for name in done)
    return most


def preflight(
    model: onnx.ModelProto,
    *,
    free_bytes: int | None,
    total_bytes: int,
    workspace_bytes: int | None = None,
) -> Preflight:
    """Whether a board with so much memory, free and in all, can build ``model``.

    For boards whose GPU shares the CPU's memory. Without ``workspace_bytes`` it is the agent's 256
    MiB, or the largest power of two that leaves a margin, 8 MiB at least.
    """
    bare = estimate(model, workspace_bytes=0)
    limit = workspace_bytes
    if limit is None and free_bytes is None:
        limit = WORKSPACE_BYTES
    if limit is None:
        left = (free_bytes or 0) - MARGIN_BYTES - bare.total_bytes
        limit = LEAST_WORKSPACE_BYTES
        while limit * 2 <= min(left, WORKSPACE_BYTES):
            limit *= 2
    needed = estimate(model, workspace_bytes=limit)
    parts = (
        f"a build takes about {format_size(needed.total_bytes)} "
        f"({format_size(needed.libraries_bytes)} of libraries, {format_size(needed.buffers_bytes)} "
        "of weights, activations and workspace)"
    )
    cure = (
        "stop programs there (a desktop takes several hundred MB), add swap, or limit the "
        "workspace (--workspace MIB)"
    )
    if needed.buffers_bytes > total_bytes:
        status: Literal["fits", "tight", "impossible", "unknown"] = "impossible"
        message = (
            f"{parts}, and the board has {format_size(total_bytes)} in all, which swap does not "
            "extend for the GPU; build a smaller network or batch"
        )
    elif free_bytes is None:
        status, message = "unknown", f"{parts}; how much memory is free the board does not tell"
    elif needed.total_bytes > free_bytes:
        status = "tight"
        message = f"{parts}, and {format_size(free_bytes)} are free: it may be killed; {cure}"
    else:
        status, message = "fits", f"{parts}; {format_size(free_bytes)} are free"
    return Preflight(
        status=status,
        needed=needed,
        free_bytes=free_bytes,
        workspace_bytes=limit,
        message=message,
    )


def require(
    model: onnx.ModelProto,
    facts: BoardFacts,
    *,
    free_bytes: int | None,
    workspace_bytes: int | None = None,
) -> Preflight:
    """The preflight on a board; ConditionError where a build is impossible there.

    A GPU with memory of its own is looked at by what it says is free.
    """
    gpu = facts.gpu
    own = gpu is not None and gpu.total_bytes is not None and not _shares(facts)
    if own and gpu is not None and gpu.total_bytes is not None:
        found = preflight(
            model,
            free_bytes=gpu.free_bytes,
            total_bytes=gpu.total_bytes,
            workspace_bytes=workspace_bytes,
        )
    else:
        found = preflight(
            model,
            free_bytes=free_bytes,
            total_bytes=facts.memory_bytes,
            workspace_bytes=workspace_bytes,
        )
    if found.status == "impossible":
        raise ConditionError(f"board {facts.board}: {found.message}")
    return found


def _shares(facts: BoardFacts) -> bool:
    """Whether the GPU's memory is the CPU's: Tegra names the same size for both, nearly."""
    if facts.gpu is None or facts.gpu.total_bytes is None:
        return True
    return facts.machine == "aarch64" and facts.gpu.total_bytes <= 1.1 * facts.memory_bytes
