"""Options for every group, and the strategy that picks one of each."""

from collections.abc import Sequence

from harness.records import Group, Option, Strategy, StrategyEntry
from harness.sensitivity.curvature import Sensitivities
from harness.strategies.allocator import Allotment, Options, allocate, nearest_limits

__all__ = [
    "Allotment",
    "Options",
    "allocate",
    "nearest_limits",
    "options_for",
    "restrict",
    "strategy",
]

# A group keeps at least this share of its channels: below it, curvature at the trained weights
# says nothing of the loss.
SMALLEST_KEEP = 0.25
# Fewer widths than this leave an allocation little to choose from.
FEW_STEPS = 8


def options_for(
    groups: Sequence[Group],
    *,
    precisions: Sequence[str],
    step: int,
    fine_step: int | None = None,
    prune: bool = True,
) -> dict[str, tuple[Option, ...]]:
    """Keep ratios at multiples of ``step`` channels times the precisions the board can use.

    Groups of fewer than ``FEW_STEPS`` steps take the smaller ``fine_step``: a width between two
    steps may save no time, but it saves size, and time in the layers that read it.
    """
    result = {}
    for group in groups:
        widths = [group.channels]
        wide = fine_step is None or group.channels >= FEW_STEPS * step
        by = step if wide else min(step, fine_step or step)
        if prune and group.prunable:
            smallest = max(by, SMALLEST_KEEP * group.channels)
            widths += [n for n in range(by, group.channels, by) if n >= smallest]
        result[group.name] = tuple(
            Option(channels=width, precision=precision)
            for width in sorted(widths)
            for precision in precisions
        )
    return result


def restrict(
    options: Options, groups: Sequence[Group], *, prune: bool, precisions: Sequence[str]
) -> dict[str, tuple[Option, ...]]:
    """The part of ``options`` that a single method has: full widths only, or fp32 only."""
    return {
        group.name: tuple(
            option
            for option in options[group.name]
            if option.precision in precisions and (prune or option.channels == group.channels)
        )
        for group in groups
    }


def strategy(
    allotment: Allotment,
    groups: Sequence[Group],
    sensitivities: Sensitivities,
    *,
    label: str,
    epochs: int,
    seed: int,
    left_out: tuple[str, ...] = (),
) -> Strategy:
    """The strategy file's content for ``allotment``: kept channels and precision a group.

    ``groups`` are those that are there without the groups ``left_out``.
    """
    entries = tuple(
        StrategyEntry(
            group=group.name,
            kept=sensitivities.kept(group.name, allotment.choice[group.name].channels),
            of=group.channels,
            precision=allotment.choice[group.name].precision,
        )
        for group in groups
    )
    methods = []
    if left_out or any(len(entry.kept) < entry.of for entry in entries):
        methods += ["prune"] + (["distill"] if epochs else [])
    if any(entry.precision == "int8" for entry in entries):
        methods.append("quantize")
    return Strategy(
        label=label,
        methods=tuple(methods),
        entries=entries,
        epochs=epochs if "distill" in methods else 0,
        seed=seed,
        left_out=left_out,
    )
