"""Calibrate a latency model on a board, and hold predictions against measurements there."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from harness import campaign, pacing, stats
from harness.boards import rules
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.errors import ConfigError
from harness.folder import Observer
from harness.records import Interval, SweepTimes
from harness.store import Store
from latency_models import calibration, choice, graph, probes, profiles, sweep
from latency_models.profiles import BoardProfile

__all__ = [
    "MEASURING_S",
    "Calibration",
    "Target",
    "Validation",
    "calibrate",
    "check_model",
    "folder_yardstick",
    "validate",
]

# How long a calibration may measure; building comes on top.
MEASURING_S = 180.0
# Networks measured interleaved in one job; more would only lengthen what an interruption costs.
NETWORKS_PER_CAMPAIGN = 8
# How often whole networks are measured, a turn after the other, where the budget allows: how much
# faster int8 is than fp32 can change by a fifth from one minute to the next.
TURNS = 3
DEFAULT_PROFILE = {False: "generic-cpu", True: "generic-gpu"}


# A network to validate with: name, precision, and what makes its ONNX file.
Target = tuple[str, str, Callable[[], Path]]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted latency model, and where the time went that it took to get it."""

    model: calibration.LatencyModel
    times: SweepTimes


def folder_yardstick(session: Session, store: Store, folder: Path) -> pacing.Yardstick:
    """The yardstick of a calibration's folder: made and measured at first, and kept there."""
    path = folder / "yardstick.onnx"
    if not path.exists():
        onnx.save(sweep.yardstick(), path)
    request = EngineRequest(label=pacing.YARDSTICK, path=path, precision="fp32")
    ((measurement,), _) = pacing.measure(session, store, [request], campaign="yardstick")
    return pacing.Yardstick(path=path, latency_s=stats.median(measurement.samples_s))


def calibrate(
    session: Session,
    store: Store,
    observer: Observer,
    *,
    reference: Sequence[graph.Kernel],
    precisions: Sequence[str],
    yardstick: pacing.Yardstick,
    known: Sequence[calibration.NetworkSample] = (),
    budget_s: float = MEASURING_S,
) -> Calibration:
    """A latency model of the session's board, fitted to a planned sweep measured there.

    ``reference`` are the kernels of the network to be fitted: the sweep spreads around them.
    ``known`` adds whole networks that were measured already, in the ``yardstick``'s terms. What
    the store holds of an interrupted calibration is not measured again. Measuring is planned to
    take ``budget_s`` at most.
    """
    with tempfile.TemporaryDirectory(prefix="boardfit-sweep-") as scratch:
        run = _Run(session, store, observer, yardstick, Path(scratch), list(known), budget_s)
        prior = _prior(session, precisions)
        plan = run.plan(reference, precisions, prior)
        run.profile(plan.networks)
        run.measure()
        model = run.fit(prior)
        more = run.extend(plan, model)
        run.profile(more.networks)
        return Calibration(model=run.fit(prior), times=run.times(more.kernels))


