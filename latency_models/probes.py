"""Whole networks of the common families, small, with random weights: measured end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from latency_models import graph, synthetic
from latency_models.building import Builder
from latency_models.kernels import Work

__all__ = ["ProbeNetwork", "probes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNetwork:
    """A small whole network, to be measured end to end; ``works`` are its kernels'."""

    name: str
    precision: str
    model: ModelProto
    works: tuple[Work, ...]


def probes(
    precisions: Sequence[str], *, runtime: str = "onnxruntime-cpu", seed: int = 0
) -> Iterator[ProbeNetwork]:
    """Networks of the common families in each of ``precisions``, and one mixed."""
    for name, build in _FAMILIES:
        for precision in precisions:
            builder = Builder(f"probe-{name}-{precision}", seed=seed)
            build(builder)
            model = builder.model()
            if precision == "int8":
                model = synthetic.quantized(model, symmetric=graph.is_gpu(runtime))
            yield _probe(builder.name, precision, model, runtime)
    if set(precisions) >= {"fp32", "int8"}:
        builder = Builder("probe-residual-48-mixed", seed=seed)
        _residual(builder, width=48, size=28)
        model = builder.model()
        nodes = [node.name for node in model.graph.node]
        exclude = frozenset(nodes[len(nodes) // 2 : -3])
        mixed = synthetic.quantized(model, exclude=exclude, symmetric=graph.is_gpu(runtime))
        yield _probe(builder.name, "mixed", mixed, runtime)


def _probe(name: str, precision: str, model: ModelProto, runtime: str) -> ProbeNetwork:
    kernels = graph.read(model, runtime=runtime, precision=graph.base_of(precision))
    works = tuple(graph.work(kernel) for kernel in kernels)
    return ProbeNetwork(name=name, precision=precision, model=model, works=works)


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


def _plain(b: Builder) -> None:
    x = b.input(1, 3, 64, 64)
    for width in (32, 64, 128, 256):
        x = b.relu(b.conv(x, width, window=3))
        x = b.pool("MaxPool", x, window=2, stride=2)
    b.output(b.gemm(b.relu(b.gemm(b.flatten(x), 128)), 10))


_FAMILIES: tuple[tuple[str, Callable[[Builder], None]], ...] = (
    ("residual-32", lambda b: _residual(b, width=32, size=56)),
    ("bottleneck", lambda b: _bottleneck(b, widths=(32, 64, 128), size=96)),
    ("inverted", lambda b: _inverted(b, size=112)),
    ("fire", _fire),
    # Narrow layers on larger images.
    ("residual-16", lambda b: _residual(b, width=16, size=96)),
    ("bottleneck-16", lambda b: _bottleneck(b, widths=(16, 32, 64), size=160)),
    ("plain", _plain),
    # Weights and images that outgrow a core's cache, as those of most real networks do.
    ("bottleneck-large", lambda b: _bottleneck(b, widths=(64, 128, 256, 512), size=160)),
    ("inverted-large", lambda b: _inverted(b, size=224)),
)
