"""ONNX files that are wrong in the ways that exporters, disks and strangers make them wrong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import onnx
from onnx import ModelProto, helper

from tests.fuzz.support import NAMES, damaged
from tests.latency_models.networks import inverted, joined, residual

INTEGERS = (0, 1, -1, 2, 7, 1 << 31, 1 << 62, -(1 << 63))
OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Reshape", "Transpose", "Concat", "Slice", "Split",
    "Pad", "Expand", "Resize", "Range", "Tile", "ConstantOfShape", "Constant", "Shape", "Gather",
    "ReduceMean", "Softmax", "QuantizeLinear", "DequantizeLinear", "MaxPool", "GlobalAveragePool",
    "BatchNormalization", "Identity", "Flatten", "Squeeze", "Unsqueeze", "If", "Loop", "Einsum",
    "Cast", "Where", "DepthToSpace", "LayerNormalization", "TopK", "",
)  # fmt: skip


def light(network: ModelProto) -> ModelProto:
    """The network without its larger weights, as ONNX files with external data are."""
    for tensor in network.graph.initializer:
        if len(tensor.raw_data) > 256:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="absent")
    return network


def originals() -> tuple[ModelProto, ...]:
    """Networks that are right."""
    return tuple(light(make()) for make in (residual, inverted, joined))


def _node_name(network: ModelProto, chance: random.Random) -> None:
    node = chance.choice(network.graph.node)
    node.op_type = chance.choice(OPERATORS)


def _tensor_name(network: ModelProto, chance: random.Random) -> None:
    node = chance.choice(network.graph.node)
    names = node.input if chance.random() < 0.6 else node.output
    known = [name for other in network.graph.node for name in (*other.input, *other.output)]
    if names:
        names[chance.randrange(len(names))] = chance.choice([*known, *NAMES[:12], ""])


def _arity(network: ModelProto, chance: random.Random) -> None:
    node = chance.choice(network.graph.node)
    names = node.input if chance.random() < 0.6 else node.output
    if names and chance.random() < 0.6:
        del names[chance.randrange(len(names))]
    else:
        names.append(chance.choice(list(names) or ["more"]))


def _attribute(network: ModelProto, chance: random.Random) -> None:
    node = chance.choice([n for n in network.graph.node if n.attribute] or network.graph.node)
    if not node.attribute:
        return
    attribute = chance.choice(node.attribute)
    action = chance.randrange(4)
    if action == 0:
        node.attribute.remove(attribute)
    elif action == 1:
        other = chance.choice((1.5, "text", b"\xff", [1], [], [2.5]))
        attribute.CopyFrom(
            helper.make_attribute(attribute.name, other) if other != [] else attribute
        )
    elif attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(INTEGERS)
    else:
        attribute.i = chance.choice(INTEGERS)


def _initializer(network: ModelProto, chance: random.Random) -> None:
    tensor = chance.choice(network.graph.initializer)
    action = chance.randrange(4)
    if action == 0 and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(INTEGERS)
    elif action == 1:
        tensor.data_type = chance.choice((0, 1, 3, 6, 7, 8, 10, 11, 16, 99))
    elif action == 2:
        del tensor.dims[:]
    else:
        network.graph.initializer.remove(tensor)


def _declared(network: ModelProto, chance: random.Random) -> None:
    value = chance.choice([*network.graph.input, *network.graph.output])
    dims = value.type.tensor_type.shape.dim
    action = chance.randrange(4)
    if action == 0 and dims:
        chance.choice(dims).dim_value = chance.choice(INTEGERS)
    elif action == 1:
        value.type.tensor_type.ClearField("shape")
    elif action == 2:
        value.type.tensor_type.elem_type = chance.choice((0, 6, 7, 8, 99))
    else:
        network.graph.input.remove(value) if value in network.graph.input else dims.add()


def _order(network: ModelProto, chance: random.Random) -> None:
    nodes = list(network.graph.node)
    if chance.random() < 0.5:
        nodes.append(chance.choice(nodes))
    else:
        chance.shuffle(nodes)
    del network.graph.node[:]
    network.graph.node.extend(nodes)


def _frame(network: ModelProto, chance: random.Random) -> None:
    action = chance.randrange(4)
    if action == 0:
        del network.opset_import[:]
    elif action == 1:
        network.opset_import[0].version = chance.choice(INTEGERS)
    elif action == 2:
        network.opset_import[0].domain = chance.choice(NAMES[:12])
    else:
        network.ir_version = chance.choice(INTEGERS)


def _bomb(network: ModelProto, chance: random.Random) -> None:
    """A few bytes that say: a tensor of a terabyte, please."""
    sizes = [chance.choice((1 << 20, 1 << 40)) for _ in range(chance.randint(1, 3))]
    shape = helper.make_tensor("bomb_shape", onnx.TensorProto.INT64, [len(sizes)], sizes)
    scalars = [
        helper.make_tensor(f"bomb_{name}", onnx.TensorProto.INT64, [], [number])
        for name, number in (("start", 0), ("end", 1 << 40), ("step", 1))
    ]
    pads = [0] * len(sizes) + sizes
    more = helper.make_tensor("bomb_pads", onnx.TensorProto.INT64, [len(pads)], pads)
    small = helper.make_tensor("bomb_small", onnx.TensorProto.FLOAT, [1] * len(sizes), [1.0])
    node = chance.choice(
        (
            helper.make_node("ConstantOfShape", ["bomb_shape"], ["bomb"]),
            helper.make_node("Expand", ["bomb_small", "bomb_shape"], ["bomb"]),
            helper.make_node("Tile", ["bomb_small", "bomb_shape"], ["bomb"]),
            helper.make_node("Pad", ["bomb_small", "bomb_pads"], ["bomb"]),
            helper.make_node("Range", ["bomb_start", "bomb_end", "bomb_step"], ["bomb"]),
            helper.make_node("EyeLike", ["bomb_small"], ["bomb"], k=1 << 40),
            helper.make_node("OneHot", ["bomb_start", "bomb_end", "bomb_small"], ["bomb"]),
        )
    )
    network.graph.initializer.extend([shape, more, small, *scalars])
    network.graph.node.insert(0, node)


MUTATIONS: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    _node_name,
    _tensor_name,
    _arity,
    _attribute,
    _attribute,
    _initializer,
    _declared,
    _order,
    _frame,
    _bomb,
)


def wrong(seed: int) -> bytes:
    """An ONNX file with up to three things wrong; one in four is damaged as bytes instead."""
    chance = random.Random(seed)
    network = ModelProto()
    network.CopyFrom(chance.choice(originals()))
    if chance.random() < 0.25:
        return damaged(network.SerializeToString(), seed)
    for _ in range(chance.randint(1, 3)):
        with contextlib.suppress(IndexError):  # an earlier one has left nothing to change
            chance.choice(MUTATIONS)(network, chance)
    return network.SerializeToString()
