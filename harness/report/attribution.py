"""How much of a profile is understood, in words."""

from __future__ import annotations

from harness.attribution import Attribution
from harness.report.words import percent
from harness.units import format_time

__all__ = ["attribution_lines"]

# So many unattributed kernels are named, the others counted.
NAMED = 5
# A call without the profiler that takes so much longer than one with it was disturbed.
SLOWER = 1.1


def attribution_lines(found: Attribution) -> tuple[str, ...]:
    """One sentence on the nodes that the kernels belong to, one on the time between kernels.

    And a third where the two cannot both be of an undisturbed board.
    """
    lines = []
    if found.attributed is not None and found.computing is not None and found.layout is not None:
        text = (
            f"{percent(found.attributed)} of the kernels' time belongs to ONNX nodes "
            f"({percent(found.computing)} computes them, {percent(found.layout)} changes a "
            "layout for them)"
        )
        if found.unattributed:
            rest = len(found.unattributed) - NAMED
            named = ", ".join(found.unattributed[:NAMED]) + (
                f" and {rest} more" if rest > 0 else ""
            )
            text += f"; unattributed: {named}"
        lines.append(text + ".")
    if found.of_end_to_end is not None and found.end_to_end_s is not None:
        text = (
            f"The kernels' sum, {format_time(found.kernels_s)}, is {percent(found.of_end_to_end)} "
            f"of a call without the profiler ({format_time(found.end_to_end_s)})"
        )
        if found.of_profiled_run is not None and found.profiled_run_s is not None:
            between_s = max(0.0, 1 - found.of_profiled_run) * found.profiled_run_s
            text += (
                f" and {percent(found.of_profiled_run)} of one with it "
                f"({format_time(found.profiled_run_s)}): {format_time(between_s)} pass between "
                "kernels there, in the runtime and its profiler"
            )
        lines.append(text + ".")
        if found.profiled_run_s and found.end_to_end_s > SLOWER * found.profiled_run_s:
            lines.append(
                "The profiler only ever slows a call down, yet calls without it took longer: the "
                "board was disturbed or slower while it was measured. Measure again."
            )
    return tuple(lines)
