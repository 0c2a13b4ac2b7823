"""``boardfit quantize``: an ONNX file made integer without its torch network, and what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from harness import networks
from harness.boards import inventory
from harness.boards.session import Session
from harness.compression import quantize
from harness.errors import BuildError, ConfigError
from harness.progress import ConsoleObserver
from harness.records import BoardFacts
from harness.tensorrt import storage, versions

__all__ = ["OutputDifference", "QuantizedFile", "quantize_file"]

# Images are drawn by this share for calibration; the others are what the outputs are compared on.
CALIBRATION_SHARE = 0.75
MAX_IMAGES = 256
MIN_IMAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """How far one output is from the original's, over images that were not calibrated on.

    ``max_error`` is the largest difference, ``error_ratio`` the root mean square of all by the
    root mean square of the original (None where that is 0). Where the output is ``(n, classes)``:
    ``agreement`` is the share of images whose largest value stays where it was, ``kl`` the mean
    Kullback-Leibler divergence of the softmax from the original's, in nats; else None.
    """

    name: str
    max_error: float
    error_ratio: float | None
    agreement: float | None
    kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedFile:
    """A network quantized by ``quantize_file``.

    ``layers`` were asked for; ``integer_layers`` of them ran as integer kernels on the board,
    ``float_layers`` says of the others what they ran as and why. Where integers only store weights
    there are no integer kernels, and both are empty: four bits, and int8 with TensorRT on a chip
    without fast int8.
    """

    network: str
    out: str
    runtime: str
    precision: Literal["int8", "weights int8", "weights int4"]
    calibrate: str
    calibration_images: int
    test_images: int
    layers: tuple[str, ...]
    carriers: tuple[str, ...]
    integer_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    size_before_bytes: int
    size_bytes: int
    outputs: tuple[OutputDifference, ...]


def quantize_file(
    network: Path,
    *,
    data: str,
    preparation: networks.Preparation,
    out: Path,
    calibrate: Literal["minmax", "percentile", "error"],
    exclude: Sequence[str],
    board: str,
    int4: bool = False,
) -> QuantizedFile:
    """Quantize every layer of an ONNX file but ``exclude``, in the form that the board wants.

    Where TensorRT has no fast int8 the weights alone are stored in it, for the download.

    Free dimensions of its input become those of the images, the batch one. Raises ConfigError.
    """
    if network.suffix != ".onnx" or not network.is_file():
        raise ConfigError(f"{network} is no .onnx file; boardfit fit quantizes torch networks")
    if out.resolve() == network.resolve():
        raise ConfigError(f"--out {out} is the network itself; name another file")
    files = _files_of(network)
    spec = inventory.find(board)
    with (
        ConsoleObserver() as observer,
        Session(spec, on_event=observer.event) as session,
        tempfile.TemporaryDirectory(prefix="boardfit-") as folder,
    ):
        with observer.stage("read images"):
            images = networks.load_images(data, preparation=preparation, progress=observer.progress)
        networks.check_varied(images)
        calibration, test = _divided(images.numpy(), preparation.seed)
        source = Path(folder, "fp32.onnx")
        model = quantize.ready(network, (1, *images.shape[1:]))
        networks.write_file(source, model.SerializeToString(deterministic=True))
        nodes = networks.layer_of_node(model)
        layers = _chosen(nodes.values(), exclude, network)
        carriers: tuple[str, ...] = ()
        real: tuple[str, ...] = ()
        floats: tuple[str, ...] = ()
        stored = _stored(session.facts, int4=int4)
        with observer.stage("quantize"):
            if stored == "weights int4":
                quantize.store_weights_int4(source, out, layers=layers, board=session.facts)
            elif stored == "weights int8":
                chosen = [node for node, layer in nodes.items() if layer in layers]
                packed = storage.pack(model, chosen)
                networks.write_file(out, packed.SerializeToString(deterministic=True))
            else:
                report = quantize.quantize(
                    source,
                    out,
                    calibration=calibration,
                    int8_layers=layers,
                    board=session.facts,
                    method=calibrate,
                    correct_bias=True,
                    progress=observer.progress,
                )
                carriers = report.carriers
        if stored is None:
            with observer.stage("profile"):
                taken = session.profile(out, runs=5)
            real = quantize.real_int8_layers(taken, layers, layer_of_node=nodes)
            floats = tuple(
                str(item) for item in quantize.float_layers(taken, layers, layer_of_node=nodes)
            )
        with observer.stage("compare"):
            outputs = _differences(source, out, test)
        return QuantizedFile(
            network=str(network),
            out=str(out),
            runtime=session.facts.runtime,
            precision=stored or "int8",
            calibrate=calibrate,
            calibration_images=len(calibration),
            test_images=len(test),
            layers=layers,
            carriers=carriers,
            integer_layers=real,
            float_layers=floats,
            size_before_bytes=sum(file.stat().st_size for file in files),
            size_bytes=out.stat().st_size,
            outputs=outputs,
        )


def _files_of(path: Path) -> tuple[Path, ...]:
    """An ONNX file and those that hold its weights, where others do; ConfigError if it is none."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf raises its own kind, which differs by backend
        raise ConfigError(f"{path} is no ONNX file ({error}); export it again") from error
    if not graph.node:
        raise ConfigError(f"{path} holds no network; export it again")
    entries = (entry for item in graph.initializer for entry in item.external_data)
    beside = {path.parent / entry.value for entry in entries if entry.key == "location"}
    if missing := [file for file in sorted(beside) if not file.is_file()]:
        raise ConfigError(f"{path} has its weights in {missing[0]}, which does not exist")
    return path, *beside


