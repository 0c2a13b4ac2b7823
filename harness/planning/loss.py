"""Points of accuracy that a strategy is predicted to lose, from its summed sensitivity.

A score of ``S`` nats stands for::

    drop(S) = most * (1 - exp(-(S / s0)^p))

points of the metric: nothing at 0, a power law while it is small (with p = 1 points in proportion
to the loss), and never more than there is to lose. Widths and rounding have a curve each, because
layers are fitted again after pruning and not after rounding, and what is left after both is the
product of what each leaves. The four parameters are fitted to anchors (``sensitivity.anchors``) of
the same network, with weak priors, so that two anchors do.

**Intervals** hold 90 %: Student's t of the anchors' leave-one-out residuals, each in units of what
it could be expected to be (a share of the drop, and what so few images leave open), wider where a
score lies beyond the anchors', and with the noise of the images that will judge the variant.

**Training** gives back most of what pruning took. How much is a prior until variants of the network
were trained (``recalibrated``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from harness.records import Estimate
from harness.sensitivity.anchors import Anchor, Anchors

__all__ = [
    "Built",
    "LossModel",
    "added",
    "compressed",
    "fit",
    "measured_drop",
    "recalibrated",
    "student_drop",
]

Floats = npt.NDArray[np.float64]
COVERAGE = 0.9
# What an anchor may be off by, beside the noise of its images: a share of its drop, and points.
RELATIVE, POINTS = 0.25, 0.2
# A score below this loses nothing that could be counted: int8 ResNet-20 has 0.0065 nats, fp16 less.
NOTHING = 0.01
# Residuals of few anchors can all be small by chance: the spread is not taken to be less than this.
LEAST_SPREAD = 0.5
# Priors: means and standard deviations of the logarithms of s0 and p. A loss larger by a nat or so
# is a network that says nothing any more.
SCALE_PRIOR, POWER_PRIOR = (math.log(1.0), 2.5), (math.log(0.8), 0.4)
# After E epochs of training on a few thousand images 1 / (1 + RATE * E) of what pruning took is
# still lost: ResNet-20 at half its multiplications has lost 16.7 points untrained and 4.8 after
# four epochs over 4,700 images (``compression.recovery.cut``). From one network to another it is
# known to a factor of e^0.5 or so, and from one strategy to the next to e^0.35.
RATE, NETWORKS_DIFFER, STRATEGIES_DIFFER = 0.6, 0.5, 0.35
# Points that training moves a network by, whatever was cut.
TRAINING_POINTS = 0.4
# A student's points lost for each halving of the multiplications, when it was taught until it
# learned nothing more: ResNet-56 to ResNet-20 on CIFAR-10 is 1.7 points for 1.6 halvings (He et
# al., CVPR 2016, table 6). One that began with random weights is short of that by up to this many
# points at first, less by e every so many epochs: two students of ResNet-56 had lost 49 and 54
# points after 5 epochs over 5,170 images, one of the demo network 3 after 15.
HALVING, UNTAUGHT, EPOCHS = 1.2, 75.0, 12.0
# What rounding to int8 takes of a network that nobody could try it on: within 2 points, with a
# scale for each channel of a weight (Krishnamoorthi, arXiv:1806.08342).
ROUNDED = Estimate(value=0.5, low=-0.5, high=2.0, note="int8 by a prior")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A variant that was built: its score, how long it was trained, and the points it lost."""

    label: str
    pruning: float
    rounding: float
    epochs: int
    drop: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossModel:
    """Drops by score; ``fit`` makes one.

    ``scale`` and ``power`` are s0 (nats) and p of pruning and of rounding. ``spread`` is that of
    the leave-one-out residuals in units of what was expected, ``quantile`` Student's. ``regained``
    is the mean and standard deviation of the logarithm of what is left after training over its
    prior. It rests on ``learned`` trained variants; ``built`` counts all that were learned from.
    """

    anchors: Anchors
    scale: tuple[float, float]
    power: tuple[float, float]
    spread: float
    quantile: float
    regained: tuple[float, float] = (0.0, NETWORKS_DIFFER)
    learned: int = 0
    built: int = 0

    def untrained(self, pruning: float, rounding: float) -> tuple[float, float]:
        """The points that widths take and those that rounding takes after it."""
        most = self.anchors.most
        widths = most * _share(pruning, self.scale[0], self.power[0])
        rounded = (most - widths) * _share(rounding, self.scale[1], self.power[1])
        return widths, rounded

    def predict(
        self, pruning: float, rounding: float, *, epochs: int = 0, images: int = 1000
    ) -> Estimate:
        """The points that a variant of these scores loses on so many ``images``.

        It is trained for ``epochs`` if it was pruned at all.
        """
        widths, rounded = self.untrained(pruning, rounding)
        trained = bool(epochs and pruning > 0)
        left = math.exp(self.regained[0]) / (1 + RATE * epochs) if trained else 1.0
        most = self.anchors.most
        value = min(left * widths + rounded, most)
        beyond = self._beyond(pruning, rounding)
        own = self.quantile * self.spread * beyond * math.hypot(RELATIVE * value, POINTS)
        noise = _Z * self._noise(value, images)
        own = math.hypot(own, noise)
        up = down = 0.0
        if trained:
            factor = math.exp(_Z * math.hypot(self.regained[1], STRATEGIES_DIFFER))
            up, down = left * widths * (factor - 1), left * widths * (1 - 1 / factor)
            own = math.hypot(own, _Z * TRAINING_POINTS)
        # No more can be lost than there is, but for what so few images count.
        high = max(min(value + math.hypot(own, up), most + noise), value)
        return Estimate(
            value=value,
            low=value - math.hypot(own, down),
            high=high,
            note=self._note(trained, beyond),
        )

    def _note(self, trained: bool, beyond: float) -> str:
        parts = [f"from {len(self.anchors.anchors)} anchors"]
        if self.built:
            parts.append(f"recalibrated from {self.built} built variants")
        if beyond > 1:
            parts.append("beyond the range of the anchors")
        if trained and not self.learned:
            parts.append("what training gives back is a prior")
        return ", ".join(parts)

    def _beyond(self, pruning: float, rounding: float) -> float:
        """By how much wider the interval is because a score is larger than any anchor's."""
        wider = 1.0
        for score, tried in (
            (pruning, [anchor.pruning for anchor in self.anchors.anchors]),
            (rounding, [anchor.rounding for anchor in self.anchors.anchors]),
        ):
            largest = max([*tried, NOTHING])
            if score > largest:
                wider += math.log2(score / largest)
        return wider

    def _noise(self, drop: float, images: int) -> float:
        """The standard deviation of a drop counted on so many images, in points.

        The count of images of another class is known from the anchors; it is no less than the drop.
        """
        known = sorted((a.drop, 100 * a.changed) for a in self.anchors.anchors if a.changed)
        changed = abs(drop)
        if known:
            drops, changes = zip(*known, strict=True)
            changed = float(np.interp(drop, drops, np.maximum.accumulate(changes)))
        return math.sqrt(100 * max(changed, abs(drop), 0.5) / max(images, 1))


