"""A smaller network that takes the place of the original, taught by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from harness import networks
from harness.compression.recovery import Progress, tuned
from harness.errors import BuildError, ConfigError

__all__ = ["Student", "check", "taught", "teach"]

# Higher than for what was trained already: most students come with random weights. Where one does
# not, and this does it harm, its own weights are kept (``recovery.tuned``).
LEARNING_RATE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A taught student's files and size; ``taken`` as ``recovery.Tuned`` has it."""

    onnx: Path
    weights: Path
    size_bytes: int
    parameters: int
    macs: int
    taken: str

    def summary(self) -> str:
        """One line for whoever watches."""
        kept = " (as it came: teaching it did harm)" if self.taken == "untrained" else ""
        return f"{self.size_bytes / 1e6:.3f} MB, {self.macs / 1e6:.1f} M MACs{kept}"


def check(student: nn.Module, network: nn.Module, data: networks.Data) -> str:
    """A warning if the student is larger than the network, else nothing.

    ConfigError where it does not take the images or gives other outputs than the network.
    """
    images = data.test_images[:2]
    try:
        shapes = networks.output_shapes(student, images)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the student does not take images of shape {tuple(images.shape)}: {error}"
        ) from error
    wanted = networks.output_shapes(network, images)
    if shapes != wanted:
        raise ConfigError(
            f"the student turns {len(images)} images into outputs of shape {shapes}, the network "
            f"into {wanted}; give --student a network with the same outputs"
        )
    counts = [networks.count_macs(each, images[:1]) for each in (student, network)]
    if counts[0] < counts[1]:
        return ""
    return (
        f"the student takes {counts[0]} multiply-accumulates and the network {counts[1]}: it will "
        "hardly be faster; give --student a smaller one"
    )


def teach(
    student: nn.Module,
    network: nn.Module,
    data: networks.Data,
    *,
    stem: Path,
    epochs: int,
    seed: int,
    progress: Progress | None = None,
) -> Student:
    """The student distilled from ``network``, written as ``stem``.onnx and .pt (its weights).

    Interrupted, it goes on in the middle of an epoch. BuildError if the loss diverges.
    """
    if not epochs:
        raise BuildError("a student learns nothing in 0 epochs; give --epochs, 30 for example")
    checkpoint = stem.with_suffix(".training.pt")
    found = tuned(
        student,
        network,
        data.train_images,
        data.train_labels,
        epochs=epochs,
        lr=LEARNING_RATE,
        seed=seed,
        raw=not data.classes,
        checkpoint=checkpoint,
        progress=progress,
    )
    onnx, weights = stem.with_suffix(".onnx"), stem.with_suffix(".pt")
    draft = stem.with_suffix(".draft")
    torch.save(found.network.state_dict(), draft)
    draft.replace(weights)
    networks.export_onnx(found.network, data.example, draft)
    draft.replace(onnx)
    checkpoint.unlink(missing_ok=True)
    return Student(
        onnx=onnx,
        weights=weights,
        size_bytes=onnx.stat().st_size,
        parameters=networks.count_parameters(found.network),
        macs=networks.count_macs(found.network, data.example),
        taken=found.taken,
    )


def taught(student: nn.Module, found: Student) -> nn.Module:
    """``student`` with the weights that it was taught, in evaluation mode."""
    student.load_state_dict(torch.load(found.weights, map_location="cpu", weights_only=True))
    return student.eval()
