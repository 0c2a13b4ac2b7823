"""Which measurements tell most of a latency model: D-optimal design, greedily.

A measurement of kernels with log times ``x_i . theta + noise`` adds ``X^T X`` to the information
on ``theta`` (in units of the noise and of the prior's spread, so that nothing measured is the
identity). The design maximises ``log det(I + sum of X^T X)``: it makes the volume of what is still
thinkable smallest (Fedorov, "Theory of Optimal Experiments", 1972).

The parameters are those of the roofline, linearised (Bayesian D-optimality; Chaloner and
Verdinelli, Statistical Science 10(3), 1995), and one more for each neighbourhood: kernels of one
kind and about the same size and intensity share an error that the formula does not explain. Without
those a design would crowd at the extremes, as if the formula were true (Box and Draper, JASA 54,
1959).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence, Set

import numpy as np
import numpy.typing as npt

from latency_models import roofline
from latency_models.calibration import LatencyModel
from latency_models.kernels import Work
from latency_models.profiles import BoardProfile

__all__ = [
    "MISFIT",
    "greedy",
    "information",
    "log_det",
    "misfits",
    "neighbourhood",
    "predicted_seconds",
]

Array = npt.NDArray[np.float64]
Misfit = Callable[[Work], float]

# One measured kernel against another of the same, in log time: what a shared machine leaves.
_NOISE = 0.1
# Where nothing is known, the formula is off by about this, in log time: rather too much than too
# little, so that the choice spreads over neighbourhoods.
MISFIT = 0.3
# The profiler's resolution: it writes whole microseconds.
_RESOLUTION_S = 1e-6
# A neighbourhood spans a factor of 2.6 in size and in intensity.
_SPAN = 1.4
# As many residuals of its neighbours as weigh as much as what is thought without them.
_PRIOR_COUNT = 2.0
# Added to the gain of what must come first: beyond any gain for a price.
_FIRST = 1e9


def information(
    groups: Sequence[Sequence[Work]],
    profile: BoardProfile,
    *,
    model: LatencyModel | None = None,
    misfit: Misfit = lambda _: MISFIT,
) -> tuple[Array, ...]:
    """What measuring each of ``groups`` of kernels tells: kernels x parameters, whitened.

    The formula is linearised at the parameters of ``model``, or at the prior of ``profile``.
    ``misfit`` is how far the formula is thought to be off for a kernel, in log time.
    """
    works, layout, theta = _near(groups, profile, model)
    seconds, jacobian = roofline.kernel_jacobian(theta, roofline.features(works, layout), layout)
    slopes = jacobian * layout.spreads() / (seconds[:, None] + _RESOLUTION_S)
    cells = {cell: i for i, cell in enumerate(dict.fromkeys(map(neighbourhood, works)))}
    shared = np.zeros((len(works), len(cells)))
    shared[np.arange(len(works)), [cells[neighbourhood(w)] for w in works]] = [
        misfit(w) for w in works
    ]
    rows = np.concatenate([slopes, shared], axis=1) / _NOISE
    return tuple(_parts(rows, groups))


def predicted_seconds(
    groups: Sequence[Sequence[Work]], profile: BoardProfile, *, model: LatencyModel | None = None
) -> Array:
    """Seconds that the kernels of each of ``groups`` take together."""
    works, layout, theta = _near(groups, profile, model)
    seconds, _ = roofline.kernel_jacobian(theta, roofline.features(works, layout), layout)
    return np.array([part.sum() for part in _parts(seconds, groups)])


def _near(
    groups: Sequence[Sequence[Work]], profile: BoardProfile, model: LatencyModel | None
) -> tuple[list[Work], roofline.Layout, Array]:
    works = [w for group in groups for w in group]
    layout = roofline.Layout.of([(w.kind, w.precision) for w in works], profile)
    return works, layout, layout.start() if model is None else _fitted(layout, model)


def _parts(values: Array, groups: Sequence[Sequence[Work]]) -> list[Array]:
    return np.split(values, np.cumsum([len(group) for group in groups])[:-1])


def _fitted(layout: roofline.Layout, model: LatencyModel) -> Array:
    """The model's parameters in the layout's order; the prior's where it has none."""
    values = {p.name: p.value for p in model.parameters}
    theta = layout.start()
    for index, prior in enumerate(layout.priors):
        if prior.name in values:
            value = values[prior.name]
            theta[index] = value if prior.linear else math.log(value)
    return theta


