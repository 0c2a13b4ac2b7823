"""Plans in words: what the terminal and the page say of strategies that nobody built."""

from dataclasses import replace

import plotly.offline
import pytest
from rich.console import Console

from harness.records import Estimate, Met, Plan, Requirement, Requirements, Verification, dump, load
from harness.report import planned, planned_figures, planned_page
from harness.units import format_points
from tests.report import plans
from tests.report.conftest import NASTY
from tests.report.test_page import Outline


def printed(renderable):
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def visible(plan, **options):
    html = planned_page.render(plan, **options).replace(plotly.offline.get_plotlyjs(), "")
    return html, Outline(html).text


def test_the_headline_counts_what_meets_and_names_the_best():
    text = planned.headline(plans.plan())
    assert text == (
        "One strategy is predicted to meet latency at most 40.0 ms, file size at most 3.00 MB and "
        "accuracy lost at most 1 point on jetson-nano; the best is prune and int8, 40 ms"
    )


def test_without_predictions_nobody_can_tell():
    found = plans.plan(accuracy=False, latency=False)
    assert planned.headline(found).startswith("It cannot be told before building whether")
    assert planned.source_sentence(found) == "Latencies are not predicted."
    text = printed(planned.plan_summary(found))
    assert "accuracy lost  " not in text.split("Strategies, best first")[1].splitlines()[2]


def test_where_nothing_meets_the_nearest_and_what_binds_are_said():
    found = plans.hopeless()
    assert planned.nearest_sentences(found) == (
        "Latency: 1.00 µs is asked, and 12.3 ms is the nearest that could be kept; most of it goes "
        "to stage1.conv and stage3.conv.",
    )
    alone = replace(found, nearest=(replace(found.nearest[0], alone=True, binding=()),))
    (sentence,) = planned.nearest_sentences(alone)
    assert sentence.endswith("could be kept, with every other requirement set aside.")
    for text in (printed(planned.plan_summary(found)), visible(found)[1]):
        assert "No strategy is predicted to meet latency at most 1.00 µs" in text
        assert "12.3 ms is the nearest" in " ".join(text.split())


@pytest.mark.parametrize(
    ("requirement", "text"),
    [
        (Requirement(quantity="latency", limit=0.02, text=""), "latency at most 20.0 ms"),
        (
            Requirement(quantity="latency", limit=0.02, text="", percentile=90),
            "latency, p90 at most 20.0 ms",
        ),
        (
            Requirement(quantity="size", limit=0.25, relative=True, text=""),
            "file size at most 25.0 % of the original's",
        ),
        (Requirement(quantity="macs", limit=2e8, text=""), "MACs at most 200 M"),
        (Requirement(quantity="energy", limit=0.05, text=""), "energy a call at most 50.0 mJ"),
        (
            Requirement(quantity="accuracy_floor", limit=0.915, text=""),
            "accuracy at least 91.50 %",
        ),
    ],
)
def test_every_requirement_has_its_words(requirement, text):
    assert planned.asked(requirement) == text


def test_an_open_end_of_an_interval_is_said_to_be_open():
    met = Met(requirement=plans.LATENCY, verdict="cannot tell", value=0.03, low=0.025, high=None)
    assert planned.met_cell(met).detail == "25.0 ms or more"


def test_the_table_has_the_original_and_every_strategy_with_intervals():
    columns, rows = planned.table(plans.plan())
    assert columns == (
        "size",
        "parameters",
        "MACs",
        "peak activations",
        "latency",
        "accuracy lost",
    )
    assert len(rows) == 1 + 6
    assert rows[0][-1].text == "0"
    # prune and int8: 0.35 points, less 0.2 + 0.35 / 4 and more by 0.3 + 0.35 / 2.
    assert (rows[1][-1].text, rows[1][-1].detail) == ("0.35 points", "0.06 to 0.82 points")


def test_the_terminal_shows_verdicts_strategies_sentences_and_where_the_files_are(tmp_path):
    text = " ".join(printed(planned.plan_summary(plans.plan(), out=tmp_path)).split())
    for part in (
        "Requirements, by prune and int8, 40 ms",
        "fp32 student",
        "does not meet",
        "21.2 to 25.6 ms",
        "It prunes 5 of 8 groups",
        "a saved latency model",
        "boardfit fit --strategy FILE",
    ):
        assert part in text


def test_latencies_from_a_datasheet_say_so():
    found = plans.plan()
    prior = replace(found, baseline=replace(found.baseline, latency_source="prior"))
    assert "datasheet alone" in planned.source_sentence(prior)
    assert "datasheet alone" in visible(prior)[1]
    assert "datasheet alone" in printed(planned.plan_summary(prior)).replace("\n", " ")


