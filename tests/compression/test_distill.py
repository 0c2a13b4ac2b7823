"""Distillation."""

import math

import pytest
import torch
from torch import nn

from harness.compression.distill import augment, distill, distillation_loss
from harness.errors import BuildError
from tests.compression.tiny import Residual, seeded


def test_the_loss_is_hintons() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At T = 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2:
    # KL = 3/4 log(3/2) + 1/4 log(1/2); CE = log 2.
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = distillation_loss(student, teacher, None, temperature=2.0, alpha=0.1)
    assert float(loss) == pytest.approx(4 * kl, rel=1e-5)
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, alpha=0.1)
    assert float(loss) == pytest.approx(0.1 * math.log(2) + 0.9 * 4 * kl, rel=1e-5)


def test_a_student_that_agrees_loses_nothing_without_labels() -> None:
    logits = torch.randn(5, 3)
    loss = distillation_loss(logits, logits.clone(), None, temperature=4.0, alpha=0.1)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_augmented_images_are_flips_and_shifts() -> None:
    images = torch.arange(9.0).view(1, 1, 3, 3).expand(64, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(images, flip=False, shift=0, generator=generator), images)
    flipped = augment(images, flip=True, shift=0, generator=generator)
    rows = {tuple(image.flatten()[:3].tolist()) for image in flipped}
    assert rows == {(0.0, 1.0, 2.0), (2.0, 1.0, 0.0)}
    for _ in range(10):
        shifted = augment(images, flip=False, shift=1, generator=generator)
        assert shifted.shape == images.shape
        assert float(shifted[0, 0, 1, 1]) in range(9)
        # The border is repeated: no value comes from outside.
        assert set(shifted.flatten().tolist()) <= set(range(9))


def agreement(a: nn.Module, b: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((a(images).argmax(1) == b(images).argmax(1)).float().mean())


def test_a_student_learns_its_teacher_without_labels() -> None:
    images = torch.randn(256, 1, 8, 8)
    teacher = seeded(Residual)
    with torch.no_grad():
        teacher.get_parameter("classifier.weight").mul_(20)
    torch.manual_seed(5)
    student = Residual().eval()
    steps: list[tuple[int, int]] = []
    trained = distill(
        student,
        teacher,
        images,
        epochs=12,
        batch=32,
        lr=0.05,
        flip=False,
        shift=0,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert not trained.training
    assert agreement(trained, teacher, images) > max(0.8, agreement(student, teacher, images))
    assert steps == [(step, 96) for step in range(1, 97)]


def test_equal_seeds_give_equal_weights_and_the_student_is_left_alone() -> None:
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 3, (64,))
    teacher = seeded(Residual)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    runs = [
        distill(teacher, teacher, images, labels, epochs=2, batch=16, seed=seed).state_dict()
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in before)
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in before)
    assert all(torch.equal(teacher.state_dict()[name], before[name]) for name in before)


def test_a_teacher_that_changed_is_asked_again() -> None:
    images = torch.randn(32, 1, 8, 8)
    teacher, student = seeded(Residual), seeded(Residual)
    options = {"epochs": 1, "batch": 16}
    first = distill(student, teacher, images, **options).state_dict()  # type: ignore[arg-type]
    with torch.no_grad():
        teacher.get_parameter("classifier.bias").add_(3.0)
    second = distill(student, teacher, images, **options).state_dict()  # type: ignore[arg-type]
    assert not torch.equal(first["classifier.bias"], second["classifier.bias"])


def test_a_loss_that_is_no_number_is_a_build_error() -> None:
    images = torch.randn(32, 1, 8, 8)
    images[0] = math.nan
    network = seeded(Residual)
    with pytest.raises(BuildError, match="diverged at step 1 of 1"):
        distill(network, network, images, epochs=1, batch=32)
