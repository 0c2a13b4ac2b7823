"""Networks as files: ONNX for the boards, .pt2 for torch."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from harness.errors import BuildError, ConfigError
from harness.networks.evaluate import open_session
from harness.networks.idle import without_idle_nodes
from harness.networks.loading import load_network
from harness.networks.structure import fold_batchnorm, outputs_of, run_once, same_outputs

__all__ = [
    "as_onnx",
    "example_input",
    "export_onnx",
    "layer_of_node",
    "quiet",
    "save_pt2",
    "write_file",
]

# onnxruntime 1.10, the newest for Python 3.6, reads IR version 8 at most.
MAX_IR_VERSION = 8


@contextlib.contextmanager
def as_onnx(spec: str, weights: Path | None, shape: str | None) -> Iterator[Path]:
    """An ONNX file of the network: ``spec`` itself, or one exported for as long as this lasts.

    ``shape`` is the shape of one input batch, such as ``1,3,224,224`` or ``1x3x224x224``; an
    ``.onnx`` file does not need it. Raises ConfigError.
    """
    if Path(spec).suffix == ".onnx":
        if weights is not None:
            raise ConfigError(f"{spec} has its weights inside; leave --weights out")
        if not Path(spec).is_file():
            raise ConfigError(f"network file {spec} does not exist")
        yield Path(spec)
        return
    network = load_network(spec, weights)
    example = example_input(network, spec, shape)
    with tempfile.TemporaryDirectory(prefix="boardfit-") as folder:
        path = Path(folder, "network.onnx")
        export_onnx(network, example, path, batch=len(example))
        yield path


def example_input(network: nn.Module, spec: str, shape: str | None) -> Tensor:
    """Zeros of the ``shape`` of one input batch, such as ``1,3,224,224`` or ``1x3x224x224``.

    ConfigError, in which the network is called ``spec``, where it is none or the network does not
    take it.
    """
    sizes = re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)+", shape or "")
    if sizes is None or shape is None:
        raise ConfigError(
            f"input shape {shape!r}: the network {spec} needs one, such as 1,3,224,224"
        )
    example = torch.zeros([int(size) for size in re.split("[x,]", shape)])
    try:
        run_once(network, example)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"the network {spec} does not take inputs of {shape}: {error}") from error
    return example


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing from exporters and quantizers reaches the user's console: no logs, no prints."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def export_onnx(
    network: nn.Module, example: Tensor, path: Path, *, opset: int = 13, batch: int = 1
) -> None:
    """Write the network as an ONNX file with a fixed batch; equal weights give equal bytes.

    Batch norm is folded first, so that the initializers keep torch's names and a kernel can be
    traced to its layer (``layer_of_node``). The legacy exporter is the one that still writes opset
    13, which onnxruntime 1.10 and TensorRT 8.2 are at home with. Raises BuildError where the file
    would not compute what the network does.
    """
    folded = fold_batchnorm(network, example)
    inputs = example[:1].expand(batch, *example.shape[1:]).contiguous()
    buffer: Any = io.BytesIO()  # the annotation knows only paths; the legacy exporter takes files
    with quiet(), warnings.catch_warnings():
        # The legacy exporter is used on purpose (above), and warns that it is deprecated; the rest
        # are remarks about values that a fixed input shape turns into constants and about
        # constants that it leaves to onnxslim. The file is checked against the network below.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                folded,
                (inputs,),
                buffer,
                dynamo=False,
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise BuildError(f"the network cannot be exported to ONNX: {error}") from error
        model = onnxslim.slim(_with_fixed_pads(onnx.load_from_string(buffer.getvalue()), inputs))
    model = without_idle_nodes(model)
    _name_weights(model, folded)
    _unshare_biases(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    onnx.checker.check_model(model)
    payload = model.SerializeToString(deterministic=True)
    _check_export(payload, inputs, outputs_of(folded, inputs))
    write_file(path, payload)


def _with_fixed_pads(model: onnx.ModelProto, inputs: Tensor) -> onnx.ModelProto:
    """The model with constants for the paddings that it computes from its input's fixed size.

    onnxslim (0.1.98) would fold them to other numbers where the two sides differ.
    """
    nodes = [node for node in model.graph.node if node.op_type == "Pad"]
    names = sorted({node.input[1] for node in nodes})
    if not names:
        return model
    told = onnx.ModelProto()
    told.CopyFrom(model)
    told.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in names
    )
    session = open_session(told.SerializeToString(), threads=1)
    values = session.run(names, {session.get_inputs()[0].name: inputs.numpy()})
    for name, value in zip(names, values, strict=True):
        fixed = numpy_helper.from_array(np.asarray(value), f"{name}/fixed")
        model.graph.initializer.append(fixed)
        for node in nodes:
            if node.input[1] == name:
                node.input[1] = fixed.name
    return model


def write_file(path: Path, payload: bytes) -> None:
    """Write atomically, so that a killed run leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(payload)
    partial.replace(path)


