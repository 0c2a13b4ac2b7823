"""Residual branches left out whole: what a network loses with them, and the network without.

A branch that is left out saves all its time, also what does not fall with the width: its kernels'
launches, and the work on blocks of channels that are not full. It adds nothing to its stream then;
what it added can be made up for by fitting the layers behind it again (``reconstruct``).
"""

from __future__ import annotations

import contextlib
import copy
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.batchnorm import statistics_layers
from harness.compression.losses import output_loss
from harness.compression.prune import prune
from harness.compression.shallow import together, unread
from harness.errors import BuildError
from harness.networks.structure import (
    batchnorm_pairs,
    output_shapes,
    outputs_of,
    run_once,
    tensors_of,
)
from harness.records import Group

__all__ = ["Branches", "LeftOut", "Nothing", "removable", "removal_order", "without"]

# Outputs that differ by less than this share of their size are the same.
SAME = 1e-6


class Nothing(nn.Module):
    """What stands for a ``layer`` that nothing is read by: zeros of ``channels`` and ``sizes``.

    It has the layer's attributes, which the network's own code may ask for (a stride, say). In an
    ONNX file the zeros have one place, and the sum that reads them spreads them.
    """

    def __init__(self, layer: nn.Module, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        self.channels, self.sizes = channels, tuple(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Zeros for as many images as ``x`` has."""
        if torch.onnx.is_in_onnx_export():
            return x.new_zeros(1, self.channels, *[1] * len(self.sizes))
        return x.new_zeros(x.shape[0], self.channels, *self.sizes)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A branch's group, and the divergence of the outputs once it and all before it are gone."""

    group: str
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """A network's branches that can go, by their groups, and the order in which they best do."""

    removable: tuple[str, ...] = ()
    order: tuple[LeftOut, ...] = ()

    def summary(self) -> str:
        """One line for whoever watches."""
        if not self.removable:
            return "no branch can be left out"
        return f"{len(self.removable)} branches can be left out"


def removable(network: nn.Module, groups: Sequence[Group], example: Tensor) -> tuple[str, ...]:
    """The groups that can go whole: what reads them adds to a stream that goes on without.

    Tried, not derived: without the group the network runs, its outputs have their shapes, and they
    still depend on the input. A branch of several groups is named by the one with which all of it
    goes (``shallow.together``), the first of them. ``example`` ``(n, ...)`` has at least two
    images, which differ.
    """
    if len(example) < 2:
        raise BuildError("leaving out branches is tried on two images; got one")
    example = example[:2]
    wanted = [output.shape for output in outputs_of(network, example)]
    candidates = [g for g in groups if g.prunable and g.blocks == 1 and g.consumers]
    tried = copy.deepcopy(network).eval()
    silence = _silences(tried, groups, [group.name for group in candidates], example)
    found = []
    for group in candidates:
        try:
            with _left_out(tried, silence[group.name]):
                outputs = outputs_of(tried, example)
        except (RuntimeError, IndexError, TypeError):
            continue
        if [output.shape for output in outputs] == wanted and not all(map(_alike, outputs)):
            found.append(group.name)
    return _whole(found, groups)


def _whole(found: Sequence[str], groups: Sequence[Group]) -> tuple[str, ...]:
    """Those of ``found`` with which no less goes than with another, each branch once."""
    goes = {name: frozenset(together(groups, [name])) for name in found}
    first: dict[frozenset[str], str] = {}
    for name in found:
        first.setdefault(goes[name], name)
    return tuple(name for own, name in first.items() if not any(own < other for other in first))


def _alike(output: Tensor) -> bool:
    return bool((output[0] - output[1]).abs().max() <= SAME * output.abs().max())


def without(
    network: nn.Module,
    groups: Sequence[Group],
    example: Tensor,
    names: Iterable[str],
    kept: Mapping[str, tuple[int, ...]] | None = None,
) -> nn.Module:
    """A copy in evaluation mode without the branches of the ``removable`` groups ``names``.

    Other groups have only the ``kept`` channels, as ``prune`` leaves them. BuildError for groups
    that are not there, and where the network does not run without them.
    """
    names = together(groups, names)
    if not names:
        return prune(network, example, groups, kept or {})
    gone = [group for group in groups if group.name in names]
    # One channel of each is left, for what stands between producers and consumers.
    least = {group.name: (0,) for group in gone if group.prunable and group.blocks == 1}
    others = {name: channels for name, channels in (kept or {}).items() if name not in names}
    cut = prune(network, example[:2], groups, {**others, **least})
    for place, module in _silence(cut, unread(groups, names), example).items():
        cut.set_submodule(place, module)
    wanted = output_shapes(network, example[:1])
    try:
        shapes = output_shapes(cut, example[:1])
    except (RuntimeError, IndexError, TypeError) as error:
        raise BuildError(f"the network does not run without {', '.join(names)}: {error}") from error
    if shapes != wanted:
        raise BuildError(
            f"leaving out {', '.join(names)} changes the network's outputs from {wanted} to "
            f"{shapes}"
        )
    return cut.eval()


def removal_order(
    network: nn.Module,
    groups: Sequence[Group],
    images: Tensor,
    *,
    most: int,
    names: Sequence[str] | None = None,
    saves: Mapping[str, float] | None = None,
    classes: bool = True,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LeftOut, ...]:
    """The branches in the order in which they are best left out, up to ``most``.

    Each time the one that adds the least, for what it ``saves`` (each the same, unless it is
    given), to the divergence of the outputs from the original's (of the ``classes`` where the
    outputs are logits, else their relative squared error), with batch norm on the statistics of the
    ``images`` (one batch, no labels). What a branch adds rises, as a rule, as others go: only those
    that last added the least are tried again.
    ``names`` are the ``removable`` groups, where they are known. A branch without which, once
    others are gone, the outputs do not depend on the input stays, as does one that saves nothing.
    ``progress(done, of)`` counts branches. BuildError where there is one image.
    """
    names = removable(network, groups, images) if names is None else tuple(names)
    worth = {name: 1.0 if saves is None else saves[name] for name in names}
    wanted = outputs_of(network, images)
    tried = copy.deepcopy(network).eval()
    silence = _silences(tried, groups, names, images)
    scale = temperature if classes else None
    result: list[LeftOut] = []
    reached = _divergence(_with_own_statistics(tried, images), wanted, scale)
    # What each adds for what it saves, how many had gone when that was found, and the divergence.
    queue = [(0.0, -1, name, 0.0) for name in names if worth[name] > 0]
    while queue and len(result) < most:
        _, when, name, known = heapq.heappop(queue)
        if when == len(result):
            result.append(LeftOut(name, known))
            reached = known
            if progress is not None:
                progress(len(result), min(most, len(names)))
            continue
        gone = {key: module for one in result for key, module in silence[one.group].items()}
        with _left_out(tried, {**gone, **silence[name]}):
            outputs = _with_own_statistics(tried, images)
        if all(map(_alike, outputs)):
            continue
        known = _divergence(outputs, wanted, scale)
        heapq.heappush(queue, ((known - reached) / worth[name], len(result), name, known))
    return tuple(result)


@contextlib.contextmanager
def _left_out(network: nn.Module, silence: Mapping[str, nn.Module]) -> Iterator[None]:
    """``network`` with the modules of ``silence`` in the places of its own."""
    originals = {name: network.get_submodule(name) for name in silence}
    try:
        for name, module in silence.items():
            network.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            network.set_submodule(name, module)


def _with_own_statistics(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs with batch norm on the statistics of this batch."""
    norms = statistics_layers(network).values()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        outputs = tensors_of(network(images))
    for norm in norms:
        norm.eval()
    return outputs


def _divergence(outputs: list[Tensor], wanted: list[Tensor], temperature: float | None) -> float:
    """That of classes at a temperature; without one the relative squared error."""
    if temperature is None or len(outputs) > 1 or outputs[0].ndim != 2:
        return float(output_loss(outputs, wanted))
    ours = functional.log_softmax(outputs[0] / temperature, 1)
    theirs = functional.log_softmax(wanted[0] / temperature, 1)
    found = functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return float(temperature**2 * found)


def _silences(
    network: nn.Module, groups: Sequence[Group], names: Sequence[str], example: Tensor
) -> dict[str, dict[str, nn.Module]]:
    """For each of ``names`` what takes the places of all that goes with that group."""
    gone = {name: unread(groups, together(groups, [name])) for name in names}
    every = _silence(network, [layer for own in gone.values() for layer in own], example)
    behind = _norms(network, example)
    return {
        name: {
            place: every[place]
            for layer in own
            for place in (layer, behind.get(layer))
            if place is not None
        }
        for name, own in gone.items()
    }


def _silence(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, nn.Module]:
    """What takes the places of ``layers`` and their batch norms."""
    behind = _norms(network, example)
    result: dict[str, nn.Module] = {}
    for layer, shape in _shapes(network, layers, example).items():
        result[layer] = Nothing(network.get_submodule(layer), shape[1], shape[2:])
        if layer in behind:
            result[behind[layer]] = nn.Identity()
    return result


def _norms(network: nn.Module, example: Tensor) -> dict[str, str]:
    """The batch norms that alone read a layer, by it."""
    pairs = batchnorm_pairs(network, example[:1])
    return {layer: norm for layers, norm in pairs for layer in layers}


def _shapes(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, torch.Size]:
    """The shape of what each of ``layers`` gives."""
    shapes: dict[str, torch.Size] = {}
    with contextlib.ExitStack() as hooks:
        for name in layers:

            def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                shapes[name] = output.shape

            module = network.get_submodule(name)
            hooks.callback(module.register_forward_hook(keep).remove)
        run_once(network, example[:1])
    return shapes
