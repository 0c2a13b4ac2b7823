"""Batch-norm statistics of a compressed network, estimated again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.networks import BATCH_NORMS

__all__ = ["reestimate"]


def reestimate(network: nn.Module, images: Tensor, *, batch: int = 128) -> None:
    """Replace the running statistics of every batch norm, in place, by those on ``images``.

    Running mean and variance are reset and accumulated as the plain mean over batches
    (``momentum=None``), so the order of the batches does not matter; a remainder that would make
    a smaller batch is left out where there is a full one. The network is left in evaluation mode.
    Dynamic BN of the two-stage paper; its nearest relative is EagleEye's adaptive BN (Li et al.,
    ECCV 2020).
    """
    layers = [
        m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.running_mean is not None
    ]
    network.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    full = max(len(images) // batch, 1) * batch
    with torch.no_grad():
        for start in range(0, min(full, len(images)), batch):
            network(images[start : start + batch])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
