"""The plan for a builder: flags where layers agree, bound layers or types where they do not."""

import onnx
import pytest

from harness.errors import BuildError, ConfigError
from harness.records import BuildSettings, GpuFacts
from harness.tensorrt import chips, placement, precision, versions
from tests.tensorrt.nets import chain
from tests.tensorrt.test_placement import quantized

NANO = chips.capability_of(GpuFacts(name="Tegra X1", compute="5.3"))
ORIN = chips.capability_of(GpuFacts(name="Orin", compute="8.7"))
WEAK = versions.release_of("tensorrt", "8.2.1")
STRONG = versions.release_of("tensorrt", "11.0.0")


def uniform(model, word, *, release=WEAK, capability=NANO, **settings):
    return precision.uniform(
        model, word, release=release, capability=capability, settings=BuildSettings(**settings)
    )


def mixed(model, layers, *, release=WEAK, capability=ORIN, **settings):
    return precision.plan(
        model, layers, release=release, capability=capability, settings=BuildSettings(**settings)
    )


@pytest.mark.parametrize(
    ("word", "capability", "flags"),
    [
        ("fp32", NANO, ()),
        ("fp16", NANO, ("fp16",)),
        ("best", NANO, ("fp16",)),
        ("best", ORIN, ("fp16",)),
    ],
)
def test_a_float_network_of_one_precision_is_a_flag_alone(word, capability, flags):
    model = chain()
    found = uniform(model, word, capability=capability, workspace_bytes=1 << 28)
    assert found.settings == BuildSettings(flags=flags, workspace_bytes=1 << 28)
    assert found.model is model


def test_int8_is_the_files_own_and_never_invented():
    with pytest.raises(ConfigError, match="not quantized"):
        uniform(chain(), "int8", capability=ORIN)
    found = uniform(quantized(chain(), weights="float"), "int8", capability=ORIN)
    assert found.settings.flags == ("int8",)


def test_best_of_a_quantized_network_is_fp16_beside_int8():
    found = uniform(quantized(chain(), weights="float"), "best", capability=ORIN)
    assert set(found.settings.flags) == {"fp16", "int8"}


@pytest.mark.parametrize("release", [WEAK, STRONG])
def test_fp16_between_integer_layers_alone_is_not_lost(release):
    model = quantized(chain(), weights="float")
    for name in ("conv1", "fc"):
        kept = [n for n in model.graph.node if n.name != name]
        del model.graph.node[:]
        model.graph.node.extend(kept)
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("c1", 1, (1, 16, 6, 6)))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("f", 1, (1, 16)))
    found = uniform(model, "best", release=release, capability=ORIN)
    if release is WEAK:
        assert set(found.settings.flags) == {"fp16", "int8"}
    else:
        assert "Cast" in [n.op_type for n in found.model.graph.node]


def test_a_chip_without_fast_int8_gets_floats_and_is_told_so():
    with pytest.raises(ConfigError, match="no fast int8"):
        uniform(quantized(chain()), "int8")
    found = uniform(quantized(chain()), "fp16")
    assert not placement.has_pairs(found.model)
    assert found.settings.flags == ("fp16",)
    assert "taken out" in found.notes[0]


def test_fp16_where_it_is_not_fast_is_allowed_and_told():
    slow = chips.capability_of(GpuFacts(name="gpu", compute="6.1"))
    assert "not faster" in uniform(chain(), "fp16", capability=slow).notes[0]


def test_layers_of_two_precisions_are_bound_one_by_one():
    found = mixed(chain(), {"conv1": "fp16", "conv2": "fp16", "fc": "fp32"}).settings
    assert found.flags == ("fp16",) and found.constraints == "prefer"
    assert {one.node: one.precision for one in found.layers} == {
        "conv1": "fp16", "relu1": "fp16", "conv2": "fp16", "add": "fp16", "relu2": "fp16",
        "pool": "fp16", "flatten": "fp16", "fc": "fp32",
    }  # fmt: skip


def test_the_users_constraints_are_kept():
    layers = {"conv1": "fp16", "fc": "fp32"}
    assert mixed(chain(), layers, constraints="obey").settings.constraints == "obey"


@pytest.mark.parametrize("named", [{"conv2": "int8"}, {}])
def test_quantized_layers_are_not_bound_and_bring_their_flag(named):
    model = quantized(chain(), weights="float")
    found = mixed(model, {"conv1": "fp16", "fc": "fp32", **named}).settings
    assert set(found.flags) == {"fp16", "int8"}
    assert "conv2" not in {one.node for one in found.layers}


def test_strong_typing_writes_the_precisions_into_the_file():
    model = chain()
    found = mixed(model, {"conv1": "fp16", "conv2": "fp16", "fc": "fp32"}, release=STRONG)
    assert found.settings.strongly_typed
    assert found.settings.flags == () == found.settings.layers
    assert [n.op_type for n in found.model.graph.node].count("Cast") == 2
    assert "Cast" not in [n.op_type for n in model.graph.node]
    plain = mixed(model, dict.fromkeys(("conv1", "conv2", "fc"), "fp32"), release=STRONG)
    assert plain.model is model and plain.settings.strongly_typed


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(BuildError, match="no node nowhere"):
        mixed(chain(), {"nowhere": "fp16"})
