"""The form of the roofline for GPUs and for CPUs whose kernels are not known in detail."""

import dataclasses
import math

import numpy as np
import pytest

from latency_models import profiles, roofline
from latency_models.kernels import Dims
from latency_models.profiles import Scales
from tests.latency_models.test_roofline import work

NANO = profiles.load("jetson-nano")
CPU = profiles.load("jetson-nano-cpu")
# Values that take a parameter out of the formula.
PLAIN = {
    "q": 1.0,
    "bw": 1e30,
    "bw_w": 1e30,
    "n0": 1e-12,
    "k0": 1e-12,
    "r0": 1e-12,
    "p": 1.0,
    "s": 1e-12,
    "tg": 1e-30,
}


def set_up(items, profile=NANO, **values):
    """The layout and parameters for ``items``, all that is not given taken out."""
    layout = roofline.Layout.of([(w.kind, w.precision) for w in items], profile)
    theta = layout.start()
    for kind, precision in layout.groups:
        theta[layout.index(f"eta[{kind},{precision}]")] = math.log(values.get("eta", 1.0))
        theta[layout.index(f"t0[{kind},{precision}]")] = math.log(values.get("t0", 1e-15))
    for name, value in (PLAIN | values).items():
        if name not in ("eta", "t0"):
            theta[layout.index(name)] = math.log(value)
    return layout, theta


def seconds(item, scales=None, **values):
    layout, theta = set_up([item], **values)
    arrays = roofline.features([item], layout, scales)
    return float(roofline.kernel_seconds(theta, arrays, layout)[0])


def test_a_large_product_takes_its_flops_over_the_peak():
    item = work("conv_3x3", Dims(100, 64, 64, 9), precision="fp16")
    # 2 x 100 x 64 x 64 x 9 at 471.9 Gflop/s and half of it.
    expected = 2 * 100 * 64 * 64 * 9 / (471.9e9 * 0.5)
    assert seconds(item, eta=0.5) == pytest.approx(expected)


def test_a_tile_that_is_not_full_costs_a_part_of_a_full_one():
    full, half = (work("conv_1x1", Dims(100, n, 64)) for n in (32, 16))
    # s = 3: (16 + 3 x 32) / 4 = 28 outputs instead of 16.
    assert seconds(half, s=3.0) / seconds(full, s=3.0) == pytest.approx(28 / 32)
    assert seconds(half) / seconds(full) == pytest.approx(16 / 32)


def test_few_rows_outputs_and_inputs_do_not_fill_the_machine():
    item = work("conv_1x1", Dims(64, 32, 64))
    # (64 / 16)^-0.5 more for the rows, 8 of 32 more outputs, 4 of 64 more inputs.
    ratio = seconds(item, r0=16.0, p=0.5, n0=8.0, k0=4.0) / seconds(item)
    assert ratio == pytest.approx(1.5 * (40 / 32) * (68 / 64))


def test_each_kind_moves_bytes_at_a_bandwidth_of_its_own():
    item = work("concat", Dims(1, 1000), bytes_in=3000, bytes_out=1000)
    assert seconds(item, bw=1e9) == pytest.approx(4e-6)
    assert seconds(item, bw=1e9, **{"rel_bw[concat]": 0.5}) == pytest.approx(8e-6)
    weights = work("gemm", Dims(1, 10), bytes_weights=5000)
    assert seconds(weights, bw_w=1e9) == pytest.approx(5e-6, rel=1e-4)


def test_each_group_of_a_grouped_convolution_costs_a_launch():
    item = work("conv_grouped", Dims(100, 4, 4, 9, 32))
    products = 2 * 32 * 100 * 4 * 36 / 235.9e9
    assert seconds(item, tg=1e-5) == pytest.approx(products + 32e-5)
    alone = work("conv_depthwise", Dims(100, 1, 1, 9, 32))
    assert seconds(alone, tg=1e-5) == pytest.approx(seconds(alone))


