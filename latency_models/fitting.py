"""Least squares on log time: robust in the measurements, with the datasheet as a prior."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from latency_models import roofline
from latency_models.kernels import Work
from latency_models.parameters import Array, Indices
from latency_models.profiles import Scales

__all__ = ["KERNEL_NOISE", "NETWORK_NOISE", "Samples", "minimise", "robust_weights", "signature"]

# How far the formula is trusted to explain a kernel or a network, in log time: residuals beyond
# these count less and less (soft L1).
KERNEL_NOISE = 0.15
NETWORK_NOISE = 0.03
# The profiler's resolution: it writes whole microseconds.
_RESOLUTION_S = 1e-6
_MAX_STEPS = 60

_Key = tuple[Work, Scales]


class Samples:
    """Measured kernels, then measured networks, as the formula sees them.

    ``kernels`` are the different kernels of all of them and ``counts`` how often each stands in
    each sample (samples x kernels). Names do not make kernels different.
    """

    def __init__(
        self,
        layout: roofline.Layout,
        kernel_samples: Sequence[tuple[Work, float]],
        network_samples: Sequence[tuple[Sequence[Work], float, Scales]],
    ) -> None:
        self.layout = layout
        self.split = len(kernel_samples)
        works: list[tuple[tuple[Work, ...], Scales]] = [
            ((work,), Scales()) for work, _ in kernel_samples
        ]
        works += [(tuple(works), scales) for works, _, scales in network_samples]
        places: dict[tuple[object, ...], int] = {}
        kernels: list[_Key] = []
        entries: list[tuple[int, int]] = []
        for row, (members, scales) in enumerate(works):
            for work in members:
                key = (signature(work), scales)
                if key not in places:
                    places[key] = len(kernels)
                    kernels.append((work, scales))
                entries.append((row, places[key]))
        self.kernels = tuple(work for work, _ in kernels)
        self.features = roofline.features(
            self.kernels, layout, [scales for _, scales in kernels] if kernels else None
        )
        rows, columns = np.array(entries, dtype=np.intp).reshape(-1, 2).T
        shape = (len(works), len(kernels))
        self.counts = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
        self.steps = np.asarray(self.counts @ self.features.step)[self.split :]
        self.scales = np.array([s for _, s in works[self.split :]], float).reshape(-1, 3)
        seconds = [s for _, s in kernel_samples] + [s for _, s, _ in network_samples]
        self.seconds = np.array(seconds, float)
        self.noise = np.full(len(seconds), NETWORK_NOISE)
        self.noise[: self.split] = KERNEL_NOISE
        # The resolution damps what a microsecond of truncation does to the smallest kernels.
        self.logs = np.log(self.seconds + self._resolution)

    @property
    def _resolution(self) -> Array:
        return np.where(np.arange(len(self.seconds)) < self.split, _RESOLUTION_S, 0.0)

    def only(self, rows: Indices) -> Samples:
        """These samples alone (``rows`` ascending), of the same kernels."""
        part = copy.copy(self)
        part.split = int((rows < self.split).sum())
        networks = rows[part.split :] - self.split
        part.counts = self.counts[rows]
        part.steps, part.scales = self.steps[networks], self.scales[networks]
        part.seconds, part.noise, part.logs = self.seconds[rows], self.noise[rows], self.logs[rows]
        return part

    def predict(self, theta: Array) -> Array:
        """Logarithms of the seconds of each sample."""
        seconds = roofline.kernel_seconds(theta, self.features, self.layout)
        return np.log(self._whole(theta, self._sums(seconds))[0] + self._resolution)

    def jacobian(self, theta: Array) -> tuple[Array, Array]:
        """What ``predict`` gives, and its derivatives (samples x parameters)."""
        seconds, rows = roofline.kernel_jacobian(theta, self.features, self.layout)
        whole, by_sum, slope = self._whole(theta, self._sums(seconds))
        jacobian = (self.counts @ rows) * by_sum[:, None] + slope
        total = whole + self._resolution
        return np.log(total), np.asarray(jacobian / total[:, None])

    def shares(self, theta: Array) -> sparse.csr_matrix:
        """The kernels' shares of each sample's kernel time (samples x kernels)."""
        seconds = roofline.kernel_seconds(theta, self.features, self.layout)
        times = self.counts @ sparse.diags(seconds)
        return sparse.csr_matrix(sparse.diags(1 / self._sums(seconds)) @ times)

    def _sums(self, seconds: Array) -> Array:
        """Seconds that the kernels of each sample take together."""
        return np.asarray(self.counts @ seconds)

    def _whole(self, theta: Array, sums: Array) -> tuple[Array, Array, Array]:
        """Seconds of the samples: networks have more to them than their kernels."""
        whole, by_sum = sums.copy(), np.ones(len(sums))
        slope = np.zeros((len(sums), len(theta)))
        if len(sums) > self.split:
            whole[self.split :], by_sum[self.split :], slope[self.split :] = (
                roofline.network_seconds(
                    theta, self.layout, sums[self.split :], self.steps, self.scales
                )
            )
        return whole, by_sum, slope


def signature(work: Work) -> tuple[object, ...]:
    """What makes a kernel the same as another: everything but its name."""
    sizes = (work.macs, work.bytes_in, work.bytes_out, work.bytes_weights)
    return (work.kind, work.precision, *sizes, work.shape)


def robust_weights(residuals: Array) -> Array:
    """What a residual counts, in standard deviations: 1 where small (soft L1 loss)."""
    return np.asarray(1 / np.sqrt(1 + residuals**2))


def minimise(samples: Samples, theta: Array, *, tolerance: float = 1e-5) -> Array:
    """The parameters at the minimum.

    Each residual is divided by its noise, and large ones count less and less (soft L1). It ends
    where a step gains less than ``tolerance`` of what is minimised. Levenberg and Marquardt's
    method, by the normal equations: they are small, and calling LAPACK once a step keeps its
    threads from fighting over a busy host.
    """
    start = samples.layout.start()
    precision = np.linalg.inv(samples.layout.covariance())

    def cost(theta: Array) -> float:
        residuals = (samples.logs - samples.predict(theta)) / samples.noise
        loss = 2 * (np.sqrt(1 + residuals**2) - 1)
        return float(loss.sum() + (theta - start) @ precision @ (theta - start))

    damping, current = 1e-2, cost(theta)
    for _ in range(_MAX_STEPS):
        predicted, jacobian = samples.jacobian(theta)
        residuals = (samples.logs - predicted) / samples.noise
        rows = jacobian / samples.noise[:, None]
        weights = robust_weights(residuals)
        normal = rows.T @ (rows * weights[:, None]) + precision
        gradient = rows.T @ (weights * residuals) - precision @ (theta - start)
        lower = np.inf
        while damping < 1e8:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            trial = theta + np.clip(step, -1.0, 1.0)
            lower = cost(trial)
            if lower < current:
                break
            damping *= 5.0
        if not lower < current:
            break
        settled = current - lower < tolerance * current
        theta, current = trial, lower
        damping = max(damping / 5.0, 1e-9)
        if settled:
            break
    return theta
