"""A network made ready to be planned for: options, sensitivities, anchors, tables of costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

__all__ = ["prepare"]

# A network that is so few points above chance is not trained: what it loses says nothing.
LEAST_TO_LOSE = 5.0


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
    replacing: Estimate | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Subject:
    """What ``generator.plan`` is told of a network: the original, or a ``student`` in its place.

    ``exported`` is its fp32 file, ``groups`` and ``shapes`` are its own. ``model`` is of the board,
    ``source`` says where it is from; ``form`` is that of the board's int8 layers, None where
    ``precisions`` (those that the board can use, the exact one first) have none. Widths are
    multiples of ``step``, of ``fine_step`` in narrow groups. ``replacing`` is what the student
    alone loses. Without ``images``, and of a network that is not trained, no loss is predicted.
    With ``cache``, a folder, scores and anchors are kept there. ``progress(done, of)`` counts
    images and then anchors.
    """
    options = options_for(groups, precisions=precisions, step=step, fine_step=fine_step)
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
            known[key] = costs.predicted(choice, model=model, source=source)
        return known[key]

    return Subject(
        groups=tuple(groups),
        allotter=Allotter(priced, options, sensitivities),
        sensitivities=sensitivities,
        pricer=price,
        loss=found,
        student=student,
        replacing=replacing,
    )
