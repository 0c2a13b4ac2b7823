"""What a variant costs that can be known exactly, layer by layer, without building it.

Parameters are those of the torch network (``networks.count_parameters``: batch norms count with
their two numbers a channel, though the file has them folded in), multiply-accumulates those of its
convolutions and linear layers for one call of the exported file (``networks.count_macs``; what a
runtime multiplies elsewhere does not count). The size is that of the file that is shipped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from harness.compression.quantize import Form
from harness.compression.shapes import ParameterShapes
from harness.errors import latency_errors
from harness.planning.files import FileOutline
from harness.records import Estimate, Group, LatencySource, LayerCost, Option, Predicted
from harness.strategies.predictor import kernels_of_groups
from latency_models import graph
from latency_models.calibration import LatencyModel
from latency_models.kernels import BYTES, Work
from latency_models.liveness import Liveness, liveness
from latency_models.lowering import RUNTIMES as CPU_RUNTIMES
from latency_models.operators import Op

__all__ = ["VariantCosts", "engine_estimate", "with_losses"]

COVERAGE = 0.9
# What onnxruntime 1.31 allocated in an arena that extends as requested, by what was predicted, at
# least and at most: variants of the demo's network, ResNet-20 and -56 and EfficientNet-Lite0 on an
# x86 processor. Where an integer layer is read by a float sum, the runtime moves transposes and
# rescales in ways of its own; on other processors nobody looked.
UNIFORM, MIXED = (0.9, 1.05), (0.9, 1.6)
CHECKED = ("onnxruntime-cpu", "onnxruntime-cpu-avx2")
# Bytes that a kernel adds to a TensorRT engine, beside its weights: least, likely, most. In engines
# of trtexec 8.0.1 on a Jetson Nano (NobuoTsukamoto/benchmarks, which say whole megabytes) 11 to 44
# kB in EfficientDet-Lite0 and -D0 to -D3 (parameters by Tan et al., CVPR 2020, table 2), the same
# in fp32 and fp16, and 0 to 13 kB in Fast-SCNN (1.11 M parameters; Poudel et al., 2019).
ENGINE_BY_KERNEL = (0, 20_000, 45_000)


@dataclass(frozen=True, slots=True)
class _Variant:
    kernels: tuple[graph.Kernel, ...]
    memory: Liveness


class VariantCosts:
    """The costs of any allocation to the groups of one exported network.

    ``baseline`` is its fp32 file, whose weights may be absent; ``groups`` hold all its layers.
    ``shapes`` tells how its parameters follow the groups (``compression.shapes``). ``runtime`` are
    the fusion rules of the board (``latency_models.graph.RUNTIMES``), ``form`` the Q/DQ form that
    its int8 layers get; None where the board has no int8 and such layers are never asked for.
    LatencyModelError where a layer of a group is not in the file.
    """

    @latency_errors()
    def __init__(
        self,
        baseline: onnx.ModelProto | Path,
        groups: Sequence[Group],
        *,
        shapes: ParameterShapes,
        runtime: str,
        form: Form | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.shapes = shapes
        self.runtime = runtime
        self.form = form
        self.file = FileOutline(baseline)
        self.kernels = graph.read(baseline, runtime=runtime)
        self._of_group = kernels_of_groups(self.kernels, groups)
        self._layers = {layer for group in groups for layer in group.producers}
        self._latest: tuple[tuple[Option, ...], _Variant] | None = None

    @property
    def whole(self) -> dict[str, Option]:
        """The options of the original: every channel, in fp32."""
        return {g.name: Option(channels=g.channels, precision="fp32") for g in self.groups}

    @functools.cached_property
    def works(self) -> tuple[Work, ...]:
        """What the untouched network's kernels do."""
        return tuple(graph.work(kernel) for kernel in self.rewritten(self.whole))

    def parameters(self, options: Mapping[str, Option]) -> int:
        """The variant's parameters, exactly."""
        return self.shapes.count({group.name: self._width(group, options) for group in self.groups})

    def size_bytes(self, options: Mapping[str, Option]) -> int:
        """The size of the variant's file: what is downloaded."""
        return self.file.size_bytes(
            self._channels(options),
            int8_layers=[
                layer
                for group in self.groups
                if options[group.name].precision == "int8"
                for layer in group.producers
            ],
            form=self.form,
        )

    def rewritten(self, options: Mapping[str, Option]) -> tuple[graph.Kernel, ...]:
        """The kernels that the board's runtime executes for the variant."""
        return self._variant(options).kernels

    def memory(self, options: Mapping[str, Option]) -> Liveness:
        """What the variant moves and holds in memory, kernel by kernel."""
        return self._variant(options).memory

    @latency_errors()
    def layers(
        self, options: Mapping[str, Option], *, model: LatencyModel | None = None
    ) -> tuple[LayerCost, ...]:
        """What each layer costs, in order; with a latency ``model``, its seconds as well.

        A kernel's bytes and seconds are those of its layer, and of what is fused into that. Where
        a GPU runs several layers as one kernel, its seconds are shared by multiply-accumulates and
        its input is read once. A layer that is called twice is there twice, its numbers once.
        """
        kernels = self.rewritten(options)
        works = [graph.work(kernel) for kernel in kernels]
        seconds: Sequence[float | None] = [None] * len(works)
        if model is not None:
            seconds = [float(second) for second in model.predict_kernels(works)]
        rows: list[LayerCost] = []
        stored: set[str] = set()
        for kernel, work, second in zip(kernels, works, seconds, strict=True):
            weighted = [op for op in kernel.ops if self._is_layer(op)]
            total = sum(_macs(op) for op in weighted)
            for index, op in enumerate(weighted):
                assert op.weight is not None
                width = BYTES[kernel.precision]
                elements, biases = math.prod(op.weight_shape), _outputs(op) if op.bias else 0
                alone = len(weighted) == 1
                rows.append(
                    LayerCost(
                        layer=op.weight.removesuffix(".weight"),
                        kind=kernel.kind,
                        precision=kernel.precision,
                        channels_in=op.in_shapes[0][1 if op.kind == "conv" else -1],
                        channels_out=_outputs(op),
                        parameters=0 if op.weight in stored else elements + biases,
                        macs=_macs(op),
                        weight_bytes=width * elements + 4 * biases,
                        read_bytes=0 if index else work.bytes_in,
                        written_bytes=work.bytes_out
                        if alone
                        else BYTES[kernel.writes or kernel.precision] * math.prod(op.out_shapes[0]),
                        latency_s=None if second is None else second * _macs(op) / total,
                    )
                )
                stored.add(op.weight)
        return tuple(rows)

    @latency_errors()
    def predicted(
        self,
        options: Mapping[str, Option],
        *,
        model: LatencyModel | None = None,
        source: LatencySource = "prior",
        coverage: float = COVERAGE,
        original: Sequence[Work] | None = None,
        measured: Estimate | None = None,
    ) -> Predicted:
        """Everything that is known of the variant: all but its energy and its accuracy.

        The latency is that of ``model``, where there is one, with its interval at ``coverage``;
        ``source`` says where the model is from. Its ratio is to the ``original``, whose kernels
        these are (None: this network, untouched), and which took ``measured`` seconds on the board
        (None: nobody measured it). What is like a measured original is known best by its ratio to
        that, what is not by itself: of latency and ratio each is the narrower of both.
        """
        kernels, memory = self.rewritten(options), self.memory(options)
        layers = self.layers(options, model=model)
        size = self.size_bytes(options)
        latency = ratio = None
        if model is not None:
            works = tuple(graph.work(kernel) for kernel in kernels)
            whole = self.works if original is None else original
            value, base_s = model.predict(works), model.predict(whole)
            latency = _within(value, model.interval(works, coverage))
            ratio = _within(value / base_s, model.ratio_interval(works, whole, coverage))
            if measured is not None:
                latency, ratio = (
                    min(_product(ratio, measured), latency, key=_doubt),
                    min(ratio, _product(latency, _inverse(measured)), key=_doubt),
                )
        return Predicted(
            size_bytes=Estimate.exactly(size),
            engine_bytes=engine_estimate(
                self.runtime, size, layers, kernels=sum(bool(kernel.nodes) for kernel in kernels)
            ),
            parameters=self.parameters(options),
            macs=sum(layer.macs for layer in layers),
            weight_bytes=memory.weight_bytes,
            moved_bytes=memory.moved_bytes,
            peak_activation_bytes=self._peak(memory, options),
            latency_s=latency,
            latency_source=source,
            latency_ratio=ratio,
            layers=layers,
        )

    def _peak(self, memory: Liveness, options: Mapping[str, Option]) -> Estimate:
        """What the runtime holds of activations at most.

        onnxruntime's arena takes one tensor after the other; a GPU's runtime plans before it runs.
        """
        note = f"most is alive at {memory.peak_at}"
        if self.runtime not in CPU_RUNTIMES:
            low = min(memory.peak_bytes, memory.arena_bytes)
            return Estimate(value=memory.arena_bytes, low=low, high=memory.arena_bytes, note=note)
        value = memory.grown_bytes
        mixed = len({option.precision for option in options.values()}) > 1
        if self.runtime in CHECKED:
            least, most = MIXED if mixed else UNIFORM
            return Estimate(value=value, low=least * value, high=most * value, note=note)
        low, high = min(memory.peak_bytes, value), MIXED[1] * value
        return Estimate(value=value, low=low, high=high, note=note)

    # -- inside ----------------------------------------------------------------------------------

    @latency_errors()
    def _variant(self, options: Mapping[str, Option]) -> _Variant:
        """The variant's kernels and memory; the last one is kept, for it is asked several times."""
        key = tuple(options[group.name] for group in self.groups)
        if self._latest is None or self._latest[0] != key:
            precision = {
                name: options[group.name].precision
                for group in self.groups
                for name in self._of_group[group.name]
            }
            kernels = graph.rewrite(
                self.kernels,
                out_channels=self._channels(options),
                precision=precision,
                runtime=self.runtime,
            )
            block = CPU_RUNTIMES[self.runtime].block if self.runtime in CPU_RUNTIMES else 0
            held = (
                _widened(kernels) if self.form is not None and self.form.widens_input else kernels
            )
            self._latest = key, _Variant(kernels, liveness(held, block=block))
        return self._latest[1]

    def _channels(self, options: Mapping[str, Option]) -> dict[str, int]:
        return {
            name: options[group.name].channels
            for group in self.groups
            if self._width(group, options) < group.channels
            for name in self._of_group[group.name]
        }

    def _width(self, group: Group, options: Mapping[str, Option]) -> int:
        return options[group.name].channels if group.prunable else group.channels

    def _is_layer(self, op: Op) -> bool:
        if op.weight is None or op.kind not in ("conv", "gemm"):
            return False
        return op.weight.removesuffix(".weight") in self._layers


