"""Operators that compute what another has computed already, by small graphs."""

import dataclasses

import pytest
from onnx import TensorProto, helper

from latency_models import graph, synthetic
from latency_models.building import Builder
from latency_models.operators import QDQ
from latency_models.parse import parse
from latency_models.patterns import without_repeats
from tests.latency_models.networks import TENSORRT, floats, network


def left(model):
    """The names of the operators that are left, and what each reads."""
    return {op.name: op.inputs for op in without_repeats(parse(model))}


def test_what_reads_a_repeat_reads_the_first_instead():
    b = Builder("twice")
    x = b.input(1, 16, 8, 8)
    first, second = b.relu(x), b.relu(x)
    b.output(b.conv(first, 8))
    b.output(b.conv(second, 8))
    assert left(b.model()) == {"relu_0": (x,), "conv_2": (first,), "conv_3": (first,)}


def test_repeats_of_repeats_are_dropped_too():
    b = Builder("chain")
    x = b.input(1, 16, 8, 8)
    ends = [b.pool("MaxPool", b.relu(x), window=2, stride=2) for _ in range(3)]
    b.output(b.concat(*ends))
    # The second and third pooling read one tensor as soon as their Relus are the first one.
    assert list(left(b.model())) == ["relu_0", "maxpool_1", "concat_6"]
    assert left(b.model())["concat_6"] == (ends[0],) * 3


@pytest.mark.parametrize(
    ("op", "same"), [("Add", True), ("Mul", True), ("Max", True), ("Sub", False), ("Div", False)]
)
def test_the_order_of_operands_matters_only_where_it_does(op, same):
    b = Builder("order")
    x, y = b.input(1, 16, 8, 8), b.input(1, 16, 8, 8)
    b.output(b.concat(b.binary(op, x, y), b.binary(op, y, x)))
    assert len(left(b.model())) == (2 if same else 3)


def test_what_differs_in_window_stride_or_operator_is_no_repeat():
    b = Builder("unlike")
    x = b.input(1, 16, 8, 8)
    poolings = [(2, 2), (2, 1), (3, 2), (5, 2)]
    for window, stride in poolings:
        b.output(b.relu(b.pool("MaxPool", x, window=window, stride=stride)))
    b.output(b.relu(b.pool("AveragePool", x, window=2, stride=2)))
    assert len(left(b.model())) == 2 * (len(poolings) + 1)


def test_a_transpose_of_other_axes_is_no_repeat():
    shapes = {"x": (8, 8, 8)}
    same, other = [0, 2, 3, 1], [0, 3, 1, 2]
    for second, count in ((same, 2), (other, 3)):
        model = network(
            ("Transpose", ["x"], {"perm": same}),
            ("Transpose", ["x"], {"perm": second}),
            ("Add", ["t0", "t1"], {}),
            shapes=shapes,
        )
        assert len(left(model)) == count


def test_a_repeat_that_is_an_output_of_the_network_is_kept():
    b = Builder("given")
    x = b.input(1, 16, 8, 8)
    first, second = b.relu(x), b.relu(x)
    b.output(b.conv(first, 8))
    b.output(second)
    assert list(left(b.model())) == ["relu_0", "relu_1", "conv_2"]


def test_what_repeats_an_output_of_the_network_reads_that_output():
    b = Builder("given")
    x = b.input(1, 16, 8, 8)
    first, second = b.relu(x), b.relu(x)
    b.output(first)
    b.output(b.conv(second, 8))
    assert left(b.model()) == {"relu_0": (x,), "conv_2": (first,)}


def test_operators_with_weights_or_constants_are_never_repeats():
    b = Builder("weights")
    x = b.input(1, 16, 8, 8)
    b.output(b.concat(b.conv(x, 8), b.conv(x, 8), b.batch_norm(x), b.batch_norm(x)))
    assert len(left(b.model())) == 5
    # Nor if it is the same constant: the values of large ones are not known.
    model = network(
        ("Mul", ["x", "c"], {}),
        ("Mul", ["x", "c"], {}),
        ("Add", ["t0", "t1"], {}),
        shapes={"x": (16, 8, 8)},
        constants=floats("c", 16, 1, 1),
    )
    assert len(left(model)) == 3


def test_two_halves_that_attributes_tell_apart_are_both_kept():
    halves = [
        helper.make_node("Slice", ["x"], [name], name, starts=[start], ends=[start + 8], axes=[1])
        for name, start in (("low", 0), ("high", 8))
    ]
    total = helper.make_node("Add", ["low", "high"], ["y"], "total")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 4, 4])
        for name, channels in (("x", 16), ("y", 8))
    )
    model = helper.make_model(
        helper.make_graph([*halves, total], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 9)],
    )
    assert left(model) == {"low": ("x",), "high": ("x",), "total": ("low", "high")}


@pytest.mark.parametrize("second", [0.1, 0.2])
def test_slopes_are_not_known_so_that_leaky_relus_are_no_repeats(second):
    model = network(
        ("LeakyRelu", ["x"], {"alpha": 0.1}),
        ("LeakyRelu", ["x"], {"alpha": second}),
        ("Add", ["t0", "t1"], {}),
        shapes={"x": (16, 8, 8)},
    )
    assert len(left(model)) == 3


def test_two_pairs_of_one_tensor_may_have_two_scales():
    b = Builder("pairs")
    b.output(b.conv(b.input(1, 16, 8, 8), 16))
    pair = next(op for op in parse(synthetic.quantized(b.model())) if op.op == QDQ)
    again = dataclasses.replace(pair, name="again", outputs=("again",))
    assert without_repeats((pair, again)) == (pair, again)


def test_kernels_are_read_without_repeats():
    b = Builder("branches")
    x, y = b.input(1, 16, 8, 8), b.input(1, 16, 8, 8)
    sums = [b.relu(b.binary("Add", x, y)), b.relu(b.binary("Add", y, x))]
    b.output(b.concat(*(b.conv(tensor, 8, window=3) for tensor in sums)))
    kernels = graph.read(b.model(), runtime=TENSORRT)
    assert [k.nodes for k in kernels if k.kind == "binary"] == [("add_0", "relu_1")]
