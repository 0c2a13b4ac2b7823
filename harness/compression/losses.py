"""What a student is told: the outputs of its teacher, and where the teacher looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import BuildError
from harness.networks.structure import run_once

__all__ = [
    "attention_loss",
    "distillation_loss",
    "last_at_each_size",
    "output_loss",
    "recorded",
]


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


def last_at_each_size(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The last module to end at each size of feature map: in a ResNet, its stages."""
    last: dict[tuple[int, ...], str] = {}
    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():

            def see(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                # A map of one place looks nowhere; nor does the network's own output count.
                is_map = isinstance(output, Tensor) and output.ndim == 4
                if name and is_map and output.shape[2:].numel() > 1:
                    last[tuple(output.shape[2:])] = name

            hooks.callback(module.register_forward_hook(see).remove)
        run_once(network, example)
    if not last:
        raise BuildError(
            "features cannot be matched: no module of the network gives feature maps (n, c, h, w); "
            "distil with features=0"
        )
    return tuple(last.values())


@contextlib.contextmanager
def recorded(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the named modules gave in the network's last pass, by name."""
    seen: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name in names:

            def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                seen[name] = output

            hooks.callback(network.get_submodule(name).register_forward_hook(keep).remove)
        yield seen


def attention_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Half the squared distance of the attention maps, summed over modules, mean over the batch.

    A map is the sum of the squares over the channels, at unit length, so that a pruned network can
    be compared with its original. Zagoruyko, Komodakis, *Paying more attention to attention*, ICLR
    2017, equation 2, with the distance squared, as in the authors' code.
    """
    distances = [
        (_attention(student[name]) - _attention(teacher[name])).square().sum(1).mean() / 2
        for name in student
    ]
    return torch.stack(distances).sum()


def _attention(features: Tensor) -> Tensor:
    return functional.normalize(features.float().square().sum(1).flatten(1), dim=1)
