"""One network of the pruning benchmark: what is known of it, and how a row of it is found."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness import calibrate, networks, pacing
from harness.boards.session import Session
from harness.candidates import Measured, Workbench
from harness.compression import branches, distill, groups, prune, quantize, reconstruct, selection
from harness.folder import Folder
from harness.networks import Data
from harness.posing import FitSettings, Problem
from harness.records import Group, Interval, Option, Stage, Strategy, StrategyEntry
from harness.sensitivity import curvature, refitted
from harness.store import Store
from harness.strategies import generator
from harness.strategies.predictor import NetworkCosts
from harness.strategies.proposal import ANCHORED, MISSED, propose
from harness.strategies.requirements import Limits
from latency_models import calibration, graph
from tests.benchmarks.compression_networks import subject, training_data
from tests.benchmarks.quantizing import quality
from tests.benchmarks.ratios import FINAL, PLAN, surest_ratio

__all__ = ["Bench", "Plan"]

# Widths of a group that are tried: eighths of its channels, in whole steps of onnxruntime's blocked
# kernels (16 floats with AVX-512: ResNet-56 with 40 of 64 channels in every block took 0.956 of its
# time, with 48 0.945, with 24 0.867 and with 32 0.869); and some below one step, of which the
# runtime makes less work (8, 4 and 2 of 16 channels: 0.979, 0.920 and 0.872).
EIGHTHS = range(1, 8)
STEP = 16
NARROW = {"resnet56": (2, 4, 8), "efl0": ()}
ROUNDS = 2
# Starts with as many branches left out as are needed at full widths, or so many fewer.
FEWER = (0, 1, 3)
# Residual branches that are left out at most.
MOST_LEFT_OUT = {"resnet56": 16, "efl0": 9}
# An allocation that comes as near to its budget as this is not improved on by measuring more.
NEAR = 0.97
# ResNet-56 is calibrated on training images, which it is certain of; Lite0 on others.
TEMPERATURE = {"resnet56": 4.0, "efl0": 1.0}
SCORED = {"resnet56": 64, "efl0": 150}
ORDERED = 64
# So many of the calibration images judge what was fitted to the others.
JUDGING = 60
BATCH = {"resnet56": 64, "efl0": 20}
POSITIONS = 32
PRECISIONS = ("fp32", "int8")
# What is left of fp32's time when as many branches go as may, about.
LEAST = {"fp32": 0.4, "int8": 0.2}
# Nothing is measured meanwhile.
TUNING_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One row to be found: the methods it has, its share of fp32's time, and the training."""

    task: str
    network: str
    methods: tuple[str, ...]
    latency: float
    size: float | None = None
    tuned: bool = False
    # What is rounded to int8 only after the widths have been chosen for fp32.
    afterwards: bool = False

    @property
    def label(self) -> str:
        """What the row's files are called by."""
        how = "then".join(self.methods) if self.afterwards else "+".join(self.methods)
        return f"{self.network}-{how}-{self.latency:g}{'-tuned' if self.tuned else ''}"

    @property
    def setting(self) -> str:
        """What stands in the table."""
        if self.afterwards:
            how = "pruned, then quantized"
        else:
            joint = len(self.methods) > 1
            how = "joint" if joint else {"prune": "pruned", "quantize": "int8"}[self.methods[0]]
        return f"{how}, {'BN + 2 epochs KD lr 0.01' if self.tuned else 'no training, refitted'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The network without some of its residual branches, where an allocation begins."""

    left_out: tuple[str, ...]
    network: torch.nn.Module
    groups: tuple[Group, ...]
    kernels: tuple[graph.Kernel, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A strategy on a start, and what was measured of it."""

    branches: int
    strategy: Strategy
    ratio: float
    interval: Interval
    loss: float
    # Of its file, as a share of fp32's.
    size: float

    def within(self, plan: Plan) -> bool:
        """Whether it was measured to keep the budgets."""
        small = plan.size is None or self.size <= plan.size
        return small and self.interval.high <= plan.latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """What the rounds of allocating and measuring came to."""

    branches: int
    strategy: Strategy
    rounds: int
    note: str


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


def widths_of(network: str, group: Group) -> list[int]:
    """The widths that are tried, the whole one last.

    EfficientNet-Lite0's linear bottlenecks are narrow by design, and stay whole.
    """
    if not group.prunable or group.name.endswith("_project_conv"):
        return [group.channels]
    found = {max(STEP, round(group.channels * i / 8 / STEP) * STEP) for i in EIGHTHS}
    found |= {width for width in NARROW[network]}
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
        self.exact = self._outputs(self.bench.baseline_path)
        self.problem = self._posed()
        self.sensitivities = self._refitted()
        self.order = stage("branches", tuple[branches.LeftOut, ...], self._ordered)
        self.start = functools.lru_cache(maxsize=None)(self._start)

    def _outputs(self, path: Path) -> torch.Tensor:
        return torch.from_numpy(networks.onnx_logits(path, self.bench.data.test_images.numpy()))

    def _ordered(self) -> tuple[branches.LeftOut, ...]:
        return branches.removal_order(
            self.network,
            self.groups,
            self.images[:ORDERED],
            most=MOST_LEFT_OUT[self.name],
            temperature=TEMPERATURE[self.name],
        )

    def _start(self, count: int) -> Start:
        """The network without ``count`` branches."""
        gone = tuple(one.group for one in self.order[:count])
        if not gone:
            network, found, path = self.network, self.groups, self.bench.baseline_path
        else:
            network = branches.without(self.network, self.groups, self.images[:2], gone)
            found = groups.find_groups(network, self.images[:1])
            path = self.folder / "starts" / f"{count}.onnx"
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
                for width in widths_of(self.name, group)
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
            widths = {g.name: widths_of(self.name, g)[:-1] for g in self.groups}
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

    # --- a row ------------------------------------------------------------------------------

    def found(self, plan: Plan) -> dict[str, Any]:
        """The row of ``plan``: allocated, built, measured and evaluated."""
        allocated = self.bench.folder.stage(
            f"allocate {plan.label}", Allocated, lambda: self._allocated(plan)
        )
        start, strategy = self.start(allocated.branches), allocated.strategy
        wall_s = self.bench.folder.stages[-1].wall_s
        stem = self.folder / "variants" / plan.label
        path = self._built(plan, start, strategy, stem)
        ratio, interval = surest_ratio(self.session, self.bench.baseline_path, path, FINAL)
        found = self._quality(path)
        untrained = Path(f"{stem}-untrained.onnx")
        size = path.stat().st_size / self.bench.baseline_size_bytes
        kept = sum(len(entry.kept) for entry in strategy.entries)
        channels = sum(group.channels for group in self.groups)
        rounded = sum(entry.precision == "int8" for entry in strategy.entries)
        return {
            "task": plan.task,
            "network": plan.network,
            "peer": "boardfit",
            "setting": plan.setting,
            "budget": f"latency<={plan.latency:g}" + (f" size<={plan.size:g}" if plan.size else ""),
            "achieved": f"size {size:.3f} channels {kept / channels:.3f} "
            f"branches {allocated.branches} left out",
            "latency_ratio": ratio,
            "latency_low": interval.low,
            "latency_high": interval.high,
            "met": interval.high <= plan.latency and (plan.size is None or size <= plan.size),
            "wall_s": wall_s,
            "note": f"{allocated.note}; {allocated.rounds} tried; {rounded} of "
            f"{len(strategy.entries)} groups int8; n={len(self.subject.test)}",
            "file": path.name,
            **found,
            # What two epochs on a few thousand images do to it.
            "untrained": self._quality(untrained) if untrained.is_file() else None,
        }

    def _quality(self, path: Path) -> dict[str, Any]:
        return asdict(quality(self._outputs(path), self.exact, self.subject.test_labels))

    def _allocated(self, plan: Plan) -> Allocated:
        """Of what was measured to fit, that which is nearest to the original once it is built.

        Where nothing fits, what came nearest to the budget. Allocations begin at the whole network
        and at some without as many branches as would have to go if all else stayed whole.
        """
        tried: list[Tried] = []
        for count in self._starts(plan, tried):
            self._rounds(plan, count, tried)
        fitting = [one for one in tried if one.within(plan)]
        if not fitting:
            best = min(tried, key=lambda one: one.interval.high)
            note = f"out of reach, nearest {best.ratio:.3f}"
        else:
            # The predicted losses of one start compare; those of different ones do not.
            by_start = {one.branches: one for one in sorted(fitting, key=lambda one: -one.loss)}
            judged = {count: self._divergence(plan, one) for count, one in by_start.items()}
            least = min(judged, key=judged.__getitem__)
            best = by_start[least]
            note = "KL untrained, by branches left out: " + ", ".join(
                f"{count}: {judged[count]:.3f}" for count in sorted(judged)
            )
        return Allocated(
            branches=best.branches, strategy=best.strategy, rounds=len(tried), note=note
        )

    def _starts(self, plan: Plan, tried: list[Tried]) -> list[int]:
        """How many branches to begin without; full widths within the budget are looked for."""
        if "prune" not in plan.methods:
            return [0]
        precision = "int8" if "quantize" in plan.methods and not plan.afterwards else "fp32"
        low, high = 0, len(self.order) + 1
        # The share that a branch takes is about the same for all: a guess, then halves.
        middle = round((1 - plan.latency) / (1 - LEAST[precision]) * len(self.order))
        while high - low > 1:
            middle = min(max(middle, low + 1), high - 1)
            start = self.start(middle)
            choice = {
                group.name: Option(channels=group.channels, precision=precision)
                for group in start.groups
            }
            strategy = self._strategy(plan, start, choice)
            one = self._tried(plan, "whole", middle, strategy, float(middle), tried)
            if one is None or one.interval.high > plan.latency:
                low = middle
            else:
                high = middle
            middle = (low + high) // 2
        needed = min(high, len(self.order))
        return sorted({0, *(max(needed - fewer, 0) for fewer in FEWER)})

    def _rounds(self, plan: Plan, count: int, tried: list[Tried]) -> None:
        start = self.start(count)
        options = generator.restrict(
            {group.name: self.problem.options[group.name] for group in start.groups},
            start.groups,
            prune="prune" in plan.methods,
            precisions=("fp32",) if plan.afterwards or plan.methods == ("prune",) else PRECISIONS,
        )
        aim, coverages = plan.latency, tuple[float, ...](ANCHORED)
        if plan.afterwards:
            # fp32's share is not int8's: it is found by measuring, as everything else.
            aim = min(1.0, 1.8 * plan.latency)
        for number in range(1, ROUNDS + 1):
            proposal = propose(
                functools.partial(self._costs, start),
                options,
                self.sensitivities,
                self._limits(aim, plan),
                label=f"{plan.label} {number}",
                epochs=0,
                seed=0,
                coverages=coverages,
            )
            one = self._tried(plan, str(number), count, proposal.strategy, proposal.loss, tried)
            if one is None or NEAR * plan.latency <= one.interval.high <= plan.latency:
                break
            # What the model still gets wrong after it has learned of this one.
            aim *= min(1.25, max(0.8, 0.985 * plan.latency / one.interval.high))
            if aim >= 1:
                break
            coverages = MISSED if one.interval.high > plan.latency else ANCHORED

    def _tried(
        self,
        plan: Plan,
        name: str,
        count: int,
        strategy: Strategy,
        loss: float,
        tried: list[Tried],
    ) -> Tried | None:
        """What was measured of a strategy that is new; then the latency model is fitted again."""
        strategy = _rounded(strategy) if plan.afterwards else strategy
        if any((strategy.entries, count) == (one.strategy.entries, one.branches) for one in tried):
            return None
        stem = self.folder / "drafts" / f"{plan.label}-{count}-{name}"
        # What takes the time that the variant will take: cut and rounded, its weights as they are.
        start = self.start(count)
        path = self._exported(
            self._cut(start, strategy), start, strategy, stem, self.images[:8], careful=False
        )
        ratio, interval = surest_ratio(self.session, self.bench.baseline_path, path, PLAN)
        tried.append(
            Tried(
                branches=count,
                strategy=strategy,
                ratio=ratio,
                interval=interval,
                loss=loss,
                size=path.stat().st_size / self.bench.baseline_size_bytes,
            )
        )
        self.bench.folder.observer.warn(
            f"{plan.label} without {count} branches, {name}: measured {ratio:.3f} "
            f"({interval.low:.3f} to {interval.high:.3f}) of {plan.latency:g}"
        )
        self._recalibrated(path, ratio)
        return tried[-1]

    def _strategy(self, plan: Plan, start: Start, choice: Mapping[str, Option]) -> Strategy:
        entries = tuple(
            StrategyEntry(
                group=group.name,
                kept=self.sensitivities.kept(group.name, choice[group.name].channels),
                of=group.channels,
                precision=choice[group.name].precision,
            )
            for group in start.groups
        )
        return Strategy(label=plan.label, methods=plan.methods, entries=entries, epochs=0, seed=0)

    def _costs(self, start: Start, coverage: float) -> NetworkCosts:
        return NetworkCosts(
            start.kernels,
            start.groups,
            model=self.problem.model,
            baseline_size_bytes=start.size_bytes,
            coverage=coverage,
        )

    def _limits(self, aim: float, plan: Plan) -> Limits:
        size = None if plan.size is None else 0.99 * plan.size * self.bench.baseline_size_bytes
        return Limits(latency_s=aim * self.baseline.candidate.latency_s, size_bytes=size)

    def _recalibrated(self, path: Path, ratio: float) -> None:
        works = tuple(graph.work(kernel) for kernel in self.bench.kernels(path))
        latency_s = ratio * self.baseline.candidate.latency_s
        model = calibration.refit(self.problem.model, network_samples=((works, latency_s),))
        self.problem.model = model

    # --- building ---------------------------------------------------------------------------

    def _cut(self, start: Start, strategy: Strategy) -> torch.nn.Module:
        kept = {entry.group: entry.kept for entry in strategy.entries}
        return prune.prune(start.network, self.images[:1], start.groups, kept)

    def _refit(self, start: Start, strategy: Strategy, images: torch.Tensor) -> torch.nn.Module:
        """Cut, and fitted to what the original gives on ``images`` and their mirror images."""
        network = self._cut(start, strategy)
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

    def _divergence(self, plan: Plan, one: Tried) -> float:
        """KL to the original of what is built without training, on images it has not seen."""
        start = self.start(one.branches)
        network = self._refit(start, one.strategy, self.images[:-JUDGING])
        judging = self.images[-JUDGING:]
        path = self._exported(
            network,
            start,
            one.strategy,
            self.folder / "judged" / f"{plan.label}-{one.branches}",
            self.images[:-JUDGING],
            careful=True,
        )
        ours = torch.from_numpy(networks.onnx_logits(path, judging.numpy()))
        exact = torch.from_numpy(networks.onnx_logits(self.bench.baseline_path, judging.numpy()))
        temperature = TEMPERATURE[self.name]
        return float(
            distill.distillation_loss(ours, exact, None, temperature=temperature, alpha=0.0)
        )

    def _built(self, plan: Plan, start: Start, strategy: Strategy, stem: Path) -> Path:
        network = self._refit(start, strategy, self.images)
        stem.parent.mkdir(parents=True, exist_ok=True)
        if plan.tuned:
            assert self.training is not None
            untrained = Path(f"{stem}-untrained")
            self._exported(network, start, strategy, untrained, self.images, careful=True)
            threads = torch.get_num_threads()
            torch.set_num_threads(TUNING_THREADS)
            network = distill.distill(
                network,
                self.network,
                self.training.train_images,
                self.training.train_labels,
                **distill.FIXED_FINE_TUNING,
                checkpoint=Path(f"{stem}.checkpoint"),
            )
            torch.set_num_threads(threads)
        torch.save(network, f"{stem}.pt")
        return self._exported(network, start, strategy, stem, self.images, careful=True)

    def _exported(
        self,
        network: torch.nn.Module,
        start: Start,
        strategy: Strategy,
        stem: Path,
        images: torch.Tensor,
        *,
        careful: bool,
    ) -> Path:
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


def _rounded(strategy: Strategy) -> Strategy:
    """The strategy with every group in int8."""
    entries = tuple(replace(entry, precision="int8") for entry in strategy.entries)
    return replace(strategy, entries=entries, methods=("prune", "quantize"))
