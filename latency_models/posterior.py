"""What the samples leave open: the formula's parameters and a learned residual, as one Gaussian.

Around the fitted parameters the logarithm of a network's time is linear in them, and what the
formula leaves is a sum over kernels: each kernel takes ``exp(d)`` times what the formula says,
where ``d`` is a smooth function of the kernel's shape, one for each kind and precision, of which
only the sum over a network, weighted by the kernels' shares of its time, was seen. Both are
Gaussian before measuring, so that everything after is linear algebra::

    K = J D J' + a^2 W R W',   R = exp(-|x - x'|^2 / 2) within a kind and precision
    d(x) = a^2 R(x, .) W' (a^2 W R W' + N)^-1 (measured - formula)

J is the formula's Jacobian and D its parameters' prior covariance, W the kernels' shares, x the
logarithms of a kernel's dimensions in octaves, N the noise.

Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, eqs. 2.23 to
2.26, and section 2.7 on parametric means.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from latency_models import fitting
from latency_models.kernels import Work, Works
from latency_models.parameters import Array, Indices

__all__ = ["AMPLITUDES", "Posterior", "held_out", "similarity"]

# How much a kernel may differ from the formula, as a standard deviation of log time; which of them
# is chosen by leaving groups of samples out. None is none.
AMPLITUDES = (0.0, 0.1, 0.2, 0.3)
_FOLDS = 10
# A fold starts at what all samples together say, and need not be exact.
_FOLD_TOLERANCE = 1e-3
# Kernels whose likeness to the samples' is worked out at once.
_ROWS = 4096


class Posterior:
    """The samples, explained: by ``theta`` and by a residual of ``amplitude``.

    ``alike`` is ``similarity`` of the samples.
    """

    def __init__(
        self, samples: fitting.Samples, theta: Array, amplitude: float, alike: Array
    ) -> None:
        self.samples, self.theta, self.amplitude = samples, theta, amplitude
        predicted, self.jacobian = samples.jacobian(theta)
        self.residuals = samples.logs - predicted
        noise = samples.noise**2 / fitting.robust_weights(self.residuals / samples.noise)
        self.covariance = amplitude**2 * alike + np.diag(noise)
        self.prior = samples.layout.covariance()
        self.inverse = np.linalg.inv(self.covariance + self.jacobian @ self.prior @ self.jacobian.T)

    @functools.cached_property
    def learned(self) -> Array:
        """What each of the samples' kernels adds to the residual of kernels like it."""
        alpha = np.linalg.solve(self.covariance, self.residuals)
        return np.asarray(self.shares.T @ alpha)

    @functools.cached_property
    def shares(self) -> sparse.csr_matrix:
        """The kernels' shares of the samples' times."""
        return self.samples.shares(self.theta)

    @functools.cached_property
    def places(self) -> Array:
        """Where the samples' kernels stand among their like."""
        return _places(self.samples.kernels)

    @functools.cached_property
    def gain(self) -> Array:
        """By how much the parameters move with each sample (parameters x samples)."""
        return np.asarray(self.prior @ self.jacobian.T @ self.inverse)

    @functools.cached_property
    def left(self) -> Array:
        """What is left of the parameters' prior covariance."""
        return np.asarray(self.prior - self.gain @ self.jacobian @ self.prior)

    def residual(self, works: Sequence[Work] | Works, group: Indices) -> Array:
        """The logarithm of what each kernel takes more than the formula says."""
        result = np.zeros(len(works))
        if not self.amplitude:
            return result
        places, theirs = _places(works), self.samples.features.group
        # Kind by kind, a part at a time: the matrix of likenesses of many kernels is large.
        for kind in np.unique(group):
            columns = np.flatnonzero(theirs == kind)
            members = np.flatnonzero(group == kind)
            for start in range(0, len(members), _ROWS):
                rows = members[start : start + _ROWS]
                alike = _alike(places[rows], self.places[columns])
                result[rows] = self.amplitude**2 * alike @ self.learned[columns]
        return result

    def spread(
        self, row: Array, shares: Array, works: Sequence[Work], group: Indices, noise: float
    ) -> float:
        """The standard deviation of a sample's log time, ``noise`` included.

        ``row`` is the formula's Jacobian there, ``shares`` the kernels' shares of its time.
        """
        # Few parameters matter to one network; small products keep BLAS from waking its threads.
        own = np.flatnonzero(row)
        variance = float(row[own] @ self.left[np.ix_(own, own)] @ row[own])
        if self.amplitude:
            here = _places(works)
            alike = _similar(here, group, self.places, self.samples.features.group)
            seen = self.amplitude**2 * (self.shares @ (shares @ alike))
            variance -= 2.0 * float((row[own] @ self.gain[own]) @ seen)
            variance -= float(np.einsum("i,ij,j", seen, self.inverse, seen))
            alone = shares @ _similar(here, group, here, group) @ shares
            variance += self.amplitude**2 * float(alone)
        return float(np.sqrt(max(variance, 0.0) + noise**2))


def similarity(samples: fitting.Samples, theta: Array) -> Array:
    """How alike the samples are: 1 the same kernels in the same shares, 0 no kind in common."""
    shares, places = samples.shares(theta).tocsc(), _places(samples.kernels)
    result = np.zeros((len(samples.seconds), len(samples.seconds)))
    group = samples.features.group
    for kind in np.unique(group):
        members = np.flatnonzero(group == kind)
        part = shares[:, members].toarray()
        own = _similar(places[members], group[members], places[members], group[members])
        result += part @ own @ part.T
    return result


def held_out(
    samples: fitting.Samples,
    theta: Array,
    groups: Sequence[str | None],
    amplitudes: Sequence[float],
    alike: Array,
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
        found = fitting.minimise(kept, theta, tolerance=_FOLD_TOLERANCE)
        predicted, jacobian = rest.jacobian(found)
        for place, amplitude in enumerate(amplitudes):
            known = Posterior(kept, found, amplitude, alike[np.ix_(~out, ~out)])
            learned = amplitude**2 * alike[np.ix_(out, ~out)]
            across = jacobian @ known.prior @ known.jacobian.T + learned
            own = np.einsum("ij,jk,ik->i", jacobian, known.prior, jacobian)
            own += amplitude**2 * np.diag(alike)[out]
            variance = own - np.einsum("ij,jk,ik->i", across, known.inverse, across)
            seen = np.linalg.solve(known.covariance, known.residuals)
            residuals[place, out] = rest.logs - predicted - learned @ seen
            spreads[place, out] = np.sqrt(np.maximum(variance, 0.0) + rest.noise**2)
    return residuals, spreads


def _places(works: Sequence[Work] | Works) -> Array:
    """Where kernels stand among their like: logarithms of their dimensions."""
    arrays = works if isinstance(works, Works) else Works.of(works)
    return np.asarray(np.log2(np.maximum(arrays.dims[:, :5], 1.0)))


def _similar(places: Array, group: Indices, others: Array, other_group: Indices) -> Array:
    """How alike kernels are (rows x columns): 1 the same, 0 of another kind or precision."""
    result = np.zeros((len(places), len(others)))
    for kind in np.unique(group):
        rows, columns = np.flatnonzero(group == kind), np.flatnonzero(other_group == kind)
        result[np.ix_(rows, columns)] = _alike(places[rows], others[columns])
    return result


def _alike(left: Array, right: Array) -> Array:
    """How alike kernels of one kind and precision are (rows x columns)."""
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    return np.asarray(np.exp(-0.5 * np.maximum(squares, 0.0)))
