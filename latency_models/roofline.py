"""Seconds from work: the roofline formula and its parameters.

::

    t(kernel)  = t0[kind,prec] + (c^q + m^q)^(1/q)
    t(network) = c0 + sum over kernels of (t + gap), or n * enqueue where the host is slower
    c = 2 * effective_macs / (P[prec] * eta[kind,prec])
    m = bytes_act / bandwidth + bytes_weights / bw_w

``gap`` is negative where the runtime's profiler, which saw ``t``, costs more than the step from
one kernel to the next. On a CPU that is mostly what a matrix product waits for when it is profiled
alone and not in a network: other kernels, whose ``t0`` is about half, count ``light_step`` of a
step. Host and device work side by side: with ``h = 6``, the network takes
``((c0 + sum)^h + (n * enqueue)^h)^(1/h)``, the larger of the two but where they are alike.

What ``effective_macs`` and ``bandwidth`` are depends on how the runtime tiles matrix products: the
*form* of the board's profile, ``mlas`` (``mlas.py``, onnxruntime's kernels for x86) or ``tiled``
(``tiled.py``, everything else). In another power mode arithmetic runs with the arithmetic's clock,
memory with its own, and overheads half with the CPU's (the host's instructions) and half with the
memory's (what they wait for).

Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009, with the smooth maximum of
Cabezas and Pueschel (q = 1 adds, large q takes the larger).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt

from latency_models import mlas, tiled
from latency_models.kernels import Work, Works
from latency_models.parameters import LIGHT_STEP, Array, Prior
from latency_models.profiles import BoardProfile, Scales

__all__ = [
    "Features",
    "Layout",
    "features",
    "kernel_jacobian",
    "kernel_seconds",
    "network_seconds",
    "step",
]

_FORMS: dict[str, ModuleType] = {"mlas": mlas, "tiled": tiled}
_STEP = 1e-6
# How sharply the slower of host and device decides.
_HOST_POWER = 6.0
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Layout:
    """Which parameter stands where in the vector that is fitted.

    Parameters are fitted as logarithms, but for the linear ones: first those that kinds share,
    then ``eta`` of each group, then ``t0`` of each group. ``groups`` are (kind, precision) pairs.
    ``light_step`` is what a kernel that multiplies no matrices counts among a CPU's steps.
    """

    form: str
    groups: tuple[tuple[str, str], ...]
    precisions: tuple[str, ...]
    priors: tuple[Prior, ...]
    peaks: tuple[float, ...]
    light_step: float = LIGHT_STEP

    @classmethod
    def of(
        cls,
        groups: Sequence[tuple[str, str]],
        profile: BoardProfile,
        *,
        light_step: float = LIGHT_STEP,
    ) -> Layout:
        """The layout for these kinds on a board of this profile."""
        ordered = tuple(sorted(set(groups)))
        precisions = tuple(sorted({precision for _, precision in ordered} | {"fp32"}))
        form = _FORMS[profile.form]
        peak = profile.peak_flops
        fallback = peak.get("fp32") or next(iter(peak.values()))
        return cls(
            form=profile.form,
            groups=ordered,
            precisions=precisions,
            priors=(
                *form.shared_priors(profile, precisions, ordered),
                *(form.eta_prior(kind, precision) for kind, precision in ordered),
                *(form.t0_prior(kind, precision, profile) for kind, precision in ordered),
            ),
            peaks=tuple(peak.get(p, fallback).value for p in precisions),
            light_step=light_step,
        )

    @property
    def first_eta(self) -> int:
        """Where the parameters of the groups begin."""
        return len(self.priors) - 2 * len(self.groups)

    def start(self) -> Array:
        """The vector of prior values."""
        return np.array([p.value if p.linear else np.log(p.value) for p in self.priors])

    def spreads(self) -> Array:
        """The prior's standard deviations, in the vector's units."""
        return np.sqrt(np.diag(self.covariance()))

    def covariance(self) -> Array:
        """The prior's covariance: parameters that have a source of doubt in common go together."""
        sources: dict[str, dict[int, float]] = {}
        result = np.diag([p.spread**2 for p in self.priors])
        for index, prior in enumerate(self.priors):
            for source, spread in prior.shared:
                sources.setdefault(source, {})[index] = spread
        for members in sources.values():
            places = list(members)
            spreads = np.array([members[place] for place in places])
            result[np.ix_(places, places)] += np.outer(spreads, spreads)
        return result

    def index(self, name: str) -> int:
        """Where the parameter called ``name`` stands."""
        return [p.name for p in self.priors].index(name)

    def value(self, theta: Array, name: str) -> float | None:
        """The parameter called ``name`` in its unit; None if this form has none."""
        for place, prior in enumerate(self.priors):
            if prior.name == name:
                return float(theta[place] if prior.linear else np.exp(theta[place]))
        return None


@dataclass(frozen=True, slots=True)
class Features:
    """Works as arrays, one entry a kernel: group, peak, clocks, and what the form needs."""

    group: npt.NDArray[np.intp]
    peaks: Array
    view: npt.NDArray[np.bool_]
    step: Array
    scales: Array
    own: mlas.Features | tiled.Features


