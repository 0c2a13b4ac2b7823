"""Networks that are not classifiers, judged by a function of the user's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness import networks
from harness.compression.distill import distill
from harness.compression.losses import output_loss
from harness.errors import ConfigError

METRICS = """
import numpy as np

def overlap(outputs, targets):
    found = outputs[0] > 0
    return (found & (targets > 0)).sum() / max((found | (targets > 0)).sum(), 1)

def broken(outputs, targets):
    return outputs[7]

def undefined(outputs, targets):
    return float("nan")

def several(outputs, targets):
    return np.zeros(3)
"""


class Segmenter(nn.Module):
    """A mask as large as the image, and a number: two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.mask = nn.Conv2d(4, 1, 1)
        self.count = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.stem(x))
        return {"mask": self.mask(x), "count": self.count(x.mean((2, 3)))}


@pytest.fixture
def metrics(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(METRICS)
    return f"{tmp_path}/mine.py"


def segmentation(folder: Path) -> networks.Data:
    images = np.random.default_rng(0).random((12, 1, 8, 8), np.float32)
    path = folder / "masks.npz"
    np.savez(
        path,
        train_images=images[:8],
        train_labels=images[:8] > 0.5,
        test_images=images[8:],
        test_labels=images[8:] > 0.5,
        mean=0.0,
        std=1.0,
    )
    return networks.load_data(path, classes=False)


def test_top1_is_the_metric_unless_another_is_named(metrics: str) -> None:
    assert networks.load_metric(None) is networks.TOP1
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert networks.TOP1.of([logits], np.array([0, 1, 1])) == 2 / 3
    named = networks.load_metric(f"{metrics}:overlap")
    assert (named.name, named.classifies) == ("overlap", False)
    # Found at 0 and 1, wanted at 1 and 2: one of three.
    outputs = [np.array([[1.0, 1.0, -1.0]]), np.zeros((1, 1))]
    assert named.of(outputs, np.array([[0, 1, 1]])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"metric broken raised IndexError: .* outputs of \(2, 1, 8, 8\), \(2, 1\)"),
        ("undefined", "metric undefined is nan"),
        ("several", r"returned \(3,\) numbers; expected one"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_a_metric_that_cannot_judge_says_so_before_anything_runs(
    metrics: str, tmp_path: Path, name: str, message: str
) -> None:
    data = segmentation(tmp_path)
    with pytest.raises(ConfigError, match=message):
        networks.check_fits(Segmenter(), data, networks.load_metric(f"{metrics}:{name}"))


def test_targets_are_whatever_the_metric_takes(metrics: str, tmp_path: Path) -> None:
    data = segmentation(tmp_path)
    assert data.test_labels.shape == (4, 1, 8, 8)
    assert not data.classes
    networks.check_fits(Segmenter(), data, networks.load_metric(f"{metrics}:overlap"))
    with pytest.raises(ConfigError, match="expected 8 whole numbers"):
        networks.load_data(tmp_path / "masks.npz")
    with pytest.raises(ConfigError, match="name a --metric for what it is"):
        networks.check_fits(Segmenter(), data)


def test_all_outputs_of_a_file_are_computed(tmp_path: Path) -> None:
    network = Segmenter().eval()
    images = torch.rand(5, 1, 8, 8)
    networks.export_onnx(network, images, tmp_path / "two.onnx")
    found = networks.onnx_outputs(tmp_path / "two.onnx", images)
    with torch.no_grad():
        wanted = network(images)
    for got, name in zip(found, ("mask", "count"), strict=True):
        assert np.abs(got - wanted[name].numpy()).max() < 1e-5


class Detector(nn.Module):
    """Boxes of all images in one list."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten().reshape(-1, 4)


def test_outputs_without_an_entry_an_image_are_refused(metrics: str, tmp_path: Path) -> None:
    data = segmentation(tmp_path)
    with pytest.raises(ConfigError, match=r"turns 2 images into outputs of \(32, 4\)"):
        networks.check_fits(Detector(), data, networks.load_metric(f"{metrics}:overlap"))
    networks.export_onnx(Detector(), data.example, tmp_path / "boxes.onnx")
    with pytest.raises(ConfigError, match=r"1 images into an output output of shape \(16, 4\)"):
        networks.onnx_outputs(tmp_path / "boxes.onnx", data.test_images)


def test_the_loss_of_raw_outputs_counts_every_output_alike() -> None:
    # (1^2 + 0^2) / 2 by (3^2 + 4^2) / 2 is 1/25; 20^2 by 100^2 is 1/25 as well.
    teacher = [torch.tensor([[3.0, 4.0]]), torch.tensor([[100.0]])]
    student = [torch.tensor([[4.0, 4.0]]), torch.tensor([[120.0]])]
    assert float(output_loss(student, teacher)) == pytest.approx(1 / 25)


def test_raw_outputs_can_be_distilled() -> None:
    torch.manual_seed(0)
    teacher, student = Segmenter().eval(), Segmenter().eval()
    images = torch.rand(64, 1, 8, 8)
    taught = distill(student, teacher, images, epochs=20, batch=16, lr=0.05, raw=True, shift=0)

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            ours, theirs = (networks.tensors_of(one(images)) for one in (network, teacher))
        return float(output_loss(ours, theirs))

    assert loss(taught) < 0.2 * loss(student)
