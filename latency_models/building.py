"""Small ONNX networks with random weights: opset 13 and IR 8, which onnxruntime 1.10 runs too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

__all__ = ["IR_VERSION", "OPSET", "SCAFFOLD", "Builder"]

OPSET = 13
IR_VERSION = 8
# Names of nodes that are there to feed others begin so.
SCAFFOLD = "scaffold_"


class Builder:
    """Collects the nodes of a network; each method adds one operator and returns its output.

    Without a ``seed`` weights have shapes and no values: enough to read kernels from, quickly.
    """

    def __init__(self, name: str, *, seed: int | None = 0) -> None:
        self.name = name
        self._generator = None if seed is None else np.random.default_rng(seed)
        self._nodes: list[NodeProto] = []
        self._weights: list[TensorProto] = []
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def input(self, *shape: int, prefix: str = "input_") -> str:
        """A new input of the network."""
        name = f"{prefix}{len(self._inputs)}"
        self._inputs.append(name)
        self.shapes[name] = shape
        return name

    def output(self, tensor: str) -> None:
        """Make ``tensor`` an output of the network."""
        self._outputs.append(tensor)

    def model(self) -> ModelProto:
        """The network."""

        def value(name: str) -> ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])

        graph = helper.make_graph(
            self._nodes,
            self.name,
            [value(n) for n in self._inputs],
            [value(n) for n in self._outputs],
            self._weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)

    # -- operators -------------------------------------------------------------------------------

    def conv(
        self, x: str, channels: int, *, window: int = 1, stride: int = 1, groups: int = 1
    ) -> str:
        """A convolution with bias, padded so that only the stride changes the size."""
        batch, entering, height, width = self.shapes[x]
        name = f"conv_{len(self._nodes)}"
        weight = (channels, entering // groups, window, window)
        scale = math.sqrt(2 / math.prod(weight[1:]))
        constants = [
            self._weight(f"{name}.weight", weight, scale),
            self._weight(f"{name}.bias", (channels,), 0.02),
        ]
        pad = window // 2
        shape = (batch, channels, -(-height // stride), -(-width // stride))
        return self._add(
            "Conv",
            [x, *constants],
            shape,
            name=name,
            kernel_shape=[window, window],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def gemm(self, x: str, features: int) -> str:
        """A fully connected layer."""
        batch, entering = self.shapes[x]
        name = f"gemm_{len(self._nodes)}"
        scale = math.sqrt(2 / entering)
        constants = [
            self._weight(f"{name}.weight", (features, entering), scale),
            self._weight(f"{name}.bias", (features,), 0.02),
        ]
        return self._add("Gemm", [x, *constants], (batch, features), name=name, transB=1)

    def unary(self, op: str, x: str, **attributes: Any) -> str:
        """An operator that keeps its input's shape."""
        return self._add(op, [x], self.shapes[x], **attributes)

    def relu(self, x: str) -> str:
        """The positive part."""
        return self.unary("Relu", x)

    def silu(self, x: str) -> str:
        """x * sigmoid(x)."""
        return self.binary("Mul", x, self.unary("Sigmoid", x))

    def hard_swish(self, x: str) -> str:
        """x * hard_sigmoid(x)."""
        return self.binary("Mul", x, self.unary("HardSigmoid", x, alpha=1 / 6, beta=0.5))

    def binary(self, op: str, x: str, y: str) -> str:
        """An operator of two tensors; the second may have 1 where the first has more."""
        return self._add(op, [x, y], self.shapes[x])

    def image(self, channels: int, size: int) -> str:
        """An image that a kernel of this network has just written, as a real kernel's input is.

        What comes from outside is not in the caches, and an output's memory is not mapped yet:
        reading or writing those takes up to three times as long as inside a network.
        """
        shape = (1, channels, size, size)
        plane = self.input(1, 1, size, size, prefix=f"{SCAFFOLD}plane_")
        gains = self.input(1, channels, 1, 1, prefix=f"{SCAFFOLD}gains_")
        return self._add("Add", [plane, gains], shape, name=f"{SCAFFOLD}{len(self._nodes)}")

    def batch_norm(self, x: str) -> str:
        """Normalisation by constants, one set a channel."""
        name, width = f"norm_{len(self._nodes)}", self.shapes[x][1]
        values = [np.ones(width), np.zeros(width), np.zeros(width), np.ones(width)]
        labels = ("scale", "shift", "mean", "variance")
        constants = [
            self._constant(f"{name}.{label}", value)
            for label, value in zip(labels, values, strict=True)
        ]
        return self._add("BatchNormalization", [x, *constants], self.shapes[x], name=name)

    def concat(self, *tensors: str) -> str:
        """Channels of all tensors, one after the other."""
        batch, _, *rest = self.shapes[tensors[0]]
        total = sum(self.shapes[t][1] for t in tensors)
        return self._add("Concat", list(tensors), (batch, total, *rest), axis=1)

    def pool(self, op: str, x: str, *, window: int, stride: int) -> str:
        """Maximum or average over windows."""
        batch, channels, height, width = self.shapes[x]
        pad = window // 2 if window % 2 else 0
        size = (
            (height + 2 * pad - window) // stride + 1,
            (width + 2 * pad - window) // stride + 1,
        )
        return self._add(
            op,
            [x],
            (batch, channels, *size),
            kernel_shape=[window, window],
            strides=[stride, stride],
            pads=[pad] * 4,
        )

    def global_pool(self, x: str) -> str:
        """The mean of each channel, 1 x 1."""
        return self._add("GlobalAveragePool", [x], (*self.shapes[x][:2], 1, 1))

    def reduce_mean(self, x: str) -> str:
        """The mean of each channel as exporters of squeeze-and-excitation write it."""
        return self._add("ReduceMean", [x], (*self.shapes[x][:2], 1, 1), axes=[2, 3], keepdims=1)

    def flatten(self, x: str) -> str:
        """All but the batch in one axis."""
        batch, *rest = self.shapes[x]
        return self._add("Flatten", [x], (batch, math.prod(rest)))

    def half(self, x: str) -> str:
        """The first half of the channels."""
        batch, channels, *rest = self.shapes[x]
        name = f"slice_{len(self._nodes)}"
        bounds = [
            self._constant(f"{name}.{label}", np.array([value]), dtype=np.int64)
            for label, value in (("start", 0), ("end", channels // 2), ("axis", 1))
        ]
        return self._add("Slice", [x, *bounds], (batch, channels // 2, *rest), name=name)

    def squeeze_excite(self, x: str, hidden: int) -> str:
        """Each channel scaled by a gate computed from all channels' means (Hu et al., 2018)."""
        gate = self.relu(self.conv(self.reduce_mean(x), hidden))
        return self.binary("Mul", x, self.unary("Sigmoid", self.conv(gate, self.shapes[x][1])))

    def _weight(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        if self._generator is not None:
            return self._constant(name, self._generator.standard_normal(shape) * scale)
        # External data that is nowhere: a file without its weights.
        absent = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        absent.data_location = TensorProto.EXTERNAL
        self._weights.append(absent)
        return name

    def _constant(self, name: str, values: np.ndarray, *, dtype: type = np.float32) -> str:
        self._weights.append(numpy_helper.from_array(values.astype(dtype), name))
        return name

    def _add(
        self,
        op: str,
        inputs: list[str],
        shape: tuple[int, ...],
        *,
        name: str | None = None,
        **attributes: Any,
    ) -> str:
        name = name or f"{op.lower()}_{len(self._nodes)}"
        output = f"{name}/output"
        self._nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        self.shapes[output] = shape
        return output
