"""Networks written as ONNX and .pt2 files."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from harness import networks
from harness.errors import ConfigError
from harness.networks.structure import same_outputs
from tests.test_networks import SOURCE, warmed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(SOURCE)
    return path


def test_an_exported_file_names_its_layers_and_suits_old_runtimes(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = warmed(networks.load_network(f"{source}:factory", None), torch.randn(8, 1, 8, 8))
    path = tmp_path / "network.onnx"
    networks.export_onnx(network, torch.randn(5, 1, 8, 8), path)
    model = onnx.load(path)
    assert model.ir_version <= 8
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 13)]
    assert {item.name for item in model.graph.initializer} >= {"0.weight", "0.bias", "4.weight"}
    assert sorted(networks.layer_of_node(model).values()) == ["0", "4"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert capfd.readouterr() == ("", "")


def test_equal_weights_export_to_equal_bytes(source: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a.onnx", "b.onnx"):
        network = networks.load_network(f"{source}:factory", None)
        networks.export_onnx(network, torch.zeros(1, 1, 8, 8), tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_equal_biases_are_not_shared_between_layers(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    for index in (0, 2):
        nn.init.zeros_(network[index].bias)
    networks.export_onnx(network, torch.zeros(1, 1, 8, 8), tmp_path / "n.onnx")
    model = onnx.load(tmp_path / "n.onnx")
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Conv"]
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv"]
    assert biases == ["0.bias", "2.bias"]


def test_a_linear_layer_on_sequences_keeps_its_name(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    networks.export_onnx(network, torch.randn(1, 4, 6), tmp_path / "n.onnx")
    assert sorted(networks.layer_of_node(onnx.load(tmp_path / "n.onnx")).values()) == ["0", "2"]


@pytest.mark.parametrize("batch", [1, 4])
def test_logits_of_a_file_are_those_of_the_network(
    source: Path, tmp_path: Path, batch: int
) -> None:
    images = torch.randn(10, 1, 8, 8)  # not a multiple of 4
    network = warmed(networks.load_network(f"{source}:factory", None), images)
    networks.export_onnx(network, images, tmp_path / "n.onnx", batch=batch)
    logits = networks.onnx_logits(tmp_path / "n.onnx", images)
    assert logits.shape == (10, 3)
    np.testing.assert_allclose(logits, network(images).detach(), rtol=1e-4, atol=1e-5)


def test_a_pt2_file_takes_any_batch(source: Path, tmp_path: Path) -> None:
    network = networks.load_network(f"{source}:factory", None)
    networks.save_pt2(network, torch.zeros(1, 1, 8, 8), tmp_path / "n.pt2")
    images = torch.randn(7, 1, 8, 8)
    loaded = torch.export.load(tmp_path / "n.pt2").module()
    torch.testing.assert_close(loaded(images), network(images))


def test_as_onnx_exports_a_factory_and_passes_a_file_on(source: Path, tmp_path: Path) -> None:
    with networks.as_onnx(f"{source}:factory", None, "1x1x8x8") as path:
        assert networks.onnx_logits(path, torch.zeros(1, 1, 8, 8)).shape == (1, 3)
        kept = tmp_path / "kept.onnx"
        kept.write_bytes(path.read_bytes())
    assert not path.exists()
    with networks.as_onnx(str(kept), None, None) as path:
        assert path == kept
    for shape in (None, "8", "1,1,8,8,", "0,1,8,8", "1,1,5,5"):
        with (
            pytest.raises(ConfigError, match=r"shape|take inputs"),
            networks.as_onnx(f"{source}:factory", None, shape),
        ):
            pass


class SamePadding(nn.Module):
    """Pads as TensorFlow does: more at the end than at the beginning, by the input's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 5, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            kernel = layer.kernel_size[0]
            down, right = (max((-(-n // 2) - 1) * 2 + kernel - n, 0) for n in x.shape[-2:])
            sides = (right // 2, right - right // 2, down // 2, down - down // 2)
            x = layer(nn.functional.pad(x, sides))
        return x.mean((2, 3))


def test_uneven_padding_by_the_inputs_size_is_exported_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = SamePadding().eval(), torch.randn(2, 1, 16, 16)
    networks.export_onnx(network, images, tmp_path / "padded.onnx")
    got = networks.onnx_logits(tmp_path / "padded.onnx", images)
    with torch.no_grad():
        assert np.allclose(got, network(images), atol=1e-5)
    kinds = {node.op_type for node in onnx.load(tmp_path / "padded.onnx").graph.node}
    assert kinds <= {"Conv", "Pad", "ReduceMean"}  # nothing is left that computes sizes


class Masks(nn.Module):
    """Scores with infinities, a mask and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return torch.where(y > 0, y, torch.full_like(y, -torch.inf)), y > 0, y.argmax(1)


def test_masks_classes_and_infinities_are_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, 8, 8)
    networks.export_onnx(Masks().eval(), images, tmp_path / "masks.onnx")
    scores, mask, classes = networks.onnx_outputs(tmp_path / "masks.onnx", images)
    assert (np.isneginf(scores) == ~mask).all()
    assert classes.shape == (2, 6, 6)


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        # A thousandth of the largest value, 2.
        ([2.0, 0.0], [2.0, 0.0019], True),
        ([2.0, 0.0], [2.0, 0.0021], False),
        ([2.0, torch.inf], [2.001, torch.inf], True),
        ([2.0, torch.inf], [2.0, -torch.inf], False),
        ([2.0, torch.inf], [2.0, 1e9], False),
        ([2.0, torch.nan], [2.0, 0.0], False),
        ([], [], True),
        ([True, False], [True, False], True),
        ([True, False], [True, True], False),
        ([1000, 3], [1001, 3], False),
        ([7] * 1000, [7] * 999 + [8], True),
        ([7] * 1000, [7] * 998 + [8, 8], False),
    ],
)
def test_outputs_are_the_same_but_for_rounding(
    wanted: list[float], got: list[float], same: bool
) -> None:
    assert same_outputs([torch.tensor(wanted)], [torch.tensor(got)]) is same


def test_weights_in_channels_last_are_written_without_a_warning(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No complete tensor")
        networks.save_pt2(network, images, tmp_path / "n.pt2")
    read = torch.export.load(tmp_path / "n.pt2").module()
    assert torch.allclose(read(images), network(images), atol=1e-6)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
