"""Residual branches left out whole: what a network loses with them, and the network without.

A branch that is left out saves all its time, also what does not fall with the width: its kernels'
launches, and the work on blocks of channels that are not full. It adds nothing to its stream then;
what it added can be made up for by fitting the layers behind it again (``reconstruct``).
"""

from __future__ import annotations

import contextlib
import copy
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.batchnorm import statistics_layers
from harness.compression.prune import prune
from harness.errors import BuildError
from harness.networks.structure import batchnorm_pairs, outputs_of, run_once
from harness.records import Group

__all__ = ["LeftOut", "Nothing", "removable", "removal_order", "without"]

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
        return x.new_zeros(len(x), self.channels, *self.sizes)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A branch's group, and the divergence of the outputs once it and all before it are gone."""

    group: str
    divergence: float


def removable(network: nn.Module, groups: Sequence[Group], example: Tensor) -> tuple[str, ...]:
    """The groups that can go whole: what reads them adds to a stream that goes on without.

    Tried, not derived: without the group the network runs, its outputs have their shapes, and they
    still depend on the input. ``example`` ``(n, ...)`` has at least two images, which differ.
    """
    if len(example) < 2:
        raise BuildError("leaving out branches is tried on two images; got one")
    example = example[:2]
    wanted = [output.shape for output in outputs_of(network, example)]
    candidates = [g for g in groups if g.prunable and g.blocks == 1 and g.consumers]
    tried = copy.deepcopy(network).eval()
    silence = _silences(tried, candidates, example)
    found = []
    for group in candidates:
        try:
            with _left_out(tried, silence[group.name]):
                outputs = outputs_of(tried, example)
        except (RuntimeError, IndexError, TypeError):
            continue
        if [output.shape for output in outputs] == wanted and not all(map(_alike, outputs)):
            found.append(group.name)
    return tuple(found)


def _alike(output: Tensor) -> bool:
    return bool((output[0] - output[1]).abs().max() <= SAME * output.abs().max())


def without(
    network: nn.Module, groups: Sequence[Group], example: Tensor, names: Sequence[str]
) -> nn.Module:
    """A copy in evaluation mode without the branches of the ``removable`` groups ``names``.

    BuildError for groups that are not there or cannot be pruned.
    """
    known = {group.name: group for group in groups}
    if missing := sorted(set(names) - set(known)):
        raise BuildError(f"cannot leave out {missing[0]}: no such group in this network")
    gone = [known[name] for name in names]
    # One channel of each is left, for what stands between producers and consumers.
    cut = prune(network, example[:2], groups, {group.name: (0,) for group in gone})
    producers = [layer for group in gone for layer in group.producers]
    silenced = [place for own in _silences(cut, gone, example).values() for place in own.items()]
    for layer, shape in _shapes(cut, producers, example).items():
        cut.set_submodule(layer, Nothing(cut.get_submodule(layer), shape[1], shape[2:]))
    for layer, module in silenced:
        cut.set_submodule(layer, module)
    return cut.eval()


def removal_order(
    network: nn.Module,
    groups: Sequence[Group],
    images: Tensor,
    *,
    most: int,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LeftOut, ...]:
    """The branches in the order in which they are best left out, up to ``most``.

    Each time the one that leaves the least divergence of the outputs from the original's, with
    batch norm on the statistics of the ``images`` (one batch, no labels). What a branch costs
    rises, as a rule, as others go: only those whose last known cost is the least are tried again.
    ``progress(done, of)`` counts branches. BuildError where there is one image.
    """
    names = removable(network, groups, images)
    with torch.no_grad():
        wanted = network.eval()(images)
    tried = copy.deepcopy(network).eval()
    silence = _silences(tried, [group for group in groups if group.name in names], images)
    result: list[LeftOut] = []
    # What each costs, and how many had gone when that was found.
    queue = [(0.0, -1, name) for name in names]
    while queue and len(result) < most:
        known, when, name = heapq.heappop(queue)
        if when == len(result):
            result.append(LeftOut(name, known))
            if progress is not None:
                progress(len(result), min(most, len(names)))
            continue
        gone = {key: module for one in result for key, module in silence[one.group].items()}
        with _left_out(tried, {**gone, **silence[name]}):
            outputs = _with_own_statistics(tried, images)
        heapq.heappush(queue, (_divergence(outputs, wanted, temperature), len(result), name))
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


def _with_own_statistics(network: nn.Module, images: Tensor) -> Tensor:
    """The outputs with batch norm on the statistics of this batch; running ones stay."""
    norms = statistics_layers(network)
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = 0.0
        norm.train()
    with torch.no_grad():
        outputs: Tensor = network(images)
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        norm.eval()
    return outputs


def _divergence(outputs: Tensor, wanted: Tensor, temperature: float) -> float:
    if outputs.ndim != 2:
        return float((outputs - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12))
    ours = functional.log_softmax(outputs / temperature, 1)
    theirs = functional.log_softmax(wanted / temperature, 1)
    found = functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return float(temperature**2 * found)


def _silences(
    network: nn.Module, groups: Sequence[Group], example: Tensor
) -> dict[str, dict[str, nn.Module]]:
    """For each of ``groups`` what takes the places of its consumers and their batch norms."""
    shapes = _shapes(network, [layer for group in groups for layer in group.consumers], example)
    behind = {
        layer: norm for layers, norm in batchnorm_pairs(network, example[:1]) for layer in layers
    }
    result: dict[str, dict[str, nn.Module]] = {}
    for group in groups:
        own = result.setdefault(group.name, {})
        for layer in group.consumers:
            _, channels, *sizes = shapes[layer]
            own[layer] = Nothing(network.get_submodule(layer), channels, sizes)
            if layer in behind:
                own[behind[layer]] = nn.Identity()
    return result


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
