import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency_models import errors, graph, synthetic
from latency_models.building import Builder
from tests.latency_models.networks import (
    MEASURED,
    inverted,
    joined,
    kinds,
    residual,
    runtime_operators,
)

# How the runtime's operators count among our kinds.
GROUPS = {
    "Conv": "conv",
    "FusedConv": "conv",
    "QLinearConv": "conv",
    "ReorderInput": "reorder_input",
    "ReorderOutput": "reorder_output",
    "Transpose": "transpose",
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
}


def counted(kernels):
    groups = {}
    for kernel in kernels:
        key = "conv" if kernel.kind.startswith("conv_") else kernel.kind
        key = key if key in GROUPS.values() else "other"
        groups[key] = groups.get(key, 0) + 1
    return groups


def counted_by_runtime(model, folder):
    groups = {}
    for op, count in runtime_operators(model, folder).items():
        key = GROUPS.get(op, "other")
        groups[key] = groups.get(key, 0) + count
    return groups


@pytest.mark.parametrize("build", [residual, inverted, joined])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_kernels_are_those_that_onnxruntime_runs(build, precision, tmp_path):
    model = build()
    if precision == "int8":
        model = synthetic.quantized(model)
    found = counted(graph.read(model))
    assert found == counted_by_runtime(model, tmp_path)


def test_convolution_batch_norm_sum_and_relu_are_one_kernel():
    b = Builder("fused")
    x = b.relu(b.conv(b.input(1, 32, 8, 8), 32))
    y = b.batch_norm(b.conv(x, 32, window=3))
    b.output(b.relu(b.binary("Add", y, x)))
    kernels = graph.read(b.model())
    assert [k.kind for k in kernels] == [
        "reorder_input",
        "conv_1x1",
        "conv_3x3",
        "reorder_output",
    ]
    assert kernels[2].nodes == ("conv_2", "norm_3", "add_4", "relu_5")
    assert kernels[2].inputs == ("relu_1/output", "relu_1/output")


def test_a_convolution_of_few_channels_reads_the_image_as_it_is():
    b = Builder("stem")
    b.output(b.relu(b.conv(b.input(1, 3, 8, 8), 32, window=3)))
    assert kinds(b.model()) == ["conv_direct", "reorder_output"]


def test_groups_that_are_no_blocks_run_on_the_plain_layout():
    b = Builder("grouped")
    b.output(b.relu(b.conv(b.input(1, 72, 8, 8), 72, window=3, groups=3)))
    assert kinds(b.model()) == ["conv_im2col"]


def test_swish_is_a_kernel_of_its_own_and_hard_swish_is_not():
    b = Builder("swish")
    x = b.silu(b.conv(b.input(1, 16, 8, 8), 32))
    b.output(b.hard_swish(b.conv(x, 32)))
    assert kinds(b.model()) == [
        "reorder_input",
        "conv_1x1",
        "transcendental",
        "conv_1x1",
        "reorder_output",
    ]


def test_int8_kernels_are_framed_by_casts_and_transposes():
    b = Builder("integer")
    b.output(b.relu(b.conv(b.input(1, 16, 8, 8), 32)))
    kernels = graph.read(synthetic.quantized(b.model()))
    assert [k.kind for k in kernels] == [
        "quantize",
        "transpose",
        "conv_1x1",
        "transpose",
        "dequantize",
    ]
    assert [k.precision for k in kernels] == ["int8"] * 5


def test_a_float_convolution_between_integers_is_quantized_by_the_runtime(tmp_path):
    b = Builder("mixed")
    x = b.relu(b.conv(b.input(1, 16, 8, 8), 32))
    x = b.relu(b.conv(x, 32))
    b.output(b.relu(b.conv(x, 32)))
    model = synthetic.quantized(b.model(), exclude=frozenset({"conv_2"}))
    assert [k.precision for k in graph.read(model) if k.weight] == ["int8"] * 3
    assert runtime_operators(model, tmp_path)["QLinearConv"] == 3
    old = graph.read(model, runtime="onnxruntime-1.10-cpu")
    assert [k.precision for k in old if k.weight] == ["int8", "fp32", "int8"]


def test_work_of_a_convolution_by_hand():
    b = Builder("work")
    b.output(b.conv(b.input(1, 16, 8, 8), 32, window=3, stride=2))
    work = graph.work(next(k for k in graph.read(b.model()) if k.weight))
    # 4 x 4 positions x 32 outputs, each 16 channels x 9 taps.
    assert work.macs == 4 * 4 * 32 * 16 * 9
    assert work.bytes_in == 16 * 8 * 8 * 4
    assert work.bytes_out == 32 * 4 * 4 * 4
    # 32 x 16 x 3 x 3 weights and 32 biases, four bytes each.
    assert work.bytes_weights == (32 * 16 * 9 + 32) * 4
    assert work.shape == graph.Dims(rows=16, outputs=32, inputs=16, window=9, groups=1, width=4)


def test_work_of_a_cast_reads_and_writes_different_widths():
    b = Builder("casts")
    b.output(b.conv(b.input(1, 16, 8, 8), 32))
    works = {w.kind: w for w in map(graph.work, graph.read(synthetic.quantized(b.model())))}
    assert (works["quantize"].bytes_in, works["quantize"].bytes_out) == (4096, 1024)
    assert (works["dequantize"].bytes_in, works["dequantize"].bytes_out) == (2048, 8192)


def test_a_kernel_names_its_shapes():
    b = Builder("names")
    b.output(b.conv(b.input(1, 16, 8, 6), 32, window=3, stride=2))
    kernel = next(k for k in graph.read(b.model()) if k.weight)
    assert (kernel.batch, kernel.in_channels, kernel.out_channels) == (1, 16, 32)
    assert (kernel.in_hw, kernel.out_hw, kernel.window) == ((8, 6), (4, 3), (3, 3))
    assert kernel.weight == "conv_0.weight"


def test_an_unknown_operator_is_named_with_its_node_and_what_to_do():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    node = helper.make_node("Frobnicate", ["x"], ["y"], "odd one", domain="mine")
    model = helper.make_model(helper.make_graph([node], "g", [value], [out]))
    with pytest.raises(errors.UnknownOperator, match=r"Frobnicate.*odd one.*onnxslim") as caught:
        graph.read(model)
    assert (caught.value.operator, caught.value.node) == ("Frobnicate", "odd one")


def test_a_free_batch_counts_as_one_and_a_free_size_is_refused():
    model = residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert graph.read(model)[0].batch == 1
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(errors.UnsupportedGraph, match="fixed size along axis 2"):
        graph.read(model)


def test_shared_constants_and_shape_chains_are_folded():
    nodes = [
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Conv", ["x", "w2"], ["y"], "conv"),
        helper.make_node("Shape", ["y"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["y", "target"], ["z"], "reshape"),
    ]
    constants = [
        helper.make_tensor("w", TensorProto.FLOAT, [16, 16, 1, 1], [0.0] * 256),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("axes", TensorProto.INT64, [1], [0]),
        helper.make_tensor("rest", TensorProto.INT64, [1], [-1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 4, 4])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [z], constants),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    kernels = graph.read(model)
    assert [k.kind for k in kernels] == ["reorder_input", "conv_1x1", "reorder_output", "view"]
    assert kernels[-1].out_shape == (1, 256)
    assert kernels[1].weight == "w"


def test_profile_rows_are_found_by_node_tensor_and_neighbour():
    b = Builder("rows")
    b.output(b.relu(b.conv(b.input(1, 16, 8, 8), 32)))
    kernels = graph.read(b.model())
    rows = [
        ("ReorderInput", "ReorderInput", "", 1e-6),
        ("relu_1/output_nchwc", "Conv", "", 2e-6),
        ("ReorderOutput_token_3", "ReorderOutput", "", 3e-6),
    ]
    assert graph.match(kernels, rows) == {
        "input_0/reorder_input": 1e-6,
        "conv_0": 2e-6,
        "relu_1/output/reorder_output": 3e-6,
    }


def test_every_published_graph_is_read_without_its_weights():
    if not MEASURED.is_dir():
        pytest.skip("the measured graphs are not here")
    for path in sorted(MEASURED.glob("jetson_nano/graphs_*/*.onnx")):
        kernels = graph.read(path)
        assert sum(graph.work(k).macs for k in kernels) > 1e6, path.name


def test_a_graph_without_weights_can_be_filled_and_run(tmp_path):
    path = MEASURED / "jetson_nano" / "graphs_timm" / "mnasnet_small__224.onnx"
    if not path.exists():
        pytest.skip("the measured graphs are not here")
    model = synthetic.fill(onnx.load(str(path), load_external_data=False))
    assert counted(graph.read(model)) == counted_by_runtime(model, tmp_path)


def _relu_behind(op, *constants):
    """A Relu, then ``op`` on its result, read by another Relu and given as an output."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node(op, ["a", *(name for name, _ in constants)], ["b"], name="between"),
        helper.make_node("Sigmoid", ["b"], ["y"], name="last"),
    ]
    values = [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants]
    shape = [1, 4, 8, 8]
    graph_ = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("y", "b")],
        values,
    )
    return helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 13)])


def test_what_leaves_the_whole_tensor_is_nothing_and_its_input_an_output():
    whole = (("starts", [0]), ("ends", [8]), ("axes", [2]))
    for model in (_relu_behind("Identity"), _relu_behind("Slice", *whole)):
        kernels = graph.read(model, runtime="tensorrt")
        # The first Relu's result is the network's output: it is not taken up by the Sigmoid.
        assert [k.name for k in kernels] == ["first", "last"]


def test_a_slice_that_reverses_is_no_nothing():
    reverse = (("starts", [7]), ("ends", [-9]), ("axes", [2]), ("steps", [-1]))
    kernels = graph.read(_relu_behind("Slice", *reverse), runtime="tensorrt")
    assert [k.name for k in kernels] == ["first", "between", "last"]
