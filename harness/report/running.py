"""What a board was set to, and what it did, during a run: for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from harness.records import BoardSettings, Measurement, Telemetry

__all__ = ["running_json", "running_lines", "settings_text", "telemetry_text"]


def running_json(measurement: Measurement) -> dict[str, Any]:
    """Settings, telemetry and warnings of one measurement."""
    settings, telemetry = measurement.settings, measurement.telemetry
    return {
        "settings": None if settings is None else asdict(settings),
        "telemetry": None if telemetry is None else asdict(telemetry),
        "warnings": list(measurement.warnings),
    }


def running_lines(measurement: Measurement) -> tuple[str, ...]:
    """The same in sentences; nothing where nothing is known."""
    lines = []
    if measurement.settings is not None and (known := settings_text(measurement.settings)):
        lines.append(f"Settings: {known}")
    if measurement.telemetry is not None:
        lines.append(f"Telemetry: {telemetry_text(measurement.telemetry)}")
    return (*lines, *(f"Warning: {text}" for text in measurement.warnings))


def _mhz(clock_hz: float) -> str:
    return f"{clock_hz / 1e6:.5g} MHz"


def settings_text(settings: BoardSettings) -> str:
    """What is known of the settings, with commas between."""
    parts = []
    if settings.power_mode is not None:
        parts.append(f"power mode {settings.power_mode}")
    if settings.clocks_locked is not None:
        parts.append("clocks locked" if settings.clocks_locked else "clocks not locked")
    if settings.governor is not None:
        parts.append(f"governor {settings.governor}")
    if settings.cpu_max_hz is not None:
        parts.append(f"{settings.cpus_online} CPUs up to {_mhz(settings.cpu_max_hz)}")
    if settings.gpu_max_hz is not None:
        parts.append(f"GPU up to {_mhz(settings.gpu_max_hz)}")
    if settings.fan_pwm is not None:
        parts.append(f"fan at pwm {settings.fan_pwm}")
    return ", ".join(parts)


def _range(values: Iterable[float | None], word: Callable[[float], str]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = word(min(known)), word(max(known))
    return low if low == high else f"{low} to {high}"


def telemetry_text(telemetry: Telemetry) -> str:
    """How often the board was looked at, what that cost, and the range of what was seen."""
    samples = telemetry.samples
    if not samples:
        return f"the run was over before the first look (one every {telemetry.period_s:g} s)"
    parts = [
        f"{len(samples)} look{'' if len(samples) == 1 else 's'}, one every "
        f"{telemetry.period_s:g} s, which cost {telemetry.cost_share:.2%} of one CPU"
    ]
    seen = (
        ("CPU", _range((s.cpu_clock_hz for s in samples), _mhz)),
        ("GPU", _range((s.gpu_clock_hz for s in samples), _mhz)),
        ("", _range((s.temp_c for s in samples), lambda value: f"{value:.0f} °C")),
        ("", _range((s.power_w for s in samples), lambda value: f"{value:.1f} W")),
    )
    parts += [f"{name} {text}".strip() for name, text in seen if text is not None]
    slowed = [s for s in samples if s.throttled]
    if slowed:
        parts.append(f"throttled in {len(slowed)} of {len(samples)} looks")
    elif any(s.throttled is not None for s in samples):
        parts.append("never throttled")
    return ", ".join(parts)
