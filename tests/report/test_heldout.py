"""The held-out errors of a measurement table, as text, JSON, figures and page."""

import json

import pytest

from harness.report import heldout
from latency_models.validation import NetworkError, summarise
from tests.report.conftest import NASTY
from tests.report.test_tables import text


def row(name, predicted, measured, *, precision="fp16", family="a", conv=0.5):
    return NetworkError(
        name=name,
        family=family,
        precision=precision,
        predicted_s=predicted,
        low_s=0.8 * predicted,
        high_s=1.2 * predicted,
        measured_s=measured,
        unsupported=(),
        shares=(("conv_3x3", conv), ("gemm", 1 - conv)),
        power_mode="MAXN",
    )


@pytest.fixture
def report():
    rows = [
        row("first", 1.08e-3, 1e-3, conv=0.9),
        row("second", 1.5e-3, 2e-3, family="b"),
        row(NASTY, 4e-3, 4e-3, precision="fp32", conv=0.1),
    ]
    return summarise(rows, coverage=0.9)


def test_the_summary_says_errors_rank_and_coverage(report):
    # 8 %, 25 % and 0 %: median 8 %, mean 11 %, two of three within 10 %; ranks agree.
    # 1 in 0.86..1.30 and 4 in 3.2..4.8, 2 not in 1.2..1.8; each interval is 1.2 / 0.8 wide.
    assert heldout.summary(report) == (
        "3 rows: median absolute error 8.0 %, mean 11.0 %, 67 % within 10 %, rank correlation "
        "1.000; 67 % of the measurements lie inside intervals that are to hold 90 %, whose median "
        "width is a factor of 1.50"
    )


def test_the_table_shows_the_worst_first_and_what_goes_with_them(report):
    shown = text(heldout.validation_table(report, title="t.csv: a board"))
    assert shown.startswith("t.csv: a board")
    assert shown.index("second") < shown.index("first")
    assert "-25.0 %" in shown and "fp16, batch 1, MAXN" in shown
    assert "By family" in shown
    # conv_3x3: (0.9 + 0.5 + 0.1) / 3 of the time; (0.9 x 8 + 0.5 x 25) / 1.5 = 13.1 %.
    (line,) = [line for line in shown.splitlines() if "conv_3x3" in line]
    assert line.split()[1:7] == ["50.0", "%", "3", "13.1", "%", "-3.5"]


def test_only_the_worst_are_shown_of_many():
    rows = [row(f"net{i:02}", 1 + i / 100, 1.0) for i in range(30)]
    shown = text(heldout.validation_table(summarise(rows, coverage=0.9), title="t"))
    assert "the worst 20 of 30" in shown
    assert "net29" in shown and "net09" not in shown


def test_json_has_every_network_and_kind(report):
    found = json.loads(heldout.text_json(report, title="t"))
    assert [network["error"] for network in found["networks"]] == pytest.approx([0.08, -0.25, 0.0])
    assert found["networks"][1]["inside"] is False
    assert found["by_family"] == pytest.approx({"a": 0.04, "b": 0.25})
    assert {kind["kind"]: kind["networks"] for kind in found["by_kind"]} == {
        "conv_3x3": 3,
        "gemm": 3,
    }


def test_every_network_is_drawn_over_its_measurement(report):
    figure = heldout.predicted_against_measured(report)
    drawn = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert drawn["fp16"].x == (1e-3, 2e-3)
    assert drawn["fp16"].y == (1.08e-3, 1.5e-3)
    assert drawn["fp16"].error_y.array == pytest.approx((0.216e-3, 0.3e-3))
    assert drawn["fp32"].x == (4e-3,)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range


def test_families_stand_in_the_order_of_their_errors(report):
    figure = heldout.by_family(report)
    assert figure.layout.yaxis.ticktext == ("a", "b")
    assert figure.data[0].x == pytest.approx((8.0, -25.0, 0.0))
    assert figure.data[0].y == (0, 1, 0)


def test_kinds_are_drawn_with_their_weighted_errors(report):
    figure = heldout.by_kind(report)
    assert set(figure.layout.yaxis.ticktext) == {"conv_3x3", "gemm"}
    conv = figure.layout.yaxis.ticktext.index("conv_3x3")
    assert figure.data[0].x[conv] == pytest.approx(100 * (0.072 + 0.125) / 1.5)


def test_the_page_opens_alone_and_escapes_names(report, tmp_path):
    heldout.write(report, tmp_path / "page.html", title=f"t.csv {NASTY}")
    page = (tmp_path / "page.html").read_text()
    assert "<script src" not in page
    assert page.count('id="figure-') == 3
    assert NASTY not in page
    assert "second" in page and "By kernel kind" in page
