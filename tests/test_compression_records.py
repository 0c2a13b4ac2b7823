"""Options and their precisions."""

import pytest

from harness.records import (
    STUDY_PRECISIONS,
    Contender,
    Option,
    Shortlist,
    Strategy,
    dump,
    is_study,
    load,
    weight_bits,
)


def test_study_precisions_have_two_to_seven_bits_and_the_others_those_of_their_names():
    assert [weight_bits(precision) for precision in STUDY_PRECISIONS] == [2, 3, 4, 5, 6, 7]
    assert [weight_bits(precision) for precision in ("fp32", "fp16", "int8")] == [32, 16, 8]


def test_a_board_may_run_what_is_no_study():
    assert [is_study(precision) for precision in ("fp32", "fp16", "int8", "w7a8")] == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("precision", ["w8a8", "w1a8", "int4", ""])
def test_other_precisions_are_refused(precision):
    with pytest.raises(ValueError, match="is none of fp32"):
        Option(channels=1, precision=precision)
    with pytest.raises(ValueError, match="is none of fp32"):
        weight_bits(precision)


def test_a_strategy_from_before_branches_could_go_leaves_none_out():
    old = (
        '{"label": "joint 1", "methods": ["prune"], "epochs": 0, "seed": 0, "schema_version": 1, '
        '"entries": [{"group": "a", "kept": [0, 2], "of": 4, "precision": "fp32"}]}'
    )
    found = load(Strategy, old)
    assert found.left_out == () and found.student == ""
    shallow = Strategy(
        label="x", methods=("prune",), entries=found.entries, epochs=0, seed=0, left_out=("b",)
    )
    assert load(Strategy, dump(shallow)) == shallow


def contender(how, divergence, branches, *, taken=False):
    return Contender(
        how=how,
        loss=0.1,
        latency_s=1e-3,
        size_bytes=10.0,
        divergence=divergence,
        taken=taken,
        branches=branches,
    )


def test_contenders_are_told_apart_by_what_they_leave_out():
    whole = contender("as scored", 0.5, 0)
    one = contender("as scored", 0.4, 1)
    four = contender("98% of the latency limit", 0.2, 4, taken=True)
    assert [c.name for c in (whole, one, four)] == [
        "the best as scored",
        "the best as scored, 1 branch left out",
        "the best by 98% of the latency limit, 4 branches left out",
    ]
    assert Shortlist(contenders=(whole, one, four), images=96).summary() == (
        "3 allocations tried on 96 images; the best by 98% of the latency limit, 4 branches left "
        "out diverges by 0.2, the best as scored by 0.5"
    )
    least = contender("as scored", 0.1, 0, taken=True)
    assert Shortlist(contenders=(least, one), images=96).summary() == (
        "2 allocations tried on 96 images; the best as scored diverges least"
    )
