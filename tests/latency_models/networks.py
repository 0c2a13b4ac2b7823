"""Small networks for the tests, built with the sweep's own builder, and runtime helpers."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from latency_models import graph
from latency_models.building import Builder

# The runtimes of a GPU; those without a number are onnxruntime 1.11 and TensorRT 8.
CUDA, CUDA_1_17 = "onnxruntime-cuda", "onnxruntime-1.17-cuda"
TENSORRT, TENSORRT_6 = "tensorrt", "tensorrt-6"
GPU = (CUDA, CUDA_1_17, TENSORRT_6, TENSORRT)

MEASURED = Path(__file__).parents[3] / "shared" / "measured"


def residual(*, stem: int = 32, inner: int = 32, outer: int = 64) -> onnx.ModelProto:
    """Stem, a block with an identity shortcut, a strided block with a projection, classifier."""
    b = Builder("residual")
    x = b.relu(b.conv(b.input(1, 3, 32, 32), stem, window=3))
    y = b.conv(b.relu(b.conv(x, inner, window=3)), stem, window=3)
    x = b.relu(b.binary("Add", y, x))
    y = b.conv(b.relu(b.conv(x, inner, window=3, stride=2)), outer, window=3)
    x = b.relu(b.binary("Add", y, b.conv(x, outer, stride=2)))
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10))
    return b.model()


def inverted(*, width: int = 24, hidden: int = 144, squeeze: int = 8) -> onnx.ModelProto:
    """An inverted residual with a depthwise convolution and squeeze-and-excitation."""
    b = Builder("inverted")
    x = b.relu(b.conv(b.input(1, 3, 32, 32), width, window=3, stride=2))
    y = b.silu(b.conv(x, hidden))
    y = b.silu(b.conv(y, hidden, window=3, groups=hidden))
    y = b.conv(b.squeeze_excite(y, squeeze), width)
    b.output(b.gemm(b.flatten(b.global_pool(b.binary("Add", y, x))), 10))
    return b.model()


def joined(*, left: int = 32, right: int = 64) -> onnx.ModelProto:
    """Two branches, concatenated, pooled and classified by a convolution."""
    b = Builder("joined")
    x = b.pool(
        "MaxPool", b.relu(b.conv(b.input(1, 3, 64, 64), 16, window=7, stride=2)), window=3, stride=2
    )
    y = b.concat(b.relu(b.conv(x, left)), b.relu(b.conv(x, right, window=3)))
    b.output(b.flatten(b.global_pool(b.conv(y, 10))))
    return b.model()


def branches(
    b: Builder, x: str, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int
) -> str:
    """GoogLeNet's block: branches of 1x1, 3x3 and 5x5 convolutions and a pooling, joined."""
    first = b.relu(b.conv(x, one))
    second = b.relu(b.conv(b.relu(b.conv(x, three[0])), three[1], window=3))
    third = b.relu(b.conv(b.relu(b.conv(x, five[0])), five[1], window=5))
    last = b.relu(b.conv(b.pool("MaxPool", x, window=3, stride=1), pooled))
    return b.concat(first, second, third, last)


def inception() -> onnx.ModelProto:
    """One such block after a pooling."""
    b = Builder("inception")
    x = b.pool("MaxPool", b.input(1, 16, 8, 8), window=3, stride=2)
    b.output(branches(b, x, 8, (8, 16), (4, 8), 8))
    return b.model()


def googlenet() -> onnx.ModelProto:
    """GoogLeNet (Szegedy et al., 2015, table 1), at 224 x 224."""
    b = Builder("googlenet")

    def halved(x: str) -> str:
        return b.pool("MaxPool", x, window=3, stride=2)

    x = halved(b.relu(b.conv(b.input(1, 3, 224, 224), 64, window=7, stride=2)))
    x = b.relu(b.conv(b.unary("LRN", x, size=5), 64))
    x = halved(b.unary("LRN", b.relu(b.conv(x, 192, window=3)), size=5))
    x = branches(b, x, 64, (96, 128), (16, 32), 32)
    x = halved(branches(b, x, 128, (128, 192), (32, 96), 64))
    x = branches(b, x, 192, (96, 208), (16, 48), 64)
    x = branches(b, x, 160, (112, 224), (24, 64), 64)
    x = branches(b, x, 128, (128, 256), (24, 64), 64)
    x = branches(b, x, 112, (144, 288), (32, 64), 64)
    x = halved(branches(b, x, 256, (160, 320), (32, 128), 128))
    x = branches(b, x, 256, (160, 320), (32, 128), 128)
    x = branches(b, x, 384, (192, 384), (48, 128), 128)
    b.output(b.unary("Softmax", b.gemm(b.flatten(b.global_pool(x)), 1000)))
    return b.model()


def network(
    *operators: tuple[str, list[str], dict[str, Any]],
    shapes: dict[str, tuple[int, ...]],
    constants: dict[str, onnx.TensorProto] | None = None,
    batch: int = 1,
) -> onnx.ModelProto:
    """A graph of ``(operator, inputs, attributes)`` that ends in the last one's output."""
    made = [
        helper.make_node(op, inputs, [f"t{index}"], f"{op.lower()}_{index}", **attributes)
        for index, (op, inputs, attributes) in enumerate(operators)
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        for name, shape in shapes.items()
    ]
    out = helper.make_tensor_value_info(f"t{len(made) - 1}", TensorProto.FLOAT, None)
    body = helper.make_graph(made, "g", values, [out], list((constants or {}).values()))
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)])


def floats(name: str, *shape: int) -> dict[str, onnx.TensorProto]:
    """A constant of any numbers, by its name."""
    return {name: helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * math.prod(shape))}


def integers(name: str, *values: int) -> dict[str, onnx.TensorProto]:
    """A constant of these numbers, by its name."""
    return {name: helper.make_tensor(name, TensorProto.INT64, [len(values)], values)}


def works(kernels: tuple[graph.Kernel, ...]) -> Counter[tuple[object, ...]]:
    """What the kernels do, whatever they are called and in whichever order."""
    return Counter(
        (w.kind, w.macs, w.bytes_in, w.bytes_out, w.bytes_weights, w.shape, w.precision)
        for w in map(graph.work, kernels)
    )


def kinds(model: onnx.ModelProto, **options: str) -> list[str]:
    return [kernel.kind for kernel in graph.read(model, **options)]


def runtime_operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the kernels that onnxruntime runs, from its own profiler."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0]
    session.run(None, {entry.name: np.zeros(entry.shape, np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )
