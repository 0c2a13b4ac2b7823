"""A network made ready to be planned for: options, sensitivities, anchors, tables of costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import networks
from harness.compression.quantize import Form
from harness.compression.shapes import ParameterShapes
from harness.planning import loss
from harness.planning.allotting import Allotter, Choice
from harness.planning.costs import VariantCosts
from harness.planning.subjects import Subject
from harness.records import Estimate, Group, Option, Predicted
from harness.records.planning import LatencySource
from harness.sensitivity import anchors, magnitude, refitted
from harness.strategies.generator import options_for
from harness.strategies.predictor import NetworkCosts
from latency_models.calibration import LatencyModel
from latency_models.kernels import Work

__all__ = ["prepare"]

# A network that is so few points above chance is not trained: what it loses says nothing.
LEAST_TO_LOSE = 5.0
# Widths of one group that a plan chooses among. All that EfficientNet-Lite0 has (up to 145 a group)
# take far longer to score, and a plan, known within some per cent, gains nothing by them.
WIDTHS = 12


def prepare(
    network: networks.Network,
    exported: Path,
    groups: Sequence[Group],
    shapes: ParameterShapes,
    model: LatencyModel,
    *,
    source: LatencySource,
    form: Form | None,
    precisions: Sequence[str],
    step: int,
    fine_step: int,
    images: anchors.Images | None = None,
    student: str = "",
    original: Sequence[Work] | None = None,
    measured: Estimate | None = None,
    replacing: Estimate | None = None,
    power_w: Estimate | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Subject:
    """What ``generator.plan`` is told of a network: the original, or a ``student`` in its place.

    ``exported`` is its fp32 file, ``groups`` and ``shapes`` are its own. ``model`` is of the board,
    ``source`` says where it is from; ``form`` is that of the board's int8 layers, None where
    ``precisions`` (those that the board can use, the exact one first) have none. Widths are
    multiples of ``step``, of ``fine_step`` in narrow groups. ``replacing`` is what the student
    alone loses, and ``original`` are the kernels of the network whose place it takes. The original
    took ``measured`` seconds on the board (None: nobody measured it). ``power_w`` is what the board
    was measured to draw while it runs the original; an inference is taken to draw as much for as
    long as it lasts (None: the board has no rails).
    Without ``images``, and of a network that is not trained, no loss is predicted. With ``cache``,
    a folder, scores and anchors are kept there. ``progress(done, of)`` counts images and then
    anchors.
    """
    options = _thinned(options_for(groups, precisions=precisions, step=step, fine_step=fine_step))
    found: loss.LossModel | None = None
    if images is None:
        sensitivities = magnitude.by_magnitude(network, groups, options)
    else:
        sensitivities = refitted.scored(
            network, groups, options, images.scored, seed=seed, cache=cache, progress=progress
        )
        tried = anchors.anchors(
            network, groups, sensitivities, images, seed=seed, cache=cache, progress=progress
        )
        found = loss.fit(tried) if tried.most >= LEAST_TO_LOSE else None
    costs = VariantCosts(exported, groups, shapes=shapes, runtime=model.runtime, form=form)
    priced = NetworkCosts(
        costs.kernels, groups, model=model, baseline_size_bytes=exported.stat().st_size
    )

    known: dict[tuple[Option, ...], Predicted] = {}

    def price(choice: Choice) -> Predicted:
        key = tuple(choice[group.name] for group in groups)
        if key not in known:
            found = costs.predicted(
                choice, model=model, source=source, original=original, measured=measured
            )
            known[key] = replace(found, energy_j=_energy(found.latency_s, power_w))
        return known[key]

    return Subject(
        groups=tuple(groups),
        allotter=Allotter(priced, options, sensitivities),
        sensitivities=sensitivities,
        pricer=price,
        loss=found,
        student=student,
        replacing=replacing,
        untrained=images is not None and found is None,
    )


def _thinned(options: Mapping[str, tuple[Option, ...]]) -> dict[str, tuple[Option, ...]]:
    """Of every group's widths so many, evenly over those that there are, the ends among them."""
    found = {}
    for name, own in options.items():
        widths = sorted({option.channels for option in own})
        last = len(widths) - 1
        count = min(WIDTHS, len(widths))
        taken = {widths[round(i * last / max(count - 1, 1))] for i in range(count)}
        # The whole group, where it has one width alone.
        taken.add(widths[last])
        found[name] = tuple(option for option in own if option.channels in taken)
    return found


def _energy(latency_s: Estimate | None, power_w: Estimate | None) -> Estimate | None:
    """What one call takes, in joule: as uncertain as its time and the power together."""
    if latency_s is None or power_w is None:
        return None
    value = latency_s.value * power_w.value
    down = math.hypot(1 - latency_s.low / latency_s.value, 1 - power_w.low / power_w.value)
    up = math.hypot(latency_s.high / latency_s.value - 1, power_w.high / power_w.value - 1)
    return Estimate(
        value=value,
        low=value * max(1 - down, 0.0),
        high=value * (1 + up),
        note="at the power that the original draws",
    )