def test_a_clock_slows_down_what_follows_it():
    busy = work("conv_3x3", Dims(10_000, 64, 64, 9))
    assert seconds(busy, Scales(gpu=0.5)) == pytest.approx(2 * seconds(busy))
    assert seconds(busy, Scales(memory=0.5)) == pytest.approx(seconds(busy))
    moved = work("concat", Dims(1, 1), bytes_in=4000)
    assert seconds(moved, Scales(memory=0.5), bw=1e9) == pytest.approx(8e-6)
    # Half of a launch waits for the host.
    small = work("concat", Dims(1, 1))
    assert seconds(small, Scales(cpu=0.5), t0=1e-5) == pytest.approx(1.5e-5)


@pytest.mark.parametrize("grow", ["rows", "outputs", "inputs", "window", "groups"])
def test_more_of_anything_is_never_faster(grow):
    item = work("conv_grouped", Dims(49, 24, 24, 9, 2), bytes_in=1000)
    layout = roofline.Layout.of([(item.kind, item.precision)], NANO)
    sizes = [item.shape._replace(**{grow: n}) for n in range(1, 130)]
    items = [dataclasses.replace(item, shape=shape) for shape in sizes]
    arrays = roofline.features(items, layout)
    times = roofline.kernel_seconds(layout.start(), arrays, layout)
    assert (np.diff(times) >= 0).all()


def network(theta, layout, sums, counts):
    scales = np.ones((len(sums), 3))
    return roofline.network_seconds(theta, layout, np.array(sums), np.array(counts), scales)[0]


def test_the_slower_of_host_and_device_decides():
    layout, theta = set_up([work("concat", Dims(1, 1))], c0=1e-9, enqueue=1e-5)
    # A hundred kernels take the host 1 ms; beside ten of either the other hardly counts.
    assert network(theta, layout, [1e-4], [100.0]) == pytest.approx([1e-3], rel=1e-3)
    assert network(theta, layout, [1e-2], [100.0]) == pytest.approx([1e-2], rel=1e-3)
    # Where they are equal: 2^(1/6).
    assert network(theta, layout, [1e-3], [100.0]) == pytest.approx([1e-3 * 2 ** (1 / 6)])


def test_without_a_queue_a_network_is_the_sum_of_its_kernels():
    layout, theta = set_up([work("concat", Dims(1, 1))], CPU, c0=1e-4)
    assert network(theta, layout, [1e-3], [1000.0]) == pytest.approx([1.1e-3], rel=1e-4)


def test_the_jacobian_is_the_slope_of_the_time():
    items = [
        work("conv_3x3", Dims(784, 40, 24, 9), bytes_in=10**6, bytes_weights=10**5),
        work("conv_grouped", Dims(784, 8, 8, 9, 4), bytes_in=10**5, precision="fp16"),
        work("concat", Dims(784, 64), bytes_in=3 * 10**6),
    ]
    layout = roofline.Layout.of([(w.kind, w.precision) for w in items], NANO)
    theta = layout.start() + 0.1
    arrays = roofline.features(items, layout, Scales(0.8, 0.7, 0.9))
    _, jacobian = roofline.kernel_jacobian(theta, arrays, layout)
    for column in range(len(theta)):
        step = np.zeros(len(theta))
        step[column] = 1e-5
        up = roofline.kernel_seconds(theta + step, arrays, layout)
        down = roofline.kernel_seconds(theta - step, arrays, layout)
        assert jacobian[:, column] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-12)


def test_parameters_with_a_doubt_in_common_go_together():
    groups = [("conv_1x1", "fp32"), ("gemm", "fp32"), ("concat", "fp32")]
    layout = roofline.Layout.of(groups, NANO)
    covariance = layout.covariance()
    one, two, other = (layout.index(f"eta[{kind},fp32]") for kind, _ in groups)
    # Both dense (0.7) and the same products (0.6).
    assert covariance[one, two] == pytest.approx(0.7**2 + 0.6**2)
    assert covariance[one, other] == 0
    assert (np.linalg.eigvalsh(covariance) > 0).all()
