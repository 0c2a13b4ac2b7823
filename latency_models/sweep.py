"""What to measure to calibrate a board: kernels packed into a few networks, and whole networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from latency_models import graph, synthetic
from latency_models.building import SCAFFOLD, Builder
from latency_models.errors import CalibrationError
from latency_models.graph import Kernel, ProfileRow, Work

__all__ = ["MAX_KERNELS", "PackedNetwork", "ProbeNetwork", "SweepPlan", "collect", "plan"]

# Kernels chosen for a sweep; the reorders and casts between them are measured along the way.
MAX_KERNELS = 100
# Branches in one packed network: few networks mean few sessions, many would thrash caches more
# than a real network does.
_BRANCHES = 16
# Images of more than this many values, or kernels of more macs, take longer than they tell.
_MAX_VALUES = 2_000_000
_MAX_MACS = 250_000_000
_RATIOS = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedNetwork:
    """Many kernels side by side in one network, each with an input and an output of its own.

    ``expected`` gives the work of every kernel, reorders and casts included, by kernel name, but
    for those that only feed others, as ``runtime`` (a key of ``fusion.RUNTIMES``) executes it.
    """

    name: str
    precision: str
    runtime: str
    model: ModelProto
    expected: Mapping[str, Work]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNetwork:
    """A small whole network, to be measured end to end."""

    name: str
    precision: str
    model: ModelProto


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """All that a calibration measures: ``networks`` by the profiler, ``probes`` end to end.

    ``kernels`` is how many were chosen; reorders, casts and what feeds and drains them come along.
    """

    networks: tuple[PackedNetwork, ...]
    probes: tuple[ProbeNetwork, ...]
    kernels: int


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
    def place(self) -> tuple[float, ...]:
        """Where it stands among its like: logarithms of what its time depends on."""
        depthwise = self.groups == self.inputs
        return (
            8.0 * (self.groups > 1) + 4.0 * depthwise,
            2.0 * math.log2(self.window),
            math.log2(self.inputs),
            math.log2(self.outputs),
            1.5 * math.log2(max(1, self.size // self.stride)),
            # Two that differ in alignment alone are worth measuring both.
            1.0 * (self.outputs % 16 != 0) + 1.0 * (self.inputs % 16 != 0),
        )


# A spread over kinds, sizes, intensities and alignments of common networks.
_GENERIC = (
    [_Conv(*s) for s in ((64, 64, 28, 3), (128, 32, 28, 3), (32, 32, 56, 3), (256, 256, 14, 3))]
    + [_Conv(*s) for s in ((512, 512, 7, 3), (128, 128, 28, 3), (48, 40, 28, 3), (16, 64, 28, 3))]
    + [_Conv(*s) for s in ((64, 128, 28, 3, 2), (64, 16, 14, 3), (96, 96, 7, 3))]
    + [_Conv(*s) for s in ((64, 64, 28), (64, 256, 28), (256, 64, 14), (24, 144, 56), (96, 16, 56))]
    + [_Conv(*s) for s in ((120, 40, 28), (512, 128, 7), (1024, 256, 7), (160, 960, 7))]
    + [_Conv(*s) for s in ((256, 512, 14, 1, 2), (32, 16, 112), (480, 20, 1), (20, 480, 1))]
    + [_Conv(*s) for s in ((3, 32, 112, 3, 2), (3, 64, 112, 7, 2), (1, 32, 28, 3), (3, 16, 112, 3))]
    + [_Conv(*s) for s in ((8, 64, 56), (8, 96, 1), (12, 32, 28, 3))]
    + [_Conv(*s) for s in ((32, 32, 14, 5), (32, 48, 28, 5))]
    + [_Conv(c, c, s, w, t, c) for c, s, w, t in ((32, 112, 3, 1), (96, 56, 3, 2), (144, 28, 3, 1))]
    + [_Conv(c, c, s, w, t, c) for c, s, w, t in ((192, 14, 5, 1), (40, 28, 5, 1), (20, 28, 3, 1))]
    + [_Conv(c, c, s, w, t, c) for c, s, w, t in ((672, 7, 3, 1), (72, 28, 5, 2))]
    + [_Conv(72, 72, 28, 3, 1, 3), _Conv(128, 128, 14, 3, 1, 8), _Conv(96, 96, 28, 3, 1, 4)]
    + [_Conv(512, 1000, 0), _Conv(1280, 256, 0), _Conv(64, 10, 0)]
)


def plan(
    reference: Sequence[Kernel] = (),
    *,
    precisions: Sequence[str] = ("fp32", "int8"),
    runtime: str = "onnxruntime-cpu",
    max_kernels: int = MAX_KERNELS,
    seed: int = 0,
) -> SweepPlan:
    """What to measure so that networks like ``reference`` (their kernels) are predicted well.

    The shapes of the reference and of its pruned widths come first, then a generic spread over
    kind, size, intensity and alignment, in each of ``precisions``; at most ``max_kernels`` kernels.
    """
    wanted = [p for p in precisions if p in ("fp32", "int8")]
    if not wanted:
        raise CalibrationError(
            f"no kernels can be built in {', '.join(precisions)}: fp32 and int8 can"
        )
    operators = _operator_branches()
    each = max_kernels // len(wanted) - sum(count for _, count in operators)
    shapes = _choose(_of_reference(reference), max(each, 8))
    networks: list[PackedNetwork] = []
    chosen = len(shapes) + sum(count for _, count in operators)
    for precision in wanted:
        branches = [_conv_branch(shape) for shape in shapes] + [build for build, _ in operators]
        # A network holds shapes from everywhere in the list, so that none is all large ones.
        count = math.ceil(len(branches) / _BRANCHES)
        for number in range(count):
            name = f"sweep-{precision}-{number}"
            builder = Builder(name, seed=seed + number)
            for branch in branches[number::count]:
                branch(builder)
            networks.append(_packed(builder, precision, runtime))
    return SweepPlan(
        networks=tuple(networks),
        probes=tuple(_probes(wanted, seed)),
        kernels=chosen * len(wanted),
    )


def collect(
    packed: PackedNetwork, kernel_times: Sequence[ProfileRow]
) -> tuple[tuple[Work, float], ...]:
    """The works of ``packed`` with the seconds that the profile ``kernel_times`` gives them.

    Kernels that the profile does not show (the runtime did something else) are left out.
    ``CalibrationError`` if that is most of them.
    """
    kernels = graph.read(packed.model, runtime=packed.runtime)
    times = graph.match(kernels, kernel_times)
    found = tuple(
        (work, times[name]) for name, work in packed.expected.items() if times.get(name, 0.0) > 0
    )
    if 2 * len(found) < len(packed.expected):
        raise CalibrationError(
            f"the profile of {packed.name} shows {len(found)} of its {len(packed.expected)} "
            "kernels: the runtime fuses otherwise than is known here; its version?"
        )
    return found


def _packed(builder: Builder, precision: str, runtime: str) -> PackedNetwork:
    model = builder.model()
    if precision == "int8":
        model = synthetic.quantized(model)
    works = {
        kernel.name: graph.work(kernel)
        for kernel in graph.read(model, runtime=runtime)
        if not (kernel.nodes and kernel.name.startswith(SCAFFOLD))
    }
    return PackedNetwork(
        name=builder.name, precision=precision, runtime=runtime, model=model, expected=works
    )


# -- choosing ------------------------------------------------------------------------------------


def _of_reference(reference: Sequence[Kernel]) -> list[_Conv]:
    """The shapes of the reference's convolutions and products, and of its pruned widths."""
    found = []
    for kernel in reference:
        size = kernel.in_hw[0]
        base = _Conv(
            kernel.in_channels,
            kernel.out_channels,
            0 if kernel.kind == "gemm" else size,
            kernel.window[0],
            kernel.stride[0],
            kernel.groups,
        )
        if kernel.weight is None or not kernel.kind.startswith(("conv", "gemm")):
            continue
        for before, after in itertools.product(_RATIOS, repeat=2):
            inputs = _narrowed(base.inputs, before) if base.inputs >= 16 else base.inputs
            outputs = _narrowed(base.outputs, after)
            groups = base.groups
            if groups > 1 and groups == base.inputs:
                outputs = groups = inputs
            elif groups > 1:
                inputs, outputs = base.inputs, base.outputs
            found.append(_Conv(inputs, outputs, base.size, base.window, base.stride, groups))
    return list(dict.fromkeys(found))


