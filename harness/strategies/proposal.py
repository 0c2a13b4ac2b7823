"""One proposal of the loop: an allocation under the budgets, and the strategy made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InfeasibleBudget
from harness.records import Group, Option, Strategy
from harness.sensitivity.curvature import Sensitivities
from harness.strategies import generator
from harness.strategies.predictor import NetworkCosts
from harness.strategies.requirements import Limits
from latency_models import calibration, graph

__all__ = ["ANCHORED", "COVERAGE", "FIRST", "MISSED", "Proposal", "propose"]

COVERAGE = 0.9
# Coverages of the latency bound that is held to the budget, the first that fits. Where the model is
# too uncertain for its upper bound, the bound is loosened to the prediction itself: what is built
# then is measured, and the model knows better.
FIRST = (COVERAGE, 0.5, 0.0)
# Once a variant of the same network was measured, the model is anchored to it: what is left is the
# difference between siblings, smaller than that between the networks of the calibration.
ANCHORED = (0.3, 0.0)
# The last variant was slower than allowed, or may have been: the model is not to be trusted as far.
MISSED = (0.7, 0.3, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A strategy with its predicted loss and costs.

    ``coverage`` is that of the latency bound that was held to the budget. ``infeasible`` explains
    why nothing fits, with the ``nearest`` limits (SI units), which the strategy then keeps.
    """

    strategy: Strategy
    loss: float
    latency_s: float
    size_bytes: float
    coverage: float
    infeasible: str
    nearest: Mapping[str, float]

    def summary(self) -> str:
        """One line for whoever watches."""
        if self.infeasible:
            return self.infeasible
        bound = f"{self.coverage:.0%} bound" if self.coverage else "prediction, no bound,"
        return (
            f"predicted {self.latency_s * 1e3:.3f} ms, {self.size_bytes / 1e6:.3f} MB; "
            f"the latency's {bound} keeps the budget"
        )


def propose(
    kernels: Sequence[graph.Kernel],
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    sensitivities: Sensitivities,
    limits: Limits,
    *,
    model: calibration.LatencyModel,
    baseline_size_bytes: int,
    size_scale: float,
    label: str,
    epochs: int,
    seed: int,
    coverages: Sequence[float],
) -> Proposal:
    """The least sensitive allocation within ``limits``; where there is none, within the nearest.

    ``coverages`` of the latency's upper bound are tried in turn.
    """

    def costs(coverage: float) -> NetworkCosts:
        return NetworkCosts(
            kernels,
            groups,
            model=model,
            baseline_size_bytes=baseline_size_bytes,
            coverage=coverage,
            size_scale=size_scale,
        )

    def proposal(
        allotment: generator.Allotment,
        coverage: float,
        infeasible: str = "",
        nearest: Mapping[str, float] | None = None,
    ) -> Proposal:
        return Proposal(
            strategy=generator.strategy(
                allotment, groups, sensitivities, label=label, epochs=epochs, seed=seed
            ),
            loss=allotment.loss,
            latency_s=allotment.costs.latency_s,
            size_bytes=allotment.costs.size_bytes,
            coverage=coverage,
            infeasible=infeasible,
            nearest=nearest or {},
        )

    infeasible = ""
    for coverage in coverages:
        try:
            found = generator.allocate(costs(coverage), options, sensitivities, limits)
            return proposal(found, coverage)
        except InfeasibleBudget as error:
            infeasible = str(error)
    bounded = costs(COVERAGE)
    reachable = generator.nearest_limits(bounded, options, sensitivities, limits)
    found = generator.allocate(bounded, options, sensitivities, reachable)
    nearest = {"latency": reachable.latency_s, "size": reachable.size_bytes}
    return proposal(
        found,
        COVERAGE,
        infeasible,
        {quantity: limit for quantity, limit in nearest.items() if limit is not None},
    )