def _stored(facts: BoardFacts, *, int4: bool) -> Literal["weights int4", "weights int8"] | None:
    """What integers store on the board; None where they are computed with."""
    if int4:
        return "weights int4"
    slow = versions.is_tensorrt(facts.runtime) and "int8" not in quantize.available_precisions(
        facts
    )
    return "weights int8" if slow else None


def _divided(
    images: npt.NDArray[np.float32], seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Images to calibrate on, and others to compare on."""
    if len(images) < MIN_IMAGES:
        raise ConfigError(
            f"{len(images)} images are too few to calibrate on and to compare on others; give "
            f"{MIN_IMAGES} or more, a hundred are good"
        )
    order = np.random.default_rng(seed).permutation(len(images))[:MAX_IMAGES]
    count = round(CALIBRATION_SHARE * len(order))
    return images[order[:count]], images[order[count:]]


def _chosen(layers: Iterable[str], exclude: Sequence[str], network: Path) -> tuple[str, ...]:
    known = tuple(dict.fromkeys(layers))
    if unknown := [name for name in exclude if name not in known]:
        raise ConfigError(
            f"--exclude {unknown[0]}: {network.name} has no such layer; it has {', '.join(known)}"
        )
    chosen = tuple(name for name in known if name not in exclude)
    if not chosen:
        raise ConfigError(f"{network.name} has no convolution or matrix product left to quantize")
    return chosen


def _differences(
    original: Path, quantized: Path, images: npt.NDArray[np.float32]
) -> tuple[OutputDifference, ...]:
    names = [output.name for output in onnx.load(original, load_external_data=False).graph.output]
    wanted = networks.onnx_outputs(original, images)
    got = networks.onnx_outputs(quantized, images)
    return tuple(
        _difference(name, a.astype(np.float64), b.astype(np.float64))
        for name, a, b in zip(names, wanted, got, strict=True)
    )


def _difference(
    name: str, wanted: npt.NDArray[np.float64], got: npt.NDArray[np.float64]
) -> OutputDifference:
    error = got - wanted
    if not np.isfinite(error).all():
        where = "quantized" if np.isfinite(wanted).all() else "original"
        raise BuildError(
            f"the {where} network gives values of output {name} that are not finite; "
            "look at the layers before it (--exclude keeps one float)"
        )
    size = float(np.sqrt(np.mean(wanted**2)))
    agreement = kl = None
    if wanted.ndim == 2 and wanted.shape[1] > 1:
        agreement = float((wanted.argmax(1) == got.argmax(1)).mean())
        p, q = _log_softmax(wanted), _log_softmax(got)
        kl = float((np.exp(p) * (p - q)).sum(1).mean())
    return OutputDifference(
        name=name,
        max_error=float(np.abs(error).max()),
        error_ratio=float(np.sqrt(np.mean(error**2))) / size if size else None,
        agreement=agreement,
        kl=kl,
    )


def _log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
