"""Ratios of two networks' times: what is wrong in both cancels."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from latency_models import graph
from latency_models.kernels import Work
from latency_models.model import LatencyModel
from tests.latency_models.networks import joined
from tests.strategies.test_tables import CPU, model_of

WORKS = [graph.work(kernel) for kernel in graph.read(joined(), runtime=CPU)]
MODEL: LatencyModel = model_of(CPU)
# The kind of which there are most.
KIND = Counter(work.kind for work in WORKS if work.macs).most_common(1)[0][0]


def lighter(work: Work) -> Work:
    """The same kernel with half of the multiplications and weights."""
    return replace(work, macs=work.macs // 2, bytes_weights=work.bytes_weights // 2)


def test_a_network_takes_exactly_as_long_as_itself():
    renamed = [replace(work, name=f"other {work.name}") for work in WORKS]
    assert MODEL.ratio_interval(renamed, WORKS) == (1.0, 1.0)


def test_a_ratio_is_surer_than_either_time_and_holds_its_own_value():
    variant = [lighter(work) if work.kind == KIND else work for work in WORKS]
    low, high = MODEL.ratio_interval(variant, WORKS)
    value = MODEL.predict(variant) / MODEL.predict(WORKS)
    assert low < value < high
    alone = MODEL.interval(variant)
    assert high / low < alone[1] / alone[0]
    # The other way round it is the inverse.
    back = MODEL.ratio_interval(WORKS, variant)
    assert back == pytest.approx((1 / high, 1 / low))


def test_the_less_two_networks_differ_the_surer_is_their_ratio():
    convolutions = [i for i, work in enumerate(WORKS) if work.kind == KIND]
    widths = []
    for count in (1, len(convolutions)):
        changed = set(convolutions[:count])
        variant = [lighter(w) if i in changed else w for i, w in enumerate(WORKS)]
        low, high = MODEL.ratio_interval(variant, WORKS)
        widths.append(high / low)
    assert 1 < widths[0] < widths[1]


def test_a_ratio_is_as_uncertain_as_its_gradient_and_the_noise_of_what_differs_say():
    # By differences: what each parameter does to the logarithm of the ratio.
    steps = [work for work in WORKS if work.kind == KIND]
    twice, step = steps * 2, 1e-5
    gradient = np.zeros(len(MODEL.theta))
    for index in range(len(gradient)):
        logs = []
        for by in (step, -step):
            model = replace(MODEL)
            moved = MODEL.theta.copy()
            moved[index] += by
            vars(model)["theta"] = moved
            logs.append(math.log(model.predict(twice) / model.predict(steps)))
        gradient[index] = (logs[0] - logs[1]) / (2 * step)
    variance = gradient @ MODEL._layout.covariance() @ gradient
    # Every kernel twice: half of the slower network is common, and 0.03 sqrt(2 / 2) is left.
    width = 1.6449 * math.sqrt(variance + 0.03**2)
    low, high = MODEL.ratio_interval(twice, steps)
    assert math.log(high / low) / 2 == pytest.approx(width, rel=1e-3)
