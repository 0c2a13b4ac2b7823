"""Which ONNX files a runtime reads: the highest opset and IR version of each of its versions."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["OnnxLimits", "onnx_limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxLimits:
    """The highest opset and IR version that a runtime reads; None: it sets no such limit itself.

    ``proven``: measured, or said by the runtime's own documentation for that version. Otherwise
    they are those of the nearest earlier version, which later ones do not take back.
    """

    opset: int
    ir: int | None
    proven: bool


# onnxruntime: from 1.10 on measured by loading a network of one Relu stamped with each opset and
# IR version (the released wheels for CPython, x86-64); before that, "Version matrix" of its
# docs/Versioning.md.
_ONNXRUNTIME: dict[tuple[int, int], tuple[int, int | None]] = {
    (1, 3): (12, 6),
    (1, 6): (13, 7),
    (1, 8): (14, 7),
    (1, 10): (15, 8),
    (1, 12): (17, 8),
    (1, 14): (18, 8),
    (1, 16): (19, 9),
    (1, 18): (21, 10),
    (1, 20): (21, 10),
    (1, 22): (22, 10),
    (1, 23): (23, 11),
    (1, 24): (25, 13),
    (1, 26): (26, 13),
    (1, 31): (26, 13),
}
# TensorRT: "supports operators up to Opset N" in docs/operators.md of onnx-tensorrt's branch for
# that release (8.0-GA, 8.2-GA, 8.5-GA, 8.6-GA, 9.2, 10.15), and its ONNX Opset Guide for 11. It
# reads later stamps with a warning where all operators are known; it has no limit of IR versions.
_TENSORRT: dict[tuple[int, int], tuple[int, int | None]] = {
    (8, 0): (13, None),
    (8, 2): (13, None),
    (8, 5): (17, None),
    (8, 6): (17, None),
    (9, 2): (19, None),
    (10, 15): (24, None),
    (11, 0): (25, None),
}
_TABLES = {"onnxruntime": _ONNXRUNTIME, "tensorrt": _TENSORRT}


def onnx_limits(runtime: str, version: str) -> OnnxLimits | None:
    """What ``runtime`` in ``version`` reads; None for one that is unknown or older than the table.

    Sources: see the tables above. A version between two of a table gets the earlier one's limits
    and is not ``proven``, unless the later one has the same.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    table = _TABLES.get(runtime, {})
    if not found or not table:
        return None
    wanted = (int(found[1]), int(found[2]))
    earlier = [row for row in table if row <= wanted]
    if not earlier:
        return None
    later = [row for row in table if row >= wanted]
    opset, ir = table[max(earlier)]
    return OnnxLimits(opset=opset, ir=ir, proven=bool(later) and table[min(later)] == (opset, ir))
