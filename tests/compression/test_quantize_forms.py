"""What each runtime's Q/DQ looks like, and what is written into it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from harness.compression.fakequant import fake_quantize, input_ranges
from harness.compression.quantize import (
    float_layers,
    form_of,
    quantize,
    real_int8_layers,
    store_weights_int4,
    usual_form,
)
from harness.compression.quantizers import (
    QuantizedWeight,
    Range,
    RangeMethod,
    activation_range,
    quantize_weight,
)
from harness.compression.sequential import quantize_in_turn
from harness.errors import BuildError
from harness.networks import (
    export_onnx,
    layer_of_node,
    layers_in_order,
    load_data,
    load_network,
    onnx_logits,
)
from harness.records import BoardFacts, KernelTime, Profile
from tests.compression.test_quantize import CIFAR, IMAGES, RESNET, exported, operators, profiled
from tests.compression.tiny import Inverted, Residual, facts, seeded


def tensorrt(version: str = "8.2.1") -> BoardFacts:
    return replace(facts(), runtime="tensorrt", runtime_version=version, machine="aarch64")


def constants(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


class Coloured(nn.Module):
    """Reads three channels, with padding on two sides only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(nn.functional.pad(x, (0, 1, 0, 1))))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_the_form_is_the_runtimes() -> None:
    here = form_of(facts("vnni"))
    assert (here.symmetric, here.at_inputs, here.weight_bits, here.widens_input) == (
        False,
        False,
        8,
        True,
    )
    assert form_of(facts("avx2")).weight_bits == 7
    arm = form_of(replace(facts("dotprod"), machine="aarch64"))
    assert (arm.symmetric, arm.weight_bits, arm.widens_input) == (False, 8, False)
    old = form_of(tensorrt())
    assert (old.symmetric, old.at_inputs, old.integer_bias) == (True, True, False)
    assert not old.integer_weights
    assert form_of(tensorrt("10.3.0")).integer_weights


def test_the_usual_form_of_a_runtime_is_that_of_a_board_with_it() -> None:
    assert usual_form("onnxruntime-cpu") == form_of(facts("vnni"))
    arm = replace(facts("dotprod"), machine="aarch64")
    assert usual_form("onnxruntime-cpu-arm") == form_of(arm)
    assert usual_form("tensorrt") == form_of(tensorrt())


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0"])
@pytest.mark.parametrize("kind", [Residual, Inverted])
def test_tensorrt_gets_symmetric_pairs_at_inputs_and_float_biases(
    tmp_path: Path, kind: type[nn.Module], version: str
) -> None:
    source, out = exported(tmp_path, kind), tmp_path / "int8.onnx"
    layers = tuple(layers_in_order(seeded(kind), IMAGES))
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=layers, board=tensorrt(version))
    model = onnx.load(out)
    found = constants(out)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert found[node.input[2]].dtype == np.int8
            assert not found[node.input[2]].any()
        if node.op_type in ("Conv", "Gemm"):
            assert found[node.input[2]].dtype == np.float32
    # ReLU stays, and nothing stands between a layer and the ReLU or sum that it fuses with.
    assert operators(out)["Relu"] == operators(source)["Relu"]
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Relu":
            assert made_by[node.input[0]].op_type in ("Conv", "Add")
        if node.op_type == "Add":
            kinds = sorted(made_by[name].op_type for name in node.input)
            assert kinds == ["Conv", "DequantizeLinear"]
    weights = [node for node in model.graph.node if f"{layers[0]}.weight" in node.name]
    stored = {"8.2.1": 2, "10.3.0": 1}  # Q and DQ of floats, or DQ of integers
    assert len(weights) == stored[version]
    wanted, got = onnx_logits(source, IMAGES), onnx_logits(out, IMAGES)
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()


def test_given_weights_biases_and_ranges_are_written_as_they_are(tmp_path: Path) -> None:
    source, out = exported(tmp_path), tmp_path / "int8.onnx"
    levels = torch.randint(-120, 120, (12, 8, 3, 3), dtype=torch.int8)
    scale = torch.linspace(0.001, 0.003, 12)
    bias = torch.linspace(-1.0, 1.0, 12)
    report = quantize(
        source,
        out,
        calibration=IMAGES.numpy(),
        int8_layers=["inner", "classifier"],
        board=facts(),
        weights={"inner": QuantizedWeight(levels, scale, 8)},
        biases={"inner": bias},
        ranges={"inner": Range(low=0.0, high=5.1)},
    )
    found = constants(out)
    assert (found["inner.weight_quantized"] == levels.numpy()).all()
    assert (found["inner.weight_scale"] == scale.numpy()).all()
    node = next(n for n in onnx.load(out).graph.node if n.op_type == "Conv" and "inner" in n.name)
    entry = node.input[0].removesuffix("_DequantizeLinear_Output")
    assert found[f"{entry}_scale"] == pytest.approx(5.1 / 255)  # 255 steps from 0 to 5.1
    # The bias counts in steps of input scale times weight scale.
    steps = bias.numpy() / (5.1 / 255 * scale.numpy())
    assert np.abs(found["inner.bias_quantized"] - steps).max() <= 0.51
    assert report.ranges["inner"] == Range(low=0.0, high=5.1)


