"""Sums that a layer's output enters: what a shortcut adds to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.compression.patches import channels_second
from harness.networks import BATCH_NORMS
from harness.networks.structure import same_outputs

__all__ = ["Shortcut", "added", "shortcuts"]

_ADDITIONS = (
    torch.add,
    torch.Tensor.add,
    torch.Tensor.add_,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
)


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The addition, counted from 0 in a pass, that a layer's output enters as ``operand``.

    ``norm`` is the batch norm that it goes through before, None where it is added as it is.
    """

    addition: int
    operand: int
    norm: str | None


class _Additions(TorchFunctionMode):
    """Has ``see`` called with the number and the operands of every addition of two tensors.

    What it returns takes the operands' place.
    """

    def __init__(self, see: Callable[[int, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._see = see
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = func in _ADDITIONS and len(args) == 2 and not kwargs
        if plain and all(isinstance(arg, Tensor) and arg.ndim > 1 for arg in args):
            number, self._count = self._count, self._count + 1
            args = self._see(number, args)
        return func(*args, **(kwargs or {}))


def shortcuts(network: nn.Module, layers: Collection[str], example: Tensor) -> dict[str, Shortcut]:
    """Of those ``layers`` whose output is added to another tensor of its shape: where.

    The output may go through a batch norm on the way, and through nothing else, and what it is
    added to must not depend on it: a shortcut from further up, not what the next layers make of
    the output. Of two layers whose outputs are added to each other the later one is named. Layers
    that run more than once in a pass are left out.
    """

    def shift(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output + 1

    independent: dict[int, tuple[str, Shortcut]] = {}
    others: list[Tensor] = []

    def see(_name: str, other: Tensor) -> None:
        others.append(other)

    for name, shortcut in _candidates(network, layers, example).items():
        others.clear()
        added(network, {name: shortcut}, example, see)
        with network.get_submodule(name).register_forward_hook(shift):
            added(network, {name: shortcut}, example, see)
        if same_outputs(others[:1], others[1:]):
            independent[shortcut.addition] = name, shortcut
    return dict(independent.values())


def _candidates(
    network: nn.Module, layers: Collection[str], example: Tensor
) -> dict[str, Shortcut]:
    """By layer, in the order in which they run, the last sum that its output enters."""
    made: dict[str, list[Tensor]] = {}
    normed: list[tuple[str, Tensor, Tensor]] = []
    sums: list[tuple[Tensor, Tensor]] = []
    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():

            def keep(_module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                if name in layers:
                    made.setdefault(name, []).append(output)
                else:
                    normed.append((name, inputs[0], output))

            if name in layers or isinstance(module, BATCH_NORMS):
                hooks.callback(module.register_forward_hook(keep).remove)

        def note(_number: int, operands: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            sums.append(operands)
            return operands

        hooks.enter_context(_Additions(note))
        hooks.enter_context(torch.no_grad())
        network(example)
    found = {}
    for name, outputs in made.items():
        if len(outputs) != 1:
            continue
        ways: list[tuple[str | None, Tensor]] = [(None, outputs[0])]
        ways += [(norm, output) for norm, read, output in normed if read is outputs[0]]
        for addition, operands in enumerate(sums):
            for norm, way in ways:
                for operand in (0, 1):
                    if operands[operand] is way and operands[1 - operand].shape == way.shape:
                        found[name] = Shortcut(addition, operand, norm)
    return found


def added(
    network: nn.Module,
    wanted: Mapping[str, Shortcut],
    images: Tensor,
    see: Callable[[str, Tensor], Tensor | None],
) -> None:
    """Run a pass in which ``see(layer, other)`` gets what each layer's output is added to.

    In the units of the layer's own output: divided by what its batch norm multiplies by. Where
    ``see`` returns a tensor, the pass goes on as if it were the layer's output.
    """
    by_addition = {shortcut.addition: name for name, shortcut in wanted.items()}

    def look(number: int, operands: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        name = by_addition.get(number)
        if name is None:
            return operands
        shortcut = wanted[name]
        other = operands[1 - shortcut.operand]
        layer = network.get_submodule(name)
        scaled = channels_second(layer, other) / _scale(network, shortcut, other.ndim)
        output = see(name, scaled)
        if output is None:
            return operands
        if shortcut.norm is not None:
            output = network.get_submodule(shortcut.norm)(output)
        assert output is not None
        return (output, other) if shortcut.operand == 0 else (other, output)

    with _Additions(look), torch.no_grad():
        network(images)


def _scale(network: nn.Module, shortcut: Shortcut, axes: int) -> Tensor | float:
    """What the batch norm multiplies each channel by; never zero."""
    if shortcut.norm is None:
        return 1.0
    norm: Any = network.get_submodule(shortcut.norm)
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    # A channel that the norm takes out cannot make up for anything: its share is bounded.
    small = 1e-4 * float(scale.abs().max())
    scale = torch.where(scale.abs() < small, torch.full_like(scale, small), scale)
    return scale.detach().view(1, -1, *(1,) * (axes - 2))
