"""Board profiles: what the datasheet says before anything is measured, with a source a number."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from latency_models.errors import FormatError, PowerModeNotFound, ProfileNotFound

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["REFERENCE", "BoardProfile", "Clocks", "Fact", "Scales", "available", "load", "parse"]

# In a wheel the profiles lie inside the package, in a checkout beside it.
_FOLDERS = (
    Path(__file__).parent / "boards",
    Path(__file__).parent.parent / "data" / "boards",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """A number and where it comes from.

    ``confirmed`` is False where the number is recollection, or only a start for fitting.
    """

    value: float
    source: str
    confirmed: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise FormatError(f"a profile's numbers are positive and finite, not {self.value}")
        if not self.source:
            raise FormatError(f"the number {self.value} has no source; say where it comes from")
        if not isinstance(self.confirmed, bool):
            raise FormatError(f"confirmed is true or false, not {self.confirmed!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The clocks of a board in Hz; None is not applicable, or in a power mode as in the reference.

    ``sms`` are the streaming multiprocessors that a power mode leaves on; None is all.
    """

    gpu_hz: Fact | None = None
    cpu_hz: Fact | None = None
    memory_hz: Fact | None = None
    sms: Fact | None = None


class Scales(NamedTuple):
    """A power mode over the profile's reference clocks; 1 where nothing is known to change.

    ``gpu`` is the arithmetic's: clock times multiprocessors of the GPU, or the clock of the CPU on
    a profile that has no GPU.
    """

    gpu: float = 1.0
    cpu: float = 1.0
    memory: float = 1.0


REFERENCE = Scales()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardProfile:
    """Datasheet peaks of a board and its runtime: the prior of its latency model.

    ``peak_flops`` per precision in flop/s (a multiply-accumulate is 2; dense, on tensor cores where
    there are any), bandwidths in bytes/s, overheads in seconds: of a kernel, of a network's call,
    what the runtime's profiler adds to each kernel that it times, and what the host needs to queue
    a kernel where host and device work side by side (``enqueue_s``). ``channel_step`` is the width
    of the channel staircase, ``form`` which formula describes the runtime's kernels
    (``roofline.py``). All hold at ``clocks``; ``power_modes`` are what nvpmodel sets.
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
    enqueue_s: Fact | None = None
    form: str = "tiled"
    sms: Fact | None = None
    clocks: Clocks | None = None
    power_modes: Mapping[str, Clocks] = field(default_factory=dict)

    def scales(self, mode: str | None) -> Scales:
        """The clocks of power mode ``mode`` (in any case) over the reference; all 1 for None.

        ``PowerModeNotFound`` lists the modes there are.
        """
        if mode is None:
            return Scales()
        for name, there in self.power_modes.items():
            if name.casefold() == mode.casefold():
                here = self.clocks or Clocks()
                cpu = _ratio(there.cpu_hz, here.cpu_hz)
                gpu = cpu
                if here.gpu_hz is not None:
                    gpu = _ratio(there.gpu_hz, here.gpu_hz) * _ratio(there.sms, self.sms)
                return Scales(gpu=gpu, cpu=cpu, memory=_ratio(there.memory_hz, here.memory_hz))
        known = ", ".join(self.power_modes) or "none"
        raise PowerModeNotFound(
            f"the profile {self.name} has no power mode {mode!r}: there are {known}; add it to a "
            "copy of the profile's .toml file, and give that file's path"
        )

    def facts(self) -> tuple[tuple[str, Fact], ...]:
        """Every number of the profile with the name of its field."""
        found = [(f"peak_flops.{key}", fact) for key, fact in self.peak_flops.items()]
        found += [(name, getattr(self, name)) for name in FACTS]
        found += [(n, f) for n in ("sms", "enqueue_s") if (f := getattr(self, n)) is not None]
        for where, clocks in {"clocks": self.clocks, **self.power_modes}.items():
            for name in CLOCKS:
                fact = getattr(clocks, name, None)
                found += [(f"{where}.{name}", fact)] if fact is not None else []
        return tuple(found)


# The fields of a profile that are one number each, and where the file has them.
FACTS = {
    "bandwidth_bytes_per_s": ("memory", "bandwidth_bytes_per_s"),
    "cache_bandwidth_bytes_per_s": ("memory", "cache_bandwidth_bytes_per_s"),
    "cache_bytes": ("memory", "cache_bytes"),
    "kernel_overhead_s": ("overhead", "kernel_s"),
    "network_overhead_s": ("overhead", "network_s"),
    "profiler_overhead_s": ("overhead", "profiler_s"),
    "channel_step": ("channels", "step"),
}
ENQUEUE = ("overhead", "enqueue_s")
FORMS = ("tiled", "mlas")
CLOCKS = ("gpu_hz", "cpu_hz", "memory_hz", "sms")


def _ratio(there: Fact | None, here: Fact | None) -> float:
    return 1.0 if there is None or here is None else there.value / here.value


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
            try:
                text = place.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise FormatError(f"{place} cannot be read: {error}") from error
            return parse(text, where=place.name)
    raise ProfileNotFound(
        f"no board profile {name!r}: there are {', '.join(available())}; or give the path of a "
        ".toml file like them"
    )


def parse(text: str, *, where: str) -> BoardProfile:
    """The profile in TOML ``text``; ``FormatError``, naming ``where`` and the field, if none."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of 5000 digits are a ValueError too
        raise FormatError(f"{where} is not TOML: {error}") from error
    try:
        profile = _profile(table)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(f"{where} is not a board profile: {error} is missing or wrong") from error
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    texts = (profile.name, profile.description, profile.runtime, *profile.precisions)
    if not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{where}: name, description, runtime and precisions are text")
    missing = set(profile.precisions) - set(profile.peak_flops)
    if missing:
        raise FormatError(f"{where} has no peak_flops for {', '.join(sorted(missing))}")
    return profile


