"""What the profile says of layers that were meant to be integer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from harness.records import KernelTime, Profile
from harness.tensorrt import versions

__all__ = ["FloatLayer", "float_layers", "real_int8_layers"]

# Fused integer kernels as onnxruntime's profiler names them (1.10 to 1.31).
INTEGER_OPS = frozenset(
    {
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
TENSORRT_CHOSE = "TensorRT timed a float kernel as faster, or fused it into a layer of another name"
# TensorRT's tactics on integers name their operands and the sum's type (..._i8i8_i8i32_f32_... or
# ..._i8f32_i8i32_f32_...) or int8 itself; a layer may also tell it as its output's type. From
# engine dumps that others published, not from a board of ours.
_INTEGER_TACTIC = re.compile(r"i8i32|int8|imma|idp4a", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatLayer:
    """A layer that was to be integer and was not: the kernel it ran as, and the likely reason."""

    layer: str
    ran_as: str | None
    why: str

    def __str__(self) -> str:
        return f"{self.layer} ran as {self.ran_as or 'no kernel of its own'}: {self.why}"


def real_int8_layers(
    profile: Profile,
    int8_layers: Collection[str],
    *,
    layer_of_node: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Those of ``int8_layers`` that ran as an integer kernel, in the order of execution.

    ``layer_of_node`` says which layer a node is (``networks.layer_of_node``); without it, the
    layer is read off the module path that the exporter wrote into the node's name.
    """
    wanted = set(int8_layers)
    real = (
        _layer_of_kernel(kernel, layer_of_node) for kernel in profile.kernels if _is_integer(kernel)
    )
    return tuple(dict.fromkeys(layer for layer in real if layer in wanted))


def float_layers(
    profile: Profile,
    int8_layers: Collection[str],
    *,
    layer_of_node: Mapping[str, str] | None = None,
) -> tuple[FloatLayer, ...]:
    """Those of ``int8_layers`` that ran as something else, with the likely reason of each.

    () where the runtime does not tell: TensorRT before 8.2 names its layers and no more.
    """
    if versions.is_tensorrt(profile.runtime) and not any(k.tactic for k in profile.kernels):
        return ()
    real = set(real_int8_layers(profile, int8_layers, layer_of_node=layer_of_node))
    ran_as = {
        _layer_of_kernel(kernel, layer_of_node): kernel.op
        for kernel in profile.kernels
        if not _is_integer(kernel)
        and kernel.op not in ("QuantizeLinear", "DequantizeLinear", "ReorderOutput", "Transpose")
    }
    dequantizes = sum(kernel.op == "DequantizeLinear" for kernel in profile.kernels)
    return tuple(
        FloatLayer(
            layer=layer,
            ran_as=ran_as.get(layer),
            why=TENSORRT_CHOSE
            if versions.is_tensorrt(profile.runtime)
            else _why(ran_as.get(layer), dequantizes),
        )
        for layer in int8_layers
        if layer not in real
    )


def _is_integer(kernel: KernelTime) -> bool:
    told = f"{kernel.tactic} {kernel.precision}"
    return kernel.op in INTEGER_OPS or _INTEGER_TACTIC.search(told) is not None


def _why(op: str | None, dequantizes: int) -> str:
    if op is None:
        return (
            "the profile has no kernel of its name; the runtime fused it into another one or was "
            "given another file"
        )
    if op == "ConvTranspose":
        return "onnxruntime has no integer kernel for it"
    if not dequantizes:
        return (
            "the file has no Q/DQ left around it; a provider that folds Q/DQ away, or a file that "
            "was not quantized, was profiled"
        )
    return (
        "onnxruntime did not fuse its Q/DQ: its bias or weight is no plain initializer, its output "
        "is read by a float node or is an output of the network, or the runtime is too old for "
        "one scale a channel"
    )


def _layer_of_kernel(kernel: KernelTime, layer_of_node: Mapping[str, str] | None) -> str:
    name = (kernel.node or kernel.name).removesuffix("_kernel_time")
    if layer_of_node is not None:
        # Fusions append a token to the name of the node that they grew from.
        return layer_of_node.get(re.sub(r"(_token_\d+|_nchwc|_quant)+$", "", name), name)
    return _layer_of_path(name)


def _layer_of_path(node: str) -> str:
    """``blocks.0.conv1`` for ``/blocks/blocks.0/conv1/Conv_token_4``.

    The exporter writes the path of modules, an element of a sequence with the sequence's name in
    front; onnxruntime's fusions append to the last part, the operator.
    """
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
