"""Train the demo's network on Fashion-MNIST and write its weights and images.

    python data/demo/train.py --dataset /usr/share/datasets/fashion-mnist
    python data/demo/train.py --dataset /usr/share/datasets/fashion-mnist \\
        --resume --epochs 3 --peak 0.05

The data set comes with Debian's package ``dataset-fashion-mnist``. The committed weights are those
that these two commands made, in half an hour on two cores. Prints the top-1 on the 10,000 test
images after every epoch.
"""

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from network import factory
from torch.nn import functional

HERE = Path(__file__).parent
# Mean and standard deviation of the 60,000 training images scaled to 0..1.
MEAN, STD = 0.2860, 0.3530
COMMITTED_TRAIN_IMAGES = 8000


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of one IDX file (big-endian header: magic, one size a dimension)."""
    with gzip.open(path, "rb") as file:
        raw = file.read()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def normalise(images: np.ndarray) -> torch.Tensor:
    """Images ``(n, 28, 28)`` of 0..255 as the network wants them: float32 ``(n, 1, 28, 28)``."""
    return torch.from_numpy((images[:, None].astype(np.float32) / 255 - MEAN) / STD)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A batch flipped at random and shifted by up to two pixels."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    padded = functional.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    return padded[:, :, dy : dy + 28, dx : dx + 28]


def top1(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images whose largest logit is the label."""
    network.eval()
    with torch.inference_mode():
        hits = [
            (network(x).argmax(1) == y).sum().item()
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
    return sum(hits) / len(labels)


def main() -> None:
    """Train, report, write ``weights.pt`` and ``images.npz`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=0.2, help="the highest learning rate")
    parser.add_argument("--resume", action="store_true", help="start from weights.pt")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train_raw = read_idx(arguments.dataset / "train-images-idx3-ubyte.gz")
    train_y = read_idx(arguments.dataset / "train-labels-idx1-ubyte.gz")
    test_raw = read_idx(arguments.dataset / "t10k-images-idx3-ubyte.gz")
    test_y = read_idx(arguments.dataset / "t10k-labels-idx1-ubyte.gz")

    chosen = np.sort(np.random.default_rng(0).permutation(len(train_raw))[:COMMITTED_TRAIN_IMAGES])
    np.savez_compressed(
        HERE / "images.npz",
        train_images=train_raw[chosen][:, None],
        train_labels=train_y[chosen],
        test_images=test_raw[:, None],
        test_labels=test_y,
        mean=np.float32([MEAN]),
        std=np.float32([STD]),
    )

    x, y = normalise(train_raw), torch.from_numpy(train_y.astype(np.int64))
    test_x, test_labels = normalise(test_raw), torch.from_numpy(test_y.astype(np.int64))
    network = factory()
    if arguments.resume:
        network.load_state_dict(torch.load(HERE / "weights.pt", weights_only=True))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = arguments.epochs * (len(x) // arguments.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.peak, steps, pct_start=0.2)
    for epoch in range(arguments.epochs):
        start = time.monotonic()
        network.train()
        order = torch.randperm(len(x), generator=generator)
        for batch in order.split(arguments.batch)[: len(x) // arguments.batch]:
            images = augment(x[batch], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = functional.cross_entropy(network(images), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        score = top1(network, test_x, test_labels)
        print(f"epoch {epoch}: top-1 {score:.4f}, {time.monotonic() - start:.0f} s", flush=True)
        state = {
            name: value.half() if value.is_floating_point() and value.dim() > 1 else value
            for name, value in network.state_dict().items()
        }
        torch.save(state, HERE / "weights.pt")


if __name__ == "__main__":
    main()
