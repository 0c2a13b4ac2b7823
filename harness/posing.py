"""What a fit is asked, and the problem that its rounds solve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import calibrate, pacing
from harness.candidates import Measured, Workbench
from harness.compression import quantize
from harness.records import Budget, Group, Option
from harness.sensitivity import curvature
from harness.strategies import generator, requirements
from harness.strategies.predictor import NetworkCosts
from latency_models import calibration, graph, staircase

__all__ = ["FitSettings", "Problem", "channel_step", "pose"]

# Channels that a convolution's kernels compute at once where the latency model shows no staircase:
# vectors of 8 floats, and what tensor cores ask of every width.
CHANNEL_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What a fit is asked to do, beside network, data and board."""

    network: str
    budgets: tuple[Budget, ...]
    max_rounds: int = 3
    epochs: int = 4
    sensitivity_images: int = 512
    board_images: int = 256
    seed: int = 0
    alternatives: bool = True
    methods: tuple[str, ...] = ("prune", "quantize")
    sustain_s: float = 0.0


@dataclass(slots=True)
class Problem:
    """What the rounds share; ``model`` and ``size_scale`` are corrected after each round."""

    bench: Workbench
    settings: FitSettings
    groups: tuple[Group, ...]
    kernels: tuple[graph.Kernel, ...]
    options: Mapping[str, tuple[Option, ...]]
    sensitivities: curvature.Sensitivities
    limits: requirements.Limits
    model: calibration.LatencyModel
    size_scale: float = 1.0

    def costs(self, coverage: float) -> NetworkCosts:
        """What allocations cost, by the model as it is now."""
        return NetworkCosts(
            self.kernels,
            self.groups,
            model=self.model,
            baseline_size_bytes=self.bench.baseline_size_bytes,
            coverage=coverage,
            size_scale=self.size_scale,
        )


def pose(
    bench: Workbench, settings: FitSettings, found: tuple[Group, ...], baseline: Measured
) -> Problem:
    """What the rounds share: limits, a calibrated latency model, options and their sensitivities.

    Calibrating and scoring are stages of the folder.
    """
    precisions = quantize.available_precisions(bench.session.facts)
    if "quantize" not in settings.methods:
        precisions = ("fp32",)
    kernels = bench.kernels(bench.path_of(baseline))
    limits = requirements.limits(
        settings.budgets,
        latency_s=baseline.candidate.latency_s,
        size_bytes=baseline.candidate.size_bytes,
    )

    def calibrated() -> str:
        works = tuple(graph.work(kernel) for kernel in kernels)
        return calibrate.calibrate(
            bench.session,
            bench.store,
            bench.folder.observer,
            reference=kernels,
            precisions=precisions,
            yardstick=pacing.Yardstick(
                path=bench.baseline_path, latency_s=baseline.candidate.latency_s
            ),
            known=[calibration.NetworkSample(works, baseline.candidate.latency_s)],
        ).model.to_json()

    model = calibration.LatencyModel.from_json(bench.folder.stage("calibrate", str, calibrated))
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
            bench.network,
            found,
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
        groups=found,
        kernels=kernels,
        options=options,
        sensitivities=sensitivities,
        limits=limits,
        model=model,
    )


def channel_step(model: calibration.LatencyModel, precisions: Sequence[str]) -> int:
    """The width of the steps in which time rises on this board, the widest of the precisions'."""
    steps = [staircase.channel_step(model, precision) for precision in precisions]
    return max((step for step in steps if step is not None), default=CHANNEL_STEP)