def engine_estimate(
    runtime: str, size_bytes: int, layers: Sequence[LayerCost], *, kernels: int
) -> Estimate:
    """What lies on the board: onnxruntime runs the file itself, TensorRT what it builds of it.

    That is the weights of ``layers`` in the precisions they run in, and what ``kernels`` add.
    """
    if "tensorrt" not in runtime:
        return Estimate.exactly(size_bytes, note="the runtime loads the file itself")
    weights = sum(layer.weight_bytes for layer in layers if layer.parameters)
    low, value, high = (weights + kernels * each for each in ENGINE_BY_KERNEL)
    return Estimate(
        value=value, low=low, high=high, note="weights, and what engines of a Jetson Nano add"
    )


def _within(value: float, interval: tuple[float, float]) -> Estimate:
    low, high = interval
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _product(one: Estimate, other: Estimate) -> Estimate:
    """Of two factors that know nothing of each other."""
    value = one.value * other.value
    down, up = (
        math.hypot(*(math.log(getattr(e, end) / e.value) for e in (one, other)))
        for end in ("low", "high")
    )
    return Estimate(value=value, low=value * math.exp(-down), high=value * math.exp(up))


def _inverse(estimate: Estimate) -> Estimate:
    return Estimate(value=1 / estimate.value, low=1 / estimate.high, high=1 / estimate.low)


