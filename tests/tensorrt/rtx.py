"""Builds networks with TensorRT-RTX and prints what came of each, as a line of JSON.

``python rtx.py FILE.onnx ...``, with a Python that has ``tensorrt_rtx`` (no GPU is needed). It
imports nothing of ours, so that the package may live in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Where TensorRT-RTX is not installed beside boardfit: the Python of another environment.
OTHER = "BOARDFIT_RTX_PYTHON"


def build(path: str) -> dict[str, Any]:
    """Parsed and built, or the parser's errors: each with code, node and words."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    found: dict[str, Any] = {"path": path, "version": trt.__version__, "errors": []}
    found["parsed"] = parser.parse(Path(path).read_bytes())
    if not found["parsed"]:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        found["errors"] = [f"{one.node_name()}: {one.desc()}" for one in errors]
        return {**found, "built": False, "size_bytes": None, "build_s": None}
    found["layers"] = network.num_layers
    found["types"] = sorted(
        {str(network.get_layer(i).get_output(0).dtype) for i in range(network.num_layers)}
    )
    begun_s = time.monotonic()
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    took_s = time.monotonic() - begun_s
    if engine is None:
        return {**found, "built": False, "size_bytes": None, "build_s": took_s}
    return {**found, "built": True, "size_bytes": engine.nbytes, "build_s": took_s}


def python() -> str | None:
    """A Python that can import ``tensorrt_rtx``; None where there is none."""
    for path in (os.environ.get(OTHER), sys.executable):
        if path:
            found = subprocess.run(
                [path, "-c", "import tensorrt_rtx"], capture_output=True, check=False
            )
            if found.returncode == 0:
                return path
    return None


def version(interpreter: str) -> str:
    """The version that an interpreter imports."""
    ask = "import tensorrt_rtx; print(tensorrt_rtx.__version__)"
    done = subprocess.run([interpreter, "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def build_all(interpreter: str, paths: list[Path]) -> list[dict[str, Any]]:
    """``build`` of every file, in one process of ``interpreter``."""
    done = subprocess.run(
        [interpreter, __file__, *map(str, paths)], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(build(name)), flush=True)
