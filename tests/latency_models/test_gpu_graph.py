"""The GPU runtimes beyond fusion: precisions, batches, rewriting, exporters' noise, all graphs."""

import time

import onnx
import pytest
from onnx import TensorProto, helper

from latency_models import errors, graph, synthetic
from latency_models.building import Builder
from latency_models.fusion_rules import GPU_RUNTIMES
from latency_models.gpu_lowering import lower_gpu
from latency_models.lowering import RUNTIMES, lower
from latency_models.parse import load, parse
from tests.latency_models.networks import (
    CUDA,
    CUDA_1_17,
    GPU,
    MEASURED,
    TENSORRT,
    TENSORRT_6,
    floats,
    inception,
    integers,
    inverted,
    joined,
    kinds,
    network,
    residual,
    works,
)


def test_half_precision_is_framed_by_reformats():
    b = Builder("half")
    b.output(b.relu(b.conv(b.input(1, 16, 8, 8), 32)))
    kernels = graph.read(b.model(), runtime=TENSORRT, precision="fp16")
    assert [k.kind for k in kernels] == ["reformat", "conv_1x1", "reformat"]
    into, conv, out = map(graph.work, kernels)
    assert (into.precision, into.bytes_in, into.bytes_out) == ("fp16", 1024 * 4, 1024 * 2)
    # 16 x 32 weights of two bytes and 32 biases of four.
    assert (conv.precision, conv.bytes_weights) == ("fp16", 16 * 32 * 2 + 32 * 4)
    assert (out.precision, out.bytes_in, out.bytes_out) == ("fp32", 2048 * 2, 2048 * 4)


def test_a_cpu_has_no_half_precision_kernels():
    with pytest.raises(errors.UnsupportedGraph, match=r"fp16.*fp32 and int8 only"):
        graph.read(residual(), precision="fp16")


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", *GPU])
def test_int8_is_not_asked_for_but_exported(runtime):
    with pytest.raises(errors.UnsupportedGraph, match="int8 comes from Q/DQ pairs"):
        graph.read(residual(), runtime=runtime, precision="int8")


def test_pairs_around_a_convolution_make_it_an_integer_kernel():
    b = Builder("integer")
    x = b.conv(b.input(1, 16, 8, 8), 32)
    b.output(b.conv(x, 16))
    kernels = graph.read(synthetic.quantized(b.model()), runtime=TENSORRT, precision="fp16")
    assert [(k.kind, k.precision) for k in kernels] == [
        ("reformat", "int8"),
        ("conv_1x1", "int8"),
        ("conv_1x1", "int8"),
        ("reformat", "fp32"),
    ]
    works = [graph.work(k) for k in kernels]
    # Four bytes in, one out; then bytes in and bytes out; at the end one byte in, four out.
    assert (works[0].bytes_in, works[0].bytes_out) == (1024 * 4, 1024)
    assert (works[1].bytes_in, works[1].bytes_out) == (1024, 2048)
    assert (works[3].bytes_in, works[3].bytes_out) == (1024, 1024 * 4)


def test_a_pair_on_the_shortcut_makes_the_sum_a_part_of_the_integer_convolution():
    b = Builder("shortcut")
    x = b.conv(b.input(1, 16, 8, 8), 16)
    b.output(b.relu(b.binary("Add", b.conv(x, 16), x)))
    model = synthetic.quantized(b.model())
    # As TensorRT wants it: no pair between the convolution and the sum.
    before = next(n for n in model.graph.node if n.name == "conv_1").output[0]
    pair = {n.op_type: n for n in model.graph.node if n.input[0] == before}
    after = pair["QuantizeLinear"].output[0]
    dequantized = next(n for n in model.graph.node if n.input[0] == after)
    total = next(n for n in model.graph.node if n.op_type == "Add")
    total.input[list(total.input).index(dequantized.output[0])] = before
    for node in (pair["QuantizeLinear"], dequantized):
        model.graph.node.remove(node)
    kernels = graph.read(model, runtime=TENSORRT)
    assert [(k.kind, k.precision) for k in kernels] == [
        ("reformat", "int8"),
        ("conv_1x1", "int8"),
        ("conv_1x1", "int8"),
        ("reformat", "fp32"),
    ]
    # Both tensors that the sum needs are read as bytes.
    assert graph.work(kernels[2]).bytes_in == 2 * 16 * 8 * 8


