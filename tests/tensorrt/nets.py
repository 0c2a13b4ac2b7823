"""Small networks, and what boards with TensorRT tell of themselves."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.records import BoardFacts, GpuFacts


def facts(version="8.2.1", compute="5.3", runtime="tensorrt", **gpu) -> BoardFacts:
    return BoardFacts(
        board="nano",
        hostname="nano",
        machine="aarch64",
        cpu_model="ARMv8 Processor rev 1",
        cores=4,
        memory_bytes=4156694528,
        os="Ubuntu 18.04",
        python="3.6.9",
        runtime=runtime,
        runtime_version=version,
        providers=(),
        int8="slow",
        agent_hash="0" * 64,
        gpu=GpuFacts(name="NVIDIA Tegra X1", compute=compute, **gpu),
    )


def network(
    nodes, *, inputs=(("x", (1, 4, 6, 6)),), outputs=("y",), shape=None, constants=(), opset=13
):
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7)


def node(op, inputs, outputs, name=None, **attributes):
    return helper.make_node(op, inputs, outputs, name=name or f"{op}_{outputs[0]}", **attributes)


def chain(seed=0, channels=16, opset=13) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add of the two, global pool, Flatten, Gemm: a residual classifier."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return rng.normal(0, 0.2, shape).astype(np.float32)

    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], ["s"], "add"),
        node("Relu", ["s"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "w3", "b3"], ["y"], "fc", transB=1),
    ]
    constants = [
        ("w1", weights(channels, 4, 3, 3)),
        ("b1", weights(channels)),
        ("w2", weights(channels, channels, 3, 3)),
        ("b2", weights(channels)),
        ("w3", weights(20, channels)),
        ("b3", weights(20)),
    ]
    return network(nodes, constants=constants, opset=opset, shape=(1, 20))


def run(model, x):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def image(seed=1, channels=4):
    return np.random.default_rng(seed).normal(0, 1, (1, channels, 6, 6)).astype(np.float32)
