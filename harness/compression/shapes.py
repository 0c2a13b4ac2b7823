"""How many parameters a network has once some of its channels are cut, without cutting them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.compression import prune
from harness.errors import BuildError
from harness.networks import CONVOLUTIONS, count_parameters
from harness.records import Group

__all__ = ["ParameterShapes", "parameter_shapes"]

# Modules with one parameter, or a pair of them, a channel.
PER_CHANNEL = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
)


@dataclass(frozen=True, slots=True)
class _Followed:
    """A parameter: its shape, and by dimension how much of it each group's channels take up."""

    shape: tuple[int, ...]
    taken: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True)
class ParameterShapes:
    """Which parameters follow which groups' widths.

    ``rest`` are the parameters that no group's width changes.
    """

    rest: int
    channels: Mapping[str, int]
    followed: tuple[_Followed, ...]

    def count(self, widths: Mapping[str, int]) -> int:
        """The parameters where each group named in ``widths`` keeps so many channels.

        What ``networks.count_parameters`` says of the network that was cut: batch norms count with
        their two numbers a channel, shared parameters once.
        """
        total = self.rest
        for parameter in self.followed:
            shape = list(parameter.shape)
            for dimension, group, taken in parameter.taken:
                whole = self.channels[group]
                shape[dimension] -= taken * (whole - widths.get(group, whole)) // whole
            total += math.prod(shape)
        return total


def parameter_shapes(
    network: nn.Module, example: Tensor, groups: Sequence[Group]
) -> ParameterShapes:
    """Which of the network's parameters follow the widths of ``groups``, by the dependency graph.

    BuildError where channels run through a module of which nobody knows what cutting leaves.
    """
    copied = copy.deepcopy(network)
    graph = prune.dependency_graph(copied, example)
    taken: dict[int, list[tuple[int, str, int]]] = {}
    parameters = {id(p): p for p in copied.parameters()}
    for group in groups:
        if not group.prunable:
            continue
        root = copied.get_submodule(group.producers[0])
        pruner = graph.get_pruner_of_module(root)
        members = graph.get_pruning_group(
            root, pruner.prune_out_channels, list(range(group.channels))
        )
        seen: set[tuple[int, int, tuple[int, ...]]] = set()
        for dependency, indices in members:
            module = dependency.target.module
            out = graph.is_out_channel_pruning_fn(dependency.handler)
            for parameter, dimension, size in _dimensions(module, out, tuple(indices), group):
                # A module that is called twice is a member twice.
                key = (id(parameter), dimension, tuple(indices))
                if key not in seen:
                    seen.add(key)
                    taken.setdefault(id(parameter), []).append((dimension, group.name, size))
    followed = tuple(
        _Followed(tuple(parameters[key].shape), tuple(dimensions))
        for key, dimensions in taken.items()
        if key in parameters
    )
    rest = count_parameters(network) - sum(math.prod(one.shape) for one in followed)
    return ParameterShapes(rest, {g.name: g.channels for g in groups}, followed)


def _dimensions(
    module: Any, out: bool, indices: tuple[int, ...], group: Group
) -> list[tuple[Tensor, int, int]]:
    """The parameters of ``module`` that the channels run through, which dimension, how far."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    count = len(indices)
    if isinstance(module, prune.TRANSPOSED):
        found = [(weight, 1, count // module.groups), (bias, 0, count)] if out else []
        found = found or [(weight, 0, count)]
    elif isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        found = [(weight, 0, count), (bias, 0, count)]
        if not out:
            width = module.weight.shape[1]
            found = [(weight, 1, len({index % width for index in indices}))]
    elif isinstance(module, PER_CHANNEL):
        found = [(weight, -1, count), (bias, -1, count)]
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            found = []
    elif isinstance(module, nn.Module) and any(True for _ in module.parameters()):
        raise BuildError(
            f"the channels of group {group.name} run through a {type(module).__name__}, of which "
            "it is not known how many parameters cutting leaves; leave the group whole"
        )
    else:
        found = []
    return [(p, dimension, size) for p, dimension, size in found if p is not None]
