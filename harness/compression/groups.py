"""Groups of coupled channels, from torch-pruning's dependency graph."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.compression import prune
from harness.compression.patches import plain_shapes
from harness.errors import BuildError, ConfigError
from harness.networks import CONVOLUTIONS, layers_in_order
from harness.networks.structure import outputs_of, same_outputs
from harness.records import Group

__all__ = ["best_channels", "find_groups"]

# Every channel's result depends on the others', so that none can go without a trace.
MIXING = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RNNBase)


def find_groups(network: nn.Module, example: Tensor, *, blocks: bool = False) -> tuple[Group, ...]:
    """The groups of a network, in order of depth; every layer belongs to exactly one.

    A group bears the name of its first producer. It is prunable if its channels carry the same
    numbers in every producer, no group norm of several groups reads them, and a trial succeeds:
    with some of its channels cut the network still runs, and computes what it does when its
    consumers ignore these channels. Consumers may read the channels at an offset, behind a
    concatenation. A layer of which this is not true (the classifier, a stream that is padded with
    zero channels, shuffled or split channels) forms a group of its own whose only choice is
    precision. So does one that a grouped convolution makes or reads, unless the caller asks for
    ``blocks``: the widths of such a group must be multiples of ``Group.blocks``. Raises ConfigError
    where no group can be pruned.
    """
    layers = layers_in_order(network, example)
    if not layers:
        raise ConfigError("the network has no convolution and no linear layer; nothing to compress")
    copied = copy.deepcopy(network)
    names = {copied.get_submodule(name): name for name in layers}
    depth = {name: index for index, name in enumerate(layers)}
    graph = prune.dependency_graph(copied, example)

    plain = set(plain_shapes(network, layers, _probe(network, example)))
    groups: list[Group] = []
    mixed: set[str] = set()
    assigned: set[str] = set()
    for name in layers:
        if name in assigned:
            continue
        members = _members(graph, copied.get_submodule(name))
        group = _group_of(graph, members, names, depth)
        if group.blocks > 1 and not blocks:
            group = dataclasses.replace(group, prunable=False)
        if _mixes(members) or not plain.issuperset({*group.producers, *group.consumers}):
            mixed.add(group.name)
        if group.prunable and not assigned.isdisjoint(group.producers):
            group = dataclasses.replace(group, prunable=False)
        if not group.prunable:
            group = dataclasses.replace(group, name=name, producers=(name,), blocks=1)
        groups.append(group)
        assigned.update(group.producers)

    groups = _tried(network, example, groups, mixed)
    if not any(group.prunable for group in groups):
        raise ConfigError(
            f"none of the network's {len(layers)} layers can be pruned: torch-pruning found no "
            "channels that can be removed without changing the shape of the outputs"
        )
    return tuple(groups)


def _members(graph: Any, root: nn.Module) -> Any:
    """torch-pruning's group of all output channels of ``root``."""
    return graph.get_pruning_group(
        root, graph.get_pruner_of_module(root).prune_out_channels, list(range(_out_channels(root)))
    )


def _mixes(members: Any) -> bool:
    return any(isinstance(dependency.target.module, MIXING) for dependency, _ in members)


def _group_of(graph: Any, members: Any, names: dict[Any, str], depth: dict[str, int]) -> Group:
    channels = len(members[0].idxs)
    producers: set[str] = set()
    consumers: set[str] = set()
    prunable = True
    blocks = 1
    for dependency, indices in members:
        module = dependency.target.module
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            prunable = False
        if isinstance(module, nn.Parameter):
            prunable = False  # a bare parameter may be read in ways that no layer type tells
        if module not in names:
            continue
        if _tied_in_blocks(module):
            blocks = math.lcm(blocks, module.groups)
            if list(indices) != list(range(channels)):
                prunable = False  # blocks that begin elsewhere, behind a concatenation
        if graph.is_out_channel_pruning_fn(dependency.handler):
            producers.add(names[module])
            # A producer of more channels than these (padding, concatenation before a sum) would
            # need a map of its own wherever producers are scored or cut together.
            if list(indices) != list(range(channels)) or _out_channels(module) != channels:
                prunable = False
        else:
            consumers.add(names[module])
    ordered = tuple(sorted(producers, key=depth.__getitem__))
    return Group(
        name=ordered[0],
        channels=channels,
        producers=ordered,
        consumers=tuple(sorted(consumers, key=depth.__getitem__)),
        prunable=prunable and bool(consumers),  # what no layer reads is an output
        blocks=blocks,
    )


def best_channels(group: Group, scores: Sequence[float], channels: int) -> tuple[int, ...]:
    """The ``channels`` channels of a group with the largest scores, in rising order.

    In a group of several blocks, the places with the largest sums over the blocks; ``channels`` is
    rounded down to whole places, at least one. Ties go to the lower channel.
    """
    size = group.channels // group.blocks
    sums = [math.fsum(scores[place::size]) for place in range(size)]
    order = sorted(range(size), key=lambda place: (-sums[place], place))
    places = sorted(order[: max(channels // group.blocks, 1)])
    return tuple(block * size + place for block in range(group.blocks) for place in places)


def _out_channels(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]


def _tied_in_blocks(layer: nn.Module) -> bool:
    """Whether a convolution's channels go in blocks (grouped, but not one channel a group)."""
    return (
        isinstance(layer, CONVOLUTIONS)
        and layer.groups > 1
        and not layer.groups == layer.in_channels == layer.out_channels
    )


def _tried(
    network: nn.Module, example: Tensor, groups: list[Group], mixed: set[str]
) -> list[Group]:
    """The groups, with those marked not prunable whose pruning breaks the network.

    Groups join a growing set, by halves: where all are good, as in most networks, one trial is
    enough, and what is found prunable is prunable together.
    """
    good: list[Group] = []

    def admit(candidates: list[Group], compared: bool) -> None:
        if not candidates:
            return
        if _works(network, example, [*good, *candidates], compared):
            good.extend(candidates)
        elif len(candidates) > 1:
            half = len(candidates) // 2
            admit(candidates[:half], compared)
            admit(candidates[half:], compared)

    wide = [group for group in groups if group.prunable and group.channels > group.blocks]
    admit([group for group in wide if group.name not in mixed], True)
    admit([group for group in wide if group.name in mixed], False)
    return [
        group if group in good else dataclasses.replace(group, prunable=False, blocks=1)
        for group in groups
    ]


def _works(network: nn.Module, example: Tensor, groups: list[Group], compared: bool) -> bool:
    """Whether the network can be pruned in all these groups at once.

    Shapes alone would pass channels that are shuffled on their way: the network runs, on the wrong
    channels. So values are ``compared``, where no layer mixes channels (a layer norm, weights that
    are normalised before they are used).
    """
    # Two of three channels stay: a set that shapes fixed in the code do not happen to fit.
    kept = {
        group.name: tuple(
            channel
            for channel in range(group.channels)
            if channel % (group.channels // group.blocks) % 3
        )
        for group in groups
    }
    try:
        pruned = prune.prune(network, example, groups, kept)
    except BuildError:
        return False
    if not compared:
        return True
    muted = prune.muted(network, example, groups, kept)
    probe = _probe(muted, example)
    return same_outputs(outputs_of(muted, probe), outputs_of(pruned, probe))


def _probe(network: nn.Module, example: Tensor) -> Tensor:
    """Random inputs like the example, which may be blank; the example where they are no use."""
    if example.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(example[:2].shape, generator=generator).to(example.dtype)
        if all(bool(output.isfinite().all()) for output in outputs_of(network, probe)):
            return probe
    return example[:2]
