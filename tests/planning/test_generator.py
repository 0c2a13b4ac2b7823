"""Plans for a small network, against all its allocations: verdicts, ranks, nearest limits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import networks
from harness.compression.groups import find_groups
from harness.compression.quantize import form_of
from harness.compression.shapes import parameter_shapes
from harness.errors import ConfigError
from harness.planning.generator import PlanSettings, plan
from harness.planning.loss import fit, student_drop
from harness.planning.nearest import nearest
from harness.planning.preparing import prepare
from harness.planning.verdicts import Reference, excess
from harness.records import Option, Plan, Requirements, dump, load
from harness.report.planned import nearest_sentences
from harness.units import format_points
from tests.compression.tiny import facts
from tests.planning.tiny import CPU, TENSORRT, Branches, anchors, require
from tests.strategies.test_tables import model_of

DEMO = Path(__file__).parents[2] / "data" / "demo" / "network.py"
NETWORK = {"network": "joined", "board": "any"}


@pytest.fixture(scope="module")
def branches():
    """A loss model of 80 points, of which 40 go with each nat or so."""
    return Branches(CPU, ("fp32", "int8"), loss=fit(anchors()))


@pytest.fixture(scope="module")
def blind():
    return Branches(TENSORRT, ("fp32", "fp16"))


def planned(branches, *limits, settings=None, **more):
    return plan(
        Requirements(limits=limits, **more),
        [branches.subject],
        accuracy=0.9,
        settings=settings or PlanSettings(),
        **NETWORK,
    )


def choice_of(strategy):
    return {
        entry.group: Option(channels=len(entry.kept), precision=entry.precision)
        for entry in strategy.strategy.entries
    }


def size_at(branches, place):
    sizes = sorted(branches.price(choice).size_bytes.value for choice in branches.every)
    return sizes[int(place * (len(sizes) - 1))]


def test_the_allocation_for_the_requirements_is_the_mildest_of_all_that_keep_them(branches):
    limit = size_at(branches, 0.3)
    found = planned(branches, require("size", limit), methods=("prune", "quantize"))
    (best,) = [s for s in found.strategies if s.name == "pruned and quantized, as required"]
    keeping = [c for c in branches.every if branches.price(c).size_bytes.value <= limit]
    assert best.predicted.size_bytes.value <= limit
    least = min(branches.score(choice) for choice in keeping)
    assert branches.score(choice_of(best)) == pytest.approx(least, rel=2e-3)
    assert best.methods == ("prune", "quantize") and best.verdict == "meets"
    assert not found.nearest


def test_names_say_what_an_allocation_came_to(branches):
    for limit in (0.1, 0.5, 0.9, 1.0):
        found = planned(branches, require("size", size_at(branches, limit)))
        assert len({s.name for s in found.strategies}) == len(found.strategies)
        for strategy in found.strategies:
            choice = choice_of(strategy)
            cut = branches.subject.cuts(choice)
            low = any(option.precision == "int8" for option in choice.values())
            if "student" not in strategy.name:
                assert cut == ("pruned" in strategy.name), strategy.name
            assert low == any(
                word in strategy.name for word in ("int8", "quantized", "mixed precision")
            ), strategy.name


def test_methods_are_enumerated_alone_and_together_and_none_twice(branches):
    found = planned(branches, require("size", size_at(branches, 0.4)))
    methods = {s.methods for s in found.strategies}
    assert {
        (),
        ("quantize",),
        ("prune", "distill"),
        ("prune", "distill", "quantize"),
        ("distill",),
        ("distill", "quantize"),
    } <= methods
    names = [s.name for s in found.strategies]
    assert len(set(names)) == len(names)
    assert {"as it is", "int8"} <= set(names)
    assert any(name.startswith("student") for name in names)
    assert any(name.startswith("pruned to") and "int8" in name for name in names)
    content = [(s.strategy.entries, s.strategy.epochs) for s in found.strategies]
    assert len(set(content)) == len(content)


def test_without_requirements_the_demo_network_gets_24_strategies_and_no_two_alike(tmp_path):
    network = networks.load_network(f"{DEMO}:factory", None)
    example = torch.zeros(1, 1, 28, 28)
    networks.export_onnx(network, example, tmp_path / "demo.onnx")
    groups = find_groups(network, example)
    subject = prepare(
        network,
        tmp_path / "demo.onnx",
        groups,
        parameter_shapes(network, example, groups),
        model_of(CPU),
        source="prior",
        form=form_of(facts()),
        precisions=("fp32", "int8"),
        step=8,
        fine_step=8,
    )
    # As long as it takes: how many there are must not hang on how busy this computer is.
    found = plan(Requirements(), [subject], settings=PlanSettings(hasty_s=1e3), **NETWORK)
    assert len(found.strategies) >= 24
    assert len({one.name for one in found.strategies}) == len(found.strategies)
    made = {(one.strategy.entries, one.strategy.epochs) for one in found.strategies}
    assert len(made) == len(found.strategies)
    whole = found.baseline.size_bytes.value
    for one in found.strategies:
        if one.name.endswith("25% of the size"):
            assert one.predicted.size_bytes.value <= 0.25 * whole
    assert sum(one.name.endswith("25% of the size") for one in found.strategies) >= 1


def test_only_allowed_methods_and_precisions_are_used(branches):
    limit = require("size", size_at(branches, 0.6))
    for methods, forbidden in (
        (("prune",), {"quantize", "distill"}),
        (("quantize",), {"prune", "distill"}),
        (("prune", "quantize"), {"distill"}),
    ):
        found = planned(branches, limit, methods=methods)
        assert len(found.strategies) > 1
        for strategy in found.strategies:
            assert not forbidden & set(strategy.methods)
            assert strategy.strategy.epochs == 0
    only = planned(branches, limit, precisions=("fp32",))
    assert {e.precision for s in only.strategies for e in s.strategy.entries} == {"fp32"}


def test_what_the_board_cannot_use_is_left_aside_and_said(branches, blind):
    found = planned(branches, precisions=("fp32", "fp16", "int8"))
    assert any("fp16 is left aside" in note for note in found.notes)
    assert "fp16" not in {e.precision for s in found.strategies for e in s.strategy.entries}
    with pytest.raises(ConfigError, match="the board can use fp32, fp16"):
        planned(blind, precisions=("int8",))


def test_layers_to_keep_stay_whole_and_in_full_precision(branches):
    first = branches.groups[0]
    found = planned(branches, require("size", size_at(branches, 0.3)), keep=(first.producers[0],))
    for strategy in found.strategies:
        (entry,) = [e for e in strategy.strategy.entries if e.group == first.name]
        assert len(entry.kept) == entry.of and entry.precision == "fp32"
    assert any(s.methods for s in found.strategies)
    with pytest.raises(ConfigError, match="no layer nowhere; there are "):
        planned(branches, keep=("nowhere",))
    nearly = first.producers[0] + "x"
    with pytest.raises(ConfigError, match=f"{nearly}; the closest are .*{first.producers[0]}"):
        planned(branches, keep=(nearly,))


def test_those_that_meet_come_first_then_what_cannot_be_told_then_the_rest_by_how_far(branches):
    baseline = planned(branches).baseline
    found = planned(
        branches,
        require("latency", baseline.latency_s.value),  # within every interval near it
        require("size", size_at(branches, 0.5)),
        require("accuracy_drop", 8.0),
    )
    order = [s.verdict for s in found.strategies]
    places = ("meets", "cannot tell", "does not meet")
    assert order == sorted(order, key=places.index) and set(order) >= {"cannot tell"}
    rest = [s for s in found.strategies if s.verdict == "does not meet"]
    far = [sum(excess(v) for v in s.verdicts) for s in rest]
    assert far == sorted(far) and far[0] < far[-1]


def test_the_objective_ranks_those_that_meet(branches):
    loose = require("size", 1e9)
    firsts = {
        goal: planned(branches, loose, objective={goal: 1.0}).strategies
        for goal in ("accuracy", "latency", "size")
    }
    assert firsts["accuracy"][0].name == "as it is"
    for goal, of in (
        ("latency", lambda s: s.predicted.latency_s.value),
        ("size", lambda s: s.predicted.size_bytes.value),
        ("accuracy", lambda s: s.predicted.accuracy_drop.value),
    ):
        values = [of(s) for s in firsts[goal]]
        assert values == sorted(values)


def test_the_front_is_of_accuracy_latency_and_size(branches):
    found = planned(branches, require("size", size_at(branches, 0.5)))

    def point(s):
        p = s.predicted
        return (p.accuracy_drop.value, p.latency_s.value, p.size_bytes.value)

    points = {s.name: point(s) for s in found.strategies}
    for strategy in found.strategies:
        own = points[strategy.name]
        beaten = any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for other in points.values()
        )
        assert strategy.on_front == (not beaten) == (strategy.name in found.front)


def test_sentences_hold_the_numbers_of_their_strategy(branches):
    limit = size_at(branches, 0.5)
    found = planned(branches, require("size", limit), require("accuracy_drop", 30.0))
    for strategy in found.strategies:
        does, why = strategy.sentences
        drop = strategy.predicted.accuracy_drop
        assert f"lose {format_points(drop.value)}" in why
        assert ("int8" in does) == ("quantize" in strategy.methods)
        assert f"{strategy.strategy.epochs} epochs" in does or not strategy.strategy.epochs


def test_a_plan_survives_as_text(branches):
    found = planned(branches, require("size", size_at(branches, 0.5)))
    assert load(Plan, dump(found)) == found
    assert found.wall_s > 0


def test_without_a_loss_model_nothing_is_said_of_accuracy_and_milder_comes_first(blind):
    found = planned(blind, require("size", 1e9))
    assert all(s.predicted.accuracy_drop is None for s in found.strategies)
    assert any("No loss of accuracy is predicted" in note for note in found.notes)
    scores = [blind.score(choice_of(s)) for s in found.strategies]
    assert scores == sorted(scores)
    unsure = planned(blind, require("accuracy_drop", 1.0))
    assert {s.verdict for s in unsure.strategies} == {"cannot tell"}


def test_when_time_is_up_allocations_are_left_out_and_counted(branches):
    found = planned(
        branches, require("size", 9e5), settings=PlanSettings(time_limit_s=0.0, hasty_s=0.0)
    )
    assert any("allocations were left out" in note for note in found.notes)
    assert any(s.name == "int8" for s in found.strategies)
    assert not any("as required" in s.name for s in found.strategies)


def test_a_student_is_taught_first_and_loses_what_it_lacks_as_well(branches):
    replacing = student_drop(0.5, epochs=30, most=80.0)
    student = replace(branches.subject, student="nets.py:small", replacing=replacing)
    found = plan(
        Requirements(limits=(require("size", size_at(branches, 0.5)),)),
        [branches.subject, student],
        accuracy=0.9,
        **NETWORK,
    )
    taught = [s for s in found.strategies if s.strategy.student]
    assert {s.methods[0] for s in taught} == {"distill"}
    assert all(s.strategy.student == "nets.py:small" for s in taught)
    (alone,) = [s for s in taught if s.name == "student nets.py:small"]
    assert alone.predicted.accuracy_drop.value == pytest.approx(replacing.value)
    assert "puts the student nets.py:small in the original's place" in alone.sentences[0]
    assert "/" not in alone.strategy.label and ":" not in alone.strategy.label
    (rounded,) = [s for s in taught if s.name == "student nets.py:small, int8"]
    assert rounded.predicted.accuracy_drop.value > replacing.value
    assert any("pruned" in s.name for s in taught)


# -- the nearest limits --------------------------------------------------------------------------


def reachable(found, quantity):
    (one,) = [n for n in found.nearest if n.quantity == quantity]
    return one


def test_the_nearest_of_two_limits_that_exclude_each_other_are_those_of_all_allocations(branches):
    """Each with the other held; proven by pricing every allocation."""
    sizes = {id(c): branches.price(c).size_bytes.value for c in branches.every}
    highs = {id(c): branches.price(c).latency_s.high for c in branches.every}
    size = size_at(branches, 0.05)
    latency = min(highs[id(c)] for c in branches.every if sizes[id(c)] <= size) * 0.99
    if not any(highs[id(c)] <= latency for c in branches.every):
        latency = min(highs.values()) * 1.0001
    found = planned(branches, require("size", size), require("latency", latency))
    assert all(s.verdict != "meets" for s in found.strategies)
    small = [c for c in branches.every if sizes[id(c)] <= size * (1 + 1e-9)]
    fast = [c for c in branches.every if highs[id(c)] <= latency * (1 + 1e-9)]
    near_latency, near_size = reachable(found, "latency"), reachable(found, "size")
    # Of the fastest prediction the bound; or what is planned, if that promises more.
    fastest = min(small, key=lambda c: branches.price(c).latency_s.value)
    planned_s = [
        s.predicted.latency_s.high
        for s in found.strategies
        if s.predicted.size_bytes.value <= size * (1 + 1e-9)
    ]
    least_s = min(highs[id(fastest)], *planned_s)
    assert near_latency.reachable == pytest.approx(least_s, rel=3e-3)
    assert not near_latency.alone and near_latency.reachable > near_latency.asked
    assert fast
    # Within a per cent: how wide a latency's bound is depends on the allocation.
    least_bytes = min(sizes[id(c)] for c in fast)
    assert least_bytes <= near_size.reachable <= 1.01 * least_bytes
    layers = {layer for group in branches.groups for layer in group.producers}
    assert near_latency.binding and set(near_latency.binding) <= layers


def test_of_a_limit_that_nothing_reaches_alone_the_nearest_is_told(branches):
    found = planned(branches, require("macs", 10), require("size", 1e9))
    (near,) = found.nearest  # the size does not bind: anything keeps it
    assert near.quantity == "macs" and not near.alone and not near.aside
    assert near.reachable == min(branches.price(c).macs for c in branches.every)


def test_what_else_must_give_way_is_named_with_the_nearest_limit(branches):
    # Every strategy takes more than a byte, and none that is small loses nothing.
    found = planned(branches, require("macs", 10), require("size", 1.0))
    assert {n.quantity: (n.alone, n.aside) for n in found.nearest} == {
        "macs": (True, ("size",)),
        "size": (True, ("macs",)),
    }
    (sentence, _) = nearest_sentences(found)
    assert "must give way" in sentence and "file size" in sentence


def test_the_least_latency_that_keeps_the_accuracy_is_that_of_the_mildest_allocations(branches):
    """Of the mildest allocation for each limit, the fastest whose loss is promised to be kept."""
    drops = require("accuracy_drop", 6.0)
    highs = sorted({branches.price(c).latency_s.high for c in branches.every})

    def keeps(choice):
        epochs = 4 if branches.subject.cuts(choice) else 0
        predicted = branches.subject.predicted(choice, epochs=epochs, images=1000)
        return predicted.accuracy_drop.high <= 6.0

    enough = [
        limit
        for limit in highs
        if keeps(
            min(
                (c for c in branches.every if branches.price(c).latency_s.high <= limit),
                key=branches.score,
            )
        )
    ]
    found = planned(branches, require("latency", highs[0] * 0.5), drops)
    near = reachable(found, "latency")
    planned_too = [
        s.predicted.latency_s.high
        for s in found.strategies
        if s.predicted.accuracy_drop.high <= 6.0
    ]
    assert near.reachable <= min(enough) * 1.01
    assert near.reachable >= min(min(enough), *planned_too) * 0.999
    # Nothing is that fast, whatever it loses: of the accuracy nothing need be relaxed.
    assert not any(n.quantity == "accuracy_drop" for n in found.nearest)


def test_the_least_loss_within_the_limits_is_promised_as_its_upper_bound(branches):
    limit = size_at(branches, 0.02) * (1 + 1e-6)
    found = planned(
        branches,
        require("size", limit),
        require("accuracy_drop", 0.01),
        methods=("prune", "quantize"),
    )
    near = reachable(found, "accuracy_drop")
    best = min(
        (c for c in branches.every if branches.price(c).size_bytes.value <= limit),
        key=branches.score,
    )
    promised = branches.subject.predicted(best, epochs=0, images=1000).accuracy_drop.high
    listed = [
        s.predicted.accuracy_drop.high
        for s in found.strategies
        if s.predicted.size_bytes.value <= limit
    ]
    assert near.reachable == pytest.approx(min(promised, *listed), rel=0.02)
    assert not near.alone and near.binding


def test_what_no_allocation_is_solved_for_is_the_least_that_is_planned(branches):
    found = planned(branches, require("peak_memory", 1.0))
    near = reachable(found, "peak_memory")
    assert near.reachable == min(s.predicted.peak_activation_bytes.high for s in found.strategies)


def test_nothing_is_near_where_nothing_was_predicted(blind):
    reference = Reference(baseline=blind.price(blind.subject.allotter.full()))
    asked = Requirements(limits=(require("accuracy_floor", 0.8), require("energy", 1.0)))
    everything = blind.subject.allotter.allowed(lambda *_: True)
    ways = [(blind.subject, everything)]
    assert nearest(asked, ways, reference, [], epochs=4, images=1000) == ()


def test_the_original_keeps_its_own_latency_and_no_less_however_unsure_the_model(branches):
    for limit, verdict in ((1.0, "meets"), (0.99, "does not meet")):
        asked = require("latency", limit, relative=True)
        found = planned(branches, asked, methods=("prune", "quantize"))
        (whole,) = [s for s in found.strategies if s.name == "as it is"]
        assert whole.predicted.latency_ratio.exact and whole.verdict == verdict
        for one in found.strategies:
            assert (one.verdict == "meets") == (one.predicted.latency_ratio.high <= limit)


def test_a_network_that_is_not_trained_is_not_said_to_lack_images(blind):
    subject = replace(blind.subject, untrained=True)
    found = plan(Requirements(), [subject], settings=PlanSettings(), **NETWORK)
    (note,) = [note for note in found.notes if note.startswith("No loss of accuracy")]
    assert "--weights" in note and "--data" not in note
    found = plan(Requirements(), [blind.subject], settings=PlanSettings(), **NETWORK)
    assert any("give images (--data)" in note for note in found.notes)
