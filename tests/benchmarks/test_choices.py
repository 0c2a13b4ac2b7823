import json
from pathlib import Path

import pytest

from tests.benchmarks import choices, latency_models, strategies
from tests.benchmarks.choices import Known

MEASURED = Path(__file__).parents[3] / "shared" / "measured"
needs_tables = pytest.mark.skipif(
    not MEASURED.is_dir(), reason=f"the published measurements are not at {MEASURED}"
)


def source(key):
    return next(s for s in choices.SOURCES if s.key == key)


def exact(name, seconds, accuracy=None):
    return Known(name, seconds, seconds, seconds, seconds, accuracy)


def test_perfect_predictions_choose_the_best_that_keeps_every_limit():
    sets = {"family": [exact("a", 1.0), exact("b", 2.0), exact("c", 4.0)]}
    draws = choices.drawn(source("nano_ort_gpu"), sets, draws=50)
    assert all(draw.met and draw.right for draw in draws)
    assert {draw.chosen for draw in draws} == {"a", "b"}  # c needs all of the largest limit


def test_wrong_predictions_are_found_out_by_the_published_time():
    # b is predicted at 1 s and takes 2 s: whatever is chosen below 2 s, b misses it.
    sets = {"family": [exact("a", 1.0), exact("b", 2.0)._replace(predicted_s=1.01, low_s=1.01)]}
    sets["family"][1] = sets["family"][1]._replace(high_s=1.01)
    draws = choices.drawn(source("nano_ort_gpu"), sets, draws=50)
    # Below 1.01 s the rule takes a; from there on b, which no limit under 2 s allows.
    for draw in draws:
        assert draw.met == (draw.chosen == "a")
    assert sum(draw.chosen == "b" for draw in draws) > 40


def test_accuracy_ranks_where_it_is_published_and_time_where_it_is_not():
    rows = [exact("small", 1.0, 90.0), exact("large", 2.0, 80.0)]
    sets = {"family": rows}
    for draw in choices.drawn(source("tx2_widths"), sets, draws=20):
        assert draw.best == "small"


def test_the_worst_set_is_the_one_that_is_chosen_from_least_well():
    good = {"good": [exact("a", 1.0), exact("b", 2.0)]}
    late = exact("d", 2.0)._replace(predicted_s=3.0, low_s=3.0, high_s=3.0)
    sets = {**good, "bad": [exact("c", 1.0), exact("e", 1.5), late._replace(measured_s=1.2)]}
    name, share = choices.worst(choices.drawn(source("nano_ort_gpu"), sets, draws=60))
    assert name == "bad"
    assert share < 1


def test_a_rate_has_the_exact_binomial_interval():
    found = choices.rate([True] * 9 + [False])
    # Clopper and Pearson, "The use of confidence or fiducial limits", 1934: 9 of 10.
    assert found.share == 0.9
    assert (found.low, found.high) == pytest.approx((0.5550, 0.9975), abs=1e-4)


@needs_tables
def test_no_model_has_seen_the_family_whose_times_it_predicts():
    nano = source("nano_trt_fp16")
    data = latency_models.load(MEASURED, nano.data)
    for fitted, tested in nano.splits(data, 0):
        seen = {data.items[i].group for i in fitted}
        assert not seen & {data.items[i].group for i in tested}
    widths = source("tx2_widths")
    data = latency_models.load(MEASURED, widths.data)
    for fitted, tested in widths.splits(data, 0):
        seen = {data.items[i].labels["width_percent"] for i in fitted}
        assert not seen & {data.items[i].labels["width_percent"] for i in tested}


@needs_tables
def test_choices_of_published_networks_reach_the_targets_on_the_smallest_table(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(choices, "SOURCES", (source("nano_trt_fp16"),))
    options = ["--published", "--data", str(MEASURED), "--out", str(tmp_path), "--json"]
    assert strategies.main(options) == 0
    rates = json.loads(capsys.readouterr().out)["nano_trt_fp16"]
    assert rates["met"]["share"] >= 0.9
    assert rates["right"]["share"] >= 0.75
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    # 14 networks: 18 less alexnet, which is alone, and the three that are others' twins.
    assert len(lines) == 1 + 14
    assert len((tmp_path / "draws.csv").read_text().splitlines()) == 1 + 3 * 200
