"""What each version of TensorRT can do, as far as it decides what is sent to a board."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import ConfigError

__all__ = ["RELEASES", "Release", "is_tensorrt", "release_of"]

Typing = Literal["weak", "both", "strong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One line of versions, from ``since`` (major, minor) to the next.

    - ``opset``: the highest that its parser's documentation names.
    - ``typing``: ``weak``: builder flags and precisions of single layers choose; ``strong``: the
      file's types alone; ``both``: either.
    - ``layer_flags``: whether trtexec takes precisions of single layers (``--layerPrecisions``).
    - ``pools``: whether memory is limited by ``--memPoolSize``, else by ``--workspace``.
    - ``integer_weights``: whether int8 initializers are read; else weights are floats behind Q.
    - ``half_scales``: whether Q and DQ may have fp16 scales (ONNX opset 19), so that a strongly
      typed network can go from int8 to fp16 without fp32 between.
    - ``layer_info``: whether a built engine tells its layers.
    - ``operators_by``: what says which operators it reads, where no matrix of its own was found.
    """

    name: str
    since: tuple[int, int]
    opset: int
    typing: Typing
    layer_flags: bool
    pools: bool
    integer_weights: bool
    half_scales: bool
    layer_info: bool
    operators_by: str = ""


# Opsets: docs/operators.md of onnx-tensorrt (8.0 and 8.4: 13, 8.5: 17, 10.15: 9 to 24); the same
# numbers as in boards/limits.py, 10.0 to 10.14 by the nearest earlier release that is known.
# trtexec: 8.0.1 and 8.2.1 lack --layerPrecisions and --memPoolSize, which came with 8.4, and 8.0.1
# lacks --exportLayerInfo. Weak typing is all there is in 8, and gone in 11 (NVIDIA's migration
# guide). Int8 initializers: refused by the parsers of 8 ("invalid weights type of Int8", 8.0.3 and
# 8.2.5, megvii-research/Sparsebit#16).
# fmt: off
RELEASES = (
    Release(name="8.0", since=(8, 0), opset=13, typing="weak", layer_flags=False, pools=False,
            integer_weights=False, half_scales=False, layer_info=False),
    Release(name="8.2", since=(8, 2), opset=13, typing="weak", layer_flags=False, pools=False,
            integer_weights=False, half_scales=False, layer_info=True,
            operators_by="the matrix of 8.0 and the changelog of 8.2"),
    Release(name="8.4", since=(8, 4), opset=13, typing="weak", layer_flags=True, pools=True,
            integer_weights=False, half_scales=False, layer_info=True),
    Release(name="8.5", since=(8, 5), opset=17, typing="weak", layer_flags=True, pools=True,
            integer_weights=False, half_scales=False, layer_info=True),
    Release(name="8.6", since=(8, 6), opset=17, typing="weak", layer_flags=True, pools=True,
            integer_weights=False, half_scales=False, layer_info=True,
            operators_by="the matrix of 8.5 and the changelog of 8.6"),
    Release(name="9.2", since=(9, 2), opset=19, typing="weak", layer_flags=True, pools=True,
            integer_weights=False, half_scales=False, layer_info=True),
    Release(name="10", since=(10, 0), opset=19, typing="both", layer_flags=True, pools=True,
            integer_weights=True, half_scales=True, layer_info=True,
            operators_by="the matrix of 9.2 and the changelog up to 10.6"),
    Release(name="10.15", since=(10, 15), opset=24, typing="both", layer_flags=True, pools=True,
            integer_weights=True, half_scales=True, layer_info=True),
    Release(name="11", since=(11, 0), opset=25, typing="strong", layer_flags=False, pools=True,
            integer_weights=True, half_scales=True, layer_info=True,
            operators_by="the matrix of 10.15"),
)
# Its parser is that of TensorRT 10.15's time, its networks are strongly typed always (the only
# creation flag that its bindings of 1.7 have is STRONGLY_TYPED).
RTX = Release(name="RTX", since=(1, 0), opset=24, typing="strong", layer_flags=False, pools=True,
              integer_weights=True, half_scales=True, layer_info=True)
# fmt: on


def is_tensorrt(runtime: str) -> bool:
    """Whether a runtime of ``boards.toml`` or a fact's is TensorRT in any form."""
    return runtime in ("tensorrt", "tensorrt_rtx", "trtexec")


def release_of(runtime: str, version: str) -> Release:
    """The release that a version belongs to; ConfigError for one before 8.0 or unreadable.

    TensorRT-RTX counts anew from 1: a ``runtime`` with "rtx" in its name, or a version below 2.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ConfigError(
            f"{version!r} is no version of TensorRT; boardfit doctor shows what the board has"
        )
    wanted = (int(found[1]), int(found[2]))
    if "rtx" in runtime or wanted < (2, 0):
        return RTX
    known = [release for release in RELEASES if release.since <= wanted]
    if not known:
        raise ConfigError(
            f"TensorRT {version} is older than 8.0, the first that boardfit builds with; flash "
            "JetPack 4.6 or later (8.0 to 8.2 on a Jetson Nano)"
        )
    return known[-1]
