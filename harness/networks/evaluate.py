"""ONNX files run on the host."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
from torch import Tensor

from harness.errors import ConfigError

__all__ = [
    "onnx_logits",
    "onnx_outputs",
    "open_session",
    "top1",
]

Array: TypeAlias = npt.NDArray[Any]


def open_session(model: str | bytes, *, threads: int) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the host's CPU for a file or the bytes of one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_outputs(
    path: Path, images: Tensor | npt.NDArray[np.float32], *, threads: int | None = None
) -> list[Array]:
    """All outputs of an ONNX file, each ``(n, ...)``, computed on this computer by onnxruntime.

    The file runs as it is, with its own fixed batch, so the result is the file's own; ``threads``
    single-threaded calls run at once (None: one a core). A batch that does not divide the number
    of images is filled up with copies of the last one. Raises ConfigError where an output has no
    entry an image.
    """
    array = np.ascontiguousarray(np.asarray(images), dtype=np.float32)
    session = open_session(str(path), threads=1)
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else 32
    starts = range(0, len(array), batch)

    def run(start: int) -> list[Array]:
        part = array[start : start + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        outputs = session.run(None, {entry.name: part})
        for about, output in zip(session.get_outputs(), outputs, strict=True):
            if output.ndim == 0 or len(output) != len(part):
                raise ConfigError(
                    f"{path.name} turns {len(part)} images into an output {about.name} of shape "
                    f"{output.shape}; each output needs one entry an image, so export the network "
                    "without what mixes them (such as non-maximum suppression)"
                )
        return [output[:count] for output in outputs]

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        found = list(pool.map(run, starts))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def onnx_logits(
    path: Path, images: Tensor | npt.NDArray[np.float32], *, threads: int | None = None
) -> npt.NDArray[np.float32]:
    """The first of ``onnx_outputs``: for a classifier the logits ``(n, classes)``."""
    logits: npt.NDArray[np.float32] = onnx_outputs(path, images, threads=threads)[0]
    return logits


def top1(logits: Tensor | npt.NDArray[np.float32], labels: Tensor | Array) -> float:
    """The share of images whose largest logit is the label's."""
    return float((np.asarray(logits).argmax(1) == np.asarray(labels)).mean())
