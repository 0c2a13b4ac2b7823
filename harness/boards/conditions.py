"""What a board's state before and after a measurement says about trusting it."""

from __future__ import annotations

from harness.records import Conditions

__all__ = ["warnings"]

# Clocks of a board with a fixed governor repeat to a part in a thousand; boost steps are larger.
CLOCK_TOLERANCE = 0.03
TEMP_RISE_C = 10.0
LOW_MEMORY_BYTES = 200 << 20


def _mean(values: tuple[float, ...] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _change(name: str, before: float | None, after: float | None) -> list[str]:
    if not before or after is None or abs(after / before - 1) <= CLOCK_TOLERANCE:
        return []
    return [
        f"the {name} clock changed from {before / 1e6:.0f} to {after / 1e6:.0f} MHz during the "
        "measurement: fix the clocks (lock_clocks, or the governor 'performance') and repeat"
    ]


def warnings(before: Conditions, after: Conditions, *, cores: int) -> tuple[str, ...]:
    """Sentences for a person, each with what to do; empty where nothing speaks against the run."""
    found = _change("CPU", _mean(before.cpu_clock_hz), _mean(after.cpu_clock_hz))
    found += _change("GPU", before.gpu_clock_hz, after.gpu_clock_hz)
    if before.throttled or after.throttled:
        found.append("the board throttled: cool it, check its power supply, and repeat")
    if before.temp_c is not None and after.temp_c is not None:
        rise_c = after.temp_c - before.temp_c
        if rise_c > TEMP_RISE_C:
            found.append(
                f"the board warmed up by {rise_c:.0f} °C to {after.temp_c:.0f} °C: "
                "measure for longer, or with a fan"
            )
    # The measurement itself is one runnable process; anything much above is someone else's.
    if before.load_1min is not None and before.load_1min > 1.0 + 0.25 * cores:
        found.append(
            f"the board was busy before the measurement (load {before.load_1min:.1f} on {cores} "
            "cores): stop other programs and repeat"
        )
    free = after.free_memory_bytes
    if free is not None and free < LOW_MEMORY_BYTES:
        found.append(f"only {free >> 20} MiB of memory are left: the board may be swapping")
    return tuple(found)
