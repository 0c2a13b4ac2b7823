"""Loading, folding and counting networks, and their data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness import networks
from harness.errors import ConfigError

SOURCE = """
import torch
from torch import nn

def factory():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * 6 * 6, 3))

def broken():
    raise ZeroDivisionError("no width given")

def number():
    return 3

constant = 5
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(SOURCE)
    return path


def warmed(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network with batch-norm statistics that are not the initial zeros and ones."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()(images)
    return network.eval()


# --- loading a network


def test_a_factory_in_a_file_gives_a_network_in_evaluation_mode(source: Path) -> None:
    network = networks.load_network(f"{source}:factory", None)
    assert isinstance(network, nn.Sequential)
    assert not network.training


def test_a_factory_in_a_module_of_the_working_folder_is_found(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    source.rename(source.with_name("boardfit_test_module.py"))
    assert networks.load_network("boardfit_test_module:factory", None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}", "expected module:factory or file.py:factory"),
        ("{file}:", "expected module:factory or file.py:factory"),
        ("{file}x.py:factory", "does not exist"),
        ("no_such_module:factory", "No module named 'no_such_module'"),
        ("{file}:other", "has no function 'other'"),
        ("{file}:constant", "has no function 'constant'"),
        ("{file}:broken", r"broken\(\) raised ZeroDivisionError: no width given"),
        ("{file}:number", "returned int, not a torch.nn.Module"),
        ("exported.pt2", "a factory is needed here"),
        ("exported.onnx", "a factory is needed here"),
    ],
)
def test_a_wrong_network_says_what_is_wrong(source: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        networks.load_network(spec.format(file=source), None)


def test_a_file_that_raises_shows_its_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'no_such_package'"):
        networks.load_network(f"{path}:factory", None)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_load_from_every_usual_form(source: Path, nested: bool, prefix: str) -> None:
    network = networks.load_network(f"{source}:factory", None)
    state = {prefix + key: value * 0 + 0.5 for key, value in network.state_dict().items()}
    state = {key: v.half() if v.is_floating_point() else v for key, v in state.items()}
    path = source.with_name("weights.pt")
    torch.save({"state_dict": state, "epoch": 3} if nested else state, path)
    loaded = networks.load_network(f"{source}:factory", path)
    assert loaded[0].weight.dtype == torch.float32  # type: ignore[index]
    assert float(loaded[0].weight.detach().min()) == 0.5  # type: ignore[index]


def test_weights_that_do_not_fit_name_a_few_keys(source: Path) -> None:
    state = networks.load_network(f"{source}:factory", None).state_dict()
    state["0.weight"] = torch.zeros(4, 2, 3, 3)
    state["9.weight"] = torch.zeros(1)
    del state["4.bias"]
    path = source.with_name("weights.pt")
    torch.save(state, path)
    with pytest.raises(ConfigError) as caught:
        networks.load_network(f"{source}:factory", path)
    assert "missing: 4.bias" in str(caught.value)
    assert "unknown: 9.weight" in str(caught.value)
    assert "0.weight is (4, 2, 3, 3), not (4, 1, 3, 3)" in str(caught.value)


def test_missing_and_corrupt_weights_are_named(source: Path) -> None:
    path = source.with_name("weights.pt")
    with pytest.raises(ConfigError, match="does not exist"):
        networks.load_network(f"{source}:factory", path)
    path.write_bytes(b"not weights at all")
    with pytest.raises(ConfigError, match=r"weights\.pt"):
        networks.load_network(f"{source}:factory", path)
    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match="no state dict"):
        networks.load_network(f"{source}:factory", path)


# --- data


def arrays(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "train_images": np.full((4, 1, 8, 8), 255, np.uint8),
        "train_labels": np.array([0, 1, 2, 0]),
        "test_images": np.zeros((2, 1, 8, 8), np.uint8),
        "test_labels": np.array([1, 2]),
        "mean": np.float32([0.5]),
        "std": np.float32([0.25]),
    }
    base.update(changes)
    return {key: value for key, value in base.items() if value is not None}


def stored(folder: Path, **changes: object) -> Path:
    path = folder / "images.npz"
    np.savez(path, **arrays(**changes))  # type: ignore[arg-type]
    return path


def test_bytes_are_scaled_and_then_normalised(tmp_path: Path) -> None:
    data = networks.load_data(stored(tmp_path))
    assert data.train_images.dtype == torch.float32
    assert float(data.train_images[0, 0, 0, 0]) == 2.0  # (255 / 255 - 0.5) / 0.25
    assert float(data.test_images[0, 0, 0, 0]) == -2.0  # (0 - 0.5) / 0.25
    assert data.test_labels.tolist() == [1, 2]
    assert data.example.shape == (1, 1, 8, 8)


def test_training_labels_are_optional(tmp_path: Path) -> None:
    assert networks.load_data(stored(tmp_path, train_labels=None)).train_labels is None


