"""What of a network lies in memory while it runs: live activations, the peak, and memory access.

A runtime that knows a network's sizes gives every tensor its place before it runs. What it needs
follows from the order in which kernels run, from when each tensor is read last, and from the
kernels that write their result where their input lay. Weights and the network's inputs are not
counted: they are there before and after.

Source: onnxruntime 1.31, ``core/framework/allocation_planner.cc`` (buffers taken over and reused),
``core/framework/mem_pattern_planner.h`` (offsets), ``core/graph/graph_viewer.cc`` (order), and the
``MayInplace`` and ``Alias`` of the kernels' registrations in ``core/providers/cpu``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from latency_models.arena import Arena, rounded
from latency_models.kernels import BYTES, Kernel, work
from latency_models.operators import VIEWS, Shape
from latency_models.scratch import scratch

__all__ = ["Access", "Liveness", "liveness"]

# Where a tensor's memory may begin (core/framework/allocator.h, kAllocAlignment).
ALIGNMENT = 64
# Kernels that write where their first input lay, if nobody needs that any more; binary ones where
# either lay, if it is as large.
_OVER_FIRST = frozenset(["elementwise", "transcendental", "softmax"])
_OVER_EITHER = frozenset(["binary", "binary_broadcast"])
_BINARY = frozenset(["Add", "Sub", "Mul", "Div"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one kernel touches, in bytes, and what is alive while it runs.

    ``weight_bytes`` and ``read_bytes`` are read, ``written_bytes`` are written, each tensor once,
    whatever caches do; a view touches nothing. ``live_bytes`` are the activations that must be
    there: what the kernel reads and writes, and what somebody will still read. ``scratch_bytes``
    the kernel takes for itself while it runs (``latency_models.scratch``).
    """

    kernel: str
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    live_bytes: int
    scratch_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """A network's memory access, kernel by kernel as they run, and the memory it needs.

    ``peak_bytes`` are the most that is alive at once, at the kernel ``peak_at``. ``arena_bytes``
    is the memory that holds every tensor at a place given to it before the run: as much as the peak
    or more, where the gaps between living tensors are too small for the next. ``grown_bytes`` is
    what an arena comes to that is asked for one tensor after the other, and extended by as much
    each time it has no gap: a network whose tensors grow leaves it with gaps that are too small.
    """

    accesses: tuple[Access, ...]
    peak_bytes: int
    peak_at: str
    arena_bytes: int
    grown_bytes: int

    @property
    def weight_bytes(self) -> int:
        """The weights that are read in one call."""
        return sum(access.weight_bytes for access in self.accesses)

    @property
    def moved_bytes(self) -> int:
        """All that is read and written in one call, weights included."""
        return sum(a.weight_bytes + a.read_bytes + a.written_bytes for a in self.accesses)


@dataclass(frozen=True, slots=True)
class _Value:
    """One tensor in one layout: its size in memory, and its shape as the runtime compares it."""

    shape: tuple[int, ...]
    width: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.width


@dataclass(slots=True, eq=False)
class _Step:
    """A kernel with the tensors that it reads and writes, each in the layout it does so in."""

    kernel: Kernel
    reads: list[str]
    writes: list[str]


@dataclass(slots=True, eq=False)
class _Buffer:
    """Memory of one size, from the step that first writes it to the last that reads it."""

    value: _Value
    first: int
    last: int
    output: bool = False
    members: list[str] = field(default_factory=list)


def liveness(
    kernels: Sequence[Kernel], *, block: int = 0, outputs: Sequence[str] | None = None
) -> Liveness:
    """The memory of one call of the network of ``kernels`` (``graph.read``), in bytes.

    ``block`` is the channels in a block of the runtime's fp32 layout (``Runtime.block``), to which
    channels in blocks are rounded up. ``outputs`` are the tensors that the network gives; without
    it, those that nobody reads. They stay alive to the end.
    """
    plan = _Plan(kernels, block, outputs)
    live = plan.live()
    accesses = []
    for step, bytes_live in zip(plan.steps, live, strict=True):
        done = work(step.kernel)
        accesses.append(
            Access(
                kernel=step.kernel.name,
                weight_bytes=done.bytes_weights,
                read_bytes=done.bytes_in,
                written_bytes=done.bytes_out,
                live_bytes=bytes_live,
                scratch_bytes=sum(scratch(step.kernel)),
            )
        )
    peak = max(range(len(live)), key=live.__getitem__, default=None)
    return Liveness(
        accesses=tuple(accesses),
        peak_bytes=0 if peak is None else live[peak],
        peak_at="" if peak is None else plan.steps[peak].kernel.name,
        arena_bytes=plan.planned(),
        grown_bytes=plan.grown(),
    )


