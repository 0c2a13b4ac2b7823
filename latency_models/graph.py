"""ONNX -> kernels, and the kernels of a variant without building it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from latency_models.errors import UnsupportedGraph
from latency_models.kernels import Dims, Kernel, Work, work
from latency_models.lowering import RUNTIMES, Runtime, lower
from latency_models.operators import QDQ, Op
from latency_models.parse import load, parse
from latency_models.propagation import propagate
from latency_models.quantization import QUANTIZABLE, insert_pairs

__all__ = ["Dims", "Kernel", "Work", "read", "rewrite", "work"]

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
    runtime: str = "onnxruntime-cpu",
) -> tuple[Kernel, ...]:
    """The kernels of a variant of an fp32 network, without building it.

    ``out_channels`` gives convolutions and matrix products new output channels; everything
    downstream follows. ``precision`` is ``fp32`` or ``int8``, and the result is what
    ``onnxruntime.quantization.quantize_static`` (Q/DQ, asymmetric uint8 activations) makes of the
    network with the ``fp32`` ones in ``nodes_to_exclude``: once anything is int8, whatever has no
    weights and is not named is quantized, and whatever has weights and is not named stays fp32.

    Both are keyed by kernel name, which stands for the kernel's leading operator, or by the name
    of any ONNX node inside a kernel (the Add that is fused into a convolution, say).
    ``UnsupportedGraph`` for a name that is not there, a precision that the runtime has not, or
    widths that do not fit.
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
        weightless = {
            op.name
            for op in ops
            if op.op in QUANTIZABLE and op.weight is None and op.name not in precisions
        }
        ops = insert_pairs(ops, chosen | weightless)
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
                producer[t]
                for t in top.inputs
                if t in producer and producer[t].name not in placed
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
