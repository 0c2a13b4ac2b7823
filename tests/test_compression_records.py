"""Options and their precisions."""

import pytest

from harness.records import STUDY_PRECISIONS, Option, is_study, weight_bits


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
