"""The kernels that a sweep may choose from: over kinds, sizes, intensities and alignments."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from latency_models import graph
from latency_models.building import SCAFFOLD, Builder
from latency_models.kernels import Kernel, Work
from latency_models.quantization import QUANTIZABLE

__all__ = ["Branch", "Candidate", "candidates"]

# Images of more than this many values, or kernels of more macs, take longer than they tell; the
# runtime's profiler resolves a microsecond, which kernels of fewer macs hardly last.
_MAX_VALUES = 2_000_000
_MAX_MACS = 250_000_000
_MIN_MACS = 100_000
_RATIOS = (1.0, 0.75, 0.5, 0.25)
# Kinds that come along with others and are not chosen: casts, layouts, and what drains a branch.
_ALONG = frozenset(
    [
        "quantize",
        "dequantize",
        "reorder_input",
        "reorder_output",
        "transpose",
        "view",
        "global_pool",
    ]
)


@dataclass(frozen=True, slots=True)
class Branch:
    """A few operators with an input and an output of their own, which ``build`` adds.

    ``near`` says that the reference network has its like.
    """

    name: str
    build: Callable[[Builder], None]
    near: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A branch in one precision: ``kernels`` are what it is there for, ``along`` all else.

    That is casts and reorders, what feeds the branch and what drains it.
    """

    branch: Branch
    precision: str
    kernels: tuple[Work, ...]
    along: tuple[Work, ...]


