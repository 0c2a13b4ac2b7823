"""Which nodes of an ONNX file a TensorRT layer computes, by the name that TensorRT gave it.

The parser names a layer after its node, ``node_of_OUTPUT`` where the node has no name, with a
suffix where one node becomes several layers. The builder joins the names of what it fuses:
``a + b`` (one after the other), ``a || b`` (side by side), ``PWN(a, b)`` (pointwise),
``{ForeignNode[a...b]}`` (all from a to b). From 8.6 on a layer's metadata repeats the nodes' own
names. Source: ModelImporter and ImporterContext of onnx-tensorrt, and layer lists of 8.0 to 10.
"""

import re

from . import onnx_nodes

# What stands between names, or around them.
BETWEEN = re.compile(r" \+ | \|\| |\|\||, |PWN\(|\{ForeignNode\[|\]\}|\)")
RANGE = re.compile(r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}")
# Since 8.0, and until 7.2.
REFORMAT = re.compile(
    r"Reformatting CopyNode for (?:Input|Output) Tensor \d+ to (?P<after>.+)\Z"
    r"|(?P<before>.+) (?:input|output) reformatter \d+\Z"
)
# A Concat has no layer: what is not written in place is copied, by a layer named after the tensor.
COPY = re.compile(r"(.+) copy\Z")
METADATA = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
UNNAMED = "node_of_"
# What a node's further layers are called: Q and DQ are scales in 8.x, others are numbered.
SUFFIX = re.compile(r"(_(?:de)?quantize_scale_node|_clip|_\d+)\Z")
# A fused kernel is known by the one of its nodes that costs most.
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LIGHT = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Identity")


class Names:
    """The nodes of a network, to be found by the names of TensorRT's layers."""

    def __init__(self, nodes):
        self._order = [_name_of(node) for node in nodes]
        self._ops = {_name_of(node): node.op for node in nodes}
        self._place = {name: place for place, name in enumerate(self._order)}
        self._joined = {
            tensor: _name_of(node)
            for node in nodes
            if node.op == "Concat"
            for tensor in node.inputs
        }

    def __contains__(self, name):
        return name in self._ops

    def op(self, name):
        """The operator of a node, or ""."""
        return self._ops.get(name, "")

    def nodes(self, layer, metadata=""):
        """Names of the nodes that a layer computes, in the network's order, each once."""
        if REFORMAT.match(layer):
            return []
        found = {name for name in METADATA.findall(metadata) if name in self._ops}
        found = found or set(self._within(layer))
        return sorted(found, key=self._place.get)

    def _within(self, layer):
        whole = self._known(layer)
        if whole:
            return [whole]
        parts = [self._known(part) for part in BETWEEN.split(layer)]
        found = [part for part in parts if part]
        for first, last in RANGE.findall(layer):
            ends = [self._known(name) for name in (first, last)]
            if all(ends):
                low, high = sorted(self._place[name] for name in ends)
                found += self._order[low : high + 1]
        return found

    def _known(self, part):
        """The node of one part of a name, or ""."""
        part = part.strip()
        for name in (part, SUFFIX.sub("", part)):
            if name in self._ops:
                return name
        copied = COPY.match(part)
        return self._joined.get(copied.group(1), "") if copied else ""

    def node(self, layer, metadata=""):
        """The one node that stands for a layer, or "" where it comes from none."""
        names = self.nodes(layer, metadata)
        for wanted in (HEAVY, None):
            for name in names:
                op = self._ops[name]
                if op in HEAVY if wanted else op not in LIGHT:
                    return name
        return names[0] if names else ""

    def serves(self, layer):
        """The node whose input or output a reformatting layer lays out; "" for other layers."""
        found = REFORMAT.match(layer)
        return self.node(found.group("after") or found.group("before")) if found else ""


def _name_of(node):
    return node.name or UNNAMED + (node.outputs[0] if node.outputs else "")


def is_reformat(layer):
    """Whether a layer only changes how a tensor lies in memory."""
    return REFORMAT.match(layer) is not None


def of_network(path):
    """The ``Names`` of an ONNX file."""
    return Names(onnx_nodes.read_nodes(path)[0])
