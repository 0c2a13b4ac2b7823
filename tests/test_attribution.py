"""Shares of a profile's time, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.attribution import attribution
from harness.records import KernelTime, Profile
from harness.report.attribution import attribution_lines


def kernel(name, latency_s, samples_s, *, node="", serves=""):
    return KernelTime(
        name=name, op="Op", node=node, serves=serves, latency_s=latency_s, samples_s=samples_s
    )


# 60, 30 and 10 us: computing, layout, and neither. Of the three runs the last was disturbed.
PROFILE = Profile(
    network_sha256="0" * 64,
    runtime="onnxruntime",
    runtime_version="1.31",
    kernels=(
        kernel("conv", 60e-6, (60e-6, 60e-6, 240e-6), node="/conv"),
        kernel("ReorderOutput", 30e-6, (30e-6, 30e-6, 120e-6), serves="/fc"),
        kernel("odd", 10e-6, (10e-6, 10e-6, 40e-6)),
    ),
    runs_s=(125e-6, 125e-6, 500e-6),
)


def test_shares_are_of_the_kernels_sum():
    found = attribution(PROFILE)
    assert found.kernels_s == pytest.approx(100e-6)
    assert (found.computing, found.layout) == (pytest.approx(0.6), pytest.approx(0.3))
    assert found.attributed == pytest.approx(0.9)
    assert found.unattributed == ("odd",)


def test_what_runs_and_calls_the_kernels_explain_is_told_apart():
    found = attribution(PROFILE, end_to_end_s=110e-6)
    # 100 of 125, 100 of 125 and 400 of 500 us in the runs; 100 of 110 us without the profiler.
    assert found.of_profiled_run == pytest.approx(0.8)
    assert found.of_end_to_end == pytest.approx(100 / 110)


def test_an_old_profile_and_an_empty_one_say_that_they_do_not_know():
    old = replace(
        PROFILE, runs_s=(), kernels=tuple(replace(k, samples_s=()) for k in PROFILE.kernels)
    )
    assert (attribution(old).of_profiled_run, attribution(old).profiled_run_s) == (None, None)
    empty = attribution(replace(PROFILE, kernels=(), runs_s=()))
    assert (empty.attributed, empty.kernels_s) == (None, 0)
    assert attribution_lines(empty) == ()


def test_the_sentences_name_shares_overhead_and_the_unattributed():
    first, second = attribution_lines(attribution(PROFILE, end_to_end_s=110e-6))
    assert "90.0 % of the kernels' time belongs to ONNX nodes (60.0 % computes them" in first
    assert "unattributed: odd." in first
    assert "100 µs, is 90.9 % of a call without the profiler (110 µs)" in second
    # A fifth of the median run of 125 us passes between kernels.
    assert "80.0 % of one with it (125 µs): 25.0 µs pass between kernels" in second


def test_calls_that_take_longer_without_the_profiler_were_disturbed():
    # The median run under the profiler takes 125 us; 10 % more are 137.5.
    assert len(attribution_lines(attribution(PROFILE, end_to_end_s=137e-6))) == 2
    *_, last = attribution_lines(attribution(PROFILE, end_to_end_s=138e-6))
    assert "disturbed" in last
