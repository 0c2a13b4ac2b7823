"""A network of two concatenated branches, made ready to be planned for: nothing is measured."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from harness.planning.allotting import Allotter
from harness.planning.loss import LossModel, fit
from harness.planning.subjects import Pricer, Subject
from harness.records import Estimate, Group, LayerCost, Option, Predicted, Requirement
from harness.sensitivity.anchors import Anchor, Anchors
from harness.sensitivity.results import Sensitivities
from harness.strategies.predictor import NetworkCosts, holders
from latency_models import graph
from latency_models.model import HeldOut
from tests.benchmarks.allocation_real import groups_of, options_of
from tests.latency_models.networks import joined
from tests.strategies.test_tables import CPU, TENSORRT, model_of

SIZE = 1_000_000


def require(quantity: Any, limit: float, **more: Any) -> Requirement:
    return Requirement(quantity=quantity, limit=limit, text=f"{limit}", **more)


def predicted(**more: Any) -> Predicted:
    """A prediction of 10 to 14 ms, a megabyte and so on; ``more`` replaces parts of it."""
    base = Predicted(
        size_bytes=Estimate.exactly(1e6),
        parameters=250_000,
        macs=40_000_000,
        weight_bytes=1_000_000,
        moved_bytes=3_000_000,
        peak_activation_bytes=Estimate(value=2e5, low=1.5e5, high=2.5e5),
        latency_s=Estimate(value=0.012, low=0.010, high=0.014),
        latency_ratio=Estimate.exactly(1.0),
        accuracy_drop=Estimate(value=1.0, low=0.2, high=2.4, note="from 9 anchors"),
    )
    return replace(base, **more)


def layer_cost(layer: str, **more: Any) -> LayerCost:
    """A layer of one channel that costs nothing but what ``more`` says."""
    counts = dict.fromkeys(("parameters", "macs", "weight_bytes", "read_bytes", "written_bytes"), 0)
    base: dict[str, Any] = {"kind": "conv_1x1", "precision": "fp32", **counts}
    return LayerCost(layer=layer, **{**base, "channels_in": 1, "channels_out": 1, **more})


def rough(costs: NetworkCosts) -> Pricer:
    """What ``costs`` says, with parameters as the file has them and every activation counted."""

    known: dict[Any, Predicted] = {}

    def price(choice: Any) -> Predicted:
        key = tuple(choice[group.name] for group in costs.groups)
        if key not in known:
            known[key] = work_out(choice)
        return known[key]

    def work_out(choice: Any) -> Predicted:
        found, kernels = costs.costs(choice), costs.kernels(choice)
        works = [graph.work(kernel) for kernel in kernels]
        low, high = costs.model.interval(works, 0.9)
        shapes = [graph.work(kernel).shape for kernel in holders(kernels)]
        return Predicted(
            size_bytes=Estimate.exactly(found.size_bytes),
            parameters=sum(s.groups * s.inputs * s.window * s.outputs for s in shapes),
            macs=found.macs,
            weight_bytes=sum(work.bytes_weights for work in works),
            moved_bytes=sum(w.bytes_in + w.bytes_out + w.bytes_weights for w in works),
            peak_activation_bytes=Estimate.exactly(max(w.bytes_in + w.bytes_out for w in works)),
            latency_s=Estimate(value=found.latency_s, low=low, high=high),
            latency_source="prior",
            latency_ratio=_ratio(costs, works),
        )

    return price


def _ratio(costs: NetworkCosts, works: Any) -> Estimate:
    whole = {g.name: Option(channels=g.channels, precision="fp32") for g in costs.groups}
    original = [graph.work(kernel) for kernel in costs.kernels(whole)]
    low, high = costs.model.ratio_interval(works, original, 0.9)
    value = costs.model.predict(works) / costs.model.predict(original)
    return Estimate(value=value, low=low, high=high)


def anchors(scale: float = 2.0, *, most: float = 80.0) -> Anchors:
    """Anchors that lie on a curve of power 1: the drop is nearly 80 / 2 points a nat."""
    points = [(s, 0.0) for s in (0.05, 0.2, 0.5, 1.0, 2.0)] + [(0.0, 0.01), (0.0, 0.05)]
    return Anchors(
        anchors=tuple(
            Anchor(
                label=f"{pruning} {rounding}",
                pruning=pruning,
                rounding=rounding,
                drop=most * (1 - np.exp(-(pruning + rounding) / scale)),
                changed=1.3 * (1 - np.exp(-(pruning + rounding) / scale)),
                images=1000,
            )
            for pruning, rounding in points
        ),
        most=most,
        labelled=True,
    )


class Branches:
    """The network's subject, and every allocation with its costs from scratch and its loss."""

    def __init__(
        self,
        runtime: str = CPU,
        precisions: tuple[str, ...] = ("fp32", "int8"),
        *,
        loss: LossModel | None = None,
    ) -> None:
        kernels = graph.read(joined(), runtime=runtime)
        self.groups: tuple[Group, ...] = tuple(groups_of(kernels))
        # Nothing was measured, so the parameters are open by a lot; the held-out networks say that
        # predictions are a hundred times better than that.
        model = replace(model_of(runtime), held_out_=(HeldOut(0.1, 10.0),) * 10)
        self.options = options_of(self.groups, precisions, widths=2)
        rng = np.random.default_rng(0)
        widest = {name: max(o.channels for o in own) for name, own in self.options.items()}
        self.sensitivities = Sensitivities(
            options=self.options,
            values={
                name: tuple(
                    float(
                        rng.uniform(0.5, 1.5) * (1 - o.channels / widest[name]) ** 2
                        + (0.0 if o.precision == "fp32" else rng.uniform(0.01, 0.05))
                    )
                    for o in own
                )
                for name, own in self.options.items()
            },
            channel_scores={
                name: tuple(float(c) for c in range(width, 0, -1)) for name, width in widest.items()
            },
        )
        self.costs = NetworkCosts(kernels, self.groups, model=model, baseline_size_bytes=SIZE)
        self.subject = Subject(
            groups=self.groups,
            allotter=Allotter(self.costs, self.options, self.sensitivities),
            sensitivities=self.sensitivities,
            pricer=rough(self.costs),
            loss=loss,
        )
        self.every: list[dict[str, Option]] = [
            dict(zip(self.options, choice, strict=True))
            for choice in itertools.product(*self.options.values())
        ]

    def score(self, choice: dict[str, Option]) -> float:
        return self.sensitivities.total(choice)

    def price(self, choice: dict[str, Option]) -> Predicted:
        return self.subject.pricer(choice)


__all__ = ["CPU", "TENSORRT", "Branches", "anchors", "fit", "predicted", "require", "rough"]