def test_the_page_has_cards_figures_verdicts_layers_and_sentences():
    html, text = visible(plans.plan(notes=("A note.",)))
    # Two planes, and a figure for time, weights and arithmetic of the layers.
    assert html.count("Plotly.newPlot") == 5
    for part in (
        "One strategy is predicted to meet",
        "at most 3.00 MB",
        "Requirement by requirement",
        "Layer by layer: prune and int8, 40 ms",
        "stage3.conv",
        "24 to 48 channels",
        "What each strategy does",
        "A note.",
        "Planned in 3.2 s",
    ):
        assert part in text or part in html, part
    assert text.count("does not meet") >= 10


def test_the_page_loads_nothing_and_escapes_names():
    found = plans.plan()
    first = replace(found.strategies[0], name=NASTY, sentences=(NASTY, NASTY))
    nasty = replace(found, network=NASTY, strategies=(first, *found.strategies[1:]), notes=(NASTY,))
    html, text = visible(nasty)
    assert "<script>alert" not in html
    assert text.count(NASTY) > 5
    for tag, attributes in Outline(html).elements:
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            assert not value or value.startswith("data:"), (tag, attributes)
    assert "http" not in html.replace("http-equiv", "")


def test_the_page_of_a_plan_without_latency_or_accuracy_leaves_out_what_is_not_known():
    html, text = visible(plans.plan(accuracy=False, latency=False))
    assert html.count("Plotly.newPlot") == 2  # weights and arithmetic of the layers
    assert "The trade-off" not in text
    assert "None" not in text


def test_an_empty_plan_is_a_page_too():
    empty = replace(plans.plan(), strategies=(), front=())
    html, text = visible(empty)
    assert "There is no strategy for demo.py:factory on jetson-nano" in text
    assert "Plotly.newPlot" not in html


def test_a_plan_without_requirements_judges_nothing():
    bare = replace(plans.plan(limits=()), requirements=Requirements())
    assert planned.headline(bare) == "6 strategies for demo.py:factory on jetson-nano"
    assert "Requirement by requirement" not in visible(bare)[1]


def test_the_planes_hold_every_strategy_with_its_interval_and_its_limits():
    figure = planned_figures.accuracy_against_latency(plans.plan())
    assert figure is not None
    traces = {trace.name: trace for trace in figure.data}
    points = [t for t in figure.data if t.mode == "markers" and t.name != "on the front"]
    assert sum(len(trace.x) for trace in points) == 7
    assert list(traces["latency required"].x) == [0.040, 0.040]
    assert list(traces["accuracy required"].y) == [1.0, 1.0]
    (meeting,) = traces["meets"].text
    assert meeting.startswith("<b>prune and int8, 40 ms</b>")
    assert "It prunes 5 of 8 groups" in meeting.replace("<br>", " ")
    assert traces["meets"].error_y.array[0] == pytest.approx(0.3 + 0.35 / 2)
    assert len(traces["on the front"].x) == 4
    # Less lost is up.
    low, high = figure.layout.yaxis.range
    assert low > high


def test_a_relative_limit_is_drawn_at_its_share_of_the_original():
    half = Requirement(quantity="size", limit=0.5, relative=True, text="50%")
    found = replace(plans.plan(), requirements=Requirements(limits=(half,)))
    figure = planned_figures.size_against_latency(found)
    (line,) = [trace for trace in figure.data if trace.name == "size required"]
    assert line.y[0] == pytest.approx(found.baseline.size_bytes.value / 2)


def test_layers_are_shown_before_and_after():
    found = plans.plan()
    figure = planned_figures.layer_costs(found, found.strategies[0], "weights")
    before, after = figure.data
    assert list(before.y) == [layer.weight_bytes for layer in found.baseline.layers]
    # Three quarters of 32 to 64 channels, 3x3, one byte a weight and four a bias: 9*24*48 + 4*48.
    assert after.y[2] == 9 * 24 * 48 + 4 * 48
    assert after.name == "after, int8"
    assert "24 to 48 channels" in after.text[2]
    assert (
        planned_figures.layer_costs(
            plans.plan(latency=False), plans.plan(latency=False).strategies[0], "latency"
        )
        is None
    )


def test_a_verification_says_what_was_off_and_what_the_interval_held():
    rows = planned.verification_rows(plans.verification())
    # 30 ms predicted over 40 ms measured, less one.
    assert rows[0][3:] == ("40.0 ms", "-25.0 %", "no")
    assert rows[1][3:] == ("431 k", "exact", "yes")
    text = printed(planned.verification_table(plans.verification()))
    assert "recalibrated from 1 built strategy" in text
    page = visible(plans.plan(), verification=plans.verification())[1]
    assert "What building them gave" in page
    assert "-25.0 %" in page
    assert planned.verification_rows(Verification()) == ()


def test_the_page_of_a_plan_from_its_file_is_the_same():
    found = plans.plan()
    assert planned_page.render(load(Plan, dump(found))) == planned_page.render(found)


def test_an_interval_in_points_has_its_unit_once():
    found = planned.estimate_cell(Estimate(value=1.5, low=1.0, high=2.0), format_points)
    assert found.detail == "1 to 2 points"
