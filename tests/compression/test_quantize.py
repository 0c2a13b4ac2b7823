"""Q/DQ networks, and whether onnxruntime runs them as integers."""

import collections
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from harness.compression.groups import find_groups
from harness.compression.quantize import available_precisions, quantize, real_int8_layers
from harness.errors import BuildError
from harness.networks import (
    export_onnx,
    layer_of_node,
    layers_in_order,
    load_data,
    load_network,
    onnx_logits,
    top1,
)
from harness.records import KernelTime, Profile
from latency_models import graph
from tests.compression.tiny import Concatenated, Inverted, Mobile, Residual, facts, seeded
from tests.latency_models.networks import works
from tests.sensitivity.cifar_resnet import resnet20

CIFAR = Path(__file__).parents[3] / "shared/images/cifar10"
RESNET = Path(__file__).parents[1] / "sensitivity/cifar_resnet.py"
DEMO = Path(__file__).parents[2] / "data/demo/network.py"
IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def exported(folder: Path, kind: type = Residual) -> Path:
    path = folder / "fp32.onnx"
    export_onnx(seeded(kind), IMAGES, path)
    return path


def profiled(path: Path, image: np.ndarray) -> Profile:
    """onnxruntime's own profile of a few runs, without the agent."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": image})
    record = Path(session.end_profiling())
    events = json.loads(record.read_text())
    record.unlink()
    return Profile(
        network_sha256="",
        runtime="onnxruntime",
        runtime_version=onnxruntime.__version__,
        kernels=tuple(
            KernelTime(
                name=event["name"],
                op=event["args"]["op_name"],
                node=event["name"].removesuffix("_kernel_time"),
                latency_s=event["dur"] * 1e-6,
            )
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        ),
    )


def operators(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_every_layer_of_the_demo_network_runs_as_an_integer_kernel(tmp_path: Path) -> None:
    network = load_network(f"{DEMO}:factory", None)
    images = torch.randn(8, 1, 28, 28)
    layers = tuple(layers_in_order(network, images))
    export_onnx(network, images, tmp_path / "fp32.onnx")
    out = tmp_path / "int8.onnx"
    quantize(
        tmp_path / "fp32.onnx", out, calibration=images.numpy(), int8_layers=layers, board=facts()
    )
    profile = profiled(out, images[:1].numpy())
    assert set(real_int8_layers(profile, layers)) == set(layers)
    # 9 convolutions in 3 residual blocks.
    kernels = collections.Counter(kernel.op for kernel in profile.kernels)
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["QGemm"]) == (9, 3, 1)
    assert kernels["Conv"] == kernels["Relu"] == kernels["DequantizeLinear"] == 0


@pytest.mark.parametrize("index", range(4))
def test_mixed_networks_run_what_was_asked_and_nothing_else(tmp_path: Path, index: int) -> None:
    network = seeded(Residual)
    source = exported(tmp_path)
    chosen = [
        layer
        for number, group in enumerate(find_groups(network, IMAGES))
        if number != index
        for layer in group.producers
    ]
    out = tmp_path / "int8.onnx"
    report = quantize(source, out, calibration=IMAGES.numpy(), int8_layers=chosen, board=facts())
    assert set(report.int8_layers) == set(chosen)
    profile = profiled(out, IMAGES[:1].numpy())
    layers = tuple(layers_in_order(network, IMAGES))
    assert set(real_int8_layers(profile, layers)) == set(chosen)


@pytest.mark.skipif(not CIFAR.exists(), reason="the shared CIFAR-10 networks are absent")
def test_a_real_network_keeps_its_accuracy_in_int8(tmp_path: Path) -> None:
    """ResNet-20, with the padded shortcuts that the exporter writes as slices and pads."""
    network = load_network(f"{RESNET}:resnet20", CIFAR / "resnet20-12fca82f.th")
    data = load_data(
        CIFAR / "lossless_subset.npz", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(network, data.example, source)
    layers = tuple(layers_in_order(network, data.example))
    calibration = data.train_images[:256].numpy()
    quantize(source, out, calibration=calibration, int8_layers=layers, board=facts())
    assert len(real_int8_layers(profiled(out, data.example.numpy()), layers)) == 20
    # 91.64 % in fp32 (932 of 1,017); half a point is five images.
    assert top1(onnx_logits(source, data.test_images), data.test_labels) == 932 / 1017
    assert top1(onnx_logits(out, data.test_images), data.test_labels) >= 927 / 1017


def test_a_region_in_fp32_stays_free_of_q_and_dq(tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    source = exported(tmp_path)
    report = quantize(source, out, calibration=IMAGES.numpy(), int8_layers=["inner"], board=facts())
    # One layer between floats: its input, its output (after the ReLU it absorbs).
    assert operators(out)["QuantizeLinear"] == 2
    assert len(report.carriers) == 1
    # Input, output, weight and bias.
    assert operators(out)["DequantizeLinear"] == 4


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated, Mobile, resnet20])
@pytest.mark.parametrize("seed", range(3))
def test_kernels_of_a_mixed_export_are_the_predicted_ones(
    tmp_path: Path, kind: Callable[[], nn.Module], seed: int
) -> None:
    """The rewritten fp32 network and the exported file agree, and so do its integer layers."""
    large = kind in (Mobile, resnet20)
    images = torch.randn(4, 3, 32, 32) if large else IMAGES[:4]
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    network = kind().eval() if large else seeded(kind)
    export_onnx(network, images, source)
    kernels = graph.read(source)
    nodes = {layer: node for node, layer in layer_of_node(onnx.load(source)).items()}
    chosen = np.random.default_rng(seed).permutation(sorted(nodes))[: max(len(nodes) // 2, 1)]
    # An Arm board's form: the fourth channel that x86 gets is not in the predictions.
    board = replace(facts(), machine="aarch64")
    quantize(source, out, calibration=images.numpy(), int8_layers=chosen, board=board)
    predicted = graph.rewrite(kernels, precision={nodes[layer]: "int8" for layer in chosen})
    assert works(predicted) == works(graph.read(out))
    profile = profiled(out, images[:1].numpy())
    assert set(real_int8_layers(profile, tuple(nodes))) == set(chosen)
    ran = collections.Counter(kernel.op for kernel in profile.kernels)
    expected = collections.Counter(kernel.kind for kernel in predicted)
    assert ran["ReorderInput"] == expected["reorder_input"]
    assert ran["ReorderOutput"] == expected["reorder_output"]
    # Where onnxruntime moves a transpose past a DequantizeLinear, it puts a pair behind both.
    added = ran["QuantizeLinear"] - expected["quantize"]
    assert added == ran["DequantizeLinear"] - expected["dequantize"]
    assert added >= 0


def test_float_readers_of_what_a_float_layer_writes_read_it_as_it_is(tmp_path: Path) -> None:
    """The stream of a residual block in fp32, whose branch alone works on bytes."""
    source, out = exported(tmp_path), tmp_path / "int8.onnx"
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=["inner"], board=facts())
    nodes = {node.name: node for node in onnx.load(out).graph.node}
    made_by = {name: node.op_type for node in nodes.values() for name in node.output}
    (first,) = (node for name, node in nodes.items() if name == "/Add")
    # The branch's second layer and the ReLU after the stem, both float.
    assert sorted(made_by[name] for name in first.input) == ["Conv", "Relu"]
    (inner,) = (node for name, node in nodes.items() if name.startswith("/inner/"))
    assert made_by[inner.input[0]] == "DequantizeLinear"


def test_a_float_layer_keeps_the_constants_that_it_shares_with_an_integer_one(
    tmp_path: Path,
) -> None:
    """Exporters make equal constants one: here the biases of two layers of as many channels."""
    source, out = exported(tmp_path), tmp_path / "int8.onnx"
    model = onnx.load(source)
    wide, shortcut = (n for n in model.graph.node if n.name in ("/wide/Conv", "/shortcut/Conv"))
    shortcut.input[2] = wide.input[2]
    onnx.save(model, source)
    board = replace(facts(), machine="aarch64")
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=["shortcut"], board=board)
    nodes = {node.name: node for node in onnx.load(out).graph.node}
    assert nodes["/wide/Conv"].input[2] == wide.input[2]
    assert nodes["/shortcut/Conv"].input[2] != wide.input[2]
    predicted = graph.rewrite(graph.read(source), precision={"/shortcut/Conv": "int8"})
    assert works(predicted) == works(graph.read(out))
    assert not any(kernel.name.endswith("constant_dequantize") for kernel in predicted)


def test_what_reads_integers_alone_works_on_integers(tmp_path: Path) -> None:
    """A sum of two int8 layers stays in bytes though a float layer reads it."""
    network = seeded(Residual)
    source, out = exported(tmp_path), tmp_path / "int8.onnx"
    layers = list(layers_in_order(network, IMAGES))
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=layers[:-1], board=facts())
    ran = collections.Counter(k.op for k in profiled(out, IMAGES[:1].numpy()).kernels)
    assert ran["QLinearAdd"] >= 1
    assert ran["Add"] == 0


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated])
def test_an_int8_network_computes_nearly_what_the_original_does(tmp_path: Path, kind: type) -> None:
    source, out = exported(tmp_path, kind), tmp_path / "int8.onnx"
    layers = tuple(layers_in_order(seeded(kind), IMAGES))
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=layers, board=facts())
    wanted, got = onnx_logits(source, IMAGES), onnx_logits(out, IMAGES)
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()
    assert set(real_int8_layers(profiled(out, IMAGES[:1].numpy()), layers)) == set(layers)


def test_weights_are_symmetric_int8_per_channel_and_seven_bits_on_avx2(tmp_path: Path) -> None:
    source = exported(tmp_path)
    for int8, peak in (("vnni", 127), ("avx2", 64)):
        out = tmp_path / f"{int8}.onnx"
        quantize(
            source,
            out,
            calibration=IMAGES.numpy(),
            int8_layers=["inner"],
            board=facts(int8),
        )
        constants = {i.name: numpy_helper.to_array(i) for i in onnx.load(out).graph.initializer}
        weights = constants["inner.weight_quantized"]
        assert weights.dtype == np.int8
        assert constants["inner.weight_scale"].shape == (12,)
        assert not constants["inner.weight_zero_point"].any()
        peaks = np.abs(weights.reshape(12, -1).astype(int)).max(1)
        assert peaks.max() <= peak
        assert peaks.min() >= peak - 1


def test_the_logits_of_an_int8_classifier_stay_float(tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    quantize(
        exported(tmp_path),
        out,
        calibration=IMAGES.numpy(),
        int8_layers=["classifier"],
        board=facts(),
    )
    model = onnx.load(out)
    assert model.graph.node[-1].op_type == "Gemm"
    assert model.opset_import[0].version == 13
    assert model.ir_version <= 8


def test_quantizing_is_silent_and_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = exported(tmp_path)
    out = tmp_path / "int8.onnx"
    report = quantize(
        source, out, calibration=IMAGES.numpy(), int8_layers=["inner", "outer"], board=facts()
    )
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert sorted(tmp_path.iterdir()) == [source, out]
    assert report.int8_layers == ("inner", "outer")
    assert report.size_bytes == out.stat().st_size
    assert report.calibration_images == 32


def test_quantizing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    source = exported(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        quantize(
            source,
            tmp_path / name,
            calibration=IMAGES.numpy(),
            int8_layers=["inner", "wide", "shortcut"],
            board=facts(),
        )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_unknown_layers_and_empty_requests_are_refused(tmp_path: Path) -> None:
    source = exported(tmp_path)
    for layers, message in ((["nowhere"], "cannot quantize nowhere"), ([], "at least one layer")):
        with pytest.raises(BuildError, match=message):
            quantize(
                source,
                tmp_path / "out.onnx",
                calibration=IMAGES.numpy(),
                int8_layers=layers,
                board=facts(),
            )
    assert not (tmp_path / "out.onnx").exists()


def test_kernels_are_traced_to_layers_by_their_names() -> None:
    def kernel(op: str, node: str) -> KernelTime:
        return KernelTime(name=node, op=op, node=node, latency_s=1e-6)

    profile = Profile(
        network_sha256="",
        runtime="onnxruntime",
        runtime_version="1.31.0",
        kernels=(
            kernel("QLinearConv", "/blocks/blocks.0/conv1/Conv_token_4"),
            kernel("Conv", "/blocks/blocks.0/conv2/Conv"),
            kernel("QLinearConv", "/blocks/blocks.1/shortcut/shortcut.0/Conv_token_11_kernel_time"),
            kernel("QLinearAdd", "/blocks/blocks.1/Add"),
            kernel("QGemm", "/classifier/Gemm"),
        ),
    )
    layers = ("blocks.0.conv1", "blocks.0.conv2", "blocks.1.shortcut.0", "classifier")
    assert real_int8_layers(profile, layers) == (
        "blocks.0.conv1",
        "blocks.1.shortcut.0",
        "classifier",
    )


@pytest.mark.parametrize(
    ("int8", "precisions"),
    [
        ("vnni", ("fp32", "int8")),
        ("dotprod", ("fp32", "int8")),
        ("avx2", ("fp32", "int8")),
        ("slow", ("fp32",)),
    ],
)
def test_int8_is_offered_where_it_is_fast(int8: str, precisions: tuple[str, ...]) -> None:
    assert available_precisions(facts(int8)) == precisions
