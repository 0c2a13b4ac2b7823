"""The only place with SI prefixes: parsing of "20 ms" and "4 MB", formatting of the same.

Sizes are decimal as in DESIGN's budgets (1 MB = 1e6 bytes); KiB and MiB are understood when read.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

from harness.errors import ConfigError
from harness.records import Budget, Requirement

__all__ = [
    "format_amount",
    "format_count",
    "format_energy",
    "format_points",
    "format_size",
    "format_time",
    "parse_accuracy_drop",
    "parse_duration",
    "parse_latency",
    "parse_limit",
    "parse_rate",
    "parse_share",
    "parse_size",
]

_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = {"s": 1.0, "min": 60.0, "h": 3600.0}
_SIZE = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20}
_ENERGY = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6}
_COUNT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_RATE = {"fps": 1.0, "/s": 1.0, "Hz": 1.0}
_LIMITS = {
    "time": (_TIME, "40ms or 60%"),
    "size": (_SIZE, "3MB or 25%"),
    "energy": (_ENERGY, "20mJ or 50%"),
    "count": (_COUNT, "2M or 50%"),
}
# A board's job may hold its lease for no longer than a working day.
MAX_DURATION_S = 8 * 3600.0
_QUANTITY = re.compile(r"\s*([+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([^\s]*)\s*")


def _parse(text: str, *, name: str, units: dict[str, float], example: str) -> tuple[float, bool]:
    match = _QUANTITY.fullmatch(text)
    known = [*units, "%"]
    if match is None:
        raise ConfigError(f"{name} {text!r} is not a number with a unit; write {example}")
    number, unit = float(match[1]), match[2]
    if unit not in known:
        what = f"the unit {unit!r} is unknown" if unit else "the unit is missing"
        listed = ", ".join(one for one in known if one)
        raise ConfigError(f"{name} {text!r}: {what}; use one of {listed}, for example {example}")
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{name} {text!r} must be greater than zero, for example {example}")
    return (number / 100, True) if unit == "%" else (number * units[unit], False)


def parse_latency(text: str) -> Budget:
    """The latency budget in ``text``: "4ms", or "22%" of the baseline's latency."""
    limit, relative = _parse(text, name="--latency", units=_TIME, example="4ms or 22%")
    return Budget(quantity="latency", limit=limit, relative=relative, text=text.strip())


def parse_size(text: str) -> Budget:
    """The size budget in ``text``: "1.5MB", or "20%" of the baseline's file."""
    limit, relative = _parse(text, name="--size", units=_SIZE, example="1.5MB or 20%")
    return Budget(quantity="size", limit=limit, relative=relative, text=text.strip())


def parse_limit(
    text: str, *, name: str, of: Literal["time", "size", "energy", "count"]
) -> tuple[float, bool]:
    """The limit in ``text`` in SI units or as a share ("60%" is 0.6), and whether it is a share.

    ``name`` is what the user calls it, ``of`` what it limits. ConfigError says how to write it.
    """
    units, example = _LIMITS[of]
    return _parse(text, name=name, units=units, example=example)


def parse_rate(text: str, *, name: str) -> float:
    """The calls a second in ``text``: "25fps", "25/s", or a plain number."""
    plain = text if re.search(r"[^\d.eE+\s-]", text) else f"{text.strip()}/s"
    rate, relative = _parse(plain, name=name, units=_RATE, example="25fps")
    if relative:
        raise ConfigError(f"{name} {text!r} is a share; give calls a second, for example 25fps")
    return rate


def parse_share(text: str, *, name: str) -> float:
    """The share of 1 in ``text``: "91.5%", or 0.915."""
    value, relative = _parse(text, name=name, units={"": 1.0}, example="91.5%")
    if not relative and value > 1:
        raise ConfigError(f"{name} {text!r} is more than all; write it as a share, {value:g}%")
    if value > 1:
        raise ConfigError(f"{name} {text!r} is more than 100 %, which no network reaches")
    return value


def parse_duration(text: str, *, name: str) -> float:
    """The seconds in ``text``: "5min", "90s", "1h" or "0"; ``name`` is the option's."""
    if text.strip() == "0":
        return 0.0
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _DURATION:
        raise ConfigError(
            f"{name} {text!r} is no duration; write a number and one of {', '.join(_DURATION)}, "
            "for example 5min, or 0 for none"
        )
    seconds = float(match[1]) * _DURATION[match[2]]
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_DURATION_S):
        raise ConfigError(
            f"{name} {text!r} must be between 0 and {MAX_DURATION_S / 3600:.0f} hours"
        )
    return seconds


def parse_accuracy_drop(points: float) -> Budget:
    """The budget on accuracy: at most ``points`` percentage points of top-1 lost."""
    if not (math.isfinite(points) and 0 <= points <= 100):
        raise ConfigError(f"--max-drop {points} must be between 0 and 100 points of top-1")
    return Budget(quantity="accuracy_drop", limit=points, relative=False, text=f"{points:g} points")


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    factor, unit = next(
        ((factor, unit) for factor, unit in steps if abs(value) >= factor), steps[-1]
    )
    scaled = value / factor
    digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
    return f"{scaled:.{digits}f} {unit}".rstrip()


def format_time(seconds: float) -> str:
    """``seconds`` with three significant digits and the prefix that suits: "1.23 ms"."""
    return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")))


def format_size(size_bytes: float) -> str:
    """``size_bytes`` with three significant digits: "1.50 MB"."""
    if abs(size_bytes) < 1000:
        return f"{size_bytes:.0f} B"
    return _scaled(size_bytes, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def format_energy(joules: float) -> str:
    """``joules`` with three significant digits and the prefix that suits: "12.3 mJ"."""
    return _scaled(joules, ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")))


def format_count(count: float) -> str:
    """A number of things (parameters, MACs) with three significant digits: "148 M"."""
    if abs(count) < 1000:
        return f"{count:.0f}"
    return _scaled(count, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))


def format_points(points: float) -> str:
    """``points`` of accuracy with at most two digits after the point: "1.25 points"."""
    shown = f"{points:.2f}".rstrip("0").rstrip(".")
    shown = "0" if shown == "-0" else shown
    return f"{shown} point" if shown == "1" else f"{shown} points"


_AMOUNTS: Mapping[str, Callable[[float], str]] = {
    "latency": format_time,
    "size": format_size,
    "engine_size": format_size,
    "peak_memory": format_size,
    "parameters": format_count,
    "macs": format_count,
    "energy": format_energy,
    "accuracy_floor": lambda share: f"{100 * share:.2f} %",
    "accuracy_drop": format_points,
}


def format_amount(requirement: Requirement, value: float) -> str:
    """``value`` in the unit of a requirement's limit: "20.0 ms", or "25.0 %" of the original."""
    if requirement.relative:
        return f"{100 * value:.1f} %"
    return _AMOUNTS[requirement.quantity](value)