def test_a_bias_too_large_for_its_scale_gets_a_coarser_one(tmp_path: Path) -> None:
    network = seeded(Residual)
    with torch.no_grad():
        network.get_submodule("outer").weight[3] = 1e-12
        network.get_submodule("outer").bias[3] = 7.0
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(network, IMAGES, source)
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=["outer"], board=facts())
    found = constants(out)
    held = found["outer.bias_quantized"] * found["outer.bias_quantized_scale"].astype(float)
    assert held[3] == pytest.approx(7.0)


def test_biases_make_up_for_rounded_weights(tmp_path: Path) -> None:
    """One channel, inputs of mean 2: weights that grow by 0.1 in all take 0.2 off the bias."""
    network = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 0.45]).view(1, 2, 1, 1))
        network[0].bias.fill_(3.0)
    images = torch.full((4, 2, 4, 4), 2.0)
    images[:, :, :2] = 1.5
    images[:, :, 2:] = 2.5
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(network, images, source)
    levels = torch.tensor([100, 55], dtype=torch.int8).view(1, 2, 1, 1)  # 1.0 and 0.55
    quantize(
        source,
        out,
        calibration=images.numpy(),
        int8_layers=["0"],
        board=facts(),
        weights={"0": QuantizedWeight(levels, torch.tensor([0.01]), 8)},
        correct_bias=True,
    )
    found = constants(out)
    bias = found["0.bias_quantized"] * found["0.bias_quantized_scale"]
    assert bias == pytest.approx(2.8, abs=1e-3)


def test_a_grouped_layer_corrects_each_group_by_its_own_inputs(tmp_path: Path) -> None:
    network = seeded(Inverted)
    source = tmp_path / "fp32.onnx"
    images = IMAGES + 0.5
    export_onnx(network, images, source)
    layers = tuple(layers_in_order(network, images))
    weights = {
        name: quantize_weight(layer.weight, 4)
        for name, layer in layers_in_order(network, images).items()
    }
    wanted = onnx_logits(source, images).mean(0)
    off = {}
    for correct in (False, True):
        out = tmp_path / f"{correct}.onnx"
        quantize(
            source,
            out,
            calibration=images.numpy(),
            int8_layers=layers,
            board=facts(),
            weights=weights,
            correct_bias=correct,
        )
        off[correct] = np.abs(onnx_logits(out, images).mean(0) - wanted).max()
    assert off[True] < 0.5 * off[False]


def test_weights_that_would_saturate_on_the_board_are_refused(tmp_path: Path) -> None:
    weight = quantize_weight(seeded(Residual).get_submodule("inner").weight, 8)
    with pytest.raises(BuildError, match=r"inner: weights of 8 bits saturate .* round them to 7"):
        quantize(
            exported(tmp_path),
            tmp_path / "int8.onnx",
            calibration=IMAGES.numpy(),
            int8_layers=["inner"],
            board=facts("avx2"),
            weights={"inner": weight},
        )


def test_a_fourth_channel_of_zeros_changes_no_bit(tmp_path: Path) -> None:
    images = torch.randn(6, 3, 17, 17)
    network = seeded_on(Coloured, images)
    source = tmp_path / "fp32.onnx"
    export_onnx(network, images, source)
    files = {}
    for machine in ("x86_64", "aarch64"):
        files[machine] = tmp_path / f"{machine}.onnx"
        quantize(
            source,
            files[machine],
            calibration=images.numpy(),
            int8_layers=["stem", "classifier"],
            board=replace(facts(), machine=machine),
        )
    wide, narrow = (constants(files[machine]) for machine in ("x86_64", "aarch64"))
    assert wide["stem.weight_quantized"].shape == (6, 4, 3, 3)
    assert narrow["stem.weight_quantized"].shape == (6, 3, 3, 3)
    assert (onnx_logits(files["x86_64"], images) == onnx_logits(files["aarch64"], images)).all()
    profile = profiled(files["x86_64"], images[:1].numpy())
    assert set(real_int8_layers(profile, ("stem", "classifier"))) == {"stem", "classifier"}


