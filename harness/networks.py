"""Networks and data as torch sees them: loading, folding, counting, and export to ONNX.

A *layer* is a convolution or a linear layer, known by its dotted module name in the original
network; that name survives batch-norm folding, pruning and export.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import importlib
import importlib.util
import io
import logging
import math
import os
import pickle
import re
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import onnxslim
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from harness.errors import BuildError, ConfigError

__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "LAYER_TYPES",
    "Data",
    "Layer",
    "Network",
    "as_onnx",
    "check_fits",
    "count_macs",
    "count_parameters",
    "export_onnx",
    "fingerprint",
    "fold_batchnorm",
    "layer_of_node",
    "layers_in_order",
    "load_data",
    "load_network",
    "onnx_logits",
    "output_shapes",
    "quiet",
    "save_pt2",
    "top1",
]

Network: TypeAlias = nn.Module

# glibc's mallopt: serve everything from the heap, never give it back, grow it in large steps.
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
Array: TypeAlias = npt.NDArray[Any]
Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYER_TYPES = (*CONVOLUTIONS, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# onnxruntime 1.10, the newest for Python 3.6, reads IR version 8 at most.
MAX_IR_VERSION = 8
# Images may have these numbers of channels; it is how channels-first and -last are told apart.
IMAGE_CHANNELS = (1, 3, 4)


# --- loading a network --------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """Make this process keep freed memory, where its C library is glibc.

    torch asks for the same large buffers at every step; with glibc's defaults each is mapped and
    unmapped anew, and a quarter of the training time goes into page faults. The process that is
    measured is another one and keeps its defaults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 128 << 20)):
        mallopt(option, value)


