"""How much loss every option of every group costs, from one pass over calibration data.

The score of option j of group l is the second-order term of the loss with the Hessian replaced by
the Fisher matrix, its inner products summed over the group before they are squared::

    S_lj = 1/(2N) * sum_n ( <grad_w loss_n, dw_lj> + <grad_a loss_n, da_lj> )^2

Only gradients with respect to the layers' *outputs* are asked of the network. Let layer
``y = W * a + b`` (a convolution or a matrix product, batch norm folded), ``g = d loss_n / d y``:

- Removing channel c at its producer is ``dw_c = -W_c, db_c = -b_c``; then ``dw * a + db = -y`` and
  the inner product is ``-sum_hw g[n,c] * y[n,c]``. Consumers are not cut as well: the channel would
  be counted twice. A depthwise layer passes on a channel that its producer has already removed, so
  its weights are not counted either, only its bias: ``-sum_hw g[n,c] * b[c]``.
- Quantized weights: ``dw = Q(W) - W``; ``inner`` has the two ways to the inner product.
- Quantized activations: the layer reads ``a + da``, ``da = Q(a) - a``; by linearity the output
  changes by ``W * da``, and ``<grad_a loss_n, da>`` through this layer is
  ``sum_hw sum_c g[n,c] * (W * da)[n,c]``, also a sum over output channels.

An option that keeps a set of channels and quantizes them sums the first over the removed channels
and the others over the kept ones. For the joint option this is exact, because weights have one
scale an output channel: rounding a kept row does not depend on which rows were removed.

**Without labels** the Fisher matrix is that of the network's own output, the Gauss-Newton form
``J^T (diag(p) - p p^T) J``. It does not collapse where the training loss is near zero. Classes
drawn from p estimate it without bias, and so do random signs v through the square root
``u = sqrt(p) v - p (sqrt(p) . v)``, ``E[u u^T] = diag(p) - p p^T``, with less noise: a confident
network's draws are hardly ever another class, and then count for much. (On ResNet-20 and 512 images
two draws of signs are off by 25 %, four of classes by 39 %.) Outputs that are no logits take the
signs themselves: ``E[v v^T] = I`` is the Gauss-Newton form of ``1/2 |f(x) - f0(x)|^2``.

Sources: the empirical Fisher as a proxy of the Hessian: Theis et al., arXiv:1801.05787, eq. 4-6;
the Gauss-Newton form by sampling: Martens, JMLR 21 (2020), section 5; Kunstner et al., NeurIPS
2019; random signs: Hutchinson, Communications in Statistics 19 (1990).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.fakequant import input_ranges
from harness.compression.quantizers import quantize_weight, round_weights
from harness.errors import BuildError, ConfigError
from harness.networks import LAYER_TYPES, Layer, fingerprint, fold_batchnorm
from harness.records import Group, Option, dump, weight_bits
from harness.sensitivity.inner import Recorder, Rounding, changes_of
from harness.sensitivity.results import Sensitivities, Together, cached, digest
from harness.sensitivity.totals import Totals

__all__ = ["Sensitivities", "Together", "rounded_weights", "score", "score_together"]

# What hooks may hold unless told otherwise: small beside a network's own training pass.
MAX_BYTES = 512 << 20
# Part of every cache key: raise it when a formula changes.
FORMULA = 3

RoundedWeights = Mapping[str, Mapping[str, Tensor]]


def score(
    network: nn.Module,
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 64,
    max_bytes: int = MAX_BYTES,
    seven_bit_weights: bool = False,
    around: str | None = None,
    rounded: RoundedWeights | None = None,
    inputs: bool = True,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivities:
    """The sensitivities of all ``options`` on ``images`` ``(n, ...)``, as the network wants them.

    With ``labels`` the loss is the cross-entropy of the true class (empirical Fisher); without, the
    Gauss-Newton form, from ``draws`` draws an image. ``seven_bit_weights`` is what an AVX2 board
    runs for int8. Without labels, logits are divided by ``temperature`` before the softmax and
    losses multiplied by its square, as in distillation: on images that the network was trained on
    it is so certain that the form at 1 hardly sees a change, however large.
    ``rounded[layer][precision]`` replaces the weights (batch norm folded) that a
    layer is rounded to, where a quantizer of its own is used. ``around`` is a precision: gradients
    are then those of the network with all its weights in it, nearer to where a policy of few bits
    ends, and a removed channel is what it gives there. Without ``inputs`` activations are taken as
    exact: where all options round them alike they decide nothing, and the pass is faster.

    Hooks hold at most ``max_bytes`` at a time, for which batches are made smaller than ``batch``
    where need be; apart from that stand the changes of the weights (4 bytes a weight and
    precision) and, of groups with options of fewer channels, 4 bytes an image, draw, channel and
    precision. Neither the batch nor the memory changes a draw. With ``cache``, a folder, the result
    is kept there and found again for the same network, images, options and settings.
    ``progress(done, of)`` counts images; ranges of activations are taken before the first call.
    Raises BuildError, and ConfigError where ``max_bytes`` does not hold one image or labels are
    given for outputs that are no logits.
    """

    def compute() -> Sensitivities:
        run = _Pass(
            network, groups, options, images, seven_bit_weights, around, rounded or {}, inputs
        )
        fitting = run.fitting(images, batch, max_bytes)
        run.collect(images, labels, draws, temperature, seed, fitting, progress)
        return run.result()

    if cache is None:
        return compute()
    settings = (draws, temperature, seed, seven_bit_weights, around, inputs)
    key = _key(network, groups, options, images, labels, settings, rounded or {})
    return cached(cache, key, compute)


def score_together(
    network: nn.Module,
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    images: Tensor,
    labels: Tensor | None = None,
    *,
    draws: int = 2,
    seed: int = 0,
    batch: int = 64,
    max_bytes: int = MAX_BYTES,
    around: str | None = None,
    rounded: RoundedWeights | None = None,
) -> Together:
    """What options of several groups cost together, cross terms included; as ``score`` otherwise.

    ``S = 1/(2N) * sum_n (sum_l <grad loss_n, d_lj>)^2``: the inner products are summed over the
    layers of a policy before they are squared, so that errors of two layers that push the loss the
    same way count for more than the sum of both, and errors that make up for each other for less.
    """
    run = _Pass(network, groups, options, images, False, around, rounded or {}, True)
    fitting = run.fitting(images, batch, max_bytes)
    run.collect(images, labels, draws, 1.0, seed, fitting, None)
    return Together(
        options={total.group.name: total.options for total in run.totals},
        products={total.group.name: torch.add(*total.products()).numpy() for total in run.totals},
    )


def _key(
    network: nn.Module,
    groups: Sequence[Group],
    options: Mapping[str, tuple[Option, ...]],
    images: Tensor,
    labels: Tensor | None,
    settings: tuple[Any, ...],
    rounded: RoundedWeights,
) -> str:
    """A hash of all that the sensitivities depend on."""
    # Strides and the like stand in a network's text, its weights in the fingerprint.
    parts = [str((FORMULA, *settings)), repr(network), fingerprint(network), *map(dump, groups)]
    parts += [f"{name} {list(map(dump, options[name]))}" for name in sorted(options)]
    given = [
        part
        for layer, ways in sorted(rounded.items())
        for precision, weights in sorted(ways.items())
        for part in (layer, precision, weights)
    ]
    return digest([*parts, images, labels, *given])


def rounded_weights(weight: Tensor, precision: str, *, seven_bit: bool = False) -> Tensor:
    """Weights ``(out, ...)`` as ``precision`` represents them, in their own shape, float32.

    int8 holds each channel's largest weight, as the exporter writes it (``seven_bit``: with
    levels up to 63); study precisions take the scale of least squared error.
    """
    weight = weight.detach()
    if precision == "fp32":
        return weight
    if precision == "fp16":
        return weight.half().float()
    if precision == "int8":
        return quantize_weight(weight, 7 if seven_bit else 8, scale="max").dequantized()
    return round_weights(weight, weight_bits(precision), scale="error")


class _Pass:
    """One pass over the images: a recorder a layer, the totals of every group."""

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        options: Mapping[str, tuple[Option, ...]],
        images: Tensor,
        seven_bit: bool,
        around: str | None,
        rounded: RoundedWeights,
        inputs: bool,
    ) -> None:
        if not len(images):
            raise BuildError("no images to compute sensitivities on")
        network = fold_batchnorm(network, images[:1]).requires_grad_(False)
        self.network = network
        self.totals = [Totals(group, options[group.name], inputs=inputs) for group in groups]
        ranges = {}
        if any("int8" in total.inputs for total in self.totals):
            ranges = input_ranges(network, images)
        rounders: dict[str, dict[str, Rounding]] = {
            name: {"fp16": lambda a: a.half().float(), "int8": interval.rounded}
            for name, interval in ranges.items()
        }
        self.recorders: dict[str, Recorder] = {}
        for total in self.totals:
            for name in total.group.producers:
                layer = _layer(network, name)
                weights = {
                    precision: rounded.get(name, {}).get(precision)
                    for precision in total.precisions
                }
                complete = {
                    precision: rounded_weights(layer.weight, precision, seven_bit=seven_bit)
                    if given is None
                    else given
                    for precision, given in weights.items()
                }
                ways = rounders.get(name, {"fp16": lambda a: a.half().float()})
                changes = changes_of(
                    complete, layer.weight, {kind: ways[kind] for kind in total.inputs}
                )
                self.recorders[name] = Recorder(layer, changes, per_channel=total.prunes)
        if around is not None:
            for recorder in self.recorders.values():
                weight = recorder.layer.weight
                weight.copy_(rounded_weights(weight, around, seven_bit=seven_bit))

    def fitting(self, images: Tensor, batch: int, max_bytes: int) -> int:
        """The batch, at most ``batch``, for which hooks hold no more than ``max_bytes``.

        Half of the room is for what is held through the pass, half for work on one layer.
        """

        def look(name: str, recorder: Recorder) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                recorder.check(name, inputs[0], output)
                recorder.size(inputs[0], output)

            return hook

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for name, recorder in self.recorders.items():
                hooks.callback(recorder.layer.register_forward_hook(look(name, recorder)).remove)
            self.network(images[:1])
        held = sum(recorder.held_bytes for recorder in self.recorders.values())
        scratch = max((recorder.scratch_bytes for recorder in self.recorders.values()), default=0)
        if held + scratch > max_bytes:
            raise ConfigError(
                f"sensitivities within {max_bytes} bytes: one image alone takes "
                f"{held + scratch}; allow at least that"
            )
        fits = max(1, min(batch, len(images), max_bytes // 2 // max(held, 1)))
        for recorder in self.recorders.values():
            if recorder.scratch_bytes:
                recorder.chunk = max(1, (max_bytes - fits * held) // recorder.scratch_bytes)
        return fits

    def collect(
        self,
        images: Tensor,
        labels: Tensor | None,
        draws: int,
        temperature: float,
        seed: int,
        batch: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """One forward and, per draw, one backward for every batch."""
        rounds = 1 if labels is not None else draws
        # One stream a round, in the order of the images: the batch does not change the draws.
        seeds = torch.randint(2**31, (rounds,), generator=torch.Generator().manual_seed(seed))
        streams = [torch.Generator().manual_seed(int(start)) for start in seeds]
        with contextlib.ExitStack() as hooks, torch.enable_grad():
            for recorder in self.recorders.values():
                hooks.callback(recorder.layer.register_forward_hook(recorder).remove)
            for start in range(0, len(images), batch):
                # A gradient must be asked for somewhere before the first layer.
                part = images[start : start + batch].detach().requires_grad_(True)
                known = None if labels is None else labels[start : start + batch]
                outputs = self.network(part)
                for index, stream in enumerate(streams):
                    loss = _loss(outputs, known, stream, temperature)
                    torch.autograd.grad(
                        loss, part, retain_graph=index < rounds - 1, allow_unused=True
                    )
                    self._take(len(part))
                del outputs, loss
                if progress is not None:
                    progress(start + len(part), len(images))

    def _take(self, count: int) -> None:
        for total in self.totals:
            rows = None
            for name in total.group.producers:
                own = self.recorders[name].take(count)
                rows = own if rows is None else rows + own
            assert rows is not None
            total.add(rows)

    def result(self) -> Sensitivities:
        """The columns of all groups; BuildError where a value is no number."""
        columns = {total.group.name: total.columns() for total in self.totals}
        if any(value != value for values, _, _ in columns.values() for value in values):
            raise BuildError(
                "sensitivities are not numbers: the network's loss overflows or is NaN"
            )
        return Sensitivities(
            options={total.group.name: total.options for total in self.totals},
            values={name: values for name, (values, _, _) in columns.items()},
            channel_scores={total.group.name: total.scores() for total in self.totals},
            weights={name: weights for name, (_, weights, _) in columns.items()},
            activations={name: inputs for name, (_, _, inputs) in columns.items()},
            blocks={t.group.name: t.group.blocks for t in self.totals if t.group.blocks > 1},
        )


def _layer(network: nn.Module, name: str) -> Layer:
    layer = network.get_submodule(name)
    assert isinstance(layer, LAYER_TYPES)
    return layer


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The outputs that a loss can be taken of; classes as whole numbers, or none, are left out."""
    if isinstance(outputs, Tensor):
        if outputs.requires_grad:
            yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)


