"""What is said and drawn of an allocation: from a proof and a front made by hand."""

import json
import math
from dataclasses import replace

import pytest

from harness.records import Contender, FitResult, Front, Shortlist, dump, load
from harness.report import allocated, page
from tests.report.conftest import NASTY, PROOF, front_point


def trace(figure, name):
    (found,) = [t for t in figure.data if t.name == name]
    return found


def test_the_problem_its_gap_and_its_time_are_told(result):
    solved, proven, _ = allocated.proof_sentences(result)
    # 2 * 8 * 8 * 14 * 14 * 14 * 2 = 702 464
    assert "one coupled problem" in solved
    assert "7 groups with 2 to 14 options each, 10^5 combinations, 3 solves, 1.24 s" in solved
    assert "summed sensitivity of 0.0123 is proven to be within 0.0007 % of the least" in proven


def test_prices_are_told_by_a_round_step_of_each_budget(result):
    worth = allocated.proof_sentences(result)[2]
    # A tenth of 605 µs is 60 µs, so the step is 10 µs: 41 a second is 0.00041, 3.3 % of 0.0123.
    assert "One more 10 µs would lower it by about 0.00041 (3.3 %)" in worth
    # A tenth of 282.7 kB is 28 kB, so the step is 10 kB: 0.0001 of 0.0123.
    assert "one more 10 kB would lower it by about 0.0001 (0.8 %)." in worth


def test_a_budget_that_does_not_bind_would_buy_nothing(result):
    free = replace(result, proof=replace(PROOF, prices={"latency": 41.0, "size": 0.0}))
    assert allocated.proof_sentences(free)[2].endswith("; more size would buy nothing.")
    loose = replace(result, proof=replace(PROOF, prices={"latency": 0.0, "size": 0.0}))
    assert allocated.proof_sentences(loose)[2] == "More latency and size would buy nothing."


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gap": 0.0}, "is proven to be the least within the predicted limits."),
        ({"exact": False, "gap": 0.02}, "is within 2 % of the least for costs that are right at"),
        # Rounded up: 1 % is not proven.
        ({"gap": 0.014}, "is proven to be within 2 % of the least that is possible."),
    ],
)
def test_what_is_proven_is_told_apart(result, changes, told):
    assert told in allocated.proof_sentences(replace(result, proof=replace(PROOF, **changes)))[1]


def test_a_separable_problem_is_called_so(result):
    proof = replace(PROOF, method="separable", options=(4, 4), solves=1)
    solved = allocated.proof_sentences(replace(result, proof=proof))[0]
    assert "one separable problem" in solved
    assert "2 groups with 4 options each, 16 combinations, one solve" in solved


def test_groups_that_bind_are_named(infeasible):
    (binding,) = allocated.proof_sentences(infeasible)
    assert "the latency at its least is for the most part in layer1.0.conv1 and layer1" in binding
    many = replace(infeasible, binding={"size": tuple(f"g{i}" for i in range(8))})
    assert "g0, g1, g2, g3, g4 and 3 more groups" in allocated.proof_sentences(many)[0]


def test_what_else_was_near_is_told_with_what_building_it_said(result):
    def contender(how, divergence, *, taken=False):
        return Contender(
            how=how,
            loss=0.0123,
            latency_s=605e-6,
            size_bytes=282_700.0,
            divergence=divergence,
            taken=taken,
        )

    shortlist = Shortlist(
        contenders=(contender("as scored", 0.5), contender("noise <1>", 0.25, taken=True)),
        images=256,
    )
    chosen = replace(result, shortlist=shortlist)
    told = allocated.proof_sentences(chosen)[3]
    assert told == (
        "2 allocations tried on 256 images; the best by noise <1> diverges by 0.25, that of least "
        "summed sensitivity by 0.5."
    )
    first, second = allocated.shortlist_rows(chosen)
    assert first[:3] == ("the best as scored", "0.0123", "0.5") and not first[-1]
    assert second[0] == "the best by noise <1>" and second[-1] == "built and measured"
    html = page.render(chosen)
    assert "the best by noise &lt;1&gt;" in html and "divergence,<br>untrained" in html
    assert "divergence,<br>untrained" not in page.render(result)
    first_taken = Shortlist(
        contenders=(contender("as scored", 0.2, taken=True), contender("noise", 0.3)), images=9
    )
    assert first_taken.summary().endswith("the one of least summed sensitivity diverges least")
    assert Shortlist().summary() == "no other allocation is as near"
    assert allocated.shortlist_rows(result) == ()


