"""Networks measured on this computer's GPU, and the measurement table that comes of it.

What ``python -m tests.benchmarks.tensorrt --measure --out FOLDER`` does: TensorRT-RTX where it runs
on the GPU, else onnxruntime-gpu through the same agent.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from harness import calibrate, networks, stats
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.compression import quantize
from harness.errors import BoardfitError, LatencyModelError
from harness.progress import ConsoleObserver
from harness.records import BoardSpec
from harness.store import Store
from harness.tensorrt import versions
from latency_models import sweep
from latency_models.errors import LatencyError
from tests.benchmarks.tensorrt_networks import PUBLISHED, structure

# Where onnxruntime-gpu takes TensorRT's place: the agent's engine is told so by its environment.
PROVIDER, CUDA = "BOARDFIT_ONNXRUNTIME_PROVIDER", "CUDAExecutionProvider"
IMAGES = 4
# The largest difference from onnxruntime's outputs on the host, over their largest value. fp32 may
# be TF32, of 10 bits of mantissa, as fp16 is; int8 rounds ties and sums of Q/DQ in other places.
TOLERANCES = {"fp32": 5e-3, "fp16": 2e-2, "int8": 0.1}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One network in one precision on the GPU; times are seconds, ``kernels`` the profile's."""

    network: str
    family: str
    precision: str
    file: Path
    median_s: float
    p99_s: float
    kernels: tuple[tuple[str, str, float], ...]
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the outputs lie within the precision's tolerance."""
        return self.difference <= TOLERANCES[self.precision]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to be measured with random images of a shape."""

    name: str
    family: str
    network: nn.Module
    shape: tuple[int, ...]


def gpu() -> str | None:
    """The GPUs of this computer, as the driver lists them; None where there is none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    done = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def usable(interpreter: str | None, folder: Path) -> tuple[BoardSpec, str]:
    """The board that this computer's GPU is, and why it is not TensorRT-RTX's ("" where it is).

    ``BoardfitError`` where onnxruntime-gpu does not run either.
    """
    path = folder / "yardstick.onnx"
    onnx.save(sweep.yardstick(), path)
    why = "it is not installed"
    if interpreter is not None:
        spec = BoardSpec(name="local", python=interpreter, runtime="tensorrt_rtx")
        try:
            _runs(spec, path)
        except BoardfitError as error:
            why = str(error)
        else:
            return spec, ""
    os.environ[PROVIDER] = CUDA
    spec = BoardSpec(name="local", python=sys.executable, runtime="onnxruntime")
    _runs(spec, path)
    return spec, f"TensorRT-RTX does not run here ({why}); onnxruntime-gpu does"


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


def measure(session: Session, one: Subject, folder: Path) -> Iterator[Measured]:
    """A network in each precision that the GPU is fast in, interleaved, profiled and compared."""
    images = torch.randn(IMAGES, *one.shape, generator=torch.Generator().manual_seed(0))
    plain = folder / f"{one.name}.onnx"
    networks.export_onnx(one.network, images[:1], plain)
    precisions = ("fp32",)
    if versions.is_tensorrt(session.facts.runtime):
        precisions = quantize.available_precisions(session.facts)
    requests = []
    for precision in precisions:
        path = folder / f"{one.name}.{precision}.onnx"
        shutil.copyfile(plain, path)
        if precision == "int8":
            layers = tuple(dict.fromkeys(networks.layer_of_node(onnx.load(plain)).values()))
            quantize.quantize(
                plain, path, calibration=images.numpy(), int8_layers=layers, board=session.facts
            )
        requests.append(EngineRequest(label=precision, path=path, precision=precision))
    campaign = f"tensorrt {one.name}"
    taken = session.measure(requests, plan=PRESETS["standard"], campaign=campaign)
    for request, timed in zip(requests, taken, strict=True):
        exact = networks.onnx_outputs(request.path, images.numpy())[0]
        outputs = session.infer(request.path, images.numpy())
        profile = session.profile(request.path)
        yield Measured(
            network=one.name,
            family=one.family,
            precision=request.precision,
            file=request.path,
            median_s=stats.median(timed.samples_s),
            p99_s=stats.percentile(timed.samples_s, 99),
            kernels=tuple((k.name, k.node, k.latency_s) for k in profile.kernels),
            difference=float(np.abs(outputs - exact).max() / np.abs(exact).max()),
        )


