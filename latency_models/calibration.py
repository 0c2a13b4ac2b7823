"""Calibration: the latency model that explains a board's measurements best.

``fit`` finds the parameters of the roofline (``roofline.py``) that explain measured kernels and
networks best, starting from the board's datasheet, and what is left over as a smooth function of
the kernels' shapes where that predicts held-out networks better (``posterior.py``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from latency_models import fitting, posterior
from latency_models.errors import CalibrationError
from latency_models.kernels import Work
from latency_models.model import (
    DEFAULT_RUNTIME,
    HeldOut,
    KernelSample,
    LatencyModel,
    NetworkSample,
    Parameter,
    layout_of,
    samples_of,
)
from latency_models.parameters import Array
from latency_models.profiles import BoardProfile

__all__ = ["HeldOut", "LatencyModel", "NetworkSample", "Parameter", "fit", "prior", "refit"]


def fit(
    kernel_samples: Sequence[KernelSample],
    network_samples: Sequence[tuple[Sequence[Work], float] | NetworkSample],
    *,
    profile: BoardProfile,
    runtime: str = DEFAULT_RUNTIME,
    unlike: bool = False,
) -> LatencyModel:
    """The latency model that explains measured kernels and whole networks, in seconds.

    Least squares on log time with a soft L1 loss, so that a stray measurement costs little, and
    the datasheet as a prior, so that ten samples already help. The learned residual is switched on
    where it predicts networks that were left out better than the formula alone, by more than the
    standard error of the difference. ``unlike``: the model is for networks of groups that were not
    measured, so that whole groups are left out. ``CalibrationError`` if there are no samples or one
    is not positive.
    """
    networks = _network_samples(network_samples)
    return _fit(
        tuple(kernel_samples),
        networks,
        profile=profile,
        start=None,
        runtime=runtime,
        unlike=unlike,
    )


def prior(profile: BoardProfile, *, runtime: str = DEFAULT_RUNTIME) -> LatencyModel:
    """What the datasheet alone says of a board: nothing was measured, and every kind is unknown.

    Its intervals are those of the priors' own uncertainty, about a factor of three each way. Of
    five published tables of a Nano and a TX2 they hold 92 to 100 %, meant to hold 90: on one board
    all networks are off in much the same direction, by a factor of 1.1 to 1.7.
    """
    precisions = tuple(sorted(profile.precisions))
    layout = layout_of(precisions, profile)
    theta, variances = layout.start(), np.diag(layout.covariance())
    return LatencyModel(
        profile=profile,
        precisions=precisions,
        parameters=tuple(
            Parameter(
                known.name,
                float(value if known.linear else math.exp(value)),
                known.unit,
                known.value,
                math.sqrt(variance),
            )
            for known, value, variance in zip(layout.priors, theta, variances, strict=True)
        ),
        measured_groups=(),
        kernel_samples=(),
        network_samples=(),
        held_out_=(),
        runtime=runtime,
    )


def refit(
    model: LatencyModel,
    *,
    kernel_samples: Sequence[KernelSample] = (),
    network_samples: Sequence[tuple[Sequence[Work], float] | NetworkSample] = (),
) -> LatencyModel:
    """A model fitted to everything that ``model`` saw and the new samples.

    What the new networks (variants of one network, usually) still take more or less than the
    formula says becomes ``anchor_``, a factor on every prediction, shrunk towards 1: with n
    such networks, n / (n + 1) of the mean log residual.
    """
    fresh = _network_samples(network_samples)
    count = model.anchors + len(fresh)
    everything = (*model.network_samples, *fresh)
    again = _fit(
        (*model.kernel_samples, *kernel_samples),
        everything,
        profile=model.profile,
        start=model.theta,
        runtime=model.runtime,
        unlike=model.unlike,
    )
    again = again.at(model.scales)
    if not count:
        return again
    anchored = everything[len(everything) - count :]
    logs = [
        math.log(measured_s / dataclasses.replace(again, scales=scales).predict(works))
        for works, measured_s, _, scales in anchored
    ]
    anchor = math.exp(sum(logs) / (count + 1))
    return dataclasses.replace(again, anchor_=anchor, anchors=count)


def _network_samples(
    samples: Sequence[tuple[Sequence[Work], float] | NetworkSample],
) -> tuple[NetworkSample, ...]:
    full = (NetworkSample(*sample) for sample in samples)
    return tuple(s._replace(works=tuple(s.works), seconds=float(s.seconds)) for s in full)


def _fit(
    kernel_samples: tuple[KernelSample, ...],
    network_samples: tuple[NetworkSample, ...],
    *,
    profile: BoardProfile,
    start: Array | None,
    runtime: str,
    unlike: bool,
) -> LatencyModel:
    _check(kernel_samples, network_samples)
    seen = [w for w, _ in kernel_samples] + [w for s in network_samples for w in s.works]
    precisions = tuple(sorted({*profile.precisions, *(w.precision for w in seen)}))
    layout = layout_of(precisions, profile)
    samples = samples_of(layout, kernel_samples, network_samples)
    theta = fitting.minimise(samples, layout.start() if start is None else start)
    alike = posterior.similarity(samples, theta)
    left_out = _left_out(kernel_samples, network_samples, unlike=unlike)
    chosen, held_out = _with_residual(samples, theta, left_out, alike)
    variances = np.diag(chosen.left)
    return LatencyModel(
        profile=profile,
        precisions=precisions,
        parameters=tuple(
            Parameter(
                prior.name,
                float(value if prior.linear else math.exp(value)),
                prior.unit,
                prior.value,
                float(math.sqrt(max(variance, 0.0))),
            )
            for prior, value, variance in zip(layout.priors, chosen.theta, variances, strict=True)
        ),
        measured_groups=tuple(sorted({(w.kind, w.precision) for w in seen})),
        kernel_samples=kernel_samples,
        network_samples=network_samples,
        held_out_=held_out,
        residual_=chosen.amplitude,
        runtime=runtime,
        unlike=unlike,
    )


def _check(
    kernel_samples: Sequence[KernelSample], network_samples: Sequence[NetworkSample]
) -> None:
    if not kernel_samples and not network_samples:
        raise CalibrationError("nothing was measured: give kernel or network samples, or both")
    for item, seconds in kernel_samples:
        if not (math.isfinite(seconds) and seconds > 0):
            raise CalibrationError(f"kernel {item.name!r} took {seconds} s: measure it again")
    for index, (works, seconds, *_) in enumerate(network_samples):
        if not works or not (math.isfinite(seconds) and seconds > 0):
            raise CalibrationError(
                f"network sample {index} has {len(works)} kernels and took {seconds} s: leave it "
                "out or measure it again"
            )


def _with_residual(
    samples: fitting.Samples, theta: Array, groups: Sequence[str | None], alike: Array
) -> tuple[posterior.Posterior, tuple[HeldOut, ...]]:
    """The samples explained, with the learned residual if it pays, and what was held out.

    It pays if the mean size of held-out residuals falls by more than its standard error.
    """
    tried = posterior.AMPLITUDES
    residuals, spreads = posterior.held_out(samples, theta, groups, tried, alike)
    out = np.array([group is not None for group in groups])
    names = sorted({group for group in groups if group is not None})
    # What was left out together errs together, and counts once.
    sizes = np.array(
        [np.abs(residuals[:, [g == name for g in groups]]).mean(axis=1) for name in names]
    ).reshape(-1, len(tried))
    gains = sizes[:, :1] - sizes
    doubts = gains.std(axis=0) / math.sqrt(max(len(names) - 1, 1))
    pays = gains.sum(axis=0) > doubts * len(names)
    best = int(np.argmax(np.where(pays, gains.sum(axis=0), 0.0)))
    explained = posterior.Posterior(samples, theta, tried[best], alike)
    pairs = zip(residuals[best, out], spreads[best, out], strict=True)
    return explained, tuple(HeldOut(float(r), float(s)) for r, s in pairs)


def _left_out(
    kernel_samples: Sequence[KernelSample],
    network_samples: Sequence[NetworkSample],
    *,
    unlike: bool,
) -> tuple[str | None, ...]:
    """What is left out together with each sample: its twins, or its group if ``unlike``.

    The same kernels are the same network, whatever its name. Kernels are left out only where there
    are no networks to predict.
    """
    if not network_samples:
        return tuple(str(fitting.signature(work)) for work, _ in kernel_samples)
    networks = [
        sample.group
        if unlike and sample.group
        else str(sorted(map(fitting.signature, sample.works)))
        for sample in network_samples
    ]
    return (*[None] * len(kernel_samples), *networks)
