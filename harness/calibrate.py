"""Calibrate a latency model on a board, and hold predictions against measurements there."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from harness import stats
from harness.boards.session import PRESETS, EngineRequest, MeasurePlan, Session
from harness.folder import Observer
from harness.records import Interval, Measurement, Profile
from harness.store import Store
from latency_models import calibration, graph, profiles, sweep

__all__ = ["PROFILE_RUNS", "Validation", "calibrate", "kernel_rows", "profile", "validate"]

# Runs of the profiler whose median is a kernel's time.
PROFILE_RUNS = 60
# Networks measured interleaved in one job; more would only lengthen what an interruption costs.
NETWORKS_PER_CAMPAIGN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One network that calibration never saw: predicted first, then measured."""

    network: str
    precision: str
    predicted_s: float
    interval: Interval
    measured_s: float
    measured_interval: Interval

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


def kernel_rows(profile: Profile) -> tuple[tuple[str, str, str, float], ...]:
    """A profile as ``latency_models`` reads it: name, operator, node, seconds."""
    return tuple((k.name, k.op, k.node, k.latency_s) for k in profile.kernels)


def profile(session: Session, path: Path, store: Store, *, runs: int = PROFILE_RUNS) -> Profile:
    """The per-kernel profile of ``path``: the store's if it has one of this network and runtime."""
    digest = session.put(path)
    for known in store.all(Profile):
        if (
            known.network_sha256 == digest
            and known.runtime_version == session.facts.runtime_version
        ):
            return known
    taken = session.profile(path, runs=runs)
    store.add(taken)
    return taken


def calibrate(
    session: Session,
    store: Store,
    observer: Observer,
    *,
    reference: Sequence[graph.Kernel],
    precisions: Sequence[str],
    extra: Callable[[], Sequence[tuple[tuple[graph.Work, ...], float]]] = tuple,
) -> calibration.LatencyModel:
    """A latency model of the session's board, fitted to a planned sweep measured there.

    ``reference`` are the kernels of the network to be fitted: the sweep spreads around them.
    ``extra`` adds whole networks that were measured already. What the store holds of an
    interrupted calibration is not measured again.
    """
    plan = sweep.plan(reference, precisions=tuple(precisions))
    total = len(plan.networks) + len(plan.probes)
    kernel_samples: list[tuple[graph.Work, float]] = []
    network_samples = list(extra())
    with tempfile.TemporaryDirectory(prefix="boardfit-sweep-") as scratch:
        for done, packed in enumerate(plan.networks):
            observer.progress(done, total)
            path = Path(scratch) / f"{packed.name}.onnx"
            onnx.save(packed.model, path)
            taken = profile(session, path, store)
            kernel_samples += sweep.collect(packed, kernel_rows(taken))
        requests = []
        for probe in plan.probes:
            path = Path(scratch) / f"{probe.name}.onnx"
            onnx.save(probe.model, path)
            requests.append(EngineRequest(label=probe.name, path=path, precision=probe.precision))
        measured = measure_known(session, store, requests, plan=PRESETS["quick"], observer=observer)
        for probe, measurement in zip(plan.probes, measured, strict=True):
            works = tuple(graph.work(kernel) for kernel in graph.read(probe.model))
            network_samples.append((works, stats.median(measurement.samples_s)))
    observer.progress(total, total)
    prior = profiles.load(session_profile(session))
    return calibration.fit(kernel_samples, network_samples, profile=prior)


def session_profile(session: Session) -> str:
    """The name of the board profile whose datasheet is the prior."""
    return session.spec.profile or "generic-cpu"


def measure_known(
    session: Session,
    store: Store,
    requests: Sequence[EngineRequest],
    *,
    plan: MeasurePlan,
    observer: Observer,
) -> tuple[Measurement, ...]:
    """One measurement a request; those that the store already has of this runtime are reused."""
    version = session.facts.runtime_version
    known = {m.network_sha256: m for m in store.all(Measurement) if m.runtime_version == version}
    digests = [session.put(request.path) for request in requests]
    missing = [r for r, d in zip(requests, digests, strict=True) if d not in known]
    for start in range(0, len(missing), NETWORKS_PER_CAMPAIGN):
        observer.progress(len(requests) - len(missing) + start, len(requests))
        batch = missing[start : start + NETWORKS_PER_CAMPAIGN]
        for measurement in session.measure(batch, plan=plan, campaign=f"sweep-{start}"):
            store.add(measurement)
            known[measurement.network_sha256] = measurement
    return tuple(known[digest] for digest in digests)


def validate(
    session: Session,
    store: Store,
    observer: Observer,
    *,
    model: calibration.LatencyModel,
    networks: Sequence[tuple[str, str, Path]],
    coverage: float = 0.9,
    plan: MeasurePlan | None = None,
) -> tuple[Validation, ...]:
    """Predict each of ``networks`` (name, precision, ONNX file), then measure it on the board."""
    predictions = []
    for _, _, path in networks:
        works = tuple(graph.work(kernel) for kernel in graph.read(path))
        low, high = model.interval(works, coverage)
        predictions.append((model.predict(works), Interval(low, high, coverage)))
    rows = []
    for done, ((name, precision, path), (predicted, interval)) in enumerate(
        zip(networks, predictions, strict=True)
    ):
        observer.progress(done, len(networks))
        request = EngineRequest(label=f"{name} {precision}", path=path, precision=precision)
        (measurement,) = session.measure(
            [request], plan=plan or PRESETS["quick"], campaign=f"validate {name} {precision}"
        )
        store.add(measurement)
        rows.append(
            Validation(
                network=name,
                precision=precision,
                predicted_s=predicted,
                interval=interval,
                measured_s=stats.median(measurement.samples_s),
                measured_interval=stats.interval_of_median(measurement),
            )
        )
    observer.progress(len(networks), len(networks))
    return tuple(rows)
