"""The page: what it says, that it says it safely, and that it needs nothing else."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import plotly.offline
import pytest

from harness.errors import ConfigError
from harness.records import FitResult, dump, load
from harness.report import page
from tests.report.conftest import NASTY, candidate


class Outline(HTMLParser):
    """The elements, the visible text and the scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def written(result, tmp_path, **options):
    path = tmp_path / "report.html"
    page.write(result, path, **options)
    return path.read_text(encoding="utf-8")


def test_the_headline_says_verdict_budget_board_and_measured_latency(result, tmp_path):
    text = Outline(written(result, tmp_path)).text
    # 0.612 ms of 2.86 ms is 21.4 %.
    assert "Meets 22 % of the baseline's latency on local: 612 µs (21.4 %)" in text
    assert "Also meets 20 % of the baseline's size: 287 kB (17.4 %)" in text
    assert "0.58 points of top-1 lost" in text


@pytest.mark.parametrize(
    "value",
    [
        "2.86 ms",  # the baseline
        "605 to 620 µs (95 %)",  # 0.612 ms times 0.988 and 1.013
        "551 to 678 µs (90 %)",  # 0.605 ms times 0.91 and 1.12
        "629 µs",  # 22 % of 2.86 ms
        "1.65 MB",
        "71.8 k",  # parameters: 287 000 / 4
        "92.54 %",
        "98.4 %",
        "9 of 9",
        "-17.6 %",  # joint 1: 0.61 ms predicted, 0.74 ms measured
        "640 samples",
        "the load of other processes was 0.9",
        "Example Processor 3400",
        "fast and exact (VNNI)",
        "The fit itself: 559 s",  # 21 + 174 + 38 + 0.8 + 92 + 19 + 85 + 88 + 41 = 558.8
        "layer1.0.conv2, layer1.1.conv2",
        "24 of 32",
        "7 groups with 2 to 14 options each",
        "One more 10 µs would lower it",
        "coupled, proven",
    ],
)
def test_the_page_shows(result, tmp_path, value):
    assert value in Outline(written(result, tmp_path)).text


def test_the_page_names_the_latency_model_that_the_fit_stands_on(result, tmp_path):
    assert "by the calibrated latency model before" in Outline(written(result, tmp_path)).text
    saved = replace(result, latency_model="nano.json (3f2a91c0d2e4)")
    text = Outline(written(saved, tmp_path)).text
    assert "by the saved latency model nano.json (3f2a91c0d2e4), anchored at the baseline" in text
    assert "calibrated" not in text


def test_alternatives_say_which_budget_they_miss(result, tmp_path):
    text = Outline(written(result, tmp_path)).text
    assert "Misses the latency budget with 34.3 % against 22 % and the size budget" in text
    assert "Misses the accuracy budget with 3.98 points against 1 point" in text


def test_alternatives_without_verdicts_are_compared_with_the_result_alone(result, tmp_path):
    text = Outline(written(replace(result, alternative_budgets={}), tmp_path)).text
    # 0.98 ms over 0.612 ms, and 447 kB over 287 kB
    assert "60 % slower, 56 % larger and top-1 0.51 points higher than the result." in text
    assert "Misses" not in text
    assert "every budget" not in text


def test_the_page_loads_nothing(result, nasty, infeasible, tmp_path):
    for shown in (result, nasty, infeasible):
        for tag, attributes in Outline(written(shown, tmp_path)).elements:
            for name in ("src", "href", "srcset", "action", "data", "poster"):
                value = attributes.get(name) or ""
                assert not value or value.startswith("data:"), (tag, attributes)
        html = written(shown, tmp_path)
        style = html[html.index("<style>") : html.index("</style>")]
        assert "url(" not in style
        assert "@import" not in style
        assert "default-src 'none'" in html


def test_plotly_is_inlined_once(result, tmp_path):
    html = written(result, tmp_path)
    library = plotly.offline.get_plotlyjs()
    assert html.count(library) == 1
    assert len(html) < len(library) + 200_000
    rest = html.replace(library, "")
    assert rest.count("Plotly.newPlot") == 6
    assert "http" not in rest.replace("http-equiv", "")


def test_names_are_escaped_everywhere(nasty, tmp_path):
    html = written(nasty, tmp_path)
    rest = html.replace(plotly.offline.get_plotlyjs(), "")
    assert "<script>alert" not in rest
    assert "</script>'" not in rest
    outline = Outline(rest)
    assert outline.text.count(NASTY) > 8
    # Scripts: the empty one that held plotly.js, and for each figure plotly's own.
    assert all("Plotly" in script for script in outline.scripts if script.strip())


def test_names_reach_plotly_as_text_and_not_as_tags(nasty, tmp_path):
    rest = written(nasty, tmp_path).replace(plotly.offline.get_plotlyjs(), "")
    for block in re.findall(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*?\]),\s*\{', rest, re.S):
        assert "<script" not in str(json.loads(block))


def test_fake_results_are_refused_unless_asked_for(result, tmp_path):
    fake = replace(result, fake=True)
    with pytest.raises(ConfigError, match="fake engine"):
        page.write(fake, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    assert "Measured with the fake engine" in written(fake, tmp_path, allow_fake=True)
    assert "Measured with the fake engine" not in written(result, tmp_path)


def test_a_fit_without_a_result_explains_and_shows_the_nearest_budgets(infeasible, tmp_path):
    text = Outline(written(infeasible, tmp_path)).text
    headline = "No network was built for local that meets 5 % of the baseline's latency"
    assert headline in text
    assert "Why there is no result No allocation reaches 5 %" in text
    assert "11.8 % of the baseline 337 µs" in text  # 0.118 times 2.86 ms
    assert "62.0 kB" in text
    assert "Every network that was measured" not in text


def test_an_open_verdict_says_what_to_do(result, tmp_path):
    latency = replace(result.budgets[0], met=False, verdict="cannot tell yet")
    shown = replace(result, verdict="cannot tell yet", budgets=(latency, *result.budgets[1:]))
    text = Outline(written(shown, tmp_path)).text
    assert "Cannot tell yet whether it meets 22 % of the baseline's latency on local" in text
    assert "measure longer" in text


def test_missing_values_are_said_to_be_missing(result, tmp_path):
    bare = replace(
        candidate("joint 3", "joint", latency_ms=0.6, size=287_000, top1=None),
        board_agreement=None,
        host_agreement=None,
    )
    shown = replace(
        result,
        baseline=replace(result.baseline, top1=None),
        result=bare,
        candidates=(bare,),
        alternatives={},
        budgets=(),
        kernels=(),
        stages=(),
        front=None,
        peak_macs_per_s={},
    )
    html = written(shown, tmp_path)
    text = Outline(html).text
    assert text.count("not measured") >= 4
    assert "Meets the budgets on local" in text
    assert "None" not in text
    assert "Plotly.newPlot" not in html  # without figures there is no need for plotly.js
    assert len(html) < 100_000


def test_the_page_of_a_result_from_its_file_is_the_same(result):
    assert page.render(load(FitResult, dump(result))) == page.render(result)


def test_a_metric_of_the_users_takes_the_place_of_top1_everywhere(result, tmp_path):
    budgets = tuple(
        replace(verdict, budget=replace(verdict.budget, metric="<overlap>"))
        for verdict in result.budgets
    )
    text = written(replace(result, budgets=budgets), tmp_path)
    visible = Outline(text).text
    assert "0.58 points of <overlap> lost" in visible
    assert "<Overlap" not in text and "<overlap" not in text.lower().split("<script")[0]
    assert "top-1" not in visible.lower()
