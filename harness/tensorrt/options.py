"""trtexec's options for building and calling an engine, read into one record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.errors import ConfigError
from harness.records import BoardSpec, BuildSettings
from harness.tensorrt.rebuilds import MOST_REBUILDS
from harness.tensorrt.versions import is_tensorrt

__all__ = ["EngineOptions", "for_board", "parse_pools", "parse_workspace", "read"]

MIB = 1 << 20
_UNITS = {"": MIB, "B": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30}
Precision = Literal["fp32", "fp16", "int8", "best"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the user asks of the builder and of calls; all are trtexec's defaults."""

    precision: Precision = "fp32"
    tf32: bool = True
    workspace_bytes: int | None = None
    cuda_graph: bool = False
    spin_wait: bool = False
    transfers: bool = True
    rebuilds: int = 1

    @property
    def settings(self) -> BuildSettings:
        """What of it is no matter of precision."""
        return BuildSettings(
            flags=("tf32",) if self.tf32 else (),
            workspace_bytes=self.workspace_bytes,
            cuda_graph=self.cuda_graph,
            spin_wait=self.spin_wait,
            transfers=self.transfers,
        )


def parse_workspace(text: str) -> int:
    """Bytes of ``--workspace``: MiB, as trtexec counts it."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*", text)
    if found is None or not 0 < float(found[1]) <= 1 << 20:
        raise ConfigError(f"--workspace {text!r} is no number of MiB; write 256, for example")
    return round(float(found[1]) * MIB)


def parse_pools(text: str) -> int:
    """Bytes of the workspace in ``--memPoolSize``: ``workspace:256``, with or without B, K, M, G.

    Without a unit it is MiB, as in all versions. The other pools are the DLA's and tactics' shared
    memory, which boardfit leaves alone.
    """
    found = None
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([BKMG]?)(?:i?B)?", size.strip(), re.IGNORECASE)
        if name != "workspace" or match is None or not float(match[1]) > 0:
            raise ConfigError(
                f"--memPoolSize {part!r}: boardfit sets the workspace alone; write workspace:256M, "
                "for example"
            )
        found = round(float(match[1]) * _UNITS[match[2].upper()])
    if not found:
        raise ConfigError(f"--memPoolSize {text!r} sets less than a byte; write workspace:256M")
    return found


def read(
    *,
    fp16: bool = False,
    int8: bool = False,
    best: bool = False,
    no_tf32: bool = False,
    workspace: str | None = None,
    mem_pool_size: str | None = None,
    use_cuda_graph: bool = False,
    use_spin_wait: bool = False,
    no_data_transfers: bool = False,
    rebuilds: int = 1,
) -> EngineOptions:
    """The options as given; ConfigError says which of them is none."""
    if not 1 <= rebuilds <= MOST_REBUILDS:
        raise ConfigError(f"--rebuilds {rebuilds} is not between 1 and {MOST_REBUILDS}")
    return EngineOptions(
        precision="best" if best or (fp16 and int8) else _one(fp16=fp16, int8=int8),
        tf32=not no_tf32,
        workspace_bytes=_limit(workspace, mem_pool_size),
        cuda_graph=use_cuda_graph,
        spin_wait=use_spin_wait,
        transfers=not no_data_transfers,
        rebuilds=rebuilds,
    )


def for_board(options: EngineOptions, spec: BoardSpec) -> EngineOptions | None:
    """The options on a board with TensorRT; None on others, where giving any is ConfigError."""
    if is_tensorrt(spec.runtime):
        return options
    if options != EngineOptions():
        raise ConfigError(
            f"board {spec.name} runs {spec.runtime}, and --fp16, --int8, --best, --noTF32, "
            "--workspace, --memPoolSize, --useCudaGraph, --useSpinWait, --noDataTransfers and "
            '--rebuilds are TensorRT\'s; set runtime = "tensorrt" for the board, or leave them out'
        )
    return None


def _one(*, fp16: bool, int8: bool) -> Precision:
    return "fp16" if fp16 else "int8" if int8 else "fp32"


def _limit(workspace: str | None, pools: str | None) -> int | None:
    if workspace is not None and pools is not None:
        raise ConfigError("--workspace and --memPoolSize limit the same memory; give one of them")
    if workspace is not None:
        return parse_workspace(workspace)
    return None if pools is None else parse_pools(pools)
