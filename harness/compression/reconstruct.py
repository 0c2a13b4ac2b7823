"""Layers fitted again, in closed form, to what they gave before channels were cut."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from harness.compression.lockstep import run_together, stop_at
from harness.compression.patches import channels_second, patches, plain_shapes, reading
from harness.compression.shortcuts import Shortcut, added, shortcuts
from harness.errors import BuildError
from harness.networks import BATCH_NORMS, LAYER_TYPES, Layer
from harness.networks.structure import outputs_of, same_outputs
from harness.records import Group

__all__ = ["Refit", "enough_ridge", "reconstruct"]

# What the original's outputs, sampled for several layers in one pass, may take up.
TARGET_BYTES = 256 << 20
SCARCE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """How far a layer's outputs were from the original's, and are now.

    Mean squares at the sampled positions, as shares of the original outputs' own mean square
    around their means; ``before`` and ``after`` see the same inputs.
    """

    layer: str
    before: float
    after: float


def reconstruct(
    pruned: nn.Module,
    original: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
    images: Tensor,
    *,
    layers: Sequence[str] | None = None,
    ridge: float = 1e-3,
    positions: int = 32,
    seed: int = 0,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Refit, ...]:
    """The errors of the layers that were fitted again, in order of depth; ``pruned`` is changed.

    ``pruned`` is ``original`` with only the ``kept`` channels of its ``groups``. Every layer that
    reads a group that lost channels (or those named in ``layers``) gets new weights, one layer
    after the other: ``sum |y - W' x - b'|^2 + ridge * s * |W' - W|^2`` is minimised, where ``y`` is
    what the layer gives in the original, before batch norm and activation, ``x`` what it reads in
    the pruned network so far, ``W`` its weights as they were and ``s`` the mean square of the
    inputs. Where the layer's output is added to a shortcut, the sum is what is fitted: ``y`` also
    takes up what the shortcut lacks of the original's, so that errors do not pile up in a residual
    stream. So the error at the places sampled of ``images`` ``(n, ...)``, up to ``positions`` an
    image by ``seed``, never rises, and what earlier layers still lack is made up for in part.

    Batch norm stays: give a network fresh from pruning, whose statistics are the original's and fit
    outputs that are fitted to the original's; to estimate them again, before or afterwards, is not
    needed. A layer without a bias whose output only a batch norm reads has its ``b'`` taken off the
    running mean; any other layer without one goes without. A layer that runs more than once in a
    pass, or does more than multiply and add, is left as it is. What one layer reads of all images
    is held at a time. Both networks are left in evaluation mode; ``progress(done, of)`` counts
    layers. BuildError for unknown layers or settings out of
    range.

    Source: He, Zhang, Sun, *Channel pruning*, ICCV 2017, section 3.1, the reconstruction step, with
    the inputs of the pruned network (section 3.2); Luo, Wu, Lin, *ThiNet*, ICCV 2017, section 3.2,
    for sampled positions. It is the optimal brain surgeon's step (Hassibi, Stork, NIPS 1992) for a
    layer's own squared error and all removed weights at once, damped.
    """
    if ridge <= 0 or positions < 1 or not len(images):
        raise BuildError(
            f"reconstruction needs images, a ridge above 0 and at least 1 position an image; got "
            f"{len(images)} images, ridge {ridge}, positions {positions}"
        )
    pruned.eval()
    original.eval()
    plan = _planned(original, groups, kept, layers, images[:1], positions)
    done: list[Refit] = []
    ways = shortcuts(original, [layer.name for layer in plan], images[:2])
    with torch.no_grad():
        for chunk in _chunks(plan, len(images)):
            for layer in chunk:
                layer.choose(len(images), seed)
            _record_targets(original, chunk, ways, images, batch)
            targets = {layer.name: layer for layer in chunk}

            def visit(name: str, values: list[_Reading], targets: Any = targets) -> None:
                done.append(_refit(pruned, targets[name], values, ridge))
                targets[name].forget()
                if progress is not None:
                    progress(len(done), len(plan))

            for layer in chunk:
                layer.norm = _batchnorm_after(pruned, layer.name, images[:2])
            _walk(pruned, list(targets), ways, images, batch, visit)
    return tuple(done)


class _Target:
    """One layer's outputs in the original at places chosen beforehand."""

    def __init__(
        self, name: str, index: int, places: tuple[int, ...], outputs: tuple[int, ...], limit: int
    ) -> None:
        self.name = name
        self.outputs = outputs
        self.norm: Any = None
        self._index, self._places, self._limit = index, places, limit
        self._chosen = torch.empty(0)
        self._rows: list[Tensor] = []

    @property
    def samples(self) -> int:
        """Places an image."""
        return min(math.prod(self._places), self._limit)

    def choose(self, images: int, seed: int) -> None:
        """Draw the places of every image: each layer and each seed has its own."""
        total = math.prod(self._places)
        if total <= self._limit:
            self._chosen = torch.arange(total).expand(images, total)
            return
        generator = torch.Generator().manual_seed(seed * 100_003 + self._index)
        self._chosen = torch.randint(0, total, (images, self._limit), generator=generator)

    def coordinates(self, start: int, count: int) -> tuple[Tensor, ...]:
        """Per axis of the output, the places of some of the images, ``(count, samples)``."""
        if not self._places:  # a linear layer on a vector
            return ()
        return torch.unravel_index(self._chosen[start : start + count], self._places)

    def record(self, output: Tensor, start: int) -> None:
        """Keep a batch's outputs ``(count, channels, ...)`` at the chosen places."""
        self._rows.append(self.picked(output, start)[:, list(self.outputs)])

    def add(self, other: Tensor, start: int) -> None:
        """Add what a shortcut brings to the batch that was kept last."""
        self._rows[-1] = self._rows[-1] + self.picked(other, start)[:, list(self.outputs)]

    def picked(self, output: Tensor, start: int) -> Tensor:
        """A batch's values at the chosen places, ``(count * samples, channels)``."""
        rows = torch.arange(len(output))[:, None]
        picked = output.movedim(1, -1)[(rows, *self.coordinates(start, len(output)))]
        return picked.flatten(0, 1)

    def rows(self, start: int, count: int) -> Tensor:
        """The outputs ``(count * samples, channels)`` of some of the images."""
        if len(self._rows) != 1:
            self._rows = [torch.cat(self._rows)]
        return self._rows[0][start * self.samples : (start + count) * self.samples]

    def forget(self) -> None:
        self._rows, self._chosen = [], torch.empty(0)


