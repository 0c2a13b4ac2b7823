"""What the samples leave open: the formula's parameters and a learned residual, as one Gaussian.

Around the fitted parameters the logarithm of a network's time is linear in them, and what the
formula leaves is a sum over kernels: each kernel takes ``exp(d)`` times what the formula says,
where ``d`` is a smooth function of the kernel's shape, one for each kind and precision, of which
only the sum over a network, weighted by the kernels' shares of its time, was seen. Both are
Gaussian before measuring, so that everything after is linear algebra::

    K = J D J' + a^2 W R W',   R = exp(-|x - x'|^2 / 2) within a kind and precision
    d(x) = a^2 R(x, .) W' (a^2 W R W' + N)^-1 (measured - formula)

J is the formula's Jacobian and D its parameters' prior covariance, W the kernels' shares, x the
logarithms of a kernel's dimensions in units of three octaves, N the noise.

Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, eqs. 2.23 to
2.26, and section 2.7 on parametric means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latency_models import fitting, roofline
from latency_models.kernels import Work
from latency_models.parameters import Array

__all__ = ["AMPLITUDES", "Posterior", "held_out", "whitening"]

# How much a kernel may differ from the formula, as a standard deviation of log time; which of them
# is chosen by leaving groups of samples out. None is none.
AMPLITUDES = (0.0, 0.1, 0.2)
_OCTAVES = 3.0
_FOLDS = 10


class Posterior:
    """The samples, explained: by ``theta`` and by a residual of ``amplitude``."""

    def __init__(self, samples: fitting.Samples, theta: Array, amplitude: float) -> None:
        self.samples, self.theta, self.amplitude = samples, theta, amplitude
        predicted, self.jacobian = samples.jacobian(theta)
        residuals = samples.logs - predicted
        weights = fitting.robust_weights(residuals / samples.noise)
        self.noise = samples.noise**2 / weights
        self.prior = samples.layout.covariance()
        self.weights = samples.shares(theta) if amplitude else None
        self.places = _places(samples.kernels) if amplitude else None
        covariance = np.diag(self.noise)
        if amplitude:
            covariance = covariance + self.residual_covariance()
            self.learned = self.weights.T @ np.linalg.solve(covariance, residuals)
        total = covariance + self.jacobian @ self.prior @ self.jacobian.T
        self.inverse = np.linalg.inv(total)
        self.centred = residuals + self.jacobian @ (theta - samples.layout.start())

    def residual_covariance(self) -> Array:
        """The covariance of the samples' residuals that the kernels explain."""
        assert self.weights is not None
        own = _alike(self.samples, self.places, self.samples.features.group, self.places)
        return np.asarray(self.amplitude**2 * self.weights @ own @ self.weights.T)

    def residual(self, works: Sequence[Work], features: roofline.Features) -> Array:
        """The logarithm of what each kernel takes more than the formula says."""
        if not self.amplitude:
            return np.zeros(len(works))
        alike = _alike(self.samples, self.places, features.group, _places(works))
        return np.asarray(self.amplitude**2 * alike @ self.learned)

    def spread(
        self, row: Array, shares: Array, works: Sequence[Work], group: Array, noise: float
    ) -> float:
        """The standard deviation of a sample's log time, ``noise`` included.

        ``row`` is the formula's Jacobian there, ``shares`` the kernels' shares of its time.
        """
        across = self.jacobian @ self.prior @ row
        own = float(row @ self.prior @ row)
        if self.amplitude:
            places = _places(works)
            alike = _alike(self.samples, self.places, group, places)
            across = across + self.amplitude**2 * self.weights @ (shares @ alike)
            own += self.amplitude**2 * float(
                shares @ _similar(places, group, places, group) @ shares
            )
        left = own - float(across @ self.inverse @ across)
        return float(np.sqrt(max(left, 0.0) + noise**2))

    def foretell(self, others: fitting.Samples) -> tuple[Array, Array]:
        """Logarithms of the seconds of ``others``, of the same kernels, and their spreads."""
        predicted, jacobian = others.jacobian(self.theta)
        across = self.jacobian @ self.prior @ jacobian.T
        own = np.einsum("ij,jk,ik->i", jacobian, self.prior, jacobian)
        if self.amplitude:
            assert self.weights is not None
            shares = others.shares(self.theta)
            alike = _alike(self.samples, self.places, self.samples.features.group, self.places)
            predicted = predicted + self.amplitude**2 * shares @ (alike @ self.learned)
            seen = shares @ alike
            across = across + self.amplitude**2 * self.weights @ seen.T
            own = own + self.amplitude**2 * np.einsum("ij,ij->i", seen, shares)
        left = own - np.einsum("ij,ik,kj->j", across, self.inverse, across)
        return predicted, np.sqrt(np.maximum(left, 0.0) + others.noise**2)


def held_out(
    samples: fitting.Samples,
    theta: Array,
    groups: Sequence[str | None],
    amplitudes: Sequence[float],
) -> tuple[Array, Array]:
    """Log of measured over predicted of each sample, fitted without its group, and the spread.

    Both are amplitudes x samples. ``groups`` name each sample's; None is never left out (and stays
    0). Groups are left out in at most ten folds; the formula is fitted anew in each.
    """
    residuals = np.zeros((len(amplitudes), len(groups)))
    spreads = np.ones((len(amplitudes), len(groups)))
    names = sorted({group for group in groups if group is not None})
    order = np.random.default_rng(0).permutation(len(names))
    for fold in range(min(_FOLDS, len(names))):
        left = {names[index] for index in order[fold::_FOLDS]}
        out = np.array([group in left for group in groups])
        kept, rest = samples.only(np.flatnonzero(~out)), samples.only(np.flatnonzero(out))
        found = fitting.minimise(kept, theta)
        for place, amplitude in enumerate(amplitudes):
            predicted, spread = Posterior(kept, found, amplitude).foretell(rest)
            residuals[place, out], spreads[place, out] = rest.logs - predicted, spread
    return residuals, spreads


def whitening(posterior: Posterior) -> Array:
    """The matrix that makes the residuals of the formula independent, given the learned part."""
    covariance = posterior.residual_covariance() + np.diag(posterior.noise)
    return np.linalg.inv(np.linalg.cholesky(covariance))


def _places(works: Sequence[Work]) -> Array:
    """Where kernels stand among their like: logarithms of their dimensions."""
    dims = np.array([w.shape[:5] for w in works], dtype=np.float64).reshape(len(works), 5)
    return np.asarray(np.log2(np.maximum(dims, 1.0)) / _OCTAVES)


def _alike(samples: fitting.Samples, known: Array | None, group: Array, places: Array) -> Array:
    assert known is not None
    return _similar(places, group, known, samples.features.group)


def _similar(places: Array, group: Array, others: Array, other_group: Array) -> Array:
    """How alike kernels are (rows x columns): 1 the same, 0 of another kind or precision."""
    result = np.zeros((len(places), len(others)))
    for kind in np.unique(group):
        rows, columns = np.flatnonzero(group == kind), np.flatnonzero(other_group == kind)
        left, right = places[rows], others[columns]
        squares = (
            (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
        )
        result[np.ix_(rows, columns)] = np.exp(-0.5 * np.maximum(squares, 0.0))
    return result
