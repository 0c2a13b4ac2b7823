"""Verdicts and soaks in words, and as they are printed as JSON."""

import json
from dataclasses import replace

import pytest

from harness import sustain, verdict
from harness.records import Conditions, FitResult, dump, load
from harness.report import judged, networks, words
from tests.report.test_tables import text
from tests.test_stats import measurement
from tests.test_sustain import heating, soak
from tests.test_verdict import bimodal, steady, stream


def soaked(medians_s, temperatures=None):
    return replace(measurement([1e-3], [0]), soak=soak(medians_s, temperatures))


def test_a_verdict_says_what_is_wrong_what_to_do_and_what_is_not_known():
    found = verdict.judge(stream(bimodal, 0), percentiles=(50,), shown=(90, 99))
    shown = text(judged.verdict_text(found))
    assert shown.startswith("UNSTABLE")
    assert "p90 1." in shown and "p99 needs 662 calls" in shown
    assert "of the median: stop other programs" in shown
    assert "not known: baseline drift, CPU clock, GPU clock" in shown


def test_a_valid_verdict_is_one_word_and_what_is_not_known():
    shown = text(judged.verdict_text(verdict.judge(stream(steady, 0), percentiles=(50,))))
    assert shown.split("\n")[0].strip() == "VALID"
    assert len(shown.strip().split("\n")) == 2


def test_the_json_of_a_verdict_holds_every_criterion():
    found = verdict.judge(stream(bimodal, 0))
    shown = judged.verdict_json(found)
    assert shown["status"] == "UNSTABLE"
    assert [c["name"] for c in shown["criteria"]] == [c.name for c in found.criteria]
    assert {c["outcome"] for c in shown["criteria"]} == {"ok", "violated", "unknown"}


def test_a_soak_is_told_from_cold_to_soaked_with_the_temperature():
    taken = soaked([1e-3] * 5 + [1.1e-3] * 15, [40.0] + [60.0] * 19)
    sentence = judged.soak_sentence(sustain.summarise(taken.soak))
    # From 1.00 to 1.10 ms is 10 % more.
    assert sentence.startswith("sustained for 20 s: 1.00 ms (40 °C) cold, 1.10 ms (60 °C) soaked")
    assert "+10.0 %" in sentence
    assert "still changing" not in sentence


def test_a_soak_that_had_not_settled_says_to_go_on():
    found = sustain.summarise(soak(heating(60, change=0.5, constant_s=200.0)))
    assert "sustain it for longer" in judged.soak_sentence(found)


def test_the_json_of_a_soak_keeps_windows_and_samples():
    taken = soaked([1e-3] * 4)
    shown = judged.soak_json(taken, sustain.summarise(taken.soak))
    assert [w["median_s"] for w in shown["windows"]] == [1e-3] * 4
    assert (shown["every"], shown["samples_s"]) == (1, [])
    json.dumps(shown, allow_nan=False)


def test_the_plot_opens_alone_and_escapes_the_networks_name(tmp_path):
    taken = replace(soaked([1e-3, 1.1e-3, 1.2e-3], [40.0, 50.0, 55.0]), label="<b>net</b>")
    path = tmp_path / "deep" / "soak.html"
    judged.write_soak(taken, sustain.summarise(taken.soak), path)
    page = path.read_text()
    assert "cdn.plot.ly" not in page.split("<body>")[1][:2000]
    assert "&lt;b&gt;net" in page or "\\u0026lt;b" in page
    assert "temperature in" in page


def test_a_fit_shows_verdict_and_soak_of_each_candidate(result):
    found = verdict.judge(stream(bimodal, 0))
    state = sustain.summarise(soak([1e-3] * 5 + [1.1e-3] * 15, [41.0] + [62.0] * 19))
    assert result.result is not None
    shown = replace(result, result=replace(result.result, verdict=found, soak=state))
    rows = {row.name: row.cells for row in networks.comparison(shown)}
    index = [name for name, _ in networks.columns(shown)].index("result")
    assert rows["The measurement is"][index].text == "UNSTABLE"
    assert "coefficient of variation" in rows["The measurement is"][index].detail
    assert rows["From cold to soaked"][index] == words.Cell("+10.0 %", "after 20 s, 62 °C")
    assert rows["The measurement is"][0].text == "not judged"


def test_a_result_from_before_there_were_verdicts_is_read(result):
    old = json.loads(dump(result))
    for candidate in (old["baseline"], old["result"], *old["candidates"]):
        del candidate["verdict"], candidate["soak"]
    found = load(FitResult, json.dumps(old))
    assert found.baseline.verdict is None


@pytest.mark.parametrize("clocks", [None, (1e9, 2e9)])
def test_the_state_of_a_board_is_told_as_far_as_it_is_known(clocks):
    taken = soaked([1e-3] * 4)
    found = sustain.summarise(taken.soak)
    told = judged.soak_sentence(replace(found, cold=Conditions(cpu_clock_hz=clocks)))
    assert ("(CPU 1500 MHz) cold" in told) == (clocks is not None)
