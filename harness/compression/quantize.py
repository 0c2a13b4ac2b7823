"""Static quantization to Q/DQ networks that onnxruntime runs as integer kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxruntime import quantization

from harness.errors import BuildError
from harness.networks import layer_of_node, quiet
from harness.records import BoardFacts, Profile

__all__ = ["QuantizeReport", "available_precisions", "quantize", "real_int8_layers"]

# Fused integer kernels as onnxruntime's profiler names them (1.10 to 1.31).
INTEGER_OPS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger"})

# Operators that onnxruntime runs on bytes when all around them is integer; every other operator
# would only gain a Q/DQ pair.
CARRIERS = frozenset(
    {
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Flatten",
        "GlobalAveragePool",
        "MaxPool",
        "Relu",
        "Reshape",
        "Squeeze",
        "Transpose",
    }
)
# Carriers that vanish in the integer kernel before them: its output range does their work.
ABSORBED = frozenset({"Relu", "Clip"})
# Operators that layers are exported as.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What ``quantize`` did: layers and carrier nodes made integer, in the order of the graph."""

    int8_layers: tuple[str, ...]
    carriers: tuple[str, ...]
    calibration_images: int
    size_bytes: int


def available_precisions(board: BoardFacts) -> tuple[str, ...]:
    """The precisions worth trying on a board, the exact one first.

    int8 is left out where the board has no fast integer kernels; fp16 on onnxruntime's CPU
    provider is a storage format with casts around every kernel, so it never pays.
    """
    return ("fp32",) if board.int8 == "slow" else ("fp32", "int8")


def quantize(
    fp32_onnx: Path,
    out: Path,
    *,
    calibration: npt.NDArray[np.float32],
    int8_layers: Collection[str],
    board: BoardFacts,
) -> QuantizeReport:
    """Write the network of ``fp32_onnx`` with ``int8_layers`` in int8, the rest left alone.

    Weights are symmetric int8, one scale an output channel; activations asymmetric uint8 with
    their minimum and maximum over the ``calibration`` images ``(n, c, h, w)``, the form that
    onnxruntime's CPU kernels want (symmetric int8 activations keep ReLU from being absorbed). On
    AVX2 without VNNI weights keep to seven bits: pairs of U8S8 products saturate in 16 bits there.
    Raises BuildError.
    """
    model = onnx.load(fp32_onnx)
    layers = layer_of_node(model)
    wanted = set(int8_layers)
    if missing := sorted(wanted - set(layers.values())):
        raise BuildError(f"cannot quantize {', '.join(missing)}: no such layer in {fp32_onnx.name}")
    if not wanted or not len(calibration):
        raise BuildError("quantizing needs at least one layer and one calibration image")
    integer = {node for node, layer in layers.items() if layer in wanted}
    carriers = _carriers(model, integer)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as folder, quiet():
        # The quantizer writes beside its input; it gets a copy of its own.
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        try:
            quantization.quantize_static(
                source,
                target,
                _Reader(model, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=board.int8 == "avx2",
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=[*integer, *carriers],
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise BuildError(f"{fp32_onnx.name} cannot be quantized: {error}") from error
        quantized = onnx.load(target)
        _free_output(quantized)
        _keep_float(quantized, layers.keys() - integer)
        quantized.ir_version = model.ir_version
        onnx.checker.check_model(quantized)
        target.write_bytes(quantized.SerializeToString(deterministic=True))
        target.replace(out)
    order = [node.name for node in model.graph.node]
    return QuantizeReport(
        int8_layers=tuple(dict.fromkeys(layers[name] for name in order if name in integer)),
        carriers=tuple(carriers),
        calibration_images=len(calibration),
        size_bytes=out.stat().st_size,
    )


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Calibration images in batches of the size that the file has fixed."""

    def __init__(self, model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> None:
        entry = model.graph.input[0]
        self._name = entry.name
        self._batch = entry.type.tensor_type.shape.dim[0].dim_value or 32
        self._images = np.ascontiguousarray(images, dtype=np.float32)
        self._position = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, filled up with copies of its last image; None at the end."""
        part = self._images[self._position : self._position + self._batch]
        self._position += self._batch
        if not len(part):
            return None
        missing = self._batch - len(part)
        return {self._name: np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])}