def load_network(spec: str, weights: Path | None) -> nn.Module:
    """The network that ``module:factory`` or ``file.py:factory`` builds, in evaluation mode.

    ``weights`` is a state dict (``torch.save``), bare or under ``state_dict``, its keys with or
    without ``module.`` in front, stored in any float type; None leaves the factory's own weights.
    Raises ConfigError.
    """
    suffix = Path(spec.rpartition(":")[0] or spec).suffix
    if suffix in (".pt2", ".onnx"):
        raise ConfigError(
            f"{spec} is an exported network, and a factory is needed here: an exported network can "
            "be profiled, predicted and quantized, but not pruned; give module:factory or "
            "file.py:factory and --weights"
        )
    source, colon, attribute = spec.rpartition(":")
    if not colon or not source or not attribute:
        raise ConfigError(f"network {spec!r}: expected module:factory or file.py:factory")
    module = _import_file(Path(source)) if suffix == ".py" else _import_module(source)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(f"network {spec!r}: {source} has no function {attribute!r}")
    try:
        network = factory()
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(
            f"network {spec!r}: {attribute}() raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"network {spec!r}: {attribute}() returned {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    if weights is not None:
        _load_weights(network, weights)
    return network.eval()


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """``folder`` first on the import path, so that the network's file finds its neighbours."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _import_module(name: str) -> ModuleType:
    with _on_path(Path()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"network module {name!r}: {error}; for a file, write file.py:factory"
            ) from error
        except Exception as error:  # the user's own code may raise anything
            raise ConfigError(
                f"network module {name!r} raised {type(error).__name__}: {error}"
            ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"network file {path} does not exist")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"boardfit_network_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"network file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    with _on_path(path.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the user's own code may raise anything
            del sys.modules[name]
            raise ConfigError(
                f"network file {path} raised {type(error).__name__}: {error}"
            ) from error
    return module


def _load_weights(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"weights file {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"weights file {path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"weights file {path} is corrupt or holds more than tensors (save a state dict): "
            f"{str(error).splitlines()[0]}"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"weights file {path} holds no state dict (a mapping of tensors)")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}

    expected = network.state_dict()
    # num_batches_tracked is bookkeeping that old files lack and evaluation never reads.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", surplus), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise ConfigError(f"weights {path} do not fit the network; {'; '.join(problems)}")
    network.load_state_dict(state, strict=False)


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Data:
    """Images as the network wants them, float32 ``(n, channels, h, w)``, and int64 labels."""

    train_images: Tensor
    train_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor

    @property
    def example(self) -> Tensor:
        """One image, ``(1, channels, h, w)``: what tracing and export run through a network."""
        return self.train_images[:1]


def load_data(
    path: Path, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Data:
    """The images and labels of an ``.npz`` file.

    Keys: ``train_images``, ``train_labels`` (optional), ``test_images``, ``test_labels``, ``mean``
    and ``std`` (one value, or one a channel), or the short forms ``xtr, ytr, xte, yte``. Images
    are ``(n, c, h, w)`` or ``(n, h, w, c)``; bytes are scaled to 0..1, then the mean is subtracted
    and the result divided by the standard deviation. ``mean`` and ``std`` given here replace the
    file's. Raises ConfigError.
    """
    if not path.is_file():
        raise ConfigError(f"data file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(f"data file {path} is not a readable .npz file: {error}") from error

    for short, name in (
        ("xtr", "train_images"),
        ("ytr", "train_labels"),
        ("xte", "test_images"),
        ("yte", "test_labels"),
    ):
        if short in arrays:
            arrays.setdefault(name, arrays[short])
    if mean is not None:
        arrays["mean"] = np.asarray(mean)
    if std is not None:
        arrays["std"] = np.asarray(std)
    needed = ("train_images", "test_images", "test_labels", "mean", "std")
    if missing := [name for name in needed if name not in arrays]:
        raise ConfigError(
            f"data file {path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}"
        )

    train = _images(path, "train_images", arrays)
    test = _images(path, "test_images", arrays)
    if train.shape[1:] != test.shape[1:]:
        raise ConfigError(
            f"data file {path}: train images are {tuple(train.shape[1:])}, "
            f"test images {tuple(test.shape[1:])}"
        )
    train_labels = _labels(path, "train_labels", arrays, len(train))
    test_labels = _labels(path, "test_labels", arrays, len(test))
    assert test_labels is not None  # its key was checked above
    return Data(train, train_labels, test, test_labels)


def _images(path: Path, name: str, arrays: Mapping[str, Array]) -> Tensor:
    images = arrays[name]
    if images.ndim == 4 and images.shape[1] not in IMAGE_CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in IMAGE_CHANNELS:
        raise ConfigError(
            f"data file {path}: {name} has shape {arrays[name].shape}; "
            "expected (n, channels, h, w) or (n, h, w, channels) with 1, 3 or 4 channels"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ConfigError(f"data file {path}: {name} is {images.dtype}; expected uint8 or floats")
    channels = images.shape[1]
    statistics = []
    for key in ("mean", "std"):
        value = np.asarray(arrays[key], np.float32).reshape(-1)
        if len(value) not in (1, channels) or not np.isfinite(value).all():
            raise ConfigError(
                f"data file {path}: {key} is {value.tolist()}; expected one number, or {channels}"
            )
        statistics.append(value.reshape(1, -1, 1, 1))
    mean, std = statistics
    if (std <= 0).any():
        raise ConfigError(f"data file {path}: std is {std.reshape(-1).tolist()}; must be positive")
    scaled = images.astype(np.float32) / 255 if images.dtype == np.uint8 else images
    normalised = np.ascontiguousarray((scaled - mean) / std, dtype=np.float32)
    if not np.isfinite(normalised).all():
        raise ConfigError(f"data file {path}: {name} holds values that are not finite")
    return torch.from_numpy(normalised)


def _labels(path: Path, name: str, arrays: Mapping[str, Array], count: int) -> Tensor | None:
    if name not in arrays:
        return None
    labels = arrays[name]
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"data file {path}: {name} is {labels.dtype} of shape {labels.shape}; "
            f"expected {count} whole numbers, one an image"
        )
    if labels.min() < 0:
        raise ConfigError(f"data file {path}: {name} holds the negative label {labels.min()}")
    return torch.from_numpy(labels.astype(np.int64))


def check_fits(network: nn.Module, data: Data) -> None:
    """Raise ConfigError unless the network takes these images and has a class for every label."""
    images = data.test_images[:2]
    try:
        with torch.no_grad():
            outputs = network.eval()(images)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the network does not take images of shape {tuple(images.shape)}: {error}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(images):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(
            f"the network turns images of shape {tuple(images.shape)} into {shape}; "
            "expected (n, classes)"
        )
    classes = outputs.shape[1]
    for name, labels in (("train", data.train_labels), ("test", data.test_labels)):
        if labels is not None and int(labels.max()) >= classes:
            raise ConfigError(
                f"the {name} labels go up to {int(labels.max())}, "
                f"but the network's output has {classes} classes"
            )


# --- structure ----------------------------------------------------------------------------------


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
        _forward(network, example)
    return order


def _forward(network: nn.Module, example: Tensor) -> Any:
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
        _forward(network, example)
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
    wanted = _outputs(folded, example)
    pairs = _batchnorm_pairs(folded, example)
    together = _with_folded(folded, pairs)
    if _same(wanted, _outputs(together, example)):
        return together
    for pair in pairs:
        alone = _with_folded(folded, [pair])
        if _same(wanted, _outputs(alone, example)):
            folded = alone
    return folded


def _batchnorm_pairs(network: nn.Module, example: Tensor) -> list[tuple[tuple[str, ...], str]]:
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
        _forward(network, example)
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


def _outputs(network: nn.Module, example: Tensor) -> list[Tensor]:
    outputs = _forward(network, example)
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [output for output in outputs if isinstance(output, Tensor)]


def output_shapes(network: nn.Module, example: Tensor) -> list[tuple[int, ...]]:
    """The shapes of the network's outputs."""
    return [tuple(output.shape) for output in _outputs(network, example)]


def _same(wanted: list[Tensor], got: list[Tensor]) -> bool:
    """Whether two sets of outputs differ by no more than float32 arithmetic explains."""
    return len(wanted) == len(got) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * max(float(a.abs().max()), 1e-6))
        for a, b in zip(wanted, got, strict=True)
    )


