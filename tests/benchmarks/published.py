"""Published measurements of Jetson boards, as kernels and seconds.

Reads the tables under ``--data`` (their README says where each comes from). Networks in a table of
the project's own form are ONNX files; the others are built here from what their source says of
them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latency_models import profiles, tables
from latency_models.fusion_rules import GPU_RUNTIMES
from latency_models.gpu_lowering import lower_gpu
from latency_models.kernels import Kernel, Work, work
from latency_models.operators import Op
from latency_models.patterns import without_repeats
from latency_models.profiles import REFERENCE, BoardProfile, Scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One measurement: a network, or one kernel of a profile.

    ``twin`` is what identical items share; ``group`` is a family or another kind of likeness.
    """

    name: str
    works: tuple[Work, ...]
    seconds: float
    twin: str
    group: str = ""
    scales: Scales = REFERENCE
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A data set: ``kernels`` tells that its items are single kernels."""

    name: str
    items: tuple[Item, ...]
    profile: BoardProfile
    runtime: str
    kernels: bool = False


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _structure(works: Sequence[Work]) -> str:
    """What identical graphs share: the kernels, in order, by everything but their names."""
    return str([(w.kind, w.precision, w.macs, w.bytes_in, w.bytes_out, w.shape) for w in works])


def networks(path: Path, *, profile: str, runtime: str) -> Published:
    """A measurement table of ONNX files."""
    board = profiles.load(profile)
    found = tables.items(path, profile=board, runtime=runtime, progress=lambda _done, _of: None)
    return Published(
        name=path.stem,
        profile=board,
        runtime=runtime,
        items=tuple(
            Item(
                name=item.name,
                works=tuple(item.works),
                seconds=item.measured_s,
                twin=_structure(item.works),
                group=item.family,
                labels={"family": item.family},
            )
            for item in found
        ),
    )


# -- NAS-Bench-201 ---------------------------------------------------------------------------------

_CELLS = 5
_STAGES = ((16, 32), (32, 16), (64, 8))


class _Cells:
    """The operators of a NAS-Bench-201 network, cell after cell."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, 32, 32)}

    def add(self, op: str, inputs: Sequence[str], shape: tuple[int, ...], **options: object) -> str:
        name = f"{op}_{len(self.ops)}"
        self.shapes[name] = shape
        self.ops.append(
            Op(
                name=name,
                op=op,
                nodes=(name,),
                inputs=tuple(inputs),
                outputs=(name,),
                in_shapes=tuple(self.shapes[tensor] for tensor in inputs),
                out_shapes=(shape,),
                **options,  # type: ignore[arg-type]
            )
        )
        return name

    def conv(self, tensor: str, channels: int, window: int, stride: int = 1) -> str:
        """Convolution and batch norm."""
        batch, entering, size, _ = self.shapes[tensor]
        shape = (batch, channels, size // stride, size // stride)
        made = self.add(
            "Conv",
            [tensor],
            shape,
            weight=f"w{len(self.ops)}",
            weight_shape=(channels, entering, window, window),
            window=(window, window),
            stride=(stride, stride),
        )
        return self.add(
            "BatchNormalization", [made], shape, weight=f"s{made}", weight_shape=(channels,)
        )

    def relu(self, tensor: str) -> str:
        return self.add("Relu", [tensor], self.shapes[tensor])

    def pool(self, tensor: str, window: int, stride: int = 1) -> str:
        batch, channels, size, _ = self.shapes[tensor]
        shape = (batch, channels, size // stride, size // stride)
        options = {"window": (window, window), "stride": (stride, stride)}
        return self.add("AveragePool", [tensor], shape, **options)

    def sum(self, tensors: Sequence[str]) -> str:
        total = tensors[0]
        for tensor in tensors[1:]:
            total = self.add("Add", [total, tensor], self.shapes[total])
        return total

    def cell(self, tensor: str, edges: Mapping[tuple[int, int], str], channels: int) -> str:
        nodes = {0: tensor}
        for node in (1, 2, 3):
            terms = [
                self.edge(nodes[source], operation, channels)
                for (source, target), operation in edges.items()
                if target == node and source in nodes
            ]
            if terms:
                nodes[node] = self.sum(terms)
        return nodes[3]

    def edge(self, tensor: str, operation: str, channels: int) -> str:
        if operation == "skip_connect":
            return tensor
        if operation == "avg_pool_3x3":
            return self.pool(tensor, 3)
        return self.conv(self.relu(tensor), channels, 3 if "3x3" in operation else 1)

    def down(self, tensor: str, channels: int) -> str:
        """The residual block that halves the image."""
        inner = self.conv(self.relu(tensor), channels, 3, 2)
        inner = self.conv(self.relu(inner), channels, 3)
        return self.sum([inner, self.conv(self.pool(tensor, 2, 2), channels, 1)])

    def network(self, edges: Mapping[tuple[int, int], str]) -> tuple[Op, ...]:
        """The operators of the whole network; a cell without a path through it counts as none."""
        tensor = self.conv("image", _STAGES[0][0], 3)
        for channels, _ in _STAGES:
            if channels != self.shapes[tensor][1]:
                tensor = self.down(tensor, channels)
            for _ in range(_CELLS if edges else 0):
                tensor = self.cell(tensor, edges, channels)
        tensor = self.relu(tensor)
        channels = self.shapes[tensor][1]
        pooled = self.add("GlobalAveragePool", [tensor], (1, channels, 1, 1))
        flat = self.add("Flatten", [pooled], (1, channels))
        options = {"weight": "classifier", "weight_shape": (10, channels), "exported": True}
        self.add("Gemm", [flat], (1, 10), **options)
        return without_repeats(self.ops)


def live_edges(architecture: str) -> dict[tuple[int, int], str]:
    """The operations of a cell that its input reaches and its output needs, by (from, to) node."""
    nodes = architecture.strip("|").split("|+|")
    edges = {}
    for target, entry in enumerate(nodes, start=1):
        for part in entry.split("|"):
            operation, source = part.split("~")
            if operation != "none":
                edges[int(source), target] = operation
    reached, needed = {0}, {3}
    for node in (1, 2, 3):
        if any(s in reached for s, t in edges if t == node):
            reached.add(node)
    for node in (2, 1, 0):
        if any(t in needed for s, t in edges if s == node):
            needed.add(node)
    return {(s, t): op for (s, t), op in edges.items() if s in reached and t in needed}


def nasbench(path: Path, *, precision: str, runtime: str) -> Published:
    """The NAS-Bench-201 cells; isomorphic cells are twins."""
    read: dict[tuple[tuple[tuple[int, int], str], ...], tuple[Work, ...]] = {}
    items = []
    for row in _rows(path):
        edges = live_edges(row["arch"])
        key = tuple(sorted(edges.items()))
        if key not in read:
            ops = _Cells().network(edges)
            kernels = lower_gpu(ops, runtime=GPU_RUNTIMES[runtime], base=precision)
            read[key] = tuple(work(kernel) for kernel in kernels)
        items.append(
            Item(
                name=row["arch"],
                works=read[key],
                seconds=float(row[f"{precision}_latency_ms"]) * 1e-3,
                twin=row["isomorphism_class"],
                labels={},
            )
        )
    return Published(
        name=f"nasbench201_{precision}",
        items=tuple(items),
        profile=profiles.load("jetson-nano"),
        runtime=runtime,
    )


# -- single kernels --------------------------------------------------------------------------------


def _kernel(kind: str, entering: Sequence[int], leaving: Sequence[int], **options: object) -> Work:
    more = {"in_shapes": (tuple(entering),), **options}
    return work(
        Kernel(
            name=f"{kind} {entering} {leaving}",
            kind=kind,
            nodes=(),
            weight="w" if kind.startswith(("conv", "gemm")) else None,
            inputs=("x",),
            output="y",
            out_shape=tuple(leaving),
            **more,  # type: ignore[arg-type]
        )
    )


def _conv_kind(entering: int, window: int) -> str:
    if entering < 4:
        return "conv_direct"
    return {1: "conv_1x1", 3: "conv_3x3"}.get(window, "conv_large")


# -- TX2: a pruned VGG-like network ------------------------------------------------------------


def _cnv(width: float, batch: int, precision: str) -> Iterator[Work]:
    """The kernels of QuTiBench's CNV, its layers cut to ``width`` of their channels."""
    a, b, c, d = (round(n * width) for n in (128, 256, 512, 1024))
    entering, size = 3, 32
    for channels, pooled in ((a, False), (a, True), (b, False), (b, True), (c, False), (c, False)):
        yield _kernel(
            _conv_kind(entering, 3),
            (batch, entering, size, size),
            (batch, channels, size - 2, size - 2),
            window=(3, 3),
            precision=precision,
        )
        entering, size = channels, size - 2
        if pooled:
            half = (batch, channels, size // 2, size // 2)
            whole = (batch, channels, size, size)
            yield _kernel(
                "max_pool", whole, half, window=(2, 2), stride=(2, 2), precision=precision
            )
            size //= 2
    for inputs, outputs in ((c, d), (d, d), (d, 10)):
        yield _kernel("gemm", (batch, inputs), (batch, outputs), precision=precision)


def tx2(path: Path) -> Published:
    """Channel-pruned CNV with TensorRT on a TX2, in three power modes."""
    board = profiles.load("jetson-tx2")
    items = []
    for row in _rows(path):
        labels = {key: row[key] for key in ("width_percent", "precision", "power_mode", "batch")}
        batch, precision = int(row["batch"]), row["precision"]
        name = " ".join(labels.values())
        items.append(
            Item(
                name=name,
                works=tuple(_cnv(float(row["width_percent"]) / 100, batch, precision)),
                seconds=float(row["latency_ms"]) * 1e-3,
                twin=name,
                group=f"{row['width_percent']} {precision}",
                scales=board.scales(row["power_mode"]),
                labels=labels,
            )
        )
    return Published(name="tx2", items=tuple(items), profile=board, runtime="tensorrt")


# -- Orin and Xavier: layers of a profile --------------------------------------------------------


def orin(path: Path) -> Published:
    """MobileNetV2's convolutions with TensorRT on an Orin; which Orin the source does not say."""
    items = []
    for row in _rows(path):
        entering = tuple(int(row[f"input_size_{axis}"]) for axis in range(3))
        leaving = tuple(int(row[f"output_size_{axis}"]) for axis in range(3))
        window, stride, label = int(row["kernel_0"]), int(row["stride_0"]), row["layer_name"]
        batch, precision = int(row["batch_size"]), "fp32"
        depthwise = window == 3 and entering[0] == leaving[0]
        shapes = [(batch, *entering)]
        if "aten_ops.add.Tensor" in label:
            shapes.append((batch, *leaving))
        if entering[1] == 1:
            item = _kernel("gemm", (batch, entering[0]), (batch, leaving[0]), precision=precision)
        else:
            item = _kernel(
                "conv_depthwise" if depthwise else _conv_kind(entering[0], window),
                (batch, *entering),
                (batch, *leaving),
                in_shapes=tuple(shapes),
                window=(window, window),
                stride=(stride, stride),
                groups=entering[0] if depthwise else 1,
                precision=precision,
            )
        items.append(_layer(label, item, float(row["runtime"])))
    board = profiles.load("jetson-orin-nx")
    return Published(
        name="orin", items=tuple(items), profile=board, runtime="tensorrt", kernels=True
    )


def _layer(name: str, item: Work, milliseconds: float, **labels: str) -> Item:
    shape = str((item.kind, item.macs, item.bytes_in, item.bytes_out, item.shape))
    return Item(
        name=name, works=(item,), seconds=milliseconds * 1e-3, twin=shape, labels=dict(labels)
    )


def xavier(path: Path) -> Published:
    """GoogLeNet's layers with TensorRT FP16 on an AGX Xavier; reformats are labelled."""
    rows = _rows(path)
    by_layer = {(row["run"], row["trt_layer"]): row for row in rows}
    items = []
    for row in rows:
        item = _xavier_kernel(row, by_layer)
        if item is not None:
            reformat = "yes" if item.kind == "reformat" else "no"
            name = f"{row['run']} {row['trt_layer']}"
            items.append(_layer(name, item, float(row["avg_ms"]), reformat=reformat))
    return Published(
        name="xavier",
        items=tuple(items),
        profile=profiles.load("jetson-agx-xavier"),
        runtime="tensorrt",
        kernels=True,
    )


def _xavier_kernel(
    row: Mapping[str, str], by_layer: Mapping[tuple[str, str], Mapping[str, str]]
) -> Work | None:
    """None for a row whose shape nothing tells."""
    name = row["trt_layer"]
    if row["type"]:
        return _typed(row)
    for side, prefix in ((" input reformatter", "in"), (" output reformatter", "out")):
        layer = by_layer.get((row["run"], name.split(side)[0]))
        if side in name and layer is not None and layer["type"]:
            return _copied("reformat", _shape(layer, prefix))
    if name.endswith("/1x1 copy"):
        # The first of the merged convolutions' outputs: what the other branches do not read.
        block = name.split("/")[0]
        rows = [r for (run, _), r in by_layer.items() if run == row["run"] and r["type"] == "conv"]
        merged = next(
            r for r in rows if r["trt_layer"].startswith(block) and "||" in r["trt_layer"]
        )
        others = [r for r in rows if r["trt_layer"].startswith((f"{block}/3x3 ", f"{block}/5x5 "))]
        channels = float(merged["out_c"]) - sum(float(r["in_c"]) for r in others)
        return _copied("move", (1, int(channels), *_shape(merged, "out")[2:]))
    return _copied("softmax", (1, 1000)) if name == "prob" else None


def _shape(row: Mapping[str, str], prefix: str) -> tuple[int, ...]:
    return (1, *(int(float(row[f"{prefix}_{axis}"])) for axis in "chw"))


def _copied(kind: str, shape: tuple[int, ...]) -> Work:
    return _kernel(kind, shape, shape, precision="fp16")


def _typed(row: Mapping[str, str]) -> Work:
    entering, leaving = _shape(row, "in"), _shape(row, "out")
    if row["type"] == "fc":
        return _kernel("gemm", entering[:2], leaving[:2], precision="fp16")
    if row["type"] == "lrn":
        return _copied("normalise", entering)
    window, stride = int(row["k"].split("/")[0]), int(row["stride"])
    options = {"window": (window, window), "stride": (stride, stride), "precision": "fp16"}
    kind = _conv_kind(entering[1], window)
    if row["type"] == "pool":
        kind = "average_pool" if leaving[2] == 1 else "max_pool"
    return _kernel(kind, entering, leaving, **options)
