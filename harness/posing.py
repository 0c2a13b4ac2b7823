"""What a fit is asked, and the problem that its rounds solve."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import calibrate, networks, pacing, starts
from harness.candidates import Measured, Workbench
from harness.compression import quantize, student
from harness.compression.branches import Branches
from harness.records import Budget, Group, Option, Strategy
from harness.sensitivity import curvature
from harness.starts import Start
from harness.strategies import generator, given, requirements
from harness.strategies.predictor import NetworkCosts
from latency_models import calibration, graph, staircase

__all__ = [
    "BOARD_IMAGES",
    "FitSettings",
    "Problem",
    "SavedModel",
    "calibrated",
    "channel_step",
    "pose",
]

# Channels that a convolution's kernels compute at once where the latency model shows no staircase:
# vectors of 8 floats, and what tensor cores ask of every width.
CHANNEL_STEP = 8
# Test images that the engine is given on the board as well.
BOARD_IMAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """A latency model of an earlier calibration, and the name of the file that it is from."""

    file: str
    model: calibration.LatencyModel

    def __str__(self) -> str:
        """The file's name and the beginning of the model's hash."""
        return f"{self.file} ({self.model.sha256[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What a fit is asked to do, beside network, data and board.

    Where a strategy is ``given``, that is built, and nothing is allocated. Where a latency model
    was ``saved``, the board is not calibrated.
    """

    network: str
    budgets: tuple[Budget, ...]
    max_rounds: int = 3
    epochs: int = 4
    sensitivity_images: int = 512
    board_images: int = BOARD_IMAGES
    seed: int = 0
    alternatives: bool = True
    methods: tuple[str, ...] = ("prune", "quantize")
    student: str = ""
    sustain_s: float = 0.0
    given: Strategy | None = None
    saved: SavedModel | None = None


@dataclass(slots=True)
class Problem:
    """What the rounds share; ``model`` and ``size_scale`` are corrected after each round.

    ``network`` is what is compressed, ``size_bytes`` the size of its exported file: the original's,
    or those of the student that takes its place. ``branches`` are those of it that can go whole.
    Options and sensitivities are those of the whole network also where branches are left out: an
    approximation, for what is left then reads and makes something else.
    """

    bench: Workbench
    settings: FitSettings
    network: networks.Network
    size_bytes: int
    groups: tuple[Group, ...]
    kernels: tuple[graph.Kernel, ...]
    options: Mapping[str, tuple[Option, ...]]
    sensitivities: curvature.Sensitivities
    limits: requirements.Limits
    model: calibration.LatencyModel
    size_scale: float = 1.0
    branches: Branches = field(default_factory=Branches)
    _starts: dict[tuple[str, ...], Start] = field(default_factory=dict)

    def costs(self, coverage: float, start: Start | None = None) -> NetworkCosts:
        """What allocations to ``start`` (or the whole network) cost, by the model as it is now."""
        start = self.start(()) if start is None else start
        return NetworkCosts(
            start.kernels,
            start.groups,
            model=self.model,
            baseline_size_bytes=start.size_bytes,
            coverage=coverage,
            size_scale=self.size_scale,
        )

    def start(self, left_out: tuple[str, ...]) -> Start:
        """The network without the groups ``left_out``, all else at its full width."""
        if not left_out:
            return Start(groups=self.groups, kernels=self.kernels, size_bytes=self.size_bytes)
        if left_out not in self._starts:
            self._starts[left_out] = starts.start(
                self.bench,
                self.network,
                self.groups,
                left_out,
                name=f"without-{starts.count(self.branches, left_out)}",
            )
        return self._starts[left_out]