_Z = float(stats.norm.ppf((1 + COVERAGE) / 2))


def _share(score: float, scale: float, power: float) -> float:
    return -math.expm1(-((score / scale) ** power)) if score > 0 else 0.0


def fit(anchors: Anchors, built: Sequence[Built] = ()) -> LossModel:
    """The loss model of one network; ``built`` are variants of it that were built, if any."""
    more = tuple(
        Anchor(
            label=one.label,
            pruning=one.pruning,
            rounding=one.rounding,
            drop=one.drop,
            changed=None,
            images=one.images,
        )
        for one in built
        if not one.epochs or one.pruning <= 0
    )
    every = replace(anchors, anchors=(*anchors.anchors, *more))
    parameters = _fitted(every)
    residuals = _left_out(every, parameters)
    n = len(residuals)
    spread = math.sqrt(sum(r * r for r in residuals) / n) if n > 1 else 2.0
    model = LossModel(
        anchors=every,
        scale=(math.exp(parameters[0]), math.exp(parameters[2])),
        power=(math.exp(parameters[1]), math.exp(parameters[3])),
        spread=max(spread, LEAST_SPREAD),
        quantile=float(stats.t.ppf((1 + COVERAGE) / 2, max(n - 1, 1))),
        built=len(built),
    )
    trained = [one for one in built if one.epochs and one.pruning > 0]
    return replace(model, regained=_regained(model, trained), learned=len(trained))


def recalibrated(model: LossModel, built: Sequence[Built]) -> LossModel:
    """``model`` with what was ``built`` since: untrained variants join the anchors.

    Trained ones say how much training gives back on this network.
    """
    trained = [one for one in built if one.epochs and one.pruning > 0]
    again = fit(model.anchors, [one for one in built if one not in trained])
    prior = replace(again, regained=model.regained)
    return replace(
        prior,
        regained=_regained(prior, trained),
        learned=model.learned + len(trained),
        built=model.built + len(built),
    )


def _expected(parameters: Floats, most: float, anchor: Anchor) -> float:
    scale_p, power_p, scale_r, power_r = np.exp(parameters)
    widths = _share(anchor.pruning, scale_p, power_p)
    rounded = _share(anchor.rounding, scale_r, power_r)
    return float(most * (1 - (1 - widths) * (1 - rounded)))


