"""What a user requires, and what strategies are predicted to make of a network, unbuilt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.records.base import require_positive
from harness.records.compression import Strategy

Quantity = Literal[
    "latency",
    "size",
    "engine_size",
    "peak_memory",
    "parameters",
    "macs",
    "energy",
    "accuracy_floor",
    "accuracy_drop",
]
Method = Literal["prune", "quantize", "distill"]
PlanVerdict = Literal["meets", "does not meet", "cannot tell"]
LatencySource = Literal["calibrated", "saved model", "prior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A limit on one quantity; ``text`` is what the user wrote.

    ``limit`` is in SI units (s, bytes, J) or a count; of ``accuracy_floor`` a share of 1, of
    ``accuracy_drop`` points (hundredths) of the metric. If ``relative`` it is a share of what the
    original network takes, which no accuracy is. A throughput or a frame rate is the latency of one
    call. ``percentile`` is that of the latency which is to keep the limit. ``size`` is that of the
    file one ships, ``engine_size`` that of what lies on the board.
    """

    quantity: Quantity
    limit: float
    relative: bool = False
    text: str
    percentile: float = 50.0

    def __post_init__(self) -> None:
        if self.quantity == "accuracy_drop":
            if not 0 <= self.limit <= 100:
                raise ValueError(f"accuracy_drop must lie in 0..100 points, got {self.limit}")
        else:
            require_positive(limit=self.limit)
        if self.quantity == "accuracy_floor" and self.limit > 1:
            raise ValueError(f"accuracy_floor is a share of 1, got {self.limit}")
        if self.relative and self.quantity.startswith("accuracy"):
            raise ValueError(f"{self.quantity} has no limit relative to the original")
        if not 0 < self.percentile < 100:
            raise ValueError(f"percentile must lie between 0 and 100, got {self.percentile}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a user asks of a network on a board.

    ``methods`` and ``precisions`` are those that may be used. ``objective`` weighs "accuracy",
    "latency" and "size" against each other where several strategies meet all ``limits``; the
    weights sum to 1. The layers in ``keep`` are not touched. ``input_size`` is the shape of one
    input, without the batch (None: the network's own).
    """

    limits: tuple[Requirement, ...] = ()
    methods: tuple[Method, ...] = ("prune", "quantize", "distill")
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    objective: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    keep: tuple[str, ...] = ()
    input_size: tuple[int, ...] | None = None

    def limit(self, quantity: Quantity) -> Requirement | None:
        """The requirement on ``quantity``; None where there is none."""
        return next((one for one in self.limits if one.quantity == quantity), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A predicted number: it lies within ``low`` and ``high`` in 90 % of the cases.

    ``low``, ``value`` and ``high`` are one where it is exact. ``note`` says what it rests on.
    """

    value: float
    low: float
    high: float
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"an estimate's {name} must be finite, got {getattr(self, name)}")
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"an estimate of {self.value} that lies outside of {self.low} to {self.high}"
            )

    @classmethod
    def exactly(cls, value: float, *, note: str = "") -> Estimate:
        """An estimate that is no guess."""
        return cls(value=value, low=value, high=value, note=note)

    @property
    def exact(self) -> bool:
        """Whether there is nothing uncertain about it."""
        return self.low == self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What one layer of a variant costs: one convolution or linear layer, in execution order.

    ``channels_in`` and ``channels_out`` are those of the whole layer, not of one of its groups.
    ``parameters`` are the numbers of weight and bias as the variant's file has them, batch norm
    folded in; ``macs`` those of one input. ``weight_bytes`` is what these numbers take where the
    layer runs, ``read_bytes`` the activations that it reads and ``written_bytes`` those it
    writes, in one call. ``latency_s`` and ``loss`` (its share of the summed sensitivity) are
    None where nobody predicted them.
    """

    layer: str
    kind: str
    precision: str
    channels_in: int
    channels_out: int
    parameters: int
    macs: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    latency_s: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a variant is predicted to cost; of the baseline, what the original does.

    ``parameters`` are those of the network as torch counts them and ``macs`` those of its
    convolutions and linear layers for one input: what ``records.Candidate`` says of built ones.
    ``size_bytes`` is the file that is shipped, ``engine_bytes`` what lies on the board (None where
    nobody can tell). ``weight_bytes`` are the weights as they are read in one call and
    ``moved_bytes`` these and all activations that are read and written. ``peak_activation_bytes``
    are the most bytes of activations alive at once, weights apart. ``latency_s`` is that of one
    call, from a latency model that was calibrated on this board just now, a saved one, or a
    profile's prior; ``latency_ratio`` is that over the original's, in which what the model gets
    wrong in both cancels. ``accuracy_drop`` is in points of the metric, positive where it is lost.
    None is "not predicted".
    """

    size_bytes: Estimate
    parameters: int
    macs: int
    weight_bytes: int
    moved_bytes: int
    peak_activation_bytes: Estimate
    latency_s: Estimate | None = None
    latency_source: LatencySource = "prior"
    latency_ratio: Estimate | None = None
    engine_bytes: Estimate | None = None
    energy_j: Estimate | None = None
    accuracy_drop: Estimate | None = None
    layers: tuple[LayerCost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """Whether a requirement is met, by a prediction: ``value`` in the unit of its limit.

    "cannot tell" where the limit lies between ``low`` and ``high``, or there is no prediction.
    """

    requirement: Requirement
    verdict: PlanVerdict
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStrategy:
    """A strategy that nobody has built, with what it is predicted to come to.

    ``methods`` stand in the order in which they are applied. ``verdict`` sums ``verdicts`` up.
    ``sentences`` say what it does, and why it meets the requirements and what is uncertain.
    """

    name: str
    methods: tuple[str, ...]
    strategy: Strategy
    predicted: Predicted
    verdicts: tuple[Met, ...]
    verdict: PlanVerdict
    sentences: tuple[str, str]
    on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The nearest limit that could be kept, where ``asked`` cannot be; both in the limit's unit.

    ``binding`` are the layers that take most of what is left even there. ``alone`` where it is what
    could be reached with other requirements set aside; ``aside`` are those that are not kept there.
    """

    quantity: Quantity
    asked: float
    reachable: float
    binding: tuple[str, ...] = ()
    alone: bool = False
    aside: tuple[Quantity, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Strategies for a network on a board, the best first, and the front over them.

    ``board`` is a board's or a profile's name. ``front`` names strategies: no other is better in
    accuracy, latency and size at once. ``nearest`` is empty where some strategy meets everything.
    Version history: 1, the first. Fields since the first version: aside of the nearest limits
    (empty: not known).
    """

    network: str
    board: str
    requirements: Requirements
    baseline: Predicted
    strategies: tuple[PlannedStrategy, ...]
    front: tuple[str, ...] = ()
    nearest: tuple[Nearest, ...] = ()
    notes: tuple[str, ...] = ()
    wall_s: float = 0.0
    schema_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One column of one strategy: what was predicted, and what the built variant came to."""

    name: str
    column: str
    predicted: Estimate
    actual: float

    @property
    def covered(self) -> bool:
        """Whether the actual number lies in the predicted interval."""
        return self.predicted.low <= self.actual <= self.predicted.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Predictions against what was built; ``recalibration`` says what was learned from it.

    Version history: 1, the first.
    """

    rows: tuple[Verified, ...] = ()
    recalibration: str = ""
    notes: tuple[str, ...] = ()
    schema_version: int = 1
