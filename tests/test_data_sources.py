"""Data from folders and functions, and whether it looks like what a network was trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from harness import networks
from harness.errors import ConfigError
from harness.networks import Preparation
from harness.networks import data as data_module


def write(path: Path, value: int, *, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def load(folder: Path, **settings: object) -> networks.Data:
    return networks.load_data(folder, preparation=Preparation(**settings))  # type: ignore[arg-type]


# --- folders


def test_sub_folders_are_classes_in_order_of_name(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / "dog" / f"{index}.png", 10)
        write(tmp_path / "cat" / f"{index}.png", 20)
    data = load(tmp_path)
    assert data.train_labels is not None
    # A quarter of 8 images is for testing; cat is 0, dog is 1.
    assert (len(data.train_images), len(data.test_images)) == (6, 2)
    for images, labels in (
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
    ):
        reds = (images[:, 0, 0, 0] * 255).round().int().tolist()
        assert labels.tolist() == [{20: 0, 10: 1}[red] for red in reds]
    assert data.train_images.shape[1:] == (3, 4, 6)


def test_the_split_is_by_seed_and_leaves_nothing_out(tmp_path: Path) -> None:
    for index in range(8):
        write(tmp_path / f"{index}_a.png", 10 * index)
    first, again, other = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    assert first.test_labels.tolist() == again.test_labels.tolist()
    assert first.test_labels.tolist() != other.test_labels.tolist()
    assert first.train_labels is not None
    assert sorted([*first.train_labels.tolist(), *first.test_labels.tolist()]) == list(range(8))


def test_train_and_test_folders_are_kept_apart_and_share_their_classes(tmp_path: Path) -> None:
    write(tmp_path / "train" / "b" / "0.png", 1)
    write(tmp_path / "train" / "c" / "0.png", 2)
    write(tmp_path / "test" / "a" / "0.png", 3)
    write(tmp_path / "test" / "c" / "0.png", 4)
    data = load(tmp_path)
    assert data.train_labels is not None
    assert data.train_labels.tolist() == [1, 2]
    assert data.test_labels.tolist() == [0, 2]


def test_a_table_gives_labels(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / f"{index}.png", index)
    rows = "".join(f"{index}.png,{10 + index}\n" for index in range(4))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    data = load(tmp_path)
    assert data.train_labels is not None
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [10, 11, 12, 13]
    (tmp_path / "labels.csv").write_text("file,label\n0.png,1\n")
    with pytest.raises(ConfigError, match=r"no row for 1\.png"):
        load(tmp_path)
    (tmp_path / "labels.csv").write_text("name,class\n0.png,1\n")
    with pytest.raises(ConfigError, match="columns file and label"):
        load(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\n" + rows.replace("12", "fish"))
    with pytest.raises(ConfigError, match=r"label of 2\.png is 'fish'"):
        load(tmp_path)


def test_images_without_labels_serve_calibration_alone(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / f"photo{index}.png", index)
    with pytest.raises(ConfigError, match="has no labels"):
        load(tmp_path)
    assert networks.load_images(tmp_path, preparation=Preparation()).shape == (4, 3, 4, 6)
    assert len(networks.load_images(tmp_path, preparation=Preparation(limit=3))) == 3


def test_images_are_resized_cropped_and_normalised(tmp_path: Path) -> None:
    write(tmp_path / "0_a.png", 255, size=(40, 20))
    write(tmp_path / "1_b.png", 255, size=(7, 7))
    data = load(tmp_path, size=7, mean=(0.5, 0.0, 0.0), std=(0.25, 1.0, 2.0))
    for image in (data.train_images[0], data.test_images[0]):
        assert image.shape == (3, 7, 7)
        # (1 - 0.5) / 0.25, (0 - 0) / 1, (1 - 0) / 2
        assert image[:, 3, 3].tolist() == [2.0, 0.0, 0.5]
    with pytest.raises(ConfigError, match="--image-size makes them one size"):
        load(tmp_path)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for index in range(2):
        write(tmp_path / f"{index}_a.png", 51, mode="L")
    data = load(tmp_path)
    assert data.train_images.shape == (1, 1, 4, 6)
    assert float(data.train_images[0, 0, 0, 0]) == pytest.approx(0.2)  # 51 / 255
    with pytest.raises(ConfigError, match="the images have 1 channels"):
        load(tmp_path, mean=(0.5, 0.5, 0.5))


def test_a_function_may_prepare_the_images(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def prepare(image):\n"
        "    return np.asarray(image, np.float32).transpose(2, 0, 1) - 128\n"
        "def flat(image):\n"
        "    return np.zeros(5)\n"
    )
    for index in range(2):
        write(tmp_path / "images" / f"{index}_a.png", 100)
    data = load(tmp_path / "images", function=f"{tmp_path}/mine.py:prepare")
    assert data.train_images[0, :, 0, 0].tolist() == [-28.0, -128.0, 127.0]
    with pytest.raises(ConfigError, match=r"returned shape \(5,\)"):
        load(tmp_path / "images", function=f"{tmp_path}/mine.py:flat")
    with pytest.raises(ConfigError, match="has no function 'nothing'"):
        load(tmp_path / "images", function=f"{tmp_path}/mine.py:nothing")
    with pytest.raises(ConfigError, match="leave --mean, --std and --image-size out"):
        Preparation(function="mine.py:prepare", size=4)


def test_folders_that_are_no_data_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no images"):
        load(tmp_path)
    (tmp_path / "0_broken.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"0_broken\.png cannot be read"):
        load(tmp_path)
    (tmp_path / "0_broken.png").unlink()
    write(tmp_path / "cat" / "0.png", 1)
    write(tmp_path / "loose.png", 1)
    with pytest.raises(ConfigError, match=r"loose\.png lies beside sub-folders"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_one_of_the_two_parts_alone_is_split(tmp_path: Path, name: str) -> None:
    for index in range(4):
        write(tmp_path / name / "cat" / f"{index}.png", 10)
        write(tmp_path / name / "dog" / f"{index}.png", 20)
    data = load(tmp_path)
    assert data.train_labels is not None
    # "train" is no class of its own: cat is 0, dog is 1.
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [0] * 4 + [1] * 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        for index in range(2):
            write(tmp_path / name / f"{index}.png", 10)
    data = load(tmp_path)
    assert data.train_labels is not None
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [0, 0, 1, 1]


def test_hidden_folders_and_files_are_passed_over(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "cat", "dog"):
        write(tmp_path / name / "0.png", 10)
    (tmp_path / "cat" / "._0.png").write_bytes(b"what some systems keep beside a file")
    data = load(tmp_path)
    assert data.train_labels is not None
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [0, 1]


def test_grey_images_among_coloured_ones_get_three_channels(tmp_path: Path) -> None:
    write(tmp_path / "0_a.png", 51, mode="L")
    write(tmp_path / "1_b.png", 51)
    write(tmp_path / "2_c.png", 51)
    assert load(tmp_path).train_images.shape[1] == 3
    assert networks.load_images(tmp_path, preparation=Preparation()).shape == (3, 3, 4, 6)


def test_images_of_sixteen_bits_are_refused_and_not_clipped(tmp_path: Path) -> None:
    for index in range(2):
        deep = Image.fromarray(np.full((4, 4), 30000, np.uint16))
        deep.save(tmp_path / f"{index}_a.png")
    with pytest.raises(ConfigError, match=r"0_a\.png is of mode I.*\(--preprocess"):
        load(tmp_path)


def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    for index in range(2):
        write(tmp_path / f"{index}.png", index)
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n0.png,3\n1.png,4\n", encoding="utf-8-sig")
    data = load(tmp_path)
    assert data.train_labels is not None
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [3, 4]
    table.write_text("file,label\n0.png,²\n1.png,4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected the class as a number"):
        load(tmp_path)


def test_a_preparation_that_fails_is_named_with_its_image(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def missing(image):\n"
        "    return {}['key']\n"
        "def undefined(image):\n"
        "    return np.full((3, 4, 4), np.nan)\n"
    )
    for index in range(2):
        write(tmp_path / "images" / f"{index}_a.png", 100)
    with pytest.raises(ConfigError, match=r"mine\.py:missing raised KeyError: 'key'"):
        load(tmp_path / "images", function=f"{tmp_path}/mine.py:missing")
    with pytest.raises(ConfigError, match=r"0_a\.png has values that are not finite"):
        load(tmp_path / "images", function=f"{tmp_path}/mine.py:undefined")


def test_statistics_are_finite() -> None:
    for settings in ({"mean": (float("inf"),)}, {"std": (float("nan"),)}, {"std": (0.0,)}):
        with pytest.raises(ConfigError, match="every value must be"):
            Preparation(**settings)  # type: ignore[arg-type]


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / f"{index}_a.png", index)
    told: list[tuple[int, int]] = []
    networks.load_data(tmp_path, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- functions

FACTORIES = """
import numpy as np
import torch

