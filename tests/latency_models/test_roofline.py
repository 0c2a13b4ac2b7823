import math

import numpy as np
import pytest

from latency_models import profiles, roofline
from latency_models.kernels import Dims, Work

PROFILE = profiles.load("generic-cpu")


def work(kind, shape, *, macs=0, bytes_in=0, bytes_out=0, bytes_weights=0, precision="fp32"):
    return Work(
        kind=kind,
        macs=macs,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        bytes_weights=bytes_weights,
        shape=shape,
        precision=precision,
        name=kind,
    )


def seconds(item, **values):
    """Seconds of one kernel where parameters not given take a value that takes them out."""
    layout = roofline.Layout.of([(item.kind, item.precision)], PROFILE)
    plain = {
        "q": 1.0,
        "bw_act": 1e30,
        "bw_far": 1e30,
        "bw_w": 1e30,
        "cache": 1e30,
        "b": 1e-12,
        f"a[{item.precision}]": 1e-12,
        f"tap[{item.precision}]": 1e-12,
        f"out[{item.precision}]": 1e-12,
        f"eta[{item.kind},{item.precision}]": 1.0,
        f"t0[{item.kind},{item.precision}]": 1e-15,
    }
    given = {
        name.replace("eta", f"eta[{item.kind},{item.precision}]"): v for name, v in values.items()
    }
    theta = layout.start()
    for name, value in (plain | given).items():
        theta[layout.index(name)] = math.log(value)
    return float(roofline.kernel_seconds(theta, roofline.features([item], layout), layout)[0])


def test_compute_bound_time_is_flops_over_peak():
    item = work("conv_1x1", Dims(100, 64, 64))
    # 2 flops x 100 x 64 x 64 at 160 Gflop/s and half of the peak.
    assert seconds(item, eta=0.5) == pytest.approx(2 * 100 * 64 * 64 / (160e9 * 0.5))


def test_memory_bound_time_is_bytes_over_bandwidth():
    item = work("concat", Dims(1, 1), bytes_in=3000, bytes_out=1000)
    # 4000 bytes at 1 GB/s; the one operation does not count.
    assert seconds(item, bw_act=1e9) == pytest.approx(4e-6, rel=1e-4)


def test_weights_have_a_bandwidth_of_their_own():
    item = work("gemm", Dims(1, 16), bytes_weights=2_000_000)
    assert seconds(item, bw_w=1e10) == pytest.approx(2e-4, rel=1e-4)


def test_a_tensor_beyond_the_cache_comes_from_farther_away():
    item = work("concat", Dims(1, 1), bytes_in=4_000_000)
    # Four caches: practically all is far. 4 MB at 1 GB/s.
    assert seconds(item, bw_far=1e9, cache=1e6) == pytest.approx(4e-3, rel=1e-3)
    # A quarter of the cache: (1/4)^-8 = 65536 times less.
    assert seconds(item, bw_far=1e9, cache=16e6) < 1e-7


def test_outputs_are_padded_to_blocks_of_sixteen():
    eight, sixteen = (work("conv_1x1", Dims(100, n, 64)) for n in (8, 16))
    assert seconds(eight) == pytest.approx(seconds(sixteen))
    # 17 outputs are two blocks of 16.
    assert seconds(work("conv_1x1", Dims(100, 17, 64))) == pytest.approx(2 * seconds(sixteen))


def test_a_kernel_of_one_block_reads_its_input_for_itself_alone():
    one, four = (work("conv_1x1", Dims(100, n, 64)) for n in (16, 64))
    # With a = 1: one block costs (1 + 1) / (1 + 1/4) = 1.6, four cost (4 + 1) / (1 + 1/4) = 4.
    assert seconds(four, **{"a[fp32]": 1.0}) / seconds(one, **{"a[fp32]": 1.0}) == pytest.approx(
        2.5
    )


def test_a_row_that_fills_no_tile_loads_its_weights_once_more():
    six, seven = (work("conv_3x3", Dims(w * w, 64, 64, 9, 1, w)) for w in (6, 7))
    # With b = 2 a row of 6 costs (6 + 2) / (1 + 2/6) = 6, one of 7 (7 + 4) / (1 + 2/6) = 8.25.
    assert seconds(seven, b=2.0) / seconds(six, b=2.0) == pytest.approx(7 * 8.25 / (6 * 6))


def test_input_blocks_are_padded_in_fp32_and_not_in_int8():
    fp32 = [seconds(work("conv_3x3", Dims(100, 16, k, 9))) for k in (24, 32)]
    int8 = [seconds(work("conv_3x3", Dims(100, 16, k, 9), precision="int8")) for k in (24, 32)]
    assert fp32[0] == pytest.approx(fp32[1])
    assert int8[0] == pytest.approx(int8[1] * 24 / 32)


def test_gathering_few_channels_dominates_an_integer_stem():
    item = work("conv_direct", Dims(784, 64, 1, 9), precision="int8")
    # 784 positions x (64 x 9 products and 3 rows gathered at 1000 products) at 640 Gop/s.
    expected = 2 * 784 * (64 * 9 + 3 * 1000) / 640e9
    assert seconds(item, **{"tap[int8]": 1000.0}) == pytest.approx(expected)


def test_integer_depthwise_pays_for_channels_that_fill_no_vector():
    full, rest = (work("conv_depthwise", Dims(784, 1, 1, 9, c), precision="int8") for c in (16, 20))
    # 20 = 16 and four lanes; each lane costs tail1 vectors.
    ratio = seconds(rest, tail1=1.5) / seconds(full, tail1=1.5)
    assert ratio == pytest.approx(1 + 4 * 1.5)


def test_a_view_costs_its_overhead_alone():
    item = work("view", Dims(1, 1000))
    assert seconds(item, **{"t0[view,fp32]": 5e-6}) == pytest.approx(5e-6)


@pytest.mark.parametrize(("q", "expected"), [(1.0, 2.0), (2.0, 2**0.5), (200.0, 1.0)])
def test_q_goes_from_the_sum_to_the_maximum(q, expected):
    item = work("concat", Dims(1, 160_000), bytes_in=1000)
    # One operation an element: 160,000 at 160 Gflop/s take 1 us, as 1000 bytes at 1 GB/s do.
    assert seconds(item, q=q, bw_act=1e9) == pytest.approx(expected * 1e-6, rel=1e-2)


def test_the_jacobian_is_the_slope_of_the_time():
    items = [
        work("conv_3x3", Dims(784, 40, 24, 9), bytes_in=10**6, bytes_weights=10**5),
        work("conv_depthwise", Dims(784, 1, 1, 9, 20), bytes_in=10**5, precision="int8"),
        work("concat", Dims(784, 64), bytes_in=3 * 10**6),
    ]
    layout = roofline.Layout.of([(w.kind, w.precision) for w in items], PROFILE)
    theta, arrays = layout.start(), roofline.features(items, layout)
    _, jacobian = roofline.kernel_jacobian(theta, arrays, layout)
    for column in range(len(theta)):
        step = np.zeros(len(theta))
        step[column] = 1e-5
        up = roofline.kernel_seconds(theta + step, arrays, layout)
        down = roofline.kernel_seconds(theta - step, arrays, layout)
        assert jacobian[:, column] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-12)
