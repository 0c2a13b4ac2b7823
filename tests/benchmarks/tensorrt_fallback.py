"""A GPU on which no TensorRT runs, measured through onnxruntime-gpu instead.

fp16 is the network with its types changed (casts at its ends), int8 the same symmetric Q/DQ that
TensorRT reads. onnxruntime's CUDA provider has no integer convolution: there such a network shows
what Q/DQ cost, and ``integer_layers`` of a row says how many layers ran on integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from harness import calibrate, networks, pacing
from harness.boards.session import EngineRequest, Session
from harness.compression import quantize
from harness.records import BoardFacts, Interval
from harness.store import Store
from harness.tensorrt import typed
from latency_models import calibration, graph, probes, profiles

__all__ = ["CUDA", "PRECISIONS", "PROFILE", "PROVIDER", "RULES", "calibrated", "files", "predict"]

# The agent's engine is told by its environment which provider to take.
PROVIDER, CUDA = "BOARDFIT_ONNXRUNTIME_PROVIDER", "CUDAExecutionProvider"
RULES, PROFILE = "onnxruntime-cuda", "generic-gpu"
PRECISIONS = ("fp32", "fp16", "int8")


def files(
    plain: Path, *, calibration: npt.NDArray[np.float32], facts: BoardFacts
) -> Mapping[str, Path]:
    """The file of each precision, beside ``plain``, by precision; whatever provider runs them."""
    found = {"fp32": plain, "fp16": _half(onnx.load(plain), plain.with_suffix(".fp16.onnx"))}
    layers = tuple(dict.fromkeys(networks.layer_of_node(onnx.load(plain)).values()))
    # Biases stay float: no GPU's provider reads int32 ones, which would run on the CPU.
    as_tensorrt = replace(facts, runtime="tensorrt", runtime_version="10.0")
    found["int8"] = plain.with_suffix(".int8.onnx")
    quantize.quantize(
        plain, found["int8"], calibration=calibration, int8_layers=layers, board=as_tensorrt
    )
    return found


def _half(model: onnx.ModelProto, path: Path) -> Path:
    half = typed.to_half(model, typed.half_nodes(model)).model
    path.write_bytes(half.SerializeToString(deterministic=True))
    return path


def _probes(folder: Path) -> Iterator[tuple[probes.ProbeNetwork, EngineRequest]]:
    for probe in probes.probes(PRECISIONS, runtime=RULES):
        if probe.precision == "mixed":
            continue
        path = folder / f"{probe.name}.onnx"
        if probe.precision == "fp16":
            _half(probe.model, path)
        else:
            onnx.save(probe.model, path)
        yield probe, EngineRequest(label=probe.name, path=path, precision=probe.precision)


def calibrated(session: Session, folder: Path) -> calibration.LatencyModel:
    """A latency model of whole probe networks, measured interleaved with a yardstick.

    onnxruntime's profiler times a GPU's kernels on the host, when they are enqueued, so that there
    is no sweep of kernels. ``folder`` keeps what was measured: an interrupted run goes on.
    """
    with Store(folder / "measurements.db") as store:
        yardstick = calibrate.folder_yardstick(session, store, folder)
        every = list(_probes(folder))
        samples = []
        step = calibrate.NETWORKS_PER_CAMPAIGN
        for start in range(0, len(every), step):
            batch = every[start : start + step]
            requests = [request for _, request in batch]
            ratios, _ = pacing.ratios(
                session, store, requests, yardstick, campaign=f"probes {start}"
            )
            samples += [
                calibration.NetworkSample(probe.works, ratio * yardstick.latency_s)
                for (probe, _), ratio in zip(batch, ratios, strict=True)
            ]
    prior = replace(profiles.load(PROFILE), runtime=RULES)
    return calibration.fit([], samples, profile=prior, runtime=RULES)


def predict(
    model: calibration.LatencyModel, path: Path, precision: str, *, coverage: float = 0.9
) -> tuple[float, Interval]:
    """Seconds of a call, with their interval, of a network in fp32, or in int8 with its Q/DQ."""
    kernels = graph.read(path, runtime=RULES, precision=graph.base_of(precision))
    works = tuple(graph.work(kernel) for kernel in kernels)
    low, high = model.interval(works, coverage)
    return model.predict(works), Interval(low, high, coverage)