def seeded_on(kind: type[nn.Module], images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = kind()
    network(images)
    return network.eval()


def test_a_relu_behind_a_pool_is_not_lost(tmp_path: Path) -> None:
    """The pool's output has the range of its input, which goes below zero."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3, padding=1)
            self.second = nn.Conv2d(4, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.max_pool2d(self.first(x), 2)
            return self.second(torch.relu(x))  # type: ignore[no-any-return]

    network = seeded_on(Pooled, IMAGES)
    with torch.no_grad():
        network.get_submodule("first").bias -= 1.0
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(network, IMAGES, source)
    quantize(
        source, out, calibration=IMAGES.numpy(), int8_layers=["first", "second"], board=facts()
    )
    wanted, got = onnx_logits(source, IMAGES), onnx_logits(out, IMAGES)
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()


def test_a_layer_called_twice_has_its_weights_once_and_a_bias_for_each_input(
    tmp_path: Path,
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(5 * torch.relu(self.conv(x)))  # type: ignore[no-any-return]

    network = seeded_on(Twice, IMAGES)
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(network, IMAGES, source)
    quantize(source, out, calibration=IMAGES.numpy(), int8_layers=["conv"], board=facts())
    assert len([name for name in constants(out) if name.startswith("conv.weight_quant")]) == 1
    wanted, got = onnx_logits(source, IMAGES), onnx_logits(out, IMAGES)
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("method", ["minmax", "percentile", "error"])
def test_ranges_are_chosen_by_the_method_over_all_images(
    tmp_path: Path, method: RangeMethod
) -> None:
    images = IMAGES**3  # long tails
    report = quantize(
        exported(tmp_path),
        tmp_path / "int8.onnx",
        calibration=images.numpy(),
        int8_layers=["stem"],
        board=facts(),
        method=method,
    )
    assert report.ranges["stem"] == activation_range(list(images), method=method)


def test_layers_that_stay_float_are_told_with_a_reason() -> None:
    def kernel(op: str, node: str) -> KernelTime:
        return KernelTime(name=node, op=op, node=node, latency_s=1e-6)

    profile = Profile(
        network_sha256="",
        runtime="onnxruntime",
        runtime_version="1.31.0",
        kernels=(
            kernel("QLinearConv", "/stem/Conv_token_4"),
            kernel("DequantizeLinear", "/inner/DequantizeLinear"),
            kernel("FusedConv", "/inner/Conv"),
            kernel("ConvTranspose", "/up/ConvTranspose"),
        ),
    )
    told = {item.layer: str(item) for item in float_layers(profile, ("stem", "inner", "up", "x"))}
    assert set(told) == {"inner", "up", "x"}
    assert "inner ran as FusedConv: onnxruntime did not fuse its Q/DQ" in told["inner"]
    assert "no integer kernel for it" in told["up"]
    assert "x ran as no kernel of its own" in told["x"]


def test_four_bit_weights_are_a_smaller_file_that_computes_in_float(tmp_path: Path) -> None:
    network = seeded(Residual)
    source, out = exported(tmp_path), tmp_path / "int4.onnx"
    layers = tuple(layers_in_order(network, IMAGES))
    weights = {
        name: quantize_weight(layer.weight, 4, scale="error")
        for name, layer in layers_in_order(network, IMAGES).items()
        if name in ("outer", "classifier")
    }
    store_weights_int4(source, out, layers=["outer", "classifier"], board=facts(), weights=weights)
    rounded = fake_quantize(network, IMAGES[:1], weights=weights)
    with torch.no_grad():
        wanted = rounded(IMAGES).numpy()
    assert np.abs(onnx_logits(out, IMAGES) - wanted).max() < 1e-4
    assert not real_int8_layers(profiled(out, IMAGES[:1].numpy()), layers)
    with pytest.raises(BuildError, match=r"onnxruntime 1\.10\.0 does not load weights of four"):
        store_weights_int4(
            source,
            out,
            layers=layers,
            board=replace(facts(), runtime_version="1.10.0"),
        )


@pytest.mark.skipif(not CIFAR.exists(), reason="the shared CIFAR-10 networks are absent")
def test_torch_and_onnx_agree_on_real_images(tmp_path: Path) -> None:
    """ResNet-20 quantized with compensated rounding: the same class on 99 % of the images."""
    network = load_network(f"{RESNET}:resnet20", CIFAR / "resnet20-12fca82f.th")
    data = load_data(
        CIFAR / "lossless_subset.npz", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(network, data.example, source)
    layers = tuple(layer_of_node(onnx.load(source)).values())
    calibration = data.train_images[:128]
    ranges = input_ranges(network, calibration, method="error")
    rounded = quantize_in_turn(network, calibration[:64], dict.fromkeys(layers, 8), ranges=ranges)
    quantize(
        source,
        out,
        calibration=calibration.numpy(),
        int8_layers=layers,
        board=facts(),
        method="error",
        weights=rounded.weights,
        biases=rounded.biases,
        ranges=ranges,
    )
    with torch.no_grad():
        in_torch = rounded.network(data.test_images).numpy().argmax(1)
    in_onnx = onnx_logits(out, data.test_images).argmax(1)
    # Beside the inputs of layers, the file rounds sums and the pooled features: 99.5 % with 512
    # calibration images, and as many as 1,007 of 1,017 with the 128 of this test.
    assert (in_torch == in_onnx).sum() >= 1007
