"""A smaller network that the original teaches."""

from pathlib import Path

import pytest
import torch
from torch import nn

from harness.compression import student as module
from harness.errors import BuildError, ConfigError
from harness.networks import Data, onnx_logits
from tests.compression.tiny import Residual, confident

IMAGES = torch.randn(640, 1, 8, 8, generator=torch.Generator().manual_seed(1))
DATA = Data(IMAGES, None, IMAGES[:32], torch.zeros(32, dtype=torch.int64))


class Small(nn.Module):
    def __init__(self, channels: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.inner(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def small() -> nn.Module:
    torch.manual_seed(7)
    return Small().eval()


def test_a_student_comes_nearer_to_its_teacher_and_is_found_again(tmp_path: Path) -> None:
    network = confident(Residual, IMAGES)
    steps: list[int] = []

    def progress(done: int, _total: int, /, **_left: object) -> None:
        steps.append(done)

    found = module.teach(
        small(), network, DATA, stem=tmp_path / "student", epochs=6, seed=0, progress=progress
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.onnx", "student.pt"]
    # 1 x 8 x 9 + 8 and 2 x 8 and 8 x 3 + 3; 64 places of 8 x 9 and 24.
    assert (found.parameters, found.macs) == (123, 64 * 72 + 24)
    assert found.taken in ("trained", "reestimated")
    assert steps[0] == 1 and steps == sorted(steps)
    again = module.taught(small(), found)
    with torch.no_grad():
        wanted, before, after = (each(IMAGES).log_softmax(1) for each in (network, small(), again))
    distances = [float((wanted.exp() * (wanted - x)).sum(1).mean()) for x in (before, after)]
    assert distances[1] < 0.5 * distances[0]
    onnx = torch.from_numpy(onnx_logits(found.onnx, IMAGES)).log_softmax(1)
    torch.testing.assert_close(onnx, after, rtol=1e-3, atol=1e-4)
    assert found.summary().endswith("0.0 M MACs")


def test_a_student_that_was_interrupted_learns_on(tmp_path: Path) -> None:
    network = confident(Residual, IMAGES)

    def stop(done: int, total: int, /, **_left: object) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    def taught(name: str) -> dict[str, torch.Tensor]:
        found = module.teach(small(), network, DATA, stem=tmp_path / name, epochs=4, seed=0)
        return module.taught(small(), found).state_dict()

    whole = taught("whole")
    with pytest.raises(KeyboardInterrupt):
        module.teach(
            small(), network, DATA, stem=tmp_path / "half", epochs=4, seed=0, progress=stop
        )
    assert [path.name for path in tmp_path.glob("half*")] == ["half.training.pt"]
    resumed = taught("half")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not list(tmp_path.glob("*.training.pt"))


def test_students_that_do_not_fit_are_refused_and_larger_ones_are_warned_of() -> None:
    network = confident(Residual, IMAGES)
    assert module.check(Small(), network, DATA) == ""
    larger = module.check(Small(channels=2000), network, DATA)  # 64 x 9 x 2000 + 6000
    assert "the student takes 1158000 multiply-accumulates" in larger
    with pytest.raises(ConfigError, match=r"outputs of shape \[\(2, 4\)\].*\[\(2, 3\)\]"):
        module.check(Small(classes=4), network, DATA)
    with pytest.raises(ConfigError, match=r"does not take images of shape \(2, 1, 8, 8\)"):
        module.check(nn.Conv2d(3, 3, 3), network, DATA)
    with pytest.raises(BuildError, match="0 epochs"):
        module.teach(Small(), network, DATA, stem=Path("none"), epochs=0, seed=0)
