from dataclasses import replace

import pytest

from harness.errors import ConfigError
from harness.records import Group, Option, Strategy, StrategyEntry, dump
from harness.strategies import given

GROUPS = (
    Group(name="a", channels=4, producers=("a",), consumers=("fc",), prunable=True),
    Group(name="fc", channels=3, producers=("fc",), consumers=(), prunable=False),
)
HALF = StrategyEntry(group="a", kept=(0, 3), of=4, precision="int8")
WHOLE = StrategyEntry(group="fc", kept=(0, 1, 2), of=3, precision="fp32")
STRATEGY = Strategy(
    label="half", methods=("prune", "distill", "quantize"), entries=(HALF, WHOLE), epochs=2, seed=1
)


def checked(strategy, *, precisions=("fp32", "int8"), epochs=2):
    given.check(strategy, GROUPS, precisions, epochs)


def test_a_written_strategy_is_read_as_it_was(tmp_path):
    path = tmp_path / "strategy.json"
    path.write_text(dump(STRATEGY, indent=2))
    found = given.read(path)
    assert found == STRATEGY
    # Whatever the file looks like, the content is the same.
    path.write_text(dump(STRATEGY))
    assert given.digest(given.read(path)) == given.digest(found)
    assert given.digest(replace(found, seed=2)) != given.digest(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("{", "holds no strategy"),
        ('{"label": "a"}', "methods"),
        (dump(replace(STRATEGY, label="../../elsewhere")), "cannot name files"),
        (dump(replace(STRATEGY, label="baseline")), "cannot name files"),
        (dump(replace(STRATEGY, label="")), "cannot name files"),
    ],
)
def test_a_file_without_a_strategy_is_told_apart(tmp_path, text, said):
    path = tmp_path / "strategy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="strategy") as error:
        given.read(path)
    assert said in str(error.value)


def test_a_strategy_of_the_network_is_a_choice_of_options():
    checked(STRATEGY)
    assert given.choice(STRATEGY) == {
        "a": Option(channels=2, precision="int8"),
        "fc": Option(channels=3, precision="fp32"),
    }


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((HALF,), "differ in fc"),
        ((HALF, WHOLE, replace(WHOLE, group="b")), "differ in b"),
        ((HALF, WHOLE, WHOLE), "differ in fc"),
        ((replace(HALF, of=8), WHOLE), "8 channels in the strategy and 4"),
        ((replace(HALF, kept=(0, 4)), WHOLE), "numbers from 0 to 3"),
        ((replace(HALF, kept=(-1, 2)), WHOLE), "numbers from 0 to 3"),
        ((replace(HALF, kept=(3, 0)), WHOLE), "rising"),
        ((replace(HALF, kept=(1, 1)), WHOLE), "rising"),
        ((replace(HALF, kept=()), WHOLE), "rising"),
        ((HALF, replace(WHOLE, kept=(0,))), "outputs"),
        ((replace(HALF, precision="fp16"), WHOLE), "fp16 in a"),
    ],
)
def test_a_strategy_of_another_network_or_board_says_in_what_it_differs(entries, said):
    with pytest.raises(ConfigError) as error:
        checked(replace(STRATEGY, entries=entries))
    assert said in str(error.value)


def test_distilling_for_no_epochs_is_an_error():
    with pytest.raises(ConfigError, match="--epochs"):
        checked(STRATEGY, epochs=0)


def test_a_students_teaching_is_not_repeated_unless_it_was_cut():
    student = replace(STRATEGY, student="small.py:factory")
    assert given.to_build(student) == student
    whole = replace(HALF, kept=(0, 1, 2, 3))
    uncut = replace(student, entries=(whole, WHOLE), methods=("distill", "quantize"))
    assert given.to_build(uncut).methods == ("quantize",)
    assert given.to_build(STRATEGY) == STRATEGY
