"""Cutting channels out of a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from harness.errors import BuildError
from harness.networks import output_shapes
from harness.records import Group

__all__ = ["dependency_graph", "prune"]


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
    known = {group.name: group for group in groups}
    if unknown := sorted(set(kept) - set(known)):
        raise BuildError(f"cannot prune {', '.join(unknown)}: no such group in this network")
    for name, channels in kept.items():
        _check(known[name], channels)

    pruned = copy.deepcopy(network).eval()
    requires_grad = {name: p.requires_grad for name, p in pruned.named_parameters()}
    try:
        graph = dependency_graph(pruned, example)
        for name, channels in kept.items():
            removed = sorted(set(range(known[name].channels)) - set(channels))
            if removed:
                root = pruned.get_submodule(known[name].producers[0])
                cut = graph.get_pruner_of_module(root).prune_out_channels
                graph.get_pruning_group(root, cut, removed).prune(record_history=False)
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


def _check(group: Group, channels: tuple[int, ...]) -> None:
    if not channels:
        raise BuildError(f"group {group.name}: at least one channel must stay")
    if list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= group.channels:
        raise BuildError(
            f"group {group.name}: kept channels must rise and lie in 0..{group.channels - 1}, "
            f"got {channels}"
        )
    if len(channels) < group.channels and not group.prunable:
        raise BuildError(f"group {group.name} is not prunable: its outputs must stay")
