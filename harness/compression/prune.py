"""Cutting channels out of a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from harness.errors import BuildError
from harness.networks import LAYER_TYPES, output_shapes
from harness.records import Group

__all__ = ["dependency_graph", "muted", "prune"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def dependency_graph(network: nn.Module, example: Tensor) -> Any:
    """torch-pruning's dependency graph of ``network``, which must not be shared: it is traced."""
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(True)  # the graph is read off autograd's
    with torch.enable_grad():
        # A tuple: a bare tensor would be unpacked into its images, one argument each.
        return torch_pruning.DependencyGraph().build_dependency(
            network, (example[:1],), verbose=False
        )


def prune(
    network: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
) -> nn.Module:
    """A copy of the network, in evaluation mode, with only the ``kept`` channels of each group.

    ``kept`` maps names of groups to the channels that stay, in rising order; groups that it does
    not name stay whole. Batch norm keeps its parameters and statistics. Raises BuildError where
    the channels are not a group's or the result does not run with outputs of the same shape.
    """
    known = _checked(groups, kept)
    pruned = copy.deepcopy(network).eval()
    requires_grad = {name: p.requires_grad for name, p in pruned.named_parameters()}
    try:
        graph = dependency_graph(pruned, example)
        for name, channels in kept.items():
            if len(channels) < known[name].channels:
                _members(graph, pruned, known[name], channels).prune(record_history=False)
        shapes = output_shapes(pruned, example[:2])
    except (RuntimeError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        # What torch-pruning and a network with the wrong shapes raise.
        raise BuildError(f"pruning {', '.join(kept)} breaks the network: {error}") from error
    wanted = output_shapes(network, example[:2])
    if shapes != wanted:
        raise BuildError(
            f"pruning {', '.join(kept)} changes the network's outputs from {wanted} to {shapes}"
        )
    for name, parameter in pruned.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(requires_grad[name])
    return pruned


def muted(
    network: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
) -> nn.Module:
    """A copy in evaluation mode and of whole shape that reads only the ``kept`` channels.

    Where a consumer reads a channel that is to go, its weights are zero, so whatever lies between
    producer and consumer (an activation that is not zero at zero, a batch norm's shift) the copy
    computes what the pruned network has to compute. Only where channels are mixed on the way (a
    layer norm) do the two differ. Raises BuildError where the channels are not a group's.
    """
    known = _checked(groups, kept)
    copied = copy.deepcopy(network).eval()
    requires_grad = [parameter.requires_grad for parameter in copied.parameters()]
    graph = dependency_graph(copied, example)
    for name, channels in kept.items():
        if len(channels) == known[name].channels:
            continue
        for dependency, removed in _members(graph, copied, known[name], channels):
            module = dependency.target.module
            if graph.is_out_channel_pruning_fn(dependency.handler):
                continue  # a producer, or what treats every channel for itself
            if isinstance(module, TRANSPOSED):
                module.weight.data[list(removed)] = 0
            elif isinstance(module, LAYER_TYPES):
                # Of a grouped convolution the same places go in every block.
                width = module.weight.shape[1]
                module.weight.data[:, sorted({channel % width for channel in removed})] = 0
    for parameter, wanted in zip(copied.parameters(), requires_grad, strict=True):
        parameter.requires_grad_(wanted)
    return copied


def _members(graph: Any, network: nn.Module, group: Group, channels: tuple[int, ...]) -> Any:
    """What goes with the channels that are not in ``channels``: torch-pruning's own group."""
    removed = sorted(set(range(group.channels)) - set(channels))
    root = network.get_submodule(group.producers[0])
    return graph.get_pruning_group(
        root, graph.get_pruner_of_module(root).prune_out_channels, removed
    )


def _checked(groups: Sequence[Group], kept: Mapping[str, tuple[int, ...]]) -> dict[str, Group]:
    """The groups by name, after a look at what is to be kept of them."""
    known = {group.name: group for group in groups}
    if unknown := sorted(set(kept) - set(known)):
        raise BuildError(f"cannot prune {', '.join(unknown)}: no such group in this network")
    for name, channels in kept.items():
        _check(known[name], channels)
    return known


def _check(group: Group, channels: tuple[int, ...]) -> None:
    if not channels:
        raise BuildError(f"group {group.name}: at least one channel must stay")
    if list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= group.channels:
        raise BuildError(
            f"group {group.name}: kept channels must rise and lie in 0..{group.channels - 1}, "
            f"got {channels}"
        )
    size = group.channels // group.blocks
    places = {channel % size for channel in channels}
    if len(channels) != len(places) * group.blocks:
        raise BuildError(
            f"group {group.name}: the same places must stay in each of its {group.blocks} blocks "
            f"of {size} channels, got {channels}"
        )
    if len(channels) < group.channels and not group.prunable:
        raise BuildError(f"group {group.name} is not prunable: its outputs must stay")
