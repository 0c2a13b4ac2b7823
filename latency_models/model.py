"""Latency models: what a board was found to do, as plain data, and what follows from it.

``calibration.fit`` makes them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from latency_models import fitting, posterior, roofline
from latency_models.errors import CalibrationError
from latency_models.kernels import KERNEL_KINDS, Work, Works
from latency_models.parameters import DENSE, LIGHT_STEP, Array, Indices
from latency_models.profiles import REFERENCE, BoardProfile, Scales

__all__ = [
    "DEFAULT_RUNTIME",
    "HeldOut",
    "KernelSample",
    "LatencyModel",
    "NetworkSample",
    "Parameter",
    "layout_of",
    "samples_of",
]

KernelSample = tuple[Work, float]

# What models were fitted for before they named their runtime.
DEFAULT_RUNTIME = "onnxruntime-cpu"
# A prediction for a kind that was never measured is off by this factor as often as not.
_UNMEASURED_FACTOR = 2.0
# However good the fit looks, machines drift: no interval is narrower than this, in log time.
_FLOOR = 0.02
# At other clocks a time lies anywhere between following the one that changed most and least: the
# standard deviation of a uniform distribution, of its width.
_CLOCK_DOUBT = 1 / math.sqrt(12)


class NetworkSample(NamedTuple):
    """A network's kernels and the seconds of a call.

    ``group`` names what it has in common with others (a family). ``scales`` are the clocks that it
    ran at.
    """

    works: Sequence[Work]
    seconds: float
    group: str = ""
    scales: Scales = REFERENCE


class HeldOut(NamedTuple):
    """A network predicted without itself: log of measured over predicted time.

    ``spread`` is the standard deviation that the model claimed for it.
    """

    residual: float
    spread: float


@dataclass(frozen=True, slots=True)
class Parameter:
    """One fitted number: ``uncertainty`` is one standard deviation of its logarithm.

    Of the number itself where the unit is ``us``. ``prior`` is where the fit started from.
    """

    name: str
    value: float
    unit: str
    prior: float
    uncertainty: float


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """What one board was found to do, as plain data; made by ``fit``.

    ``parameters`` are in the order of ``roofline.Layout`` for all kinds and ``precisions``;
    ``measured_groups`` are the (kind, precision) pairs that measurements speak of, the others
    follow those like them. ``residual_`` is the amplitude of the learned residual, in log time; 0
    where it did not pay. ``held_out_`` are the networks (the kernels, where there are none), each
    predicted without itself and its twins, or without its whole group if the model is for networks
    ``unlike`` all that was measured. ``anchor_`` multiplies every prediction: what the networks
    given to ``refit`` took more than the formula says. ``runtime`` names the fusion rules by which
    the kernels were read, ``scales`` the clocks to predict for, ``light_step`` what a kernel that
    multiplies no matrices counts among a CPU's steps. (No slots: what prediction needs
    is computed once and kept.)
    """

    profile: BoardProfile
    precisions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    measured_groups: tuple[tuple[str, str], ...]
    kernel_samples: tuple[KernelSample, ...]
    network_samples: tuple[NetworkSample, ...]
    held_out_: tuple[HeldOut, ...]
    residual_: float = 0.0
    unlike: bool = False
    anchor_: float = 1.0
    anchors: int = 0
    runtime: str = DEFAULT_RUNTIME
    scales: Scales = REFERENCE
    light_step: float = LIGHT_STEP

    # -- prediction ------------------------------------------------------------------------------

    def predict(self, works: Sequence[Work]) -> float:
        """Seconds of one call of a network with these kernels."""
        return float(self._whole(works, self.predict_kernels(works)))

    def predict_kernels(self, works: Sequence[Work] | Works) -> Array:
        """Seconds of each kernel, as the runtime's profiler would see it."""
        analytical, residual = self.parts(works)
        return np.asarray(analytical * residual)

    def parts(self, works: Sequence[Work] | Works) -> tuple[Array, Array]:
        """Seconds of each kernel by the formula, and the factor that the learned residual adds."""
        if not len(works):
            return np.zeros(0), np.ones(0)
        arrays = self._features(works)
        seconds = self.anchor_ * roofline.kernel_seconds(self.theta, arrays, self._layout)
        if not self.residual_:
            return seconds, np.ones(len(seconds))
        return seconds, np.exp(self._posterior.residual(works, arrays.group))

    def network(self, kernels_s: float, steps: float) -> float:
        """Seconds of a call of a network whose kernels take ``kernels_s`` in so many steps.

        ``predict`` is this at the sum of ``predict_kernels`` and the count of the works that are
        steps (``step``). It is convex, and grows with both at the same gap between kernels.
        """
        return self.anchor_ * self._whole_of(kernels_s / self.anchor_, steps)[0]

    def tangent(self, kernels_s: float, steps: float) -> tuple[float, float, float]:
        """``(a, b, c)`` such that ``a * kernels_s + b * steps + c`` touches ``network`` here.

        Nowhere does it exceed ``network``, which is linear where no host queues kernels: then the
        two are equal everywhere. Source: ``roofline.network_seconds``, whose larger-of-two is a
        norm, and a norm is at least its derivative in any direction.
        """
        _, by_sum, slope = self._whole_of(kernels_s / self.anchor_, steps)
        layout = self._layout
        start = slope[layout.index("c0")]
        queue = sum(slope[p] for p, prior in enumerate(layout.priors) if prior.name == "enqueue")
        gap = layout.value(self.theta, "gap")
        by_steps = 0.0
        if gap is not None:
            by_steps += gap * slope[layout.index("gap")] / max(steps, 1e-30)
        if queue:
            by_steps += queue / max(steps, 1e-30)
        return by_sum, self.anchor_ * by_steps, self.anchor_ * start

    @property
    def linear(self) -> bool:
        """Whether no host queues kernels: ``network`` is linear in its two arguments."""
        return self._layout.value(self.theta, "enqueue") is None

    def step(self, kind: str) -> float:
        """What such a kernel counts among the steps of a network."""
        return roofline.step(kind, self._layout)

    def interval(self, works: Sequence[Work], coverage: float = 0.9) -> tuple[float, float]:
        """Seconds ``(low, high)`` between which a measurement lies with probability ``coverage``.

        Conformal: the half-width in log time is the standard deviation that the model claims for
        this network, times the ``ceil((n + 1) * coverage)``-th smallest of the n held-out
        residuals over theirs, which covers a network exchangeable with those n with at least that
        probability (Vovk et al., "Algorithmic Learning in a Random World", 2005; normalised scores
        after Papadopoulos et al., 2008). n residuals cannot vouch for more than ``n / (n + 1)``:
        beyond, the largest is stretched as a normal distribution's quantiles would be, an
        extrapolation and no guarantee. Time spent in kinds that were never measured widens the
        interval by what a factor of two in them would do, and other clocks by how little is known
        of which clock each part of the time follows.
        """
        centre = self.predict(works)
        width = max(self._quantile(coverage) * self.spread(works), _FLOOR)
        clocks = np.log(self.scales)
        doubt = _CLOCK_DOUBT * float(clocks.max() - clocks.min())
        width = math.hypot(width, doubt * _normal(coverage))
        unknown = set(self.unsupported(works))
        # A model that rests on nothing measured claims that of its parameters already.
        if unknown and self.measured_groups:
            seconds = self.predict_kernels(works)
            share = sum(
                s for w, s in zip(works, seconds, strict=True) if (w.kind, w.precision) in unknown
            ) / max(float(seconds.sum()), 1e-30)
            width = math.hypot(width, share * math.log(_UNMEASURED_FACTOR) * _normal(coverage))
        return centre * math.exp(-width), centre * math.exp(width)

    def spread(self, works: Sequence[Work]) -> float:
        """The standard deviation that the model claims for a network's log time.

        What the samples leave open in the parameters and in the residual, at these kernels.
        """
        if not works:
            return fitting.NETWORK_NOISE
        row, shares, group = self._slopes(works)
        return self._posterior.spread(row, shares, works, group, fitting.NETWORK_NOISE)

    def ratio_interval(
        self, works: Sequence[Work], baseline_works: Sequence[Work], coverage: float = 0.9
    ) -> tuple[float, float]:
        """The ratio of two networks' times ``(low, high)``, with probability ``coverage``.

        What the model gets wrong in both cancels: the claimed standard deviation is that of the
        difference of their log times, in which parameters and residuals are those of one board,
        and equal kernels have no noise of their own. It is scaled as ``interval`` scales one
        network's. Networks of the same kernels have the ratio 1, exactly.
        Source: Rasmussen and Williams, 2006, eqs. 2.23 to 2.26: the posterior is Gaussian, so a
        difference of two of its values has the variance of the difference of their rows.
        """
        centre = self.predict(works) / self.predict(baseline_works)
        apart = self._apart(works, baseline_works)
        if not apart:
            return centre, centre
        row, shares, group = self._slopes(works)
        base_row, base_shares, base_group = self._slopes(baseline_works)
        spread = self._posterior.spread(
            row - base_row,
            np.concatenate([shares, -base_shares]),
            [*works, *baseline_works],
            np.concatenate([group, base_group]),
            fitting.NETWORK_NOISE * math.sqrt(2 * apart),
        )
        width = max(self._quantile(coverage) * spread, _FLOOR * apart)
        clocks = np.log(self.scales)
        doubt = _CLOCK_DOUBT * float(clocks.max() - clocks.min()) * apart
        unknown = self.unsupported([*works, *baseline_works]) if self.measured_groups else ()
        labels = [(w.kind, w.precision) for w in (*works, *baseline_works)]
        signed = np.concatenate([shares, -base_shares])
        # Each kind that was never measured is off by its own factor, and cancels with itself.
        open_ = [
            sum(s for s, label in zip(signed, labels, strict=True) if label == kind)
            for kind in unknown
        ]
        factor = math.log(_UNMEASURED_FACTOR) * math.hypot(*open_)
        width = math.hypot(width, doubt * _normal(coverage), factor * _normal(coverage))
        return centre * math.exp(-width), centre * math.exp(width)

    def _slopes(self, works: Sequence[Work]) -> tuple[Array, Array, Indices]:
        """A log time's Jacobian, and the shares and groups of the kernels that it is made of."""
        arrays = self._features(works)
        seconds, rows = roofline.kernel_jacobian(self.theta, arrays, self._layout)
        total = float(seconds.sum())
        whole, by_sum, slope = self._network(total, works)
        return (by_sum * rows.sum(axis=0) + slope) / whole, seconds / total, arrays.group

    def _apart(self, works: Sequence[Work], others: Sequence[Work]) -> float:
        """The share of the slower network's kernels that the other has not; 0 where all are."""
        times: list[dict[tuple[object, ...], float]] = []
        for own in (works, others):
            times.append({})
            for work, seconds in zip(own, self.predict_kernels(own), strict=True):
                key = fitting.signature(work)
                times[-1][key] = times[-1].get(key, 0.0) + float(seconds)
        mine, theirs = times
        if mine == theirs:
            return 0.0
        common = sum(min(mine[key], theirs[key]) for key in mine.keys() & theirs.keys())
        return 1 - common / max(sum(mine.values()), sum(theirs.values()))

    def kernel_interval(self, work: Work, coverage: float = 0.9) -> tuple[float, float]:
        """Seconds ``(low, high)`` of one kernel, as ``interval`` gives them of a network.

        Held out are kernels where the model was fitted to no networks; otherwise this is what the
        networks' residuals vouch for.
        """
        arrays = self._features([work])
        seconds, rows = roofline.kernel_jacobian(self.theta, arrays, self._layout)
        row, one = rows[0] / seconds[0], np.ones(1)
        spread = self._posterior.spread(row, one, [work], arrays.group, fitting.KERNEL_NOISE)
        centre = float(self.predict_kernels([work])[0])
        width = max(self._quantile(coverage) * spread, _FLOOR)
        return centre * math.exp(-width), centre * math.exp(width)

    def unsupported(self, works: Iterable[Work]) -> tuple[tuple[str, str], ...]:
        """The (kind, precision) pairs among ``works`` that were never measured on this board.

        They are predicted from the datasheet, corrected by what the kinds like them turned out to
        be: better than nothing, and to be said beside the prediction.
        """
        measured = set(self.measured_groups)
        return tuple(sorted({(w.kind, w.precision) for w in works} - measured))

    def predict_anchored(
        self,
        works: Sequence[Work],
        baseline_works: Sequence[Work],
        baseline_kernel_times: Mapping[str, float],
    ) -> float:
        """Seconds of a variant of a network whose kernels were profiled on the board.

        Each kernel takes its measured time (by name) times the model's ratio between variant and
        baseline; kernels that the baseline has not, or that were not measured, take the model's.
        """
        theirs = dict(
            zip((w.name for w in baseline_works), self.predict_kernels(baseline_works), strict=True)
        )
        times = [
            baseline_kernel_times[item.name] * float(seconds) / theirs[item.name]
            if item.name in theirs and item.name in baseline_kernel_times
            else float(seconds)
            for item, seconds in zip(works, self.predict_kernels(works), strict=True)
        ]
        return float(self._whole(works, np.array(times)))

    def predict_relative(
        self, works: Sequence[Work], baseline_works: Sequence[Work], baseline_s: float
    ) -> float:
        """Seconds of a variant of a network that was measured as a whole: ``baseline_s``.

        The measured time times the model's ratio: what the model gets wrong in both cancels.
        """
        return baseline_s * self.predict(works) / self.predict(baseline_works)

    def roofs(self) -> tuple[dict[str, float], float]:
        """The flat and the slanted roof: macs/s by precision, and bytes/s.

        The flat roof is what the most efficient measured kind of dense product reaches.
        """
        values = {p.name: p.value for p in self.parameters}
        peaks = {}
        for precision in self.precisions:
            dense = [
                values[f"eta[{kind},{precision}]"]
                for kind, measured in self.measured_groups
                if measured == precision and kind in DENSE
            ]
            flops = self.profile.peak_flops.get(precision)
            if dense and flops is not None:
                peaks[precision] = flops.value * max(dense) / 2
        return peaks, values.get("bw_act", values.get("bw", 0.0))

    def at(self, scales: Scales) -> LatencyModel:
        """The model at other clocks: ``scales`` are those over the clocks it is at.

        Arithmetic runs with its own clock, memory with its own, and overheads half with the CPU's,
        on which the runtime launches kernels, and half with the memory's.
        """
        if scales == REFERENCE:
            return self
        product = Scales(*(a * b for a, b in zip(self.scales, scales, strict=True)))
        return dataclasses.replace(self, scales=product)

    # -- files -----------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The model as JSON text (``serialisation.py`` documents the format)."""
        from latency_models import serialisation

        return serialisation.dump(self)

    @staticmethod
    def from_json(text: str) -> LatencyModel:
        """The model in JSON ``text``; ``FormatError`` if it is none."""
        from latency_models import serialisation

        return serialisation.load(text)

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of ``to_json``, under which predictions are filed."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    # -- kept ------------------------------------------------------------------------------------

    @functools.cached_property
    def _layout(self) -> roofline.Layout:
        return layout_of(self.precisions, self.profile, light_step=self.light_step)

    @functools.cached_property
    def theta(self) -> Array:
        """The parameters as the formula takes them, in the layout's order."""
        known = {p.name: p.value for p in self.parameters}
        return np.array(
            [
                known.get(p.name, p.value) if p.linear else math.log(known.get(p.name, p.value))
                for p in self._layout.priors
            ]
        )

    @functools.cached_property
    def _posterior(self) -> posterior.Posterior:
        samples = samples_of(self._layout, self.kernel_samples, self.network_samples)
        alike = posterior.similarity(samples, self.theta)
        return posterior.Posterior(samples, self.theta, self.residual_, alike)

    def _features(self, works: Sequence[Work] | Works) -> roofline.Features:
        arrays = works if isinstance(works, Works) else Works.of(works)
        for kind, precision in arrays.labels:
            if precision not in self.precisions or kind not in KERNEL_KINDS:
                raise CalibrationError(
                    f"{self._example(works, kind, precision)} is a {kind} in {precision}, which "
                    f"the model of {self.profile.name} has no parameters for: it knows "
                    f"{', '.join(self.precisions)}"
                )
        return roofline.features(arrays, self._layout, self.scales)

    @staticmethod
    def _example(works: Sequence[Work] | Works, kind: str, precision: str) -> str:
        names = () if isinstance(works, Works) else works
        alike = (w.name for w in names if (w.kind, w.precision) == (kind, precision))
        name = next(alike, None)
        return "a kernel" if name is None else f"kernel {name!r}"

    def _quantile(self, coverage: float) -> float:
        """How many claimed standard deviations hold ``coverage`` of what was held out."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage {coverage} is not between 0 and 1")
        sizes = sorted(abs(residual) / spread for residual, spread in self.held_out_)
        if not sizes and not (self.kernel_samples or self.network_samples):
            return _normal(coverage)  # the priors' own uncertainty is all there is to claim
        if not sizes:
            # Nothing was held out: a factor of two, as for a kind that was never measured.
            return math.log(_UNMEASURED_FACTOR) / fitting.NETWORK_NOISE * _normal(coverage)
        count = len(sizes)
        rank = math.ceil((count + 1) * coverage)
        if rank <= count:
            return sizes[rank - 1]
        return sizes[-1] * _normal(coverage) / _normal(count / (count + 1))

    def _network(self, total: float, works: Sequence[Work]) -> tuple[float, float, Array]:
        """Seconds of a network whose kernels take ``total``, and what they gain with it."""
        return self._whole_of(total, sum(self.step(work.kind) for work in works))

    def _whole_of(self, total: float, steps: float) -> tuple[float, float, Array]:
        whole, by_sum, slope = roofline.network_seconds(
            self.theta,
            self._layout,
            np.array([total]),
            np.array([float(steps)]),
            np.array([self.scales], float),
        )
        return float(whole[0]), float(by_sum[0]), slope[0]

    def _whole(self, works: Sequence[Work], kernels: Array) -> float:
        """Seconds of a network, from those of its kernels, which hold the anchor already."""
        return self.anchor_ * self._network(float(kernels.sum()) / self.anchor_, works)[0]


def _normal(coverage: float) -> float:
    """Half the width of a standard normal's central interval of ``coverage``."""
    return float(stats.norm.ppf((1 + coverage) / 2))


def layout_of(
    precisions: Sequence[str], profile: BoardProfile, *, light_step: float = LIGHT_STEP
) -> roofline.Layout:
    """The layout of all kinds, measured or not."""
    groups = [(kind, p) for kind in KERNEL_KINDS for p in precisions]
    return roofline.Layout.of(groups, profile, light_step=light_step)


def samples_of(
    layout: roofline.Layout,
    kernel_samples: Sequence[KernelSample],
    network_samples: Sequence[NetworkSample],
) -> fitting.Samples:
    """The measurements as the formula sees them."""
    networks = [(s.works, s.seconds, s.scales) for s in network_samples]
    return fitting.Samples(layout, kernel_samples, networks)
