"""Batch-norm statistics of a compressed network, estimated again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from harness.errors import BuildError
from harness.networks import BATCH_NORMS

__all__ = ["Corrections", "corrections", "reestimate", "statistics_layers"]

# For each batch norm: what is added to a re-estimated mean, in standard deviations, and what the
# variance is multiplied by.
Corrections: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]


def statistics_layers(
    network: nn.Module,
) -> dict[str, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """The batch norms that keep statistics, by name."""
    return {
        name: m
        for name, m in network.named_modules()
        if isinstance(m, BATCH_NORMS) and m.running_mean is not None
    }


def corrections(trained: nn.Module, reestimated: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """What re-estimation gets wrong because its images are not those of training.

    ``trained`` is the original network with its own statistics, ``reestimated`` a copy with those
    of the calibration images; both cut to the same channels where a pruned network is to be
    corrected. The differences are those of the images, not of compression: a few hundred images
    that are not augmented as in training change the statistics of an untouched network, and cost
    it accuracy. In units of the images' own spread, so that a policy which scales and shifts what
    a channel gives is followed exactly. Raises BuildError where the networks differ in their batch
    norms.
    """
    before, after = statistics_layers(trained), statistics_layers(reestimated)
    result = {}
    for name in before.keys() | after.keys():
        a, b = before.get(name), after.get(name)
        if a is None or b is None or a.num_features != b.num_features:
            raise BuildError(
                f"batch norm {name} is not the same in both networks; cut both to the same channels"
            )
        assert a.running_mean is not None and a.running_var is not None
        assert b.running_mean is not None and b.running_var is not None
        # A channel that never varies, on these images or in training, has nothing to be scaled by.
        varies = torch.minimum(a.running_var, b.running_var)
        still = varies <= torch.finfo(varies.dtype).tiny
        ratio = torch.where(still, 1.0, a.running_var / b.running_var)
        shift = torch.where(still, 0.0, (a.running_mean - b.running_mean) / b.running_var.sqrt())
        result[name] = (shift, ratio)
    return result


def reestimate(
    network: nn.Module, images: Tensor, *, batch: int = 128, corrected: Corrections | None = None
) -> None:
    """Replace the running statistics of every batch norm, in place, by those on ``images``.

    Running mean and variance are reset and accumulated as the plain mean over batches
    (``momentum=None``), so the order of the batches does not matter; a remainder that would make
    a smaller batch is left out where there is a full one. The network is left in evaluation mode.
    Dynamic BN of the two-stage paper; its nearest relative is EagleEye's adaptive BN (Li et al.,
    ECCV 2020). With ``corrected`` (of the same images and batch) only what compression changed is
    taken from the images, and the rest from training: a control variate.
    """
    layers = statistics_layers(network)
    network.eval()
    if not layers:
        return
    momenta = {name: layer.momentum for name, layer in layers.items()}
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    full = max(len(images) // batch, 1) * batch
    with torch.no_grad():
        for start in range(0, min(full, len(images)), batch):
            network(images[start : start + batch])
        for name, layer in layers.items():
            layer.momentum = momenta[name]
            if corrected is not None:
                assert layer.running_mean is not None and layer.running_var is not None
                shift, ratio = corrected[name]
                layer.running_mean += shift * layer.running_var.sqrt()
                layer.running_var *= ratio
    network.eval()
