"""Buffers that convolutions take for themselves: as onnxruntime 1.31 was seen to allocate them."""

import pytest

from latency_models import graph
from latency_models.building import Builder
from latency_models.scratch import scratch

# The layers here see 16 x 16 positions.
PLAIN = "onnxruntime-cpu-arm"


def own(inputs, outputs, *, window=3, stride=1, groups=1, precision="int8", size=16):
    b = Builder("one", seed=None)
    b.output(
        b.conv(b.input(1, inputs, size, size), outputs, window=window, stride=stride, groups=groups)
    )
    kernels = graph.read(b.model(), runtime=PLAIN)
    if precision == "int8":
        kernels = graph.rewrite(kernels, precision={"conv_0": "int8"}, runtime=PLAIN)
    return next(scratch(kernel) for kernel in kernels if kernel.name == "conv_0")


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "expected"),
    [
        # A pointer of 8 bytes for each of 9 taps of 256 positions.
        (16, 64, {}, (18432,)),
        (8, 16, {}, (18432,)),
        # Three or six channels, or few outputs: int32 sums, and the taps laid out in bytes.
        (3, 64, {}, (65536, 6912)),
        (6, 64, {}, (65536, 13824)),
        (16, 12, {}, (12288, 36864)),
        # One tap at every position needs neither, at every second it needs pointers.
        (16, 64, {"window": 1}, ()),
        (16, 64, {"window": 1, "stride": 2}, (512,)),
        (6, 20, {"window": 1, "stride": 2}, (5120, 384)),
        (16, 64, {"window": 5, "stride": 2}, (12800,)),
        # Depthwise in whole vectors, and not.
        (48, 48, {"groups": 48}, (18432,)),
        (24, 24, {"groups": 24}, (24576, 18432)),
        # In groups there is no kernel without sums.
        (16, 32, {"groups": 4}, (32768, 9216)),
    ],
)
def test_integer_convolutions_take_pointers_or_sums_and_columns(inputs, outputs, options, expected):
    assert own(inputs, outputs, **options) == expected


def test_float_convolutions_lay_their_input_out_in_segments():
    assert own(16, 32, precision="fp32") == (65536,)
    assert own(16, 32, precision="fp32", window=1) == ()


def test_float_convolutions_of_few_positions_lay_all_of_it_out():
    # 16 positions, fewer than channels: 4 bytes for each of 9 x 16 taps.
    assert own(16, 32, precision="fp32", size=4) == (4 * 16 * 144,)


def test_blocked_convolutions_and_other_kernels_take_nothing():
    b = Builder("blocked", seed=None)
    b.output(b.global_pool(b.conv(b.input(1, 16, 8, 8), 32, window=3)))
    assert all(scratch(kernel) == () for kernel in graph.read(b.model()))
