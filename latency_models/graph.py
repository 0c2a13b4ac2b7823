"""ONNX -> kernels, and the kernels of a variant without building it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from latency_models.errors import UnsupportedGraph
from latency_models.fusion_rules import GPU_RUNTIMES, GpuRuntime
from latency_models.gpu_lowering import lower_gpu
from latency_models.kernels import Dims, Kernel, Work, work
from latency_models.lowering import RUNTIMES as CPU_RUNTIMES
from latency_models.lowering import Runtime, lower
from latency_models.matching import ProfileRow, match
from latency_models.operators import QDQ, Op
from latency_models.parse import load, parse
from latency_models.patterns import without_repeats
from latency_models.propagation import propagate
from latency_models.quantization import (
    QUANTIZABLE,
    carriers,
    free_output,
    insert_pairs,
    insert_pairs_at_inputs,
    keep_float,
    read_float,
)

__all__ = [
    "RUNTIMES",
    "Dims",
    "Kernel",
    "ProfileRow",
    "Work",
    "base_of",
    "is_gpu",
    "lowered",
    "match",
    "operators",
    "precisions_of",
    "read",
    "rewrite",
    "work",
]

_Path = str | Path

# Every runtime whose fusion rules are known, by name.
RUNTIMES: dict[str, Runtime | GpuRuntime] = {**CPU_RUNTIMES, **GPU_RUNTIMES}


def is_gpu(runtime: str) -> bool:
    """Whether the rules of that name are a GPU's."""
    return isinstance(_runtime(runtime), GpuRuntime)


def precisions_of(runtime: str) -> tuple[str, ...]:
    """The precisions that ``runtime`` has kernels for, the exact one first."""
    return ("fp32", "fp16", "int8") if is_gpu(runtime) else ("fp32", "int8")


def base_of(precision: str) -> str:
    """What of a network in ``precision`` is not told by its Q/DQ pairs: fp16, else fp32."""
    return "fp16" if precision == "fp16" else "fp32"


def read(
    model: ModelProto | _Path,
    *,
    runtime: str = "onnxruntime-cpu",
    precision: str = "fp32",
    layers: Mapping[str, str] | None = None,
    batch: int | None = None,
) -> tuple[Kernel, ...]:
    """The kernels that ``runtime`` executes for ``model``, in a possible order of execution.

    The ONNX may lack its weights. ``runtime`` is a key of ``RUNTIMES``.
    ``precision`` is that of the whole network, ``fp32`` or, on a GPU, ``fp16``; what stands
    between Q/DQ pairs is int8 all the same. ``layers`` gives nodes a precision of their own, where
    a GPU's builder is told it beside the file. ``batch`` takes the place of a free batch (without
    it, 1). ``UnknownOperator`` and ``UnsupportedGraph`` say what to do.
    """
    target = _runtime(runtime)
    _check_precision(target, "the network", precision, ("fp32", "fp16"))
    ops = without_repeats(parse(load(model), batch=batch))
    _check(ops, {}, layers or {}, target)
    if isinstance(target, GpuRuntime):
        return lower_gpu(ops, runtime=target, base=precision, precision=layers)
    return lower(ops, runtime=target)


def rewrite(
    kernels: Sequence[Kernel],
    *,
    out_channels: Mapping[str, int] | None = None,
    precision: Mapping[str, str] | str | None = None,
    followers: Literal["carriers", "all"] = "carriers",
    runtime: str = "onnxruntime-cpu",
) -> tuple[Kernel, ...]:
    """The kernels of a variant of an fp32 network, without building it.

    ``out_channels`` gives convolutions and matrix products new output channels; everything
    downstream follows. ``precision`` is ``fp32``, ``int8`` or, on a GPU, ``fp16``, by name, or one
    of the floating ones for the whole network; whatever has weights and is not named stays fp32,
    and where GPU kernels of two precisions meet, reformats stand. What becomes of the rest is up to
    the exporter. With ``carriers``, boardfit's,
    operators between integer ones are quantized, a Gemm at the end gives floats, and layers that
    are to stay float do. With ``all``, ``quantize_static``'s given ``nodes_to_exclude``, everything
    that can be is quantized as soon as anything is, and the runtime may quantize a float layer
    between quantized tensors by itself. Both put Q/DQ pairs around what they quantize, with
    asymmetric uint8 activations, but for TensorRT, where ``carriers`` puts symmetric ones in front
    of integer layers, and on one summand of additions, which convolutions take up with ReLU.

    Names are those of kernels, which stand for the kernel's leading operator, or of any ONNX node
    inside a kernel (the Add that is fused into a convolution, say). ``UnsupportedGraph`` for a name
    that is not there, a precision that the runtime has not, or widths that do not fit.
    """
    target = _runtime(runtime)
    base = precision if isinstance(precision, str) else "fp32"
    _check_precision(target, "the network", base, ("fp32", "fp16"))
    channels = dict(out_channels or {})
    precisions = {} if precision is None or isinstance(precision, str) else dict(precision)
    ops = operators(kernels)
    _check(ops, channels, precisions, target)
    return lowered(
        ops,
        out_channels=channels,
        precision=precisions,
        base=base,
        followers=followers,
        runtime=target,
    )


