"""NVIDIA's rules for Q/DQ, one network that keeps them and one that breaks each."""

import copy

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness.tensorrt import placement, versions
from latency_models import probes
from tests.tensorrt.nets import chain, node

NANO = versions.release_of("tensorrt", "8.2.1")
TEN = versions.release_of("tensorrt", "10.3.0")


def constant(model, name, value):
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def quantized(model, *, weights="int8", layer="conv2", zero=0, kind=np.int8, axis=0, scales=None):
    """A copy in which one layer has Q/DQ at its input and weights, as TensorRT wants it."""
    model = copy.deepcopy(model)
    made = next(n for n in model.graph.node if n.name == layer)
    place = list(model.graph.node).index(made)
    rows = next(i.dims[axis] for i in model.graph.initializer if i.name == made.input[1])
    scales = np.full(rows, 0.01, np.float32) if scales is None else scales
    parts = [
        constant(model, "xs", np.array(0.05, np.float32)),
        constant(model, "xz", np.array(zero, kind)),
    ]
    pair = [
        node("QuantizeLinear", [made.input[0], *parts], ["xq"], "q_in"),
        node("DequantizeLinear", ["xq", *parts], ["xd"], "dq_in"),
    ]
    ws = constant(model, "ws", scales)
    wz = constant(model, "wz", np.zeros(scales.shape, np.int8))
    item = next(i for i in model.graph.initializer if i.name == made.input[1])
    stored = item.name
    if weights == "int8":
        shape = [1] * len(item.dims)
        shape[axis] = -1
        levels = np.rint(numpy_helper.to_array(item) / scales.reshape(shape)).clip(-127, 127)
        stored = constant(model, "wq", levels.astype(np.int8))
    else:
        pair.append(node("QuantizeLinear", [stored, ws, wz], ["wq"], "q_w", axis=axis))
        stored = "wq"
    pair.append(node("DequantizeLinear", [stored, ws, wz], ["wd"], "dq_w", axis=axis))
    for index, one in enumerate(pair):
        model.graph.node.insert(place + index, one)
    target = next(n for n in model.graph.node if n.name == layer)
    target.input[0], target.input[1] = "xd", "wd"
    return model


def broken(model, release=TEN):
    return [(one.node, one.wrong) for one in placement.violations(model, release)]


@pytest.mark.parametrize(("weights", "release"), [("int8", TEN), ("float", NANO), ("float", TEN)])
def test_a_network_by_the_rules_breaks_none(weights, release):
    assert broken(quantized(chain(), weights=weights), release) == []


def test_int8_initializers_are_refused_by_the_parsers_of_8():
    ((name, wrong),) = broken(quantized(chain()), NANO)
    assert name == "dq_w"
    assert "stored as int8" in wrong and "TensorRT 8.2" in wrong


def test_a_zero_point_must_be_zero():
    found = broken(quantized(chain(), zero=3))
    assert found == [
        ("q_in", "its zero point is 3, not 0"),
        ("dq_in", "its zero point is 3, not 0"),
    ]


def test_uint8_is_not_read():
    found = broken(quantized(chain(), kind=np.uint8))
    assert [name for name, _ in found] == ["q_in", "dq_in"]
    assert "uint8" in found[0][1]


def test_scales_along_the_wrong_axis_of_weights_are_named():
    ((name, wrong),) = broken(quantized(chain(), axis=1))
    assert name == "conv2"
    assert wrong == "its weights have scales along axis 1, and output channels lie along 0"


def test_the_axis_of_a_gemm_follows_its_transposition():
    assert broken(quantized(chain(), layer="fc", axis=0)) == []
    ((name, _),) = broken(quantized(chain(), layer="fc", axis=1))
    assert name == "fc"


def test_a_computed_scale_is_named():
    model = quantized(chain())
    item = next(i for i in model.graph.initializer if i.name == "xs")
    model.graph.initializer.remove(item)
    model.graph.input.append(helper.make_tensor_value_info("xs", TensorProto.FLOAT, []))
    assert [name for name, _ in broken(model)] == ["q_in", "dq_in"]


def test_a_quantizer_without_a_zero_point_is_uint8_and_named():
    model = quantized(chain())
    target = next(n for n in model.graph.node if n.name == "q_in")
    del target.input[2]
    ((name, wrong),) = broken(model)
    assert name == "q_in" and "uint8" in wrong


def test_a_quantized_bias_is_named_at_its_pair_and_its_layer():
    model = quantized(chain())
    parts = [
        constant(model, "bq", np.zeros(16, np.int32)),
        constant(model, "bs", np.full(16, 0.001, np.float32)),
        constant(model, "bz", np.zeros(16, np.int32)),
    ]
    model.graph.node.insert(0, node("DequantizeLinear", parts, ["bd"], "dq_bias", axis=0))
    next(n for n in model.graph.node if n.name == "conv2").input[2] = "bd"
    assert [name for name, _ in broken(model)] == ["dq_bias", "conv2"]


def test_weights_alone_behind_a_pair_are_read_and_warned_of():
    model = quantized(chain())
    next(n for n in model.graph.node if n.name == "conv2").input[0] = "r1"
    (found,) = placement.violations(model, TEN)
    assert not found.fatal
    assert "runs on floats" in found.wrong


def test_activations_have_one_scale():
    model = quantized(chain())
    for name, value in (("xs", np.full(16, 0.05, np.float32)), ("xz", np.zeros(16, np.int8))):
        item = next(i for i in model.graph.initializer if i.name == name)
        item.CopyFrom(numpy_helper.from_array(value, name))
    assert broken(model) == [("conv2", "its input has 16 scales, and activations may have one")]


@pytest.mark.parametrize("release", versions.RELEASES, ids=lambda release: release.name)
def test_the_networks_of_a_sweep_are_quantized_as_every_version_reads_them(release):
    (probe, *_) = [p for p in probes.probes(("int8",), runtime="tensorrt")]
    assert {w.precision for w in probe.works if w.macs} == {"int8"}
    assert not [v for v in placement.violations(probe.model, release) if v.fatal]
