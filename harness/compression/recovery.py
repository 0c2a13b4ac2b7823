"""What pruning took, given back: layers fitted again in closed form, then distillation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from harness.compression import batchnorm, branches, shallow
from harness.compression.distill import Step, distill
from harness.compression.losses import distillation_loss, output_loss
from harness.compression.quantizers import Range, quantize_weight
from harness.compression.reconstruct import reconstruct
from harness.compression.training import Rounding, split_rows
from harness.networks import LAYER_TYPES, layers_in_order
from harness.networks.structure import outputs_of, run_once
from harness.records import Group

__all__ = ["Progress", "Tuned", "cut", "fitting_images", "roundings", "tuned"]

# What the batches that go through a network in step may hold at a time.
HELD_BYTES = 1 << 30
# Places of an image that are fitted to.
POSITIONS = 32
# The share of the training images that says which weights are the best, and the most images that
# it takes to say so.
HELD_OUT, HELD_OUT_IMAGES = 0.1, 512
# Fewer held-out images say nothing: all are trained on then.
FEWEST_HELD_OUT = 32
# Epochs without a new least loss after which training ends.
PATIENCE = 3
# Enough for batch-norm statistics to settle.
STATISTICS_IMAGES = 2048

# What may be taken in the end: the student as it was, as training left it, or that with batch-norm
# statistics estimated again.
Taken = Literal["untrained", "trained", "reestimated"]


class Progress(Protocol):
    """Whoever is told how far a long job is; ``left_s`` more seconds, if known."""

    def __call__(self, done: int, total: int, /, *, left_s: float | None = None) -> None:
        """``done`` of ``total`` steps are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A network, in evaluation mode, and why it was ``taken``.

    ``held_out`` is the loss of each that might have been, on images that were not trained on;
    empty where none were held out.
    """

    network: nn.Module
    taken: Taken
    held_out: Mapping[Taken, float]


def cut(
    network: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
    images: Tensor,
    *,
    left_out: Sequence[str] = (),
    seed: int = 0,
    positions: int = POSITIONS,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """A copy with only the ``kept`` channels, whose layers make up for those that went.

    Without the branches of the groups ``left_out``: then every layer behind the first of them makes
    up for it, for the stream that it reads is another one.

    Pruned by slicing, then fitted again (``reconstruct``) on as many of ``images`` as memory
    allows; batch norm keeps its statistics but for offsets: to estimate them again afterwards costs
    accuracy, anchored (``batchnorm.corrections``) or not. No labels, no training. ResNet-20 at half
    its MACs, untrained: 74.9 % fitted, 73.7 and 71.7 % with statistics estimated again, anchored
    and plain; ``tuned`` for 4 epochs over 4,700 images brings it to 86.8 % (91.6 % untouched).
    """
    pruned = branches.without(network, groups, example, left_out, kept)
    count = fitting_images(network, example, len(images))
    there = shallow.remaining(groups, left_out)
    reconstruct(
        pruned,
        network,
        there,
        {group.name: kept[group.name] for group in there if group.name in kept},
        images[:count],
        layers=_behind(network, example, groups, kept, left_out) if left_out else None,
        positions=positions,
        seed=seed,
        progress=progress,
    )
    return pruned


def _behind(
    network: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
    left_out: Sequence[str],
) -> tuple[str, ...]:
    """The layers behind the first that is gone, and those that read fewer channels."""
    gone = set(shallow.unread(groups, left_out))
    order = list(layers_in_order(network, example))
    first = min(order.index(layer) for layer in gone)
    fewer = {
        layer
        for group in groups
        if len(kept.get(group.name, range(group.channels))) < group.channels
        for layer in group.consumers
    }
    return tuple(
        layer
        for index, layer in enumerate(order)
        if layer not in gone and (index > first or layer in fewer)
    )


def fitting_images(network: nn.Module, example: Tensor, most: int) -> int:
    """How many images may go through ``network`` in step within ``HELD_BYTES``; at least 16.

    Each holds at least what some layer reads and gives, and what a shortcut keeps beside it.
    """
    largest = 0

    def see(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        largest = max(largest, sum(t.numel() * t.element_size() // len(t) for t in tensors))

    with contextlib.ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, LAYER_TYPES):
                hooks.callback(module.register_forward_hook(see).remove)
        run_once(network, example[:1])
    return min(most, max(16, HELD_BYTES // max(2 * largest, 1)))


def roundings(
    ranges: Mapping[str, Range], *, weight_bits: int = 8
) -> tuple[dict[str, Rounding], dict[str, Rounding]]:
    """What the export does to weights and to inputs of the layers in ``ranges``, for training.

    Weights hold each channel's largest (batch norm, which is folded later, scales whole channels
    and moves no level).
    """

    def weights(weight: Tensor) -> Tensor:
        return quantize_weight(weight, weight_bits, scale="max").dequantized()

    return dict.fromkeys(ranges, weights), {name: r.rounded for name, r in ranges.items()}


def tuned(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    *,
    epochs: int,
    seed: int = 0,
    raw: bool = False,
    lr: float = 0.02,
    round_weights: Mapping[str, Rounding] | None = None,
    round_inputs: Mapping[str, Rounding] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """``student`` distilled from ``teacher``, the best of it by images that were held out.

    A tenth of the images (at most 512, none if those were fewer than 32) is not trained on: it
    says which epoch's weights are kept, when to stop, whether batch norm does better with the
    statistics that training left or with those re-estimated on images trained on, and whether
    training was any good at all. The other arguments are ``distill``'s.
    """
    share = min(HELD_OUT, HELD_OUT_IMAGES / len(images))
    share = share if round(share * len(images)) >= FEWEST_HELD_OUT else 0.0

    def tell(step: Step) -> None:
        if progress is not None:
            progress(step.done, step.of, left_s=step.left_s)

    trained = distill(
        student,
        teacher,
        images,
        labels,
        epochs=epochs,
        lr=lr,
        seed=seed,
        raw=raw,
        held_out=share,
        patience=PATIENCE if share else None,
        round_weights=round_weights,
        round_inputs=round_inputs,
        checkpoint=checkpoint,
        report=tell,
    )
    if not share:
        return Tuned(network=trained, taken="trained", held_out={})
    rows, held = split_rows(len(images), share, seed)
    ways: dict[Taken, nn.Module] = {"trained": trained, "untrained": student}
    if batchnorm.statistics_layers(trained):
        ways["reestimated"] = copy.deepcopy(trained)
        batchnorm.reestimate(ways["reestimated"], images[rows[:STATISTICS_IMAGES]])
    told = None if labels is None else labels[held]
    losses = {
        way: _loss(network, teacher, images[held], told, raw=raw) for way, network in ways.items()
    }
    best = min(losses, key=losses.__getitem__)
    return Tuned(network=ways[best].eval(), taken=best, held_out=losses)


def _loss(
    student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor | None, *, raw: bool
) -> float:
    """The loss of training on images that were not trained on, the mean over batches."""
    losses = []
    for start in range(0, len(images), 128):
        part = images[start : start + 128]
        ours, theirs = outputs_of(student, part), outputs_of(teacher, part)
        known = None if labels is None else labels[start : start + 128]
        loss = (
            output_loss(ours, theirs)
            if raw
            else distillation_loss(ours[0], theirs[0], known, temperature=4.0, alpha=0.1)
        )
        losses.append(float(loss) * len(part))
    return sum(losses) / len(images)
