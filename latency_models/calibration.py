"""Latency models: fitted to a board's measurements, from which whole networks are predicted.

``fit`` finds the parameters of the roofline (``roofline.py``) that explain measured kernels and
networks best, starting from the board's datasheet; a ``LatencyModel`` is the plain-data result.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from latency_models import fitting, roofline
from latency_models.errors import CalibrationError
from latency_models.kernels import KERNEL_KINDS, Work
from latency_models.profiles import BoardProfile, Fact, Scales

__all__ = ["LatencyModel", "NetworkSample", "Parameter", "fit"]

Array = npt.NDArray[np.float64]
KernelSample = tuple[Work, float]
NetworkSample = tuple[Sequence[Work], float]

# What models were fitted for before they named their runtime.
DEFAULT_RUNTIME = "onnxruntime-cpu"
# A prediction for a kind that was never measured is off by this factor as often as not.
_UNMEASURED_FACTOR = 2.0
# However good the fit looks, machines drift: no interval is narrower than this, in log time.
_FLOOR = 0.02


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
    stand at their prior. ``residuals_`` are the logarithms of measured over predicted time of
    whole networks, each predicted without itself. ``anchor_`` multiplies every prediction: what
    the networks given to ``refit`` took more than the formula says. ``runtime`` names the fusion
    rules by which the kernels were read. (No slots: what prediction needs is computed once and
    kept.)
    """

    profile: BoardProfile
    precisions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    measured_groups: tuple[tuple[str, str], ...]
    kernel_samples: tuple[KernelSample, ...]
    network_samples: tuple[tuple[tuple[Work, ...], float], ...]
    residuals_: tuple[float, ...]
    anchor_: float = 1.0
    anchors: int = 0
    runtime: str = DEFAULT_RUNTIME

    # -- prediction ------------------------------------------------------------------------------

    def predict(self, works: Sequence[Work]) -> float:
        """Seconds of one call of a network with these kernels."""
        kernels = self._seconds(works)
        return float(self.anchor_ * (self._c0 + (kernels + self._gap).sum()))

    def predict_kernels(self, works: Sequence[Work]) -> Array:
        """Seconds of each kernel, as the runtime's profiler would see it."""
        return np.asarray(self.anchor_ * self._seconds(works))

    def interval(self, works: Sequence[Work], coverage: float = 0.9) -> tuple[float, float]:
        """Seconds ``(low, high)`` between which a measurement lies with probability ``coverage``.

        Conformal: the half-width in log time is the ``ceil((n + 1) * coverage)``-th smallest of the
        n absolute held-out residuals of whole networks, which covers a network exchangeable with
        those n with at least that probability (Vovk et al., "Algorithmic Learning in a Random
        World", 2005). n residuals cannot vouch for more than ``n / (n + 1)``: beyond, the largest
        is stretched as a normal distribution's quantiles would be, an extrapolation and no
        guarantee. Time spent in kinds that were never measured widens the interval by what a
        factor of two in them would do.
        """
        centre = self.predict(works)
        width = max(self._quantile(coverage), _FLOOR)
        unknown = {group for group in self.unsupported(works)}
        if unknown:
            seconds = self._seconds(works)
            share = sum(
                s for w, s in zip(works, seconds, strict=True) if (w.kind, w.precision) in unknown
            ) / max(float(seconds.sum()), 1e-30)
            width = math.hypot(width, share * math.log(_UNMEASURED_FACTOR) * _normal(coverage))
        return centre * math.exp(-width), centre * math.exp(width)

    def unsupported(self, works: Iterable[Work]) -> tuple[tuple[str, str], ...]:
        """The (kind, precision) pairs among ``works`` that were never measured on this board.

        They are predicted from the datasheet, corrected by what the measured kinds turned out to
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
        ours = self.predict_kernels(works)
        theirs = dict(
            zip((w.name for w in baseline_works), self.predict_kernels(baseline_works), strict=True)
        )
        total = 0.0
        for item, seconds in zip(works, ours, strict=True):
            if item.name in theirs and item.name in baseline_kernel_times:
                total += baseline_kernel_times[item.name] * float(seconds) / theirs[item.name]
            else:
                total += float(seconds)
        return total + self.anchor_ * (self._c0 + len(ours) * self._gap)

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
                if measured == precision and kind in roofline.DENSE
            ]
            flops = self.profile.peak_flops.get(precision)
            if dense and flops is not None:
                peaks[precision] = flops.value * max(dense) / 2
        return peaks, values["bw_act"]

    def at(self, scales: Scales) -> LatencyModel:
        """The model at other clocks: ``scales`` are those over the clocks it was fitted at.

        Arithmetic runs with the GPU's clock, memory with its own, and every overhead with the
        CPU's, on which the runtime launches kernels.
        """
        if scales == Scales():
            return self
        peaks = {
            key: Fact(fact.value * scales.gpu, fact.source, fact.confirmed)
            for key, fact in self.profile.peak_flops.items()
        }
        factors = {"bw_act": scales.memory, "bw_far": scales.memory, "bw_w": scales.memory}
        factors |= {"c0": 1 / scales.cpu, "gap": 1 / scales.cpu, "t0": 1 / scales.cpu}
        parameters = tuple(
            dataclasses.replace(p, value=p.value * factors.get(p.name.partition("[")[0], 1.0))
            for p in self.parameters
        )
        profile = dataclasses.replace(self.profile, peak_flops=peaks)
        return dataclasses.replace(self, profile=profile, parameters=parameters)

    # -- recalibration ---------------------------------------------------------------------------

    def refit(
        self,
        *,
        kernel_samples: Sequence[KernelSample] = (),
        network_samples: Sequence[NetworkSample] = (),
    ) -> LatencyModel:
        """A model fitted to everything this one saw and the new samples.

        What the new networks (variants of one network, usually) still take more or less than the
        formula says becomes ``anchor_``, a factor on every prediction, shrunk towards 1: with n
        such networks, n / (n + 1) of the mean log residual.
        """
        fresh = tuple((tuple(works), seconds) for works, seconds in network_samples)
        count = self.anchors + len(fresh)
        everything = (*self.network_samples, *fresh)
        model = _fit(
            (*self.kernel_samples, *kernel_samples),
            everything,
            profile=self.profile,
            start=self._theta,
            runtime=self.runtime,
        )
        if not count:
            return model
        anchored = everything[len(everything) - count :]
        logs = [math.log(seconds / model.predict(works)) for works, seconds in anchored]
        anchor = math.exp(sum(logs) / (count + 1))
        return dataclasses.replace(model, anchor_=anchor, anchors=count)

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
        groups = [(kind, precision) for kind in KERNEL_KINDS for precision in self.precisions]
        return roofline.Layout.of(groups, self.profile)

    @functools.cached_property
    def _theta(self) -> Array:
        linear = [prior.linear for prior in self._layout.priors]
        values = [p.value for p in self.parameters]
        return np.array(
            [v if is_linear else math.log(v) for v, is_linear in zip(values, linear, strict=True)]
        )

    @functools.cached_property
    def _c0(self) -> float:
        return next(p.value for p in self.parameters if p.name == "c0")

    @functools.cached_property
    def _gap(self) -> float:
        return next(p.value for p in self.parameters if p.name == "gap") * 1e-6

    def _seconds(self, works: Sequence[Work]) -> Array:
        for item in works:
            if item.precision not in self.precisions or item.kind not in KERNEL_KINDS:
                raise CalibrationError(
                    f"kernel {item.name!r} is a {item.kind} in {item.precision}, which the model "
                    f"of {self.profile.name} has no parameters for: it knows "
                    f"{', '.join(self.precisions)}"
                )
        if not works:
            return np.zeros(0)
        arrays = roofline.features(works, self._layout)
        return roofline.kernel_seconds(self._theta, arrays, self._layout)

    def _quantile(self, coverage: float) -> float:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage {coverage} is not between 0 and 1")
        sizes = sorted(abs(r) for r in self.residuals_)
        if not sizes:
            # Nothing was held out: a factor of two, as for a kind that was never measured.
            return math.log(_UNMEASURED_FACTOR) * _normal(coverage)
        count = len(sizes)
        rank = math.ceil((count + 1) * coverage)
        if rank <= count:
            return sizes[rank - 1]
        return sizes[-1] * _normal(coverage) / _normal(count / (count + 1))


def _normal(coverage: float) -> float:
    """Half the width of a standard normal's central interval of ``coverage``."""
    return float(stats.norm.ppf((1 + coverage) / 2))


