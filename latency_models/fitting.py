"""Least squares on log time: robust in the measurements, with the datasheet as a prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latency_models import roofline
from latency_models.kernels import Work
from latency_models.profiles import BoardProfile

__all__ = ["Problem", "minimise"]

Array = npt.NDArray[np.float64]

# How far the formula is trusted to explain a kernel or a network, in log time: residuals beyond
# these count less and less (soft L1).
_KERNEL_SCALE = 0.15
_NETWORK_SCALE = 0.03
# The profiler's resolution: it writes whole microseconds.
_RESOLUTION_S = 1e-6
_MAX_STEPS = 100


class Problem:
    """The residuals that ``least_squares`` minimises: kernels, networks, priors."""

    def __init__(
        self,
        groups: Sequence[tuple[str, str]],
        kernel_samples: Sequence[tuple[Work, float]],
        network_samples: Sequence[tuple[Sequence[Work], float]],
        profile: BoardProfile,
    ) -> None:
        self.layout = roofline.Layout.of(groups, profile)
        self.start, self.spreads = self.layout.start(), self.layout.spreads()
        self.c0, self.gap = self.layout.index("c0"), self.layout.index("gap")
        self.kernels = np.array([seconds for _, seconds in kernel_samples])
        self.networks = np.array([seconds for _, seconds in network_samples])
        works = [w for w, _ in kernel_samples]
        self.sizes = np.array([len(ws) for ws, _ in network_samples], dtype=np.intp)
        works += [w for ws, _ in network_samples for w in ws]
        self.owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.features = roofline.features(works, self.layout)

    def predict(self, theta: Array) -> tuple[Array, Array]:
        """Seconds of the sampled kernels, and of the sampled networks."""
        seconds = roofline.kernel_seconds(theta, self.features, self.layout)
        split = len(self.kernels)
        sums = np.bincount(self.owner, weights=seconds[split:], minlength=len(self.sizes))
        whole = sums + self.sizes * theta[self.gap] * 1e-6 + np.exp(theta[self.c0])
        return seconds[:split], np.maximum(whole, _RESOLUTION_S)

    def residuals(self, theta: Array) -> Array:
        """What is squared and summed: kernels, networks, and the distance from the prior."""
        kernels, networks = self.predict(theta)
        # The resolution damps what a microsecond of truncation does to the smallest kernels.
        own = np.log((kernels + _RESOLUTION_S) / (self.kernels + _RESOLUTION_S)) / _KERNEL_SCALE
        whole = np.log(networks / self.networks) / _NETWORK_SCALE
        prior = (theta - self.start) / self.spreads
        return np.concatenate([_soften(own), _soften(whole), prior])

    def jacobian(self, theta: Array) -> Array:
        """The derivatives of ``residuals``."""
        seconds, rows = roofline.kernel_jacobian(theta, self.features, self.layout)
        split = len(self.kernels)
        kernels, networks = self.predict(theta)
        own = rows[:split] / (seconds[:split, None] + _RESOLUTION_S) / _KERNEL_SCALE
        sums = np.zeros((len(self.sizes), len(theta)))
        np.add.at(sums, self.owner, rows[split:])
        sums[:, self.gap] += self.sizes * 1e-6
        sums[:, self.c0] += np.exp(theta[self.c0])
        whole = sums / networks[:, None] / _NETWORK_SCALE
        raw_own = np.log((kernels + _RESOLUTION_S) / (self.kernels + _RESOLUTION_S))
        raw_whole = np.log(networks / self.networks)
        slopes = _soft_slope(np.concatenate([raw_own / _KERNEL_SCALE, raw_whole / _NETWORK_SCALE]))
        data = np.concatenate([own, whole]) * slopes[:, None]
        return np.concatenate([data, np.diag(1 / self.spreads)])

    def held_out(self, theta: Array, jacobian: Array) -> tuple[float, ...]:
        """Log residuals of the networks, each as if it had not been fitted to.

        From the leverages: r / (1 - h), exact for a linear model (Allen's PRESS, 1974).
        """
        if not len(self.networks):
            return ()
        inverse = np.linalg.inv(jacobian.T @ jacobian)
        rows = jacobian[len(self.kernels) : len(self.kernels) + len(self.networks)]
        leverage = np.minimum(np.einsum("ij,jk,ik->i", rows, inverse, rows), 0.95)
        logs = np.log(self.networks / self.predict(theta)[1])
        return tuple(float(r) for r in logs / (1 - leverage))


def _soften(residuals: Array) -> Array:
    """Residuals whose squares are the soft L1 loss ``2 * (sqrt(1 + r^2) - 1)``."""
    return np.asarray(np.sign(residuals) * np.sqrt(2 * (np.sqrt(1 + residuals**2) - 1)))


def _soft_slope(residuals: Array) -> Array:
    """The derivative of ``_soften``."""
    softened = np.maximum(np.abs(_soften(residuals)), 1e-12)
    slope = np.abs(residuals) / (np.sqrt(1 + residuals**2) * softened)
    return np.where(np.abs(residuals) < 1e-6, 1.0, slope)


def minimise(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """The parameters at the minimum, and the Jacobian there.

    Levenberg and Marquardt's method, by the normal equations: they are small, and calling LAPACK
    once a step keeps its threads from fighting over a busy host.
    """
    damping = 1e-2
    residuals = problem.residuals(theta)
    cost = float(residuals @ residuals)
    jacobian = problem.jacobian(theta)
    for _ in range(_MAX_STEPS):
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residuals
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
        trial = theta - np.clip(step, -1.0, 1.0)
        after = problem.residuals(trial)
        lower = float(after @ after)
        if not lower < cost:
            damping *= 5.0
            if damping > 1e8:
                break
            continue
        settled = cost - lower < 1e-7 * cost
        theta, residuals, cost = trial, after, lower
        jacobian = problem.jacobian(theta)
        damping = max(damping / 5.0, 1e-9)
        if settled:
            break
    return theta, jacobian
