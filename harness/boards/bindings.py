"""Boards with trtexec and without TensorRT's Python bindings: what is known of them."""

from __future__ import annotations

from collections.abc import Callable

from harness.boards.wire import Frame, schema
from harness.errors import ConfigError, StableBoardError
from harness.records import BoardSpec

__all__ = ["RUNTIME", "check_runtime", "probe"]

RUNTIME = "trtexec"
# Has no library to load, so that the probe tells of the board alone.
_NO_RUNTIME = "fake"


def check_runtime(spec: BoardSpec) -> None:
    """Nothing; ConfigError where no agent has the board's runtime."""
    known = [*schema()["$defs"]["runtime"]["enum"], RUNTIME]
    if spec.runtime not in known:
        raise ConfigError(
            f"board {spec.name}: runtime {spec.runtime!r} is none of {', '.join(known)}"
        )


def probe(ask: Callable[[str, Frame], Frame], spec: BoardSpec) -> Frame:
    """The probe's answer for a board where trtexec is to run: its version in the runtime's place.

    StableBoardError where there is no trtexec, or one that does not tell its version.
    """
    found = ask("probe", {"runtime": _NO_RUNTIME})
    tool = ask("inspect", {"section": "tensorrt"})["facts"]["trtexec"]
    if tool is None or tool["version"] is None:
        what = "there is no trtexec" if tool is None else f"{tool['path']} tells no version"
        raise StableBoardError(
            f"board {spec.name}: {what}; install TensorRT there (sudo apt-get install tensorrt), "
            'or set another runtime = "..." for the board in boards.toml'
        )
    gpus = ask("inspect", {"section": "system"})["facts"]["gpus"]
    gpu = None
    if gpus:
        unknown = dict.fromkeys(("fast_fp16", "fast_int8", "total_bytes", "free_bytes"))
        gpu = {"name": gpus[0]["name"], "compute": gpus[0]["compute"], **unknown}
    answer = {"runtime": RUNTIME, "runtime_version": tool["version"], "runtime_error": None}
    return {**found, **answer, "providers": [], "gpu": gpu}
