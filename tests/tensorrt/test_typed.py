"""fp16 by the types in a file: which nodes, where casts stand, and what comes out."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from harness.errors import BuildError
from harness.tensorrt import typed
from tests.tensorrt.nets import chain, image, network, node, run
from tests.tensorrt.test_placement import quantized


def kinds(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


def casts(model):
    return [n.output[0] for n in model.graph.node if n.op_type == "Cast"]


def test_a_whole_network_in_half_has_a_cast_at_each_end_alone():
    model = chain()
    made = typed.to_half(model, typed.half_nodes(model))
    assert casts(made.model) == ["x_as_half", "y"] and made.casts == 2
    found = kinds(made.model)
    assert found.pop("y") == TensorProto.FLOAT
    assert set(found.values()) == {TensorProto.FLOAT16}
    # Every stored number takes two bytes instead of four.
    stored = sum(numpy_helper.to_array(i).nbytes for i in made.model.graph.initializer)
    assert 2 * stored == sum(numpy_helper.to_array(i).nbytes for i in model.graph.initializer)


def test_half_differs_from_fp32_by_rounding_alone():
    model, x = chain(), image()
    made = typed.to_half(model, typed.half_nodes(model)).model
    exact = run(model, x)
    # Eleven bits of mantissa: 2^-11 for each of a few roundings in a row.
    assert 0 < np.abs(run(made, x) - exact).max() < 8 * 2**-11 * np.abs(exact).max()


def test_nodes_between_half_layers_follow_and_mixed_additions_do_not():
    model = chain()
    assert typed.followers(model, ["conv1", "conv2"]) == (
        "conv1", "relu1", "conv2", "add", "relu2", "pool", "flatten",
    )  # fmt: skip
    # Conv2 reads fp32 and writes fp16; what it is added to is fp32, and so is the sum.
    assert typed.followers(model, ["conv2"]) == ("conv2",)
    assert typed.followers(model, ["conv1"]) == ("conv1", "relu1")
    assert typed.followers(model, []) == ()


@pytest.mark.parametrize("layers", [["conv1"], ["conv2"], ["fc"], ["conv1", "fc"]])
def test_a_mixed_network_is_valid_and_computes_almost_the_same(layers):
    model, x = chain(), image()
    made = typed.to_half(model, typed.followers(model, layers)).model
    found = kinds(made)
    assert {found.get(n.output[0]) for n in made.graph.node if n.name in layers} == {
        TensorProto.FLOAT16
    }
    exact = run(model, x)
    assert 0 < np.abs(run(made, x) - exact).max() < 8 * 2**-11 * np.abs(exact).max()


def test_a_tensor_is_cast_once_for_all_its_readers():
    model = chain()
    # Relu1's output feeds conv2 and the addition, both in half; conv1 and relu1 are not.
    made = typed.to_half(model, ["conv2", "add"]).model
    assert casts(made).count("r1_as_half") == 1


def test_an_output_that_is_read_inside_as_well_keeps_its_name_and_type():
    nodes = [node("Relu", ["x"], ["y"], "a"), node("Abs", ["y"], ["z"], "b")]
    model = network(nodes, outputs=("y", "z"), shape=(1, 4, 6, 6))
    for half in (["a"], ["a", "b"]):
        made = typed.to_half(model, half).model
        found = kinds(made)
        assert found["y"] == found["z"] == TensorProto.FLOAT
        np.testing.assert_allclose(run(made, image()), run(model, image()), rtol=1e-3)


def test_pairs_stay_in_fp32_before_opset_19_and_follow_from_there():
    old, new = quantized(chain(opset=13)), quantized(chain(opset=19))
    assert not {"q_in", "dq_in", "dq_w"} & set(typed.half_nodes(old))
    assert {"q_in", "dq_in", "dq_w"} <= set(typed.half_nodes(new))
    x = image()
    for model in (old, new):
        made = typed.to_half(model, typed.half_nodes(model)).model
        # A scale that is rounded to eleven bits moves a level by 2^-12 of its value.
        np.testing.assert_allclose(run(made, x), run(model, x), atol=0.02)
    assert "xd_as_half" not in casts(made)


def test_shapes_and_indices_keep_their_types():
    nodes = [
        node("Shape", ["x"], ["s"], "shape"),
        node("Reshape", ["x", "s"], ["r"], "reshape"),
        node("Gather", ["r", "i"], ["g"], "gather", axis=1),
        node("Resize", ["g", "", "by"], ["y"], "resize", mode="nearest"),
    ]
    constants = [("i", np.array([0, 2])), ("by", np.array([1, 1, 2, 2], np.float32))]
    model = network(nodes, constants=constants, shape=(1, 2, 12, 12))
    assert typed.half_nodes(model) == ("reshape", "gather")
    made = typed.to_half(model, typed.half_nodes(model)).model
    np.testing.assert_allclose(run(made, image()), run(model, image()), rtol=1e-3)


def test_a_weight_beyond_the_largest_half_is_refused_with_its_name():
    model = chain()
    item = next(i for i in model.graph.initializer if i.name == "w2")
    value = numpy_helper.to_array(item).copy()
    value[0, 0, 0, 0] = 1e5
    item.CopyFrom(numpy_helper.from_array(value, "w2"))
    with pytest.raises(BuildError, match=r"w2 holds 100000, and fp16 ends at 65504"):
        typed.to_half(model, ["conv2"])
    assert typed.to_half(model, ["conv1"]).half == ("conv1",)


def test_a_node_that_cannot_or_does_not_exist_is_told():
    with pytest.raises(BuildError, match="nowhere cannot compute in fp16"):
        typed.to_half(chain(), ["nowhere"])
    with pytest.raises(BuildError, match="no node nowhere"):
        typed.followers(chain(), ["nowhere"])
