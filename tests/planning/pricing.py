"""Prices of allocations that are near enough for tests of what chooses among them."""

from harness.planning.subjects import Pricer
from harness.records import Estimate, Predicted
from harness.strategies.predictor import NetworkCosts, holders
from latency_models import graph


def rough(costs: NetworkCosts) -> Pricer:
    """What ``costs`` says, with parameters as the file has them."""

    def price(choice):
        found = costs.costs(choice)
        works = [graph.work(kernel) for kernel in costs.kernels(choice)]
        low, high = costs.model.interval(works, 0.9)
        shapes = [graph.work(kernel).shape for kernel in holders(costs.kernels(choice))]
        return Predicted(
            size_bytes=Estimate.exactly(found.size_bytes),
            parameters=sum(s.groups * s.inputs * s.window * s.outputs for s in shapes),
            macs=found.macs,
            weight_bytes=sum(work.bytes_weights for work in works),
            moved_bytes=sum(w.bytes_in + w.bytes_out + w.bytes_weights for w in works),
            peak_activation_bytes=Estimate.exactly(max(w.bytes_in + w.bytes_out for w in works)),
            latency_s=Estimate(value=found.latency_s, low=low, high=high),
        )

    return price