def features(
    works: Sequence[Work] | Works, layout: Layout, scales: Sequence[Scales] | Scales | None = None
) -> Features:
    """The arrays that the formula needs; ``KeyError`` for a kind that ``layout`` has not.

    ``scales`` are the clocks at which each kernel runs, over the profile's; or one for all.
    """
    place = {group: index for index, group in enumerate(layout.groups)}
    peaks = dict(zip(layout.precisions, layout.peaks, strict=True))
    arrays = works if isinstance(works, Works) else Works.of(works)
    clocks = np.ones((len(arrays), 3))
    clocks[:] = scales if scales is not None else Scales()
    return Features(
        group=arrays.each([place[pair] for pair in arrays.labels]),
        peaks=arrays.each([peaks[precision] for _, precision in arrays.labels]),
        view=arrays.each([kind == "view" for kind, _ in arrays.labels]) > 0,
        step=arrays.each([step(kind, layout) for kind, _ in arrays.labels]),
        scales=clocks,
        own=_FORMS[layout.form].features(arrays, layout.precisions, layout.priors),
    )


def step(kind: str, layout: Layout) -> float:
    """What a kernel counts among the steps of a network; 0 for a view on a GPU."""
    return float(_FORMS[layout.form].step(kind, layout.light_step))


def host_factor(scales: Array) -> Array:
    """What overheads are multiplied by at clocks ``[..., (gpu, cpu, memory)]``."""
    return np.asarray(0.5 / scales[..., 1] + 0.5 / scales[..., 2])


def kernel_seconds(theta: Array, works: Features, layout: Layout) -> Array:
    """Seconds of each kernel under the parameter vector ``theta``."""
    t0, busy, _ = _parts(theta, works, layout)
    return np.asarray(t0 + busy)


def kernel_jacobian(theta: Array, works: Features, layout: Layout) -> tuple[Array, Array]:
    """Seconds of each kernel, and their derivatives by every entry of ``theta``.

    The parameters of kinds and groups are differentiated by hand, the few others numerically.
    """
    t0, busy, share = _parts(theta, works, layout)
    seconds = t0 + busy
    form, first = _FORMS[layout.form], layout.first_eta
    jacobian = np.zeros((len(seconds), len(theta)))
    each = np.arange(len(seconds))
    own = np.exp(theta[first + len(layout.groups) :])[works.group] * host_factor(works.scales)
    jacobian[each, first + works.group] = -busy * share
    jacobian[each, first + len(layout.groups) + works.group] = own
    relative = form.relative_bandwidth(theta, works.own)
    if relative is not None:
        place, part = relative
        jacobian[each, place] = -busy * (1 - share) * part
    for column in range(form.shared(layout.precisions)):
        moved = theta.copy()
        moved[column] += _STEP
        jacobian[:, column] = (kernel_seconds(moved, works, layout) - seconds) / _STEP
    return seconds, jacobian


def _parts(theta: Array, works: Features, layout: Layout) -> tuple[Array, Array, Array]:
    """Overhead, time at work, and the share of computing in it (its logarithmic derivative)."""
    first = layout.first_eta
    eta = np.exp(theta[first : first + len(layout.groups)])[works.group]
    own = np.exp(theta[first + len(layout.groups) :])[works.group]
    q = np.exp(theta[0])
    macs, memory, extra = _FORMS[layout.form].parts(theta, works.own)
    gpu, _, bus = works.scales.T
    compute = 2 * macs / (works.peaks * eta * gpu)
    memory = memory / bus
    # Relative to the larger, so that neither term under- or overflows for large q.
    larger = np.maximum(compute, memory) + _TINY
    power = (compute / larger) ** q
    both = power + (memory / larger) ** q + _TINY
    busy = np.where(works.view, 0.0, larger * both ** (1 / q))
    t0 = (own + extra) * host_factor(works.scales)
    return t0, busy, np.asarray(power / both)


def network_seconds(
    theta: Array, layout: Layout, sums: Array, counts: Array, scales: Array
) -> tuple[Array, Array, Array]:
    """Seconds of whole networks; then what they gain with the kernels' sum, and by ``theta``.

    ``sums`` are the kernels' seconds and ``counts`` how many steps there are; ``scales`` is
    networks x (gpu, cpu, memory). The second result is the derivative by ``sums``, the third that
    by the parameters of whole networks (networks x parameters).
    """
    slope = np.zeros((len(sums), len(theta)))
    host = host_factor(scales)
    c0 = layout.index("c0")
    start = np.exp(theta[c0]) * host
    gap = layout.value(theta, "gap")
    device = sums + start
    slope[:, c0] = start
    if gap is not None:
        device = device + counts * gap * 1e-6 * host
        slope[:, layout.index("gap")] = counts * 1e-6 * host
    device = np.maximum(device, 1e-6)
    enqueue = layout.value(theta, "enqueue")
    if enqueue is None:
        return device, np.ones(len(sums)), slope
    queued = np.maximum(counts * enqueue * host, _TINY)
    larger = np.maximum(device, queued)
    whole = larger * ((device / larger) ** _HOST_POWER + (queued / larger) ** _HOST_POWER) ** (
        1 / _HOST_POWER
    )
    by_device = (device / whole) ** (_HOST_POWER - 1)
    slope *= by_device[:, None]
    slope[:, layout.index("enqueue")] = (queued / whole) ** (_HOST_POWER - 1) * queued
    return whole, by_device, slope
