"""ONNX files of any exporter, quantized without their torch network."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness import cli, networks, quantizing
from harness.compression.quantize import ready
from harness.errors import BuildError, ConfigError
from harness.networks import onnx_outputs

IMAGES = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)


def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def foreign(path: Path, *, opset: int = 12) -> Path:
    """As other exporters write it: nameless nodes, constants as nodes, a free height and batch."""
    rng = np.random.default_rng(1)

    def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(value.astype(np.float32))
        return helper.make_node("Constant", [], [name], value=tensor)

    nodes = [
        constant("w1", rng.normal(size=(6, 3, 3, 3))),
        constant("factor", rng.normal(size=(1, 6, 1, 1))),
        constant("summand", np.array([0.5])),
        constant("w2", rng.normal(size=(4, 6, 1, 1))),
        constant("b2", rng.normal(size=4)),
        constant("w3", rng.normal(size=(4, 5))),
        node("Conv", ["x", "w1"], "a", pads=[1, 1, 1, 1]),
        node("Mul", ["a", "factor"], "b"),
        node("Add", ["b", "summand"], "c"),
        node("Relu", ["c"], "d"),
        # The legacy exporter of torch shares equal constants so.
        node("Identity", ["b2"], "b2_again"),
        node("Conv", ["d", "w2", "b2_again"], "e"),
        node("GlobalAveragePool", ["e"], "f"),
        node("Flatten", ["f"], "g", axis=1),
        node("MatMul", ["g", "w3"], "classes"),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", 8])],
        [
            helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["n", 5]),
            helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n", 4, "h", 8]),
        ],
    )
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return foreign(tmp_path / "foreign.onnx")


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "images.npz", images=IMAGES)
    return str(tmp_path / "images.npz")


def test_what_exporters_leave_behind_is_folded_and_computes_the_same(
    network: Path, tmp_path: Path
) -> None:
    model = ready(network, (1, 3, 8, 8))
    assert [one.op_type for one in model.graph.node].count("Mul") == 0
    assert [one.op_type for one in model.graph.node].count("Add") == 0
    assert len({one.name for one in model.graph.node} - {""}) == len(model.graph.node)
    assert len(networks.layer_of_node(model)) == 3
    assert model.opset_import[0].version == 13
    onnx.save(model, tmp_path / "ready.onnx")
    for wanted, got in zip(
        onnx_outputs(network, IMAGES), onnx_outputs(tmp_path / "ready.onnx", IMAGES), strict=True
    ):
        assert np.abs(wanted - got).max() < 1e-4


def test_images_of_another_shape_are_refused(network: Path) -> None:
    with pytest.raises(BuildError, match=r"reads x of any x 3 x any x 8, and the data are \(1, 1"):
        ready(network, (1, 1, 8, 8))


def plainly(network: Path, data: str) -> quantizing.QuantizedFile:
    """Quantized by the extremes, next to itself."""
    return quantizing.quantize_file(
        network,
        data=data,
        preparation=networks.Preparation(),
        out=network.with_name("int8.onnx"),
        calibrate="minmax",
        exclude=(),
        board="local",
    )


def test_every_layer_of_a_foreign_file_runs_on_integers(network: Path, data: str) -> None:
    result = plainly(network, data)
    assert (result.calibration_images, result.test_images) == (9, 3)
    assert len(result.layers) == 3
    assert set(result.integer_layers) == set(result.layers)
    assert result.float_layers == ()
    classes, features = result.outputs
    assert (classes.name, features.name) == ("classes", "e")
    assert classes.agreement is not None and classes.kl is not None and classes.kl < 0.01
    assert features.agreement is None
    assert 0 < features.error_ratio < 0.05


def test_excluded_layers_stay_float(network: Path, data: str, tmp_path: Path) -> None:
    settings = {
        "data": data,
        "preparation": networks.Preparation(),
        "out": tmp_path / "int8.onnx",
        "calibrate": "error",
        "board": "local",
    }
    model = ready(network, (1, 3, 8, 8))
    layers = tuple(networks.layer_of_node(model).values())
    result = quantizing.quantize_file(network, exclude=layers[:1], **settings)  # type: ignore[arg-type]
    assert set(result.integer_layers) == set(layers[1:])
    with pytest.raises(ConfigError, match=r"--exclude nothing: .* has no such layer; it has"):
        quantizing.quantize_file(network, exclude=["nothing"], **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no convolution or matrix product left"):
        quantizing.quantize_file(network, exclude=layers, **settings)  # type: ignore[arg-type]


def test_the_command_prints_sizes_layers_and_differences(
    network: Path,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "small.onnx"
    words = ["boardfit", "quantize", str(network), "--data", data, "--out", str(out)]
    for extra, text in (([], "3 of 3 layers run as integer"), (["--weights-int4"], "four bits")):
        monkeypatch.setattr(sys, "argv", [*words, *extra])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert text in printed
        assert "classes" in printed
    monkeypatch.setattr(sys, "argv", [*words, "--json", "--calibrate", "percentile"])
    with pytest.raises(SystemExit):
        cli.main()
    record = json.loads(capsys.readouterr().out)
    assert record["size_bytes"] == out.stat().st_size
    assert record["calibrate"] == "percentile"


def test_few_or_constant_images_and_wrong_files_are_refused(network: Path, tmp_path: Path) -> None:
    def quantized(images: np.ndarray, *, file: Path = network, out: str = "o.onnx") -> None:
        np.savez(tmp_path / "some.npz", images=images)
        quantizing.quantize_file(
            file,
            data=str(tmp_path / "some.npz"),
            preparation=networks.Preparation(),
            out=tmp_path / out,
            calibrate="minmax",
            exclude=(),
            board="local",
        )

    with pytest.raises(ConfigError, match="3 images are too few"):
        quantized(IMAGES[:3])
    black = IMAGES.copy()
    black[7] = 0
    with pytest.raises(ConfigError, match=r"1 of 12 images are constant .* number 7, all 0"):
        quantized(black)
    with pytest.raises(ConfigError, match=r"is no \.onnx file"):
        quantized(IMAGES, file=tmp_path / "network.py")
    with pytest.raises(ConfigError, match="is the network itself"):
        quantized(IMAGES, out="foreign.onnx")


def test_weights_beside_the_file_are_counted_in_its_size(
    network: Path, data: str, tmp_path: Path
) -> None:
    model = ready(network, (1, 3, 8, 8))
    split = tmp_path / "split.onnx"
    onnx.save(model, split, save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = plainly(split, data)
    beside = (tmp_path / "weights.bin").stat().st_size
    assert result.size_before_bytes == split.stat().st_size + beside
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"weights\.bin, which does not exist"):
        plainly(split, data)


@pytest.mark.parametrize("damaged", [b"no network", b""])
def test_a_file_that_is_no_network_is_refused(data: str, tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"damaged\.onnx"):
        plainly(path, data)


def test_differences_are_of_numbers_and_of_an_original_that_is_not_zero() -> None:
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    assert quantizing._difference("y", zero, one).error_ratio is None
    # Twice as large: the error is as large as the original.
    assert quantizing._difference("y", one, 2 * one).error_ratio == 1.0
    with pytest.raises(BuildError, match="the quantized network gives values of output y that"):
        quantizing._difference("y", one, np.full((2, 3), np.nan))
    with pytest.raises(BuildError, match="the original network"):
        quantizing._difference("y", np.full((2, 3), np.inf), one)
