"""Engines of TensorRT-RTX: the functions of ``engine_tensorrt`` with its bindings."""

from .engine_tensorrt import Flavour, is_serialised

__all__ = [
    "RUNTIME",
    "build",
    "clock",
    "gpu",
    "infer",
    "is_serialised",
    "load",
    "profile",
    "version",
]

RUNTIME = "tensorrt_rtx"
_flavour = Flavour(RUNTIME)
clock = _flavour.clock
version, gpu, build, load = _flavour.version, _flavour.gpu, _flavour.build, _flavour.load
profile, infer = _flavour.profile, _flavour.infer
