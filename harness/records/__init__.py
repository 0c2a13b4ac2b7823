"""Every record that crosses a module border: frozen, validated, plain data.

Units are SI and stand in the name (``latency_s``, ``size_bytes``). ``None`` means "not measured" or
"not known", never zero. Raw samples are kept; statistics are derived from them in ``stats``.
``dump`` and ``load`` turn any of these records into JSON text and back.
"""

from harness.records.allocations import (
    AllocationProof,
    Approach,
    Front,
    FrontCandidate,
    FrontPoint,
)
from harness.records.base import dump, load
from harness.records.boards import (
    BoardFacts,
    BoardSettings,
    BoardSpec,
    CacheState,
    Check,
    CheckStatus,
    Conditions,
    Diagnosis,
    LeaseHolder,
    Telemetry,
    TelemetrySample,
)
from harness.records.compression import Group, Option, Strategy, StrategyEntry
from harness.records.measurements import (
    Failure,
    ImportedSummary,
    KernelTime,
    Measurement,
    Profile,
    Soak,
    SoakSummary,
    SoakWindow,
    SweepTimes,
    TimeSummary,
    Trace,
    TracedKernel,
    WindowAverage,
)
from harness.records.results import (
    Budget,
    BudgetVerdict,
    Candidate,
    FitResult,
    GroupAllocation,
    KernelPoint,
    Prediction,
    Stage,
    Verdict,
)
from harness.records.verdicts import Criterion, Interval, MeasurementVerdict, PercentileFigure

__all__ = [
    "AllocationProof",
    "Approach",
    "BoardFacts",
    "BoardSettings",
    "BoardSpec",
    "Budget",
    "BudgetVerdict",
    "CacheState",
    "Candidate",
    "Check",
    "CheckStatus",
    "Conditions",
    "Criterion",
    "Diagnosis",
    "Failure",
    "FitResult",
    "Front",
    "FrontCandidate",
    "FrontPoint",
    "Group",
    "GroupAllocation",
    "ImportedSummary",
    "Interval",
    "KernelPoint",
    "KernelTime",
    "LeaseHolder",
    "Measurement",
    "MeasurementVerdict",
    "Option",
    "PercentileFigure",
    "Prediction",
    "Profile",
    "Soak",
    "SoakSummary",
    "SoakWindow",
    "Stage",
    "Strategy",
    "StrategyEntry",
    "SweepTimes",
    "Telemetry",
    "TelemetrySample",
    "TimeSummary",
    "Trace",
    "TracedKernel",
    "Verdict",
    "WindowAverage",
    "dump",
    "load",
]