def _doubt(estimate: Estimate) -> float:
    """How many times its lowest value an estimate can be at most."""
    return estimate.high / estimate.low


def with_losses(predicted: Predicted, losses: Mapping[str, float]) -> Predicted:
    """``predicted`` whose layers have their share of the summed sensitivity, by layer."""
    layers = (replace(layer, loss=losses.get(layer.layer)) for layer in predicted.layers)
    return replace(predicted, layers=tuple(layers))


def _widened(kernels: Sequence[graph.Kernel]) -> list[graph.Kernel]:
    """``kernels`` in which integer convolutions read four channels of an input of three.

    As ``compression.quantize`` writes them (``Form.widens_input``): a Pad comes first. For memory
    alone: what a kernel multiplies is as before.
    """
    made = {kernel.output for kernel in kernels}
    entries = {
        kernel.output: kernel
        for kernel in kernels
        if kernel.kind == "quantize"
        and kernel.inputs[0] not in made
        and len(kernel.out_shape) == 4
        and kernel.out_shape[1] == 3
    }
    wide = {
        kernel.inputs[0]
        for kernel in kernels
        if kernel.inputs
        and kernel.inputs[0] in entries
        and kernel.kind.startswith("conv_")
        and kernel.precision == "int8"
        and kernel.groups == 1
    }
    result = []
    for kernel in kernels:
        if kernel.inputs and kernel.inputs[0] in wide:
            batch, _, *rest = kernel.in_shapes[0]
            shape = (batch, 4, *rest)
            same = kernel.output in wide  # a transpose of it
            kernel = replace(
                kernel, in_shapes=(shape,), out_shape=shape if same else kernel.out_shape
            )
        elif kernel.output in wide:
            batch, _, *rest = kernel.out_shape
            shape = (batch, 4, *rest)
            pad = replace(
                kernel,
                name=f"{kernel.inputs[0]}_widened",
                kind="move",
                output=f"{kernel.inputs[0]}_widened",
                out_shape=shape,
                precision="fp32",
                nodes=(),
                ops=(),
            )
            result.append(pad)
            kernel = replace(kernel, inputs=(pad.output,), in_shapes=(shape,), out_shape=shape)
        result.append(kernel)
    return result


def _macs(op: Op) -> int:
    return math.prod(op.out_shapes[0]) * math.prod(op.weight_shape[1:])


def _outputs(op: Op) -> int:
    return op.out_shapes[0][1] if op.kind == "conv" else op.out_shapes[0][-1]