def operators(kernels: Sequence[Kernel]) -> tuple[Op, ...]:
    """The operators of a network's kernels, as they stood in the network."""
    return _ordered([op for kernel in kernels for op in kernel.ops])


def lowered(
    ops: Sequence[Op],
    *,
    out_channels: Mapping[str, int],
    precision: Mapping[str, str],
    runtime: Runtime | GpuRuntime,
    base: str = "fp32",
    followers: Literal["carriers", "all"] = "carriers",
) -> tuple[Kernel, ...]:
    """``rewrite`` of ``operators`` at hand, for names and precisions that are known to fit.

    For many variants of one network. A ``Size`` among the widths shows up in the kernels' shapes.
    """
    ops, target, precisions = propagate(ops, out_channels), runtime, precision
    chosen = {name for name, wanted in precisions.items() if wanted == "int8"}
    if chosen:
        if any(op.op == QDQ for op in ops):
            raise UnsupportedGraph(
                "these kernels are of a quantized network already: rewrite those of the fp32 one"
            )
        if followers == "all":
            rest = {op.name for op in ops if op.op in QUANTIZABLE and op.weight is None}
            ops = insert_pairs(ops, chosen | (rest - set(precisions)))
        elif isinstance(target, GpuRuntime) and target.integers:
            layers = {op.name for op in ops if op.name in chosen and op.kind in ("conv", "gemm")}
            carried = (carriers(ops, chosen) - set(precisions)) | (chosen - layers)
            ops = insert_pairs_at_inputs(ops, layers, carried)
        else:
            chosen |= carriers(ops, chosen) - set(precisions)
            ops = read_float(insert_pairs(ops, chosen, shares=False), chosen)
            ops = keep_float(free_output(ops))
    if isinstance(target, GpuRuntime):
        return lower_gpu(ops, runtime=target, base=base, precision=precisions)
    return lower(ops, runtime=target)


def _check(
    ops: Sequence[Op],
    channels: Mapping[str, int],
    precisions: Mapping[str, str],
    runtime: Runtime | GpuRuntime,
) -> None:
    known = {op.name for op in ops}
    missing = sorted({*channels, *precisions} - known)
    if missing:
        raise UnsupportedGraph(
            f"no kernel or node is called {missing[0]!r}: names are those of the ONNX nodes, for "
            f"example {sorted(known)[:3]}"
        )
    for name, wanted in precisions.items():
        _check_precision(runtime, repr(name), wanted, ("fp32", "fp16", "int8"))
    for name, wanted_channels in channels.items():
        if wanted_channels < 1:
            raise UnsupportedGraph(f"{name!r} cannot have {wanted_channels} output channels")


def _check_precision(
    runtime: Runtime | GpuRuntime, what: str, wanted: str, known: tuple[str, ...]
) -> None:
    if isinstance(runtime, Runtime):
        if wanted not in ("fp32", "int8"):
            raise UnsupportedGraph(
                f"precision {wanted!r} of {what}: onnxruntime on a CPU has kernels for fp32 and "
                "int8 only"
            )
        known = tuple(name for name in known if name != "fp16")
    if wanted not in known:
        raise UnsupportedGraph(
            f"precision {wanted!r} of {what}: choose one of {', '.join(known)}"
            + ("; int8 comes from Q/DQ pairs in the network" if wanted == "int8" else "")
        )


def _ordered(ops: Sequence[Op]) -> tuple[Op, ...]:
    """``ops`` as they stood in the network, so that the same of them are fused again.

    Every tensor is written before it is read.
    """
    producer = {t: op for op in ops for t in op.outputs}
    placed: dict[str, Op] = {}
    for op in sorted(ops, key=lambda op: op.place):
        stack = [op]
        while stack:
            top = stack[-1]
            waiting = [
                producer[t] for t in top.inputs if t in producer and producer[t].name not in placed
            ]
            if waiting:
                stack.extend(waiting)
                continue
            placed.setdefault(top.name, top)
            stack.pop()
    return tuple(dataclasses.replace(op) for op in placed.values())


def _runtime(name: str) -> Runtime | GpuRuntime:
    if name not in RUNTIMES:
        raise UnsupportedGraph(
            f"no fusion rules for runtime {name!r}: there are {', '.join(sorted(RUNTIMES))}"
        )
    return RUNTIMES[name]