@dataclass(frozen=True, slots=True, order=True)
class _Conv:
    """The shape of a convolution (``size`` is its input's height); a Gemm has size 0."""

    inputs: int
    outputs: int
    size: int
    window: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def macs(self) -> int:
        rows = max(1, -(-self.size // self.stride)) ** 2
        return rows * self.outputs * self.inputs // self.groups * self.window**2

    @property
    def affordable(self) -> bool:
        values = max(self.inputs, self.outputs) * max(1, self.size) ** 2
        return self.macs <= _MAX_MACS and values <= _MAX_VALUES

    def build(self, b: Builder) -> None:
        if self.size == 0:
            b.output(b.gemm(b.input(1, self.inputs), self.outputs))
            return
        # Images do come from outside; everything deeper was just written by another kernel.
        shape = (1, self.inputs, self.size, self.size)
        x = b.input(*shape) if self.inputs <= 3 else b.image(self.inputs, self.size)
        y = b.conv(x, self.outputs, window=self.window, stride=self.stride, groups=self.groups)
        _drain(b, b.relu(y))


def candidates(
    reference: Sequence[Kernel],
    *,
    precisions: Sequence[str],
    runtime: str = "onnxruntime-cpu",
) -> tuple[Candidate, ...]:
    """Everything that may be measured so that networks like ``reference`` are predicted well.

    A grid of the shapes of common networks, the operators between their convolutions, and the
    reference's own shapes with their pruned widths; in each of ``precisions`` (fp32, int8 and, on a
    GPU, fp16).
    """
    near = [shape for shape in _of_reference(reference) if shape.affordable]
    known = set(near)
    grid = sorted(
        s for s in set(_grid()) - known if s.affordable and (s.macs >= _MIN_MACS or not s.size)
    )
    branches = [Branch(str(s), s.build, near=True) for s in near]
    branches += [Branch(str(s), s.build) for s in grid]
    branches += _operators()
    everything = (c for branch in branches for c in _in_precisions(branch, precisions, runtime))
    # In int8 a Relu runs as a part of the quantization before it, and nothing is left to measure.
    return tuple(c for c in everything if c.kernels)


def _in_precisions(branch: Branch, precisions: Sequence[str], runtime: str) -> Iterator[Candidate]:
    builder = Builder(branch.name, seed=None)
    branch.build(builder)
    exact = graph.read(builder.model(), runtime=runtime)
    for precision in precisions:
        kernels = exact
        if precision == "fp16":
            kernels = graph.rewrite(exact, precision=precision, runtime=runtime)
        elif precision == "int8":
            names = [op.name for k in exact for op in k.ops if op.op in QUANTIZABLE]
            wanted = dict.fromkeys(names, "int8")
            kernels = graph.rewrite(exact, precision=wanted, followers="all", runtime=runtime)
        works = [graph.work(k) for k in kernels]
        along = [w.kind in _ALONG or w.name.startswith(SCAFFOLD) for w in works]
        yield Candidate(
            branch=branch,
            precision=precision,
            kernels=tuple(w for w, beside in zip(works, along, strict=True) if not beside),
            along=tuple(w for w, beside in zip(works, along, strict=True) if beside),
        )


def _of_reference(reference: Sequence[Kernel]) -> list[_Conv]:
    """The shapes of the reference's convolutions and products, and of its pruned widths."""
    found = []
    for kernel in reference:
        if kernel.weight is None or not kernel.kind.startswith(("conv", "gemm")):
            continue
        inputs, outputs, groups = kernel.in_channels, kernel.out_channels, kernel.groups
        size = 0 if kernel.kind == "gemm" else kernel.in_hw[0]
        rest = (size, kernel.window[0], kernel.stride[0])
        for before, after in itertools.product(_RATIOS, repeat=2):
            if groups > 1 and groups == inputs:
                narrow = _narrowed(inputs, before)
                found.append(_Conv(narrow, narrow, *rest, narrow))
            elif groups > 1:
                found.append(_Conv(inputs, outputs, *rest, groups))
            else:
                found.append(_Conv(_narrowed(inputs, before), _narrowed(outputs, after), *rest))
    return list(dict.fromkeys(found))


def _narrowed(channels: int, ratio: float) -> int:
    return max(1, round(channels * ratio / 8) * 8) if channels >= 16 else channels


def _grid() -> Iterator[_Conv]:
    """Shapes over kinds, sizes and intensities; widths that fill the vectors and that do not."""
    for inputs, outputs in itertools.product((16, 40, 64, 128, 256, 512, 1024), repeat=2):
        yield from (_Conv(inputs, outputs, size) for size in (7, 14, 28, 56))
        yield _Conv(inputs, outputs, 1)
    for inputs, outputs in itertools.product((16, 40, 64, 96, 256, 512), repeat=2):
        yield from (_Conv(inputs, outputs, size, 3) for size in (7, 14, 28, 56))
    for inputs, outputs in ((32, 64), (64, 128), (128, 256), (72, 144)):
        for size, window in itertools.product((14, 28, 56), (1, 3)):
            yield _Conv(inputs, outputs, size, window, 2)
    for width, size in itertools.product((16, 32, 48, 64), (14, 28)):
        yield _Conv(width, width, size, 5)
        yield _Conv(width, 2 * width, size, 5, 2)
    # What reads an image, or too few channels to fill a vector.
    for inputs, outputs in itertools.product((1, 3, 8, 12), (16, 40, 64)):
        for size, stride in itertools.product((28, 56, 112), (1, 2)):
            yield _Conv(inputs, outputs, size, 3, stride)
        yield _Conv(inputs, outputs, 112, 7, 2)
    for c, size, window in itertools.product((20, 32, 96, 240, 672), (7, 14, 28, 56, 112), (3, 5)):
        yield from (_Conv(c, c, size, window, stride, c) for stride in (1, 2))
    for c, groups, size in itertools.product((72, 96, 128, 256), (3, 4, 8), (7, 14, 28)):
        if c % groups == 0:
            yield _Conv(c, c, size, 3, 1, groups)
    for inputs, outputs in itertools.product((64, 256, 512, 1280, 2048), (10, 100, 256, 1000)):
        yield _Conv(inputs, outputs, 0)


def _drain(b: Builder, x: str) -> None:
    """End a branch in a few values."""
    b.output(b.flatten(b.global_pool(x)))


def _convolved(b: Builder, c: int, s: int) -> str:
    """What a convolution has just written, in the layout that the runtime keeps it in.

    An operator that reads an image in another layout may take half or thirty times as long (int8
    in onnxruntime 1.31), which no real network sees.
    """
    return b.conv(b.image(24, s), c)


def _excited(b: Builder, c: int, s: int) -> str:
    x = b.silu(b.conv(b.image(c, s), c, window=3, groups=c))
    return b.conv(b.squeeze_excite(x, max(8, c // 4)), 24)


# Everything that is no convolution, behind one where that changes the layout: width and size.
_OPERATORS: dict[str, Callable[[Builder, int, int], str]] = {
    "add": lambda b, c, s: b.binary("Add", b.image(c, s), b.image(c, s)),
    "add two": lambda b, c, s: b.binary("Add", _convolved(b, c, s), _convolved(b, c, s)),
    "rectify": lambda b, c, s: b.relu(b.image(c, s)),
    "silu": lambda b, c, s: b.silu(_convolved(b, c, s)),
    "hard swish": lambda b, c, s: b.hard_swish(_convolved(b, c, s)),
    "mean": lambda b, c, s: b.reduce_mean(b.image(c, s)),
    "excite": lambda b, c, s: b.squeeze_excite(_convolved(b, c, s), max(8, c // 4)),
    "inverted": _excited,
    "max pool": lambda b, c, s: b.pool("MaxPool", _convolved(b, c, s), window=3, stride=2),
    "average pool": lambda b, c, s: b.pool("AveragePool", _convolved(b, c, s), window=2, stride=2),
    "join": lambda b, c, s: b.concat(_convolved(b, c, s), _convolved(b, c, s)),
    "split": lambda b, c, s: b.half(_convolved(b, c, s)),
    "normalise": lambda b, c, s: b.batch_norm(b.image(c, s)),
    "softmax": lambda b, c, s: b.unary("Softmax", b.image(c, s), axis=1),
}


def _operators() -> Iterator[Branch]:
    def drained(b: Builder, *, build: Callable[[Builder, int, int], str], c: int, s: int) -> None:
        _drain(b, build(b, c, s))

    for name, build in _OPERATORS.items():
        for width, size in ((24, 56), (64, 56), (64, 28), (40, 14), (256, 14)):
            place = functools.partial(drained, build=build, c=width, s=size)
            yield Branch(f"{name} {width} x {size}", place)
