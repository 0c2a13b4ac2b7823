"""Predictions of strategies against what comes of them, built and measured on this computer.

A plan without limits is made for each network and kept as ``predictions.json`` before anything is
built; every strategy of it is then built and measured, a stage of the result folder each, so that a
run that was cut off goes on behind the last one. Only what was predicted first is judged. Actual
latencies are measured ratios to the original, times what it took when the plan was made
(``planning.verify.rows_of``).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_args

from scipy import stats

from harness import networks
from harness.errors import ConfigError
from harness.folder import write_atomically
from harness.planning import commands, verdicts
from harness.planning.request import PlanRequest
from harness.records import Plan, Requirement, Requirements, Verified, dump, load
from harness.records.planning import Method, Quantity
from tests.benchmarks import compression_networks, lite0, strategies_students
from tests.sensitivity import cifar_resnet

NETWORKS = ("demo", "resnet56", "efl0")
LEAST = 24
TARGETS = {
    "parameters": "all exact",
    "macs": "all exact",
    "size": "within 1 %",
    "latency": "median at most 8 %",
    "covered": "85 to 95 %",
    "accuracy": "Spearman at least 0.85",
    "verdicts": "95 % right",
    "cannot tell": "at most 10 %",
}
# The spread of requirements that verdicts are asked of: shares of what the original is predicted to
# take, and points lost.
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DROPS = (0.5, 1.0, 2.0, 5.0, 10.0)
# Names of students are part of a plan: they are those of this tree wherever it lies.
_STUDENTS = os.path.relpath(strategies_students.__file__)
_LITE0 = os.path.relpath(lite0.__file__)
_RESNETS = os.path.relpath(cifar_resnet.__file__)


class Row(NamedTuple):
    """One column of one strategy: predicted, with its interval, and measured."""

    name: str
    column: str
    predicted: float
    low: float
    high: float
    actual: float


class Judged(NamedTuple):
    """A verdict on one requirement, and whether the variant kept it."""

    name: str
    text: str
    verdict: str
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good one network's predictions were; None where nothing was predicted of it.

    Shares are of 1, errors relative; ``sign`` is how often a loss was told from a gain.
    """

    built: int
    parameters: float
    macs: float
    size: float
    latency: float
    covered: float
    spearman: float | None
    sign: float | None
    right: float | None
    cannot_tell: float

    @property
    def kept(self) -> bool:
        """Whether every target was reached."""
        return (
            self.built >= LEAST
            and self.parameters == self.macs == 1
            and self.size <= 0.01
            and self.latency <= 0.08
            and 0.85 <= self.covered <= 0.95
            and (self.spearman or 0.0) >= 0.85
            and (self.right or 0.0) >= 0.95
            and self.cannot_tell <= 0.1
        )


def request(name: str, images: Path, out: Path, *, epochs: int, student_epochs: int) -> PlanRequest:
    """What ``boardfit strategies`` is asked of a network on this computer. Raises Absent."""
    methods: tuple[Method, ...] = get_args(Method)
    students: tuple[str, ...] = ()
    preparation, weights = networks.Preparation(), None
    if name == "demo":
        network, data = "data/demo/network.py:factory", "data/demo/images.npz"
        weights = Path("data/demo/weights.pt")
        students = tuple(f"{_STUDENTS}:{kind}" for kind in ("narrower", "shallower"))
    elif name == "resnet56":
        compression_networks.training_data(images)  # says what is missing
        network, data = (
            f"{_RESNETS}:resnet56",
            str(images / "cifar10" / "lossless_subset.npz"),
        )
        (weights,) = (images / "cifar10").glob("resnet56-*.th")
        preparation = networks.Preparation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        students = (f"{_RESNETS}:resnet20", f"{_STUDENTS}:narrow_resnet56")
    else:
        compression_networks.subject(name, images)
        network, data = f"{_LITE0}:network", f"{_LITE0}:images"
        methods = ("prune", "quantize")
    return PlanRequest(
        network=network,
        requirements=Requirements(methods=methods),
        out=out / name,
        weights=weights,
        data=data,
        preparation=preparation,
        board="local",
        students=students,
        epochs=epochs,
        student_epochs=student_epochs,
    )


