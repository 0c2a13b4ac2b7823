"""Which kernel a row of the runtime's profile is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from latency_models.kernels import Kernel

__all__ = ["ProfileRow", "match"]

# (name of the runtime's kernel, its operator, the ONNX node it came from or "", seconds)
ProfileRow = tuple[str, str, str, float]

# What onnxruntime appends to a node's name when it fuses or copies it.
_SUFFIX = re.compile(r"(_token_\d+|_bn_nchwc|_nchwc|/QuickGeluFusion/|/GeluFusion/|/duplicated)$")
_LAYOUT_KINDS = {
    "ReorderInput": "reorder_input",
    "ReorderOutput": "reorder_output",
    "Transpose": "transpose",
    "Reformat": "reformat",
}


def match(kernels: Sequence[Kernel], rows: Sequence[ProfileRow]) -> dict[str, float]:
    """Seconds by kernel name, for those of ``kernels`` that are found in the profile ``rows``.

    ``rows`` are in order of execution. A row is found by the node it came from, by its own name, or
    by the tensor it writes. Reorders, reformats and transposes have no node: they belong to the
    kernel next in the profile that reads, or last that wrote, the tensor they move.
    """
    by_node = {node: k for k in kernels for node in k.nodes}
    by_output = {k.output: k for k in kernels if k.nodes}
    layout = [k for k in kernels if not k.nodes]
    found: list[Kernel | None] = []
    for name, op, node, _ in rows:
        own = None if op in _LAYOUT_KINDS and not node else _find(name, node, by_node, by_output)
        found.append(own)
    times: dict[str, float] = {}
    for index, ((_, op, _, seconds), kernel) in enumerate(zip(rows, found, strict=True)):
        if kernel is None and op in _LAYOUT_KINDS:
            before = next((k for k in reversed(found[:index]) if k is not None), None)
            after = next((k for k in found[index + 1 :] if k is not None), None)
            kernel = _moved(layout, _LAYOUT_KINDS[op], before, after)
            if kernel is not None:
                layout.remove(kernel)
        if kernel is not None and kernel.name not in times:
            times[kernel.name] = seconds
    return times


def _find(
    name: str, node: str, by_node: dict[str, Kernel], by_output: dict[str, Kernel]
) -> Kernel | None:
    bare = name
    while _SUFFIX.search(bare):
        bare = _SUFFIX.sub("", bare)
    for candidate in (node, name, bare):
        if candidate in by_node:
            return by_node[candidate]
    return by_output.get(bare)


def _moved(
    layout: Sequence[Kernel], kind: str, before: Kernel | None, after: Kernel | None
) -> Kernel | None:
    for kernel in layout:
        if kernel.kind == kind and after is not None and kernel.output in after.inputs:
            return kernel
    for kernel in layout:
        if kernel.kind == kind and before is not None and kernel.output == before.output:
            return kernel
    return None
