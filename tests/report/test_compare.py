"""What a comparison looks like in the terminal and as JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from harness.comparison.compare import compare
from harness.comparison.differences import judge
from harness.records import Conditions, Interval
from harness.report.compare import comparison_json, comparison_text, outcome_text
from harness.report.tables import show
from tests.comparison.test_compare import LATER, kernel, profile, run

HOT = Conditions(cpu_clock_hz=(1.4e9,), temp_c=61.0, throttled=True)
COLD = Conditions(cpu_clock_hz=(2.0e9,), temp_c=40.0, throttled=False)


def compared(count=14):
    """B with twice the time, hotter, and kernels of which the last changed most."""
    of_a = profile(*(kernel(f"/k{i}", 0.001) for i in range(count)), kernel("/old[0]", 0.002))
    of_b = profile(*(kernel(f"/k{i}", 0.001 + i * 1e-5) for i in range(count)))
    a = replace(run([0.010, 0.010], before=COLD, after=COLD), profile=of_a)
    b = replace(run([0.020, 0.020], before=COLD, after=HOT, threads=2, **LATER), profile=of_b)
    return compare(a, b, may_differ=["threads"])


def printed(comparison, **options) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(comparison_text(comparison, **options), console=console)
    return console.file.getvalue()


def test_totals_kernels_and_changes_are_shown():
    text = printed(compared())
    for part in (
        "10.0 ms",
        "20.0 ms",
        "+100.0 %",
        "by independent intervals",
        "/k13",
        "+13.0 %",
        "In A alone (2.00 ms): /old[0]",
        "threads",
        "cpu clock after",
        "2.00 GHz",
        "61.0 °C",
        "The runs are unlike in threads, which was allowed.",
        "fake engine",
    ):
        assert part in text, part


def test_kernels_that_changed_most_come_first_and_the_rest_on_demand():
    assert "12 of 14" in printed(compared())
    assert "/k0 " not in printed(compared())
    assert "/k0 " in printed(compared(), every=True)


def test_where_nothing_changed_that_is_said():
    text = printed(compare(run([0.01, 0.01]), run([0.02, 0.02], **LATER)))
    assert "Nothing that is known of versions and conditions changed." in text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.05, 1.10, "slower: B takes +5.0 to +10.0 %, more than 3.0 %"),
        (0.95, 1.01, "not slower by more than 3.0 %: B takes -5.0 to +1.0 %"),
        (0.95, 1.10, "cannot tell: B takes -5.0 to +10.0 %, on both sides of 3.0 %"),
    ],
)
def test_the_outcome_is_one_line(low, high, words):
    total = replace(compared().total, ratio_interval=Interval(low, high, 0.95))
    assert words in outcome_text(total, limit=0.03, outcome=judge(total, limit=0.03))


def test_json_holds_everything_that_json_can_hold():
    content = comparison_json(compared(), limit=0.03, outcome="slower")
    again = json.loads(json.dumps(content, allow_nan=False))
    assert again["total"]["ratio"] == 2
    assert (again["limit"], again["outcome"]) == (0.03, "slower")
    assert [one["node"] for one in again["only_a"]] == ["/old[0]"]
    assert "samples_s" not in again["only_a"][0]
    changed = {change["name"] for change in again["conditions"] if change["changed"]}
    assert changed == {"threads", "cpu_clock_hz after", "temp_c after", "throttled"}
