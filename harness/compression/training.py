"""One training run of a student: its steps, and the state that it can go on from."""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.losses import (
    attention_loss,
    distillation_loss,
    last_at_each_size,
    output_loss,
    recorded,
)
from harness.errors import BuildError
from harness.networks import fold_batchnorm, tensors_of

__all__ = ["Plan", "Rounding", "Run", "Schedule", "augment", "split_rows"]

Schedule: TypeAlias = Literal["cosine", "linear", "constant"]
Rounding: TypeAlias = Callable[[Tensor], Tensor]

# The share of the learning rate after a share of the steps.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda _done: 1.0,
}
# The gradient of a squared error has no bound, and the learning rate was chosen for logits.
MAX_RAW_GRADIENT = 1.0

# The teacher's outputs by the steps they belong to: every variant of one campaign is taught on the
# same augmented images (the seed decides), so the teacher need see them only once.
_taught: weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[int, list[Tensor]]]] = (
    weakref.WeakKeyDictionary()
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings that decide the weights, beside the networks and the data."""

    epochs: int
    batch: int
    lr: float
    schedule: str
    momentum: float
    weight_decay: float
    temperature: float
    alpha: float
    features: float
    flip: bool
    shift: int
    held_out: float
    patience: int | None
    raw: bool
    seed: int

    def __post_init__(self) -> None:
        bounds = {
            "epochs": self.epochs >= 0,
            "batch": self.batch >= 1,
            "schedule": self.schedule in SCHEDULES,
            "features": self.features >= 0,
            "held_out": 0 <= self.held_out < 1,
            "patience": self.patience is None or (self.patience >= 1 and self.held_out > 0),
        }
        for name, good in bounds.items():
            if not good:
                raise BuildError(
                    f"distillation cannot run with {name}={getattr(self, name)!r}: epochs and "
                    "features must not be negative, batch and patience be at least 1, schedule one "
                    f"of {', '.join(SCHEDULES)}, held_out from 0 to below 1, and above 0 where "
                    "there is a patience"
                )


class Run:
    """One training: what ``distill`` steps through, and what a checkpoint holds."""

    def __init__(
        self,
        plan: Plan,
        student: nn.Module,
        teacher: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        round_weights: Mapping[str, Rounding],
        round_inputs: Mapping[str, Rounding],
    ) -> None:
        self.plan, self.images, self.labels = plan, images, labels
        self.student = _channels_last(copy.deepcopy(student).train())
        self._round_weights = {
            name: (_layer(self.student, name), rounding) for name, rounding in round_weights.items()
        }
        self._round_inputs = {
            name: (_layer(self.student, name), rounding) for name, rounding in round_inputs.items()
        }
        # A student that was scored may have come with frozen weights.
        parameters = [parameter.requires_grad_(True) for parameter in self.student.parameters()]
        self.optimizer = torch.optim.SGD(
            parameters,
            lr=plan.lr,
            momentum=plan.momentum,
            nesterov=plan.momentum > 0,
            weight_decay=plan.weight_decay,
        )
        trained, self.held = split_rows(len(images), plan.held_out, plan.seed)
        self.batches = _Batches(plan, images, trained)
        self.steps = plan.epochs * self.batches.per_epoch
        self.teacher = _Teacher(teacher, images, plan)
        self.features = last_at_each_size(teacher, images[:1]) if plan.features else ()
        self.step = 0
        self.last_held_out: float | None = None
        self._best: dict[str, Tensor] | None = None
        self._least = math.inf
        self._stale = 0
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        # Rounding is simulated in the float32 that it is defined in.
        self._fast = _bfloat16_is_fast() and not round_weights and not round_inputs

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        patience = self.plan.patience
        return self.step >= self.steps or (patience is not None and self._stale >= patience)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was an epoch's last."""
        return self.step % self.batches.per_epoch == 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hooks for features and rounded inputs, for as long as the training goes on."""
        with contextlib.ExitStack() as hooks:
            if self.features:
                self._seen = (
                    hooks.enter_context(recorded(self.student, self.features)),
                    hooks.enter_context(recorded(self.teacher.network, self.features)),
                )
            for layer, rounding in self._round_inputs.values():

                def rounded(
                    _module: nn.Module, inputs: tuple[Tensor, ...], rounding: Rounding = rounding
                ) -> tuple[Tensor, ...]:
                    return (_straight_through(inputs[0], rounding), *inputs[1:])

                hooks.callback(layer.register_forward_pre_hook(rounded).remove)
            yield

    def advance(self) -> float:
        """Take one step; at an epoch's end, see how the images held out fare. Returns the loss."""
        chosen, inputs = self.batches.next()
        target = self.teacher.outputs(self.step, inputs, again=bool(self.features))
        loss: Any = self._loss(self._outputs(inputs), target, chosen)
        if self.features:
            loss = loss + self.plan.features * attention_loss(*self._seen)
        value = float(loss.item())
        if not math.isfinite(value):
            raise BuildError(
                f"distillation diverged at step {self.step + 1} of {self.steps}: the loss is "
                f"{value}; lower the learning rate (now {self.plan.lr})"
            )
        share = SCHEDULES[self.plan.schedule](self.step / self.steps)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.plan.lr * share
        self.optimizer.zero_grad()
        loss.backward()
        if self.plan.raw:
            nn.utils.clip_grad_norm_(self.student.parameters(), MAX_RAW_GRADIENT)
        self.optimizer.step()
        self.step += 1
        if self.epoch_ended and len(self.held):
            self._look_at_held_out()
        return value

    def _look_at_held_out(self) -> None:
        self.student.eval()
        total = 0.0
        with torch.no_grad():
            for rows in torch.split(self.held, self.plan.batch):
                inputs = _fast_layout(self.images[rows])
                loss = self._loss(self._outputs(inputs), self.teacher.compute(inputs), rows)
                total += float(loss) * len(rows)
        self.student.train()
        self.last_held_out = total / len(self.held)
        if self.last_held_out < self._least:
            self._least, self._stale = self.last_held_out, 0
            self._best = {n: v.clone() for n, v in self.student.state_dict().items()}
        else:
            self._stale += 1

    def _outputs(self, inputs: Tensor) -> list[Tensor]:
        weights = {
            f"{name}.weight": _straight_through(layer.weight, rounding)
            for name, (layer, rounding) in self._round_weights.items()
        }
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._fast):
            outputs = tensors_of(torch.func.functional_call(self.student, weights, (inputs,)))
        return [output.float() for output in outputs]

    def _loss(self, outputs: Sequence[Tensor], target: Sequence[Tensor], rows: Tensor) -> Tensor:
        if self.plan.raw:
            return output_loss(outputs, target)
        return distillation_loss(
            outputs[0],
            target[0],
            None if self.labels is None else self.labels[rows],
            temperature=self.plan.temperature,
            alpha=self.plan.alpha,
        )

    def state(self) -> dict[str, Any]:
        """Everything that the steps to come depend on."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state(),
            "random": torch.get_rng_state(),
            "held_out": (self.last_held_out, self._best, self._least, self._stale),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load(state["batches"])
        torch.set_rng_state(state["random"])
        self.last_held_out, self._best, self._least, self._stale = state["held_out"]

    def result(self) -> nn.Module:
        """The trained network: the best by the images held out, if there were any."""
        if self._best is not None:
            self.student.load_state_dict(self._best)
        self.optimizer.zero_grad()
        return _contiguous(self.student.eval())


def _layer(network: nn.Module, name: str) -> Any:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise BuildError(f"cannot round {name}: the student has no such layer") from error


def _straight_through(value: Tensor, rounding: Rounding) -> Tensor:
    """The rounded value with the gradient of the value itself."""
    return value + (rounding(value.detach()) - value.detach())


def split_rows(count: int, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, in rising order."""
    held = round(held_out * count)
    if held_out and not 0 < held < count:
        raise BuildError(
            f"held_out={held_out} of {count} images leaves none on one side; give more images"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


class _Batches:
    """Rows and augmented images of one step after the other; a remainder sits an epoch out."""

    def __init__(self, plan: Plan, images: Tensor, rows: Tensor) -> None:
        self._plan, self._images, self._rows = plan, images, rows
        if images.ndim != 4 and (plan.flip or plan.shift):
            raise BuildError(
                f"inputs {tuple(images.shape)} are no images (n, c, h, w); distil with flip=False "
                "and shift=0"
            )
        self._size = min(plan.batch, len(rows))
        self.per_epoch = len(rows) // self._size
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._order = rows[:0]
        self._done = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch; each epoch has an order of its own."""
        if self._done % self.per_epoch == 0:
            self._order = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
        start = self._done % self.per_epoch * self._size
        chosen = self._order[start : start + self._size]
        self._done += 1
        inputs = augment(
            self._images[chosen],
            flip=self._plan.flip,
            shift=self._plan.shift,
            generator=self._generator,
        )
        return chosen, _fast_layout(inputs)

    def state(self) -> tuple[Tensor, Tensor, int]:
        return self._generator.get_state(), self._order, self._done

    def load(self, state: tuple[Tensor, Tensor, int]) -> None:
        generator, self._order, self._done = state
        self._generator.set_state(generator)


class _Teacher:
    """The original network's outputs: remembered, or computed and remembered."""

    def __init__(self, network: nn.Module, images: Tensor, plan: Plan) -> None:
        # Version counters rise with every change in place, so a teacher that was trained meanwhile,
        # or other images at the same address, are not mistaken for the old ones.
        state = tuple((value.data_ptr(), value._version) for value in network.state_dict().values())
        seen = (plan.epochs, plan.batch, plan.seed, plan.flip, plan.shift, plan.held_out)
        key = (seen, images.data_ptr(), images._version, tuple(images.shape), state)
        self._remembered = _taught.setdefault(network, {}).setdefault(key, {})
        self.network = _channels_last(fold_batchnorm(network, images[:1]))
        self._fast = _bfloat16_is_fast()

    def outputs(self, step: int, inputs: Tensor, *, again: bool) -> list[Tensor]:
        """The outputs for one step's inputs; ``again`` where the pass itself is needed."""
        if again or step not in self._remembered:
            self._remembered[step] = self.compute(inputs)
        return self._remembered[step]

    def compute(self, inputs: Tensor) -> list[Tensor]:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._fast):
            outputs = tensors_of(self.network(inputs))
        return [output.float() for output in outputs]


def _fast_layout(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


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