def _planned(
    original: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, tuple[int, ...]],
    layers: Sequence[str] | None,
    example: Tensor,
    positions: int,
) -> list[_Target]:
    """What is to be fitted again, in order of depth."""
    remaining = {
        producer: kept.get(group.name, tuple(range(group.channels)))
        for group in groups
        for producer in group.producers
    }
    wanted = (
        {
            consumer
            for group in groups
            if len(kept.get(group.name, range(group.channels))) < group.channels
            for consumer in group.consumers
        }
        if layers is None
        else set(layers)
    )
    if unknown := sorted(wanted - set(remaining)):
        raise BuildError(f"cannot reconstruct {', '.join(unknown)}: no such layer in the groups")
    shapes = plain_shapes(original, wanted, example)
    return [
        _Target(name, index, calls[0][2:], remaining[name], positions)
        for index, (name, calls) in enumerate(shapes.items())
        if len(calls) == 1
    ]


def _chunks(plan: Sequence[_Target], images: int) -> Iterator[list[_Target]]:
    """The layers in runs whose targets fit into memory together; each costs the original a pass."""
    chunk: list[_Target] = []
    size = 0
    for layer in plan:
        needed = 4 * images * layer.samples * len(layer.outputs)
        if chunk and size + needed > TARGET_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(layer)
        size += needed
    if chunk:
        yield chunk


