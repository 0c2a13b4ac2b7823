"""What is alive in memory: by hand on small graphs, and against what onnxruntime allocates."""

from __future__ import annotations

import onnx
import pytest

from latency_models import graph
from latency_models.building import Builder
from latency_models.liveness import liveness
from latency_models.lowering import RUNTIMES
from latency_models.scratch import scratch
from tests.latency_models import networks
from tests.latency_models.arena import allocated, local_runtime, planned

# Every tensor in one layout, so that there are no reorders: sizes are products of shapes.
PLAIN = "onnxruntime-cpu-arm"
BLOCK = 16


def alive(model, runtime=PLAIN):
    return {a.kernel: a.live_bytes for a in liveness(graph.read(model, runtime=runtime)).accesses}


def test_in_a_chain_what_a_kernel_reads_and_writes_is_alive():
    b = Builder("chain", seed=None)
    x = b.conv(b.input(1, 3, 8, 8), 4)
    b.output(b.conv(b.conv(x, 8), 2))
    found = liveness(graph.read(b.model(), runtime=PLAIN))
    # 4 x 64 floats; these and 8 x 64; these and the output's 2 x 64. The input is the caller's.
    assert [a.live_bytes for a in found.accesses] == [1024, 1024 + 2048, 2048 + 512]
    assert (found.peak_bytes, found.peak_at) == (3072, "conv_1")


def test_memory_access_counts_every_tensor_once():
    b = Builder("chain", seed=None)
    x = b.conv(b.input(1, 3, 8, 8), 4, window=3)
    b.output(b.conv(b.relu(x), 8))
    found = liveness(graph.read(b.model(), runtime=PLAIN))
    first, second = found.accesses
    # 4 x 3 x 9 weights and 4 biases; 3 x 64 floats in; 4 x 64 out, the Relu fused.
    assert (first.weight_bytes, first.read_bytes, first.written_bytes) == (4 * 112, 768, 1024)
    assert (second.weight_bytes, second.read_bytes, second.written_bytes) == (4 * 40, 1024, 2048)
    assert found.weight_bytes == 4 * 152
    assert found.moved_bytes == 4 * 152 + 768 + 1024 + 1024 + 2048


def test_a_shortcut_keeps_its_tensor_alive_until_the_sum():
    b = Builder("shortcut", seed=None)
    x = b.conv(b.input(1, 3, 8, 8), 4)
    y = b.conv(b.conv(x, 16), 4)
    b.output(b.conv(b.binary("Add", y, x), 2))
    # x is 1024 bytes: alive beside 4096 and y's 1024. The sum lies where y was.
    assert alive(b.model()) == {
        "conv_0": 1024,
        "conv_1": 1024 + 4096,
        "conv_2": 1024 + 4096 + 1024,
        "add_3": 1024 + 1024,
        "conv_4": 1024 + 512,
    }


def test_a_concatenation_needs_its_parts_and_itself():
    b = Builder("joined", seed=None)
    x = b.conv(b.input(1, 3, 8, 8), 4)
    b.output(b.conv(b.concat(b.conv(x, 8), b.conv(x, 12)), 2))
    # What was made last is computed first: 12 channels beside x, then 8 beside both.
    assert alive(b.model()) == {
        "conv_0": 1024,
        "conv_2": 1024 + 3072,
        "conv_1": 1024 + 3072 + 2048,
        "concat_3": 3072 + 2048 + 5120,
        "conv_4": 5120 + 512,
    }


def test_views_and_activations_take_no_memory_of_their_own():
    b = Builder("views", seed=None)
    x = b.unary("Exp", b.conv(b.input(1, 3, 8, 8), 4))
    b.output(b.gemm(b.flatten(x), 10))
    found = liveness(graph.read(b.model(), runtime=PLAIN))
    assert [a.live_bytes for a in found.accesses] == [1024, 1024, 1024, 1024 + 40]
    assert found.arena_bytes == 1024 + 40


def test_what_is_read_again_is_not_written_over():
    b = Builder("read twice", seed=None)
    x = b.conv(b.input(1, 3, 8, 8), 4)
    b.output(b.conv(b.binary("Mul", x, b.unary("Exp", x)), 2))
    assert alive(b.model())["exp_1"] == 2048
    assert alive(b.model())["mul_2"] == 2048


def test_channels_in_blocks_are_rounded_up():
    b = Builder("blocks", seed=None)
    b.output(b.global_pool(b.relu(b.conv(b.input(1, 3, 8, 8), 24, window=3))))
    kernels = graph.read(b.model(), runtime="onnxruntime-cpu")
    assert liveness(kernels, block=BLOCK).accesses[0].live_bytes == 4 * 32 * 64