def fit(
    kernel_samples: Sequence[KernelSample],
    network_samples: Sequence[NetworkSample],
    *,
    profile: BoardProfile,
    runtime: str = DEFAULT_RUNTIME,
) -> LatencyModel:
    """The latency model that explains measured kernels and whole networks, in seconds.

    Least squares on log time with a soft L1 loss, so that a stray measurement costs little, and
    the datasheet as a prior, so that ten samples already help. ``CalibrationError`` if there are no
    samples or one is not positive.
    """
    networks = tuple((tuple(works), float(seconds)) for works, seconds in network_samples)
    return _fit(tuple(kernel_samples), networks, profile=profile, start=None, runtime=runtime)


def _fit(
    kernel_samples: tuple[KernelSample, ...],
    network_samples: tuple[tuple[tuple[Work, ...], float], ...],
    *,
    profile: BoardProfile,
    start: Array | None,
    runtime: str,
) -> LatencyModel:
    _check(kernel_samples, network_samples)
    seen = [w for w, _ in kernel_samples] + [w for works, _ in network_samples for w in works]
    groups = sorted({(w.kind, w.precision) for w in seen})
    problem = fitting.Problem(groups, kernel_samples, network_samples, profile)
    precisions = tuple(sorted({*profile.precisions, *(w.precision for w in seen)}))
    everything = roofline.Layout.of([(k, p) for k in KERNEL_KINDS for p in precisions], profile)
    begin = problem.layout.start()
    if start is not None and len(start) == len(everything.priors):
        places = {prior.name: i for i, prior in enumerate(everything.priors)}
        begin = np.array([start[places[prior.name]] for prior in problem.layout.priors])
    theta, jacobian = fitting.minimise(problem, begin)
    spread = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    return LatencyModel(
        profile=profile,
        precisions=precisions,
        parameters=_parameters(everything, problem.layout, theta, spread),
        measured_groups=tuple(groups),
        kernel_samples=kernel_samples,
        network_samples=network_samples,
        residuals_=problem.held_out(theta, jacobian),
        runtime=runtime,
    )


