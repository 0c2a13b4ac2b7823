"""What kind of kernel a group of operators runs as on a GPU."""

from __future__ import annotations

import math

from latency_models.fusion_rules import POINTWISE, GpuRuntime, Group
from latency_models.operators import Op, Shape

__all__ = ["kernel_kind"]

# Convolutions of images of fewer channels, the first of a network, have kernels of their own.
_FEW_CHANNELS = 4


def kernel_kind(group: Group, runtime: GpuRuntime) -> str:
    """The kind of kernel that ``group`` runs as: a name of ``KERNEL_KINDS``."""
    head = group.head
    if head.kind == "conv":
        return _conv_kind(head)
    if head.kind == "gemm":
        return "gemm" if head.weight else "matmul"
    if group.op == "LayerNormalization":
        return "normalise"
    if group.op in ("Gelu", "QuickGelu"):
        return "transcendental"
    if group.op in POINTWISE or group.op == "Cast":
        return _pointwise_kind(group)
    if group.op == "BatchNormalization" and runtime.scales:
        return "elementwise"
    if head.kind == "pool":
        return "max_pool" if head.op == "MaxPool" else "average_pool"
    if group.op == "ReduceMean" and runtime.pools_means and _over_image(head):
        return "global_pool"
    return head.kind


def _over_image(op: Op) -> bool:
    return len(op.in_shapes[0]) == 4 and op.axes == (2, 3)


def _conv_kind(op: Op) -> str:
    if op.op == "ConvTranspose":
        return "conv_transpose"
    if op.depthwise:
        return "conv_depthwise"
    if op.groups > 1:
        return "conv_grouped"
    if len(op.in_shapes[0]) == 4 and op.in_shapes[0][1] < _FEW_CHANNELS:
        return "conv_direct"
    window = math.prod(op.window)
    if window == 1:
        return "conv_1x1"
    return "conv_3x3" if window == 9 else "conv_large"


def _pointwise_kind(group: Group) -> str:
    """By what costs most: unlike operands, several operands, a function of each element."""
    constants: list[Shape] = [shape for op in group.ops for shape in op.constant_shapes]
    sizes = {math.prod(shape) for shape in (*group.shapes, *constants)} - {1}
    if len(sizes) > 1:
        return "binary_broadcast"
    if len(group.inputs) > 1:
        return "binary"
    kinds = {op.kind for op in group.ops}
    return "transcendental" if "transcendental" in kinds else "elementwise"
