"""The traces of the figures hold the records' numbers."""

import math
from dataclasses import replace

import pytest

from harness.report import figures
from tests.report.conftest import NASTY, candidate


def trace(figure, name):
    (found,) = [t for t in figure.data if t.name == name]
    return found


def test_predictions_stand_over_measurements_with_both_intervals(result):
    found = trace(figures.predicted_against_measured(result), "result")
    assert found.x == (0.612e-3,)
    assert found.y == (0.605e-3,)
    assert found.error_y.array == pytest.approx((0.12 * 0.605e-3,))
    assert found.error_y.arrayminus == pytest.approx((0.09 * 0.605e-3,))
    assert found.error_x.arrayminus == pytest.approx((0.012 * 0.612e-3,))
    assert "551 to 678 µs" in found.text[0]


def test_every_candidate_is_drawn_once(result):
    figure = figures.predicted_against_measured(result)
    drawn = {t.name: len(t.x) for t in figure.data if t.mode == "markers"}
    assert drawn == {"earlier rounds": 2, "result": 1, "int8 only": 1, "pruning only": 1}


def test_the_identity_line_spans_the_same_log_axes(result):
    figure = figures.predicted_against_measured(result)
    line = trace(figure, "predicted = measured")
    assert line.x == line.y
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert math.log10(line.x[0]) == pytest.approx(figure.layout.xaxis.range[0])


def test_the_budgets_bound_accuracy_and_latency(result):
    figure = figures.accuracy_against_latency(result)
    assert trace(figure, "latency budget").x == pytest.approx((0.22 * 2.86e-3,) * 2)
    assert trace(figure, "top-1 budget").y == pytest.approx((92.12, 92.12))
    assert trace(figure, "result").y == pytest.approx((92.54,))
    assert trace(figure, "baseline").x == pytest.approx((2.86e-3,))
    (area,) = figure.layout.shapes
    assert (area.x0, area.x1) == (0, pytest.approx(0.22 * 2.86e-3))


def test_an_absolute_latency_budget_is_taken_as_it_is(result):
    budget = replace(result.budgets[0].budget, limit=0.7e-3, relative=False)
    shown = replace(result, budgets=(replace(result.budgets[0], budget=budget),))
    figure = figures.accuracy_against_latency(shown)
    assert trace(figure, "latency budget").x == (0.7e-3, 0.7e-3)
    assert "top-1 budget" not in [t.name for t in figure.data]


def test_bars_are_keep_ratios_in_the_colour_of_their_precision(result):
    figure = figures.allocation(result.result)
    int8, fp32 = trace(figure, "int8"), trace(figure, "fp32")
    assert (fp32.x, fp32.y) == ((1,), (100.0,))
    # 24 of 32, 24 of 32, 32 of 64, 40 of 64, 40 of 128, 10 of 10
    assert int8.y == (75.0, 75.0, 50.0, 62.5, 31.25, 100.0)
    assert int8.marker.color != fp32.marker.color
    assert "layer1.1.conv2" in int8.text[1]


def test_a_group_that_is_left_out_is_a_hatched_column(result):
    first, *others = result.result.allocation
    gone = replace(first, kept=0, precision="left out")
    figure = figures.allocation(replace(result.result, allocation=(gone, *others)))
    bars = trace(figure, "left out")
    assert (bars.x, bars.y) == ((1,), (100.0,))
    assert bars.marker.pattern.shape == "/"
    assert f"{first.channels} channels, left out with their layers" in bars.text[0]


def test_kernels_stand_at_their_intensity_and_rate(result):
    figure = figures.roofline(result)
    base = trace(figure, "baseline, fp32")
    # stem.conv: 28 311 552 MACs over 5.25 MB, in 7 % of 2.86 ms
    assert base.x[0] == pytest.approx(28_311_552 / 5.25e6)
    assert base.y[0] == pytest.approx(28_311_552 / (0.07 * 2.86e-3))
    assert len(base.x) == 10
    assert len(trace(figure, "result, int8").x) == 9
    assert base.marker.symbol != trace(figure, "result, fp32").marker.symbol


def test_roofs_meet_where_peak_is_intensity_times_bandwidth(result):
    figure = figures.roofline(result)
    peak = trace(figure, "fitted peak, int8")
    assert set(peak.y) == {2.4e12}
    assert peak.x[0] == pytest.approx(2.4e12 / 2.1e10)
    memory = trace(figure, "fitted bandwidth")
    assert memory.y[1] / memory.x[1] == pytest.approx(2.1e10)
    assert memory.x[1] == pytest.approx(peak.x[0])


def test_kernels_without_a_time_or_without_macs_are_left_out(result):
    kernels = (
        replace(result.kernels[0], measured_s=None),
        replace(result.kernels[0], macs=0),
        result.kernels[0],
    )
    figure = figures.roofline(replace(result, kernels=kernels))
    assert len(trace(figure, "baseline, fp32").x) == 1


def test_stages_stand_in_their_order(result):
    (bars,) = figures.stage_times(result).data
    assert bars.x[:3] == (21.0, 174.0, 38.0)
    assert bars.text[3] == "800 ms"


def test_without_data_there_is_no_figure(infeasible):
    bare = replace(infeasible, stages=(), baseline=replace(infeasible.baseline, top1=None))
    assert figures.predicted_against_measured(bare) is None
    assert figures.accuracy_against_latency(bare) is None
    assert figures.allocation(bare.baseline) is None
    assert figures.roofline(bare) is None
    assert figures.stage_times(bare) is None


def test_names_are_escaped_for_plotly(nasty):
    for figure in (
        figures.predicted_against_measured(nasty),
        figures.accuracy_against_latency(nasty),
        figures.allocation(nasty.result),
        figures.roofline(nasty),
        figures.stage_times(nasty),
    ):
        assert NASTY not in str(figure.to_dict())
        assert "&lt;script&gt;" in str(figure.to_dict())


@pytest.mark.parametrize("spread", [1.0001, 1.3, 4, 60, 1e4, 1e9])
def test_log_axes_have_a_few_ticks_at_any_range(result, spread):
    both = [
        candidate(str(i), "joint", latency_ms=ms, size=1, top1=0.9, predicted=ms)
        for i, ms in enumerate((0.613, 0.613 * spread))
    ]
    shown = replace(result, candidates=tuple(both), alternatives={}, result=None)
    axis = figures.predicted_against_measured(shown).layout.xaxis
    assert 2 <= len(axis.tickvals) <= 8
    assert len(set(axis.ticktext)) == len(axis.ticktext)
    low, high = axis.range
    assert all(low - 1e-9 <= math.log10(tick) <= high + 1e-9 for tick in axis.tickvals)
