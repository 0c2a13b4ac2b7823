"""ONNX -> kernels, and the kernels of a variant without building it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from onnx import ModelProto

from latency_models.errors import UnsupportedGraph
from latency_models.kernels import Dims, Kernel, Work, work
from latency_models.lowering import RUNTIMES, Runtime, lower
from latency_models.matching import ProfileRow, match
from latency_models.operators import QDQ, Op
from latency_models.parse import load, parse
from latency_models.propagation import propagate
from latency_models.quantization import QUANTIZABLE, carriers, free_output, insert_pairs, keep_float

__all__ = ["Dims", "Kernel", "ProfileRow", "Work", "match", "read", "rewrite", "work"]

_Path = str | Path


def read(model: ModelProto | _Path, *, runtime: str = "onnxruntime-cpu") -> tuple[Kernel, ...]:
    """The kernels that ``runtime`` executes for ``model``, in a possible order of execution.

    The ONNX may lack its weights; a free batch counts as 1. ``runtime`` is a key of ``RUNTIMES``.
    ``UnknownOperator`` and ``UnsupportedGraph`` say what to do.
    """
    return lower(parse(load(model)), runtime=_runtime(runtime))


def rewrite(
    kernels: Sequence[Kernel],
    *,
    out_channels: Mapping[str, int] | None = None,
    precision: Mapping[str, str] | None = None,
    followers: Literal["carriers", "all"] = "carriers",
    runtime: str = "onnxruntime-cpu",
) -> tuple[Kernel, ...]:
    """The kernels of a variant of an fp32 network, without building it.

    ``out_channels`` gives convolutions and matrix products new output channels; everything
    downstream follows. ``precision`` is ``fp32`` or ``int8``; whatever has weights and is not named
    stays fp32. What becomes of the rest is up to the exporter. With ``carriers``, boardfit's,
    operators between integer ones are quantized, a Gemm at the end gives floats, and layers that
    are to stay float do. With ``all``, ``quantize_static``'s given ``nodes_to_exclude``, everything
    that can be is quantized as soon as anything is, and the runtime may quantize a float layer
    between quantized tensors by itself. Both put Q/DQ pairs with asymmetric uint8 activations.

    Names are those of kernels, which stand for the kernel's leading operator, or of any ONNX node
    inside a kernel (the Add that is fused into a convolution, say). ``UnsupportedGraph`` for a name
    that is not there, a precision that the runtime has not, or widths that do not fit.
    """
    channels, precisions = dict(out_channels or {}), dict(precision or {})
    ops = tuple(op for kernel in kernels for op in kernel.ops)
    _check(ops, channels, precisions)
    ops = propagate(_ordered(ops), channels)
    chosen = {name for name, wanted in precisions.items() if wanted == "int8"}
    if chosen:
        if any(op.op == QDQ for op in ops):
            raise UnsupportedGraph(
                "these kernels are of a quantized network already: rewrite those of the fp32 one"
            )
        if followers == "all":
            rest = {op.name for op in ops if op.op in QUANTIZABLE and op.weight is None}
            ops = insert_pairs(ops, chosen | (rest - set(precisions)))
        else:
            rest = carriers(ops, chosen) - set(precisions)
            ops = keep_float(free_output(insert_pairs(ops, chosen | rest)))
    return lower(ops, runtime=_runtime(runtime))


def _check(ops: Sequence[Op], channels: Mapping[str, int], precisions: Mapping[str, str]) -> None:
    known = {op.name for op in ops}
    missing = sorted({*channels, *precisions} - known)
    if missing:
        raise UnsupportedGraph(
            f"no kernel or node is called {missing[0]!r}: names are those of the ONNX nodes, for "
            f"example {sorted(known)[:3]}"
        )
    for name, wanted in precisions.items():
        if wanted not in ("fp32", "int8"):
            raise UnsupportedGraph(
                f"precision {wanted!r} of {name!r}: onnxruntime on a CPU has kernels for fp32 and "
                "int8 only"
            )
    for name, wanted_channels in channels.items():
        if wanted_channels < 1:
            raise UnsupportedGraph(f"{name!r} cannot have {wanted_channels} output channels")


def _ordered(ops: Sequence[Op]) -> tuple[Op, ...]:
    """``ops`` so that every tensor is written before it is read (fusion may have moved some)."""
    producer = {t: op for op in ops for t in op.outputs}
    placed: dict[str, Op] = {}
    for op in ops:
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


def _runtime(name: str) -> Runtime:
    if name not in RUNTIMES:
        raise UnsupportedGraph(
            f"no fusion rules for runtime {name!r}: there are {', '.join(sorted(RUNTIMES))}"
        )
    return RUNTIMES[name]