def pose(
    bench: Workbench, settings: FitSettings, found: tuple[Group, ...], baseline: Measured
) -> Problem:
    """What the rounds share: limits, a calibrated latency model, options and their sensitivities.

    Teaching a student, calibrating and scoring are stages of the folder. ``found`` are the groups
    of what is compressed.
    """
    network, path = _compressed(bench, settings)
    precisions = quantize.available_precisions(bench.session.facts)
    if settings.given is not None:
        used = {"fp32", *(entry.precision for entry in settings.given.entries)}
        precisions = tuple(precision for precision in precisions if precision in used)
    elif "quantize" not in settings.methods:
        precisions = ("fp32",)
    kernels = bench.kernels(path)
    limits = requirements.limits(
        settings.budgets,
        latency_s=baseline.candidate.latency_s,
        size_bytes=baseline.candidate.size_bytes,
    )

    if settings.saved is None:
        model = calibrated(bench, baseline, path, precisions)
    else:
        model = _anchored(bench, baseline, path, settings.saved)
    branches = Branches()
    if settings.given is None and "prune" in settings.methods:
        costs = NetworkCosts(
            kernels,
            found,
            model=model,
            baseline_size_bytes=path.stat().st_size,
            coverage=0.0,
        )
        branches = starts.find(
            bench, network, found, saves=functools.partial(starts.savings, costs, limits)
        )
    elif settings.given is not None and settings.given.left_out:
        branches = starts.find(bench, network, found, settings.given)

    options: Mapping[str, tuple[Option, ...]]
    if settings.given is not None:
        options = {name: (option,) for name, option in given.choice(settings.given).items()}
    else:
        options = generator.options_for(
            found,
            precisions=precisions,
            step=channel_step(model, precisions),
            fine_step=CHANNEL_STEP,
            prune="prune" in settings.methods,
        )
    sensitivities = bench.folder.stage(
        "sensitivity",
        curvature.Sensitivities,
        lambda: curvature.score(
            network,
            [group for group in found if group.name in options],
            options,
            bench.data.train_images[: settings.sensitivity_images],
            seed=settings.seed,
            seven_bit_weights=bench.session.facts.int8 == "avx2",
            progress=bench.folder.observer.progress,
        ),
        detail=lambda s: f"{sum(map(len, s.options.values()))} options in {len(s.options)} groups",
    )
    return Problem(
        bench=bench,
        settings=settings,
        network=network,
        size_bytes=path.stat().st_size,
        groups=found,
        kernels=kernels,
        options=options,
        sensitivities=sensitivities,
        limits=limits,
        model=model,
        branches=branches,
    )


def calibrated(
    bench: Workbench, baseline: Measured, path: Path, precisions: Sequence[str]
) -> calibration.LatencyModel:
    """The board's latency model around the network in ``path``: a stage of the folder."""
    kernels = bench.kernels(path)

    def measured() -> str:
        original = bench.kernels(bench.path_of(baseline))
        return calibrate.calibrate(
            bench.session,
            bench.store,
            bench.folder.observer,
            reference=(*kernels, *original) if path != bench.baseline_path else original,
            precisions=precisions,
            yardstick=pacing.Yardstick(
                path=bench.baseline_path, latency_s=baseline.candidate.latency_s
            ),
            known=[_sample(bench, baseline)],
        ).model.to_json()

    return calibration.LatencyModel.from_json(bench.folder.stage("calibrate", str, measured))


def _anchored(
    bench: Workbench, baseline: Measured, path: Path, saved: SavedModel
) -> calibration.LatencyModel:
    """A saved latency model, refitted to the baseline as measured now: a stage of the folder.

    Warns of kernels of the network in ``path`` that the board was not calibrated with.
    """
    unknown = saved.model.unsupported([graph.work(kernel) for kernel in bench.kernels(path)])
    if unknown:
        kinds = ", ".join(f"{kind} in {precision}" for kind, precision in unknown)
        bench.folder.observer.warn(
            f"{saved.file} has no measurement of {kinds}: predicted from the datasheet; leave "
            "--latency-model out to calibrate around this network"
        )

    def anchored() -> str:
        sample = _sample(bench, baseline)
        return calibration.refit(saved.model, network_samples=[sample]).to_json()

    text = bench.folder.stage("anchor", str, anchored, detail=lambda _: str(saved))
    return calibration.LatencyModel.from_json(text)


def _sample(bench: Workbench, baseline: Measured) -> calibration.NetworkSample:
    """The original's kernels and what they took together."""
    works = tuple(graph.work(kernel) for kernel in bench.kernels(bench.path_of(baseline)))
    return calibration.NetworkSample(works, baseline.candidate.latency_s)


def _compressed(bench: Workbench, settings: FitSettings) -> tuple[networks.Network, Path]:
    """What is compressed, and its exported file: the original, or a student that it taught."""
    learner = bench.student
    if learner is None:
        return bench.network, bench.baseline_path
    found = bench.folder.stage(
        "student",
        student.Student,
        lambda: student.teach(
            learner,
            bench.network,
            bench.data,
            stem=bench.folder.networks / "student",
            epochs=settings.epochs,
            seed=settings.seed,
            progress=bench.folder.observer.progress,
        ),
        detail=student.Student.summary,
    )
    return student.taught(learner, found), found.onnx


def channel_step(model: calibration.LatencyModel, precisions: Sequence[str]) -> int:
    """The width of the steps in which time rises on this board, the widest of the precisions'."""
    steps = [staircase.channel_step(model, precision) for precision in precisions]
    return max((step for step in steps if step is not None), default=CHANNEL_STEP)
