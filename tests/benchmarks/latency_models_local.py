"""Calibrate this computer, predict networks that the calibration never saw, then measure them.

    python -m tests.benchmarks.latency_models_local --data ../shared/measured

A fixed set of 13 published architectures, their weights filled at random, in fp32 and in int8
(``quantize_static``, U8S8, per channel, Q/DQ, random calibration images); one thread. Predictions
are made before anything of the set is measured. Every measurement is interleaved with a reference
probe, and times are stated at the reference's first pace: a shared computer changes its pace by a
third within seconds, which no latency model can know; the error without that is printed too.
Prints every network, the worst included; the target is a median absolute error of at most 12 %.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization

from harness import stats
from harness.boards import inventory
from harness.boards.session import PRESETS, EngineRequest, Session
from latency_models import calibration, graph, profiles, sweep, synthetic, validation

NETWORKS = (
    ("resnet18", "graphs_timm/resnet18__224.onnx"),
    ("resnet34", "graphs_timm/resnet34__224.onnx"),
    ("resnet50d", "graphs_timm/resnet50d__224.onnx"),
    ("densenet121", "graphs_timm/densenet121__224.onnx"),
    ("efficientnet_b0", "graphs_timm/efficientnet_b0__224.onnx"),
    ("mnasnet_small", "graphs_timm/mnasnet_small__224.onnx"),
    ("semnasnet_075", "graphs_timm/semnasnet_075__224.onnx"),
    ("spnasnet_100", "graphs_timm/spnasnet_100__224.onnx"),
    ("ghostnet_100", "graphs_timm/ghostnet_100__224.onnx"),
    ("regnetx_016", "graphs_timm/regnetx_016__224.onnx"),
    ("lcnet_075", "graphs_timm/lcnet_075__224.onnx"),
    ("tinynet_a", "graphs_timm/tinynet_a__192.onnx"),
    ("squeezenet1_1", "graphs_torchvision/squeezenet1_1__224.onnx"),
)
TARGET = 0.12
Sample = tuple[graph.Work, float]
COVERAGE = 0.9
CALIBRATION_IMAGES = 2
PROFILE_RUNS = 30
PASSES = 3


class _RandomImages(quantization.CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto, seed: int) -> None:
        generator = np.random.default_rng(seed)
        value = model.graph.input[0]
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        self._images = iter(
            {value.name: generator.standard_normal(shape).astype(np.float32)}
            for _ in range(CALIBRATION_IMAGES)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._images, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises preprocessing through the root logger, once a network."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def prepare(source: Path, folder: Path, name: str, *, seed: int) -> Iterator[tuple[str, Path]]:
    """``(precision, file)`` of one network, runnable: fp32, and int8 where it quantizes."""
    model = synthetic.fill(onnx.load(str(source), load_external_data=False), seed=seed)
    plain, integer = folder / f"{name}.fp32.onnx", folder / f"{name}.int8.onnx"
    onnx.save(model, str(plain))
    yield "fp32", plain
    try:
        with _quiet():
            quantization.quantize_static(
                plain,
                integer,
                _RandomImages(model, seed),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    except (RuntimeError, ValueError) as error:
        print(f"{name} does not quantize: {error}", file=sys.stderr)
        return
    yield "int8", integer


def family_of(name: str) -> str:
    return name.rstrip("0123456789_d").split("_")[0]


class Pace:
    """How fast the computer runs now, by a probe that is measured beside everything else.

    A shared or turbo-clocked computer changes its pace by the second. ``of`` is the probe's time
    over its first one; what is measured in the same interleaved rounds is divided by it.
    """

    def __init__(self, session: Session, path: Path) -> None:
        self._session = session
        self._request = EngineRequest(label="reference", path=path, precision="fp32")
        self.first_s = self._alone()
        self.seen = [1.0]

    def _alone(self) -> float:
        plan = PRESETS["quick"]
        (taken,) = self._session.measure([self._request], plan=plan, campaign="reference")
        return stats.median(taken.samples_s)

    def now(self) -> float:
        """The pace, measured alone."""
        self.seen.append(self._alone() / self.first_s)
        return self.seen[-1]

    def measure(self, name: str, precision: str, path: Path) -> tuple[float, float]:
        """Median seconds of a call, as measured and at the first pace."""
        request = EngineRequest(label=f"{name} {precision}", path=path, precision=precision)
        reference, taken = self._session.measure(
            [self._request, request], plan=PRESETS["quick"], campaign=request.label
        )
        # Round by round, because the pace may change between two.
        paces = [s / self.first_s for s in stats.round_medians(reference).values()]
        self.seen.append(statistics.median(paces))
        pairs = zip(stats.round_medians(taken).values(), paces, strict=True)
        return stats.median(taken.samples_s), statistics.median(s / pace for s, pace in pairs)


def profile(session: Session, pace: Pace, packed: sweep.PackedNetwork, path: Path) -> list[Sample]:
    """Each kernel's median over a few passes, every pass at the pace it was taken at."""
    times: dict[graph.Work, list[float]] = {}
    for _ in range(PASSES):
        before = pace.now()
        taken = session.profile(path, runs=PROFILE_RUNS)
        factor = (before + pace.now()) / 2
        rows = [(k.name, k.op, k.node, k.latency_s) for k in taken.kernels]
        for work, seconds in sweep.collect(packed, rows):
            times.setdefault(work, []).append(seconds / factor)
    return [(work, statistics.median(seconds)) for work, seconds in times.items()]