def test_a_float_layer_between_integers_stands_between_reformats():
    b = Builder("mixed")
    x = b.conv(b.conv(b.input(1, 16, 8, 8), 32), 32)
    b.output(b.conv(x, 16))
    model = synthetic.quantized(b.model(), exclude=frozenset({"conv_1"}))
    kernels = graph.read(model, runtime=TENSORRT)
    assert [(k.kind, k.precision) for k in kernels if k.kind != "view"] == [
        ("reformat", "int8"),
        ("conv_1x1", "int8"),
        ("reformat", "fp32"),
        ("conv_1x1", "fp32"),
        ("reformat", "int8"),
        ("conv_1x1", "int8"),
        ("reformat", "fp32"),
    ]


def test_onnxruntime_on_cuda_executes_pairs_as_they_stand():
    b = Builder("pairs")
    b.output(b.conv(b.input(1, 16, 8, 8), 32))
    found = kinds(synthetic.quantized(b.model()), runtime=CUDA)
    # Image in and out, weights and bias stored as integers.
    assert found == [
        "quantize",
        "dequantize",
        "dequantize",
        "dequantize",
        "conv_1x1",
        "quantize",
        "dequantize",
    ]


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", *GPU])
def test_a_free_batch_is_pinned(runtime):
    model = residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    one, four = (graph.read(model, runtime=runtime, batch=n) for n in (None, 4))
    assert {k.batch for k in four} == {4}
    macs = [sum(graph.work(k).macs for k in kernels) for kernels in (one, four)]
    assert macs[1] == 4 * macs[0]


def test_a_fixed_batch_is_not_changed_silently():
    with pytest.raises(errors.UnsupportedGraph, match="fixed batch of 1, not 4"):
        graph.read(residual(), batch=4)


@pytest.mark.parametrize("runtime", GPU)
def test_what_exporters_leave_behind_changes_nothing(runtime):
    nodes = [
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Identity", ["bias"], ["bias2"]),
        helper.make_node("Pad", ["x", "pads"], ["padded"], "pad"),
        helper.make_node("Conv", ["padded", "w2", "bias2"], ["y"], "conv"),
        helper.make_node("Identity", ["y"], ["y2"]),
        helper.make_node("Relu", ["y2"], ["r"], "relu"),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["z"], "reshape"),
    ]
    constants = [
        *floats("w", 16, 16, 1, 1).values(),
        *floats("bias", 16).values(),
        *integers("pads", 0, 0, 0, 0, 0, 0, 0, 0).values(),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        *integers("axes", 0).values(),
        *integers("rest", -1).values(),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 4, 4])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [z], constants),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    kernels = graph.read(model, runtime=runtime)
    # The Pad adds nothing: it has gone, also where no rule takes one into a convolution.
    assert [k.kind for k in kernels] == ["conv_1x1", "view"]
    assert kernels[0].inputs == ("x",)
    assert kernels[-2].weight == "w"
    assert kernels[-1].out_shape == (1, 256)


@pytest.mark.parametrize("runtime", GPU)
def test_an_unknown_operator_is_named(runtime):
    model = network(("Frobnicate", ["x"], {"domain": "mine"}), shapes={"x": (4,)})
    with pytest.raises(errors.UnknownOperator, match=r"Frobnicate.*frobnicate_0.*onnxslim"):
        graph.read(model, runtime=runtime)


@pytest.mark.parametrize("runtime", GPU)
def test_weights_may_be_absent(runtime, tmp_path):
    whole = joined()
    path = tmp_path / "joined.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert works(graph.read(path, runtime=runtime)) == works(graph.read(joined(), runtime=runtime))


@pytest.mark.parametrize("runtime", GPU)
@pytest.mark.parametrize("build", [residual, inverted, joined])
def test_rewriting_nothing_changes_nothing(build, runtime):
    plain = graph.read(build(), runtime=runtime)
    assert works(graph.rewrite(plain, runtime=runtime)) == works(plain)
    half = graph.read(build(), runtime=runtime, precision="fp16")
    assert works(graph.rewrite(plain, precision="fp16", runtime=runtime)) == works(half)


@pytest.mark.parametrize("runtime", GPU)
def test_pruned_networks_equal_those_built_narrow(runtime):
    wide, narrow = (graph.read(joined(left=n, right=2 * n), runtime=runtime) for n in (32, 24))
    left, right = [k.name for k in wide if k.out_channels in (32, 64) and k.weight]
    variant = graph.rewrite(wide, out_channels={left: 24, right: 48}, runtime=runtime)
    assert works(variant) == works(narrow)


@pytest.mark.parametrize("runtime", GPU)
def test_a_slice_a_pad_and_an_expand_that_change_nothing_are_dropped(runtime):
    constants = integers("zero", 0) | integers("end", 8) | integers("rows", 2)
    constants |= integers("half", 4) | integers("none", *[0] * 8) | integers("one", 1, 1, 1, 1)
    constants |= integers("edge", 0, 0, 1, 1, 0, 0, 1, 1)
    whole = network(
        ("Slice", ["x", "zero", "end", "rows"], {}),
        ("Pad", ["t0", "none"], {}),
        ("Expand", ["t1", "one"], {}),
        ("Relu", ["t2"], {}),
        shapes={"x": (16, 8, 8)},
        constants=constants,
    )
    (kernel,) = graph.read(whole, runtime=runtime)
    assert (kernel.nodes, kernel.inputs) == (("relu_3",), ("x",))
    part = network(
        ("Slice", ["x", "zero", "half", "rows"], {}),
        ("Pad", ["t0", "edge"], {}),
        ("Relu", ["t1"], {}),
        shapes={"x": (16, 8, 8)},
        constants=constants,
    )
    assert kinds(part, runtime=runtime) == ["move", "move", "elementwise"]


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize(
    ("runtime", "widest"), [(CUDA, 0), (CUDA_1_17, 0), (TENSORRT, 1), (TENSORRT_6, 5)]
)
def test_windows_up_to_which_siblings_are_one_kernel(window, runtime, widest):
    b = Builder("siblings")
    x = b.pool("MaxPool", b.input(1, 16, 8, 8), window=2, stride=2)
    for channels in (8, 4):
        b.output(b.relu(b.conv(x, channels, window=window)))
    convolutions = graph.read(b.model(), runtime=runtime)[1:]
    nodes = [k.nodes for k in convolutions]
    if window > widest:
        assert nodes == [("conv_1", "relu_2"), ("conv_3", "relu_4")]
        return
    assert nodes == [("conv_1", "relu_2", "conv_3", "relu_4")]
    # 8 + 4 outputs of 16 inputs at 4 x 4 positions; the input is read once.
    merged = graph.work(convolutions[0])
    assert merged.macs == 12 * 16 * window**2 * 4 * 4
    assert (merged.bytes_in, merged.bytes_out) == (16 * 16 * 4, 12 * 16 * 4)


@pytest.mark.parametrize(("runtime", "count"), [(TENSORRT, 2), (TENSORRT_6, 1)])
def test_siblings_of_unlike_activations_merge_on_tensorrt_6_alone(runtime, count):
    b = Builder("activations")
    x = b.pool("MaxPool", b.input(1, 16, 8, 8), window=2, stride=2)
    b.output(b.relu(b.conv(x, 8)))
    b.output(b.conv(x, 8))
    assert kinds(b.model(), runtime=runtime) == ["max_pool"] + ["conv_1x1"] * count


@pytest.mark.parametrize("runtime", [TENSORRT, TENSORRT_6])
def test_convolutions_that_differ_in_window_stride_groups_or_input_are_not_merged(runtime):
    b = Builder("unlike")
    x = b.pool("MaxPool", b.input(1, 16, 8, 8), window=3, stride=2)
    y = b.relu(b.conv(x, 8))
    b.output(y)
    b.output(b.relu(b.conv(x, 8, stride=2)))
    b.output(b.relu(b.conv(x, 8, window=3)))
    b.output(b.relu(b.conv(x, 8, groups=2)))
    b.output(b.relu(b.conv(y, 8)))
    found = kinds(b.model(), runtime=runtime)
    assert sorted(found) == ["conv_1x1"] * 3 + ["conv_3x3", "conv_grouped", "max_pool"]


def test_siblings_of_two_precisions_are_not_merged():
    plain = graph.read(inception(), runtime=TENSORRT_6)
    variant = graph.rewrite(plain, precision={"conv_3": "fp16"}, runtime=TENSORRT_6)
    by_node = {n: k for k in variant for n in k.nodes}
    assert by_node["conv_1"] is by_node["conv_7"]
    assert by_node["conv_1"] is not by_node["conv_3"]


