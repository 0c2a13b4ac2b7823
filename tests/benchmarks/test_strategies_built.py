"""How predictions of strategies are scored, by hand."""

import math

import pytest

from harness import networks
from harness.errors import ConfigError
from harness.planning import commands
from harness.planning.request import PlanRequest
from harness.records import (
    Estimate,
    Plan,
    PlannedStrategy,
    Requirements,
    Strategy,
    Verification,
    Verified,
)
from tests.benchmarks.strategies_built import Judged, Row, judged, rows_of, run, scored
from tests.planning.tiny import predicted


def plan_of(**ones):
    strategies = tuple(
        PlannedStrategy(
            name=name,
            methods=(),
            strategy=Strategy(label=name, methods=(), entries=(), epochs=0, seed=0),
            predicted=said,
            verdicts=(),
            verdict="meets",
            sentences=("", ""),
            on_front=True,
        )
        for name, said in ones.items()
    )
    return Plan(
        network="net",
        board="local",
        requirements=Requirements(),
        baseline=predicted(),
        strategies=strategies,
    )


def test_what_was_predicted_first_is_judged_and_not_what_verifying_learned():
    plan = plan_of(a=predicted())
    later = Estimate.exactly(0.5)
    rows = rows_of(plan, [Verified(name="a", column="latency", predicted=later, actual=0.013)])
    assert rows == [Row("a", "latency", 0.012, 0.010, 0.014, 0.013)]


def test_what_is_built_is_the_plan_that_was_kept_and_is_not_planned_again(tmp_path, monkeypatch):
    calls, said = [], predicted()

    def strategies(request, *, predicted=None):
        calls.append((request.verify, predicted))
        # Whoever plans again gets another plan each time.
        plan = predicted or plan_of(**{f"plan {len(calls)}": said})
        rows = [
            Verified(name=s.name, column="latency", predicted=s.predicted.latency_s, actual=0.013)
            for s in plan.strategies[: request.verify]
        ]
        found = Verification(rows=tuple(rows)) if request.verify else None
        return commands.Planned(plan=plan, verification=found)

    monkeypatch.setattr(commands, "strategies", strategies)
    asked = PlanRequest(
        network="net",
        requirements=Requirements(),
        out=tmp_path,
        preparation=networks.Preparation(),
    )
    first, rows, _ = run(asked, most=None)
    assert calls == [(0, None), (1, first)]
    assert [row.name for row in rows] == [one.name for one in first.strategies] == ["plan 1"]
    again, later, _ = run(asked, most=5)
    assert calls[2:] == [(1, first)]
    assert (again, later) == (first, rows)


def test_verdicts_are_right_where_the_measurement_says_so():
    # 10 to 14 ms, where the original takes 12: of the eight limits of 3.6 to 12 ms those from
    # 10.8 up cannot be told, and all others are missed, as 13 ms miss them.
    plan = plan_of(a=predicted())
    found = judged(plan, [Row("a", "latency", 0.012, 0.010, 0.014, 0.013)])
    assert [one.verdict for one in found] == ["does not meet"] * 6 + ["cannot tell"] * 2
    assert not any(one.kept for one in found)
    # 9.9 ms keep the last two.
    fast = judged(plan, [Row("a", "latency", 0.012, 0.010, 0.014, 0.0099)])
    assert [one.kept for one in fast] == [False] * 6 + [True] * 2


def test_a_score_counts_by_hand():
    rows = [
        *(
            Row(n, "parameters", 10, 10, 10, actual)
            for n, actual in (("a", 10), ("b", 10), ("c", 11))
        ),
        *(Row(n, "macs", 10, 10, 10, 10) for n in "abc"),
        *(Row(n, "size", 101, 101, 101, 100) for n in "abc"),
        # Off by 10, 5 and 50 %; two of three covered.
        Row("a", "latency", 1.1, 0.9, 1.2, 1.0),
        Row("b", "latency", 1.05, 0.9, 1.2, 1.0),
        Row("c", "latency", 1.5, 1.2, 1.8, 1.0),
        # The ranks of the last two are swapped, and a gain was taken for a loss.
        Row("a", "accuracy_drop", 0.5, 0, 1, -0.1),
        Row("b", "accuracy_drop", 1.0, 0, 2, 4.0),
        Row("c", "accuracy_drop", 2.0, 0, 4, 3.0),
    ]
    verdicts = [Judged("a", "", v, k) for v, k in (("meets", True), ("does not meet", True))]
    verdicts += [Judged("a", "", "cannot tell", True)] * 2
    score = scored(rows, verdicts)
    assert score.built == 3
    assert score.parameters == pytest.approx(2 / 3) and score.macs == 1
    assert score.size == pytest.approx(0.01)
    assert score.latency == pytest.approx(0.1) and score.covered == pytest.approx(2 / 3)
    # 1 - 6 (0 + 1 + 1) / (3 (9 - 1)).
    assert score.spearman == pytest.approx(0.5) and score.sign == pytest.approx(2 / 3)
    assert math.isclose(score.right, 0.5) and math.isclose(score.cannot_tell, 0.5)
    assert not score.kept


def test_nothing_measured_is_no_score():
    with pytest.raises(ConfigError, match="nothing was measured"):
        scored([], [])
