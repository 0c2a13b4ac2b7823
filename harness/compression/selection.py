"""Which channels of a group can be made up for by those that stay.

Curvature at the trained weights says what a channel's removal costs if nothing else changes. What
reads the channels is fitted again after the cut, though (``reconstruct``), and a channel whose part
the others can take over then costs little, however large it was. So channels are removed one by
one, each time the one that leaves the least error of the group's consumers after the rest of their
weights has been fitted again, in closed form, to what they gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.compression.fakequant import watch_inputs
from harness.compression.patches import patches, plain_shapes
from harness.compression.reconstruct import enough_ridge
from harness.errors import BuildError
from harness.networks import LAYER_TYPES, Layer, fold_batchnorm
from harness.records import Group

__all__ = ["Moments", "Removal", "eliminate", "removals"]

RIDGE = 1e-3
# How often, at least, the channels of a wide group are looked at while they are removed.
LOOKS = 128


@dataclass(frozen=True, slots=True)
class Removal:
    """A group's channels in the order of their removal, the first to go first.

    ``changes[layer][width]`` is what is then added to a consumer's weights (batch norm folded), of
    which those on removed channels become zero, for the widths that were asked for; ``offsets``
    has the same for its bias. ``errors`` has, for each channel removed, the mean squared error of
    the consumers' outputs until then, as a share of their variance.
    """

    order: tuple[int, ...]
    errors: tuple[float, ...]
    changes: Mapping[str, Mapping[int, Tensor]]
    offsets: Mapping[str, Mapping[int, Tensor]]

    def kept(self, channels: int) -> tuple[int, ...]:
        """The ``channels`` that stay the longest, in rising order."""
        return tuple(sorted(self.order[len(self.order) - channels :]))

    def scores(self) -> tuple[float, ...]:
        """A score a channel: higher the longer it stays."""
        places = {channel: place for place, channel in enumerate(self.order)}
        return tuple(float(places[channel]) for channel in range(len(self.order)))


class Moments:
    """Mean and second moments of what one layer reads, at up to ``positions`` of its ``places``."""

    def __init__(self, layer: Layer, places: tuple[int, ...], *, positions: int, seed: int) -> None:
        inputs = layer.weight[0].numel()
        self.layer = layer
        self.count = 0
        self._places = places
        self._samples = min(positions, math.prod(places))
        self._generator = torch.Generator().manual_seed(seed)
        self._x = torch.zeros(inputs, dtype=torch.double)
        self._xx = torch.zeros(inputs, inputs, dtype=torch.double)

    def add(self, read: Tensor) -> None:
        """Take note of a batch."""
        size = (len(read), self._samples)
        coordinates = tuple(
            torch.randint(0, places, size, generator=self._generator) for places in self._places
        )
        x = patches(self.layer, read, coordinates).flatten(0, 1).double()
        self.count += len(x)
        self._x += x.sum(0)
        self._xx += x.T @ x

    def centred(self) -> tuple[Tensor, Tensor]:
        """The inputs' mean, and their covariance."""
        mean = self._x / self.count
        return mean, self._xx / self.count - torch.outer(mean, mean)


def removals(
    network: nn.Module,
    groups: Sequence[Group],
    images: Tensor,
    widths: Mapping[str, Sequence[int]],
    *,
    ridge: float = RIDGE,
    positions: int = 32,
    batch: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Removal]:
    """For each of the ``groups`` in ``widths`` the order in which its channels are best removed.

    A group that cannot be judged so is left out: one that lies in blocks, that a grouped or
    repeated layer reads, or whose channels reach a consumer at an offset. ``images`` ``(n, ...)``
    are seen once, up to ``positions`` places of each; ``ridge`` is as in ``reconstruct``.
    ``progress(done, of)`` counts groups. BuildError for settings out of range.

    Source: the optimal brain surgeon (Hassibi, Stork, NIPS 1992) for blocks of weights and a
    layer's own squared error, as in Frantar, Alistarh, *Optimal Brain Compression*, NeurIPS 2022,
    section 4, with one channel's weights in all outputs as the block.
    """
    if ridge <= 0 or positions < 1 or not len(images):
        raise BuildError(
            f"choosing channels needs images, a ridge above 0 and at least 1 position an image; "
            f"got {len(images)} images, ridge {ridge}, positions {positions}"
        )
    folded = fold_batchnorm(network, images[:1])
    asked = [group for group in groups if group.prunable and group.name in widths]
    judged, places = _judged(folded, asked, images[:1])
    moments = {
        name: Moments(
            folded.get_submodule(name),  # type: ignore[arg-type]
            places[name],
            positions=positions,
            seed=seed + index,
        )
        for index, name in enumerate({c: None for group in judged for c in group.consumers})
    }
    layers = {name: found.layer for name, found in moments.items()}
    watch_inputs(folded, layers, images, batch, lambda name, read: moments[name].add(read))
    result = {}
    for index, group in enumerate(judged):
        own = {name: moments[name] for name in group.consumers}
        result[group.name] = eliminate(own, group.channels, widths[group.name], ridge=ridge)
        if progress is not None:
            progress(index + 1, len(judged))
    return result


