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

# The runtimes of a GPU that the tests go through.
CUDA, TENSORRT = "onnxruntime-cuda", "tensorrt"
GPU = (CUDA, TENSORRT)

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


def inception() -> onnx.ModelProto:
    """GoogLeNet's block, as its engine on an AGX Xavier runs it."""
    b = Builder("inception")
    x = b.pool("MaxPool", b.input(1, 16, 8, 8), window=3, stride=2)
    one = b.relu(b.conv(x, 8))
    three = b.relu(b.conv(b.relu(b.conv(x, 8)), 16, window=3))
    five = b.relu(b.conv(b.relu(b.conv(x, 4)), 8, window=5))
    pooled = b.relu(b.conv(b.pool("MaxPool", x, window=3, stride=1), 8))
    b.output(b.concat(one, three, five, pooled))
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