def _narrowed(channels: int, ratio: float) -> int:
    return max(1, round(channels * ratio / 8) * 8) if channels >= 16 else channels


def _choose(reference: list[_Conv], count: int) -> list[_Conv]:
    """``count`` shapes, spread: each next one is the farthest from those chosen so far.

    Half of them at most come from the reference's surroundings; the rest from the generic list.
    """
    allowed = [
        s
        for s in reference
        if s.macs <= _MAX_MACS and s.inputs * max(1, s.size) ** 2 <= _MAX_VALUES
    ]
    near = _spread(allowed, min(len(allowed), count // 2), [])
    return near + _spread(list(_GENERIC), count - len(near), near)


def _spread(candidates: list[_Conv], count: int, chosen: list[_Conv]) -> list[_Conv]:
    if not candidates or count <= 0:
        return []
    places = np.array([c.place for c in candidates])
    picked: list[int] = []
    if chosen:
        others = np.array([c.place for c in chosen])
        distance = np.min(np.linalg.norm(places[:, None] - others[None], axis=2), axis=1)
    else:
        picked = [0]
        distance = np.linalg.norm(places - places[0], axis=1)
    while len(picked) < min(count, len(candidates)):
        best = int(np.argmax(distance))
        if distance[best] <= 0:
            break
        picked.append(best)
        distance = np.minimum(distance, np.linalg.norm(places - places[best], axis=1))
    return [candidates[i] for i in picked]


# -- building ------------------------------------------------------------------------------------

_Branch = Callable[[Builder], None]


def _conv_branch(shape: _Conv) -> _Branch:
    def build(b: Builder) -> None:
        if shape.size == 0:
            b.output(b.gemm(b.input(1, shape.inputs), shape.outputs))
            return
        # Images do come from outside; everything deeper was just written by another kernel.
        outside = shape.inputs <= 3
        x = (
            b.input(1, shape.inputs, *2 * [shape.size])
            if outside
            else b.image(shape.inputs, shape.size)
        )
        y = b.conv(x, shape.outputs, window=shape.window, stride=shape.stride, groups=shape.groups)
        _drain(b, b.relu(y))

    return build


def _drain(b: Builder, x: str) -> None:
    """End a branch in a few values."""
    b.output(b.flatten(b.global_pool(x)))


def _operator_branches() -> list[tuple[_Branch, int]]:
    """Everything that is no convolution, and how many kernels each branch adds."""

    def residual(b: Builder) -> None:
        _drain(b, b.relu(b.binary("Add", b.image(64, 56), b.image(64, 56))))

    def small_residual(b: Builder) -> None:
        _drain(b, b.binary("Add", b.image(40, 14), b.image(40, 14)))

    def excite(b: Builder) -> None:
        x = b.conv(b.image(96, 28), 96, window=3, groups=96)
        _drain(b, b.conv(b.squeeze_excite(b.silu(x), 8), 24))

    def excite_large(b: Builder) -> None:
        x = b.conv(b.image(32, 56), 64)
        _drain(b, b.conv(b.squeeze_excite(b.silu(x), 16), 32))

    def hard(b: Builder) -> None:
        _drain(b, b.hard_swish(b.relu(b.image(48, 28))))

    def pools(b: Builder) -> None:
        x = b.conv(b.image(32, 56), 64)
        y = b.pool("MaxPool", x, window=3, stride=2)
        _drain(b, b.pool("AveragePool", y, window=2, stride=2))

    def joined(b: Builder) -> None:
        x = b.image(32, 28)
        y = b.concat(b.conv(x, 64), b.conv(x, 64))
        _drain(b, b.concat(b.half(y), b.image(24, 28)))

    def normalised(b: Builder) -> None:
        _drain(b, b.unary("Softmax", b.batch_norm(b.image(64, 28)), axis=1))

    counts = ((residual, 2), (small_residual, 1), (excite, 9), (excite_large, 9), (hard, 3))
    return [*counts, (pools, 3), (joined, 4), (normalised, 2)]


def _probes(precisions: Sequence[str], seed: int) -> Iterator[ProbeNetwork]:
    """Whole networks of the common families in each precision; one mixed."""
    families: tuple[tuple[str, Callable[[Builder], None]], ...] = (
        ("residual-32", lambda b: _residual(b, width=32, size=56)),
        ("bottleneck", lambda b: _bottleneck(b, widths=(32, 64, 128), size=96)),
        ("inverted", lambda b: _inverted(b, size=112)),
        ("fire", _fire),
        # Weights and images that outgrow a core's cache, as those of most real networks do.
        ("bottleneck-large", lambda b: _bottleneck(b, widths=(64, 128, 256, 512), size=160)),
        ("inverted-large", lambda b: _inverted(b, size=224)),
    )
    for name, build in families:
        for precision in precisions:
            builder = Builder(f"probe-{name}-{precision}", seed=seed)
            build(builder)
            model = builder.model()
            if precision == "int8":
                model = synthetic.quantized(model)
            yield ProbeNetwork(name=builder.name, precision=precision, model=model)
    if set(precisions) >= {"fp32", "int8"}:
        builder = Builder("probe-residual-48-mixed", seed=seed)
        _residual(builder, width=48, size=28)
        model = builder.model()
        nodes = [node.name for node in model.graph.node]
        exclude = frozenset(nodes[len(nodes) // 2 : -3])
        yield ProbeNetwork(
            name=builder.name, precision="mixed", model=synthetic.quantized(model, exclude=exclude)
        )


def _head(b: Builder, x: str) -> None:
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10))


def _residual(b: Builder, *, width: int, size: int) -> None:
    x = b.relu(b.conv(b.input(1, 3, size, size), width, window=3))
    for stage in range(3):
        for block in range(2):
            stride = 2 if stage and not block else 1
            channels = width * 2**stage
            y = b.relu(b.conv(x, channels, window=3, stride=stride))
            y = b.conv(y, channels, window=3)
            skip = b.conv(x, channels, stride=stride) if stage and not block else x
            x = b.relu(b.binary("Add", y, skip))
    _head(b, x)


def _bottleneck(b: Builder, *, widths: Sequence[int], size: int) -> None:
    x = b.relu(b.conv(b.input(1, 3, size, size), 64, window=7, stride=2))
    x = b.pool("MaxPool", x, window=3, stride=2)
    for stage, width in enumerate(widths):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = b.relu(b.conv(x, width))
            y = b.relu(b.conv(y, width, window=3, stride=stride))
            y = b.conv(y, 4 * width)
            skip = x if block else b.conv(x, 4 * width, stride=stride)
            x = b.relu(b.binary("Add", y, skip))
    _head(b, x)


def _inverted(b: Builder, *, size: int) -> None:
    x = b.silu(b.conv(b.input(1, 3, size, size), 16, window=3, stride=2))
    for width, stride, window, excite in (
        (24, 2, 3, False),
        (24, 1, 3, True),
        (40, 2, 5, True),
        (40, 1, 5, False),
        (80, 2, 3, True),
        (80, 1, 3, False),
    ):
        entering = b.shapes[x][1]
        y = b.silu(b.conv(x, 6 * entering))
        y = b.silu(b.conv(y, 6 * entering, window=window, stride=stride, groups=6 * entering))
        y = b.conv(b.squeeze_excite(y, 16) if excite else y, width)
        x = b.binary("Add", y, x) if stride == 1 else y
    _head(b, b.relu(b.conv(x, 320)))


def _fire(b: Builder) -> None:
    x = b.relu(b.conv(b.input(1, 3, 112, 112), 32, window=3, stride=2))
    x = b.pool("MaxPool", x, window=3, stride=2)
    for width in (16, 16, 32, 32, 48):
        squeezed = b.relu(b.conv(x, width))
        x = b.concat(
            b.relu(b.conv(squeezed, 4 * width)), b.relu(b.conv(squeezed, 4 * width, window=3))
        )
        if width == 16:
            x = b.relu(b.conv(x, 64))
    _head(b, x)
