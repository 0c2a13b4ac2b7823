"""Sizes that remember the widths they came from."""

import math

import numpy as np
import pytest

from latency_models import graph
from latency_models.kernels import Works, work
from latency_models.sizes import Size, evaluate, terms_of
from tests.latency_models.networks import GPU, googlenet, inverted, joined, residual

A, B = Size.width(0, 6), Size.width(1, 4)


def at(size, a, b):
    return evaluate(terms_of(size), {0: np.array(a), 1: np.array(b)})


@pytest.mark.parametrize(
    ("size", "here", "there"),
    [
        (A, 6, 10),
        (A + B, 10, 13),
        (sum([A, B, 2]), 12, 15),
        (A * B * 3, 72, 90),
        (math.prod((1, A, 7, 7)), 294, 490),
        ((A + B) * (A + 1), 70, 143),  # 13 * 11
        (A // 2, 3, 5),
        (5, 5, 5),
    ],
)
def test_a_size_is_the_number_here_and_the_polynomial_elsewhere(size, here, there):
    assert size == here
    assert at(size, 6, 4) == here
    assert at(size, 10, 3) == there


def test_what_is_no_polynomial_is_an_ordinary_number():
    assert terms_of(A // 4) == terms_of(1)
    assert type(A % 4) is int
    assert type(A // B) is int


def test_sizes_at_many_widths_are_an_array():
    assert at(A * B, [[1], [2]], [[3, 4]]).tolist() == [[3, 4], [6, 8]]


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "onnxruntime-cpu-arm", *GPU])
@pytest.mark.parametrize("build", [residual, inverted, joined, googlenet])
def test_works_in_arrays_are_those_of_single_kernels(build, runtime):
    kernels = graph.read(build(), runtime=runtime)
    together = Works.of([work(kernel) for kernel in kernels])
    alone = Works.joined([Works.at(k, k.in_shapes, k.out_shape, k.groups) for k in kernels])
    pairs = [(k.kind, k.precision) for k in kernels]
    for works in (together, alone):
        assert [works.labels[label] for label in works.label] == pairs
    for column in ("macs", "bytes_in", "bytes_out", "bytes_weights", "dims"):
        assert np.array_equal(getattr(together, column), getattr(alone, column))


def test_unique_works_stand_for_all():
    works = Works.of([work(kernel) for kernel in graph.read(googlenet())])
    unique, place = works.unique()
    assert len(unique) < len(works)
    again = unique.only(place)
    assert np.array_equal(again.dims, works.dims)
    assert np.array_equal(again.label, works.label)
    assert np.array_equal(again.bytes_in, works.bytes_in)