def _carriers(model: onnx.ModelProto, integer: set[str]) -> list[str]:
    """The nodes without weights that work on bytes, in the order of the graph.

    All that one reads is integer already, and it leads to a layer, whichever precision that has
    (what leads to the network's outputs alone stays float); or it vanishes in the integer kernel
    before it. ``latency_models.quantization.carriers`` is the same rule for predictions.
    """
    nodes = list(model.graph.node)
    constants = {item.name for item in model.graph.initializer}
    made_by = {output: node for node in nodes for output in node.output}
    leading: set[str] = set()
    wanted: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in LAYERS or any(name in wanted for name in node.output):
            leading.add(node.name)
            wanted.update(node.input)
    carried = set(integer)
    for node in nodes:
        sources = [made_by.get(name) for name in node.input if name and name not in constants]
        if node.op_type not in CARRIERS or not sources:
            continue
        if all(source is not None and source.name in carried for source in sources) and (
            node.op_type in ABSORBED or node.name in leading
        ):
            carried.add(node.name)
    return [node.name for node in nodes if node.name in carried - integer]


def _free_output(model: onnx.ModelProto) -> None:
    """Let an integer Gemm at the end give float outputs: eight bits for logits cost accuracy.

    onnxruntime's QGemm can write floats; QLinearConv cannot, so a convolution keeps its pair.
    """
    nodes = {output: node for node in model.graph.node for output in node.output}
    for output in model.graph.output:
        dequantize = nodes.get(output.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize_node = nodes.get(dequantize.input[0])
        if quantize_node is None or quantize_node.op_type != "QuantizeLinear":
            continue
        layer = nodes.get(quantize_node.input[0])
        if layer is None or layer.op_type != "Gemm":
            continue
        layer.output[0] = output.name
        unused = {*dequantize.input, *quantize_node.input}
        model.graph.node.remove(dequantize)
        model.graph.node.remove(quantize_node)
        unused -= {name for node in model.graph.node for name in node.input}
        kept = [item for item in model.graph.initializer if item.name not in unused]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def _keep_float(model: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Keep onnxruntime from quantizing the float layers among ``nodes`` on its own.

    Since 1.20 or so it rounds the weights of a float Conv or Gemm, per tensor, when that stands
    between a DequantizeLinear and a QuantizeLinear (core/optimizer/qdq_transformer/
    weight_bias_quantization.cc): a layer allocated fp32 would run as int8, and coarser. It does
    so only where the input's scale is a scalar; the same scale written once a channel is equal
    arithmetic and stops it.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in list(model.graph.node):
        source = made_by.get(node.input[0]) if node.name in nodes else None
        if source is None or source.op_type != "DequantizeLinear" or not _leads_to_q(model, node):
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        rows, columns = constants[node.input[1]].shape[:2]
        if node.op_type == "Conv":
            channels = columns * attributes.get("group", 1)
        else:
            channels = columns if attributes.get("transB", 0) else rows
        inputs = [source.input[0]]
        for name in source.input[1:]:
            repeated = np.broadcast_to(constants[name].reshape(-1), (channels,))
            inputs.append(f"{name}_{node.name}")
            model.graph.initializer.append(numpy_helper.from_array(repeated.copy(), inputs[-1]))
        own = onnx.helper.make_node(
            "DequantizeLinear",
            inputs,
            [f"{node.input[0]}_{node.name}"],
            name=f"{source.name}_{node.name}",
            axis=1,
        )
        model.graph.node.insert(list(model.graph.node).index(node), own)
        node.input[0] = own.output[0]
        if not any(source.output[0] in other.input for other in model.graph.node):
            model.graph.node.remove(source)


def _leads_to_q(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether nothing but ReLU and Clip stands between a node and a QuantizeLinear."""
    while True:
        readers = [other for other in model.graph.node if node.output[0] in other.input]
        if any(reader.op_type == "QuantizeLinear" for reader in readers):
            return True
        if len(readers) != 1 or readers[0].op_type not in ABSORBED:
            return False
        node = readers[0]


def real_int8_layers(profile: Profile, int8_layers: Collection[str]) -> tuple[str, ...]:
    """Those of ``int8_layers`` that ran as an integer kernel, in the order of execution."""
    wanted = set(int8_layers)
    real = (
        _layer_of_kernel(kernel.node or kernel.name)
        for kernel in profile.kernels
        if kernel.op in INTEGER_OPS
    )
    return tuple(dict.fromkeys(layer for layer in real if layer in wanted))


def _layer_of_kernel(node: str) -> str:
    """``blocks.0.conv1`` for ``/blocks/blocks.0/conv1/Conv_token_4_kernel_time``.

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
