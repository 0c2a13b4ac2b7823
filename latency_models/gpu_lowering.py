"""Groups -> kernels of GPU runtimes: precisions, merged convolutions and free concatenations.

Tensors are NCHW throughout. How a GPU library lays them out inside is its own affair, and in the
times that were measured; what shows is the ``reformat`` where two neighbours differ in precision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from latency_models.fusion_rules import POINTWISE, GpuRuntime, Group
from latency_models.gpu_fusion import group_operators
from latency_models.gpu_kinds import kernel_kind
from latency_models.kernels import Kernel
from latency_models.operators import KINDS, QDQ, VIEWS, Op
from latency_models.patterns import Tensors

__all__ = ["lower_gpu"]

# Whose kernels can write into a part of a concatenation. Resize cannot, nor can what only
# rearranges ("Resize__533:0 copy", "Reshape:0 copy" in engines for the Jetson Nano).
_WRITE_IN_PLACE = (
    frozenset(op for op, kind in KINDS.items() if kind in ("conv", "pool", "concat"))
    | POINTWISE
    | {"BatchNormalization"}
)
# Whose kernels can read a part of a concatenation; average pooling cannot ("363 copy" in a
# Fast-SCNN engine for the Jetson Nano, where four of them read what is concatenated, too).
_READ_PARTS = (
    frozenset(op for op, kind in KINDS.items() if kind == "conv")
    | POINTWISE
    | {"BatchNormalization"}
)


def lower_gpu(
    ops: Sequence[Op],
    *,
    runtime: GpuRuntime,
    base: str = "fp32",
    precision: Mapping[str, str] | None = None,
) -> tuple[Kernel, ...]:
    """The kernels that ``runtime`` executes for ``ops``, in a possible order of execution.

    ``base`` is the precision of the network, ``precision`` that of operators by name; operators
    without weights then work on what they get. Q/DQ pairs are int8 whatever it says; what goes
    into the network and comes out of it is fp32.
    """
    return _Lowering(ops, runtime, base, dict(precision or {})).kernels()


class _Lowering:
    def __init__(
        self, ops: Sequence[Op], runtime: GpuRuntime, base: str, precision: Mapping[str, str]
    ) -> None:
        self.runtime, self.base, self.precision = runtime, base, precision
        self.tensors = Tensors(ops)
        self.shapes = self.tensors.shapes
        self.groups = group_operators(ops, self.tensors, runtime=runtime)
        self.writer = {t: group for group in self.groups for t in (group.output, *group.besides)}
        # The precision in which each tensor was written, and those in which it can be read.
        self.written: dict[str, str] = {}
        self.forms: dict[str, set[str]] = {}
        self.emitted: list[Kernel] = []
        self.merged: dict[str, tuple[Group, ...]] = {}
        self.home = _homes(ops)
        # What was copied into which concatenation.
        self.copied: set[tuple[str, str]] = set()

    def kernels(self) -> tuple[Kernel, ...]:
        if self.runtime.merges != "none":
            self.merged = self._siblings()
        for group in self.groups:
            siblings = self.merged.get(group.head.name, (group,))
            if group is siblings[0]:
                self._emit(siblings)
        return tuple(self.emitted)

    def _siblings(self) -> dict[str, tuple[Group, ...]]:
        """By convolution: those that run with it as one (``GpuRuntime.merges``), itself included.

        What they read is there when the first of them runs, for it is the same tensor.
        """
        alike: dict[tuple[object, ...], list[Group]] = {}
        for group in self.groups:
            head = group.head
            plain = group.op == "Conv" and len(group.inputs) == 1 and not group.integer
            if not plain or head.groups != 1 or head.weight is None:
                continue
            key: tuple[object, ...] = (group.inputs[0], head.window, head.stride)
            key += (head.out_shapes[0][2:], self._wanted(group))
            if self.runtime.merges == "1x1":
                if math.prod(head.window) != 1:
                    continue
                key += (group.ops[-1].op if group.stage == "activation" else "",)
            alike.setdefault(key, []).append(group)
        return {
            group.head.name: tuple(groups)
            for groups in alike.values()
            if len(groups) > 1
            for group in groups
        }

    def _wanted(self, group: Group) -> str:
        """The precision in which ``group`` computes."""
        if group.integer:
            return "int8"
        named = [self.precision[op.name] for op in group.ops if op.name in self.precision]
        named = [wanted for wanted in named if wanted != "int8"]
        if named:
            return named[0]
        if group.head.weight is not None or not self.precision:
            return self.base
        halves = all(self.written.get(tensor) == "fp16" for tensor in group.inputs)
        return "fp16" if halves and group.inputs else self.base

    def _emit(self, groups: tuple[Group, ...]) -> None:
        group = groups[0]
        if group.op == QDQ:
            self._emit_pair(group)
        elif group.op == "Concat" and self.runtime.writes_in_place:
            self._emit_concatenation(group)
        elif group.op == "Split" and self.runtime.slices:
            self._emit_slices(group)
        else:
            self._emit_plain(groups)
        for op in [op for member in groups for op in member.ops if op.exported]:
            for tensor in op.outputs:
                if tensor in self.written:
                    self._need(tensor, "fp32")

    # -- precisions ------------------------------------------------------------------------------

    def _write(self, tensor: str, precision: str) -> None:
        self.written[tensor] = precision
        self.forms[tensor] = {precision}

    def _need(self, tensor: str, precision: str) -> None:
        """Emit the kernel that makes ``tensor`` readable in ``precision``, once."""
        forms = self.forms.setdefault(tensor, {self.written.setdefault(tensor, "fp32")})
        if precision in forms:
            return
        forms.add(precision)
        shape = self.shapes[tensor]
        self.emitted.append(
            Kernel(
                name=f"{tensor}/reformat_{precision}",
                kind="reformat",
                nodes=(),
                weight=None,
                inputs=(tensor,),
                output=tensor,
                in_shapes=(shape,),
                out_shape=shape,
                precision=precision,
                reads=self.written[tensor],
            )
        )

    def _emit_pair(self, group: Group) -> None:
        """A pair that no kernel took up: one reformat, or the two operators as they stand."""
        source = group.inputs[0]
        self._need(source, self.written.get(source, "fp32"))
        if self.runtime.integers:
            before = self.written[source]
            kind = "view" if before == "int8" else "reformat"
            self._add(group, kind=kind, precision="int8", reads=before)
            self._write(group.output, "int8")
            return
        quantized = f"{group.output}/quantized"
        self._add(group, kind="quantize", precision="int8", output=quantized)
        shape = self.shapes[group.output]
        self.emitted.append(
            Kernel(
                name=group.head.nodes[-1],
                kind="dequantize",
                nodes=group.head.nodes[-1:],
                weight=None,
                inputs=(quantized,),
                output=group.output,
                in_shapes=(shape,),
                out_shape=shape,
                precision="int8",
            )
        )
        self._write(group.output, "fp32")

    # -- kernels ---------------------------------------------------------------------------------

    def _emit_plain(self, groups: tuple[Group, ...]) -> None:
        group = groups[0]
        precision = self._wanted(group)
        if group.op in VIEWS:
            source = group.inputs[0]
            precision = self.written.get(source, "fp32")
        for tensor in group.inputs:
            self._need(tensor, precision)
        if not self.runtime.integers:
            for elements in group.head.dequantized:
                self._dequantize_constant(group.head, elements)
        whole = group.stage == "quantized" or precision != "int8" or group.op in VIEWS
        written = precision if whole else self.base
        self._add(
            group,
            kind=kernel_kind(group, self.runtime),
            precision=precision,
            writes=None if written == precision else written,
            others=groups[1:],
        )
        for member in groups:
            for tensor in dict.fromkeys((*member.head.outputs, *member.besides, member.output)):
                self._write(tensor, written)

    def _emit_concatenation(self, group: Group) -> None:
        """A view; what was not written in its place already is copied there, tensor by tensor."""
        precision = self._wanted(group)
        home = self.home[group.head.name]
        for index, tensor in enumerate(group.inputs):
            if self._in_place(tensor, group) and precision in self.forms[tensor]:
                continue
            if (tensor, home) in self.copied and group.inputs.count(tensor) == 1:
                continue
            self.copied.add((tensor, home))
            shape = self.shapes[tensor]
            self.emitted.append(
                Kernel(
                    name=f"{group.head.name}/copy_{index}",
                    kind="move",
                    nodes=(),
                    weight=None,
                    inputs=(tensor,),
                    output=group.output,
                    in_shapes=(shape,),
                    out_shape=shape,
                    precision=precision,
                    reads=self._differing(tensor, precision),
                )
            )
        self._add(group, kind="view", precision=precision)
        self._write(group.output, precision)

    def _differing(self, tensor: str, precision: str) -> str | None:
        written = self.written.get(tensor, "fp32")
        return None if written == precision else written

    def _in_place(self, tensor: str, group: Group) -> bool:
        """Whether the kernel that writes ``tensor`` writes it into the concatenation itself.

        Not if it is a part of what merged convolutions write, or if somebody else reads it who
        cannot read a part. Of several concatenations, the last has it in place.
        """
        writer = self.writer.get(tensor)
        channels = group.head.axis in (1, 1 - len(self.shapes[tensor]))
        return (
            writer is not None
            and channels
            and writer.op in _WRITE_IN_PLACE
            and writer.head.name not in self.merged
            and group.inputs.count(tensor) == 1
            and not self.tensors.producer[tensor].exported
            and self._others_read_parts(tensor, group.head)
        )

    def _others_read_parts(self, tensor: str, concat: Op) -> bool:
        readers = self.tensors.consumers[tensor]
        last = [op for op in readers if op.op == "Concat"][-1]
        others = [op for op in readers if op.op != "Concat"]
        here = self.home[last.name] == self.home[concat.name]
        return here and all(op.op in _READ_PARTS for op in others)

    def _emit_slices(self, group: Group) -> None:
        """A kernel for every part of a Split; the first stands for the operator."""
        precision = self._wanted(group)
        source = group.inputs[0]
        self._need(source, precision)
        for index, tensor in enumerate(group.head.outputs):
            shape = self.shapes[tensor]
            self._add(
                dataclasses.replace(group, ops=group.ops if index == 0 else [], shapes=[shape]),
                kind="move",
                precision=precision,
                output=tensor,
                name=group.head.name if index == 0 else f"{group.head.name}/part_{index}",
            )
            self._write(tensor, precision)

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

    def _add(
        self,
        group: Group,
        *,
        kind: str,
        precision: str,
        output: str | None = None,
        name: str | None = None,
        reads: str | None = None,
        writes: str | None = None,
        others: tuple[Group, ...] = (),
    ) -> None:
        head = group.head
        ops = [op for member in (group, *others) for op in member.ops]
        shape = self.shapes[output if output in self.shapes else group.output]
        if others:
            width = sum(self.shapes[member.output][1] for member in (group, *others))
            shape = (shape[0], width, *shape[2:])
        self.emitted.append(
            Kernel(
                name=name or head.name,
                kind=kind,
                nodes=tuple(node for op in ops for node in op.nodes),
                weight=head.weight,
                inputs=tuple(group.inputs),
                output=output or group.output,
                in_shapes=tuple(group.shapes),
                out_shape=shape,
                precision=precision,
                window=head.window,
                stride=head.stride,
                groups=head.groups,
                ops=tuple(ops),
                reads=reads,
                writes=writes,
            )
        )


def _homes(ops: Sequence[Op]) -> dict[str, str]:
    """By concatenation: the one in whose output it lies, itself or a later one that continues it.

    A dense block concatenates the same tensors and one more each time. DenseNets on a Jetson Nano
    show that this costs next to nothing: counting a copy for every tensor predicts up to 2.6 times
    what was measured, counting none 1.3 times (fitted to the other torchvision networks).
    """
    home: dict[str, str] = {}
    by_first: dict[tuple[str, int | None], list[Op]] = {}
    for op in reversed([op for op in ops if op.op == "Concat" and op.inputs]):
        later = by_first.setdefault((op.inputs[0], op.axis), [])
        held = [] if op.exported else later
        width = len(op.inputs)
        host = next((other for other in held if other.inputs[:width] == op.inputs), None)
        home[op.name] = home[host.name] if host is not None else op.name
        later.append(op)
    return home
