"""The contract: rewriting the fp32 network's kernels gives what reading the variant would."""

import logging
import random

import numpy as np
import pytest
from onnxruntime import quantization

from latency_models import errors, graph, synthetic
from tests.latency_models.networks import inverted, joined, residual, works


class Images(quantization.CalibrationDataReader):
    def __init__(self, model):
        entry = model.graph.input[0]
        shape = [d.dim_value for d in entry.type.tensor_type.shape.dim]
        self.images = iter([{entry.name: np.random.default_rng(0).random(shape, np.float32)}])

    def get_next(self):
        return next(self.images, None)


def export(model, folder, exclude=()):
    """The real Q/DQ export of ``model``."""
    import onnx

    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(
            source,
            target,
            Images(model),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(target)


def weighted(kernels):
    return [kernel.name for kernel in kernels if kernel.weight]


@pytest.mark.parametrize("build", [residual, inverted, joined])
def test_int8_equals_the_real_export(build, tmp_path):
    plain = graph.read(build())
    variant = graph.rewrite(
        plain, precision=dict.fromkeys(weighted(plain), "int8"), followers="all"
    )
    assert works(variant) == works(graph.read(export(build(), tmp_path)))


@pytest.mark.parametrize("build", [residual, inverted, joined])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixed_precision_equals_the_real_export(build, seed, tmp_path):
    plain = graph.read(build())
    chosen = random.Random(seed)
    precision = {name: chosen.choice(["fp32", "int8"]) for name in weighted(plain)}
    exclude = [name for name, wanted in precision.items() if wanted == "fp32"]
    variant = graph.rewrite(plain, precision=precision, followers="all")
    assert works(variant) == works(graph.read(export(build(), tmp_path, exclude)))


@pytest.mark.parametrize("build", [residual, inverted, joined])
def test_the_synthetic_export_puts_its_pairs_where_the_real_one_does(build, tmp_path):
    real = graph.read(export(build(), tmp_path))
    assert works(graph.read(synthetic.quantized(build()))) == works(real)


def test_pruned_residual_equals_the_network_built_narrow():
    wide = graph.read(residual(stem=32, inner=32, outer=64))
    names = weighted(wide)
    # In order: stem, block 1, block 2 with its projection, classifier.
    by_width = {"stem": 24, "inner": 16, "outer": 40}
    narrow = graph.read(residual(**by_width))
    channels = {
        "conv_0": 24,
        "conv_2": 16,
        "conv_4": 24,
        "conv_7": 16,
        "conv_9": 40,
        "conv_10": 40,
    }
    assert set(channels) <= set(names)
    assert works(graph.rewrite(wide, out_channels=channels)) == works(narrow)


def test_pruned_depthwise_groups_follow():
    wide = graph.read(inverted(width=24, hidden=144, squeeze=8))
    narrow = graph.read(inverted(width=24, hidden=104, squeeze=8))
    expand, gate = [k.name for k in wide if k.out_channels == 144 and k.weight and k.groups == 1]
    variant = graph.rewrite(wide, out_channels={expand: 104, gate: 104})
    assert works(variant) == works(narrow)


def test_pruned_branches_add_up_in_a_concatenation():
    wide, narrow = graph.read(joined(left=32, right=64)), graph.read(joined(left=24, right=48))
    left, right = [k.name for k in wide if k.out_channels in (32, 64) and k.weight]
    variant = graph.rewrite(wide, out_channels={left: 24, right: 48})
    assert works(variant) == works(narrow)


def test_pruned_and_quantized_at_once(tmp_path):
    wide = graph.read(joined(left=32, right=64))
    left, right = [k.name for k in wide if k.out_channels in (32, 64) and k.weight]
    variant = graph.rewrite(
        wide,
        out_channels={left: 24, right: 48},
        precision=dict.fromkeys(weighted(wide), "int8"),
        followers="all",
    )
    assert works(variant) == works(graph.read(export(joined(left=24, right=48), tmp_path)))


def test_rewriting_nothing_changes_nothing():
    plain = graph.read(inverted())
    assert works(graph.rewrite(plain)) == works(plain)


def test_a_layer_that_is_to_stay_float_does_in_boardfits_export():
    plain = graph.read(residual())
    names = weighted(plain)
    precision = {name: "fp32" if name == "conv_4" else "int8" for name in names}
    kept = {k.name: k.precision for k in graph.rewrite(plain, precision=precision) if k.weight}
    assert kept == precision
    everything = graph.rewrite(plain, precision=precision, followers="all")
    assert {k.precision for k in everything if k.weight} == {"int8"}


def test_float_operators_read_float_results_without_a_copy_of_them():
    """One integer layer in the first block: its shortcut's sum dequantizes nothing."""
    plain = graph.read(residual())
    variant = graph.rewrite(plain, precision={"conv_2": "int8"})
    (quantize,) = (k for k in variant if k.kind == "quantize")
    # conv_2 writes relu_3's output; conv_4 reads floats of that, and nothing else is converted.
    copies = [k.inputs[0] for k in variant if k.kind == "dequantize" and k.nodes]
    assert copies == ["relu_3/output/dequantized"]
    readers = {k.name for k in variant if quantize.output in k.inputs and k.kind != "transpose"}
    assert readers == {"conv_2"}
    every = graph.rewrite(plain, precision={"conv_2": "int8"}, followers="all")
    assert len([k for k in every if k.kind == "dequantize"]) > len(copies)


def test_a_classifier_gives_floats_in_boardfits_export():
    plain = graph.read(residual())
    variant = graph.rewrite(plain, precision=dict.fromkeys(weighted(plain), "int8"))
    assert variant[-1].kind == "gemm"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": {"nobody": 8}}, "no kernel or node is called 'nobody'"),
        ({"out_channels": {"conv_4": 16}}, "what writes its inputs must keep the same channels"),
        ({"out_channels": {"conv_0": 0}}, "cannot have 0 output channels"),
        ({"out_channels": {"relu_1": 8}}, "only convolutions and matrix products"),
        ({"precision": {"conv_0": "fp16"}}, "fp32 and int8 only"),
        ({"runtime": "abacus"}, "no fusion rules for runtime 'abacus'"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(options, message):
    with pytest.raises(errors.UnsupportedGraph, match=message):
        graph.rewrite(graph.read(residual()), **options)


def test_a_quantized_network_is_not_quantized_again():
    kernels = graph.read(synthetic.quantized(residual()))
    with pytest.raises(errors.UnsupportedGraph, match="quantized network already"):
        graph.rewrite(kernels, precision={"conv_0": "int8"})
