"""From a network's file to a measured candidate: the workbench that the loop builds on."""

import datetime
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import onnx

from harness import networks, pacing, stats, sustain, verdict
from harness.boards import rules
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.compression import quantize, shallow
from harness.compression.build import Variant
from harness.folder import Folder
from harness.records import (
    LEFT_OUT,
    Candidate,
    Group,
    GroupAllocation,
    Interval,
    LayerPrecision,
    Measurement,
    MeasurementVerdict,
    Prediction,
    Profile,
    SoakSummary,
    Strategy,
)
from harness.store import Store
from latency_models import calibration, graph

__all__ = ["Measured", "Role", "Workbench"]

# An interval narrows with the square root of its rounds: more campaigns hardly decide anything.
MAX_FINAL_CAMPAIGNS = 4
Role = Literal["baseline", "joint", "int8_only", "prune_only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A candidate with its per-kernel profile and what there is to warn of."""

    candidate: Candidate
    profile: Profile
    warnings: tuple[str, ...]
    # Those of ``warnings`` that speak of the measurement, which a later one replaces.
    of_measuring: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line: latency, ratio, size, accuracy."""
        c = self.candidate
        top1 = "" if c.top1 is None else f", top-1 {100 * c.top1:.2f} %"
        return (
            f"{c.latency_s * 1e3:.3f} ms ({100 * c.ratio:.1f} % of the baseline), "
            f"{c.size_bytes / 1e6:.3f} MB{top1}"
        )


@dataclass(slots=True)
class Workbench:
    """Network, data, board, store and folder of one fit; measures what the loop hands it."""

    network: networks.Network
    data: networks.Data
    session: Session
    store: Store
    folder: Folder
    board_images: int
    sustain_s: float = 0.0
    metric: networks.Metric = networks.TOP1
    student: networks.Network | None = None
    _original_classes: np.ndarray | None = None

    @property
    def baseline_path(self) -> Path:
        """The exported original."""
        return self.folder.networks / "baseline.onnx"

    @property
    def baseline_size_bytes(self) -> int:
        """The size of the exported original."""
        return self.baseline_path.stat().st_size

    def path_of(self, measured: Measured) -> Path:
        """The ONNX file that was measured."""
        return self.folder.networks / f"{measured.candidate.label.replace(' ', '-')}.onnx"

    def kernels(
        self, path: Path, layers: Sequence[LayerPrecision] = ()
    ) -> tuple[graph.Kernel, ...]:
        """The kernels that the board's runtime executes for the network in ``path``.

        ``layers`` are the precisions of nodes that are asked for beside the file.
        """
        return graph.read(
            path,
            runtime=rules.fusion_rules(self.session.facts),
            layers={one.node: one.precision for one in layers},
        )

    def kernels_of(self, measured: Measured) -> tuple[graph.Kernel, ...]:
        """The kernels of the engine that was measured."""
        path = self.path_of(measured)
        return self.kernels(path, _bound(path, measured.candidate.allocation))

    def measure_baseline(self) -> Measured:
        """Export the original, measure it alone, profile it, evaluate it."""
        example = self.data.test_images[:1]
        draft = self.baseline_path.with_suffix(".draft.onnx")
        networks.export_onnx(self.network, example, draft)
        draft.replace(self.baseline_path)
        request = EngineRequest(label="baseline", path=self.baseline_path, precision="fp32")
        (measurement,) = self.session.measure(
            [request], plan=PRESETS["standard"], campaign="baseline"
        )
        self.store.add(measurement)
        return self._measured(
            self.baseline_path,
            measurement,
            measurement,
            role="baseline",
            round_number=0,
            parameters=networks.count_parameters(self.network),
            macs=networks.count_macs(self.network, example),
        )

    def measure_variant(
        self,
        variant: Variant,
        strategy: Strategy,
        groups: Sequence[Group],
        *,
        role: Role,
        round_number: int,
        model: calibration.LatencyModel,
        coverage: float,
        predicted_size_bytes: int,
        predicted_loss: float,
        notes: tuple[str, ...] = (),
    ) -> Measured:
        """Freeze the prediction, then measure ``variant`` interleaved with the baseline."""
        layers = _bound(variant.onnx, _allocation(strategy, groups))
        prediction = self._predict(variant.onnx, strategy.label, model, coverage, layers=layers)
        base, ours = self.session.measure(
            [
                EngineRequest(label="baseline", path=self.baseline_path, precision="fp32"),
                EngineRequest(
                    label=strategy.label,
                    path=variant.onnx,
                    precision=_told(len(variant.int8_layers), layers),
                    layers=layers,
                ),
            ],
            plan=PRESETS["standard"],
            campaign=strategy.label,
        )
        self.store.add(base)
        self.store.add(ours)
        measured = self._measured(
            variant.onnx,
            ours,
            base,
            role=role,
            round_number=round_number,
            parameters=variant.parameters,
            macs=variant.macs,
        )
        real = quantize.real_int8_layers(measured.profile, variant.int8_layers)
        floats = quantize.float_layers(measured.profile, variant.int8_layers)
        warnings = measured.warnings
        if floats:
            warnings += (
                f"{strategy.label}: {len(floats)} of {len(variant.int8_layers)} int8 layers did "
                f"not run as integer kernels; {'; '.join(map(str, floats))}",
            )
        candidate = replace(
            measured.candidate,
            predicted_latency_s=prediction.latency_s,
            predicted_interval_s=prediction.interval,
            predicted_size_bytes=predicted_size_bytes,
            predicted_loss=predicted_loss,
            int8_layers=len(variant.int8_layers),
            int8_layers_real=len(real),
            allocation=_allocation(strategy, groups),
            notes=notes,
        )
        return replace(measured, candidate=candidate, warnings=warnings)

    def final_measurements(
        self, measured: Sequence[Measured], *, decided: Callable[[Sequence[Measured]], bool]
    ) -> list[Measured]:
        """All of them once more, interleaved: what the verdict rests on.

        Where ``decided`` says that an interval still holds a limit, they are measured again, and
        the rounds of all campaigns count together. Each campaign begins with ``sustain_s`` of the
        engines running in turn without a pause: the verdict is of the soaked board. Campaigns of
        an earlier run that lack one of them, as where more rounds were asked for since, do not
        count.
        """
        engines = [self.request(m) for m in measured]
        known: dict[str, set[str]] = {}
        for m in self.store.all(Measurement):
            known.setdefault(m.campaign, set()).add(m.label)
        lacking = {
            name for name, labels in known.items() if not {e.label for e in engines} <= labels
        }

        def take(campaign: str) -> str:
            for measurement in self.session.measure(
                engines,
                plan=replace(PRESETS["standard"], soak_s=self.sustain_s),
                campaign=campaign,
            ):
                self.store.add(measurement)
            return campaign

        campaigns: list[str] = []
        final: list[Measured] = []
        names = (f"final campaign {number}" for number in itertools.count(1))
        usable = (name for name in names if name not in lacking)
        while len(campaigns) < MAX_FINAL_CAMPAIGNS and not (final and decided(final)):
            name = next(usable)
            campaigns.append(self.folder.stage(name, str, functools.partial(take, name)))
            taken = [m for m in self.store.all(Measurement) if m.campaign in campaigns]
            joined = {
                engine.label: stats.join([m for m in taken if m.label == engine.label])
                for engine in engines
            }
            final = [self._remeasured(m, joined) for m in measured]
        return final

    def request(self, measured: Measured) -> EngineRequest:
        """What the session is asked for to run what was measured."""
        path = self.path_of(measured)
        layers = _bound(path, measured.candidate.allocation)
        return EngineRequest(
            label=measured.candidate.label,
            path=path,
            precision=_told(measured.candidate.int8_layers, layers),
            layers=layers,
        )

    def _remeasured(self, measured: Measured, taken: Mapping[str, Measurement]) -> Measured:
        ours, base = taken[measured.candidate.label], taken["baseline"]
        fields = self._latency_fields(ours, base)
        # What was found wrong with an earlier measurement does not touch this one.
        kept = [text for text in measured.warnings if text not in measured.of_measuring]
        found = _warnings(measured.candidate.label, fields["verdict"])
        return replace(
            measured,
            candidate=replace(measured.candidate, **fields),
            warnings=(*kept, *found),
            of_measuring=found,
        )

    def _latency_fields(self, measurement: Measurement, baseline: Measurement) -> "_Latency":
        ratios = stats.ratio_by_round(measurement, baseline)
        return {
            "latency_s": stats.median(measurement.samples_s),
            # A budget is to hold tomorrow as well, not only over the span of this measurement.
            "latency_interval_s": stats.interval_over_time(measurement),
            "latency_cv": stats.coefficient_of_variation(measurement.samples_s),
            "n_samples": len(measurement.samples_s),
            "ratio": stats.median(ratios),
            "ratio_interval": stats.ratio_interval(ratios),
            "verdict": self._judge(measurement, baseline),
            "soak": None if measurement.soak is None else sustain.summarise(measurement.soak),
        }

    def _judge(self, measurement: Measurement, baseline: Measurement) -> MeasurementVerdict:
        if self.session.spec.host is None:
            # The load of the last minute is our own: this computer has just built the variant.
            unloaded = replace(measurement.before, load_1min=None)
            measurement = replace(measurement, before=unloaded)
        return verdict.judge(
            measurement,
            baseline=baseline if baseline.label != measurement.label else None,
            percentiles=(50,),
            shown=(90, 99),
            cores=self.session.facts.cores,
        )

    def _predict(
        self,
        path: Path,
        label: str,
        model: calibration.LatencyModel,
        coverage: float,
        *,
        layers: tuple[LayerPrecision, ...],
    ) -> Prediction:
        """The frozen prediction of ``path``; written now if this network has none yet."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known = self.store.first_prediction(digest, layers)
        if known is not None:
            return known
        works = tuple(graph.work(kernel) for kernel in self.kernels(path, layers))
        low, high = model.interval(works, coverage)
        prediction = Prediction(
            label=label,
            network_sha256=digest,
            latency_s=model.predict(works),
            interval=Interval(low, high, coverage),
            latency_model_sha256=model.sha256,
            made_at=datetime.datetime.now(datetime.timezone.utc).isoformat(),
            layers=layers,
        )
        self.store.add(prediction)
        return prediction

    def _measured(
        self,
        path: Path,
        measurement: Measurement,
        baseline: Measurement,
        *,
        role: Role,
        round_number: int,
        parameters: int,
        macs: int,
    ) -> Measured:
        profile = pacing.profile(self.session, path, self.store)
        outputs = networks.onnx_outputs(path, self.data.test_images.numpy())
        some = self.data.test_images[: self.board_images].numpy()
        found_there = self.session.infer(path, some)
        agreement: tuple[float | None, float | None] = (None, None)
        if self.metric.classifies:
            classes = found_there.argmax(axis=1)
            original = self._classes_of_original()
            agreement = (
                float(np.mean(classes == original[: len(some)])),
                float(np.mean(classes == outputs[0][: len(some)].argmax(axis=1))),
            )
        candidate = Candidate(
            label=measurement.label,
            role=role,
            round=round_number,
            onnx_sha256=measurement.network_sha256,
            size_bytes=path.stat().st_size,
            parameters=parameters,
            macs=macs,
            top1=self.metric.of(outputs, self.data.test_labels.numpy()),
            board_agreement=agreement[0],
            host_agreement=agreement[1],
            n_board_images=len(some),
            **self._latency_fields(measurement, baseline),
        )
        assert candidate.verdict is not None
        found = _warnings(candidate.label, candidate.verdict)
        return Measured(candidate=candidate, profile=profile, warnings=found, of_measuring=found)

    def _classes_of_original(self) -> np.ndarray:
        if self._original_classes is None:
            some = self.data.test_images[: self.board_images].numpy()
            self._original_classes = networks.onnx_logits(self.baseline_path, some).argmax(axis=1)
        return self._original_classes


class _Latency(TypedDict):
    latency_s: float
    latency_interval_s: Interval
    latency_cv: float
    n_samples: int
    ratio: float
    ratio_interval: Interval
    verdict: MeasurementVerdict
    soak: SoakSummary | None


def _warnings(label: str, found: MeasurementVerdict) -> tuple[str, ...]:
    return tuple(f"{label}: {c.finding}: {c.remedy}" for c in found.violated)


def _told(int8_layers: int, layers: Sequence[LayerPrecision]) -> str:
    """A measurement's word for its precision: the one of all layers, or mixed."""
    if int8_layers:
        return "mixed"
    kinds = {one.precision for one in layers} or {"fp32"}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _bound(path: Path, allocation: Sequence[GroupAllocation]) -> tuple[LayerPrecision, ...]:
    """The precision of every layer's node, where the allocation has fp16 somewhere: the file tells
    int8 from fp32, and no more."""
    precisions = {layer: group.precision for group in allocation for layer in group.layers}
    if "fp16" not in precisions.values():
        return ()
    nodes = networks.layer_of_node(onnx.load(path))
    return tuple(
        LayerPrecision(node=node, precision=precisions.get(layer, "fp32"))
        for node, layer in nodes.items()
    )


def _allocation(strategy: Strategy, groups: Sequence[Group]) -> tuple[GroupAllocation, ...]:
    """What every group keeps; with one that is left out stand the layers that went with it."""
    entries = {entry.group: entry for entry in strategy.entries}
    there = {group.name: group for group in shallow.remaining(groups, strategy.left_out)}
    gone = set(shallow.unread(groups, strategy.left_out))
    result = []
    for group in groups:
        if group.name in there:
            entry, layers = entries[group.name], there[group.name].producers
            kept, precision = len(entry.kept), entry.precision
        else:
            read = (layer for layer in group.consumers if layer in gone)
            layers, kept, precision = (*group.producers, *read), 0, LEFT_OUT
        result.append(
            GroupAllocation(
                group=group.name,
                layers=layers,
                channels=group.channels,
                kept=kept,
                precision=precision,
            )
        )
    return tuple(result)
