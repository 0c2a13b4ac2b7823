"""Board profiles: what the datasheet says before anything is measured, with a source a number."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency_models.errors import FormatError, ProfileNotFound

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BoardProfile", "Fact", "available", "load", "parse"]

# In a wheel the profiles lie inside the package, in a checkout beside it.
_FOLDERS = (
    Path(__file__).parent / "boards",
    Path(__file__).parent.parent / "data" / "boards",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A number and where it comes from."""

    value: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise FormatError(f"a profile's numbers are positive and finite, not {self.value}")
        if not self.source:
            raise FormatError(f"the number {self.value} has no source; say where it comes from")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardProfile:
    """Datasheet peaks of a board and its runtime: the prior of its latency model.

    ``peak_flops`` per precision in flop/s (a multiply-accumulate is 2), bandwidths in bytes/s,
    overheads in seconds: of a kernel, of a network's call, and what the runtime's profiler adds to
    each kernel that it times. ``channel_step`` is the width of the channel staircase.
    """

    name: str
    description: str
    runtime: str
    precisions: tuple[str, ...]
    peak_flops: Mapping[str, Fact]
    bandwidth_bytes_per_s: Fact
    cache_bandwidth_bytes_per_s: Fact
    cache_bytes: Fact
    kernel_overhead_s: Fact
    network_overhead_s: Fact
    profiler_overhead_s: Fact
    channel_step: Fact


def available() -> tuple[str, ...]:
    """The names of the profiles that are installed."""
    return tuple(sorted({p.stem for folder in _FOLDERS for p in folder.glob("*.toml")}))


def load(name: str) -> BoardProfile:
    """The profile called ``name``, or in the TOML file at that path.

    ``ProfileNotFound`` if there is none.
    """
    places = [folder / f"{name}.toml" for folder in _FOLDERS]
    if name.endswith(".toml"):
        places = [Path(name)]
    for place in places:
        if place.is_file():
            return parse(place.read_text(), where=place.name)
    raise ProfileNotFound(
        f"no board profile {name!r}: there are {', '.join(available())}; or give the path of a "
        ".toml file like them"
    )


def parse(text: str, *, where: str) -> BoardProfile:
    """The profile in TOML ``text``; ``FormatError``, naming ``where``, if it is none."""
    try:
        table = tomllib.loads(text)
        memory, overhead = table["memory"], table["overhead"]
        profile = BoardProfile(
            name=table["name"],
            description=table["description"],
            runtime=table["runtime"],
            precisions=tuple(table["precisions"]),
            peak_flops={key: _fact(entry) for key, entry in table["peak_flops"].items()},
            bandwidth_bytes_per_s=_fact(memory["bandwidth_bytes_per_s"]),
            cache_bandwidth_bytes_per_s=_fact(memory["cache_bandwidth_bytes_per_s"]),
            cache_bytes=_fact(memory["cache_bytes"]),
            kernel_overhead_s=_fact(overhead["kernel_s"]),
            network_overhead_s=_fact(overhead["network_s"]),
            profiler_overhead_s=_fact(overhead["profiler_s"]),
            channel_step=_fact(table["channels"]["step"]),
        )
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{where} is not TOML: {error}") from error
    except (KeyError, TypeError) as error:
        raise FormatError(f"{where} is not a board profile: {error} is missing or wrong") from error
    missing = set(profile.precisions) - set(profile.peak_flops)
    if missing:
        raise FormatError(f"{where} has no peak_flops for {', '.join(sorted(missing))}")
    return profile


def _fact(entry: Mapping[str, Any]) -> Fact:
    return Fact(float(entry["value"]), str(entry["source"]))