def validate(
    session: Session, found: Sequence[Measured], out: Path
) -> tuple[calibrate.Validation, ...]:
    """The latency model of a sweep on this GPU, into ``out``, held against the networks."""
    with ConsoleObserver() as observer, Store(out / "measurements.db") as store:
        yardstick = calibrate.folder_yardstick(session, store, out)
        made = calibrate.calibrate(
            session,
            store,
            observer,
            reference=(),
            precisions=quantize.available_precisions(session.facts),
            yardstick=yardstick,
        )
        (out / "latency_model.json").write_text(made.model.to_json())
        targets = [(one.network, one.precision, lambda file=one.file: file) for one in found]
        return calibrate.validate(
            session, store, observer, model=made.model, yardstick=yardstick, networks=targets
        )


def write(found: Sequence[Measured], session: Session, out: Path) -> Path:
    """The measurement table of ``found`` in a folder, with graphs, profiles and fingerprint."""
    graphs = out / "graphs"
    graphs.mkdir(parents=True, exist_ok=True)
    path = out / "networks.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("network", "family", "precision", "batch", "latency_ms", "p99_ms"))
        for one in found:
            # fp16 is told to the builder: its structure is that of the fp32 file.
            name = f"{one.network}{'.int8' if one.precision == 'int8' else ''}.onnx"
            light = structure(onnx.load(one.file))
            (graphs / name).write_bytes(light.SerializeToString(deterministic=True))
            times = (f"{1e3 * one.median_s:.6f}", f"{1e3 * one.p99_s:.6f}")
            rows.writerow((f"graphs/{name}", one.family, one.precision, 1, *times))
    with (out / "kernels.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("network", "precision", "kernel", "node", "latency_ms"))
        for one in found:
            for name, node, seconds in one.kernels:
                rows.writerow((one.network, one.precision, name, node, f"{1e3 * seconds:.6f}"))
    facts = replace(session.facts, hostname="")  # whose computer it was is no fact of the GPU
    fingerprint = {
        "facts": asdict(facts),
        "conditions": asdict(session.conditions()),
        "gpu": gpu(),
        "plan": asdict(PRESETS["standard"]),
    }
    (out / "fingerprint.json").write_text(json.dumps(fingerprint, indent=2, default=str) + "\n")
    return path


def run(interpreter: str | None, names: Sequence[str], demo: Subject, out: Path) -> int:
    """Everything above; the exit code."""
    if gpu() is None:
        print("there is no NVIDIA GPU at hand (nvidia-smi lists none): nothing was measured")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    work = out / "files"
    work.mkdir(exist_ok=True)
    spec, fallback = usable(interpreter, work)
    if fallback:
        print(fallback)
    with Session(spec) as session:
        found = [row for one in (demo, *published(names)) for row in measure(session, one, work)]
        path = write(found, session, out)
        held: tuple[calibrate.Validation, ...] = ()
        if fallback:
            print("no sweep: the sweep's kernels are those of onnxruntime's CPU provider")
        else:
            try:
                held = validate(session, found, out)
            except (LatencyError, LatencyModelError) as error:
                print(f"the latency model could not be calibrated here: {error}")
    print(text(found, held))
    runtime = "onnxruntime-cuda" if fallback else "tensorrt"
    print(
        f"{path} is a measurement table: put {out} into data/ without files/ and measurements.db, "
        "and have tests/benchmarks/latency_models.load return\n"
        f'published.networks(path, profile="generic-gpu", runtime="{runtime}") for it'
    )
    return 0 if all(one.agrees for one in found) else 1


def text(found: Sequence[Measured], held: Sequence[calibrate.Validation]) -> str:
    """The rows as text, with what was predicted where a latency model was calibrated."""
    predicted = {(one.network, one.precision): one for one in held}
    head = ("network", "types", "median", "p99", "kernels", "outputs", "within", "predicted")
    lines = ["{:13} {:5} {:>10} {:>10} {:>7} {:>8} {:>6} {:>10}".format(*head)]
    for one in found:
        told = predicted.get((one.network, one.precision))
        guess = "-" if told is None else f"{told.predicted_s * 1e3:7.3f} ms ({told.error:+.0%})"
        lines.append(
            f"{one.network:13} {one.precision:5} {one.median_s * 1e3:7.3f} ms "
            f"{one.p99_s * 1e3:7.3f} ms {len(one.kernels):7} {one.difference:8.2%} "
            f"{'yes' if one.agrees else 'NO':>6} {guess:>10}"
        )
    return "\n".join(lines)