def calibrated(session: Session, folder: Path) -> tuple[calibration.LatencyModel, Pace]:
    """The latency model of this computer, from the generic sweep alone, and its pace."""
    prior = profiles.load("generic-cpu")
    plan = sweep.plan(profile=prior)
    for network in plan.probes:
        onnx.save(network.model, str(folder / f"{network.name}.onnx"))
    pace = Pace(session, folder / f"{plan.probes[0].name}.onnx")
    kernels: list[Sample] = []

    def measure(networks: tuple[sweep.PackedNetwork, ...]) -> None:
        for packed in networks:
            path = folder / f"{packed.name}.onnx"
            onnx.save(packed.model, str(path))
            kernels.extend(profile(session, pace, packed, path))

    measure(plan.networks)
    networks = []
    for probe in plan.probes:
        path = folder / f"{probe.name}.onnx"
        networks.append((works_of(path), pace.measure(probe.name, probe.precision, path)[1]))
    first = calibration.fit(kernels, networks, profile=prior)
    measure(sweep.extend(plan, first, kernels).networks)
    return calibration.fit(kernels, networks, profile=prior), pace


def works_of(path: Path) -> tuple[graph.Work, ...]:
    return tuple(graph.work(kernel) for kernel in graph.read(path))


def run(
    data: Path, *, seed: int, only: set[str], save: Path | None
) -> tuple[validation.Report, dict[str, object]]:
    """The report over all networks, and the conditions it was made under."""
    with tempfile.TemporaryDirectory(prefix="boardfit-benchmark-") as scratch:
        folder = Path(scratch)
        networks = [
            (name, precision, path)
            for name, file in NETWORKS
            if not only or name in only
            for precision, path in prepare(data / "jetson_nano" / file, folder, name, seed=seed)
        ]
        works = [works_of(path) for _, _, path in networks]
        conditions: dict[str, object] = {"load_before": os.getloadavg()[0]}
        with Session(inventory.find("local")) as session:
            start = time.monotonic()
            model, pace = calibrated(session, folder)
            conditions["calibration_s"] = round(time.monotonic() - start, 1)
            if save is not None:
                save.write_text(model.to_json())
            predicted = [(model.predict(w), model.interval(w, COVERAGE)) for w in works]
            measured = [pace.measure(*network) for network in networks]
            conditions["pace"] = f"{min(pace.seen):.2f} to {max(pace.seen):.2f}"
            conditions |= {"runtime": session.facts.runtime_version, "cpu": session.facts.cpu_model}
    conditions |= {"load_after": os.getloadavg()[0], "latency_model": model.sha256}
    conditions["calibration_residuals"] = [round(r, 4) for r, _ in model.held_out_]
    errors = [
        validation.NetworkError(
            name=name,
            family=family_of(name),
            precision=precision,
            predicted_s=seconds,
            low_s=low,
            high_s=high,
            measured_s=at_pace,
            unsupported=model.unsupported(w),
        )
        for (name, precision, _), w, (seconds, (low, high)), (_, at_pace) in zip(
            networks, works, predicted, measured, strict=True
        )
    ]
    raw = [
        abs(seconds / as_measured - 1)
        for (seconds, _), (as_measured, _) in zip(predicted, measured, strict=True)
    ]
    conditions["median_error_without_pace"] = round(statistics.median(raw), 4)
    return validation.summarise(errors, coverage=COVERAGE), conditions


def show(report: validation.Report, conditions: dict[str, object]) -> str:
    lines = [f"{'network':18s} {'':5s} {'measured':>9s} {'predicted':>9s} {'error':>8s}  interval"]
    for row in sorted(report.networks, key=lambda r: -abs(r.error)):
        mark = "" if row.covered else "  outside"
        lines.append(
            f"{row.name:18s} {row.precision:5s} {row.measured_s * 1e3:7.2f}ms "
            f"{row.predicted_s * 1e3:7.2f}ms {100 * row.error:+7.1f}%  "
            f"{row.low_s * 1e3:.2f}..{row.high_s * 1e3:.2f} ms{mark}"
        )
    verdict = "met" if report.median_error <= TARGET else "not met"
    rank = "" if report.spearman is None else f", Spearman {report.spearman:.3f}"
    lines.append(
        f"median absolute error {100 * report.median_error:.1f} % (target {100 * TARGET:.0f} %: "
        f"{verdict}), mean {100 * report.mape:.1f} %, within 10 %: {100 * report.within10:.0f} %"
        f"{rank}"
    )
    lines.append(
        f"intervals of {100 * report.coverage:.0f} % hold {100 * report.covered:.0f} %, "
        f"median width high/low {report.width:.2f}"
    )
    lines += [f"  {key}: {100 * error:.1f} %" for key, error in report.by_precision]
    lines.append(", ".join(f"{key} {value}" for key, value in conditions.items()))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-model", type=Path, help="write the latency model here, as JSON")
    parser.add_argument("--only", nargs="*", default=[], help="names of the fixed set")
    arguments = parser.parse_args()
    report, conditions = run(
        arguments.data, seed=arguments.seed, only=set(arguments.only), save=arguments.save_model
    )
    if arguments.json:
        print(json.dumps({"report": dataclasses.asdict(report), "conditions": conditions}))
    else:
        print(show(report, conditions))
    return 0 if report.median_error <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
