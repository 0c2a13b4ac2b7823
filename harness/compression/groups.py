"""Groups of coupled channels, from torch-pruning's dependency graph."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor, nn

from harness.compression import prune
from harness.errors import BuildError, ConfigError
from harness.networks import CONVOLUTIONS, layers_in_order
from harness.records import Group

__all__ = ["find_groups"]


def find_groups(network: nn.Module, example: Tensor) -> tuple[Group, ...]:
    """The groups of a network, in order of depth; every layer belongs to exactly one.

    A group bears the name of its first producer. It is prunable if its channels carry the same
    numbers in every producer, no grouped convolution or group norm ties them in blocks, and the
    network still runs, with outputs of the same shape, after some were cut; a layer of which this
    is not true (the classifier, a stream that is padded with zero channels) forms a group of its
    own whose only choice is precision. Raises ConfigError where no group can be pruned.
    """
    layers = layers_in_order(network, example)
    if not layers:
        raise ConfigError("the network has no convolution and no linear layer; nothing to compress")
    copied = copy.deepcopy(network)
    names = {copied.get_submodule(name): name for name in layers}
    depth = {name: index for index, name in enumerate(layers)}
    graph = prune.dependency_graph(copied, example)

    groups: list[Group] = []
    assigned: set[str] = set()
    for name in layers:
        if name in assigned:
            continue
        group = _group_of(graph, copied.get_submodule(name), names, depth)
        if group.prunable and not assigned.isdisjoint(group.producers):
            group = dataclasses.replace(group, prunable=False)
        if not group.prunable:
            group = dataclasses.replace(group, name=name, producers=(name,))
        groups.append(group)
        assigned.update(group.producers)

    groups = _tried(network, example, groups)
    if not any(group.prunable for group in groups):
        raise ConfigError(
            f"none of the network's {len(layers)} layers can be pruned: torch-pruning found no "
            "channels that can be removed without changing the shape of the outputs"
        )
    return tuple(groups)


def _group_of(graph: Any, root: nn.Module, names: dict[Any, str], depth: dict[str, int]) -> Group:
    channels = _out_channels(root)
    members = graph.get_pruning_group(
        root, graph.get_pruner_of_module(root).prune_out_channels, list(range(channels))
    )
    producers: set[str] = set()
    consumers: set[str] = set()
    prunable = True
    for dependency, indices in members:
        module = dependency.target.module
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            prunable = False
        if isinstance(module, nn.Parameter):
            prunable = False  # a bare parameter may be read in ways that no layer type tells
        if module not in names:
            continue
        if _tied_in_blocks(module):
            prunable = False
        if graph.is_out_channel_pruning_fn(dependency.handler):
            producers.add(names[module])
            # Any other numbering (concatenation, padding) would need a map of its own.
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
    )


def _out_channels(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]


def _tied_in_blocks(layer: nn.Module) -> bool:
    """Whether a convolution's channels go in blocks (grouped, but not one channel a group)."""
    return (
        isinstance(layer, CONVOLUTIONS)
        and layer.groups > 1
        and not layer.groups == layer.in_channels == layer.out_channels
    )


def _tried(network: nn.Module, example: Tensor, groups: list[Group]) -> list[Group]:
    """The groups, with those marked not prunable whose pruning breaks the network."""

    def runs(candidates: list[Group]) -> bool:
        # Two of three channels stay: a set that shapes fixed in the code do not happen to fit.
        kept = {
            group.name: tuple(channel for channel in range(group.channels) if channel % 3)
            for group in candidates
        }
        try:
            prune.prune(network, example, candidates, kept)
        except BuildError:
            return False
        return True

    wide = [group for group in groups if group.prunable and group.channels > 1]
    good = wide if runs(wide) else [group for group in wide if runs([group])]
    return [dataclasses.replace(group, prunable=group in good) for group in groups]