def _record_targets(
    original: nn.Module,
    chunk: Sequence[_Target],
    ways: Mapping[str, Shortcut],
    images: Tensor,
    batch: int,
) -> None:
    start = 0
    targets = {layer.name: layer for layer in chunk}
    wanted = {name: way for name, way in ways.items() if name in targets}

    def add(name: str, other: Tensor) -> None:
        targets[name].add(other, start)

    with contextlib.ExitStack() as hooks:
        for layer in chunk:

            def keep(
                module: nn.Module, _inputs: Any, output: Tensor, layer: _Target = layer
            ) -> None:
                layer.record(channels_second(module, output), start)

            module = original.get_submodule(layer.name)
            hooks.callback(module.register_forward_hook(keep).remove)
        for start in range(0, len(images), batch):
            added(original, wanted, images[start : start + batch], add)


# What a batch brings to a layer, and what a shortcut adds to the layer's output.
_Reading: TypeAlias = tuple[Tensor, Tensor | None]


def _walk(
    network: nn.Module,
    layers: Sequence[str],
    ways: Mapping[str, Shortcut],
    images: Tensor,
    batch: int,
    visit: Callable[[str, list[_Reading]], None],
) -> None:
    """Run all batches in step; ``visit(layer, readings)`` where they come to a layer's output.

    There it may change the layer's weights: the batches go on with what the layer then gives.
    """
    own = {name: way for name, way in ways.items() if name in layers}
    held = threading.local()

    def run(part: Tensor) -> None:
        held.reads, held.inputs = {}, {}
        added(network, own, part, summed)

    def summed(name: str, other: Tensor) -> Tensor:
        stop_at(name, (held.reads.pop(name), other))
        output: Tensor = network.get_submodule(name)(held.inputs.pop(name))
        return output

    with contextlib.ExitStack() as hooks:
        for name in layers:
            layer = network.get_submodule(name)
            assert isinstance(layer, LAYER_TYPES)

            def take(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                held.inputs[name] = inputs[0]

            def see(read: Tensor, name: str = name) -> None:
                if name in own:
                    held.reads[name] = read
                else:
                    stop_at(name, (read, None))

            if name in own:
                hooks.callback(layer.register_forward_pre_hook(take).remove)
            hooks.enter_context(reading(layer, see))
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        run_together([(run, part) for part in parts], visit)


def _refit(
    pruned: nn.Module,
    target: _Target,
    readings: Sequence[_Reading],
    ridge: float,
) -> Refit:
    """Solve one layer's least squares and write the weights."""
    layer = pruned.get_submodule(target.name)
    assert isinstance(layer, LAYER_TYPES)
    norm = None if layer.bias is not None else target.norm
    sums = _Sums(layer, offset=layer.bias is not None or norm is not None)
    start = 0
    for read, other in readings:
        wanted = target.rows(start, len(read))
        if other is not None:
            wanted = wanted - target.picked(other, start)
        sums.add(patches(layer, read, target.coordinates(start, len(read))), wanted)
        start += len(read)
    weight, offset, before, after = sums.solved(ridge)
    layer.weight += weight.view_as(layer.weight).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias += offset.to(layer.bias.dtype)
    elif norm is not None:
        assert norm.running_mean is not None
        norm.running_mean -= offset.to(norm.running_mean.dtype)
    return Refit(layer=target.name, before=before, after=after)


def enough_ridge(ridge: float, *, inputs: int, samples: int) -> float:
    """``ridge``, or what a layer wants that has fewer than four samples an input.

    A classifier behind a pooling layer sees one place an image: 480 inputs fitted to 200 images
    agree with them exactly and with no others. With its head alone cut to 480 of 1,280 channels,
    EfficientNet-Lite0 loses 16 points on fresh images so damped, and 22 without.
    """
    return max(ridge, SCARCE * inputs / samples) if samples < 4 * inputs else ridge


class _Sums:
    """Normal equations of one layer's change, gathered batch by batch in double precision.

    Rows ``x`` are a layer's inputs at one place, ``(samples, blocks, inputs of a block)``, where a
    convolution's groups are the blocks; ``r`` is what the layer's present outputs lack.
    """

    def __init__(self, layer: Layer, *, offset: bool) -> None:
        self._blocks = getattr(layer, "groups", 1)
        weight = layer.weight.double().flatten(1)
        self._weight = weight.view(self._blocks, -1, weight.shape[1])
        self._bias = None if layer.bias is None else layer.bias.double()
        self._offset = offset
        blocks, outputs, inputs = self._weight.shape
        self._count = 0
        self._x = torch.zeros(blocks, inputs, dtype=torch.double)
        self._xx = torch.zeros(blocks, inputs, inputs, dtype=torch.double)
        self._xr = torch.zeros(blocks, inputs, outputs, dtype=torch.double)
        self._r = torch.zeros(blocks, outputs, dtype=torch.double)
        self._rr = 0.0
        self._y = torch.zeros(blocks * outputs, dtype=torch.double)
        self._yy = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        present = torch.einsum("sbi,boi->sbo", x, self._weight)
        lacking = y if self._bias is None else y - self._bias
        r = lacking.view_as(present) - present
        self._count += len(x)
        self._x += x.sum(0)
        self._xx += torch.einsum("sbi,sbj->bij", x, x)
        self._xr += torch.einsum("sbi,sbo->bio", x, r)
        self._r += r.sum(0)
        self._rr += float(r.square().sum())
        self._y += y.sum(0)
        self._yy += float(y.square().sum())

    def solved(self, ridge: float) -> tuple[Tensor, Tensor, float, float]:
        """Changes of weights and offset, and the error's share before and after."""
        n = self._count
        xx, xr = self._xx / n, self._xr / n
        x, r = self._x / n, self._r / n
        if self._offset:  # the best offset for any weights is what makes the means agree
            xx = xx - torch.einsum("bi,bj->bij", x, x)
            xr = xr - torch.einsum("bi,bo->bio", x, r)
        diagonal = xx.diagonal(dim1=1, dim2=2)
        # A block that reads nothing but zeros has nothing to fit; the floor keeps it solvable.
        scale = diagonal.mean(1).clamp_min(torch.finfo(torch.double).tiny ** 0.5)
        ridge = enough_ridge(ridge, inputs=xx.shape[1], samples=n)
        damped = xx + torch.diag_embed(ridge * scale[:, None].expand_as(diagonal))
        change = torch.linalg.solve(damped, xr)
        offset = r - torch.einsum("bi,bio->bo", x, change) if self._offset else torch.zeros_like(r)
        power = max(self._yy / n - float((self._y / n).square().sum()), 1e-30)
        before = self._rr / n
        gained = 2 * float((change * xr).sum()) - float((change * (xx @ change)).sum())
        if self._offset:
            gained += float(r.square().sum())
        after = max(before - gained, 0.0)
        return change.transpose(1, 2), offset.flatten(), before / power, after / power


def _batchnorm_after(network: nn.Module, name: str, example: Tensor) -> Any:
    """The batch norm that takes up whatever is added to a layer's outputs, or None.

    The proof is by trial: with 1 added to the outputs and to the running mean nothing changes,
    which fails where another reader (a shortcut) sees the outputs too.
    """
    made: list[Tensor] = []
    readers: list[Any] = []
    layer = network.get_submodule(name)
    with contextlib.ExitStack() as hooks:

        def remember(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            made.append(output)

        def compare(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if made and inputs[0] is made[-1]:
                readers.append(module)

        hooks.callback(layer.register_forward_hook(remember).remove)
        for module in network.modules():
            if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                hooks.callback(module.register_forward_pre_hook(compare).remove)
        wanted = outputs_of(network, example)
    if len(readers) != 1:
        return None
    norm = readers[0]

    def shift(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output + 1

    mean = norm.running_mean.clone()
    hook = layer.register_forward_hook(shift)
    norm.running_mean += 1
    try:
        return norm if same_outputs(wanted, outputs_of(network, example)) else None
    finally:
        hook.remove()
        norm.running_mean.copy_(mean)