IMAGES = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 2, 2)
LABELS = torch.arange(6)

def pairs():
    return (IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])

def without_labels():
    return IMAGES[:4], (IMAGES[4:], LABELS[4:])

def datasets():
    listed = [(image, int(label)) for image, label in zip(IMAGES[:4], LABELS)]
    return listed, torch.utils.data.TensorDataset(IMAGES[4:], LABELS[4:])

def loaders():
    both = torch.utils.data.TensorDataset(IMAGES, LABELS)
    loader = torch.utils.data.DataLoader(both, batch_size=4)
    return loader, loader

def channels_last():
    return (np.zeros((4, 8, 8, 3)), np.zeros(4, int)), (np.zeros((4, 8, 8, 3)), np.zeros(4, int))

def one():
    return IMAGES

def odd():
    return (IMAGES, LABELS[:2]), (IMAGES, LABELS)

def of_other_integers():
    return (IMAGES.numpy(), np.arange(6, dtype=np.int32)), (IMAGES, LABELS.to(torch.uint8))

def soft():
    return (IMAGES, torch.rand(6, 4)), (IMAGES, LABELS)

def unlabelled():
    return (IMAGES, LABELS - 1), (IMAGES, LABELS)

def undefined():
    return (IMAGES / 0, LABELS), (IMAGES, LABELS)

