"""int8 as storage: what is packed unpacks to almost the same, and no Q/DQ is left."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from harness.errors import BuildError
from harness.tensorrt import placement, storage
from tests.tensorrt.nets import chain, image, network, node, run
from tests.tensorrt.test_placement import quantized


def weights(model):
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def test_a_packed_network_takes_about_a_quarter_and_computes_the_same_after_unpacking():
    model = chain(channels=64)
    packed = storage.pack(model)
    # Conv2 alone has 64 * 64 * 9 = 36,864 of 40,452 values; a scale and a zero point a channel.
    assert packed.ByteSize() < 0.32 * model.ByteSize()
    onnx.checker.check_model(packed)
    x = image()
    np.testing.assert_allclose(run(packed, x), run(storage.unpack(packed), x), rtol=1e-5, atol=1e-6)


def test_no_weight_moves_by_more_than_half_a_step_of_its_channel():
    model = chain()
    given, found = weights(model), weights(storage.unpack(storage.pack(model)))
    for name in ("w1", "w2", "w3"):
        rows = given[name].reshape(len(given[name]), -1)
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        error = np.abs(found[name].reshape(rows.shape) - rows)
        assert (error <= 0.5 * step * 1.0001).all(), name
    assert np.array_equal(given["b1"], found["b1"])


def test_layers_that_are_not_named_keep_their_weights():
    model = chain()
    found = weights(storage.unpack(storage.pack(model, ["conv2"])))
    assert np.array_equal(found["w1"], weights(model)["w1"])
    assert not np.array_equal(found["w2"], weights(model)["w2"])


def test_a_channel_of_zeros_stays_one():
    model = chain()
    item = next(i for i in model.graph.initializer if i.name == "w2")
    value = numpy_helper.to_array(item).copy()
    value[3] = 0
    item.CopyFrom(numpy_helper.from_array(value, "w2"))
    assert not weights(storage.unpack(storage.pack(model)))["w2"][3].any()


@pytest.mark.parametrize("kind", ["int8", "float"])
def test_a_network_for_integer_kernels_unpacks_to_floats_with_the_rounded_weights(kind):
    model = quantized(chain(), weights=kind)
    plain = storage.unpack(model)
    assert not placement.has_pairs(plain)
    onnx.checker.check_model(plain)
    rounded = next(v for v in weights(plain).values() if v.shape == (16, 16, 3, 3))
    # The scale is 0.01 everywhere, and none of the weights lies beyond 127 * 0.01.
    expected = np.rint(weights(chain())["w2"] / np.float32(0.01)).clip(-128, 127) * 0.01
    np.testing.assert_allclose(rounded, expected, atol=1e-6)


def test_outputs_keep_their_names_where_a_pair_stood_before_them():
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [("s", np.array(0.1, np.float32)), ("z", np.array(0, np.int8))]
    plain = storage.unpack(network(nodes, constants=constants))
    x = image()
    assert not placement.has_pairs(plain)
    assert np.array_equal(run(plain, x), np.maximum(x, 0))


def test_integers_that_come_from_elsewhere_are_not_guessed_at():
    nodes = [node("DequantizeLinear", ["q", "s"], ["y"], "dq")]
    model = network(nodes, constants=[("s", np.array(0.1, np.float32))])
    model.graph.input[0].name = "q"
    with pytest.raises(BuildError, match="dq dequantizes q"):
        storage.unpack(model)


def test_a_network_without_weights_and_an_old_opset_are_told():
    with pytest.raises(BuildError, match="no weight"):
        storage.pack(network([node("Relu", ["x"], ["y"])]))
    with pytest.raises(BuildError, match="not with 11"):
        storage.pack(chain(opset=11))
