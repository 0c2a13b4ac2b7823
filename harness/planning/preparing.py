"""A network made ready to be planned for: groups, options, sensitivities, anchors, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness import networks
from harness.planning import loss
from harness.planning.allotting import Allotter
from harness.planning.subjects import Pricer, Subject
from harness.records import Estimate, Group
from harness.sensitivity import anchors, magnitude, refitted
from harness.strategies.generator import options_for
from harness.strategies.predictor import NetworkCosts
from latency_models import graph
from latency_models.calibration import LatencyModel

__all__ = ["prepare"]

Progress = Callable[[int, int], None]


def prepare(
    network: networks.Network,
    groups: Sequence[Group],
    kernels: Sequence[graph.Kernel],
    model: LatencyModel,
    *,
    size_bytes: int,
    pricer: Callable[[NetworkCosts], Pricer],
    precisions: Sequence[str],
    step: int,
    fine_step: int,
    images: anchors.Images | None = None,
    student: str = "",
    replacing: Estimate | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Subject:
    """What ``generator.plan`` is told of a network: the original, or a ``student`` in its place.

    ``kernels`` are those of its exported file of ``size_bytes`` on the board that ``model`` is of,
    ``precisions`` those that the board can use, the exact one first. ``replacing`` is what the
    student alone loses. Without ``images`` no loss is predicted. With ``cache``, a folder, scores
    and anchors are kept there. ``progress(done, of)`` counts images and then anchors.
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
        found = loss.fit(tried)
    costs = NetworkCosts(kernels, groups, model=model, baseline_size_bytes=size_bytes)
    return Subject(
        groups=tuple(groups),
        allotter=Allotter(costs, options, sensitivities),
        sensitivities=sensitivities,
        pricer=pricer(costs),
        loss=found,
        student=student,
        replacing=replacing,
    )
