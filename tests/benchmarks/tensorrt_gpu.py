"""Networks measured on this computer's GPU, and the measurement table that comes of it.

What ``python -m tests.benchmarks.tensorrt --measure --out FOLDER`` does: TensorRT-RTX where it runs
on the GPU, else TensorRT, else onnxruntime-gpu through the same agent (``tensorrt_fallback``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from harness import calibrate, networks, stats
from harness.boards import rules
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.compression import quantize
from harness.errors import BoardfitError
from harness.progress import ConsoleObserver
from harness.records import BoardSpec
from harness.store import Store
from harness.tensorrt import versions
from latency_models import sweep
from latency_models.errors import LatencyError
from tests.benchmarks import own, tensorrt_fallback
from tests.benchmarks.tensorrt_networks import PUBLISHED
from tests.benchmarks.tensorrt_rows import Failed, Measured, content, text

IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to be measured with random images of a shape."""

    name: str
    family: str
    network: nn.Module
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class File:
    """A file for one precision, and the one whose outputs on the host it is to have.

    ``layers`` has the layer of each of the network's nodes, which keep their names.
    """

    precision: str
    sent: Path
    graph: Path
    layers: Mapping[str, str]


def gpu() -> str | None:
    """The GPUs of this computer, as the driver lists them; None where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    done = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def usable(interpreter: str | None, folder: Path) -> tuple[BoardSpec, str]:
    """The board that this computer's GPU is, and what does not run there ("" for TensorRT-RTX).

    TensorRT-RTX of ``interpreter``, else TensorRT of this Python, else onnxruntime-gpu;
    ``BoardfitError`` where none of them runs.
    """
    path = folder / "yardstick.onnx"
    onnx.save(sweep.yardstick(), path)
    lacking = []
    for name, runtime, python in (
        ("TensorRT-RTX", "tensorrt_rtx", interpreter),
        ("TensorRT", "tensorrt", sys.executable),
    ):
        if python is None:
            lacking.append(f"{name} is not installed")
            continue
        spec = BoardSpec(name="local", python=python, runtime=runtime)
        try:
            _runs(spec, path)
        except BoardfitError as error:
            lacking.append(f"{name} does not run here ({error})")
        else:
            return spec, "; ".join(lacking)
    os.environ[tensorrt_fallback.PROVIDER] = tensorrt_fallback.CUDA
    spec = BoardSpec(name="local", python=sys.executable, runtime="onnxruntime")
    _runs(spec, path)
    return spec, "; ".join(lacking)


def _runs(spec: BoardSpec, path: Path) -> None:
    request = EngineRequest(label="probe", path=path, precision="fp32")
    with Session(spec) as session:
        session.measure([request], plan=PRESETS["quick"], campaign="probe")


def published(names: Sequence[str]) -> Iterator[Subject]:
    """Those of ``PUBLISHED``, with random weights: times do not depend on them."""
    for name in names:
        one = PUBLISHED[name]
        torch.manual_seed(0)
        yield Subject(name=name, family=one.family, network=one.make().eval(), shape=one.shape)


def files(session: Session, one: Subject, images: torch.Tensor, folder: Path) -> tuple[File, ...]:
    """A file for each precision that the GPU is fast in."""
    plain = folder / f"{one.name}.onnx"
    networks.export_onnx(one.network, images[:1], plain)
    layers = networks.layer_of_node(onnx.load(plain))
    calibration = images.numpy()
    if not versions.is_tensorrt(session.facts.runtime):
        made = tensorrt_fallback.files(plain, calibration=calibration, facts=session.facts)
        return tuple(
            File(
                precision=name,
                sent=path,
                graph=path if name == "int8" else plain,
                layers=layers,
            )
            for name, path in made.items()
        )
    found = []
    for precision in quantize.available_precisions(session.facts):
        # A file of its own for each: a session profiles the engine that a file was measured as.
        sent = folder / f"{one.name}.{precision}.onnx"
        if precision == "int8":
            quantize.quantize(
                plain,
                sent,
                calibration=calibration,
                int8_layers=set(layers.values()),
                board=session.facts,
            )
        else:
            shutil.copyfile(plain, sent)
        graph = sent if precision == "int8" else plain
        found.append(File(precision=precision, sent=sent, graph=graph, layers=layers))
    return tuple(found)


def attempt(
    session: Session, one: Subject, folder: Path
) -> tuple[tuple[Measured, ...], tuple[Failed, ...]]:
    """A network in each precision, interleaved; where that fails each alone, and what failed."""
    images = torch.randn(IMAGES, *one.shape, generator=torch.Generator().manual_seed(0))
    try:
        made = files(session, one, images, folder)
    except BoardfitError as error:
        return (), (Failed(network=one.name, precision="all", why=str(error)),)
    try:
        return tuple(measure(session, one, made, images.numpy())), ()
    except BoardfitError as error:
        print(f"{one.name}: {error}; each precision is tried alone", file=sys.stderr)
    found: list[Measured] = []
    failed = []
    for file in made:
        try:
            found += measure(session, one, (file,), images.numpy())
        except BoardfitError as error:
            failed.append(Failed(network=one.name, precision=file.precision, why=str(error)))
    return tuple(found), tuple(failed)


def measure(
    session: Session, one: Subject, made: Sequence[File], images: np.ndarray
) -> Iterator[Measured]:
    """The files of a network measured in turn, each profiled and held against the host."""
    requests = [
        EngineRequest(label=file.precision, path=file.sent, precision=file.precision)
        for file in made
    ]
    taken = session.measure(requests, plan=PRESETS["standard"], campaign=f"tensorrt {one.name}")
    for file, timed in zip(made, taken, strict=True):
        exact = networks.onnx_outputs(file.graph, images)[0]
        outputs = session.infer(file.sent, images)
        profile = session.profile(file.sent)
        layers = set(file.layers.values())
        integer = None
        tells = not versions.is_tensorrt(profile.runtime) or any(k.tactic for k in profile.kernels)
        if file.precision == "int8" and tells:
            integer = len(quantize.real_int8_layers(profile, layers, layer_of_node=file.layers))
        counted = Counter(kernel.provider for kernel in profile.kernels)
        engine, parts = timed.engine, timed.parts
        yield Measured(
            network=one.name,
            family=one.family,
            precision=file.precision,
            graph=file.graph,
            file_bytes=file.sent.stat().st_size,
            engine_bytes=None if engine is None else engine.size_bytes,
            build_s=None if engine is None else engine.build_s,
            median_s=stats.median(timed.samples_s),
            interval=stats.interval_of_median(timed),
            p99_s=stats.percentile(timed.samples_s, 99),
            gpu_s=None if parts is None else stats.median(parts.compute_s),
            kernels=tuple((k.name, k.node, k.latency_s) for k in profile.kernels),
            ran_on=", ".join(f"{name or 'unknown'} {count}" for name, count in counted.items()),
            integer_layers=integer,
            layers=len(layers),
            difference=float(np.abs(outputs - exact).max() / np.abs(exact).max()),
        )


def validate(
    session: Session, found: Sequence[Measured], out: Path, work: Path
) -> tuple[calibrate.Validation, ...]:
    """The latency model of this GPU, into ``out``, held against the networks.

    It is calibrated by a sweep with TensorRT, else by whole probe networks; ``work`` keeps what was
    measured for it, so that an interrupted run goes on.
    """
    if not versions.is_tensorrt(session.facts.runtime):
        model = tensorrt_fallback.calibrated(session, work)
        (out / "latency_model.json").write_text(model.to_json())
        return tuple(_held(model, one) for one in found)
    with ConsoleObserver() as observer, Store(work / "measurements.db") as store:
        yardstick = calibrate.folder_yardstick(session, store, work)
        made = calibrate.calibrate(
            session,
            store,
            observer,
            reference=(),
            precisions=quantize.available_precisions(session.facts),
            yardstick=yardstick,
        )
        (out / "latency_model.json").write_text(made.model.to_json())
        targets = [(one.network, one.precision, lambda file=one.graph: file) for one in found]
        return calibrate.validate(
            session, store, observer, model=made.model, yardstick=yardstick, networks=targets
        )


def _held(model: Any, one: Measured) -> calibrate.Validation:
    predicted_s, interval = tensorrt_fallback.predict(model, one.graph, one.precision)
    return calibrate.Validation(
        network=one.network,
        precision=one.precision,
        predicted_s=predicted_s,
        interval=interval,
        measured_s=one.median_s,
        measured_interval=one.interval,
    )


def write(found: Sequence[Measured], session: Session, out: Path) -> Path:
    """The measurement table of ``found`` in a folder, with graphs, profiles and fingerprint."""
    tensorrt = versions.is_tensorrt(session.facts.runtime)
    facts = replace(session.facts, hostname="")  # whose computer it was is no fact of the GPU
    fingerprint = {
        "facts": asdict(facts),
        "conditions": asdict(session.conditions()),
        "gpu": gpu(),
        "plan": asdict(PRESETS["standard"]),
        "timed": "whole calls on the host's clock, copies included",
        "kernels": "the GPU's clock" if tensorrt else "the host's clock: enqueueing alone",
        "ran_on": {f"{one.network} {one.precision}": one.ran_on for one in found},
    }
    return own.write(
        [
            own.Row(
                network=one.network,
                family=one.family,
                precision=one.precision,
                graph=one.graph,
                median_s=one.median_s,
                p99_s=one.p99_s,
                kernels=one.kernels,
            )
            for one in found
        ],
        out,
        rules=rules.fusion_rules(session.facts) if tensorrt else tensorrt_fallback.RULES,
        profile=tensorrt_fallback.PROFILE,
        fingerprint=fingerprint,
    )


def run(
    interpreter: str | None, subjects: Iterator[Subject], out: Path, work: Path, *, as_json: bool
) -> int:
    """Everything above; the exit code. Results go to stdout, all else to stderr."""
    if gpu() is None:
        print(
            "there is no NVIDIA GPU at hand (nvidia-smi lists none): nothing was measured",
            file=sys.stderr,
        )
        return 1
    work.mkdir(parents=True, exist_ok=True)
    try:
        spec, fallback = usable(interpreter, work)
    except BoardfitError as error:
        told = f"neither TensorRT-RTX, TensorRT nor onnxruntime-gpu runs here: {error}"
        print(told, file=sys.stderr)
        return 1
    note = f"measured with {spec.runtime}" + (f"; {fallback}" if fallback else "")
    print(note, file=sys.stderr)
    return on_board(spec, subjects, out, work, note=note, as_json=as_json)


def on_board(
    spec: BoardSpec, subjects: Iterator[Subject], out: Path, work: Path, *, note: str, as_json: bool
) -> int:
    """What ``run`` does once it is known which board the GPU is."""
    found: list[Measured] = []
    failed: list[Failed] = []
    held: tuple[calibrate.Validation, ...] = ()
    with Session(spec) as session:
        for one in subjects:
            rows, lost = attempt(session, one, work)
            found += rows
            failed += lost
            if found:  # after each network: what comes later may fail
                write(found, session, out)
        if found:
            try:
                held = validate(session, found, out, work)
            except (LatencyError, BoardfitError) as error:
                failed.append(Failed(network="latency model", precision="all", why=str(error)))
    if as_json:
        print(json.dumps(content(found, held, failed, note), indent=2, allow_nan=False))
    else:
        print(text(found, held, failed))
    if found:
        print(f"{out} holds the measurement table", file=sys.stderr)
        if out.resolve().parent != own.FOLDER:
            place = own.FOLDER.relative_to(own.FOLDER.parents[1])
            print(
                f"moved into {place}/, it takes part in tests.benchmarks.latency_models",
                file=sys.stderr,
            )
    return 0 if found and not failed and all(one.agrees for one in found) else 1
