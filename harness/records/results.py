"""Budgets, candidates, and what a fit came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.records.allocations import AllocationProof, Front, Shortlist
from harness.records.base import require_positive
from harness.records.boards import BoardFacts
from harness.records.engines import LayerPrecision
from harness.records.measurements import SoakSummary
from harness.records.verdicts import Interval, MeasurementVerdict

# What stands for the precision of a group that is not there.
LEFT_OUT = "left out"
Verdict = Literal["meets", "does not meet", "cannot tell yet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit: ``limit`` is in SI units (s, bytes) or, if ``relative``, a share of the baseline.

    ``text`` is what the user wrote. ``accuracy_drop`` is in points of ``metric`` and always
    absolute.
    """

    quantity: Literal["latency", "size", "accuracy_drop"]
    limit: float
    relative: bool
    text: str
    metric: str = "top-1"

    def __post_init__(self) -> None:
        if self.quantity != "accuracy_drop":
            require_positive(limit=self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """What measurement says of one budget.

    ``value`` and ``interval`` are in the unit of the budget's ``limit``. ``nearest`` is the
    smallest limit that is predicted to be reachable, where the budget could not be met.
    """

    budget: Budget
    value: float | None
    interval: Interval | None
    met: bool
    verdict: Verdict
    nearest: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted latency, with the latency model that made it; frozen before the measurement.

    ``layers`` are the precisions of nodes where the file does not tell them.
    """

    label: str
    network_sha256: str
    latency_s: float
    interval: Interval
    latency_model_sha256: str
    made_at: str
    layers: tuple[LayerPrecision, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAllocation:
    """One group in a candidate: for the report's picture along the depth of the network.

    Where nothing is kept the group is left out, with all its layers; its precision is ``LEFT_OUT``.
    """

    group: str
    layers: tuple[str, ...]
    channels: int
    kept: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPoint:
    """One kernel of one candidate: its work, what was predicted and what the profiler measured."""

    candidate: str
    name: str
    kind: str
    precision: str
    macs: int
    moved_bytes: int
    predicted_s: float | None
    measured_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One network that was built and measured; the baseline is one too.

    ``latency_s`` is the median host time of one call, ``ratio`` that median against the baseline's
    in the same interleaved rounds. ``predicted_*`` are the frozen predictions. ``top1``, or what
    the user's metric gives instead, is computed from the shipped ONNX file on the full test set;
    ``board_agreement`` is the share of
    test images on which the engine, on the board, gives the original network's class, and
    ``host_agreement`` the share on which it gives the class that the host computes from the file.
    ``int8_layers_real`` of ``int8_layers`` layers allocated int8 ran as integer kernels.
    ``verdict`` says whether its measurement can be trusted, ``soak`` what running without a pause
    before it did to its time; both are None in results from before they existed.
    """

    label: str
    role: Literal["baseline", "joint", "int8_only", "prune_only"]
    round: int
    onnx_sha256: str
    size_bytes: int
    parameters: int
    macs: int
    latency_s: float
    latency_interval_s: Interval
    latency_cv: float
    n_samples: int
    ratio: float
    ratio_interval: Interval
    top1: float | None
    board_agreement: float | None
    host_agreement: float | None
    n_board_images: int
    predicted_latency_s: float | None = None
    predicted_interval_s: Interval | None = None
    predicted_size_bytes: int | None = None
    predicted_loss: float | None = None
    int8_layers: int = 0
    int8_layers_real: int = 0
    allocation: tuple[GroupAllocation, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: MeasurementVerdict | None = None
    soak: SoakSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a fit and the wall time it took (of the run that did it, when resumed)."""

    name: str
    wall_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Everything that ``report.html`` shows of one ``boardfit fit`` (``result.json``).

    ``result`` is None where no variant could be built. ``verdict`` sums the budgets up.
    ``alternative_budgets`` holds the verdicts of the budgets on each of ``alternatives``. ``proof``
    is that of the result's allocation, ``front`` the allocations around it, and ``shortlist`` those
    that its round was taken from (None where nothing was to be chosen). ``binding`` names,
    for each quantity that no allocation reaches the limit of, the groups that take most of it
    even so. ``latency_model`` names the saved latency model that the fit began with, by file and
    hash; it is empty where the board was calibrated for the fit.
    Version history: 1, the first. Fields since the first version: alternative_budgets; proof,
    front and binding; the budgets' metric; shortlist; latency_model. All are empty (the metric:
    top-1) in results from before they existed.
    """

    boardfit_version: str
    created_at: str
    network: str
    board: BoardFacts
    baseline: Candidate
    result: Candidate | None
    candidates: tuple[Candidate, ...]
    alternatives: Mapping[str, Candidate]
    budgets: tuple[BudgetVerdict, ...]
    verdict: Verdict
    explanation: str
    kernels: tuple[KernelPoint, ...]
    peak_macs_per_s: Mapping[str, float]
    bandwidth_bytes_per_s: float
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()
    fake: bool = False
    alternative_budgets: Mapping[str, tuple[BudgetVerdict, ...]] = field(default_factory=dict)
    proof: AllocationProof | None = None
    front: Front | None = None
    binding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shortlist: Shortlist | None = None
    latency_model: str = ""
    schema_version: int = 1
