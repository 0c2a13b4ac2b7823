"""Sentences say what is done and what binds, with the numbers."""

import pytest

from harness.planning.sentences import does, explained
from harness.planning.verdicts import Reference, met
from harness.records import Estimate, Group, Option
from tests.planning.tiny import predicted, require

REFERENCE = Reference(baseline=predicted(size_bytes=Estimate.exactly(4e6)), accuracy=0.9)
GROUPS = tuple(
    Group(name=name, channels=16, producers=(name,), consumers=(), prunable=True)
    for name in ("a", "b", "c")
)


def judged(*asked, **more):
    return [met(one, predicted(**more), REFERENCE) for one in asked]


def chosen(a, b, c, precision="fp32"):
    return {
        name: Option(channels=width, precision=precision if name == "a" else "fp32")
        for name, width in (("a", a), ("b", b), ("c", c))
    }


def test_the_first_sentence_counts_what_is_done_and_what_is_left():
    text = does(
        GROUPS,
        chosen(8, 12, 16, "int8"),
        predicted(),
        REFERENCE.baseline,
        student="",
        width=None,
        epochs=4,
    )
    assert "prunes 2 of 3 groups to 20 of 32 channels" in text
    assert "runs 1 of 3 groups in int8" in text
    assert "distils it from the original for 4 epochs" in text
    assert "250 k parameters, 40.0 M MACs and 1.00 MB are left of 250 k, 40.0 M and 4.00 MB" in text
    assert text.startswith("It ") and text.endswith(".")


def test_students_and_the_untouched_network_are_called_what_they_are():
    def text(**more):
        settings = {"student": "", "width": None, "epochs": 0, **more}
        return does(GROUPS, chosen(16, 16, 16), predicted(), REFERENCE.baseline, **settings)

    assert text().startswith("It leaves the original as it is: ")
    assert "puts the student nets.py:small in the original's place" in text(student="nets.py:small")
    assert "starts a student from 75% of the original's channels" in text(width=0.75)


def test_the_second_sentence_names_what_binds_and_what_is_uncertain():
    # 14 of 15 ms is nearer to its limit than 1 of 2 MB.
    text = explained(judged(require("latency", 0.015), require("size", 2e6)), predicted())
    assert "meets what is asked, of which latency at most 15.0 ms" in text
    assert "(12.0 ms, from 10.0 ms to 14.0 ms) binds" in text
    assert "lose 1 point, from 0.2 points to 2.4 points (from 9 anchors)" in text
    assert "rests on a datasheet alone, 12.0 ms, from 10.0 ms to 14.0 ms" in text


def test_the_second_sentence_says_what_is_missed_and_what_cannot_be_told():
    missed = explained(
        judged(require("latency", 0.005), require("accuracy_drop", 2.0)), predicted()
    )
    assert missed.startswith("It does not meet latency at most 5.00 ms (12.0 ms, from 10.0 ms")
    unsure = explained(judged(require("accuracy_floor", 0.89)), predicted())
    assert unsure.startswith(
        "It may meet accuracy at least 89.00 % (89.00 %, from 87.60 % to 89.80 %)"
    )
    tail = explained(judged(require("latency", 1.0, percentile=99)), predicted())
    assert "p99 latency at most 1.00 s (12.0 ms, from 10.0 ms to no known bound)" in tail


def test_what_is_not_predicted_is_said_so():
    bare = {"latency_s": None, "accuracy_drop": None}
    text = explained(judged(require("accuracy_drop", 1.0), **bare), predicted(**bare))
    assert "accuracy lost at most 1 point (nothing is predicted of it)" in text
    assert "its latency is not predicted" in text
    assert "what it loses in accuracy is not predicted" in text
    assert explained([], predicted()).startswith("Nothing was asked")


@pytest.mark.parametrize("source", ["calibrated", "saved model"])
def test_a_latency_from_a_measured_model_is_no_datasheets(source):
    text = explained([], predicted(latency_source=source))
    assert "its latency is predicted as 12.0 ms" in text and "datasheet" not in text