class _Run:
    """One calibration under way: its samples, and what is done and left of its plan."""

    def __init__(
        self,
        session: Session,
        store: Store,
        observer: Observer,
        yardstick: pacing.Yardstick,
        scratch: Path,
        known: list[calibration.NetworkSample],
        budget_s: float,
    ) -> None:
        self.session, self.store, self.observer = session, store, observer
        self.yardstick, self.scratch, self.budget_s = yardstick, scratch, budget_s
        self.kernel_samples: list[tuple[graph.Work, float]] = []
        self.network_samples = known
        self.begun_s = time.monotonic()
        self.fit_s = self.measure_s = self.planned_s = 0.0
        self.own_s, self.paced = pacing.engine_s(yardstick.latency_s), True
        self.probes: tuple[sweep.ProbeNetwork, ...] = ()
        self.turns = 1
        # Networks, and seconds as planned, of what was measured now and of what is left to do.
        self.done = self.kept = self.total = 0
        self.now_s = self.left_s = self.took_s = 0.0

    def plan(
        self, reference: Sequence[graph.Kernel], precisions: Sequence[str], prior: BoardProfile
    ) -> sweep.SweepPlan:
        """The first stage, kept within the budget together with the second and the probes."""
        begun_s = time.monotonic()
        works = _works(self.yardstick.path, prior.runtime)
        # How much slower the board is than the datasheet says, as far as one network tells.
        slower = self.yardstick.latency_s / _predicted_s(works, prior)
        # On a slow board a pace before and after every packed network would take all the time.
        self.paced = 2 * sweep.PACKED_NETWORKS * self.own_s <= self.budget_s / 3
        whole = tuple(probes.probes(precisions, runtime=prior.runtime))
        self.probes, probing_s = self._affordable(whole, slower, prior)
        free_s = self.budget_s - probing_s - sweep.PACKED_NETWORKS * self._pace_s
        plan = sweep.plan(
            reference,
            precisions=precisions,
            runtime=prior.runtime,
            profile=prior,
            whole=whole,
            slower=slower,
            call_budget_s=max(free_s, 0.0) / pacing.RUNS,
        )
        self.total = self.turns * len(self.probes) + sweep.PACKED_NETWORKS
        # The second stage takes what the first one leaves, or less.
        stages_s = pacing.RUNS * sum(n.call_s for n in plan.networks) / sweep.FIRST_SHARE
        self.planned_s = self.left_s = self.budget_s - free_s + stages_s
        self._fitted(begun_s)
        return plan

    def _affordable(
        self, whole: Sequence[sweep.ProbeNetwork], slower: float, prior: BoardProfile
    ) -> tuple[tuple[sweep.ProbeNetwork, ...], float]:
        """The quickest of ``whole`` that half of the budget is enough for, and their seconds.

        They are measured in as many turns as it is enough for.
        """
        costs = {p.name: pacing.engine_s(slower * _predicted_s(p.works, prior)) for p in whole}
        names: set[str] = set()
        # The yardstick is measured beside each campaign.
        spent_s = math.ceil(len(whole) / NETWORKS_PER_CAMPAIGN) * self.own_s
        for name, cost_s in sorted(costs.items(), key=lambda item: item[1]):
            if spent_s + cost_s <= self.budget_s / 2:
                spent_s += cost_s
                names.add(name)
        self.turns = min(TURNS, max(1, int(self.budget_s / 2 / spent_s)))
        kept = tuple(p for p in whole if p.name in names)
        return kept, self.turns * spent_s if kept else 0.0

    @property
    def _pace_s(self) -> float:
        """Seconds that the yardstick takes before and after a packed network."""
        return 2 * self.own_s if self.paced else 0.0

    def profile(self, networks: Sequence[sweep.PackedNetwork]) -> None:
        """Measure the kernels of ``networks``, in the yardstick's terms."""
        for packed in networks:
            path = self.scratch / f"{packed.name}.onnx"
            onnx.save(packed.model, path)
            begun_s = time.monotonic()
            taken, pace, measured_s = pacing.paced_profile(
                self.session,
                self.store,
                path,
                self.yardstick if self.paced else None,
                precision=packed.precision,
            )
            planned_s = pacing.RUNS * packed.call_s + self._pace_s
            self._told(1, planned_s, measured_s, time.monotonic() - begun_s)
            rows = pacing.kernel_rows(taken)
            self.kernel_samples += [(w, s / pace) for w, s in sweep.collect(packed, rows)]

    def measure(self) -> None:
        """Measure whole networks in turns, interleaved with the yardstick and in its terms."""
        logs = np.zeros(len(self.probes))
        for turn in range(self.turns):
            for start in range(0, len(self.probes), NETWORKS_PER_CAMPAIGN):
                batch = slice(start, start + NETWORKS_PER_CAMPAIGN)
                logs[batch] += self._log_ratios(self.probes[batch], f"sweep {turn} {start}")
        latencies = self.yardstick.latency_s * np.exp(logs / self.turns)
        self.network_samples += [
            calibration.NetworkSample(probe.works, float(latency_s))
            for probe, latency_s in zip(self.probes, latencies, strict=True)
        ]

    def _log_ratios(self, batch: Sequence[sweep.ProbeNetwork], campaign: str) -> list[float]:
        """Logarithms of the latencies over the yardstick's."""
        requests = []
        for probe in batch:
            path = self.scratch / f"{probe.name}.onnx"
            onnx.save(probe.model, path)
            requests.append(EngineRequest(label=probe.name, path=path, precision=probe.precision))
        begun_s = time.monotonic()
        ratios, measured_s = pacing.ratios(
            self.session, self.store, requests, self.yardstick, campaign=campaign
        )
        latencies = [ratio * self.yardstick.latency_s for ratio in (1.0, *ratios)]
        planned_s = sum(pacing.engine_s(latency) for latency in latencies)
        self._told(len(batch), planned_s, measured_s, time.monotonic() - begun_s)
        return [math.log(ratio) for ratio in ratios]

    def fit(self, prior: BoardProfile) -> calibration.LatencyModel:
        """The model of everything measured so far."""
        begun_s = time.monotonic()
        model = calibration.fit(
            self.kernel_samples, self.network_samples, profile=prior, runtime=prior.runtime
        )
        self._fitted(begun_s)
        return model

    def extend(self, plan: sweep.SweepPlan, model: calibration.LatencyModel) -> sweep.SweepPlan:
        """The second stage, by what the first one left open."""
        begun_s = time.monotonic()
        more = sweep.extend(plan, model, self.kernel_samples)
        self.total = self.done + len(more.networks)
        self.left_s = sum(pacing.RUNS * n.call_s + self._pace_s for n in more.networks)
        self._fitted(begun_s)
        return more

    def times(self, kernels: int) -> SweepTimes:
        """Where the time went."""
        rest_s = time.monotonic() - self.begun_s - self.measure_s - self.fit_s
        return SweepTimes(
            planned_s=self.planned_s,
            budget_s=self.budget_s,
            measure_s=self.measure_s,
            build_s=max(0.0, rest_s),
            fit_s=self.fit_s,
            kernels=kernels,
            networks=self.done,
            kept=self.kept,
        )

    def _fitted(self, begun_s: float) -> None:
        self.fit_s += time.monotonic() - begun_s
        self.observer.progress(self.done, self.total, left_s=self._time_left_s())

    def _told(self, networks: int, planned_s: float, measured_s: float, took_s: float) -> None:
        """Take note of a finished job; one that was kept by the store measured for no time."""
        self.done += networks
        self.left_s = max(0.0, self.left_s - planned_s)
        if measured_s:
            self.measure_s += measured_s
            self.now_s, self.took_s = self.now_s + planned_s, self.took_s + took_s
        else:
            self.kept += networks
        self.observer.progress(self.done, self.total, left_s=self._time_left_s())

    def _time_left_s(self) -> float:
        """What is left as planned, stretched by how much longer the jobs so far took in all."""
        return self.left_s * (self.took_s / self.now_s if self.now_s else 1.0)


def _prior(session: Session, precisions: Sequence[str]) -> BoardProfile:
    """The datasheet that calibration starts from: the board's, else that of any such board."""
    runtime = rules.fusion_rules(session.facts)
    prior = profiles.load(session.spec.profile or DEFAULT_PROFILE[graph.is_gpu(runtime)])
    missing = [precision for precision in precisions if precision not in prior.peak_flops]
    if missing:
        raise ConfigError(
            f"the profile {prior.name} has no peak for {', '.join(missing)}, in which board "
            f"{session.spec.name} computes with {session.spec.runtime}; name another profile for "
            f"it in boards.toml ({', '.join(profiles.available())}), or none"
        )
    # Whoever predicts with the model reads networks as this board's runtime does.
    return dataclasses.replace(prior, runtime=runtime)


def check_model(
    model: calibration.LatencyModel, session: Session, *, precisions: Sequence[str]
) -> None:
    """ConfigError where a saved ``model`` is not one of the session's board.

    It has to be in terms of the datasheet that a calibration there starts from, for the kernels
    that the board's runtime executes, and know the ``precisions`` that the board computes in.
    """
    ours = _prior(session, precisions)
    missing = [precision for precision in precisions if precision not in model.precisions]
    if (model.profile.name, model.runtime) == (ours.name, ours.runtime) and not missing:
        return
    lacking = f", without {', '.join(missing)}" if missing else ""
    board = session.spec.name
    raise ConfigError(
        f"--latency-model: its model is of {model.profile.name} with {model.runtime}{lacking}, "
        f"and board {board} is {ours.name} with {ours.runtime} and computes in "
        f"{', '.join(precisions)}; give one of this board (boardfit calibrate --board {board} "
        "--out DIR), or leave the option out to calibrate now"
    )


def _works(path: Path, runtime: str, *, precision: str = "fp32") -> tuple[graph.Work, ...]:
    kernels = graph.read(path, runtime=runtime, precision=graph.base_of(precision))
    return tuple(graph.work(kernel) for kernel in kernels)


def _predicted_s(works: Sequence[graph.Work], prior: BoardProfile) -> float:
    return float(choice.predicted_seconds([works], prior)[0])


def validate(
    session: Session,
    store: Store,
    observer: Observer,
    *,
    model: calibration.LatencyModel,
    yardstick: pacing.Yardstick,
    networks: Sequence[Target],
    name: str = "validate",
    coverage: float = 0.9,
) -> tuple[Validation, ...]:
    """Predict each of ``networks`` (name, precision, what makes its file), then measure it.

    Each is measured interleaved with the ``yardstick`` of the calibration and put into its terms.
    One that the board cannot run is warned of and left out. What the store holds of the campaign
    ``name`` is not measured again.
    """
    runtime = rules.fusion_rules(session.facts)
    unit = yardstick.latency_s
    predicted: dict[str, tuple[float, Interval]] = {}

    def entry(network: str, precision: str, make: Callable[[], Path]) -> campaign.Entry:
        label = f"{network} {precision}"

        def prepare() -> tuple[EngineRequest, EngineRequest]:
            path = make()
            works = _works(path, runtime, precision=precision)
            predicted[label] = _prediction(model, works, coverage)
            return yardstick.request(), EngineRequest(label=label, path=path, precision=precision)

        return campaign.Entry(label=label, prepare=prepare)

    entries = {(target[0], target[1]): entry(*target) for target in networks}
    found = campaign.run(
        session,
        store,
        tuple(entries.values()),
        plan=PRESETS["quick"],
        name=name,
        on_progress=observer.progress,
    )
    for failure in found.failures:
        observer.warn(f"{failure.label} could not be measured: {failure.reason}")
    rows = []
    for (network, precision), one in entries.items():
        if one.label not in found.measured:
            continue
        if one.label not in predicted:
            one.prepare()  # an earlier run measured it
        base, ours = found.measured[one.label]
        ratios = stats.ratio_by_round(ours, base)
        spread = stats.ratio_interval(ratios)
        latency_s, interval = predicted[one.label]
        rows.append(
            Validation(
                network=network,
                precision=precision,
                predicted_s=latency_s,
                interval=interval,
                measured_s=stats.median(ratios) * unit,
                measured_interval=Interval(spread.low * unit, spread.high * unit, spread.coverage),
            )
        )
    return tuple(rows)


def _prediction(
    model: calibration.LatencyModel, works: Sequence[graph.Work], coverage: float
) -> tuple[float, Interval]:
    low, high = model.interval(works, coverage)
    return model.predict(works), Interval(low, high, coverage)