def kept_sum():
    """A sum that a pooling reads before the Relu stands, and a convolution after the Relu."""
    b = Builder("kept")
    x = b.binary("Add", b.input(1, 16, 8, 8), b.input(1, 16, 8, 8))
    y = b.pool("AveragePool", x, window=3, stride=1)
    b.output(b.binary("Add", b.conv(b.relu(x), 16, window=3), y))
    return b.model()


def test_a_kernel_that_keeps_a_sum_runs_before_all_that_read_it():
    kernels = graph.read(kept_sum(), runtime=TENSORRT_6)
    assert [k.nodes for k in kernels] == [
        ("add_0", "relu_2"),
        ("averagepool_1",),
        ("conv_3",),
        ("add_4",),
    ]


def test_in_half_precision_a_kept_sum_needs_no_reformat():
    kernels = graph.read(kept_sum(), runtime=TENSORRT_6, precision="fp16")
    # The two inputs of the network and its output.
    assert [k.name for k in kernels if k.kind == "reformat"] == [
        "input_0/reformat_fp16",
        "input_1/reformat_fp16",
        "add_4/output/reformat_fp32",
    ]


def test_a_kept_sum_that_is_an_output_of_the_network_is_given_out_in_floats():
    b = Builder("given")
    x = b.binary("Add", b.input(1, 16, 8, 8), b.input(1, 16, 8, 8))
    b.output(x)
    b.output(b.conv(b.relu(x), 16))
    kernels = graph.read(b.model(), runtime=TENSORRT_6, precision="fp16")
    assert ("add_0", "relu_1") in [k.nodes for k in kernels]
    assert [k.inputs for k in kernels if k.name.endswith("reformat_fp32")] == [
        (x,),
        ("conv_2/output",),
    ]


def test_a_kept_sum_is_written_into_its_concatenation():
    b = Builder("joined")
    x = b.binary("Add", b.input(1, 16, 8, 8), b.input(1, 16, 8, 8))
    b.output(b.concat(x, b.conv(b.relu(x), 16)))
    assert kinds(b.model(), runtime=TENSORRT_6) == ["binary", "conv_1x1", "view"]


def test_merged_convolutions_are_pruned_one_by_one():
    wide = graph.read(inception(), runtime=TENSORRT)
    variant = graph.rewrite(wide, out_channels={"conv_3": 4}, runtime=TENSORRT)
    assert variant[1].out_channels == 8 + 4 + 4


def test_layers_of_two_precisions_have_a_reformat_between_them():
    plain = graph.read(residual(), runtime=TENSORRT)
    variant = graph.rewrite(plain, precision={"conv_2": "fp16"}, runtime=TENSORRT)
    after = {k.name: i for i, k in enumerate(variant)}["conv_2"]
    around = [(k.kind, k.precision) for k in variant[after - 1 : after + 2]]
    assert around == [("reformat", "fp16"), ("conv_3x3", "fp16"), ("reformat", "fp32")]
    assert [k.name for k in variant if k.precision == "fp16" and k.weight] == ["conv_2"]


def test_int8_layers_of_a_rewrite_are_those_of_the_export():
    plain = graph.read(residual(), runtime=TENSORRT)
    names = [k.name for k in plain if k.weight]
    variant = graph.rewrite(plain, precision=dict.fromkeys(names, "int8"), runtime=TENSORRT)
    assert {k.precision for k in variant if k.weight} == {"int8"}


def test_a_thousand_nodes_are_read_in_well_under_a_second():
    b = Builder("long")
    x = b.relu(b.conv(b.input(1, 16, 8, 8), 16))
    for _ in range(200):
        x = b.relu(b.binary("Add", b.batch_norm(b.conv(x, 16, window=3)), b.silu(x)))
    b.output(x)
    model = b.model()
    # Processor time, so that a busy machine does not matter; about 0.1 s on a small one.
    started = time.process_time()
    graph.read(model, runtime=TENSORRT)
    assert time.process_time() - started < 1.0


def test_every_published_graph_has_the_same_macs_on_every_runtime():
    if not MEASURED.is_dir():
        pytest.skip("the measured graphs are not here")
    for path in sorted(MEASURED.glob("jetson_nano/graphs_*/*.onnx")):
        ops = parse(load(path))
        lowered = [lower(ops, runtime=RUNTIMES["onnxruntime-cpu-arm"])]
        lowered += [lower_gpu(ops, runtime=GPU_RUNTIMES[runtime]) for runtime in GPU]
        assert len({sum(graph.work(k).macs for k in ks) for ks in lowered}) == 1, path.name
