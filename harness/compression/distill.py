"""Fine-tuning of a compressed network by distillation from the original."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BuildError
from harness.networks import fold_batchnorm, tensors_of

__all__ = ["augment", "distill", "distillation_loss", "output_loss"]

# The settings of the fixed fine-tuning that the peers' figures were taken with.
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
MAX_RAW_GRADIENT = 1.0

# The teacher's outputs by the steps they belong to: every variant of one campaign is taught on the
# same augmented images (the seed decides), so the teacher need see them only once.
_taught: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[list[Tensor]]]] = (
    weakref.WeakKeyDictionary()
)


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None, *, temperature: float, alpha: float
) -> Tensor:
    """Hinton's loss of logits ``(n, classes)``, the mean over the batch.

    ``alpha * CE(y, softmax(s)) + (1 - alpha) * T^2 * KL(softmax(t / T) || softmax(s / T))``;
    without labels the second term alone. Hinton, Vinyals, Dean, arXiv:1503.02531, section 2: the
    factor T^2 keeps the soft targets' gradients at the scale of the labels'.
    """
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
    if labels is None:
        return temperature**2 * soft
    hard = functional.cross_entropy(student, labels)
    return alpha * hard + (1 - alpha) * temperature**2 * soft


def output_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The squared error of raw outputs by the teacher's mean square, the mean over the outputs.

    So that every output of a network counts alike, whatever its unit.
    """
    errors = [
        (ours - theirs).square().mean() / theirs.square().mean().clamp_min(1e-12)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def augment(images: Tensor, *, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """The images, each flipped left to right at random, all shifted by up to ``shift`` pixels.

    One shift a batch costs a slice instead of a gather; pixels from outside repeat the border.
    """
    if flip:
        flipped = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    if shift:
        dy, dx = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
        height, width = images.shape[2:]
        padded = functional.pad(images, (shift,) * 4, mode="replicate")
        images = padded[:, :, dy : dy + height, dx : dx + width]
    return images


def distill(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    epochs: int,
    batch: int = 128,
    lr: float = 0.02,
    temperature: float = 4.0,
    alpha: float = 0.1,
    seed: int = 0,
    flip: bool = True,
    shift: int = 2,
    raw: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """A copy of ``student``, in evaluation mode, trained to give the ``teacher``'s outputs.

    SGD with Nesterov momentum, the learning rate falling from ``lr`` to zero by a cosine, step by
    step. The teacher sees the same augmented images. Images are ``(n, c, h, w)``; ``flip`` and
    ``shift`` say how they may be changed without changing their class. Equal seeds give equal
    weights on one machine. ``raw``: the outputs are no logits, and ``output_loss`` of all of them
    is the loss. ``progress(done, of)`` counts steps. Raises BuildError if the loss is no longer
    finite.
    """
    student = _channels_last(copy.deepcopy(student).train())
    # A student that was scored may have come with frozen weights.
    parameters = [parameter.requires_grad_(True) for parameter in student.parameters()]
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    batch = min(batch, len(images))
    steps = epochs * (len(images) // batch)
    batches = _batches(images, epochs=epochs, batch=batch, seed=seed, flip=flip, shift=shift)
    targets = _targets(teacher, images, (epochs, batch, seed, flip, shift))
    fast = _bfloat16_is_fast()
    for step, (chosen, inputs) in enumerate(batches):
        target = targets(step, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            outputs = tensors_of(student(inputs))
        outputs = [output.float() for output in outputs]
        loss: Any
        if raw:
            loss = output_loss(outputs, target)
        else:
            loss = distillation_loss(
                outputs[0],
                target[0],
                None if labels is None else labels[chosen],
                temperature=temperature,
                alpha=alpha,
            )
        if not math.isfinite(loss.item()):
            raise BuildError(
                f"distillation diverged at step {step + 1} of {steps}: the loss is "
                f"{loss.item()}; lower the learning rate (now {lr})"
            )
        for settings in optimizer.param_groups:
            settings["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss.backward()
        if raw:  # the gradient of a squared error has no bound, and the step was chosen for logits
            nn.utils.clip_grad_norm_(parameters, MAX_RAW_GRADIENT)
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    optimizer.zero_grad()
    return _contiguous(student.eval())


def _batches(
    images: Tensor, *, epochs: int, batch: int, seed: int, flip: bool, shift: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices and augmented images of every step; a remainder sits an epoch out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for index in range(len(images) // batch):
            chosen = order[index * batch : (index + 1) * batch]
            inputs = augment(images[chosen], flip=flip, shift=shift, generator=generator)
            yield chosen, inputs.contiguous(memory_format=torch.channels_last)


def _targets(
    teacher: nn.Module, images: Tensor, plan: tuple[Any, ...]
) -> Callable[[int, Tensor], list[Tensor]]:
    """The teacher's outputs for one step's inputs: remembered, or computed and remembered."""
    # Version counters rise with every change in place, so a teacher that was trained meanwhile,
    # or other images at the same address, are not mistaken for the old ones.
    state = tuple((value.data_ptr(), value._version) for value in teacher.state_dict().values())
    key = (plan, images.data_ptr(), images._version, tuple(images.shape), state)
    remembered = _taught.setdefault(teacher, {}).setdefault(key, [])
    folded = _channels_last(fold_batchnorm(teacher, images[:1]))
    fast = _bfloat16_is_fast()

    def target(step: int, inputs: Tensor) -> list[Tensor]:
        if step == len(remembered):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
                remembered.append([output.float() for output in tensors_of(folded(inputs))])
        return remembered[step]

    return target


def _channels_last(network: nn.Module) -> nn.Module:
    """The network, in place, in the layout in which the CPU's convolutions are fastest."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _contiguous(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def _bfloat16_is_fast() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (AMX, or AVX-512 BF16)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
