"""Each rule of the GPU runtimes by a small graph, the kernels worked out by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from latency_models import graph
from latency_models.building import Builder
from tests.latency_models.networks import (
    CUDA,
    CUDA_1_17,
    GPU,
    TENSORRT,
    TENSORRT_6,
    floats,
    googlenet,
    inception,
    integers,
    kinds,
    network,
)


def nodes(model, **options):
    """The ONNX nodes of each kernel that is not a view."""
    return [k.nodes for k in graph.read(model, **options) if k.kind != "view"]


def residual_block():
    b = Builder("fused")
    x = b.relu(b.conv(b.input(1, 32, 8, 8), 32))
    y = b.batch_norm(b.conv(x, 32, window=3))
    b.output(b.relu(b.binary("Add", y, x)))
    return b.model()


@pytest.mark.parametrize("runtime", [CUDA_1_17, TENSORRT])
def test_convolution_batch_norm_sum_and_relu_are_one_kernel(runtime):
    kernels = graph.read(residual_block(), runtime=runtime)
    assert [k.kind for k in kernels] == ["conv_1x1", "conv_3x3"]
    assert kernels[1].nodes == ("conv_2", "norm_3", "add_4", "relu_5")
    # Two tensors of 32 x 8 x 8 floats are read, one is written.
    assert graph.work(kernels[1]).bytes_in == 2 * 32 * 8 * 8 * 4
    assert graph.work(kernels[1]).bytes_out == 32 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("runtime", "after"), [(CUDA, [("add_4",), ("relu_5",)]), (TENSORRT_6, [("add_4", "relu_5")])]
)
def test_elsewhere_the_sum_stays_apart_from_the_convolution(runtime, after):
    kernels = graph.read(residual_block(), runtime=runtime)
    assert [k.nodes for k in kernels] == [("conv_0", "relu_1"), ("conv_2", "norm_3"), *after]
    assert [k.kind for k in kernels[:3]] == ["conv_1x1", "conv_3x3", "binary"]
    # The convolution reads one tensor of 32 x 8 x 8 floats, the sum two.
    assert [graph.work(k).bytes_in for k in kernels[1:3]] == [8192, 2 * 8192]


@pytest.mark.parametrize(
    ("runtime", "count"), [(CUDA, 3), (CUDA_1_17, 3), (TENSORRT_6, 3), (TENSORRT, 2)]
)
def test_a_sum_without_relu_is_fused_by_tensorrt_8_alone(runtime, count):
    b = Builder("linear")
    x = b.relu(b.conv(b.input(1, 32, 8, 8), 32))
    b.output(b.binary("Add", b.conv(x, 32), x))
    assert len(graph.read(b.model(), runtime=runtime)) == count


@pytest.mark.parametrize(
    ("runtime", "summing", "count"),
    [
        (CUDA_1_17, "conv_0", 2),
        (TENSORRT, "conv_1", 2),
        (CUDA, "add_2", 4),
        (TENSORRT_6, "add_2", 3),
    ],
)
def test_of_two_convolutions_tensorrt_sums_in_the_later_and_onnxruntime_in_the_first(
    runtime, summing, count
):
    b = Builder("projected")
    image = b.input(1, 32, 8, 8)
    x, y = b.conv(image, 16, window=3), b.conv(image, 16, window=5)
    b.output(b.relu(b.binary("Add", x, y)))
    kernels = graph.read(b.model(), runtime=runtime)
    # 1.11 and TensorRT 6 have kernels for the sum; TensorRT's takes up the Relu.
    assert [k.name for k in kernels if "add_2" in k.nodes] == [summing]
    assert len(kernels) == count


@pytest.mark.parametrize(
    ("activation", "cuda", "tensorrt"),
    [
        ("Relu", ["conv_1x1"], ["conv_1x1"]),
        ("Clip", ["conv_1x1", "elementwise"], ["conv_1x1"]),
        ("LeakyRelu", ["conv_1x1", "elementwise"], ["conv_1x1", "elementwise"]),
        ("Sigmoid", ["conv_1x1", "transcendental"], ["conv_1x1", "transcendental"]),
    ],
)
def test_which_activations_a_convolution_takes_up(activation, cuda, tensorrt):
    b = Builder("activation")
    b.output(b.unary(activation, b.conv(b.input(1, 16, 8, 8), 16)))
    assert kinds(b.model(), runtime=CUDA) == cuda
    assert kinds(b.model(), runtime=TENSORRT) == tensorrt


def test_swish_and_hard_swish_by_runtime():
    b = Builder("swish")
    b.output(b.hard_swish(b.silu(b.conv(b.input(1, 16, 8, 8), 32))))
    # 1.11 has a kernel for every operator; both gates count as one kind of work each.
    assert nodes(b.model(), runtime=CUDA) == [
        ("conv_0",),
        ("sigmoid_1", "mul_2"),
        ("hardsigmoid_3", "mul_4"),
    ]
    assert kinds(b.model(), runtime=CUDA) == ["conv_1x1", "transcendental", "elementwise"]
    # A gate reads its tensor once: 32 x 8 x 8 floats.
    works = [graph.work(k) for k in graph.read(b.model(), runtime=CUDA)[1:]]
    assert [(w.bytes_in, w.bytes_out) for w in works] == [(8192, 8192)] * 2
    # Later ones know x * sigmoid(x), not x * hard_sigmoid(x).
    assert kinds(b.model(), runtime=CUDA_1_17) == [
        "conv_1x1",
        "transcendental",
        "elementwise",
        "binary",
    ]
    # TensorRT 8 makes one kernel of both: PWN(PWN(PWN(Sigmoid), Mul), ...); 6 knows no chains.
    assert kinds(b.model(), runtime=TENSORRT) == ["conv_1x1", "transcendental"]
    assert kinds(b.model(), runtime=TENSORRT_6) == [
        "conv_1x1",
        "transcendental",
        "binary",
        "elementwise",
        "binary",
    ]


def test_a_gate_of_another_tensor_is_no_gate():
    b = Builder("other")
    x, y = b.input(1, 16, 8, 8), b.input(1, 16, 8, 8)
    b.output(b.binary("Mul", y, b.unary("Sigmoid", x)))
    assert kinds(b.model(), runtime=CUDA) == ["transcendental", "binary"]


def test_squeeze_and_excitation_is_pooling_two_convolutions_and_a_gate():
    b = Builder("gate")
    b.output(b.squeeze_excite(b.relu(b.conv(b.input(1, 16, 8, 8), 32)), 8))
    kernels = graph.read(b.model(), runtime=TENSORRT)
    assert [k.kind for k in kernels] == [
        "conv_1x1",
        "global_pool",
        "conv_1x1",
        "conv_1x1",
        "binary_broadcast",
    ]
    # The gate reads 32 values and 32 x 8 x 8, four bytes each.
    assert graph.work(kernels[-1]).bytes_in == (32 + 32 * 8 * 8) * 4
    assert kinds(b.model(), runtime=CUDA) == [
        "conv_1x1",
        "reduce",
        "conv_1x1",
        "conv_1x1",
        "transcendental",
        "binary_broadcast",
    ]


def test_a_chain_of_sums_is_one_element_wise_kernel():
    b = Builder("sums")
    x, y, z = (b.input(1, 16, 8, 8) for _ in range(3))
    b.output(b.unary("Clip", b.binary("Add", b.binary("Add", x, y), z)))
    (kernel,) = graph.read(b.model(), runtime=TENSORRT)
    assert (kernel.kind, kernel.inputs) == ("binary", (x, y, z))
    assert kinds(b.model(), runtime=CUDA) == ["binary", "binary", "elementwise"]
    # Before TensorRT 7 there were no chains, and a sum took up a Relu alone.
    assert kinds(b.model(), runtime=TENSORRT_6) == ["binary", "binary", "elementwise"]


@pytest.mark.parametrize("runtime", [TENSORRT, TENSORRT_6])
def test_a_tensor_that_somebody_else_reads_is_written(runtime):
    b = Builder("shared")
    x = b.unary("Sigmoid", b.input(1, 16, 8, 8))
    b.output(b.relu(x))
    b.output(b.pool("MaxPool", x, window=2, stride=2))
    assert kinds(b.model(), runtime=runtime) == ["transcendental", "elementwise", "max_pool"]


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (TENSORRT_6, [("add_0", "relu_1"), ("maxpool_2",)]),
        (TENSORRT, [("add_0",), ("relu_1",), ("maxpool_2",)]),
        (CUDA, [("add_0",), ("relu_1",), ("maxpool_2",)]),
    ],
)
def test_tensorrt_6_writes_a_sum_and_its_relu_in_one_kernel(runtime, expected):
    b = Builder("kept")
    x = b.binary("Add", b.input(1, 16, 8, 8), b.input(1, 16, 8, 8))
    b.output(b.relu(x))
    b.output(b.pool("MaxPool", x, window=2, stride=2))
    kernels = graph.read(b.model(), runtime=runtime)
    assert [k.nodes for k in kernels] == expected
    # The pooling reads the sum itself, not its positive part.
    assert kernels[-1].inputs == (x,)


def test_only_a_sum_takes_up_its_relu_on_tensorrt_6():
    b = Builder("others")
    x, y = b.input(1, 16, 8, 8), b.input(1, 16, 8, 8)
    b.output(b.relu(b.binary("Mul", x, y)))
    b.output(b.unary("Clip", b.binary("Add", x, y)))
    assert kinds(b.model(), runtime=TENSORRT_6) == ["binary", "elementwise"] * 2


def test_batch_norm_before_a_convolution_takes_up_its_relu_on_tensorrt():
    b = Builder("dense")
    x = b.pool("MaxPool", b.input(1, 16, 8, 8), window=2, stride=2)
    b.output(b.conv(b.relu(b.batch_norm(x)), 16))
    assert kinds(b.model(), runtime=TENSORRT) == ["max_pool", "elementwise", "conv_1x1"]
    assert kinds(b.model(), runtime=TENSORRT_6) == kinds(b.model(), runtime=TENSORRT)
    # onnxruntime has a kernel for each, both element-wise.
    for runtime in (CUDA, CUDA_1_17):
        assert nodes(b.model(), runtime=runtime) == [
            ("maxpool_0",),
            ("norm_1",),
            ("relu_2",),
            ("conv_3",),
        ]
        assert kinds(b.model(), runtime=runtime) == [
            "max_pool",
            "elementwise",
            "elementwise",
            "conv_1x1",
        ]


@pytest.mark.parametrize("runtime", GPU)
def test_a_norm_that_computes_its_means_is_no_scale(runtime):
    model = network(
        ("InstanceNormalization", ["x", "g", "s"], {}),
        shapes={"x": (16, 8, 8)},
        constants=floats("g", 16) | floats("s", 16),
    )
    assert kinds(model, runtime=runtime) == ["normalise"]


def test_kinds_of_convolutions():
    b = Builder("kinds")
    x = b.relu(b.conv(b.input(1, 3, 32, 32), 16, window=3, stride=2))
    x = b.relu(b.conv(x, 16, window=3, groups=16))
    x = b.relu(b.conv(x, 16, window=3, groups=4))
    x = b.relu(b.conv(x, 16, window=5))
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10))
    assert kinds(b.model(), runtime=TENSORRT) == [
        "conv_direct",
        "conv_depthwise",
        "conv_grouped",
        "conv_large",
        "global_pool",
        "view",
        "gemm",
    ]


def test_inception_is_the_engines_six_layers():
    kernels = graph.read(inception(), runtime=TENSORRT)
    # pool, 1x1 || 3x3_reduce || 5x5_reduce, 3x3, 5x5, pool_proj, "1x1 copy"; the first is ours.
    assert [k.kind for k in kernels] == [
        "max_pool",
        "conv_1x1",
        "conv_3x3",
        "conv_large",
        "max_pool",
        "conv_1x1",
        "move",
        "view",
    ]
    merged = kernels[1]
    # 8 + 8 + 4 outputs of 16 inputs at 4 x 4 positions.
    assert graph.work(merged).macs == 20 * 16 * 4 * 4
    assert [n for n in merged.nodes if n.startswith("conv")] == ["conv_1", "conv_3", "conv_7"]
    # The copy moves the 1x1 branch alone.
    assert graph.work(kernels[6]).bytes_in == 8 * 4 * 4 * 4
    assert kinds(inception(), runtime=CUDA)[-1] == "concat"


def test_googlenet_is_the_sixty_six_layers_of_an_engine_for_an_agx_xavier():
    found = [k for k in graph.read(googlenet(), runtime=TENSORRT) if k.kind != "view"]
    # Its profile without reformats: 3 convolutions, 2 norms and 4 poolings up to the last block,
    # 9 blocks of 6 layers, one of them a copy; pooling, classifier, softmax: 9 + 54 + 3.
    assert len(found) == 66
    assert sum(k.kind == "move" for k in found) == 9
    # Szegedy et al. give 1.5 G multiply-adds.
    assert 1.4e9 < sum(graph.work(k).macs for k in found) < 1.7e9


def test_a_resized_or_pooled_tensor_is_copied_into_a_concatenation():
    b = Builder("pyramid")
    x = b.relu(b.conv(b.input(1, 16, 8, 8), 8))
    y = b.pool("AveragePool", x, window=3, stride=1)
    b.output(b.concat(x, b.relu(b.conv(y, 8))))
    # "363 copy": an average pooling reads x too and cannot read a part of the concatenation.
    assert kinds(b.model(), runtime=TENSORRT) == [
        "conv_1x1",
        "average_pool",
        "conv_1x1",
        "move",
        "view",
    ]


@pytest.mark.parametrize(
    ("order", "copies"), [("xyz", []), ("yxz", ["concat_6/copy_0", "concat_6/copy_1"])]
)
def test_of_two_concatenations_the_last_holds_a_tensor_in_place(order, copies):
    b = Builder("dense")
    made = {name: b.relu(b.conv(b.input(1, 8, 8, 8), 8)) for name in "xyz"}
    b.output(b.relu(b.conv(b.concat(made["x"], made["y"]), 8)))
    # One that begins with the same tensors holds the first as a part.
    b.output(b.concat(*(made[name] for name in order)))
    kernels = graph.read(b.model(), runtime=TENSORRT)
    assert [k.name for k in kernels if k.kind == "move"] == copies


class Pyramid(Builder):
    """The builder with the one operator more that a segmentation network needs."""

    def resize(self, x, size):
        batch, channels, *_ = self.shapes[x]
        name = f"resize_{len(self._nodes)}"
        target = np.array([batch, channels, size, size])
        sizes = self._constant(f"{name}.sizes", target, dtype=np.int64)
        return self._add("Resize", [x, "", "", sizes], (batch, channels, size, size), name=name)


def fast_scnn():
    """Fast-SCNN (Poudel et al., 2019) at 384 x 384, as the engine's layer names tell it."""
    b = Pyramid("fast_scnn")

    def separable(x, channels, stride=1):
        width = b.shapes[x][1]
        filtered = b.conv(x, width, window=3, stride=stride, groups=width)
        return b.relu(b.conv(b.relu(filtered), channels))

    x = b.relu(b.conv(b.input(1, 3, 384, 384), 32, window=3, stride=2))
    fine = x = separable(separable(x, 48, 2), 64, 2)
    for channels, stride in ((64, 2), (96, 2), (128, 1)):
        for step in (stride, 1, 1):
            wide = 6 * b.shapes[x][1]
            y = b.relu(b.conv(b.relu(b.conv(x, wide)), wide, window=3, stride=step, groups=wide))
            y = b.conv(y, channels)
            x = b.binary("Add", x, y) if b.shapes[x] == b.shapes[y] and step == 1 else y
    pooled = [b.pool("AveragePool", x, window=12 // n, stride=12 // n) for n in (1, 2, 3, 6)]
    levels = [b.resize(b.relu(b.conv(y, 32)), 12) for y in pooled]
    x = b.resize(b.relu(b.conv(b.concat(x, *levels), 128)), 48)
    x = b.conv(b.relu(b.conv(x, 128, window=3, groups=128)), 128)
    x = b.relu(b.binary("Add", x, b.conv(fine, 128)))
    x = b.conv(separable(separable(x, 128), 128), 19)
    b.output(b.resize(x, 384))
    return b.model()


def test_fast_scnn_is_the_sixty_layers_that_trtexec_lists_on_a_nano():
    found = [k for k in graph.read(fast_scnn(), runtime=TENSORRT) if k.kind != "view"]
    # trtexec 8.0.1, FP32 and FP16 alike: 60, of which 5 are copies into the concatenation.
    assert len(found) == 60
    assert sum(k.kind == "move" for k in found) == 5
    assert sum("add" in n for k in found for n in k.nodes) == 7
    assert sum(k.kind.startswith("binary") for k in found) == 0


def padded(mode):
    return network(
        ("Pad", ["x", "pads"], {"mode": mode}),
        ("Conv", ["t0", "w"], {}),
        shapes={"x": (16, 8, 8)},
        constants=integers("pads", 0, 0, 1, 1, 0, 0, 1, 1) | floats("w", 16, 16, 3, 3),
    )


def test_zeros_around_an_image_are_the_convolutions_own():
    (kernel,) = graph.read(padded("constant"), runtime=TENSORRT)
    assert kernel.kind == "conv_3x3"
    assert (kernel.name, kernel.nodes) == ("conv_1", ("pad_0", "conv_1"))
    assert (kernel.inputs, kernel.in_hw, kernel.out_hw) == (("x",), (8, 8), (8, 8))
    assert kinds(padded("constant"), runtime=CUDA_1_17) == ["conv_3x3"]
    # 1.11 has no such fusion.
    assert kinds(padded("constant"), runtime=CUDA) == ["move", "conv_3x3"]


def test_reflected_pixels_are_not():
    assert kinds(padded("reflect"), runtime=TENSORRT) == ["move", "conv_3x3"]


def test_split_is_a_kernel_for_every_part_on_tensorrt():
    parts = helper.make_node("Split", ["x"], ["a", "b"], "split", axis=1)
    both = [
        helper.make_node("Sigmoid", ["a"], ["sa"], "sa"),
        helper.make_node("Mul", ["sa", "b"], ["y"], "mul"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([parts, *both], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    kernels = graph.read(model, runtime=TENSORRT)
    assert [k.kind for k in kernels] == ["move", "move", "binary"]
    assert [graph.work(k).bytes_in for k in kernels[:2]] == [8 * 16 * 4] * 2
    assert kinds(model, runtime=CUDA) == ["move", "transcendental", "binary"]


def transformer_block():
    """LayerNorm, MatMul with bias, Gelu and a second sum as exporters write them."""
    c = floats("w", 8, 16) | floats("bias", 16) | floats("g", 8) | floats("s", 8)
    c |= {n: helper.make_tensor(n, TensorProto.FLOAT, [], [0.5]) for n in ("two", "eps", "root")}
    return network(
        ("ReduceMean", ["x"], {"axes": [-1]}),
        ("Sub", ["x", "t0"], {}),
        ("Pow", ["t1", "two"], {}),
        ("ReduceMean", ["t2"], {"axes": [-1]}),
        ("Add", ["t3", "eps"], {}),
        ("Sqrt", ["t4"], {}),
        ("Div", ["t1", "t5"], {}),
        ("Mul", ["t6", "g"], {}),
        ("Add", ["t7", "s"], {}),
        ("MatMul", ["t8", "w"], {}),
        ("Add", ["t9", "bias"], {}),
        ("Div", ["t10", "root"], {}),
        ("Erf", ["t11"], {}),
        ("Add", ["t12", "two"], {}),
        ("Mul", ["t10", "t13"], {}),
        ("Mul", ["t14", "two"], {}),
        shapes={"x": (4, 8)},
        constants=c,
    )


def test_layer_norm_and_gelu_are_kernels_of_their_own_on_cuda():
    found = graph.read(transformer_block(), runtime=CUDA)
    assert [k.kind for k in found] == ["normalise", "gemm", "transcendental"]
    # bias_gelu_fusion.cc: the bias goes with the Gelu where the product has three dimensions.
    assert found[2].nodes[0] == "add_10"


def test_tensorrt_8_makes_layer_norm_of_reductions_and_element_wise_kernels():
    # As in an engine's names: ReduceMean, Sub, PWN(Pow), ReduceMean, PWN(Add ... Add_1).
    assert nodes(transformer_block(), runtime=TENSORRT) == [
        ("reducemean_0",),
        ("sub_1",),
        ("pow_2",),
        ("reducemean_3",),
        ("add_4", "sqrt_5", "div_6", "mul_7", "add_8"),
        ("matmul_9", "add_10"),
        ("div_11", "erf_12", "add_13", "mul_14", "mul_15"),
    ]


def test_a_sum_goes_into_the_layer_norm_after_it_on_cuda():
    model = network(
        ("Add", ["x", "y"], {}),
        ("LayerNormalization", ["t0", "g"], {"axis": -1}),
        shapes={"x": (4, 8), "y": (4, 8)},
        constants=floats("g", 8),
    )
    model.opset_import[0].version = 17
    (kernel,) = graph.read(model, runtime=CUDA)
    assert (kernel.kind, kernel.inputs) == ("normalise", ("x", "y"))