class _Plan:
    """The order of the kernels, their tensors, and the buffers that hold them."""

    def __init__(
        self, kernels: Sequence[Kernel], block: int, outputs: Sequence[str] | None
    ) -> None:
        self.block = block
        self.values: dict[str, _Value] = {}
        self.steps = _ordered(self._steps(kernels))
        self.readers = Counter(name for step in self.steps for name in dict.fromkeys(step.reads))
        made = {name for step in self.steps for name in step.writes}
        self.outputs = {
            name
            for name in made
            if (not self.readers[name] if outputs is None else _tensor(name) in outputs)
        }
        self.buffers, self.buffer_of = self._buffers()

    # -- tensors ---------------------------------------------------------------------------------

    def _steps(self, kernels: Sequence[Kernel]) -> list[_Step]:
        """Every kernel with the tensors that it reads and writes, by name and layout."""
        wanted = {tensor for kernel in kernels for tensor in kernel.inputs}
        made = {kernel.output for kernel in kernels}
        steps = []
        for kernel in kernels:
            writes = [self._write(kernel, kernel.output, kernel.out_shape)]
            for op in kernel.ops:
                for tensor, shape in zip(op.outputs, op.out_shapes, strict=True):
                    if tensor in wanted and tensor not in made:
                        writes.append(self._write(kernel, tensor, shape))
            reads = [_named(t, _form_read(kernel, i)) for i, t in enumerate(kernel.inputs)]
            steps.append(_Step(kernel, reads, list(dict.fromkeys(writes))))
        for step in steps:
            # What nobody wrote in any layout is the network's input.
            found = [self._any(name) for name in step.reads]
            step.reads = [name for name in found if name]
        return steps

    def _any(self, name: str) -> str:
        """``name``, or the tensor in another layout that it was written in; empty for none."""
        tensor = _tensor(name)
        forms = (name, tensor, f"{tensor}:nhwc", f"{tensor}:blocked")
        return next((form for form in forms if form in self.values), "")

    def _write(self, kernel: Kernel, tensor: str, shape: Shape) -> str:
        name = _named(tensor, kernel.layout if len(shape) == 4 else "nchw")
        if kernel.layout == "blocked" and len(shape) == 4 and self.block:
            channels = -(-shape[1] // self.block) * self.block
            shape = (shape[0], channels, *shape[2:])
        elif kernel.layout == "nhwc" and len(shape) == 4:
            shape = (shape[0], shape[2], shape[3], shape[1])
        width = 4 if kernel.kind == "dequantize" else BYTES[kernel.writes or kernel.precision]
        self.values[name] = _Value(tuple(int(size) for size in shape), width)
        return name

    # -- buffers ---------------------------------------------------------------------------------

    def _buffers(self) -> tuple[list[_Buffer], dict[str, _Buffer]]:
        """Which tensors share memory: taken over from an input, or free and of the same shape."""
        left = Counter(self.readers)
        buffers: list[_Buffer] = []
        buffer_of: dict[str, _Buffer] = {}
        uses: Counter[int] = Counter()
        free: list[_Buffer] = []
        for index, step in enumerate(self.steps):
            for name in step.writes:
                buffer = self._taken_over(step, name, buffer_of, uses)
                if buffer is None and name not in self.outputs:
                    buffer = next((b for b in free if b.value == self.values[name]), None)
                    if buffer is not None:
                        free.remove(buffer)
                if buffer is None:
                    buffer = _Buffer(self.values[name], index, index, name in self.outputs)
                    buffers.append(buffer)
                buffer.members.append(name)
                buffer.last = max(buffer.last, index)
                buffer_of[name] = buffer
                uses[id(buffer)] += left[name]
            for name in dict.fromkeys(step.reads):
                buffer = buffer_of[name]
                buffer.last = max(buffer.last, index)
                uses[id(buffer)] -= 1
                if not uses[id(buffer)] and not buffer.output:
                    free.insert(0, buffer)
        return buffers, buffer_of

    def _taken_over(
        self, step: _Step, name: str, buffer_of: dict[str, _Buffer], uses: Counter[int]
    ) -> _Buffer | None:
        """The buffer of an input that the kernel writes its result over, if it may."""
        if name in self.outputs or not step.reads:
            return None
        kernel = step.kernel
        if kernel.ops and kernel.ops[0].op in VIEWS:
            return buffer_of[step.reads[0]]
        for source in _overwritten(step):
            buffer = buffer_of[source]
            alone = uses[id(buffer)] == 1 and not buffer.output
            if alone and self.values[source] == self.values[name]:
                return buffer
        return None

    # -- memory ----------------------------------------------------------------------------------

    def live(self) -> list[int]:
        """Bytes alive at each step: of each buffer while a tensor in it is still to be read."""
        last_read: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            for name in step.reads:
                last_read[name] = index
        made_at = {name: i for i, step in enumerate(self.steps) for name in step.writes}
        end = len(self.steps) - 1
        alive = [0] * len(self.steps)
        for buffer in self.buffers:
            held: set[int] = set()
            for name in buffer.members:
                made = made_at[name]
                until = end if name in self.outputs else last_read.get(name, made)
                held.update(range(made, until + 1))
            for index in held:
                alive[index] += buffer.value.size
        return alive

    def planned(self) -> int:
        """One block in which each buffer has its place, and the outputs, which stand apart.

        A buffer gets the smallest gap that it fits into when it is first used, or the end
        (``MemPatternPlanner::TraceAllocation``).
        """
        placed: list[tuple[int, int, int]] = []
        peak = 0
        for buffer in self.buffers:
            if buffer.output:
                continue
            size = rounded(buffer.value.size, ALIGNMENT)
            placed = sorted(one for one in placed if one[2] >= buffer.first)
            offset, waste, end = None, math.inf, 0
            for start, stop, _ in placed:
                gap = start - end
                if size <= gap and gap - size < waste:
                    offset, waste = end, gap - size
                end = max(end, stop)
            offset = end if offset is None else offset
            placed.append((offset, offset + size, buffer.last))
            peak = max(peak, offset + size)
        return peak + sum(b.value.size for b in self.buffers if b.output)

    def grown(self) -> int:
        """What an arena comes to that is asked for one buffer after the other."""
        arena = Arena()
        begun: dict[int, list[_Buffer]] = {}
        ended: dict[int, list[_Buffer]] = {}
        for buffer in self.buffers:
            begun.setdefault(buffer.first, []).append(buffer)
            if not buffer.output:
                ended.setdefault(buffer.last, []).append(buffer)
        for index, step in enumerate(self.steps):
            for buffer in begun.get(index, ()):
                arena.take(buffer, buffer.value.size)
            own = scratch(step.kernel)
            for part, size in enumerate(own):
                arena.take(("scratch", part), size)
            for part in reversed(range(len(own))):
                arena.give_back(("scratch", part))
            for buffer in ended.get(index, ()):
                arena.give_back(buffer)
        return arena.total


def _overwritten(step: _Step) -> list[str]:
    """The inputs that the step's kernel may write over, the preferred first."""
    kernel = step.kernel
    if kernel.precision == "int8" or kernel.kind == "dequantize":
        return []
    if kernel.kind in _OVER_FIRST:
        return step.reads[:1]
    if kernel.kind in _OVER_EITHER and kernel.ops and kernel.ops[0].op in _BINARY:
        return step.reads[:2]
    if kernel.kind.startswith("conv_") and len(step.reads) > 1:
        return step.reads[1:2]  # the tensor that a convolution adds to its sum
    return []


def _form_read(kernel: Kernel, index: int) -> str:
    """The layout in which ``kernel`` reads its input."""
    if kernel.kind == "reorder_output":
        return "blocked"
    if kernel.kind == "reorder_input":
        return "nchw"
    if kernel.kind == "transpose" and not kernel.nodes:
        return "nhwc" if kernel.layout == "nchw" else "nchw"
    if kernel.layout == "blocked" and kernel.kind == "conv_direct" and index == 0:
        return "nchw"
    return (
        kernel.layout
        if len(kernel.in_shapes[min(index, len(kernel.in_shapes) - 1)]) == 4
        else "nchw"
    )


def _named(tensor: str, layout: str) -> str:
    return tensor if layout == "nchw" else f"{tensor}:{layout}"


def _tensor(name: str) -> str:
    return name.removesuffix(":nhwc").removesuffix(":blocked")


def _ordered(steps: list[_Step]) -> list[_Step]:
    """The steps as onnxruntime runs them: from the ends back, what was made last first."""
    maker = {name: index for index, step in enumerate(steps) for name in step.writes}
    sources = [sorted({maker[n] for n in step.reads if n in maker}) for step in steps]
    read = {index for entering in sources for index in entering}
    stack = [(index, False) for index in range(len(steps)) if index not in read]
    visited: set[int] = set()
    order = []
    while stack:
        index, leaving = stack.pop()
        if leaving:
            order.append(steps[index])
        elif index not in visited:
            visited.add(index)
            stack.append((index, True))
            stack.extend((source, False) for source in sources[index] if source not in visited)
    return order