def _place(work: Work) -> tuple[float, float]:
    """Size and intensity of a kernel, as logarithms to base two."""
    moved = max(1, work.bytes_in + work.bytes_out + work.bytes_weights)
    operations = max(1, work.macs or math.prod(work.shape[:2]))
    return math.log2(operations), math.log2(operations / moved)


def neighbourhood(work: Work) -> tuple[object, ...]:
    """Which kernels ``work`` shares an error with that the formula does not explain."""
    size, intensity = _place(work)
    full = work.shape.outputs * work.shape.groups % 16 == 0
    return work.kind, work.precision, full, round(size / _SPAN), round(intensity / _SPAN)


def log_det(blocks: Sequence[Array]) -> float:
    """What measuring all of ``blocks`` tells: the logarithm of the determinant, 0 for nothing."""
    rows = np.concatenate(blocks)
    return float(np.linalg.slogdet(np.eye(rows.shape[1]) + rows.T @ rows)[1])


def greedy(
    blocks: Sequence[Array],
    costs: Array,
    limits: Array,
    *,
    held: Sequence[int] = (),
    weights: Array | None = None,
    covers: Sequence[Set[object]] = (),
) -> tuple[int, ...]:
    """Indices of the blocks chosen, in order: each tells most for what it costs.

    ``costs`` has a row for each block and a column for each of ``limits``; the price is the sum of
    the shares of the limits. ``held`` were chosen already and cost nothing. ``weights`` multiply a
    block's gain; a block that covers (``covers``, one set a block) what no other yet does goes
    before all that do not.

    What a block tells only gets less as others are chosen (the determinant is submodular), so that
    a block whose old gain is below the best new one need not be looked at (Minoux, "Accelerated
    greedy algorithms", 1978). Gains by the matrix determinant lemma, updates by Woodbury's formula.
    """
    covariance = np.eye(blocks[0].shape[1])
    covered: set[object] = set()
    for index in held:
        covariance = _told(covariance, blocks[index])
        covered |= covers[index] if covers else set()
    prices = (costs / limits).sum(axis=1) / (1.0 if weights is None else weights)
    left = limits - 0.0
    chosen: list[int] = []

    def value(index: int) -> float:
        block = blocks[index]
        inner = np.eye(len(block)) + block @ covariance @ block.T
        # Rounded, so that the order of equals does not hang on the last bits of a sum.
        gain = round(float(np.linalg.slogdet(inner)[1]) / float(prices[index]), 6)
        return gain + (_FIRST if covers and not covers[index] <= covered else 0.0)

    queue = [(-value(i), i, 0) for i in range(len(blocks)) if i not in set(held)]
    heapq.heapify(queue)
    while queue:
        _, index, age = heapq.heappop(queue)
        if (costs[index] > left).any():
            continue
        if age < len(chosen):
            heapq.heappush(queue, (-value(index), index, len(chosen)))
            continue
        chosen.append(index)
        left = left - costs[index]
        covariance = _told(covariance, blocks[index])
        covered |= covers[index] if covers else set()
    return tuple(chosen)


def _told(covariance: Array, block: Array) -> Array:
    """The covariance of the parameters once ``block`` is measured."""
    across = block @ covariance
    inner = np.eye(len(block)) + across @ block.T
    return np.asarray(covariance - across.T @ np.linalg.solve(inner, across))


def misfits(samples: Sequence[tuple[Work, float]], model: LatencyModel) -> Misfit:
    """How far ``model`` is off, in log time, around a kernel: by the residuals of ``samples``.

    The root mean square of the residuals of its kind and precision, the nearer in size and
    intensity the more they count, and of ``MISFIT`` where there are few.
    """
    works = [w for w, _ in samples]
    measured = np.array([seconds for _, seconds in samples])
    logs = np.log((measured + _RESOLUTION_S) / (model.predict_kernels(works) + _RESOLUTION_S))
    kinds: dict[tuple[str, str], list[int]] = {}
    for index, work in enumerate(works):
        kinds.setdefault((work.kind, work.precision), []).append(index)
    places = np.array([_place(w) for w in works]).reshape(-1, 2)

    def misfit(work: Work) -> float:
        own = kinds.get((work.kind, work.precision), [])
        apart = (places[own] - _place(work)) / _SPAN
        near = np.exp(-0.5 * (apart**2).sum(axis=1))
        total = _PRIOR_COUNT * MISFIT**2 + float(near @ logs[own] ** 2)
        return math.sqrt(total / (_PRIOR_COUNT + float(near.sum())))

    return misfit
