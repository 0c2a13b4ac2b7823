"""Which nodes carry bytes between integer layers."""

from __future__ import annotations

from collections.abc import Collection

import onnx

__all__ = ["ABSORBED", "SAME_RANGE", "carriers"]

# Operators that onnxruntime runs on bytes when all around them is integer; every other operator
# would only gain a Q/DQ pair.
CARRIERS = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Flatten",
        "GlobalAveragePool",
        "MaxPool",
        "Relu",
        "Reshape",
        "Squeeze",
        "Transpose",
    }
)
# Carriers that vanish in the integer kernel before them: its output range does their work.
ABSORBED = frozenset({"Relu", "Clip"})
# Carriers that only move bytes: onnxruntime drops the Q/DQ around them where both ranges are one.
SAME_RANGE = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose"})


def carriers(model: onnx.ModelProto, integer: Collection[str]) -> list[str]:
    """The nodes that carry bytes from integer node to integer node, in the order of the graph.

    Forwards: all that it reads is integer already. Backwards: something integer reads it, or it
    vanishes in the integer kernel before it.
    """
    nodes = list(model.graph.node)
    constants = {item.name for item in model.graph.initializer}
    made_by = {output: node for node in nodes for output in node.output}
    read_by: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            read_by.setdefault(name, []).append(node)

    def fed_by(node: onnx.NodeProto) -> list[onnx.NodeProto | None]:
        return [made_by.get(name) for name in node.input if name and name not in constants]

    fed = set(integer)
    for node in nodes:
        sources = fed_by(node)
        if node.op_type in CARRIERS and sources and all(s and s.name in fed for s in sources):
            fed.add(node.name)
    carried = set(integer)
    for node in reversed(nodes):
        if node.name not in fed or node.name in integer:
            continue
        readers = [reader for name in node.output for reader in read_by.get(name, [])]
        if any(reader.name in carried for reader in readers):
            carried.add(node.name)
    for node in nodes:
        source = fed_by(node)[0] if fed_by(node) else None
        if node.op_type in ABSORBED and source is not None and source.name in carried:
            carried.add(node.name)
    return [node.name for node in nodes if node.name in carried.difference(integer)]
