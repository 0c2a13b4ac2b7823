"""What ``--json`` prints: the same numbers as the tables, unrounded, in SI units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from harness import stats
from harness.attribution import attribution
from harness.records import Interval, Measurement, MeasurementVerdict, Profile, SoakSummary
from harness.report import judged
from harness.report.running import running_json

__all__ = [
    "PredictionRow",
    "ValidationRow",
    "attribution_json",
    "measurement_json",
    "prediction_json",
    "profile_json",
    "validation_json",
]


class ValidationRow(Protocol):
    """One network held against its prediction; ``error`` is predicted over measured, less one."""

    @property
    def network(self) -> str: ...  # noqa: D102  # the class says it
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def predicted_s(self) -> float: ...  # noqa: D102
    @property
    def interval(self) -> Interval: ...  # noqa: D102
    @property
    def measured_s(self) -> float: ...  # noqa: D102
    @property
    def measured_interval(self) -> Interval: ...  # noqa: D102
    @property
    def error(self) -> float: ...  # noqa: D102


class PredictionRow(Protocol):
    """The predicted latency of a network and its kernels.

    Each is (name, kind, precision, seconds by the formula, factor of the learned residual).
    ``unsupported`` names the kinds of kernels that were never measured.
    """

    @property
    def network(self) -> str: ...  # noqa: D102  # the class says it
    @property
    def latency_s(self) -> float: ...  # noqa: D102
    @property
    def interval(self) -> Interval: ...  # noqa: D102
    @property
    def kernels(self) -> Sequence[tuple[str, str, str, float, float]]: ...  # noqa: D102
    @property
    def unsupported(self) -> Sequence[str | tuple[str, str]]: ...  # noqa: D102


def _interval(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high, "coverage": interval.coverage}


def measurement_json(measurement: Measurement) -> dict[str, Any]:
    """One measurement: what it was taken of, its statistics and its samples."""
    samples = measurement.samples_s
    return {
        "label": measurement.label,
        "network_sha256": measurement.network_sha256,
        "board": measurement.board,
        "runtime": measurement.runtime,
        "runtime_version": measurement.runtime_version,
        "precision": measurement.precision,
        "batch": measurement.batch,
        "threads": measurement.threads,
        "power_mode": measurement.power_mode,
        "taken_at": measurement.taken_at,
        "latency_s": stats.median(samples),
        "latency_interval_s": _interval(stats.interval_of_median(measurement)),
        "min_s": min(samples),
        "spread": stats.coefficient_of_variation(samples),
        "n_samples": len(samples),
        "samples_s": list(samples),
        # The rest of the record, by which boardfit compare reads the measurement back.
        "rounds": list(measurement.rounds),
        "warmup_s": list(measurement.warmup_s),
        "campaign": measurement.campaign,
        "before": asdict(measurement.before),
        "after": asdict(measurement.after),
        "busy_s": measurement.busy_s,
        "timed": measurement.timed,
        "machine": measurement.machine,
        "agent_hash": measurement.agent_hash,
        **running_json(measurement),
    }


def profile_json(
    measurement: Measurement,
    profile: Profile,
    *,
    verdict: MeasurementVerdict,
    soak: SoakSummary | None = None,
) -> dict[str, Any]:
    """One network: its measurement with the verdict on it, its soak and its kernels."""
    return {
        "measurement": measurement_json(measurement),
        "verdict": judged.verdict_json(verdict),
        **({} if soak is None else {"soak": judged.soak_json(measurement, soak)}),
        "kernels": [asdict(kernel) for kernel in profile.kernels],
        "runs_s": list(profile.runs_s),
        "attribution": attribution_json(profile, stats.median(measurement.samples_s)),
    }


def attribution_json(profile: Profile, end_to_end_s: float) -> dict[str, Any]:
    """How much of the kernels' time belongs to ONNX nodes, and how much of a call they explain."""
    found = attribution(profile, end_to_end_s=end_to_end_s)
    return {
        "attributed": found.attributed,
        "computing": found.computing,
        "layout": found.layout,
        "unattributed": list(found.unattributed),
        "kernels_s": found.kernels_s,
        "profiled_run_s": found.profiled_run_s,
        "end_to_end_s": found.end_to_end_s,
        "kernels_of_profiled_run": found.of_profiled_run,
        "kernels_of_end_to_end": found.of_end_to_end,
    }


def prediction_json(prediction: PredictionRow) -> dict[str, Any]:
    """One prediction with its kernels."""
    return {
        "network": prediction.network,
        "latency_s": prediction.latency_s,
        "interval_s": _interval(prediction.interval),
        "kernels": [
            {
                "name": name,
                "kind": kind,
                "precision": precision,
                "latency_s": seconds * factor,
                "formula_s": seconds,
                "learned_factor": factor,
            }
            for name, kind, precision, seconds, factor in prediction.kernels
        ],
        "unsupported": [kind_text(kind) for kind in prediction.unsupported],
    }


def kind_text(kind: str | tuple[str, str]) -> str:
    """A kind of kernels in words, with its precision if that was given."""
    return kind if isinstance(kind, str) else " ".join(kind)


def validation_json(rows: Iterable[ValidationRow]) -> list[dict[str, Any]]:
    """One object a network."""
    return [
        {
            "network": row.network,
            "precision": row.precision,
            "predicted_s": row.predicted_s,
            "predicted_interval_s": _interval(row.interval),
            "measured_s": row.measured_s,
            "measured_interval_s": _interval(row.measured_interval),
            "error": row.error,
        }
        for row in rows
    ]
