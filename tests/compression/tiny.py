"""Small networks that stand for the structures met in real ones."""

import torch
from torch import nn
from torch.nn import functional

from harness.compression.batchnorm import reestimate
from harness.records import BoardFacts


def facts(int8: str = "vnni") -> BoardFacts:
    return BoardFacts(
        board="local",
        hostname="here",
        machine="x86_64",
        cpu_model="any",
        cores=2,
        memory_bytes=2**33,
        os="linux",
        python="3.11",
        runtime="onnxruntime",
        runtime_version="1.31.0",
        providers=("CPUExecutionProvider",),
        int8=int8,  # type: ignore[arg-type]
        agent_hash="0",
    )


class Residual(nn.Module):
    """A stem, a block with an identity shortcut, a block with a projection, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.inner_bn = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = functional.relu(self.outer(functional.relu(self.inner_bn(self.inner(x)))) + x)
        x = functional.relu(self.wide(x) + self.shortcut(x))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Padded(nn.Module):
    """ResNet-20's shortcut: the stream is widened with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        y = self.outer(functional.relu(self.inner(x)))
        x = functional.relu(y + functional.pad(x, (0, 0, 0, 0, 2, 2)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """MobileNet's block: expand, depthwise, project; then a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(4, 6, 1, groups=2)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        x = x + self.project(functional.relu(self.depthwise(functional.relu(self.expand(x)))))
        return self.classifier(functional.relu(self.grouped(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Mobile(nn.Module):
    """MobileNetV2 in small: blocks of three layers, some with a sum around them."""

    BLOCKS = ((32, 16, 1, 2), (16, 24, 2, 4), (24, 24, 1, 4), (24, 32, 2, 4), (32, 32, 1, 4))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, inputs * factor, 1),
                nn.ReLU6(),
                nn.Conv2d(inputs * factor, inputs * factor, 3, stride, 1, groups=inputs * factor),
                nn.ReLU6(),
                nn.Conv2d(inputs * factor, outputs, 1),
            )
            for inputs, outputs, stride, factor in self.BLOCKS
        )
        self.head = nn.Conv2d(32, 64, 1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.stem(x))
        for block, (inputs, outputs, stride, _) in zip(self.blocks, self.BLOCKS, strict=True):
            x = x + block(x) if stride == 1 and inputs == outputs else block(x)
        return self.classifier(functional.relu6(self.head(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Concatenated(nn.Module):
    """Two branches side by side, and a flattened feature map before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 6, 3, padding=1)
        self.join = nn.Conv2d(10, 5, 3, padding=1)
        self.classifier = nn.Linear(5 * 4 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = functional.max_pool2d(functional.relu(self.join(functional.relu(x))), 2)
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """ResNeXt's block, and a grouped convolution that reads another's channels in other blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.narrow = nn.Conv2d(6, 16, 1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(24)
        self.regrouped = nn.Conv2d(24, 12, 3, padding=1, groups=2)
        self.widen = nn.Conv2d(12, 6, 1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        y = functional.relu(self.norm(self.grouped(functional.relu(self.narrow(x)))))
        x = x + self.widen(functional.softplus(self.regrouped(y)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Excited(nn.Module):
    """MobileNet's block with squeeze-and-excite, and activations that are not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 8, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 4, 1)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.stem(x))
        y = functional.softplus(self.depthwise(functional.silu(self.expand_bn(self.expand(x)))))
        gate = self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1))))
        x = x + self.project(y * torch.sigmoid(gate))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """DenseNet's block: every layer reads all before it, at offsets, behind a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.first_bn = nn.BatchNorm2d(6)
        self.first = nn.Conv2d(6, 4, 3, padding=1)
        self.second_bn = nn.BatchNorm2d(10)
        self.second = nn.Conv2d(10, 4, 3, padding=1)
        self.last_bn = nn.BatchNorm2d(14)
        self.transition = nn.Conv2d(14, 8, 1)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(functional.relu(self.first_bn(x)))], 1)
        x = torch.cat([x, self.second(functional.relu(self.second_bn(x)))], 1)
        x = self.transition(functional.relu(self.last_bn(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Shuffled(nn.Module):
    """ShuffleNet's interleaving of two halves, which runs with any even number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.shuffled = nn.Conv2d(6, 12, 3, padding=1)
        self.reader = nn.Conv2d(12, 6, 1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.shuffled(functional.relu(self.stem(x))))
        n, channels, height, width = x.shape
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        x = functional.relu(self.reader(x))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Normalised(nn.Module):
    """A layer norm over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 12)
        self.norm = nn.LayerNorm(12)
        self.classifier = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.inner(x.flatten(1))))  # type: ignore[no-any-return]


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.shared(functional.relu(self.stem(x))))
        return self.classifier(functional.relu(self.shared(x)).mean((2, 3)))  # type: ignore[no-any-return]


def seeded(kind: type[nn.Module]) -> nn.Module:
    """A network with reproducible weights and used batch-norm statistics, in evaluation mode."""
    torch.manual_seed(0)
    network = kind()
    network.train()(torch.randn(32, 1, 8, 8))
    return network.eval()


def confident(kind: type[nn.Module], images: torch.Tensor) -> nn.Module:
    """``seeded``, but sure of its classes, with the batch-norm statistics of ``images``."""
    network = seeded(kind)
    with torch.no_grad():
        network.get_parameter("classifier.weight").mul_(10)
    reestimate(network, images)
    return network


class Bottleneck(nn.Module):
    """ResNet-50's blocks in small: three layers beside a shortcut, whose sum goes on.

    The second block adds hardly anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 8, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 16, 1, bias=False),
                nn.BatchNorm2d(16),
            )
            for _ in range(3)
        )
        self.classifier = nn.Linear(16, 3)
        with torch.no_grad():
            self.get_parameter("blocks.1.7.weight").mul_(1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = functional.relu(block(x) + x)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]
