"""The nodes of an ONNX file, without the onnx package, and where the runtime's kernels came from.

Field numbers are those of onnx.proto3: ModelProto.graph 7; GraphProto.node 1, .initializer 5;
NodeProto.input 1, .output 2, .name 3, .op_type 4; TensorProto.name 8.
"""

import re
from collections import deque
from typing import NamedTuple

Node = NamedTuple("Node", [("name", str), ("op", str), ("inputs", list), ("outputs", list)])
# Kernels that onnxruntime inserts to change the layout; they come from no node of the network.
LAYOUT_OPS = ("ReorderInput", "ReorderOutput", "Transpose")
# onnxruntime numbers the copies of a node (_token_3) and marks its blocked layout (_nchwc).
SUFFIX = re.compile(r"(_token_\d+|_nchwc)$")
# A fusion names its kernel after one of the nodes: /act/Mul/QuickGeluFusion/ of /act/Mul.
FUSION = re.compile(r"/\w+Fusion/?$")
# A batch norm that runs as a convolution is named after its output, with this behind.
AS_CONVOLUTION = "_bn"
# How far a fused activation or addition can stand behind the operator that names the kernel, and
# how far behind a known tensor the node of a kernel that has lost its name.
MAX_STEPS_BACK = 4
MAX_STEPS_ON = 3


class NoOnnxFile(ValueError):
    """A file is damaged, cut off, or no ONNX file at all."""


def _varint(data, at):
    value = 0
    # 64 bits are ten bytes; a number without end would take for ever to add up.
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise NoOnnxFile("this is no ONNX file: a number at byte %d has no end" % at)


def _fields(data):
    """``(number, content)`` of the length-delimited fields of a message; others are skipped."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 2:
            size, at = _varint(data, at)
            yield number, data[at : at + size]
            at += size
        elif wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise NoOnnxFile("this is no ONNX file: wire type %d" % wire)
    if at > len(data):
        raise NoOnnxFile("this ONNX file is cut off: %d bytes are missing" % (at - len(data)))


def _text(content):
    return bytes(content).decode("utf-8", "replace")


def _node(data):
    node = Node("", "", [], [])
    for number, content in _fields(data):
        if number == 1:
            node.inputs.append(_text(content))
        elif number == 2:
            node.outputs.append(_text(content))
        elif number in (3, 4):
            node = node._replace(**{"name" if number == 3 else "op": _text(content)})
    return node


def read_nodes(path):
    """The nodes of the main graph, in the file's order, and the names of its initialisers."""
    with open(path, "rb") as stream:
        data = memoryview(stream.read())
    nodes, initialisers = [], set()
    for number, graph in _fields(data):
        if number != 7:
            continue
        for inner, content in _fields(graph):
            if inner == 1:
                nodes.append(_node(content))
            elif inner == 5:
                initialisers.update(_text(name) for field, name in _fields(content) if field == 8)
    return nodes, initialisers


def strip(name):
    """A name without what onnxruntime appends to it."""
    while SUFFIX.search(name):
        name = SUFFIX.sub("", name)
    return name


def _runs(kernel_op, op):
    """Whether a kernel of ``kernel_op`` (QLinearConv, FusedConv, QGemm) computes ``op`` (Conv)."""
    # A MatMul and the Add behind it become one Gemm.
    return bool(op) and (op in kernel_op or (op == "MatMul" and "Gemm" in kernel_op))


class Origin:
    """Finds the original node of a runtime's kernel; "" where the runtime put it in itself.

    ``kernels`` are the nodes of the optimised graph, by which kernels are found that have lost
    every name (1.10's NhwcMaxPool), and the nodes that changes of layout are made for.
    """

    def __init__(self, original, initialisers, kernels=()):
        self._named = {node.name: node for node in original if node.name}
        self._producer = {output: node for node in original for output in node.outputs}
        self._readers = _readers(original)
        self._maker = {output: kernel for kernel in kernels for output in kernel.outputs}
        self._takers = _readers(kernels)
        # A weight or bias that one node alone reads names that node, whatever it was fused with.
        self._reader = {}
        for name in initialisers:
            nodes = [node for node in self._readers.get(name, []) if node.op != "DequantizeLinear"]
            if len(nodes) == 1:
                self._reader[name] = nodes[0]

    def of(self, kernel):
        """Name of the original node of ``kernel``, a node of the optimised graph."""
        name = strip(kernel.name)
        for known in (name, FUSION.sub("", name)):
            if known in self._named:
                return known
        for output in kernel.outputs:
            # Integer kernels of onnxruntime 1.10 are nameless; their outputs carry the node's name.
            if kernel.op not in LAYOUT_OPS and strip(output) in self._named:
                return strip(output)
        if kernel.op in LAYOUT_OPS:
            return ""
        for tensor in kernel.inputs:
            if tensor in self._reader and _runs(kernel.op, self._reader[tensor].op):
                return self._reader[tensor].name
        for tensor in [name] + [strip(output) for output in kernel.outputs]:
            if tensor in self._producer:
                return self._back(self._producer[tensor], kernel.op)
        if name.endswith(AS_CONVOLUTION) and name[: -len(AS_CONVOLUTION)] in self._producer:
            return self._producer[name[: -len(AS_CONVOLUTION)]].name
        return self._on(kernel)

    def serves(self, kernel):
        """The original node that a layout kernel prepares the input of; "" for other kernels.

        At the network's outputs it is the node that made the tensor.
        """
        if kernel.op not in LAYOUT_OPS or self.of(kernel):
            return ""
        queue, seen = deque([kernel]), set()
        while queue:
            for output in queue.popleft().outputs:
                takers = [] if output in seen else self._takers.get(output, [])
                seen.add(output)  # once: a graph that goes in a circle has no end
                for taker in takers:
                    if self.of(taker):
                        return self.of(taker)
                    queue.append(taker)
        return self._source(kernel)

    def _source(self, kernel):
        """The original node that the first of the kernel's inputs comes from."""
        for _ in range(MAX_STEPS_BACK):
            if not kernel.inputs:
                return ""
            tensor = strip(kernel.inputs[0])
            if tensor in self._named:
                return tensor
            if tensor in self._producer:
                return self._producer[tensor].name
            if kernel.inputs[0] not in self._maker:
                return ""
            kernel = self._maker[kernel.inputs[0]]
            if kernel.op not in LAYOUT_OPS:
                return self.of(kernel)
        return ""

    def _on(self, kernel):
        """The one nearest node with the kernel's operator behind the node that made its input."""
        known = self._named.get(self._source(kernel))
        nodes = [known] if known is not None else []
        for _ in range(MAX_STEPS_ON):
            readers = {
                id(reader): reader
                for node in nodes
                for output in node.outputs
                for reader in self._readers.get(output, [])
            }
            nodes = list(readers.values())
            found = {node.name for node in nodes if _runs(kernel.op, node.op)}
            if found:
                return found.pop() if len(found) == 1 else ""
        return ""

    def _back(self, last, op):
        """The nearest node before ``last`` that has the kernel's operator; ``last`` if none has."""
        queue, seen = deque([(last, 0)]), {id(last)}
        while queue:
            node, steps = queue.popleft()
            if _runs(op, node.op):
                return node.name
            before = (self._producer.get(name) for name in node.inputs)
            for one in before if steps < MAX_STEPS_BACK else ():
                # Once is enough: nodes that read many tensors of each other make paths without end.
                if one is not None and id(one) not in seen:
                    seen.add(id(one))
                    queue.append((one, steps + 1))
        return last.name


def _readers(nodes):
    readers = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers
