"""What a plan stands on: a latency model of the board, and what its runtime can use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from harness import calibrate, posing, stats
from harness.boards import rules
from harness.boards.session import Session
from harness.candidates import Measured, Workbench
from harness.compression import quantize
from harness.folder import Folder
from harness.records import Estimate, LatencySource, Measurement
from harness.store import Store
from latency_models import calibration, graph, profiles
from latency_models.tables import check_runtime

__all__ = ["Grounds", "of_bench", "of_board", "of_model", "of_profile"]

_FAKE = ("The fake engine was measured, whose times mean nothing: no latency here does.",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """A board as a plan sees it; the latency model's ``runtime`` names the fusion rules.

    ``precisions`` are those that the board can use, the exact one first, ``form`` how int8 layers
    are written for it. ``baseline`` is the original as it was measured there, if it was, with
    the ``samples_s`` of its calls, and ``power_w`` what the board drew meanwhile (None: no rails).
    """

    board: str
    model: calibration.LatencyModel
    source: LatencySource
    precisions: tuple[str, ...]
    form: quantize.Form
    baseline: Measured | None = None
    samples_s: tuple[float, ...] = ()
    power_w: Estimate | None = None
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The width of the steps in which time rises on this board."""
        return posing.channel_step(self.model, self.precisions)

    @property
    def measured(self) -> Estimate | None:
        """What the original took in seconds, with its interval over time, if it was measured."""
        if self.baseline is None:
            return None
        found = self.baseline.candidate
        interval = found.latency_interval_s
        return Estimate(value=found.latency_s, low=interval.low, high=interval.high)


def of_profile(name: str) -> Grounds:
    """A board of which only the datasheet is known: a profile's name, or its .toml file."""
    profile = profiles.load(name)
    runtime = check_runtime(profile.runtime)
    model = calibration.prior(profile, runtime=runtime)
    return _unconnected(profile.name, model, "prior")


def of_model(model: calibration.LatencyModel) -> Grounds:
    """A board that is not connected, and whose latency model was saved."""
    return _unconnected(model.profile.name, model, "saved model")


def _unconnected(name: str, model: calibration.LatencyModel, source: LatencySource) -> Grounds:
    precisions = tuple(p for p in ("fp32", "fp16", "int8") if p in model.profile.precisions)
    notes: tuple[str, ...] = ()
    if "int8" in precisions and "tensorrt" in model.runtime:
        notes = (
            "Files with int8 layers are those that TensorRT before 10 reads, which have their "
            "weights as floats; name a board (--board) for its own.",
        )
    return Grounds(
        board=name,
        model=model,
        source=source,
        precisions=precisions,
        form=quantize.usual_form(model.runtime),
        notes=notes,
    )


def of_board(
    session: Session, store: Store, folder: Folder, network: Path, *, saved: str | None
) -> Grounds:
    """A connected board, calibrated around the ``network`` now, or by a ``saved`` latency model."""
    rule = rules.fusion_rules(session.facts)
    precisions = quantize.available_precisions(session.facts)

    def measured() -> str:
        return calibrate.calibrate(
            session,
            store,
            folder.observer,
            reference=graph.read(network, runtime=rule),
            precisions=precisions,
            yardstick=calibrate.folder_yardstick(session, store, folder.path),
        ).model.to_json()

    if saved is None:
        model = calibration.LatencyModel.from_json(folder.stage("calibrate", str, measured))
    else:
        model = _of_session(session, saved)
    return _connected(session, model, saved=saved is not None)


def of_bench(bench: Workbench, *, saved: str | None) -> Grounds:
    """The same where the original is measured and judged on the board as well."""
    model = None if saved is None else _of_session(bench.session, saved)
    baseline = bench.folder.stage(
        "baseline", Measured, bench.measure_baseline, detail=lambda m: m.summary()
    )
    precisions = quantize.available_precisions(bench.session.facts)
    if model is None:
        model = posing.calibrated(bench, baseline, bench.baseline_path, precisions)
    taken = next(
        one for one in bench.store.all(Measurement) if one.campaign == baseline.candidate.label
    )
    return replace(
        _connected(bench.session, model, saved=saved is not None, baseline=baseline),
        samples_s=taken.samples_s,
        power_w=_power(taken),
    )


def _of_session(session: Session, saved: str) -> calibration.LatencyModel:
    """The latency model in a text; ConfigError if it is not of the session's board."""
    model = calibration.LatencyModel.from_json(saved)
    calibrate.check_model(model, session, precisions=quantize.available_precisions(session.facts))
    return model


def _power(taken: Measurement) -> Estimate | None:
    """What the whole board drew during a measurement; None where it has no rails."""
    looks = taken.telemetry.samples if taken.telemetry is not None else ()
    known = [look.power_w for look in looks if look.power_w is not None]
    if not known:
        return None
    low, high = (stats.percentile(known, percent) for percent in (5, 95))
    middle = stats.median(known)
    return Estimate(
        value=middle, low=min(low, middle), high=max(high, middle), note="while the original ran"
    )


def _connected(
    session: Session,
    model: calibration.LatencyModel,
    *,
    saved: bool,
    baseline: Measured | None = None,
) -> Grounds:
    return Grounds(
        board=session.facts.board,
        model=model,
        source="saved model" if saved else "calibrated",
        precisions=quantize.available_precisions(session.facts),
        form=quantize.form_of(session.facts),
        baseline=baseline,
        notes=_FAKE if session.facts.runtime == "fake" else (),
    )
