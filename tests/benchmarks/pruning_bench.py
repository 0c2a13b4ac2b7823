"""One network of the pruning benchmark: what is known of it, and how variants of it are made."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness import calibrate, networks, pacing, starts
from harness.boards.session import Session
from harness.candidates import Measured, Workbench
from harness.compression import branches, groups, prune, quantize, reconstruct, selection
from harness.folder import Folder
from harness.networks import Data
from harness.posing import FitSettings, Problem
from harness.records import Group, Option, Stage, Strategy, StrategyEntry
from harness.sensitivity import curvature, refitted
from harness.store import Store
from harness.strategies.predictor import NetworkCosts
from harness.strategies.requirements import Limits
from latency_models import calibration, graph
from tests.benchmarks.compression_networks import subject, training_data
from tests.benchmarks.quantizing import quality

__all__ = ["PRECISIONS", "TEMPERATURE", "Bench", "Start"]

# Widths of a group that are tried: eighths of its channels, in whole steps of onnxruntime's blocked
# kernels (16 floats with AVX-512: ResNet-56 with 40 of 64 channels in every block took 0.956 of its
# time, with 48 0.945, with 24 0.867 and with 32 0.869). Widths below one step save less than they
# lose (8, 4 and 2 of 16 channels: 0.979, 0.920 and 0.872): there the branch is better left out.
EIGHTHS = range(1, 8)
STEP = 16
# Residual branches that are left out at most.
MOST_LEFT_OUT = {"resnet56": 16, "efl0": 9}
# ResNet-56 is calibrated on training images, which it is certain of; Lite0 on others.
TEMPERATURE = {"resnet56": 4.0, "efl0": 1.0}
SCORED = {"resnet56": 64, "efl0": 150}
ORDERED = 64
BATCH = {"resnet56": 64, "efl0": 20}
POSITIONS = 32
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The network without some of its residual branches, where an allocation begins."""

    left_out: tuple[str, ...]
    network: torch.nn.Module
    groups: tuple[Group, ...]
    kernels: tuple[graph.Kernel, ...]
    size_bytes: int