def run(asked: PlanRequest, *, most: int | None) -> tuple[Plan, list[Row], tuple[str, ...]]:
    """The plan as it was predicted, what was measured of it, and notes on what was not.

    The first ``most`` strategies of ``predictions.json`` are built; it is planned and written where
    there is none. ConfigError where it is of another network or of other requirements.
    """
    kept = asked.out / "predictions.json"
    if not kept.exists():
        write_atomically(kept, dump(commands.strategies(asked).plan, indent=2))
    plan = load(Plan, kept.read_text())
    top = len(plan.strategies) if most is None else min(most, len(plan.strategies))
    found = commands.strategies(replace(asked, verify=top), predicted=plan)
    if found.verification is None:
        raise ConfigError(f"nothing of {kept} was to be built; raise --most")
    return plan, rows_of(plan, found.verification.rows), found.verification.notes


def rows_of(plan: Plan, verified: Iterable[Verified]) -> list[Row]:
    """What was measured, beside what ``plan`` had predicted of it."""
    by_name = {one.name: one.predicted for one in plan.strategies}
    rows = []
    for one in verified:
        said = by_name[one.name]
        if one.column in ("parameters", "macs"):
            value = low = high = float(getattr(said, one.column))
        else:
            known = {
                "size": said.size_bytes,
                "latency": said.latency_s,
                "accuracy_drop": said.accuracy_drop,
            }[one.column]
            if known is None:
                continue
            value, low, high = known.value, known.low, known.high
        rows.append(Row(one.name, one.column, value, low, high, one.actual))
    return rows


def judged(plan: Plan, rows: Sequence[Row]) -> list[Judged]:
    """The verdicts on a spread of requirements, of every strategy that was measured."""
    actual = {(row.name, row.column): row.actual for row in rows}
    reference = verdicts.Reference(baseline=plan.baseline)
    base = plan.baseline
    asked: dict[Quantity, list[float]] = {"accuracy_drop": list(DROPS)}
    asked["size"] = [share * base.size_bytes.value for share in SHARES]
    if base.latency_s is not None:
        asked["latency"] = [share * base.latency_s.value for share in SHARES]
    found = []
    for planned in plan.strategies:
        for quantity, limits in asked.items():
            if (planned.name, quantity) not in actual:
                continue
            for limit in limits:
                requirement = Requirement(
                    quantity=quantity, limit=limit, text=f"{quantity} at most {limit:.4g}"
                )
                met = verdicts.met(requirement, planned.predicted, reference)
                kept = actual[planned.name, quantity] <= limit
                found.append(Judged(planned.name, requirement.text, met.verdict, kept))
    return found


def scored(rows: Sequence[Row], verdict: Sequence[Judged]) -> Score:
    """The score of what was measured; ConfigError where nothing was.

    Of a variant that is neither better nor worse no sign is asked.
    """
    of: Mapping[str, list[Row]] = {
        column: [row for row in rows if row.column == column]
        for column in ("parameters", "macs", "size", "latency", "accuracy_drop")
    }
    if not of["latency"]:
        raise ConfigError("nothing was measured: raise --most, or see the notes")
    drops = of["accuracy_drop"]
    signed = [row for row in drops if row.actual]
    ranks = None
    if len({r.predicted for r in drops}) > 1 and len({r.actual for r in drops}) > 1:
        ranks = float(stats.spearmanr([r.predicted for r in drops], [r.actual for r in drops])[0])
    given = [one for one in verdict if one.verdict != "cannot tell"]
    return Score(
        built=len({row.name for row in rows}),
        parameters=_share(row.predicted == row.actual for row in of["parameters"]),
        macs=_share(row.predicted == row.actual for row in of["macs"]),
        size=max(abs(row.predicted / row.actual - 1) for row in of["size"]),
        latency=statistics.median(abs(r.predicted / r.actual - 1) for r in of["latency"]),
        covered=_share(row.low <= row.actual <= row.high for row in of["latency"]),
        spearman=ranks,
        sign=_share((r.predicted > 0) == (r.actual > 0) for r in signed) if signed else None,
        right=_share((o.verdict == "meets") == o.kept for o in given) if given else None,
        cannot_tell=1 - len(given) / len(verdict) if verdict else 1.0,
    )


def _share(right: Iterable[bool]) -> float:
    several = list(right)
    return sum(several) / len(several)