def test_short_names_and_channels_last_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "cifar.npz"
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[..., 2] = 255
    np.savez(path, xtr=images, ytr=np.uint8([0, 1, 2]), xte=images, yte=np.uint8([0, 1, 2]))
    with pytest.raises(ConfigError, match="lacks mean, std"):
        networks.load_data(path)
    data = networks.load_data(path, mean=(0.0, 0.0, 0.5), std=(1.0, 1.0, 0.25))
    assert data.train_images.shape == (3, 3, 8, 8)
    assert data.train_images[0, :, 0, 0].tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "lacks test_labels"),
        ({"mean": None}, "lacks mean"),
        ({"train_images": np.zeros((4, 64), np.uint8)}, r"shape \(4, 64\)"),
        ({"train_images": np.zeros((4, 1, 9, 9), np.uint8)}, r"train images are \(1, 9, 9\)"),
        ({"train_images": np.zeros((4, 1, 8, 8), np.int64)}, "int64"),
        ({"train_labels": np.array([0, 1])}, "expected 4 whole numbers"),
        ({"test_labels": np.array([0.5, 1.0])}, "expected 2 whole numbers"),
        ({"test_labels": np.array([0, -1])}, "negative label -1"),
        ({"std": np.float32([0.0])}, "must be positive"),
        ({"mean": np.float32([0.5, 0.5])}, "expected one number, or 1"),
        ({"test_images": np.full((2, 1, 8, 8), np.nan, np.float32)}, "not finite"),
    ],
)
def test_wrong_data_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        networks.load_data(stored(tmp_path, **changes))


def test_a_data_file_that_is_none_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    with pytest.raises(ConfigError, match="does not exist"):
        networks.load_data(path)
    path.write_bytes(b"PK but no archive")
    with pytest.raises(ConfigError, match="not a readable"):
        networks.load_data(path)


def test_network_and_data_must_fit_each_other(source: Path, tmp_path: Path) -> None:
    network = networks.load_network(f"{source}:factory", None)
    networks.check_fits(network, networks.load_data(stored(tmp_path)))
    small = networks.load_data(
        stored(
            tmp_path,
            train_images=np.zeros((4, 1, 5, 5), np.uint8),
            test_images=np.zeros((2, 1, 5, 5), np.uint8),
        )
    )
    with pytest.raises(ConfigError, match=r"images of shape \(2, 1, 5, 5\)"):
        networks.check_fits(network, small)
    many = networks.load_data(stored(tmp_path, test_labels=np.array([0, 3])))
    with pytest.raises(ConfigError, match=r"test labels go up to 3.*3 classes"):
        networks.check_fits(network, many)
    with pytest.raises(ConfigError, match=r"expected \(n, classes\)"):
        networks.check_fits(nn.Conv2d(1, 2, 3), networks.load_data(stored(tmp_path)))


# --- structure


def test_macs_and_parameters_are_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(36, 2)
    )
    # 4 x 5 x 5 outputs x 27, then 4 x 3 x 3 outputs x 9 (depthwise), then 2 x 36.
    assert networks.count_macs(network, torch.zeros(2, 3, 5, 5)) == 2700 + 324 + 72
    # 4 x 27 + 4, 4 x 9 + 4, 2 x 36 + 2.
    assert networks.count_parameters(network) == 112 + 40 + 74


def test_folding_keeps_the_outputs_and_removes_every_batch_norm() -> None:
    images = torch.randn(8, 1, 8, 8)
    network = warmed(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
        ),
        images,
    )
    folded = networks.fold_batchnorm(network, images[:1])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)
    assert isinstance(network[1], nn.BatchNorm2d)  # the original is left alone


class ReadTwice(nn.Module):
    """The convolution's output is read by its batch norm and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 2, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.bn2(self.second(self.bn1(y))) + y


def test_a_pair_whose_output_is_read_elsewhere_stays_unfolded() -> None:
    images = torch.randn(8, 1, 6, 6)
    network = warmed(ReadTwice(), images)
    folded = networks.fold_batchnorm(network, images[:1])
    assert isinstance(folded.bn1, nn.BatchNorm2d)
    assert isinstance(folded.bn2, nn.Identity)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)


class SharedNorm(nn.Module):
    """Two convolutions share one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 2, 3)
        self.right = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.left(x)) + self.bn(self.right(x))


def test_a_batch_norm_that_two_layers_share_is_folded_into_both() -> None:
    images = torch.randn(8, 1, 6, 6)
    network = warmed(SharedNorm(), images)
    folded = networks.fold_batchnorm(network, images[:1])
    assert isinstance(folded.bn, nn.Identity)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-5, atol=1e-5)


def test_the_fingerprint_changes_with_any_weight(source: Path) -> None:
    network = networks.load_network(f"{source}:factory", None)
    before = networks.fingerprint(network)
    assert before == networks.fingerprint(networks.load_network(f"{source}:factory", None))
    with torch.no_grad():
        network.get_parameter("4.bias")[0] += 1
    assert networks.fingerprint(network) != before


def test_top1_is_the_share_of_hits() -> None:
    logits = np.float32([[1, 2], [3, 0], [0, 1], [5, 1]])
    assert networks.top1(logits, np.array([1, 0, 0, 0])) == 0.75