class Said:
    """An observer that tells the stages and nothing else."""

    def begin(self, stage: str, *, resumed: bool) -> None:
        print(f"  {stage}{' (kept)' if resumed else ''}", file=sys.stderr, flush=True)

    def progress(self, done: int, total: int, *, left_s: float | None = None) -> None:
        pass

    def end(self, stage: Stage) -> None:
        print(f"  {stage.name}: {stage.wall_s:.0f} s {stage.detail}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


def widths_of(group: Group) -> list[int]:
    """The widths that are tried, the whole one last.

    EfficientNet-Lite0's linear bottlenecks are narrow by design, and stay whole.
    """
    if not group.prunable or group.name.endswith("_project_conv"):
        return [group.channels]
    found = {max(STEP, round(group.channels * i / 8 / STEP) * STEP) for i in EIGHTHS}
    return sorted({width for width in found if width < group.channels} | {group.channels})


class Bench:
    """A network with its images, groups, losses and latency model; allocates, builds, measures."""

    def __init__(
        self, name: str, images: Path, folder: Path, session: Session, store: Store
    ) -> None:
        self.name, self.session, self.folder = name, session, folder
        self.subject = subject(name, images)
        # The pass for sensitivities wants channels first.
        self.network = self.subject.network.to(memory_format=torch.contiguous_format)
        self.images = self.subject.calibration.contiguous()
        self.training = None if name == "efl0" else training_data(images)
        data = Data(self.images, None, self.subject.test.contiguous(), self.subject.test_labels)
        self.bench = Workbench(
            network=self.network,
            data=data,
            session=session,
            store=store,
            folder=Folder(folder / "fit", {"network": name}, Said()),
            board_images=8,
        )
        stage = self.bench.folder.stage
        self.groups = groups.find_groups(self.network, data.example)
        self.baseline = stage("baseline", Measured, self.bench.measure_baseline)
        self.exact = self.outputs(self.bench.baseline_path)
        self.problem = self._posed()
        self.sensitivities = self._refitted()
        self.order = functools.lru_cache(maxsize=None)(self._order)
        self.start = functools.lru_cache(maxsize=None)(self._start)

    def outputs(self, path: Path) -> torch.Tensor:
        return torch.from_numpy(networks.onnx_logits(path, self.bench.data.test_images.numpy()))

    def _order(self, sized: bool) -> tuple[branches.LeftOut, ...]:
        """The branches as they best go, for what they save of the time (and of the size)."""
        limits = Limits(latency_s=1.0, size_bytes=1.0 if sized else None)

        def ordered() -> tuple[branches.LeftOut, ...]:
            images = self.images[:ORDERED]
            names = branches.removable(self.network, self.groups, images)
            return branches.removal_order(
                self.network,
                self.groups,
                images,
                most=MOST_LEFT_OUT[self.name],
                names=names,
                saves=starts.savings(self.problem.costs(0.0), limits, names),
                temperature=TEMPERATURE[self.name],
            )

        name = "branches by time" + (" and size" if sized else "")
        return self.bench.folder.stage(name, tuple[branches.LeftOut, ...], ordered)

    def _start(self, count: int, *, sized: bool) -> Start:
        """The network without the first ``count`` branches of that order."""
        gone = tuple(one.group for one in self.order(sized)[:count])
        if not gone:
            network, found, path = self.network, self.groups, self.bench.baseline_path
        else:
            network = branches.without(self.network, self.groups, self.images[:2], gone)
            found = groups.find_groups(network, self.images[:1])
            path = self.folder / "starts" / f"{count}{' sized' if sized else ''}.onnx"
            networks.export_onnx(network, self.images[:1], path)
        return Start(
            left_out=gone,
            network=network,
            groups=found,
            kernels=self.bench.kernels(path),
            size_bytes=path.stat().st_size,
        )

    def _posed(self) -> Problem:
        """As ``harness.posing.pose`` does it, with this benchmark's widths."""
        stage, bench = self.bench.folder.stage, self.bench
        precisions = quantize.available_precisions(self.session.facts)
        kernels = bench.kernels(bench.baseline_path)
        latency_s = self.baseline.candidate.latency_s
        options = {
            group.name: tuple(
                Option(channels=width, precision=precision)
                for width in widths_of(group)
                for precision in precisions
            )
            for group in self.groups
        }

        def calibrated() -> str:
            works = tuple(graph.work(kernel) for kernel in kernels)
            return calibrate.calibrate(
                self.session,
                bench.store,
                bench.folder.observer,
                reference=kernels,
                precisions=precisions,
                yardstick=pacing.Yardstick(path=bench.baseline_path, latency_s=latency_s),
                known=[calibration.NetworkSample(works, latency_s)],
            ).model.to_json()

        def scored() -> curvature.Sensitivities:
            some = self.images[: SCORED[self.name]]
            return curvature.score(
                self.network,
                self.groups,
                options,
                some,
                batch=16,
                temperature=TEMPERATURE[self.name],
            )

        return Problem(
            bench=bench,
            settings=FitSettings(network=self.name, budgets=()),
            network=self.network,
            size_bytes=bench.baseline_size_bytes,
            groups=self.groups,
            kernels=kernels,
            options=options,
            sensitivities=stage("sensitivity", curvature.Sensitivities, scored),
            limits=Limits(latency_s=None, size_bytes=None),
            model=calibration.LatencyModel.from_json(stage("calibrate", str, calibrated)),
        )

    def _refitted(self) -> curvature.Sensitivities:
        mirrored = torch.cat([self.images, self.images.flip(3)])

        def computed() -> curvature.Sensitivities:
            widths = {g.name: widths_of(g)[:-1] for g in self.groups}
            widths = {name: own for name, own in widths.items() if own}
            removed = selection.removals(
                self.network,
                self.groups,
                mirrored,
                widths,
                positions=POSITIONS,
                batch=BATCH[self.name],
            )
            values = refitted.scores(
                self.network,
                removed,
                self.images[: SCORED[self.name]],
                batch=10,
                temperature=TEMPERATURE[self.name],
            )
            return refitted.refitted(self.problem.sensitivities, removed, values)

        return self.bench.folder.stage("refitted", curvature.Sensitivities, computed)

    def strategy(
        self, label: str, methods: tuple[str, ...], start: Start, choice: Mapping[str, Option]
    ) -> Strategy:
        """The strategy that ``choice``, an option a group of ``start``, means."""
        entries = tuple(
            StrategyEntry(
                group=group.name,
                kept=self.sensitivities.kept(group.name, choice[group.name].channels),
                of=group.channels,
                precision=choice[group.name].precision,
            )
            for group in start.groups
        )
        return Strategy(label=label, methods=methods, entries=entries, epochs=0, seed=0)

    def costs(self, start: Start, coverage: float) -> NetworkCosts:
        """What allocations on ``start`` cost, by the latency model as it is now."""
        return NetworkCosts(
            start.kernels,
            start.groups,
            model=self.problem.model,
            baseline_size_bytes=start.size_bytes,
            coverage=coverage,
        )

    def learn(self, path: Path, ratio: float) -> None:
        """Fit the latency model again, with the ratio that was measured of a file."""
        works = tuple(graph.work(kernel) for kernel in self.bench.kernels(path))
        latency_s = ratio * self.baseline.candidate.latency_s
        model = calibration.refit(self.problem.model, network_samples=((works, latency_s),))
        self.problem.model = model

    def quality(self, path: Path) -> dict[str, Any]:
        """How near a file comes to the original on the test images."""
        return asdict(quality(self.outputs(path), self.exact, self.subject.test_labels))

    def cut(self, start: Start, strategy: Strategy) -> torch.nn.Module:
        """The network of ``start`` with the channels that the strategy keeps."""
        kept = {entry.group: entry.kept for entry in strategy.entries}
        return prune.prune(start.network, self.images[:1], start.groups, kept)

    def refit(self, start: Start, strategy: Strategy, images: torch.Tensor) -> torch.nn.Module:
        """Cut, and fitted to what the original gives on ``images`` and their mirror images."""
        network = self.cut(start, strategy)
        layers = [layer for group in start.groups for layer in group.producers]
        reconstruct.reconstruct(
            network,
            self.network,
            start.groups,
            {entry.group: entry.kept for entry in strategy.entries},
            torch.cat([images, images.flip(3)]),
            # What lies behind a branch that is gone reads something else, whatever its width.
            layers=layers[1:] if start.left_out else None,
            positions=POSITIONS,
            batch=BATCH[self.name],
        )
        return network

    def exported(
        self,
        network: torch.nn.Module,
        start: Start,
        strategy: Strategy,
        stem: Path,
        images: torch.Tensor,
        *,
        careful: bool,
    ) -> Path:
        """The file of a built network, rounded where the strategy says so."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        path, exact = Path(f"{stem}.onnx"), Path(f"{stem}.fp32.onnx")
        networks.export_onnx(network, images[:1], exact)
        precision = {entry.group: entry.precision for entry in strategy.entries}
        layers = [
            layer for group in start.groups for layer in group.producers
            if precision[group.name] == "int8"
        ]  # fmt: skip
        if not layers:
            return exact.replace(path)
        quantize.quantize(
            exact,
            path,
            calibration=images.numpy(),
            int8_layers=layers,
            board=self.session.facts,
            method="error" if careful else "minmax",
            correct_bias=careful,
        )
        exact.unlink()
        return path
