"""What removing channels costs when what reads them is fitted again.

Removing channels and fitting the consumers again (``compression.selection``) changes a consumer's
weights by ``dW`` and its bias by ``db``, and nothing else. So the score of an option is that of any
other change of weights (``curvature``), taken at the consumer::

    S = 1/(2N) * sum_n ( sum over consumers of <G_n, dW> + <h_n, db> )^2

with ``G_n`` and ``h_n`` the gradients of image n's loss with respect to weights and bias.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.compression import selection
from harness.compression.selection import Removal
from harness.networks import LAYER_TYPES, fingerprint, fold_batchnorm
from harness.records import Group, Option
from harness.sensitivity import curvature
from harness.sensitivity.inner import Changes, Recorder
from harness.sensitivity.results import Sensitivities, digest, kept_as

__all__ = ["refitted", "rescored", "scored", "scores"]

# Logits are divided by this where plans score options, as in distillation: at 1 a network that was
# trained on the images hardly sees a change. Over 19 allocations of ResNet-20 the rank correlation
# with the points lost untrained is 0.98 by curvature at 4, and 0.99 with widths as fitted again.
TEMPERATURE = 4.0
# Part of the cache key of ``scored``: raise it when what is scored changes.
FORMULA = 1


def scores(
    network: nn.Module,
    removed: Mapping[str, Removal],
    images: Tensor,
    *,
    draws: int = 2,
    temperature: float = 4.0,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[int, float]]:
    """The expected loss of every width of every group in ``removed``, label-free.

    From one pass over ``images`` ``(n, ...)`` with ``draws`` draws an image, as ``curvature.score``
    has them, at the ``temperature`` of distillation: one group of ResNet-56 cut to 24, 16 and 8 of
    64 channels costs a divergence (times its square) of 0.17, 0.35 and 1.15 at 4 on fresh images,
    and 0.10, 0.20 and 0.43 are expected; at 1 it costs 0.009, 0.021 and 0.051, and on images that
    the network was trained on 0.001, 0.002 and 0.003 are expected.
    ``progress(done, of)`` counts images.
    """
    folded = fold_batchnorm(network, images[:1])
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    watched = {
        name: _Consumer(folded, name, removal)
        for removal in removed.values()
        for name in removal.changes
    }
    rows: dict[str, list[Tensor]] = {group: [] for group in removed}
    streams = [torch.Generator().manual_seed(seed * 1009 + draw) for draw in range(draws)]
    with contextlib.ExitStack() as hooks, torch.enable_grad():
        for consumer in watched.values():
            hooks.enter_context(consumer.watching())
        for start in range(0, len(images), batch):
            part = images[start : start + batch].detach().requires_grad_(True)
            outputs = folded(part)
            for index, stream in enumerate(streams):
                loss = curvature.label_free_loss(outputs, stream, temperature)
                torch.autograd.grad(loss, part, retain_graph=index < draws - 1, allow_unused=True)
                for group, removal in removed.items():
                    rows[group].append(sum(watched[name].take() for name in removal.changes))  # type: ignore[arg-type]
            del outputs, loss
            if progress is not None:
                progress(start + len(part), len(images))
    result = {}
    for group, removal in removed.items():
        found = torch.cat(rows[group], 1).double().square().mean(1) / 2
        widths = next(iter(removal.changes.values()))
        result[group] = dict(zip(widths, found.tolist(), strict=True))
    return result


class _Consumer:
    """One consumer with the changes that the widths make to it."""

    def __init__(self, network: nn.Module, name: str, removal: Removal) -> None:
        layer = network.get_submodule(name)
        assert isinstance(layer, LAYER_TYPES)
        changes, offsets = removal.changes[name], removal.offsets[name]
        self._layer = layer
        self._offsets = torch.stack(list(offsets.values()))
        weights = torch.stack(list(changes.values()))
        self._recorder = Recorder(layer, Changes(weights, ()), per_channel=False)
        self._means: list[Tensor] = []

    @contextlib.contextmanager
    def watching(self) -> Any:
        with self._layer.register_forward_hook(self._see):
            yield

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._means.append(self._summed(gradient.detach()))
        )
        return self._recorder(module, inputs, output)

    def _summed(self, gradient: Tensor) -> Tensor:
        """The gradient of each image's loss with respect to the bias, ``(n, channels)``."""
        if isinstance(self._layer, nn.Linear):
            return gradient.reshape(len(gradient), -1, gradient.shape[-1]).sum(1)
        return gradient.flatten(2).sum(2)

    def take(self) -> Tensor:
        """What the last backward pass has left: ``(widths, images)``."""
        bias = self._means.pop()
        found = self._recorder.take(len(bias)).weights[..., 0]
        return found + self._offsets @ bias.T


def refitted(
    sensitivities: Sensitivities,
    removed: Mapping[str, Removal],
    values: Mapping[str, Mapping[int, float]],
) -> Sensitivities:
    """``sensitivities`` with the channels and losses of groups that are fitted again.

    An option costs what its width does by ``values``, and what its precision costs the whole group.
    """
    new_values, channel_scores = dict(sensitivities.values), dict(sensitivities.channel_scores)
    for group, by_width in values.items():
        options = sensitivities.options[group]
        whole = max(option.channels for option in options)
        rounding = {
            option.precision: value
            for option, value in zip(options, sensitivities.values[group], strict=True)
            if option.channels == whole
        }
        new_values[group] = tuple(
            rounding[option.precision]
            + (by_width[option.channels] if option.channels < whole else 0.0)
            for option in options
        )
        channel_scores[group] = removed[group].scores()
    return replace(sensitivities, values=new_values, channel_scores=channel_scores)


def rescored(
    network: nn.Module,
    groups: Sequence[Group],
    sensitivities: Sensitivities,
    images: Tensor,
    *,
    positions: int = 32,
    temperature: float = 4.0,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivities:
    """``sensitivities`` for layers that are fitted again after a cut, as built variants are.

    Channels are chosen and widths scored by one pass each over ``images``; ``sensitivities`` are to
    be of the same ``temperature``. Groups that cannot be judged so keep what they have.
    """
    widths = {
        group.name: sorted({option.channels for option in own if option.channels < group.channels})
        for group in groups
        for own in [sensitivities.options[group.name]]
    }
    wanted = {name: own for name, own in widths.items() if own}
    removed = selection.removals(
        network, groups, images, wanted, positions=positions, seed=seed, batch=batch
    )
    if not removed:
        return sensitivities
    values = scores(
        network,
        removed,
        images,
        temperature=temperature,
        seed=seed,
        batch=batch,
        progress=progress,
    )
    return refitted(sensitivities, removed, values)


def scored(
    network: nn.Module,
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    images: Tensor,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivities:
    """The sensitivities that plans rest on: rounding by curvature, widths as fitted again."""

    def compute() -> Sensitivities:
        found = curvature.score(
            network, groups, options, images, temperature=TEMPERATURE, seed=seed, progress=progress
        )
        return rescored(
            network, groups, found, images, temperature=TEMPERATURE, seed=seed, progress=progress
        )

    if cache is None:
        return compute()
    parts = [str((FORMULA, TEMPERATURE, seed)), repr(network), fingerprint(network)]
    parts += [f"{name} {own}" for name, own in sorted(options.items())]
    key = digest([*parts, *map(str, groups), images])
    return kept_as(Sensitivities, cache, f"planned-{key[:32]}", compute)
