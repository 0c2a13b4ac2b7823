"""What onnxruntime allocates for a network's activations, from what its arena says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx

__all__ = ["allocated", "local_runtime", "planned"]

# A process of its own: the arena is one for all sessions, and it reports to stderr.
_RUN = """
import sys
import numpy as np
import onnxruntime as ort

ort.set_default_logger_severity(1)
arena = ort.OrtArenaCfg({"arena_extend_strategy": 1})  # as requested
memory = ort.OrtMemoryInfo(
    "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
)
ort.create_and_register_allocator(memory, arena)
options = ort.SessionOptions()
options.enable_mem_pattern = sys.argv[2] == "planned"
options.intra_op_num_threads = 1
options.add_session_config_entry("session.use_env_allocators", "1")
options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
entry = session.get_inputs()[0]
for run in range(2):
    print("RUN", file=sys.stderr, flush=True)
    session.run(None, {entry.name: np.zeros(entry.shape, np.float32)})
"""


def local_runtime() -> str:
    """The fusion rules of this computer's onnxruntime, by the vectors that its processor has."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if "avx512f" in flags:
        return "onnxruntime-cpu"
    return "onnxruntime-cpu-avx2" if "avx2" in flags else "onnxruntime-cpu-arm"


def _extensions(path: Path, mode: str) -> list[list[int]]:
    """The bytes that were requested each time the arena was extended, in each of two runs."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path), mode],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    runs = done.stderr.split("RUN\n")[1:]
    return [[int(n) for n in re.findall(r"\(requested\) num_bytes: (\d+)", run)] for run in runs]


def allocated(path: Path) -> int:
    """What the arena comes to where tensors are asked for one by one."""
    first, second = _extensions(path, "grown")
    assert first and not second, "the second run finds everything there"
    return sum(first)


def planned(path: Path) -> int:
    """The block that holds all tensors where they were planned ahead, and the outputs beside it."""
    _, (size,) = _extensions(path, "planned")
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path))
    outputs = 0
    for value in inferred.graph.output:
        elements = 1
        for dim in value.type.tensor_type.shape.dim:
            elements *= dim.dim_value
        outputs += 4 * elements
    return size + outputs