# --- export -------------------------------------------------------------------------------------


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
    sizes = re.fullmatch(r"[1-9]\d*([x,][1-9]\d*)+", shape or "")
    if sizes is None or shape is None:
        raise ConfigError(
            f"input shape {shape!r}: the network {spec} needs one, such as 1,3,224,224"
        )
    example = torch.zeros([int(size) for size in re.split("[x,]", shape)])
    try:
        _forward(network, example)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the network {spec} does not take inputs of {shape}: {error}") from error
    with tempfile.TemporaryDirectory(prefix="boardfit-") as folder:
        path = Path(folder, "network.onnx")
        export_onnx(network, example, path, batch=len(example))
        yield path


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
        model = onnxslim.slim(onnx.load_from_string(buffer.getvalue()))
    _name_weights(model, folded)
    _unshare_biases(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    onnx.checker.check_model(model)
    payload = model.SerializeToString(deterministic=True)
    _check_export(payload, inputs, _outputs(folded, inputs))
    _write(path, payload)


def _write(path: Path, payload: bytes) -> None:
    """Write atomically, so that a killed run leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_bytes(payload)
    partial.replace(path)


def _check_export(payload: bytes, inputs: Tensor, wanted: list[Tensor]) -> None:
    session = _session(payload, threads=1)
    got = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    if not _same(wanted, [torch.from_numpy(np.asarray(value)) for value in got]):
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
    """The layer of every Conv, Gemm and MatMul node, read off the name of its weights."""
    named = {item.name for item in model.graph.initializer if item.name.endswith(".weight")}
    return {
        node.name: _stem(node.input[1])
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in named
    }


def save_pt2(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write the network as a ``.pt2`` file (``torch.export``), its batch free where it can be."""
    network = copy.deepcopy(network).eval()
    # torch.export takes a batch of one for a constant.
    inputs = example[:1].expand(2, *example.shape[1:]).contiguous()
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(network, (inputs,), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    _write(path, buffer.getvalue())


# --- running an ONNX file on the host -----------------------------------------------------------


def _session(model: str | bytes, *, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_logits(
    path: Path, images: Tensor | npt.NDArray[np.float32], *, threads: int | None = None
) -> npt.NDArray[np.float32]:
    """Logits ``(n, classes)`` of an ONNX file, computed on this computer by onnxruntime.

    The file runs as it is, with its own fixed batch, so the result is the file's own; ``threads``
    single-threaded calls run at once (None: one a core). A batch that does not divide the number
    of images is filled up with copies of the last one.
    """
    array = np.ascontiguousarray(np.asarray(images), dtype=np.float32)
    session = _session(str(path), threads=1)
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else 32
    starts = range(0, len(array), batch)

    def run(start: int) -> npt.NDArray[np.float32]:
        part = array[start : start + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        logits: npt.NDArray[np.float32] = session.run(None, {entry.name: part})[0]
        return logits[:count]

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        return np.concatenate(list(pool.map(run, starts)))


def top1(logits: Tensor | npt.NDArray[np.float32], labels: Tensor | Array) -> float:
    """The share of images whose largest logit is the label's."""
    return float((np.asarray(logits).argmax(1) == np.asarray(labels)).mean())
