"""Requirements, estimates and plans as records."""

import dataclasses

import pytest

from harness.records import (
    Estimate,
    LayerCost,
    Met,
    Nearest,
    Plan,
    PlannedStrategy,
    Predicted,
    Requirement,
    Requirements,
    Strategy,
    StrategyEntry,
    Verification,
    Verified,
    dump,
    load,
)

LATENCY = Requirement(quantity="latency", limit=0.04, text="25 fps", percentile=90)
SIZE = Requirement(quantity="size", limit=0.25, relative=True, text="25%")
LAYER = LayerCost(
    layer="stem",
    kind="conv",
    precision="int8",
    channels_in=3,
    channels_out=8,
    parameters=224,
    macs=221184,
    weight_bytes=248,
    read_bytes=3072,
    written_bytes=8192,
    latency_s=1e-5,
)
PREDICTED = Predicted(
    size_bytes=Estimate.exactly(12345),
    parameters=240,
    macs=221184,
    weight_bytes=248,
    moved_bytes=11512,
    peak_activation_bytes=Estimate(value=11264, low=11000, high=12000, note="buffers are aligned"),
    latency_s=Estimate(value=0.031, low=0.025, high=0.039),
    latency_source="saved model",
    layers=(LAYER,),
)
PLAN = Plan(
    network="net.py:make",
    board="jetson-nano",
    requirements=Requirements(limits=(LATENCY, SIZE), keep=("stem",), input_size=(3, 32, 32)),
    baseline=PREDICTED,
    strategies=(
        PlannedStrategy(
            name="int8",
            methods=("quantize",),
            strategy=Strategy(
                label="int8",
                methods=("quantize",),
                entries=(StrategyEntry(group="stem", kept=(0, 1), of=8, precision="int8"),),
                epochs=0,
                seed=0,
                student="net.py:small",
            ),
            predicted=PREDICTED,
            verdicts=(
                Met(requirement=LATENCY, verdict="meets", value=0.031, low=0.025, high=0.039),
                Met(requirement=SIZE, verdict="cannot tell"),
            ),
            verdict="cannot tell",
            sentences=("Quantizes everything.", "Nobody knows the size."),
            on_front=True,
        ),
    ),
    front=("int8",),
    nearest=(Nearest(quantity="size", asked=0.25, reachable=0.3, binding=("stem",)),),
    wall_s=0.5,
)


def test_a_plan_comes_back_from_its_json_text_as_it_was():
    assert load(Plan, dump(PLAN)) == PLAN


def test_a_verification_comes_back_from_its_json_text_as_it_was():
    row = Verified(
        name="int8",
        column="latency_s",
        predicted=Estimate(value=2.0, low=1.0, high=3.0),
        actual=3.5,
    )
    taken = Verification(rows=(row,), recalibration="the loss was twice the score")
    assert load(Verification, dump(taken)) == taken
    assert not row.covered
    assert dataclasses.replace(row, actual=3.0).covered


def test_an_estimate_is_exact_where_its_bounds_are_its_value():
    assert Estimate.exactly(7).exact
    assert not Estimate(value=7, low=6, high=8).exact


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"value": 1.0, "low": 2.0, "high": 3.0}, "outside"),
        ({"value": 4.0, "low": 2.0, "high": 3.0}, "outside"),
        ({"value": float("nan"), "low": 2.0, "high": 3.0}, "value must be finite"),
        ({"value": 2.0, "low": 2.0, "high": float("inf")}, "high must be finite"),
    ],
)
def test_an_estimate_lies_between_finite_bounds(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Estimate(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"quantity": "latency", "limit": 0.0}, "positive"),
        ({"quantity": "accuracy_floor", "limit": 91.0}, "share of 1"),
        ({"quantity": "accuracy_drop", "limit": -1.0}, "0..100 points"),
        ({"quantity": "accuracy_drop", "limit": 1.0, "relative": True}, "relative"),
        ({"quantity": "latency", "limit": 1.0, "percentile": 100.0}, "percentile"),
    ],
)
def test_a_requirement_that_nothing_could_mean_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Requirement(text="", **fields)


def test_a_requirement_is_found_by_its_quantity():
    asked = Requirements(limits=(LATENCY, SIZE))
    assert asked.limit("size") is SIZE
    assert asked.limit("energy") is None
