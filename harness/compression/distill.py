"""Fine-tuning of a compressed network by distillation from the original."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from harness.compression.checkpoint import digest, read, write
from harness.compression.losses import distillation_loss
from harness.compression.training import Plan, Rounding, Run, Schedule, augment
from harness.errors import BuildError
from harness.networks import fingerprint

__all__ = [
    "FIXED_FINE_TUNING",
    "FineTuning",
    "Step",
    "augment",
    "distill",
    "distillation_loss",
]


class FineTuning(TypedDict):
    """Settings of ``distill`` that have been agreed on, to be handed on as keywords."""

    epochs: int
    batch: int
    lr: float
    schedule: Schedule
    momentum: float
    weight_decay: float
    temperature: float
    alpha: float
    features: float
    flip: bool
    shift: int


# The fixed fine-tuning that other libraries' figures for ResNet-56 were taken with: 2 epochs over
# the training images, batch 128, SGD with Nesterov momentum 0.9, weight decay 5e-4, learning rate
# 0.01 with a per-step cosine to 0, horizontal flips only, 0.1 CE + 0.9 T^2 KL with T = 4.
FIXED_FINE_TUNING: FineTuning = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far a training run is.

    ``left_s`` is by the pace of this run so far; ``held_out`` the latest loss on the images that
    were held out, None before the first epoch's end or where none were.
    """

    done: int
    of: int
    left_s: float
    loss: float
    held_out: float | None


def distill(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    epochs: int,
    batch: int = 128,
    lr: float = 0.02,
    schedule: Schedule = "cosine",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    temperature: float = 4.0,
    alpha: float = 0.1,
    features: float = 0.0,
    flip: bool = True,
    shift: int = 2,
    held_out: float = 0.0,
    patience: int | None = None,
    raw: bool = False,
    round_weights: Mapping[str, Rounding] | None = None,
    round_inputs: Mapping[str, Rounding] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 50,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[Step], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> nn.Module:
    """A copy of ``student``, in evaluation mode, trained to give the ``teacher``'s outputs.

    SGD with Nesterov momentum, the learning rate falling from ``lr`` step by step as ``schedule``
    says. The teacher sees the same augmented images ``(n, c, h, w)``; ``flip`` and ``shift`` say
    how they may be changed without changing their class. The loss is ``distillation_loss`` plus
    ``features`` times ``attention_loss``; where the outputs are no logits (``raw``), it is
    ``output_loss`` of all of them instead of the former.

    A share ``held_out`` of the images is not trained on: at the end of each epoch the loss on them
    is taken, and the weights with the least are returned; after ``patience`` epochs without a new
    least, training stops. ``round_weights`` and ``round_inputs`` map layers to what quantization
    does to their weights and inputs; the student computes with the rounded values, and gradients
    pass as if nothing had been rounded (straight-through, Bengio et al., arXiv:1308.3432). What is
    returned has the weights before rounding.

    With ``checkpoint``, the state is written there every ``checkpoint_every`` steps, at the end of
    each epoch and at the end: a run that finds it goes on there, and ends with the same weights to
    the bit as one that was never interrupted. Of roundings it knows the layers alone. Delete the
    file when the result is safe.

    Equal seeds give equal weights on one machine. ``progress(done, of)`` counts steps; ``report``
    is told more. BuildError if the loss is no longer finite, for settings out of range, or if the
    checkpoint is another run's.
    """
    if checkpoint_every < 1:
        raise BuildError(f"checkpoint_every={checkpoint_every}: it counts steps, from 1")
    plan = Plan(
        epochs=epochs,
        batch=batch,
        lr=lr,
        schedule=schedule,
        momentum=momentum,
        weight_decay=weight_decay,
        temperature=temperature,
        alpha=alpha,
        features=features,
        flip=flip,
        shift=shift,
        held_out=held_out,
        patience=patience,
        raw=raw,
        seed=seed,
    )
    run = Run(plan, student, teacher, images, labels, round_weights or {}, round_inputs or {})
    whose = ""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # what a student with dropout draws from
        if checkpoint is not None:
            told = {
                **dataclasses.asdict(plan),
                "networks": (fingerprint(student), fingerprint(teacher)),
                "rounded": (sorted(round_weights or ()), sorted(round_inputs or ())),
            }
            whose = digest(told, images, labels)
            if (state := read(checkpoint, whose)) is not None:
                run.load(state)
        first, began = run.step, clock()
        with run.watched():
            while not run.finished:
                loss = run.advance()
                saving = run.finished or run.epoch_ended or run.step % checkpoint_every == 0
                if checkpoint is not None and saving:
                    write(checkpoint, whose, run.state())
                if progress is not None:
                    progress(run.step, run.steps)
                if report is not None:
                    pace = (clock() - began) / (run.step - first)
                    left_s = 0.0 if run.finished else pace * (run.steps - run.step)
                    report(
                        Step(
                            done=run.step,
                            of=run.steps,
                            left_s=left_s,
                            loss=loss,
                            held_out=run.last_held_out,
                        )
                    )
    return run.result()
