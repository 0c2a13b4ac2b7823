"""One proposal of the loop: an allocation under the budgets, and the strategy made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import InfeasibleBudget
from harness.records import AllocationProof, Option, Strategy
from harness.sensitivity.curvature import Sensitivities
from harness.strategies import generator
from harness.strategies.allocator import Options
from harness.strategies.predictor import Costs, NetworkCosts
from harness.strategies.requirements import Limits
from harness.strategies.structure import LARGEST_SCOPE
from harness.strategies.tabled import CostTables
from harness.strategies.tables import NetworkTables, network_tables

__all__ = ["ANCHORED", "COVERAGE", "FIRST", "MISSED", "Proposal", "TabledCosts", "propose"]

# So many combinations of options a place in the network may depend on in tables that are rather
# small than exact: two neighbours' precisions and classes of widths.
NARROW_SCOPE = 16
# The nearest latency is raised by so much until an allocation is found. With exact tables one is
# found at once; with others the least latency is itself only nearly known.
ROOM = (1.0, 1.01, 1.05, 1.2)
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

    ``loss`` is that of the groups which are there; what branches cost that are left out is not in
    it (building the strategy tells, see ``strategies.shortlist``).
    ``coverage`` is that of the latency bound that was held to the budget. ``infeasible`` explains
    why nothing fits, with the ``nearest`` limits (SI units), which the strategy then keeps, and the
    groups that are ``binding`` for each quantity. ``proof`` is that of the allocation; None in
    proposals from before there was one. So many ``branches`` are left out.
    """

    strategy: Strategy
    loss: float
    latency_s: float
    size_bytes: float
    coverage: float
    infeasible: str = ""
    nearest: Mapping[str, float] = field(default_factory=dict)
    proof: AllocationProof | None = None
    binding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    branches: int = 0

    def summary(self) -> str:
        """One line for whoever watches."""
        if self.infeasible:
            return self.infeasible
        bound = f"{self.coverage:.0%} bound" if self.coverage else "prediction, no bound,"
        return (
            f"predicted {self.latency_s * 1e3:.3f} ms, {self.size_bytes / 1e6:.3f} MB; "
            f"the latency's {bound} keeps the budget"
        )


class TabledCosts:
    """Prices of allocations from scratch, and in tables that are made once for all coverages.

    While ``narrow``, tables are rather small than exact.
    """

    def __init__(self, costs: NetworkCosts, *, narrow: bool = False) -> None:
        self.groups = costs.groups
        self.narrow = narrow
        self._costs = costs
        self._tables: dict[tuple[bool, tuple[Option, ...]], NetworkTables] = {}

    def at(self, costs: NetworkCosts) -> TabledCosts:
        """The same tables with the prices of ``costs``, of which only the coverage is another."""
        found = TabledCosts(costs, narrow=self.narrow)
        found._tables = self._tables
        return found

    def costs(self, options: Mapping[str, Option]) -> Costs:
        """The predicted costs of one allocation."""
        return self._costs.costs(options)

    def tables(self, options: Options, around: Mapping[str, Option]) -> CostTables:
        """Tables over ``options``; where they are not exact, right near ``around``."""
        for (narrow, _), tables in self._tables.items():
            if tables.exact and narrow == self.narrow:
                return tables
        key = self.narrow, tuple(around[group.name] for group in self.groups)
        if key not in self._tables:
            scope = NARROW_SCOPE if self.narrow else LARGEST_SCOPE
            self._tables[key] = network_tables(
                self._costs, options, reference=around, largest_scope=scope
            )
        return self._tables[key]


def propose(
    costs: Callable[[float], NetworkCosts],
    options: Options,
    sensitivities: Sensitivities,
    limits: Limits,
    *,
    label: str,
    epochs: int,
    seed: int,
    coverages: Sequence[float],
    tabled: TabledCosts | None = None,
    left_out: tuple[str, ...] = (),
    branches: int = 0,
) -> Proposal:
    """The least sensitive allocation within ``limits``; where there is none, within the nearest.

    ``coverages`` of the latency's upper bound are tried in turn; ``costs`` gives the costs by
    such a coverage. ``tabled`` are tables of the same costs, from a proposal before this one. The
    costs are those of the network without the groups ``left_out`` (so many ``branches``), whose
    loss is not counted.
    """
    tabled = TabledCosts(costs(COVERAGE)) if tabled is None else tabled

    def proposal(allotment: generator.Allotment, coverage: float, **more: Any) -> Proposal:
        return Proposal(
            strategy=generator.strategy(
                allotment,
                tabled.groups,
                sensitivities,
                label=label,
                epochs=epochs,
                seed=seed,
                left_out=left_out,
            ),
            loss=allotment.loss,
            latency_s=allotment.costs.latency_s,
            size_bytes=allotment.costs.size_bytes,
            coverage=coverage,
            proof=allotment.proof,
            branches=branches,
            **more,
        )

    last: InfeasibleBudget | None = None
    for coverage in coverages:
        try:
            held = tabled.at(costs(coverage))
            return proposal(generator.allocate(held, options, sensitivities, limits), coverage)
        except InfeasibleBudget as error:
            last = error
        tabled.narrow = held.narrow
    assert last is not None
    reachable, found = _nearest(tabled, options, sensitivities, limits)
    nearest = {"latency": reachable.latency_s, "size": reachable.size_bytes}
    return proposal(
        found,
        COVERAGE,
        infeasible=str(last),
        nearest={quantity: limit for quantity, limit in nearest.items() if limit is not None},
        binding=_binding(last, limits, [group.name for group in tabled.groups]),
    )


def _nearest(
    costs: TabledCosts, options: Options, sensitivities: Sensitivities, limits: Limits
) -> tuple[Limits, generator.Allotment]:
    """The nearest limits that an allocation was found for, and that."""
    least = generator.nearest_limits(costs, options, sensitivities, limits)
    for room in ROOM:
        nearest = Limits(
            latency_s=least.latency_s and room * least.latency_s,
            size_bytes=least.size_bytes,
        )
        try:
            return nearest, generator.allocate(costs, options, sensitivities, nearest)
        except InfeasibleBudget as error:
            last = error
    raise last


def _binding(
    error: InfeasibleBudget, limits: Limits, names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The names of the groups that bind, for each quantity whose limit is out of reach."""
    asked = [("latency", limits.latency_s), ("size", limits.size_bytes)]
    held = [(quantity, limit) for quantity, limit in asked if limit is not None]
    # An error that is not of a solver's may say nothing of them.
    return {
        quantity: tuple(names[group] for group in groups)
        for (quantity, limit), least, groups in zip(
            held, error.nearest, error.binding, strict=False
        )
        if least > limit
    }