def _judged(
    network: nn.Module, groups: Sequence[Group], example: Tensor
) -> tuple[list[Group], dict[str, tuple[int, ...]]]:
    """The groups that can be judged, and the places that their consumers' outputs have."""
    shapes = plain_shapes(network, {c for group in groups for c in group.consumers}, example)

    def readable(name: str, channels: int) -> bool:
        layer = network.get_submodule(name)
        assert isinstance(layer, LAYER_TYPES)
        # One input channel after the other, as many as the group has: no map is needed.
        own = getattr(layer, "groups", 1) == 1 and int(layer.weight.shape[1]) == channels
        return own and len(shapes.get(name, ())) == 1

    judged = [
        group
        for group in groups
        if group.blocks == 1 and all(readable(name, group.channels) for name in group.consumers)
    ]
    return judged, {name: calls[0][2:] for name, calls in shapes.items()}


class _Consumer:
    """One consumer's weights and inverse covariance while channels are removed."""

    def __init__(self, moments: Moments, channels: int, ridge: float) -> None:
        self.mean, covariance = moments.centred()
        weight: Tensor = moments.layer.weight.detach().double().flatten(1)
        self.taps = weight.shape[1] // channels
        self.original = weight
        self.weight = weight.clone()
        self.power = max(float(((weight @ covariance) * weight).sum()), 1e-30)
        ridge = enough_ridge(ridge, inputs=len(covariance), samples=moments.count)
        scale = covariance.diagonal().mean().clamp_min(torch.finfo(torch.double).tiny ** 0.5)
        damped = covariance + ridge * scale * torch.eye(len(covariance), dtype=torch.double)
        self.inverse: Tensor = torch.linalg.inv(damped)
        self.channels = channels

    def costs(self) -> Tensor:
        """What removing each channel alone would add to the squared error, as a share."""
        rows = _rows(torch.arange(self.channels), self.taps).view(self.channels, self.taps)
        blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
        # Those of removed channels are zero; their weights are as well.
        gone = blocks.diagonal(dim1=1, dim2=2).sum(1) == 0
        blocks[gone] = torch.eye(self.taps, dtype=torch.double)
        weight = self.weight.view(len(self.weight), self.channels, self.taps).permute(1, 2, 0)
        shares: Tensor = (weight * torch.linalg.solve(blocks, weight)).sum((1, 2)) / self.power
        return shares

    def remove(self, channels: Tensor) -> float:
        """Take channels out together and fit the rest again; what it adds to the error's share."""
        own = _rows(channels, self.taps)
        weight = self.weight[:, own]
        factors = torch.linalg.solve(self.inverse[own][:, own], self.inverse[own])
        error = float((weight * torch.linalg.solve(self.inverse[own][:, own], weight.T).T).sum())
        self.weight -= weight @ factors
        self.inverse -= self.inverse[:, own] @ factors
        self.weight[:, own] = 0
        self.inverse[own] = 0
        self.inverse[:, own] = 0
        return error / self.power

    def change(self) -> tuple[Tensor, Tensor]:
        change = self.weight - self.original
        return change, -change @ self.mean


def _rows(channels: Tensor, taps: int) -> Tensor:
    """The places of channels' inputs, each of ``taps`` numbers."""
    return (channels[:, None] * taps + torch.arange(taps)).flatten()


def eliminate(
    consumers: Mapping[str, Moments],
    channels: int,
    widths: Sequence[int],
    *,
    ridge: float = RIDGE,
) -> Removal:
    """The order in which ``channels`` that ``consumers`` read are removed, and what it changes.

    Of many channels a few go at once, the cheapest, and are made up for together: no more than a
    hundredth or so between two looks at what the others are worth.
    """
    own = {name: _Consumer(moments, channels, ridge) for name, moments in consumers.items()}
    changes: dict[str, dict[int, Tensor]] = {name: {} for name in own}
    offsets: dict[str, dict[int, Tensor]] = {name: {} for name in own}
    order: list[int] = []
    errors: list[float] = []
    stops = sorted({width for width in widths if width < channels})
    costs = torch.zeros(channels, dtype=torch.double)
    while stops:
        costs = torch.stack([consumer.costs() for consumer in own.values()]).sum(0)
        costs[order] = torch.inf
        left = channels - len(order)
        count = min(max(1, channels // LOOKS), left - stops[-1])
        cheapest = costs.argsort(stable=True)[:count]
        added = sum(consumer.remove(cheapest) for consumer in own.values())
        order += cheapest.tolist()
        errors += [(errors[-1] if errors else 0.0) + added] * count
        if left - count == stops[-1]:
            for name, consumer in own.items():
                change, offset = consumer.change()
                shape = consumers[name].layer.weight.shape
                changes[name][stops[-1]] = change.view(shape).float()
                offsets[name][stops[-1]] = offset.float()
            stops.pop()
    # Below the least width nothing was asked: what is dear to remove stays the longest.
    costs[order] = -torch.inf
    order += costs.argsort(stable=True)[len(order) :].tolist()
    return Removal(order=tuple(order), errors=tuple(errors), changes=changes, offsets=offsets)
