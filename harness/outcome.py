"""What the result folder holds at the end: its files, and the kernels that the report draws."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict

from harness import pacing
from harness.candidates import Measured, Workbench
from harness.folder import write_atomically
from harness.records import FitResult, KernelPoint, Strategy, dump
from harness.tensorrt import versions
from latency_models import calibration, graph

__all__ = ["kernel_points", "write"]


def kernel_points(
    bench: Workbench, measured: Sequence[Measured], model: calibration.LatencyModel
) -> tuple[KernelPoint, ...]:
    """The kernels of some candidates: work, predicted and profiled time."""
    points = []
    for m in measured:
        kernels = bench.kernels_of(m)
        works = tuple(graph.work(kernel) for kernel in kernels)
        times = graph.match(kernels, pacing.kernel_rows(m.profile))
        for kernel, work, predicted in zip(
            kernels, works, model.predict_kernels(works), strict=True
        ):
            points.append(
                KernelPoint(
                    candidate=m.candidate.label,
                    name=kernel.name,
                    kind=work.kind,
                    precision=work.precision,
                    macs=work.macs,
                    moved_bytes=work.bytes_in + work.bytes_out + work.bytes_weights,
                    predicted_s=float(predicted),
                    measured_s=times.get(kernel.name),
                )
            )
    return tuple(points)


def write(
    bench: Workbench,
    result: FitResult,
    strategy: Strategy,
    best: Measured,
    model: calibration.LatencyModel,
) -> None:
    """Write the result folder's files, ``result.json`` last.

    With onnxruntime the board runs ``model.onnx`` itself; ``engine.json`` says with what. With
    TensorRT ``engine.plan`` is the engine as it was measured, with its timing cache beside it.
    """
    out = bench.folder.path
    source = bench.path_of(best)
    shutil.copyfile(source, out / "model.onnx")
    shutil.copyfile(source.with_suffix(".pt2"), out / "model.pt2")
    write_atomically(out / "strategy.json", dump(strategy, indent=2))
    write_atomically(out / "latency_model.json", model.to_json())
    engine = {"onnx_sha256": best.candidate.onnx_sha256, "board": asdict(result.board)}
    if versions.is_tensorrt(bench.session.facts.runtime):
        built = bench.session.build(bench.request(best), out / "engine.plan")
        engine["built"] = asdict(built)
    write_atomically(out / "engine.json", json.dumps(engine, indent=2))
    write_atomically(out / "result.json", dump(result, indent=2))