def test_an_arena_that_grows_cannot_use_gaps_between_its_extensions():
    b = Builder("growing", seed=None)
    x = b.conv(b.input(1, 3, 8, 8), 4)
    x = b.conv(b.conv(x, 8), 16)
    b.output(b.conv(b.conv(x, 32), 1))
    found = liveness(graph.read(b.model(), runtime=PLAIN))
    # 1, 2, 4 and 8 KiB: nothing that was freed is large enough for the next tensor, nor is it where
    # places are planned; the output of 256 bytes takes a part of the arena, but not of the plan.
    assert found.peak_bytes == 4096 + 8192
    assert found.grown_bytes == 1024 + 2048 + 4096 + 8192
    assert found.arena_bytes == found.grown_bytes + 256


def test_an_empty_network_needs_nothing():
    found = liveness(())
    assert (found.peak_bytes, found.arena_bytes, found.grown_bytes, found.peak_at) == (0, 0, 0, "")


def test_int8_kernels_take_pointers_or_sums_for_themselves():
    b = Builder("scratch", seed=None)
    b.output(b.conv(b.conv(b.input(1, 16, 8, 8), 32, window=3), 20))
    floats = graph.read(b.model(), runtime=PLAIN)
    int8 = {kernel.name: "int8" for kernel in floats}
    kernels = graph.rewrite(floats, precision=int8, runtime=PLAIN)
    own = {k.name: scratch(k) for k in kernels if k.kind.startswith("conv")}
    # 64 positions of 9 pointers; a window of one needs none.
    assert own == {"conv_0": (8 * 9 * 64,), "conv_1": ()}


@pytest.mark.parametrize("runtime", graph.RUNTIMES)
@pytest.mark.parametrize("make", [networks.residual, networks.inverted, networks.googlenet])
def test_every_runtimes_kernels_have_what_they_read(make, runtime):
    model = make()
    kernels = graph.read(model, runtime=runtime)
    found = liveness(kernels)
    # Whatever a kernel writes is alive while it does.
    works = {kernel.name: graph.work(kernel) for kernel in kernels if kernel.kind != "view"}
    for access in found.accesses:
        if access.kernel in works:
            assert access.live_bytes >= works[access.kernel].bytes_out
    assert found.peak_bytes <= found.arena_bytes


# -- against onnxruntime -------------------------------------------------------------------------


def resnet(blocks: int) -> onnx.ModelProto:
    """ResNet-20 (3 blocks a stage) or ResNet-56 (9) at 32 x 32, with projections."""
    b = Builder("resnet")
    x, width = b.relu(b.conv(b.input(1, 3, 32, 32), 16, window=3)), 16
    for outer in (16, 32, 64):
        for index in range(blocks):
            stride = 2 if index == 0 and outer > 16 else 1
            y = b.conv(b.relu(b.conv(x, outer, window=3, stride=stride)), outer, window=3)
            kept = x if outer == width else b.conv(x, outer, stride=stride)
            x, width = b.relu(b.binary("Add", y, kept)), outer
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10))
    return b.model()


def mobilenet(stages: tuple[tuple[int, int, int], ...], size: int) -> onnx.ModelProto:
    """Inverted residuals of (expansion, channels, stride), as in MobileNetV2 and Lite0."""
    b = Builder("mobilenet")
    x, width = b.relu(b.conv(b.input(1, 3, size, size), 32, window=3, stride=2)), 32
    for expansion, channels, stride in stages:
        y, inner = x, width * expansion
        if expansion > 1:
            y = b.relu(b.conv(y, inner))
        y = b.relu(b.conv(y, inner, window=3, stride=stride, groups=inner))
        y = b.conv(y, channels)
        x = b.binary("Add", y, x) if stride == 1 and channels == width else y
        width = channels
    b.output(b.gemm(b.flatten(b.global_pool(b.relu(b.conv(x, 320)))), 100))
    return b.model()


MOBILE = ((1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 64, 2))
LITE = ((1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 40, 2), (6, 40, 1), (6, 80, 2), (6, 112, 1))
REAL = {
    "resnet20": lambda: resnet(3),
    "resnet56": lambda: resnet(9),
    "mobilenet": lambda: mobilenet(MOBILE, 64),
    "lite0": lambda: mobilenet(LITE, 96),
    "inception": networks.inception,
    "joined": networks.joined,
    "excited": networks.inverted,
    "residual": networks.residual,
}


@pytest.mark.parametrize("name", REAL)
def test_memory_is_what_onnxruntime_allocates(name, tmp_path):
    model = REAL[name]()
    path = tmp_path / "network.onnx"
    onnx.save(model, path)
    runtime = RUNTIMES[local_runtime()]
    found = liveness(graph.read(model, runtime=runtime.name), block=runtime.block)
    assert found.grown_bytes == pytest.approx(allocated(path), rel=0.1)
    assert found.arena_bytes == pytest.approx(planned(path), rel=0.1)