def fails():
    return {}["key"]

class Missing(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        raise FileNotFoundError("cat.jpg")

def lost():
    return Missing(), Missing()

def vectors():
    return (np.zeros((6, 8)), np.zeros(6, int)), (np.zeros((6, 8)), np.zeros(6, int))

def nothing_in_it():
    return (IMAGES[:0], LABELS[:0]), (IMAGES, LABELS)

def sorted_by_class():
    images = torch.zeros(100, 1, 2, 2)
    return (images, torch.arange(100) // 50), (images, torch.arange(100) // 50)
"""


@pytest.fixture
def factories(tmp_path: Path) -> str:
    (tmp_path / "made.py").write_text(FACTORIES)
    return f"{tmp_path}/made.py"


@pytest.mark.parametrize("name", ["pairs", "datasets", "without_labels"])
def test_a_function_may_return_the_data(factories: str, name: str) -> None:
    data = networks.load_data(f"{factories}:{name}")
    assert data.train_images.shape == (4, 3, 2, 2)
    assert data.train_images[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert data.test_labels.tolist() == [4, 5]
    if name == "without_labels":
        assert data.train_labels is None
    else:
        assert data.train_labels is not None
        assert data.train_labels.tolist() == [0, 1, 2, 3]


def test_batches_of_a_loader_are_joined_and_limited(factories: str) -> None:
    assert len(networks.load_data(f"{factories}:loaders").train_images) == 6
    data = networks.load_data(f"{factories}:loaders", preparation=Preparation(limit=5))
    assert data.test_labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channels_last", r"look channels-last: images\.permute\(0, 3, 1, 2\)"),
        ("one", r"returned Tensor; expected \(training data, test data\)"),
        ("odd", "6 images and 2 labels"),
        ("nothing", "no function 'nothing'"),
        ("soft", r"labels are float32 of shape \(6, 4\); expected a class an image"),
        ("unlabelled", "there is the label -1; classes count from 0"),
        ("undefined", "training: images hold values that are not finite"),
        ("fails", "made.py:fails raised KeyError: 'key'"),
        ("lost", r"made\.py:lost, training raised FileNotFoundError: cat\.jpg"),
        ("vectors", r"images have shape \(6, 8\); expected \(n, channels, h, w\)"),
        ("nothing_in_it", "training has no images"),
    ],
)
def test_functions_that_return_no_data_say_why(factories: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        networks.load_data(f"{factories}:{name}")


def test_classes_are_int64_whatever_integers_they_come_in(factories: str) -> None:
    data = networks.load_data(f"{factories}:of_other_integers")
    assert data.train_labels is not None
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64


def test_only_what_the_limit_takes_has_to_fit_into_memory(
    factories: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An image is 3 x 2 x 2 numbers of 4 bytes, 48 bytes: two of them fit.
    monkeypatch.setattr(data_module.os, "sysconf", lambda _: 10)
    monkeypatch.setattr(data_module, "MEMORY_SHARE", 1.0)
    with pytest.raises(ConfigError, match=r"take fewer \(--limit 2\)"):
        networks.load_data(f"{factories}:datasets")
    few = networks.load_data(f"{factories}:datasets", preparation=Preparation(limit=2))
    assert len(few.train_images) == 2


def test_a_limit_draws_from_all_classes(factories: str) -> None:
    data = networks.load_data(f"{factories}:sorted_by_class", preparation=Preparation(limit=20))
    assert data.train_labels is not None
    assert len(data.train_images) == len(data.train_labels) == len(data.test_labels) == 20
    assert {*data.train_labels.tolist()} == {0, 1}


def test_settings_that_a_source_cannot_heed_are_refused(factories: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    for source, settings, named in (
        (f"{factories}:pairs", {"mean": (0.5,)}, "--mean: what .* makes is taken as it is"),
        (f"{factories}:pairs", {"size": 4, "labels": "l.csv"}, "--image-size, --labels: what"),
        (f"{tmp_path}/images.npz", {"size": 4}, "--image-size: the .npz file"),
        (f"{tmp_path}/images.npz", {"function": "a.py:f"}, "--preprocess: the .npz file"),
    ):
        for load_it in (networks.load_data, networks.load_images):
            with pytest.raises(ConfigError, match=named):
                load_it(source, preparation=Preparation(**settings))  # type: ignore[arg-type]


def test_an_npz_is_limited_too(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    labels = np.arange(40) // 20
    images = np.zeros((40, 8, 8, 3), np.uint8) + labels[:, None, None, None].astype(np.uint8)
    parts = {"train_images": images, "train_labels": labels}
    parts |= {"test_images": images, "test_labels": labels, "mean": 0.0, "std": 1 / 255}
    np.savez(path, **parts)
    data = networks.load_data(path, preparation=Preparation(limit=10))
    assert data.train_labels is not None
    assert len(data.test_labels) == 10
    # Each image holds its label.
    assert data.train_images[:, 0, 0, 0].round().tolist() == data.train_labels.tolist()
    assert {*data.train_labels.tolist()} == {0, 1}
    assert len(networks.load_images(path, preparation=Preparation(limit=10))) == 10


# --- whether they look like what the network was trained on


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, torch.Tensor]:
    """A network whose batch norm has seen normalised images, and such images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    images = torch.randn(256, 3, 8, 8)
    for _ in range(30):
        network.train()(images)
    return network.eval(), images


def test_images_as_in_training_pass(trained: tuple[nn.Module, torch.Tensor]) -> None:
    network, images = trained
    networks.check_images(network, images)
    networks.check_images(network, 1.5 * images + 0.2)  # another set of photographs
    assert not network.training


@pytest.mark.parametrize("raw", ["bytes", "shares"])
def test_images_that_were_not_normalised_are_refused(
    trained: tuple[nn.Module, torch.Tensor], raw: str
) -> None:
    network, images = trained
    shares = 0.5 + 0.2 * images
    given = 255 * shares if raw == "bytes" else shares
    with pytest.raises(ConfigError, match=r"first batch norm .* give the training's --mean"):
        networks.check_images(network, given)


def test_an_untrained_network_is_not_judged_by_its_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    networks.check_images(network, 255 * torch.rand(8, 3, 8, 8))


def test_few_and_constant_images_are_refused(trained: tuple[nn.Module, torch.Tensor]) -> None:
    network, images = trained
    with pytest.raises(ConfigError, match="3 images are too few to calibrate on; give 8"):
        networks.check_images(network, images[:3], least=8)
    black = images[:8].clone()
    black[5] = 0
    with pytest.raises(ConfigError, match=r"1 of 8 images are constant .* number 5, all 0"):
        networks.check_images(network, black)


def test_a_single_number_a_channel_is_not_judged_by_its_spread() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    network.train()(torch.randn(8, 3, 4, 4))
    networks.check_images(network.eval(), torch.randn(1, 3, 4, 4))


def test_a_network_that_asserts_its_image_size_is_an_error_of_the_input() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] == 32, "images of 32"
            return x.mean((2, 3))

    images = torch.rand(4, 3, 8, 8)
    data = networks.Data(images, None, images, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"does not take images of .*images of 32"):
        networks.check_fits(Picky(), data)


def test_wrong_channels_are_named(trained: tuple[nn.Module, torch.Tensor]) -> None:
    network, images = trained
    for given, hint in (
        (images[:, :1], "they have 1 channels, its first convolution 3"),
        (images.permute(0, 2, 3, 1), "look channels-last"),
    ):
        data = networks.Data(given, None, given, torch.zeros(len(given), dtype=torch.int64))
        with pytest.raises(ConfigError, match=hint):
            networks.check_fits(network, data)


def test_the_fingerprint_is_of_values_and_labels() -> None:
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    data = networks.Data(images, None, images, labels)
    same = networks.Data(images.clone(), None, images.clone(), labels.clone())
    other = networks.Data(images, labels, images, labels)
    assert networks.data_fingerprint(data) == networks.data_fingerprint(same)
    assert networks.data_fingerprint(data) != networks.data_fingerprint(other)


def test_an_npz_without_labels_serves_calibration(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=np.full((4, 8, 8, 3), 255, np.uint8))
    images = networks.load_images(path, preparation=Preparation(mean=(0.5,), std=(0.25,)))
    assert images.shape == (4, 3, 8, 8)
    assert float(images[0, 0, 0, 0]) == 2.0  # (1 - 0.5) / 0.25