def _unit(anchor: Anchor, drop: float) -> float:
    """What an anchor may be off by, in points."""
    changed = abs(drop) / 100 if anchor.changed is None else anchor.changed
    noise = 100 * math.sqrt(max(changed, 0.5 / anchor.images) / anchor.images)
    return math.sqrt(noise**2 + (RELATIVE * drop) ** 2 + POINTS**2)


def _fitted(anchors: Anchors) -> Floats:
    """The logarithms of s0 and p, of pruning and of rounding: a maximum of the posterior."""
    means, deviations = zip(SCALE_PRIOR, POWER_PRIOR, SCALE_PRIOR, POWER_PRIOR, strict=True)
    units = [_unit(anchor, anchor.drop) for anchor in anchors.anchors]

    def residuals(parameters: Floats) -> Floats:
        off = [
            (_expected(parameters, anchors.most, anchor) - anchor.drop) / unit
            for anchor, unit in zip(anchors.anchors, units, strict=True)
        ]
        return np.array([*off, *((parameters - means) / deviations)])

    bounds = (
        np.array(means) - 4 * np.array(deviations),
        np.array(means) + 4 * np.array(deviations),
    )
    found = optimize.least_squares(residuals, np.array(means), bounds=bounds)
    return np.asarray(found.x, np.float64)


def _left_out(anchors: Anchors, parameters: Floats) -> list[float]:
    """Each anchor's residual by the curve that was fitted to the others, in its own unit."""
    found = []
    for index, anchor in enumerate(anchors.anchors):
        others = anchors.anchors[:index] + anchors.anchors[index + 1 :]
        without = _fitted(replace(anchors, anchors=others)) if others else parameters
        expected = _expected(without, anchors.most, anchor)
        found.append((anchor.drop - expected) / _unit(anchor, expected))
    return found


def _regained(model: LossModel, trained: Sequence[Built]) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of what training leaves, over its prior.

    The posterior of one number by a grid, because the points it explains are not its logarithm.
    """
    if not trained:
        return model.regained
    mean, deviation = model.regained
    grid = np.linspace(mean - 5 * deviation, mean + 5 * deviation, 401)
    odds = -0.5 * ((grid - mean) / deviation) ** 2
    for one in trained:
        widths, rounded = model.untrained(one.pruning, one.rounding)
        left = np.exp(grid) * widths / (1 + RATE * one.epochs)
        noise = model._noise(one.drop, one.images)
        spread = np.sqrt((STRATEGIES_DIFFER * left) ** 2 + noise**2 + TRAINING_POINTS**2)
        odds += -0.5 * ((one.drop - left - rounded) / spread) ** 2 - np.log(spread)
    weights = np.exp(odds - odds.max())
    weights /= weights.sum()
    mean = float((weights * grid).sum())
    return mean, float(math.sqrt((weights * (grid - mean) ** 2).sum()))


def student_drop(macs_share: float, *, epochs: int, most: float = 100.0) -> Estimate:
    """The points that a student loses which nobody has taught yet, by its share of the MACs.

    A prior, and a wide one: what a student learns depends on more than its size.
    """
    halvings = max(-math.log2(macs_share), 0.0)
    untaught = UNTAUGHT * math.exp(-epochs / EPOCHS)
    value = min(HALVING * halvings + untaught / 2, most)
    return Estimate(
        value=value,
        low=min(HALVING * (halvings / 4 - 1), value),
        high=max(min(HALVING * (3 * halvings + 1) + untaught, most), value),
        note="a prior by the student's size: teach it to know more",
    )


def compressed(student: Estimate, *, macs_share: float, rounded: bool) -> Estimate:
    """The points lost by a student that nobody has taught yet, compressed as well.

    A prior: cut to ``macs_share`` of its MACs it is as good as a student of that size.
    """
    halvings = -math.log2(macs_share)
    if halvings > 0:
        cut = HALVING * halvings
        student = added(student, Estimate(value=cut, low=cut / 4, high=3 * cut, note=""))
    return added(student, ROUNDED) if rounded else student


def measured_drop(drop: float, *, changed: float | None, images: int) -> Estimate:
    """A drop in points that was counted on so many images, ``changed`` of them in another class."""
    share = max(abs(drop) / 100, changed or 0.0, 0.5 / images)
    reach = _Z * 100 * math.sqrt(share / images)
    return Estimate(value=drop, low=drop - reach, high=drop + reach, note=f"on {images} images")


def added(one: Estimate, other: Estimate) -> Estimate:
    """The sum of two drops that know nothing of each other."""
    value = one.value + other.value
    return Estimate(
        value=value,
        low=value - math.hypot(one.value - one.low, other.value - other.low),
        high=value + math.hypot(one.high - one.value, other.high - other.value),
        note="; ".join(note for note in (one.note, other.note) if note),
    )