def _check(
    kernel_samples: Sequence[KernelSample], network_samples: Sequence[NetworkSample]
) -> None:
    if not kernel_samples and not network_samples:
        raise CalibrationError("nothing was measured: give kernel or network samples, or both")
    for item, seconds in kernel_samples:
        if not (math.isfinite(seconds) and seconds > 0):
            raise CalibrationError(f"kernel {item.name!r} took {seconds} s: measure it again")
    for index, (works, seconds) in enumerate(network_samples):
        if not works or not (math.isfinite(seconds) and seconds > 0):
            raise CalibrationError(
                f"network sample {index} has {len(works)} kernels and took {seconds} s: leave it "
                "out or measure it again"
            )


def _parameters(
    everything: roofline.Layout, fitted: roofline.Layout, theta: Array, spread: Array
) -> tuple[Parameter, ...]:
    """All parameters: those fitted, and the others at priors shifted as their like turned out."""
    places = {prior.name: index for index, prior in enumerate(fitted.priors)}
    start = fitted.start()

    def shift(quantity: str, kind: str, precision: str) -> float:
        dense = kind in roofline.DENSE
        moved = [
            theta[places[f"{quantity}[{k},{p}]"]] - start[places[f"{quantity}[{k},{p}]"]]
            for k, p in fitted.groups
            if (k in roofline.DENSE) == dense and k != "view"
        ]
        same = [
            theta[places[f"{quantity}[{k},{p}]"]] - start[places[f"{quantity}[{k},{p}]"]]
            for k, p in fitted.groups
            if (k in roofline.DENSE) == dense and k != "view" and p == precision
        ]
        chosen = same or moved
        return float(np.median(chosen)) if chosen else 0.0

    result = []
    for prior in everything.priors:
        if prior.name in places:
            index = places[prior.name]
            value = float(theta[index] if prior.linear else math.exp(theta[index]))
            uncertainty = float(spread[index])
        else:
            quantity, _, rest = prior.name.rstrip("]").partition("[")
            kind, _, precision = rest.partition(",")
            value, uncertainty = prior.value, prior.spread
            if quantity in ("eta", "t0"):
                value = prior.value * math.exp(shift(quantity, kind, precision))
        result.append(Parameter(prior.name, value, prior.unit, prior.value, uncertainty))
    return tuple(result)
