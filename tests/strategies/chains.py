"""Chains of layers whose costs can be worked out by hand, and the best allocation by trying all."""

import itertools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from harness.allocation.coupled import Table
from harness.records import Group, Option
from harness.strategies import generator
from harness.strategies.predictor import Costs
from harness.strategies.requirements import Limits


def group(name, channels=32, prunable=True):
    return Group(name=name, channels=channels, producers=(name,), consumers=(), prunable=prunable)


class Tables:
    """What a chain takes, in tables; its latency as the host's side makes it."""

    def __init__(self, chain, options, *, around):
        self.exact = chain.exact and not chain.narrow
        self.linear = not chain.host_s
        self.host_s = chain.host_s
        parts = [[], [], []]
        for i, group in enumerate(chain.groups):
            coupled = i > 0 and chain.coupled
            before = options[chain.groups[i - 1].name] if coupled else [None]
            if coupled and not self.exact:
                before = [around[chain.groups[i - 1].name]]
            rows = np.array(
                [[chain.layer(past, o) for o in options[group.name]] for past in before]
            )
            for part, costs in zip(parts, np.moveaxis(rows, 2, 0), strict=True):
                both = len(before) > 1
                part.append(Table((i - 1, i), costs) if both else Table((i,), costs[0]))
        device, steps, size = parts
        self.device, self.steps, self.size_bytes = Sum(0.0, device), Sum(0.0, steps), Sum(0.0, size)

    def latency_s(self, choice):
        return whole(self.device.at(choice), self.host_s * self.steps.at(choice))

    def cut(self, choice):
        host = self.host_s * self.steps.at(choice)
        latency = self.latency_s(choice)
        by_device = (self.device.at(choice) / latency) ** 5
        by_step = self.host_s * (host / latency) ** 5
        # Homogeneous of degree one: the tangent has no constant.
        return Sum(0.0, [*scaled(by_device, self.device), *scaled(by_step, self.steps)])


class Sum(NamedTuple):
    constant: float
    tables: list[Table]

    def at(self, choice):
        return self.constant + sum(table.at(choice) for table in self.tables)


def scaled(factor, amount):
    return [Table(table.groups, factor * table.costs) for table in amount.tables]


def whole(device_s, host_s):
    """Nearly the larger of the two, convex, and without a kink."""
    return (device_s**6 + host_s**6) ** (1 / 6)


class Chain:
    """Costs of a chain of layers: time goes with width in times width out, int8 is faster.

    A layer of another precision than the one before it takes a step more, which the host must
    enqueue. The bound is relatively wider, the smaller the network is.
    """

    def __init__(self, groups, *, coupled, host_s=0.0, widening=0.1, exact=True):
        self.groups = tuple(groups)
        self.coupled = coupled
        self.host_s = host_s
        self.widening = widening
        self.exact = exact
        self.narrow = False

    def layer(self, before, option):
        """Device seconds, steps and bytes of a layer behind one of the option ``before``."""
        speed = 3.0 if option.precision == "int8" else 1.0
        inputs = before.channels if before is not None else 16
        numbers = inputs * option.channels
        converts = before is not None and before.precision != option.precision
        return (
            1e-4 + numbers * 1e-5 / speed + 2e-4 * converts,
            1 + converts,
            numbers * (1 if option.precision == "int8" else 4),
        )

    def tables(self, options, around):
        return Tables(self, options, around=around)

    def costs(self, options):
        picked = [options[g.name] for g in self.groups]
        before = [None, *picked[:-1]] if self.coupled else [None] * len(picked)
        device_s, steps, size = np.sum(
            [self.layer(past, o) for past, o in zip(before, picked, strict=True)], axis=0
        )
        latency = whole(device_s, self.host_s * steps)
        upper = latency * (1 + self.widening * (1 + 1e-3 / latency))
        return Costs(latency_s=latency, upper_s=upper, size_bytes=size, macs=0)


def problem(seed, *, coupled, n=4, **more):
    rng = np.random.default_rng(seed)
    groups = [group(f"g{i}", channels=24) for i in range(n)]
    options = generator.options_for(groups, precisions=("fp32", "int8"), step=8)
    values = {}
    for g in groups:
        scale = rng.uniform(0.5, 2)
        values[g.name] = tuple(
            scale * ((24 - o.channels) / 24) ** 2 + (0.01 * scale if o.precision == "int8" else 0)
            for o in options[g.name]
        )
    sensitivities = SimpleNamespace(options=options, values=values)
    return Chain(groups, coupled=coupled, **more), options, sensitivities


def brute_force(costs, options, sensitivities, limits):
    best = None
    names = [g.name for g in costs.groups]
    for choice in itertools.product(*(range(len(options[name])) for name in names)):
        picked = {name: options[name][j] for name, j in zip(names, choice, strict=True)}
        price = costs.costs(picked)
        if price.upper_s <= limits.latency_s and price.size_bytes <= limits.size_bytes:
            loss = sum(sensitivities.values[n][j] for n, j in zip(names, choice, strict=True))
            best = loss if best is None else min(best, loss)
    return best


def limits_at(costs, latency, size):
    """Shares of what the full network takes."""
    full = costs.costs({g.name: Option(channels=24, precision="fp32") for g in costs.groups})
    return Limits(latency_s=latency * full.upper_s, size_bytes=size * full.size_bytes)
