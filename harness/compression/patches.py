"""What layers read: the inputs that they multiply with their weights, place by place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.networks import LAYER_TYPES, Layer
from harness.networks.structure import run_once, same_outputs

__all__ = ["channels_second", "patches", "plain_shapes", "reading"]


@contextlib.contextmanager
def reading(layer: Layer, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Has ``see`` called with what the layer multiplies with its weights, whenever it does.

    That need not be what the layer is called with: a subclass may pad first, as TensorFlow does. A
    convolution that does not come to the point where torch's own ones do is not seen.
    """
    if isinstance(layer, nn.Linear):

        def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see(inputs[0])

        hook = layer.register_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()
        return
    forward = layer._conv_forward

    def watched(read: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        see(read)
        return forward(read, weight, bias)

    layer.__dict__["_conv_forward"] = watched
    try:
        yield
    finally:
        del layer.__dict__["_conv_forward"]


def plain_shapes(
    network: nn.Module, names: Collection[str], example: Tensor
) -> dict[str, list[tuple[int, ...]]]:
    """The shapes ``(n, channels, ...)`` of every output of those layers that are plain, in order.

    A plain layer gives the product of what it reads with its weights, and its bias. Others do more:
    a subclass may normalise its weights before it uses them, or scale what comes out.
    """
    reads: dict[str, list[Tensor]] = {name: [] for name in names}
    outputs: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as hooks:
        for name in names:
            layer = _layer(network, name)

            # Copies: what follows may write into either.
            def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                outputs.setdefault(name, []).append(output.clone())

            def see(read: Tensor, name: str = name) -> None:
                reads[name].append(read.clone())

            hooks.enter_context(reading(layer, see))
            hooks.callback(layer.register_forward_hook(keep).remove)
        run_once(network, example)
    shapes = {}
    for name, made in outputs.items():
        layer = _layer(network, name)
        if len(made) == len(reads[name]):
            with torch.no_grad():
                plain = [_plain_output(layer, read) for read in reads[name]]
            if same_outputs(made, plain):
                shapes[name] = [tuple(channels_second(layer, output).shape) for output in made]
    return shapes


def _layer(network: nn.Module, name: str) -> Layer:
    layer = network.get_submodule(name)
    assert isinstance(layer, LAYER_TYPES)
    return layer


def _plain_output(layer: Layer, read: Tensor) -> Tensor:
    """What a layer of its kind gives for ``read``: the product with its weights, and its bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(read, layer.weight, layer.bias)
    convolve: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[read.ndim - 3]
    output: Tensor = convolve(
        _padded(layer, read),
        layer.weight,
        layer.bias,
        stride=layer.stride,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    return output


def channels_second(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as ``(n, channels, ...)``; a linear layer has its channels last."""
    return output.movedim(-1, 1) if isinstance(layer, nn.Linear) else output


def patches(layer: Layer, read: Tensor, coordinates: tuple[Tensor, ...]) -> Tensor:
    """What goes into a layer's outputs at some places, ``(samples, blocks, inputs of a block)``.

    ``coordinates`` has, per axis of the output, places ``(n, m)``; samples are ``n * m``, and a
    convolution's groups the blocks. Only the patches that are asked for are ever unfolded.
    """
    rows = torch.arange(len(read))[:, None]
    if isinstance(layer, nn.Linear):
        return read[(rows, *coordinates)].reshape(-1, 1, layer.in_features)
    axes = len(coordinates)
    index: list[Tensor] = [rows.view(*rows.shape, *(1,) * axes)]
    for axis, places in enumerate(coordinates):
        offsets = torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
        shape = [1] * axes
        shape[axis] = -1
        start = (places * layer.stride[axis]).view(*places.shape, *(1,) * axes)
        index.append(start + offsets.view(shape))
    # (n, m, *kernel, channels): the channel goes in front of the kernel, as in the weights.
    picked = _padded(layer, read).movedim(1, -1)[tuple(index)].movedim(-1, 2)
    return picked.reshape(picked.shape[0] * picked.shape[1], layer.groups, -1)


def _padded(layer: Any, read: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(read, layer._reversed_padding_repeated_twice, mode=mode)
