"""Which of several networks to take, where their latencies are predicted and not known.

Holding the upper end of every interval to the limit is safe and dull: a network that would have
met the limit is passed over whenever its interval crosses it. Holding the prediction itself to the
limit misses it about half of the time in those cases. What is wanted is the network that is best
most often, as long as the limit is met often enough; ``choose`` solves that as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.records import Plan, PlannedStrategy

__all__ = ["POINTS", "WANTED", "Choice", "Offer", "choose", "of_plan", "price_of_missing"]

Array = npt.NDArray[np.float64]

# Of a user's requirements, the share that the choice should meet once it is measured.
WANTED = 0.9
# Limits at which a policy is judged, evenly spaced on the logarithm: enough for 1 % of the share.
_LIMITS = 201
# Beyond this, one more miss weighs more than any choice of a better network can gain.
_DEAREST = 1e3
_HALVINGS = 40
# So many spreads within a limit, or beyond it, is as good as certain.
_CERTAIN = 1e6
# So many points of accuracy weigh as much as the whole latency, or the whole size, where the
# objective weighs them alike.
POINTS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A network to choose: predicted seconds, their interval, and what it is worth.

    The measured latency lies in ``[low_s, high_s]`` with probability ``coverage``. ``worth`` ranks
    the offers (an accuracy, say); None: the slower the better, which is the best guess where
    nothing else is known of networks of one kind.
    """

    name: str
    latency_s: float
    low_s: float
    high_s: float
    coverage: float = 0.9
    worth: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.low_s <= self.latency_s <= self.high_s < math.inf:
            raise ValueError(
                f"{self.name}: {self.low_s}, {self.latency_s} and {self.high_s} s are no prediction"
                " between the ends of its interval"
            )
        if not 0 < self.coverage < 1:
            raise ValueError(f"{self.name}: coverage must be within 0 and 1, got {self.coverage}")

    @property
    def spread(self) -> float:
        """The standard deviation of log latency that the interval implies, as of a normal one."""
        quantile = float(stats.norm.ppf((1 + self.coverage) / 2))
        return math.log(self.high_s / self.low_s) / (2 * quantile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The offer to take (``index`` in the list) and what is to be expected of it.

    ``meets`` is the probability that its measured latency keeps the limit, ``best`` that it does
    and no offer of more worth would.
    """

    index: int
    name: str
    meets: float
    best: float

    @property
    def verdict(self) -> Literal["meets", "does not meet", "cannot tell"]:
        """What may be said before it is measured, at 95 % on either side."""
        if self.meets >= 0.95:
            return "meets"
        return "does not meet" if self.meets <= 0.05 else "cannot tell"


def choose(offers: Sequence[Offer], limit_s: float, *, wanted: float = WANTED) -> Choice:
    """The offer that is most likely the best one that keeps ``limit_s``, and keeps it.

    Over limits spread evenly on the logarithm between the fastest and the slowest prediction, the
    rule keeps the limit in a share ``wanted`` of them, and is right about the best offer as often
    as that allows: at each limit it maximises ``best + price * meets``, the Lagrangian of that
    problem, with the smallest price that does (``price_of_missing``). The price follows from the
    predictions and their intervals alone. ``ValueError`` without offers or a positive limit.
    """
    if not offers:
        raise ValueError("there is nothing to choose from")
    if not (limit_s > 0 and math.isfinite(limit_s)):
        raise ValueError(f"the limit must be positive and finite, got {limit_s} s")
    price = price_of_missing(offers, wanted=wanted)
    scores, best = _chances(offers, np.array([limit_s]))
    index = int(_policy(scores, best, price)[0])
    meets = stats.norm.cdf(scores)
    return Choice(
        index=index,
        name=offers[index].name,
        meets=float(meets[index, 0]),
        best=float(best[index, 0]),
    )


def of_plan(plan: Plan, *, wanted: float = WANTED) -> Choice | None:
    """The strategy of a plan to take where its latency is required and nothing is built yet.

    Of the strategies that keep, or may keep, every other requirement; worth the most is what the
    objective says, and the slower, where it weighs an accuracy that nobody predicted. ``index`` is
    that in ``plan.strategies``. None without such a requirement, or such a strategy.
    """
    required = plan.requirements.limit("latency")
    base = plan.baseline.latency_s
    if required is None or required.percentile != 50 or base is None:
        return None
    limit_s = required.limit * (base.value if required.relative else 1.0)
    indices, offers = [], []
    for index, one in enumerate(plan.strategies):
        others = [met for met in one.verdicts if met.requirement != required]
        found = one.predicted.latency_s
        if found is None or any(met.verdict == "does not meet" for met in others):
            continue
        indices.append(index)
        offers.append(
            Offer(
                name=one.name,
                latency_s=found.value,
                low_s=found.low,
                high_s=found.high,
                worth=_worth(plan, one),
            )
        )
    if not offers:
        return None
    chosen = choose(offers, limit_s, wanted=wanted)
    return replace(chosen, index=indices[chosen.index])


def _worth(plan: Plan, strategy: PlannedStrategy) -> float | None:
    """What the objective says of a strategy; None where it wants an accuracy that is not known."""
    weights, predicted, base = plan.requirements.objective, strategy.predicted, plan.baseline
    cost = weights.get("size", 0.0) * predicted.size_bytes.value / base.size_bytes.value
    if weights.get("accuracy"):
        if predicted.accuracy_drop is None:
            return None
        cost += weights["accuracy"] * predicted.accuracy_drop.value / POINTS
    if weights.get("latency") and predicted.latency_s is not None and base.latency_s is not None:
        cost += weights["latency"] * predicted.latency_s.value / base.latency_s.value
    return -cost


def price_of_missing(offers: Sequence[Offer], *, wanted: float = WANTED) -> float:
    """What a missed limit costs, in units of a best offer found: 0 where it need cost nothing.

    The smallest price at which the choices keep a share ``wanted`` of the limits; where the
    predictions are too loose for that, the price at which nothing else counts.
    """
    ends = [math.log(offer.latency_s) for offer in offers]
    limits = np.exp(np.linspace(min(ends), max(ends), _LIMITS))
    scores, best = _chances(offers, limits)
    meets = stats.norm.cdf(scores)

    def share(price: float) -> float:
        taken = _policy(scores, best, price)
        return float(meets[taken, np.arange(len(limits))].mean())

    if share(0.0) >= wanted:
        return 0.0
    if share(_DEAREST) < wanted:
        return _DEAREST
    low, high = 0.0, _DEAREST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) >= wanted else (middle, high)
    return high


def _policy(scores: Array, best: Array, price: float) -> npt.NDArray[np.intp]:
    """The offer that each limit (column) is answered with; of equals, the likelier to keep it."""
    gain = best + price * stats.norm.cdf(scores)
    taken: npt.NDArray[np.intp] = np.argmax(
        np.where(gain >= gain.max(axis=0) - 1e-12, scores, -np.inf), axis=0
    )
    return taken


def _chances(offers: Sequence[Offer], limits: Array) -> tuple[Array, Array]:
    """For each offer and limit: how many spreads it lies within it, and the chance to be the best.

    Latencies are lognormal about their predictions, so that the normal distribution function of the
    first is the chance to keep the limit. What the model gets wrong in offers of one kind it gets
    wrong in all of them, so their errors are taken to be one: then some offer of more worth keeps
    the limit exactly as often as the likeliest of them does.
    """
    centres = np.log([offer.latency_s for offer in offers])[:, None]
    spreads = np.array([offer.spread for offer in offers])[:, None]
    distance = np.log(limits)[None, :] - centres
    # An interval of no width is a measurement: it keeps the limit or does not.
    certain = np.where(distance >= 0, _CERTAIN, distance - _CERTAIN)
    scores: Array = np.where(spreads > 0, distance / np.where(spreads > 0, spreads, 1.0), certain)
    meets = stats.norm.cdf(scores)
    worth = [offer.latency_s if offer.worth is None else offer.worth for offer in offers]
    best = np.empty_like(meets)
    for index in range(len(offers)):
        better = [other for other, value in enumerate(worth) if value > worth[index]]
        above = meets[better].max(axis=0) if better else 0.0
        best[index] = np.maximum(meets[index] - above, 0.0)
    return scores, best