def _loss(
    outputs: Any, labels: Tensor | None, stream: torch.Generator, temperature: float
) -> Tensor:
    """A sum over the batch whose gradient is, image by image, that of the image's own loss."""
    if labels is not None:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2:
            raise ConfigError(
                "labels want a network whose one output are logits (n, classes); score this one "
                "without labels"
            )
        return functional.cross_entropy(outputs, labels, reduction="sum")
    return label_free_loss(outputs, stream, temperature)


def label_free_loss(outputs: Any, stream: torch.Generator, temperature: float = 1.0) -> Tensor:
    """A sum whose gradients, drawn from ``stream``, have the Gauss-Newton form on average.

    Of the divergence of logits divided by ``temperature``, times its square.
    """
    losses = []
    for output in _tensors(outputs):
        signs = torch.randint(0, 2, output.shape, generator=stream).to(output.dtype) * 2 - 1
        if output is outputs and output.ndim == 2 and output.shape[1] > 1:
            shares = (output.detach() / temperature).softmax(1)
            roots = shares.sqrt() * signs
            signs = roots - shares * roots.sum(1, keepdim=True)
        losses.append((output * signs).sum())
    if not losses:
        raise BuildError("none of the network's outputs depends on its input by way of gradients")
    return torch.stack(losses).sum()