def _profile(table: dict[str, Any]) -> BoardProfile:
    clocks = table.get("clocks")
    return BoardProfile(
        name=table["name"],
        description=table["description"],
        runtime=table["runtime"],
        precisions=tuple(table["precisions"]),
        peak_flops={key: _fact(table, "peak_flops", key) for key in table["peak_flops"]},
        **{name: _fact(table, *path) for name, path in FACTS.items()},
        enqueue_s=_fact(table, *ENQUEUE) if "enqueue_s" in table["overhead"] else None,
        form=_form(table),
        sms=_fact(table, "gpu", "sms") if "gpu" in table else None,
        clocks=None if clocks is None else _clocks(table, "clocks"),
        power_modes={
            mode: _clocks(table, "power_modes", mode) for mode in table.get("power_modes", {})
        },
    )


def _form(table: dict[str, Any]) -> str:
    form = table.get("form", FORMS[0])
    if form not in FORMS:
        raise FormatError(f"form is one of {', '.join(FORMS)}, not {form!r}")
    return str(form)


def _clocks(table: dict[str, Any], *path: str) -> Clocks:
    entries = table
    for key in path:
        entries = entries[key]
    unknown = set(entries) - set(CLOCKS)
    if unknown:
        raise FormatError(
            f"{'.'.join([*path, min(unknown)])} is no clock: there are {', '.join(CLOCKS)}"
        )
    return Clocks(**{key: _fact(table, *path, key) for key in entries})


def _fact(table: dict[str, Any], *path: str) -> Fact:
    """The number at ``path``; errors name it."""
    field_name = ".".join(path)
    entry: Any = table
    try:
        for key in path:
            entry = entry[key]
        unknown = set(entry) - {"value", "source", "confirmed"}
        if unknown:
            raise FormatError(f"{min(unknown)!r} is none of value, source, confirmed")
        return Fact(float(entry["value"]), str(entry["source"]), entry.get("confirmed", True))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"{field_name} is missing or wrong ({error}); write it as "
            '{ value = 1.0, source = "data sheet" }'
        ) from error
    except FormatError as error:
        raise FormatError(f"{field_name}: {error}") from error
