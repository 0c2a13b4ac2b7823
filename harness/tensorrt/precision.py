"""From a precision for every layer to what the builder needs: flags, bound layers, typed files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from harness.errors import BuildError, ConfigError
from harness.records import BuildSettings, LayerPrecision
from harness.tensorrt import placement, typed
from harness.tensorrt.chips import Capability
from harness.tensorrt.storage import unpack
from harness.tensorrt.versions import Release

__all__ = ["PrecisionPlan", "plan", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """The network to send, how to build it, and what is worth saying about either.

    ``model`` is the given one where the file can stay as it is.
    """

    model: onnx.ModelProto
    settings: BuildSettings
    notes: tuple[str, ...] = ()


def uniform(
    model: onnx.ModelProto,
    precision: str,
    *,
    release: Release,
    capability: Capability,
    settings: BuildSettings | None = None,
) -> PrecisionPlan:
    """The plan for a whole network in ``precision``: fp32, fp16, int8 or best.

    int8 is the network's own Q/DQ: TensorRT is not left to invent ranges. ``best`` is all that the
    chip computes fast and the file allows. ConfigError where the file or the chip has no int8.
    """
    pairs = placement.has_pairs(model)
    if precision == "int8" and not pairs:
        raise ConfigError(
            "the network is not quantized, and int8 without ranges computes nonsense; quantize it "
            "first (boardfit quantize NET.onnx --board NAME --data DATA --out Q.onnx)"
        )
    if precision == "int8" and not capability.fast_int8:
        raise ConfigError(f"the board has no fast int8 ({capability.source}); use --fp16 or fp32")
    if precision == "best":
        precision = "fp16" if capability.fast_fp16 else "fp32"
    notes: tuple[str, ...] = ()
    if precision == "fp16" and not capability.fast_fp16:
        notes = (f"fp16 is not faster than fp32 on this board ({capability.source})",)
    base = "fp16" if precision == "fp16" else "fp32"
    layers = {node.name: base for node in model.graph.node if node.op_type in typed.LAYERS}
    made = plan(model, layers, release=release, capability=capability, settings=settings)
    return replace(made, notes=(*made.notes, *notes))


def plan(
    model: onnx.ModelProto,
    layers: Mapping[str, str],
    *,
    release: Release,
    capability: Capability,
    settings: BuildSettings | None = None,
) -> PrecisionPlan:
    """The plan for a network whose layer nodes are to run in ``layers[name]``: fp32, fp16 or int8.

    int8 layers are those with Q/DQ in the file, named or not. Other layers that ``layers`` does not
    name run in fp32.
    ``settings`` has what is no matter of precision. Where all float layers agree the builder gets
    a flag alone, and is free to choose; else every layer is bound (weak typing), or the file's
    types say it (strong typing). Q/DQ are taken out for a chip without fast int8.
    """
    settings = settings or BuildSettings()
    names = {node.name for node in model.graph.node}
    if unknown := sorted(set(layers) - names):
        raise BuildError(f"there is no node {', '.join(unknown[:3])} in the network")
    notes: tuple[str, ...] = ()
    if placement.has_pairs(model) and not capability.fast_int8:
        model = unpack(model)
        notes = (
            f"Q/DQ were taken out: the board has no fast int8 ({capability.source}); the rounded "
            "weights stay, and run as floats",
        )
    # What lies between integer layers may be fp16 even where no layer of its own is.
    wants_half = "fp16" in layers.values()
    layers = {**layers, **dict.fromkeys(_integer(model), "int8")}
    if release.typing == "strong":
        half = [name for name, precision in layers.items() if precision == "fp16"]
        strong = replace(settings, strongly_typed=True, flags=_tf32(settings), layers=())
        if not wants_half:
            return PrecisionPlan(model=model, settings=strong, notes=notes)
        every = all(p != "fp32" for p in layers.values())
        nodes = typed.half_nodes(model) if every else typed.followers(model, half)
        made = typed.to_half(model, nodes)
        return PrecisionPlan(model=made.model, settings=strong, notes=notes)
    weak = _weak(model, layers, settings, half=wants_half)
    return PrecisionPlan(model=model, settings=weak, notes=notes)


def _integer(model: onnx.ModelProto) -> tuple[str, ...]:
    """The layer nodes that read both input and weights from a DequantizeLinear."""
    behind = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in typed.LAYERS and behind.issuperset(node.input[:2])
    )


def _tf32(settings: BuildSettings) -> tuple[str, ...]:
    return tuple(flag for flag in settings.flags if flag == "tf32")


def _weak(
    model: onnx.ModelProto, layers: Mapping[str, str], settings: BuildSettings, *, half: bool
) -> BuildSettings:
    """Flags for what occurs, and bound layers where the float ones differ."""
    quantized = placement.has_pairs(model)
    floats = {
        node.name: "fp16" if layers.get(node.name) == "fp16" else "fp32"
        for node in model.graph.node
        if node.op_type in typed.LAYERS and layers.get(node.name) != "int8"
    }
    kinds = set(floats.values())
    flags = [*_tf32(settings)]
    if half:
        flags.append("fp16")
    if quantized:
        flags.append("int8")
    if len(kinds) < 2:
        return replace(settings, flags=tuple(flags), layers=(), constraints="none")
    followers = set(typed.followers(model, [n for n, kind in floats.items() if kind == "fp16"]))
    able = set(typed.half_nodes(model))
    bound = tuple(
        LayerPrecision(node=node.name, precision="fp16" if node.name in followers else "fp32")
        for node in model.graph.node
        if node.name in able and layers.get(node.name) != "int8"
    )
    constraints = "prefer" if settings.constraints == "none" else settings.constraints
    return replace(settings, flags=tuple(flags), layers=bound, constraints=constraints)