def _check_export(payload: bytes, inputs: Tensor, wanted: list[Tensor]) -> None:
    session = open_session(payload, threads=1)
    got = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    if not same_outputs(wanted, [torch.from_numpy(np.asarray(value)) for value in got]):
        raise BuildError("the exported ONNX file does not compute what the network computes")


def _name_weights(model: onnx.ModelProto, network: nn.Module) -> None:
    """Give weights that the exporter transposed and renamed their layer's name back.

    It does so where a linear layer reads more than two dimensions; the value tells which it was.
    """
    by_value: dict[bytes, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            by_value[weight.contiguous().numpy().tobytes()] = f"{name}.weight"
            by_value[weight.T.contiguous().numpy().tobytes()] = f"{name}.weight"
    initializers = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in initializers:
            continue
        old = initializers[node.input[1]]
        new = by_value.get(numpy_helper.to_array(old).tobytes())
        if new is None or new in initializers:
            continue
        initializers[new] = old
        for user in model.graph.node:
            user.input[:] = [new if name == old.name else name for name in user.input]
        old.name = new


def _unshare_biases(model: onnx.ModelProto) -> None:
    """Give every layer a bias of its own.

    The exporter merges equal initializers (all zero, say), and a bias that two layers share
    cannot be quantized with the scale of each.
    """
    biases = {item.name: item for item in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        shared = node.input[2]
        if shared in seen and shared in biases:
            name = f"{_stem(node.input[1])}.bias"
            if name in biases:
                continue  # one layer called twice shares its weights as well
            own = onnx.TensorProto()
            own.CopyFrom(biases[shared])
            own.name = name
            biases[name] = own
            model.graph.initializer.append(own)
            node.input[2] = name
        seen.add(node.input[2])


def _stem(initializer: str) -> str:
    return initializer.removesuffix(".weight")


def layer_of_node(model: onnx.ModelProto) -> dict[str, str]:
    """The layer of every Conv, Gemm and MatMul node that has weights, by the node's name.

    Read off the name of the weights; in a file of another exporter, whose weights are not named
    after layers, a layer has the name of its node.
    """
    shapes = {item.name: item.dims for item in model.graph.initializer}
    return {
        node.name: _stem(node.input[1]) if node.input[1].endswith(".weight") else node.name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and len(shapes.get(node.input[1], ())) >= 2
        and (node.op_type == "Conv" or len(shapes[node.input[1]]) == 2)
    }


def save_pt2(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write the network as a ``.pt2`` file (``torch.export``), its batch free where it can be."""
    network = copy.deepcopy(network).eval()
    for weight in network.parameters():  # in any other layout (channels last) the archive warns
        weight.data = weight.data.contiguous()
    # torch.export takes a batch of one for a constant.
    inputs = example[:1].expand(2, *example.shape[1:]).contiguous()
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(network, (inputs,), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_file(path, buffer.getvalue())
