"""The design criterion by hand, and the greedy choice against slower and simpler ones."""

import math

import numpy as np
import pytest

from latency_models import calibration, choice, profiles
from latency_models.kernels import Dims, Work

PROFILE = profiles.load("generic-cpu")


def blocks(*rows):
    return [np.array([row], dtype=float) for row in rows]


def ones(count):
    return np.ones((count, 1))


def work(kind="conv_1x1", rows=784, outputs=64, inputs=64):
    return Work(
        kind=kind,
        macs=rows * outputs * inputs,
        bytes_in=4 * rows * inputs,
        bytes_out=4 * rows * outputs,
        bytes_weights=4 * inputs * outputs,
        shape=Dims(rows, outputs, inputs),
        precision="fp32",
        name="k",
    )


def test_log_det_by_hand():
    # I + (3, 0)(3, 0)^T + (0, 1)(0, 1)^T = diag(10, 2).
    assert choice.log_det(blocks((3, 0), (0, 1))) == pytest.approx(math.log(20))


def test_what_repeats_the_known_is_left_for_what_is_new():
    # Alone 2 tells log 5, 1.9 log 4.61, the other axis log 2; after the first, 1.9 on the same
    # axis adds log(8.61 / 5) = 0.54, the other axis still log 2 = 0.69.
    three = blocks((2, 0), (1.9, 0), (0, 1))
    assert choice.greedy(three, ones(3), np.array([2.0])) == (0, 2)


def test_the_price_decides_between_two_that_tell_about_the_same():
    two = blocks((2.1, 0), (2.0, 0))
    assert choice.greedy(two, np.array([[3.0], [1.0]]), np.array([3.0])) == (1,)
    # Where both cost the same, the first tells more.
    assert choice.greedy(two, ones(2), np.array([1.0])) == (0,)


def test_each_limit_is_kept():
    many = blocks(*np.eye(6) * 2)
    costs = np.array([[1.0, 0.5]] * 6)
    assert len(choice.greedy(many, costs, np.array([4.0, 10.0]))) == 4
    assert len(choice.greedy(many, costs, np.array([4.0, 1.2]))) == 2


def test_what_is_held_is_known_and_not_chosen_again():
    three = blocks((2, 0), (1.9, 0), (0, 1))
    assert choice.greedy(three, ones(3), np.array([1.0]), held=[0]) == (2,)


def test_what_covers_something_new_comes_first():
    three = blocks((3, 0), (0, 2), (0.1, 0))
    covers = [{"a"}, {"a"}, {"b"}]
    assert choice.greedy(three, ones(3), np.array([2.0]), covers=covers) == (0, 2)


def test_the_lazy_choice_is_the_plain_greedy_one():
    generator = np.random.default_rng(0)
    many = [generator.normal(size=(generator.integers(1, 4), 12)) for _ in range(80)]
    costs = generator.uniform(1, 3, (80, 1))

    def plain(limit):
        chosen, left = [], limit
        while True:
            now = choice.log_det([many[i] for i in chosen]) if chosen else 0.0
            rates = {
                i: (choice.log_det([many[j] for j in (*chosen, i)]) - now) / costs[i, 0]
                for i in range(80)
                if i not in chosen and costs[i, 0] <= left
            }
            if not rates:
                return tuple(chosen)
            chosen.append(max(rates, key=rates.get))
            left -= costs[chosen[-1], 0]

    assert choice.greedy(many, costs, np.array([30.0])) == plain(30.0)


def test_like_kernels_share_what_the_formula_misses():
    near = [work(), work(rows=800), work(rows=49, outputs=1024, inputs=1024)]
    first, second, far = choice.information([[w] for w in near], PROFILE)
    # The last columns are the neighbourhoods: two of them for three kernels.
    assert [list(np.flatnonzero(b[0, -2:])) for b in (first, second, far)] == [[0], [0], [1]]
    assert choice.log_det([first, second]) < choice.log_det([first, far])


def test_residuals_widen_what_is_thought_of_their_kind_alone():
    model = calibration.fit([(work(), 1e-3)], [], profile=PROFILE)
    times = model.predict_kernels([work(), work("conv_3x3")])
    samples = [(work(), float(times[0]) * 2), (work("conv_3x3"), float(times[1]))]
    misfit = choice.misfits(samples, model)
    # One residual of log 2 (less what the resolution of 1 us takes from it) among two of 0.3.
    residual = math.log((2 * times[0] + 1e-6) / (times[0] + 1e-6))
    assert misfit(work()) == pytest.approx(math.sqrt((2 * 0.3**2 + residual**2) / 3))
    assert misfit(work("conv_3x3")) == pytest.approx(0.3 * math.sqrt(2 / 3))
    # Farther off it counts less, and nothing is known of a kind without samples.
    assert 0.3 < misfit(work(rows=392)) < misfit(work())
    assert misfit(work("gemm")) == pytest.approx(0.3)
