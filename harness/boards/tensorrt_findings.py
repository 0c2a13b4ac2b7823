"""From what a board tells of TensorRT, trtexec and CUDA to the doctor's check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.boards.limits import onnx_limits
from harness.records import BoardSpec, Check, CheckStatus

__all__ = ["how_to_install", "tensorrt"]

Facts = Mapping[str, Any]


def how_to_install(runtime: str, python: str) -> str:
    """What to do where a runtime is not there for a Python."""
    if runtime == "tensorrt":
        return (
            "on a Jetson sudo apt-get install tensorrt python3-libnvinfer, a virtual environment "
            f"made with --system-site-packages; elsewhere {python} -m pip install tensorrt"
        )
    if runtime == "trtexec":
        return "sudo apt-get install libnvinfer-bin; JetPack puts it into /usr/src/tensorrt/bin"
    package = "tensorrt-rtx-cu13" if runtime == "tensorrt_rtx" else runtime
    return f"{python} -m pip install {package}"


def tensorrt(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """TensorRT's Python bindings and trtexec."""
    needed = spec.runtime in ("tensorrt", "tensorrt_rtx", "trtexec")
    tool, version, rtx = facts["trtexec"], facts["version"], facts.get("rtx")
    parts = []
    if version is not None:
        known = onnx_limits("tensorrt", version)
        limit = f", opset {known.opset}{'' if known.proven else ' at least'}" if known else ""
        parts.append(f"{version} for {spec.python}{limit}")
    if rtx is not None:
        parts.append(f"TensorRT-RTX {rtx} for {spec.python}")
    if tool is not None:
        parts.append(f"trtexec {tool['version'] or 'of unknown version'} in {tool['path']}")
    by_runtime = {"trtexec": tool, "tensorrt": version, "tensorrt_rtx": rtx}
    missing = facts.get("missing")
    if by_runtime.get(spec.runtime, version or rtx) is not None:
        if facts["error"] and version is not None:
            parts.append(f"but its builder does not start: {facts['error']}")
            return (_check("fail" if needed else "warn", parts, "is the GPU free?", facts),)
        if missing:
            status: CheckStatus = "fail" if needed else "skip"
            return (_check(status, [*parts, missing], _cuda_remedy(missing), facts),)
        return (_check("ok", parts, None, facts),)
    if not parts:
        parts = [missing or f"not there for {spec.python} ({facts['error']}), nor is trtexec"]
    elif spec.runtime == "trtexec":
        parts.append("but no trtexec")
    elif spec.runtime == "tensorrt_rtx":
        parts.append(f"but no TensorRT-RTX for {spec.python}")
    elif version is None:
        parts.append(f"but no Python bindings for {spec.python}: {facts['error']}")
    remedy = how_to_install(spec.runtime if needed else "tensorrt", spec.python)
    status = "fail" if needed else "warn" if tool is not None else "skip"
    return (_check(status, parts, remedy, facts),)


def _cuda_remedy(missing: str) -> str:
    """Of CUDA's library or, where that is there, of the GPU behind it."""
    if "no libcudart" in missing:
        return "install CUDA's runtime, or name its libcudart.so with BOARDFIT_CUDART there"
    return (
        "see that there is an NVIDIA GPU, that its driver is loaded and as new as CUDA "
        "(nvidia-smi), and on a Jetson that the user is in the group video"
    )


def _check(status: CheckStatus, parts: list[str], remedy: str | None, facts: Facts) -> Check:
    remedy = None if status in ("ok", "skip") else remedy
    return Check(name="tensorrt", status=status, found="; ".join(parts), remedy=remedy, facts=facts)
