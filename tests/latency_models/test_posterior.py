"""The learned residual and what the model claims not to know."""

import math

import numpy as np
import pytest

from latency_models import calibration, fitting, posterior, profiles, roofline
from latency_models.calibration import NetworkSample
from latency_models.kernels import Dims, Work
from latency_models.profiles import REFERENCE
from tests.latency_models.test_roofline import work

NANO = profiles.load("jetson-nano")


def conv(outputs, inputs, rows=784, kind="conv_3x3", window=9):
    macs = rows * outputs * inputs * window
    return work(
        kind,
        Dims(rows, outputs, inputs, window),
        macs=macs,
        bytes_in=4 * rows * inputs,
        bytes_out=4 * rows * outputs,
        bytes_weights=4 * outputs * inputs * window,
    )


class Machine:
    """A made-up board: the formula at the prior, and a factor that depends on the shape."""

    def __init__(self, factor=lambda _: 1.0):
        kinds = [("conv_3x3", "fp32"), ("conv_1x1", "fp32")]
        self.layout, self.factor = roofline.Layout.of(kinds, NANO), factor

    def kernel(self, item: Work) -> float:
        arrays = roofline.features([item], self.layout)
        theta = self.layout.start()
        return self.factor(item) * float(roofline.kernel_seconds(theta, arrays, self.layout)[0])

    def network(self, works) -> float:
        return 1e-4 + sum(map(self.kernel, works))


def networks(machine, count, seed=0):
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        works = tuple(
            conv(*(int(n) for n in generator.choice([16, 32, 64, 128, 256], 2)))
            for _ in range(generator.integers(3, 12))
        )
        samples.append(NetworkSample(works, machine.network(works), group=f"family {index % 5}"))
    return samples


def wide_is_slow(item):
    """What no parameter of the formula can say: some widths are half as fast."""
    return 2.0 if item.shape.outputs == 64 else 1.0


def test_the_residual_is_switched_on_where_it_pays_and_off_where_it_does_not():
    plain = calibration.fit([], networks(Machine(), 30), profile=NANO)
    odd = calibration.fit([], networks(Machine(wide_is_slow), 30), profile=NANO)
    assert plain.residual_ == 0.0
    assert odd.residual_ > 0.0


def test_the_residual_learns_what_the_formula_cannot_say():
    machine = Machine(wide_is_slow)
    model = calibration.fit([], networks(machine, 40), profile=NANO)
    tests = networks(machine, 20, seed=1)

    def mean_error(predict):
        return np.mean([abs(math.log(predict(s.works) / s.seconds)) for s in tests])

    formula = mean_error(lambda works: float(model.parts(works)[0].sum()) + 1e-4)
    assert mean_error(model.predict) < 0.7 * formula


def test_the_residual_fades_where_nothing_like_it_was_measured():
    model = calibration.fit([], networks(Machine(wide_is_slow), 40), profile=NANO)
    # 64 outputs of very many rows, and another kind altogether.
    _, near = model.parts([conv(64, 64)])
    _, far = model.parts([conv(64, 64, rows=784 * 2**12), conv(64, 64, kind="conv_1x1", window=1)])
    assert near[0] > 1.2
    assert far == pytest.approx([1.0, 1.0], abs=1e-3)


def test_kernels_add_up_to_what_formula_and_residual_say():
    model = calibration.fit([], networks(Machine(wide_is_slow), 40), profile=NANO)
    works = [conv(64, 32), conv(128, 64)]
    formula, factor = model.parts(works)
    assert model.predict_kernels(works) == pytest.approx(formula * factor)


def samples_of(measured):
    layout = Machine().layout
    rows = [(s.works, s.seconds, REFERENCE) for s in measured]
    return fitting.Samples(layout, [], rows)


def test_what_is_held_out_is_not_seen():
    measured = networks(Machine(), 20)
    # One network is three times as slow as its like: left out, it is predicted as they are.
    spoiled = [*measured[:-1], measured[-1]._replace(seconds=3 * measured[-1].seconds)]
    samples = samples_of(spoiled)
    theta = fitting.minimise(samples, samples.layout.start())
    alike = posterior.similarity(samples, theta)
    groups = [str(index) for index in range(20)]
    residuals, _ = posterior.held_out(samples, theta, groups, [0.0, 0.2], alike)
    assert residuals[:, -1] == pytest.approx(math.log(3), abs=0.1)
    assert np.abs(residuals[0, :-1]).max() < 0.2


def test_a_group_is_left_out_as_one():
    measured = networks(Machine(), 10)
    twice = [*measured, *(s._replace(seconds=1.5 * s.seconds) for s in measured)]
    samples = samples_of(twice)
    theta = fitting.minimise(samples, samples.layout.start())
    alike = posterior.similarity(samples, theta)
    together, _ = posterior.held_out(samples, theta, ["a"] * 10 + ["b"] * 10, [0.0], alike)
    # Each half is predicted from the other, which is half as slow again, or the reverse.
    assert together[0, :10] == pytest.approx(-math.log(1.5), abs=0.1)
    assert together[0, 10:] == pytest.approx(math.log(1.5), abs=0.1)


def test_networks_of_the_same_kernels_are_alike_and_of_other_kinds_are_not():
    same, other = (conv(64, 64),) * 2, (conv(64, 64, kind="conv_1x1", window=1),)
    rows = [NetworkSample(same, 1e-3), NetworkSample(same, 1e-3), NetworkSample(other, 1e-3)]
    samples = samples_of(rows)
    alike = posterior.similarity(samples, samples.layout.start())
    assert alike[0, 1] == pytest.approx(1.0)
    assert alike[0, 2] == 0.0


def test_more_measurements_leave_less_open():
    few = calibration.fit([], networks(Machine(), 6), profile=NANO)
    many = calibration.fit([], networks(Machine(), 60), profile=NANO)
    works = [conv(48, 96), conv(96, 48)]
    assert many.spread(works) < few.spread(works)
