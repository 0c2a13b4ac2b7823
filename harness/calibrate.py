"""Calibrate a latency model on a board, and hold predictions against measurements there."""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from harness import stats
from harness.boards import rules
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.folder import Observer
from harness.records import Interval, Measurement, Profile
from harness.store import Store
from latency_models import calibration, graph, profiles, sweep

__all__ = [
    "PROFILE_RUNS",
    "Validation",
    "Yardstick",
    "calibrate",
    "folder_yardstick",
    "kernel_rows",
    "profile",
    "validate",
]

# Runs of the profiler whose median is a kernel's time.
PROFILE_RUNS = 60
# Networks measured interleaved in one job; more would only lengthen what an interruption costs.
NETWORKS_PER_CAMPAIGN = 8
YARDSTICK = "yardstick"
DEFAULT_PROFILE = "generic-cpu"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """A network that is measured again and again, and what it took at first.

    A board runs faster and slower by the minute. What is measured beside the yardstick is put into
    its first measurement's terms, so that a sweep of minutes is of one piece.
    """

    path: Path
    latency_s: float

    def request(self) -> EngineRequest:
        """The yardstick among the engines of a measurement."""
        return EngineRequest(label=YARDSTICK, path=self.path, precision="yardstick")


def folder_yardstick(session: Session, store: Store, folder: Path) -> Yardstick:
    """The yardstick of a calibration's folder: made and measured at first, and kept there."""
    path = folder / "yardstick.onnx"
    if not path.exists():
        onnx.save(sweep.plan(precisions=("fp32",)).probes[0].model, path)
    request = EngineRequest(label=YARDSTICK, path=path, precision="fp32")
    (measurement,) = _measure(session, store, [request], campaign="yardstick")
    return Yardstick(path=path, latency_s=stats.median(measurement.samples_s))


def calibrate(
    session: Session,
    store: Store,
    observer: Observer,
    *,
    reference: Sequence[graph.Kernel],
    precisions: Sequence[str],
    yardstick: Yardstick,
    known: Sequence[tuple[tuple[graph.Work, ...], float]] = (),
) -> calibration.LatencyModel:
    """A latency model of the session's board, fitted to a planned sweep measured there.

    ``reference`` are the kernels of the network to be fitted: the sweep spreads around them.
    ``known`` adds whole networks that were measured already, in the ``yardstick``'s terms. What
    the store holds of an interrupted calibration is not measured again.
    """
    runtime = rules.fusion_rules(session.facts)
    plan = sweep.plan(reference, precisions=tuple(precisions), runtime=runtime)
    total = len(plan.networks) + len(plan.probes)
    kernel_samples: list[tuple[graph.Work, float]] = []
    network_samples = list(known)
    with tempfile.TemporaryDirectory(prefix="boardfit-sweep-") as scratch:
        probes = []
        for probe in plan.probes:
            path = Path(scratch) / f"{probe.name}.onnx"
            onnx.save(probe.model, path)
            probes.append(EngineRequest(label=probe.name, path=path, precision=probe.precision))
        for done, packed in enumerate(plan.networks):
            observer.progress(done, total)
            path = Path(scratch) / f"{packed.name}.onnx"
            onnx.save(packed.model, path)
            taken, pace = _paced_profile(session, store, path, yardstick)
            kernel_samples += [
                (work, seconds / pace)
                for work, seconds in sweep.collect(packed, kernel_rows(taken))
            ]
        for start in range(0, len(probes), NETWORKS_PER_CAMPAIGN):
            observer.progress(len(plan.networks) + start, total)
            batch = probes[start : start + NETWORKS_PER_CAMPAIGN]
            ratios = _ratios(session, store, batch, yardstick, campaign=f"sweep {start}")
            for probe, ratio in zip(plan.probes[start:], ratios, strict=False):
                kernels = graph.read(probe.model, runtime=runtime)
                works = tuple(graph.work(kernel) for kernel in kernels)
                network_samples.append((works, ratio * yardstick.latency_s))
    observer.progress(total, total)
    prior = profiles.load(session.spec.profile or DEFAULT_PROFILE)
    # Whoever predicts with the model reads networks as this board's runtime does.
    prior = dataclasses.replace(prior, runtime=runtime)
    return calibration.fit(kernel_samples, network_samples, profile=prior)


def _campaign(store: Store, name: str) -> list[Measurement]:
    return [m for m in store.all(Measurement) if m.campaign == name]


def _measure(
    session: Session, store: Store, requests: Sequence[EngineRequest], *, campaign: str
) -> list[Measurement]:
    """The campaign's measurements: the store's if it is complete there, else taken now."""
    kept = _campaign(store, campaign)
    if {m.label for m in kept} >= {request.label for request in requests}:
        return kept
    taken = session.measure(requests, plan=PRESETS["quick"], campaign=campaign)
    for measurement in taken:
        store.add(measurement)
    return list(taken)


def _paced_profile(
    session: Session, store: Store, path: Path, yardstick: Yardstick
) -> tuple[Profile, float]:
    """A profile, and how much slower than at first the yardstick ran just before and after."""
    digest = session.put(path)
    names = [f"pace {when} {digest[:16]}" for when in ("before", "after")]
    before = _measure(session, store, [yardstick.request()], campaign=names[0])
    taken = profile(session, path, store)
    after = _measure(session, store, [yardstick.request()], campaign=names[1])
    medians = [stats.median(m.samples_s) for m in (*before, *after)]
    return taken, float(np.mean(medians)) / yardstick.latency_s


def _ratios(
    session: Session,
    store: Store,
    requests: Sequence[EngineRequest],
    yardstick: Yardstick,
    *,
    campaign: str,
) -> list[float]:
    """Each network's latency over that of the yardstick in the same interleaved rounds."""
    engines = [yardstick.request(), *requests]
    measured = {m.label: m for m in _measure(session, store, engines, campaign=campaign)}
    base = measured[YARDSTICK]
    return [
        stats.median(stats.ratio_by_round(measured[request.label], base)) for request in requests
    ]


def validate(
    session: Session,
    store: Store,
    observer: Observer,
    *,
    model: calibration.LatencyModel,
    yardstick: Yardstick,
    networks: Sequence[tuple[str, str, Path]],
    coverage: float = 0.9,
) -> tuple[Validation, ...]:
    """Predict each of ``networks`` (name, precision, ONNX file), then measure it on the board.

    Each is measured interleaved with the ``yardstick`` of the calibration and put into its terms.
    """
    predictions = []
    runtime = rules.fusion_rules(session.facts)
    for _, _, path in networks:
        works = tuple(graph.work(kernel) for kernel in graph.read(path, runtime=runtime))
        low, high = model.interval(works, coverage)
        predictions.append((model.predict(works), Interval(low, high, coverage)))
    rows = []
    for done, ((name, precision, path), (predicted, interval)) in enumerate(
        zip(networks, predictions, strict=True)
    ):
        observer.progress(done, len(networks))
        request = EngineRequest(label=f"{name} {precision}", path=path, precision=precision)
        taken = session.measure(
            [yardstick.request(), request],
            plan=PRESETS["quick"],
            campaign=f"validate {name} {precision}",
        )
        for measurement in taken:
            store.add(measurement)
        base, ours = taken
        ratios = stats.ratio_by_round(ours, base)
        spread = stats.ratio_interval(ratios)
        unit = yardstick.latency_s
        rows.append(
            Validation(
                network=name,
                precision=precision,
                predicted_s=predicted,
                interval=interval,
                measured_s=stats.median(ratios) * unit,
                measured_interval=Interval(spread.low * unit, spread.high * unit, spread.coverage),
            )
        )
    observer.progress(len(networks), len(networks))
    return tuple(rows)
