"""Layers of a network: their order, their number, their shapes; batch norm folded into them."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "LAYER_TYPES",
    "Layer",
    "Network",
    "count_macs",
    "count_parameters",
    "fingerprint",
    "fold_batchnorm",
    "layers_in_order",
    "output_shapes",
    "outputs_of",
    "run_once",
    "same_outputs",
    "tensors_of",
]

Network: TypeAlias = nn.Module
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYER_TYPES = (*CONVOLUTIONS, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layers_in_order(network: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Every layer that the forward pass calls, by name, in the order of its first call."""
    order: dict[str, Layer] = {}
    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, LAYER_TYPES):

                def remember(
                    module: nn.Module, _inputs: Any, _output: Any, *, name: str = name
                ) -> None:
                    assert isinstance(module, LAYER_TYPES)
                    order.setdefault(name, module)

                hooks.callback(module.register_forward_hook(remember).remove)
        run_once(network, example)
    return order


def run_once(network: nn.Module, example: Tensor) -> Any:
    """The outputs for ``example`` in evaluation mode; the network's mode is left as it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            return network(example)
    finally:
        for module, training in modes.items():
            module.training = training


def count_parameters(network: nn.Module) -> int:
    """The number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one input of the batch."""
    total = 0

    def add(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Each output value sums over one row of the weights: input channels of its own group
        # times kernel size.
        total += output.numel() // len(example) * math.prod(weight.shape[1:])

    with contextlib.ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, LAYER_TYPES):
                hooks.callback(module.register_forward_hook(add).remove)
        run_once(network, example)
    return total


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def fold_batchnorm(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy in evaluation mode with every batch norm folded into the layer before it.

    A pair is found in a hooked forward pass: the batch norm's input *is* the layer's output. Where
    folding a pair changes the network's outputs (the layer's output is read elsewhere too, say),
    that pair stays unfolded.
    """
    folded = copy.deepcopy(network).eval()
    wanted = outputs_of(folded, example)
    pairs = batchnorm_pairs(folded, example)
    together = _with_folded(folded, pairs)
    if same_outputs(wanted, outputs_of(together, example)):
        return together
    for pair in pairs:
        alone = _with_folded(folded, [pair])
        if same_outputs(wanted, outputs_of(alone, example)):
            folded = alone
    return folded


def batchnorm_pairs(network: nn.Module, example: Tensor) -> list[tuple[tuple[str, ...], str]]:
    """For every batch norm that can be folded: the layers that feed it, and its name."""
    names = {module: name for name, module in network.named_modules()}
    made_by: dict[int, tuple[Layer, Tensor, int]] = {}
    feeds: dict[nn.Module, set[Layer | None]] = {}
    readers: dict[nn.Module, set[nn.Module | None]] = {}

    def after_layer(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        assert isinstance(module, LAYER_TYPES)
        # The tensor is kept alive so that its id is not given away; its version number tells
        # whether somebody wrote into it.
        made_by[id(output)] = (module, output, output._version)

    def before_batchnorm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer, tensor, version = made_by.get(id(inputs[0]), (None, None, None))
        if tensor is not None and tensor._version != version:
            layer = None
        feeds.setdefault(module, set()).add(layer)
        if layer is not None:
            readers.setdefault(layer, set()).add(module)

    with contextlib.ExitStack() as hooks:
        for module in names:
            if isinstance(module, LAYER_TYPES):
                hooks.callback(module.register_forward_hook(after_layer).remove)
            elif isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(before_batchnorm).remove)
        run_once(network, example)
    return [
        (tuple(sorted(names[layer] for layer in layers if layer is not None)), names[batchnorm])
        for batchnorm, layers in feeds.items()
        if None not in layers
        and all(len(readers[layer]) == 1 for layer in layers if layer is not None)
    ]


def _with_folded(network: nn.Module, pairs: list[tuple[tuple[str, ...], str]]) -> nn.Module:
    folded = copy.deepcopy(network)
    for layers, name in pairs:
        batchnorm = folded.get_submodule(name)
        assert isinstance(batchnorm, BATCH_NORMS)
        mean, variance = batchnorm.running_mean, batchnorm.running_var
        assert mean is not None and variance is not None
        for layer_name in layers:
            layer = folded.get_submodule(layer_name)
            assert isinstance(layer, LAYER_TYPES)
            fuse: Any = (
                fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
            )
            layer.weight, layer.bias = fuse(
                layer.weight,
                layer.bias,
                mean,
                variance,
                batchnorm.eps,
                batchnorm.weight,
                batchnorm.bias,
            )
        for parent in folded.modules():
            for attribute, child in parent._modules.items():
                if child is batchnorm:
                    parent._modules[attribute] = nn.Identity()
    return folded


def outputs_of(network: nn.Module, example: Tensor) -> list[Tensor]:
    """The tensors that the network makes of ``example``, several outputs in a row."""
    return tensors_of(run_once(network, example))


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in what a network returned: one, a sequence or a mapping of them."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [output for output in outputs if isinstance(output, Tensor)]


def output_shapes(network: nn.Module, example: Tensor) -> list[tuple[int, ...]]:
    """The shapes of the network's outputs."""
    return [tuple(output.shape) for output in outputs_of(network, example)]


def same_outputs(wanted: list[Tensor], got: list[Tensor]) -> bool:
    """Whether two sets of outputs differ by no more than float32 arithmetic explains.

    Of outputs that are no floats (masks, classes) one in a thousand may be another: a float near a
    threshold decided it. Infinities are to be the same.
    """
    return len(wanted) == len(got) and all(map(_same_output, wanted, got))


def _same_output(wanted: Tensor, got: Tensor) -> bool:
    if wanted.shape != got.shape:
        return False
    equal = wanted == got
    if not wanted.is_floating_point():
        return int((~equal).sum()) <= 1e-3 * equal.numel()
    finite = wanted[wanted.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    near = (wanted - got).abs() <= 1e-3 * max(largest, 1e-6)
    return bool((equal | near).all())