def test_a_result_from_before_there_were_proofs_is_read_and_says_nothing(result):
    old = json.loads(dump(result))
    for name in ("proof", "front", "binding", "shortlist"):
        del old[name]
    found = load(FitResult, json.dumps(old))
    assert found.proof is None
    assert allocated.proof_sentences(found) == ()
    assert allocated.front_figure(found) is None
    assert load(FitResult, dump(result)) == result


def test_each_way_to_allocate_stands_at_what_it_takes(result):
    figure = allocated.front_figure(result)
    # The full network loses nothing, and has no place on a logarithmic axis.
    assert trace(figure, "coupled, proven").x == pytest.approx((0.399e-3, 0.598e-3, 1.19e-3))
    assert trace(figure, "coupled, proven").y == (0.05, 0.013, 0.002)
    separable = trace(figure, "separable approximation")
    assert separable.x == pytest.approx((0.47e-3, 0.59e-3))
    # 0.47 ms where 0.4 ms was asked for.
    assert separable.error_x.arrayminus == pytest.approx((0.07e-3, 0.0))
    assert "breaks its limits" in separable.text[0]
    assert "breaks" not in separable.text[1]
    assert trace(figure, "latency budget").x == pytest.approx((0.22 * 2.86e-3,) * 2)


def test_the_result_stands_apart_from_what_else_was_built(result):
    figure = allocated.front_figure(result)
    assert trace(figure, "result").x == (0.602e-3,)
    assert trace(figure, "others that were built").y == (0.0101,)


def test_the_simpler_ways_are_compared_where_the_limits_are_the_same(result):
    told = allocated.front_sentence(result.front)
    # 0.0143 over 0.013; 0.06 over 0.05 and 0.015 over 0.013.
    assert "taken as separable break 1 of 2 limits and lose up to 10 % more" in told
    assert "greedy moves lose up to 20 % more where they keep them." in told
    same = Front(points=(front_point("coupled", 1, 1, 0.1), front_point("greedy", 1, 1, 0.1)))
    assert allocated.front_sentence(same) == "Greedy moves lose nothing where they keep them."
    assert allocated.front_sentence(Front()) == ""


def test_without_points_or_with_lossless_ones_only_there_is_no_figure(result):
    lossless = Front(points=(front_point("coupled", 2, 1, 0.0),))
    for front in (None, Front(note="nothing to allocate"), lossless):
        assert allocated.front_figure(replace(result, front=front)) is None


def test_one_point_is_enough_for_axes(result):
    one = Front(points=(front_point("coupled", 2, 1, 0.1),))
    axis = allocated.front_figure(replace(result, front=one)).layout.xaxis
    assert axis.range[0] < math.log10(1e-3) < axis.range[1]


def test_labels_are_escaped_for_plotly(nasty):
    drawn = str(allocated.front_figure(nasty).to_dict())
    assert NASTY not in drawn
    assert "&lt;script&gt;" in drawn


def test_what_is_not_proven_is_not_called_so(result):
    points = tuple(replace(point, gap=None) for point in result.front.points)
    figure = allocated.front_figure(replace(result, front=replace(result.front, points=points)))
    assert trace(figure, "coupled, costs not exact").y == (0.05, 0.013, 0.002)
    assert "the least that is possible" in allocated.front_caption(result.front)
    assert "approximate away from it" in allocated.front_caption(Front(points=points))
