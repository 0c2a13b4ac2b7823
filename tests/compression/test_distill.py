"""Distillation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.compression import training
from harness.compression.distill import (
    FIXED_FINE_TUNING,
    Step,
    augment,
    distill,
    distillation_loss,
)
from harness.compression.losses import attention_loss
from harness.errors import BuildError
from tests.compression.tiny import Inverted, Residual, seeded


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


class Dropping(nn.Module):
    """A student whose training draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Residual()
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.body(x)))  # type: ignore[no-any-return]


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


IMAGES = torch.randn(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (70,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stop", [1, 4, 6, 11, 12])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, stop: int, held_out: float
) -> None:
    teacher, student = seeded(Residual), seeded(Dropping)
    settings: dict[str, Any] = {"epochs": 4, "batch": 16, "lr": 0.05, "held_out": held_out}
    whole = distill(student, teacher, IMAGES, LABELS, **settings)
    assert not same(whole, student)

    def interrupt(done: int, _of: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    path = tmp_path / "training"
    settings |= {"checkpoint": path, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, IMAGES, LABELS, progress=interrupt, **settings)
    torch.rand(7)  # what other code drew meanwhile
    taken: list[int] = []
    resumed = distill(
        student, teacher, IMAGES, LABELS, progress=lambda done, _of: taken.append(done), **settings
    )
    assert same(resumed, whole)
    # It went on after the last step that was saved: every third, and the last of each epoch.
    per_epoch = 4 if held_out == 0 else 3  # 70 images, or 49, in batches of 16
    saved = max(s for s in range(stop + 1) if s % 3 == 0 or s % per_epoch == 0)
    assert taken == list(range(saved + 1, 4 * per_epoch + 1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["training"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    teacher = seeded(Residual)
    settings: dict[str, Any] = {"epochs": 2, "batch": 16, "checkpoint": tmp_path / "training"}
    first = distill(teacher, teacher, IMAGES, LABELS, held_out=0.3, **settings)
    taken: list[int] = []
    again = distill(
        *(teacher, teacher, IMAGES, LABELS),
        held_out=0.3,
        progress=lambda done, _of: taken.append(done),
        **settings,
    )
    assert same(first, again)
    assert taken == []


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    teacher, path = seeded(Residual), tmp_path / "training"
    settings: dict[str, Any] = {"epochs": 1, "batch": 16, "checkpoint": path}
    distill(teacher, teacher, IMAGES, LABELS, **settings)
    others: list[tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]] = [
        (IMAGES, LABELS, {"lr": 0.5}),
        (IMAGES.flip(0), LABELS, {}),
        (IMAGES, None, {}),
        (IMAGES, LABELS, {"round_weights": {"inner": torch.round}}),
    ]
    for images, labels, changed in others:
        with pytest.raises(BuildError, match="is of another training"):
            distill(teacher, teacher, images, labels, **settings, **changed)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BuildError, match=r"cannot be read.*delete it"):
        distill(teacher, teacher, IMAGES, LABELS, **settings)


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    teacher, student = seeded(Residual), seeded(Dropping)
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    distill(student, teacher, IMAGES, epochs=1, batch=16)
    assert torch.equal(torch.rand(3), wanted)


def test_training_stops_early_and_returns_the_best_by_the_images_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "_bfloat16_is_fast", lambda: False)  # the same everywhere
    network = seeded(Residual)
    steps: list[Step] = []
    trained = distill(
        *(network, network, IMAGES, LABELS),
        epochs=40,
        batch=16,
        lr=0.3,
        alpha=1.0,  # labels alone, and these are random: what is learnt does not carry over
        schedule="constant",
        flip=False,
        shift=0,
        held_out=0.3,
        patience=3,
        report=steps.append,
    )
    losses = [step.held_out for step in steps if step.done % 3 == 0]  # 49 images: 3 steps an epoch
    values = [loss for loss in losses if loss is not None]
    best = min(range(len(values)), key=values.__getitem__)
    assert len(values) == len(losses) == best + 1 + 3 < 40
    assert steps[-1].left_s == 0
    rows = torch.randperm(70, generator=torch.Generator().manual_seed(0))[:21]
    with torch.no_grad():
        loss = float(functional.cross_entropy(trained(IMAGES[rows]), LABELS[rows]))
    assert loss == pytest.approx(values[best], rel=1e-3)
    assert loss < 0.99 * values[-1]


def test_progress_tells_the_time_left_and_the_loss() -> None:
    teacher = seeded(Residual)
    seconds = iter((100.0, 102.0, 106.0, 107.0, 116.0))
    steps: list[Step] = []
    distill(
        *(teacher, teacher, IMAGES),
        epochs=1,
        batch=16,
        report=steps.append,
        clock=seconds.__next__,
    )
    # After 2 s one of four steps is done: 6 s to go; after 6 s two: 6 s; after 7 s three: 7 / 3.
    assert [step.left_s for step in steps] == pytest.approx([6.0, 6.0, 7 / 3, 0.0])
    assert [(step.done, step.of, step.held_out) for step in steps] == [
        (done, 4, None) for done in (1, 2, 3, 4)
    ]
    assert all(math.isfinite(step.loss) for step in steps)


def test_the_fixed_fine_tuning_is_the_one_that_the_peers_figures_were_taken_with() -> None:
    assert FIXED_FINE_TUNING == {
        "epochs": 2,
        "batch": 128,
        "lr": 0.01,
        "schedule": "cosine",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "temperature": 4.0,
        "alpha": 0.1,
        "features": 0.0,
        "flip": True,
        "shift": 0,
    }


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_steps_are_those_of_nesterov_sgd_by_hand(schedule: str) -> None:
    torch.manual_seed(3)
    student, teacher = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    images = torch.randn(2, 4)
    trained = distill(
        *(student, teacher, images),
        epochs=2,
        batch=2,
        lr=0.1,
        schedule=schedule,  # type: ignore[arg-type]
        flip=False,
        shift=0,
    )
    # Sutskever's form as in torch: g = grad + wd w; v = 0.9 v + g; w -= lr (g + 0.9 v).
    weight, velocity = student.weight.detach().clone(), torch.zeros(3, 4)
    shares = {"cosine": (1.0, 0.5), "linear": (1.0, 0.5), "constant": (1.0, 1.0)}[schedule]
    for share in shares:
        weight.requires_grad_(True)
        loss = distillation_loss(
            images @ weight.T, teacher(images).detach(), None, temperature=4.0, alpha=0.1
        )
        (gradient,) = torch.autograd.grad(loss, weight)
        gradient = gradient + 5e-4 * weight.detach()
        velocity = (
            gradient if share == shares[0] and not velocity.any() else 0.9 * velocity + gradient
        )
        weight = weight.detach() - 0.1 * share * (gradient + 0.9 * velocity)
    torch.testing.assert_close(
        trained.get_parameter("weight").detach(), weight, rtol=1e-3, atol=1e-4
    )


def test_matching_features_brings_a_narrower_students_attention_nearer() -> None:
    class Narrow(Inverted):
        def __init__(self) -> None:
            super().__init__()
            self.expand = nn.Conv2d(4, 6, 1)
            self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.project = nn.Conv2d(6, 4, 1)

    teacher, student = seeded(Inverted), seeded(Narrow)

    def distance(network: nn.Module) -> float:
        maps: list[torch.Tensor] = []
        for each in (network, teacher):
            hook = each.get_submodule("grouped").register_forward_hook(
                lambda _module, _inputs, output: maps.append(output)
            )
            each(IMAGES)
            hook.remove()
        return float(attention_loss({"x": maps[0]}, {"x": maps[1]}).detach())

    settings: dict[str, Any] = {"epochs": 6, "batch": 16, "lr": 0.02, "flip": False, "shift": 0}
    plain = distill(student, teacher, IMAGES, **settings)
    matched = distill(student, teacher, IMAGES, features=10.0, **settings)
    assert distance(matched) < 0.8 * distance(plain)
    assert not matched.get_submodule("grouped")._forward_hooks


def test_a_student_trains_through_rounded_weights_and_inputs() -> None:
    def coarse(weight: torch.Tensor) -> torch.Tensor:
        return (weight / 0.25).round() * 0.25

    teacher, student = seeded(Residual), seeded(Residual)
    rounded = ["inner", "outer", "wide"]

    def loss(network: nn.Module) -> float:
        weights = {
            f"{name}.weight": coarse(network.get_parameter(f"{name}.weight")) for name in rounded
        }
        hook = network.get_submodule("wide").register_forward_pre_hook(
            lambda _module, inputs: (coarse(inputs[0]),)
        )
        with torch.no_grad():
            output = torch.func.functional_call(network, weights, (IMAGES,))
            hook.remove()
            return float(functional.mse_loss(output, teacher(IMAGES)))

    trained = distill(
        *(student, teacher, IMAGES),
        epochs=15,
        batch=16,
        lr=0.02,
        flip=False,
        shift=0,
        round_weights=dict.fromkeys(rounded, coarse),
        round_inputs={"wide": coarse},
    )
    assert loss(trained) < 0.7 * loss(student)
    weight = trained.get_parameter("inner.weight")
    assert not torch.equal(coarse(weight), weight)  # what comes back is not rounded yet
    assert not trained.get_submodule("wide")._forward_pre_hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs=-1"),
        ({"batch": 0}, "batch=0"),
        ({"schedule": "stairs"}, "schedule='stairs'.*cosine"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"patience": 2}, "patience=2.*above 0 where there is a patience"),
        ({"held_out": 0.001}, "leaves none on one side"),
        ({"features": -1.0}, "features=-1.0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"images": IMAGES.flatten(1)}, "are no images"),
        ({"round_weights": {"nowhere": torch.round}}, "cannot round nowhere"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    network = seeded(Residual)
    with pytest.raises(BuildError, match=message):
        distill(network, network, **{"images": IMAGES, "epochs": 1, "batch": 16, **settings})
