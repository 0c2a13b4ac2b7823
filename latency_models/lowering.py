"""Operators -> kernels, as onnxruntime's CPU provider lays their tensors out.

Source: onnxruntime 1.31, ``core/optimizer``: ``nchwc_transformer``, ``nhwc_transformer`` and the
transpose optimizer; checked against the profiles of real networks (``tests/latency_models``).

Three layouts matter. fp32 convolutions work on ``blocked`` channels (NCHWc, 16 to a block with
AVX-512, 8 with AVX2) and int8 convolutions on ``nhwc``; everything else takes ``nchw``. Operators
that do not care stay in the layout that their inputs have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from latency_models.fusion import RUNTIMES, Fusion, Group, Runtime
from latency_models.kernels import Kernel
from latency_models.operators import QDQ, Op

__all__ = ["RUNTIMES", "Runtime", "lower"]

# Fewer input channels than this do not fill a vector: such convolutions are a kind of their own.
FEW_CHANNELS = 16
# These keep whichever of nchw and nhwc their inputs lie in.
_LAYOUT_FREE = frozenset(
    [
        "elementwise",
        "transcendental",
        "binary",
        "concat",
        "reduce",
        "move",
        "resize",
        "pool",
        "global_pool",
    ]
)
_KIND_OF_FUSED = {
    "QuickGelu": "transcendental",
    "Gelu": "transcendental",
    "HardSwish": "elementwise",
}


def lower(ops: Sequence[Op], *, runtime: Runtime) -> tuple[Kernel, ...]:
    """The kernels that ``runtime`` executes for ``ops``, in a possible order of execution."""
    return _Lowering(ops, runtime).kernels()


class _Lowering:
    """Emits the kernels of fused groups, with the reorders, transposes and casts between them."""

    def __init__(self, ops: Sequence[Op], runtime: Runtime) -> None:
        self.ops = ops
        self.block = runtime.block
        self.fusion = Fusion(ops, runtime)
        self.producer, self.consumers = self.fusion.producer, self.fusion.consumers
        self.shapes = dict(self.fusion.shapes)
        # Layouts in which each tensor can be read; integer tensors go by the name of their Q/DQ
        # pair's output.
        self.forms: dict[str, set[str]] = {}
        self.emitted: list[Kernel] = []

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels, each where its last operator stands."""
        groups = self.fusion.group_of
        last = {id(g): g.ops[-1] for g in groups.values()}
        for op in self.ops:
            group = groups.get(op.name)
            if group is not None and last[id(group)] is op:
                self._emit(group)
        return tuple(self.emitted)

    def _emit(self, group: Group) -> None:
        if group.op == QDQ:
            self._emit_pair(group)
        elif self.fusion.integer(group.head):
            self._emit_integer(group)
        else:
            self._emit_float(group)

    def _emit_pair(self, group: Group) -> None:
        source, target = group.inputs[0], group.output
        before = self.producer.get(source)
        host = self.fusion.group_of.get(before.name) if before is not None else None
        if host is None or not self.fusion.integer(host.head):
            layout = self._standing(source) or "nchw"
            if layout == "nchw":
                self._need(source, "nchw", "fp32")
            self._add(group, kind="quantize", precision="int8", layout=layout, inputs=(source,))
            self.forms[target] = {layout}
        if group.head.exported:
            self._dequantize(target, "output", layout="nchw")

    def _standing(self, tensor: str) -> str | None:
        """``nhwc`` if the tensor lies only so."""
        return "nhwc" if self.forms.get(tensor) == {"nhwc"} else None

    def _dequantize(self, tensor: str, reader: str, *, layout: str | None = None) -> str:
        """The name of a float copy of ``tensor``; every reader has its own DequantizeLinear."""
        layout = layout or self._standing(tensor) or "nchw"
        self._need(tensor, layout, "int8")
        shape = self.shapes[tensor]
        copy = f"{tensor}/float/{reader}"
        pair = self.producer[tensor]
        self.emitted.append(
            Kernel(
                name=pair.nodes[-1] if reader == "output" else f"{pair.nodes[-1]}/{reader}",
                kind="dequantize",
                nodes=(pair.nodes[-1],),
                weight=None,
                inputs=(tensor,),
                output=copy,
                in_shapes=(shape,),
                out_shape=shape,
                precision="int8",
                layout=layout,
            )
        )
        self.shapes[copy] = shape
        self.forms[copy] = {layout}
        return copy

    def _emit_integer(self, group: Group) -> None:
        head = group.head
        if head.op in ("Conv", "MaxPool") and len(head.in_shapes[0]) == 4:
            layout = "nhwc"
        else:
            layout = self._free_layout(head.kind, group.inputs)
        for tensor in group.inputs:
            self._need(tensor, layout, "int8")
        kind = self._kind(group, blocked=False, layout=layout, integer=True)
        ends = head.outputs if len(head.outputs) > 1 else (group.output,)
        after = [op for t in ends for op in self.consumers.get(t, ()) if op.op == QDQ]
        group.ops.extend(after)
        written = after[0].outputs[0] if after else group.output
        self._add(group, kind=kind, precision="int8", layout=layout, output=written)
        for tensor in [*head.outputs, group.output, *(pair.outputs[0] for pair in after)]:
            self.forms[tensor] = {layout}

    def _free_layout(self, kind: str, inputs: Sequence[str]) -> str:
        images = [t for t in inputs if len(self.shapes[t]) == 4]
        if kind in _LAYOUT_FREE and images and all("nhwc" in self._forms(t) for t in images):
            return "nhwc"
        return "nchw"

    def _emit_float(self, group: Group) -> None:
        head = group.head
        layout = self._free_layout(head.kind, group.inputs)
        inputs = []
        for tensor in group.inputs:
            if tensor in self.producer and self.producer[tensor].op == QDQ:
                stays = layout if len(self.shapes[tensor]) == 4 else None
                inputs.append(self._dequantize(tensor, head.name, layout=stays))
            else:
                inputs.append(tensor)
        if group.blocked:
            direct = group.op == "Conv" and head.groups == 1 and head.in_shapes[0][1] < self.block
            for index, tensor in enumerate(inputs):
                self._need(tensor, "nchw" if direct and index == 0 else "blocked", "fp32")
            layout = "blocked"
        else:
            for tensor in inputs:
                self._need(tensor, layout, "fp32")
        for elements in head.dequantized:
            self._dequantize_constant(head, elements)
        kind = self._kind(group, blocked=group.blocked, layout=layout, integer=False)
        self._add(group, kind=kind, precision="fp32", layout=layout, inputs=tuple(inputs))
        for tensor in {group.output, *head.outputs}:
            self.forms[tensor] = {layout}
        if group.ops[-1].exported:
            self._need(group.output, "nchw", "fp32")

    def _dequantize_constant(self, head: Op, elements: int) -> None:
        """A constant stored as integers is dequantized in every call (it is not folded)."""
        self.emitted.append(
            Kernel(
                name=f"{head.name}/constant_dequantize",
                kind="dequantize",
                nodes=(),
                weight=None,
                inputs=(),
                output=f"{head.name}/constant",
                in_shapes=((elements,),),
                out_shape=(elements,),
                precision="int8",
            )
        )

    def _forms(self, tensor: str) -> set[str]:
        return self.forms.setdefault(tensor, {"nchw"})

    def _need(self, tensor: str, form: str, precision: str) -> None:
        """Emit the reorder or transpose that makes ``tensor`` readable in ``form``, once."""
        forms = self._forms(tensor)
        shape = self.shapes[tensor]
        if form in forms or len(shape) != 4:
            return
        if form != "nchw":
            # Between blocked and nhwc the runtime goes through nchw.
            self._need(tensor, "nchw", precision)
        if form == "blocked":
            kind = "reorder_input"
        elif form == "nchw" and "blocked" in forms:
            kind = "reorder_output"
        else:
            kind = "transpose"
        self.emitted.append(
            Kernel(
                name=f"{tensor}/{kind}",
                kind=kind,
                nodes=(),
                weight=None,
                inputs=(tensor,),
                output=tensor,
                in_shapes=(shape,),
                out_shape=shape,
                precision=precision,
                layout=form,
            )
        )
        forms.add(form)

    def _kind(self, group: Group, *, blocked: bool, layout: str, integer: bool) -> str:
        head = group.head
        kind = _KIND_OF_FUSED.get(group.op, head.kind)
        if group.op == "LayerNormalization":
            return "normalise"
        if kind == "conv":
            return _conv_kind(head, blocked=blocked, integer=integer, block=self.block)
        if kind == "gemm":
            return "gemm" if head.weight else "matmul"
        if kind == "normalise" and blocked:
            return "conv_depthwise"
        if kind == "binary":
            sizes = {
                math.prod(s) for s in (*head.in_shapes, *head.constant_shapes) if math.prod(s) > 1
            }
            return "binary_broadcast" if len(sizes) > 1 else "binary"
        if kind == "pool":
            return "max_pool" if head.op == "MaxPool" else "average_pool"
        if kind == "reduce" and (layout == "nhwc" or not _trailing(head)):
            return "reduce_strided"
        return kind

    def _add(
        self,
        group: Group,
        *,
        kind: str,
        precision: str,
        layout: str,
        inputs: tuple[str, ...] | None = None,
        output: str | None = None,
    ) -> None:
        head = group.head
        groups = head.groups
        if head.op == "BatchNormalization" and kind == "conv_depthwise":
            groups = head.in_shapes[0][1]
        self.emitted.append(
            Kernel(
                name=head.name,
                kind=kind,
                nodes=tuple(n for op in group.ops for n in op.nodes),
                weight=head.weight,
                inputs=inputs if inputs is not None else tuple(group.inputs),
                output=output or group.output,
                in_shapes=tuple(group.shapes),
                out_shape=self.shapes[group.output],
                precision=precision,
                window=head.window,
                stride=head.stride,
                groups=groups,
                layout=layout,
                ops=tuple(group.ops),
            )
        )


def _trailing(op: Op) -> bool:
    """True if a reduction runs along the last axes, which lie together in memory."""
    rank = len(op.in_shapes[0])
    return op.axes == tuple(range(rank - len(op.axes), rank))


def _conv_kind(op: Op, *, blocked: bool, integer: bool, block: int) -> str:
    if op.op == "ConvTranspose":
        return "conv_transpose"
    if not blocked and not integer and block:
        return "conv_im2col"
    if op.depthwise:
        return "conv_depthwise"
    if op.groups > 1:
        return "conv_grouped"
    if op.in_shapes[0][1] < (block or FEW_CHANNELS):
        return "conv_direct"
    window = math.prod(op.window)
    if window == 1:
        return "conv_1x1"
    return "conv_3x3" if window == 9 else "conv_large"
