"""Which nodes carry bytes between integer layers."""

from __future__ import annotations

from collections.abc import Collection

import onnx

__all__ = ["ABSORBED", "PASSING", "SAME_RANGE", "carriers"]

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
# Operators that layers are exported as.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Carriers that only move bytes: onnxruntime drops the Q/DQ around them where both ranges are one.
SAME_RANGE = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose"})

# Operators that stay float and only move values: what adds their result up still works on bytes,
# so a padded shortcut does not keep the residual sums behind it from the integer kernels.
PASSING = frozenset({"Pad", "Slice"})


def carriers(model: onnx.ModelProto, integer: Collection[str]) -> list[str]:
    """The nodes without weights that work on bytes, in the order of the graph.

    All that one reads is integer already, or an addition reads it moved and padded, and it leads to
    a layer, whichever precision that has (what leads to the network's outputs alone stays float);
    or it vanishes in the integer kernel before it. ``latency_models.quantization.carriers`` is the
    same rule for predictions.
    """
    nodes = list(model.graph.node)
    constants = {item.name for item in model.graph.initializer}
    made_by = {output: node for node in nodes for output in node.output}
    leading: set[str] = set()
    wanted: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in LAYERS or any(name in wanted for name in node.output):
            leading.add(node.name)
            wanted.update(node.input)
    carried = set(integer)
    passed: set[str] = set()
    for node in nodes:
        sources = [made_by.get(name) for name in node.input if name and name not in constants]
        names = {"" if source is None else source.name for source in sources}
        if node.op_type in PASSING and names and names <= carried | passed:
            passed.add(node.name)
        read = carried | passed if node.op_type == "Add" and names & carried else carried
        if node.op_type not in CARRIERS or not names or not names <= read:
            continue
        if node.op_type in ABSORBED or node.name in leading:
            carried.add(node.name)
    return [node.name for node in nodes if node.name in carried.difference(integer)]
