"""What a network costs under an allocation, predicted without building it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import LatencyModelError
from harness.records import Group, Option
from latency_models import graph
from latency_models.calibration import LatencyModel

__all__ = ["Costs", "NetworkCosts", "holders", "kernels_of_groups", "weight_bytes"]

# Bytes a quantized layer's ONNX nodes take beside its numbers: DequantizeLinear for weight and
# bias, QuantizeLinear and DequantizeLinear for its output, and their names. Counted in files that
# onnxruntime.quantization wrote; the loop corrects it by the files that it builds.
BYTES_PER_QUANTIZED_LAYER = 1100
# Beside its int8 weight and int32 bias, each output channel carries a float32 scale and an int8
# zero point for the weight, a float32 scale and an int32 zero point for the bias.
BYTES_PER_QUANTIZED_CHANNEL = 4 + 1 + 4 + 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Predicted costs of one allocation; ``upper_s`` bounds the latency at the asked coverage."""

    latency_s: float
    upper_s: float
    size_bytes: float
    macs: int


class NetworkCosts:
    """The cost of any allocation to a network's groups, from its kernels and a latency model.

    ``kernels`` (kept as ``baseline``) are those of the fp32 network on the board that ``model`` is
    of, by whose fusion rules (``model.runtime``) they are rewritten. A kernel belongs to the group
    whose producers hold the layer that its weight is named after. The upper bound of the latency
    holds at ``coverage``; at 0 it is the prediction itself. ``size_scale`` corrects the predicted
    file size by what a built variant weighed. LatencyModelError if a group's layer has no kernel.
    """

    def __init__(
        self,
        kernels: Sequence[graph.Kernel],
        groups: Sequence[Group],
        *,
        model: LatencyModel,
        baseline_size_bytes: int,
        coverage: float = 0.9,
        size_scale: float = 1.0,
    ) -> None:
        self.groups = tuple(groups)
        self.model = model
        self.coverage = coverage
        self.size_scale = size_scale
        self.baseline = tuple(kernels)
        self.kernels_of_group = kernels_of_groups(kernels, groups)
        self.other_bytes = baseline_size_bytes - _all_weight_bytes(kernels)
        self._cache: dict[tuple[Option, ...], Costs] = {}

    def kernels(self, options: Mapping[str, Option]) -> tuple[graph.Kernel, ...]:
        """The kernels of the variant that ``options`` (one a group) would become."""
        channels: dict[str, int] = {}
        precision: dict[str, str] = {}
        for group in self.groups:
            for name in self.kernels_of_group[group.name]:
                precision[name] = options[group.name].precision
                if group.prunable:
                    channels[name] = options[group.name].channels
        return graph.rewrite(
            self.baseline,
            out_channels=channels,
            precision=precision,
            runtime=self.model.runtime,
        )

    def costs(self, options: Mapping[str, Option]) -> Costs:
        """Predicted latency, its upper bound, file size and MACs under ``options``."""
        key = tuple(options[group.name] for group in self.groups)
        if key not in self._cache:
            self._cache[key] = self._price(self.kernels(options))
        return self._cache[key]

    def costs_without(self, options: Mapping[str, Option], layers: Collection[str]) -> Costs:
        """Nearly the costs without some layers, what only they feed, and what adds them.

        What is left may be fused otherwise: the network's own kernels, once it is exported, tell.
        """
        return self._price(_without(self.kernels(options), layers))

    def _price(self, kernels: Sequence[graph.Kernel]) -> Costs:
        works = tuple(graph.work(kernel) for kernel in kernels)
        latency = self.model.predict(works)
        upper = self.model.interval(works, self.coverage)[1] if self.coverage else latency
        size = self.other_bytes + _all_weight_bytes(kernels)
        return Costs(
            latency_s=latency,
            upper_s=upper,
            size_bytes=size * self.size_scale,
            macs=sum(work.macs for work in works),
        )


def _without(kernels: Sequence[graph.Kernel], layers: Collection[str]) -> tuple[graph.Kernel, ...]:
    kept: list[graph.Kernel] = []
    dead: set[str] = set()
    for kernel in kernels:
        lost = dead.intersection(kernel.inputs)
        adds = bool(lost) and not lost.issuperset(kernel.inputs)
        if kernel.weight is not None:
            gone = kernel.weight.removesuffix(".weight") in layers
        else:
            gone = bool(lost) and (kernel.kind == "binary" or not adds)
        if not gone:
            kept.append(kernel)
        # Whatever a lost tensor is added to goes on without it.
        elif not adds:
            dead.add(kernel.output)
    return tuple(kept)


def kernels_of_groups(
    kernels: Sequence[graph.Kernel], groups: Sequence[Group]
) -> dict[str, tuple[str, ...]]:
    """What ``graph.rewrite`` calls each group's layers, by the group's name.

    The kernel, or the node in it where a runtime runs several layers as one kernel.
    LatencyModelError where a layer has none.
    """
    by_layer: dict[str, list[str]] = {}
    for kernel in kernels:
        named = [(op.weight, op.name) for op in kernel.ops if op.kind in ("conv", "gemm")]
        for weight, name in named or [(kernel.weight, kernel.name)]:
            if weight is not None:
                by_layer.setdefault(weight.removesuffix(".weight"), []).append(name)
    for group in groups:
        for layer in group.producers:
            if layer not in by_layer:
                raise LatencyModelError(
                    f"layer {layer} of group {group.name} has no kernel in the exported network; "
                    "the exporter removed or renamed it, so its cost cannot be predicted"
                )
    return {
        group.name: tuple(name for layer in group.producers for name in by_layer[layer])
        for group in groups
    }


def holders(kernels: Sequence[graph.Kernel]) -> Iterator[graph.Kernel]:
    """The first kernel of each weight: a layer that is called twice is stored once."""
    seen: set[str] = set()
    for kernel in kernels:
        if kernel.weight is not None and kernel.weight not in seen:
            seen.add(kernel.weight)
            yield kernel


def _all_weight_bytes(kernels: Sequence[graph.Kernel]) -> float:
    return sum(_weight_bytes(kernel) for kernel in holders(kernels))


def _weight_bytes(kernel: graph.Kernel) -> float:
    shape = graph.work(kernel).shape
    numbers = shape.groups * shape.inputs * shape.window * shape.outputs
    return float(weight_bytes(kernel.precision, numbers, kernel.out_channels))


def weight_bytes(precision: str, numbers: Any, channels: Any) -> Any:
    """What a layer's weight of so many numbers, and its bias, take in an ONNX file.

    ``channels`` are the layer's outputs. Numbers give a number, arrays an array.
    """
    if precision != "int8":
        return 4.0 * (numbers + channels)
    per_channel = 4 + BYTES_PER_QUANTIZED_CHANNEL
    return numbers + channels * per_channel + BYTES_PER_QUANTIZED_LAYER
