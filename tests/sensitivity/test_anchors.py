"""Anchors: what is tried, what it loses, and what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.compression.batchnorm import reestimate
from harness.compression.groups import find_groups
from harness.errors import ConfigError
from harness.networks import Metric
from harness.records import Group, Option
from harness.sensitivity import anchors as module
from harness.sensitivity.anchors import Images, anchor_choices, anchors, split_score
from harness.sensitivity.magnitude import by_magnitude
from harness.sensitivity.refitted import rescored, scored
from harness.sensitivity.results import Sensitivities
from harness.strategies.generator import options_for
from tests.compression.tiny import Residual, seeded

IMAGES = torch.randn(160, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def option(channels, precision="fp32"):
    return Option(channels=channels, precision=precision)


def made_up(values, precisions=("fp32", "int8")):
    """Groups of four channels; ``values`` by group for 2 and 4 channels in each precision."""
    options = tuple(option(c, p) for c in (2, 4) for p in precisions)
    return Sensitivities(
        options=dict.fromkeys(values, options),
        values=values,
        channel_scores={name: (4.0, 3.0, 2.0, 1.0) for name in values},
    )


@pytest.fixture(scope="module")
def sure():
    """A network that is sure of its classes, and its groups and options."""
    network = seeded(Residual)
    reestimate(network, IMAGES)
    with torch.no_grad():
        # Every class is some image's.
        network.get_parameter("classifier.bias").sub_(network(IMAGES).mean(0))
        network.get_parameter("classifier.weight").mul_(30)
        network.get_parameter("classifier.bias").mul_(30)
        assert len(set(network(IMAGES).argmax(1).tolist())) == 3
    groups = find_groups(network, IMAGES[:1])
    options = options_for(groups, precisions=("fp32", "int8"), step=2)
    return network, groups, options


def test_a_score_is_split_into_that_of_the_widths_and_what_rounding_adds():
    found = made_up({"a": (0.5, 0.7, 0.0, 0.1), "b": (0.2, 0.15, 0.0, 0.05)})
    whole = {"a": option(4), "b": option(4)}
    assert split_score(found, whole) == (0.0, 0.0)
    # 0.5 for two channels of a, and 0.2 more for rounding them; b is rounded whole.
    assert split_score(found, {"a": option(2, "int8"), "b": option(4, "int8")}) == pytest.approx(
        (0.5, 0.25)
    )
    # Rounding what is left of b makes up for some of it: that is not counted against pruning.
    assert split_score(found, {"a": option(4), "b": option(2, "int8")}) == pytest.approx(
        (0.15, 0.0)
    )


def test_where_fp32_was_not_scored_pruning_is_what_comes_on_top_of_the_whole_group():
    found = made_up({"a": (0.7, 0.1)}, precisions=("int8",))
    assert split_score(found, {"a": option(2, "int8")}) == pytest.approx((0.6, 0.1))
    assert split_score(found, {"a": option(4, "int8")}) == pytest.approx((0.0, 0.1))


def test_allocated_anchors_cut_where_the_weights_cost_least():
    groups = [
        Group(name=name, channels=4, producers=(name,), consumers=(), prunable=True)
        for name in ("a", "b")
    ]
    found = made_up({"a": (0.9, 0.91, 0.0, 0.01), "b": (0.1, 0.11, 0.0, 0.01)})
    choices = anchor_choices(groups, found, {"a": 100, "b": 100})
    # Of 100 removable weights b's 50 go first, and are as near as one comes to 20, and to 40: that
    # is the same again. 60 are both groups', which is what uniform pruning tries already.
    assert choices["0.8 of the removable weights"] == {"a": option(4), "b": option(2)}
    again = {"0.6 of the removable weights", "0.4 of the removable weights"}
    assert not again & set(choices)
    assert choices["int8"] == {"a": option(4, "int8"), "b": option(4, "int8")}
    assert choices["int8 in every other group"] == {"a": option(4, "int8"), "b": option(4)}
    # Three of four channels are as near to two, the only others there are.
    assert choices["0.75 of all channels"] == {"a": option(2), "b": option(2)}
    every = list(choices.values())
    assert all(choice not in every[:i] for i, choice in enumerate(every))
    assert {"a": option(4), "b": option(4)} not in every


def test_milder_anchors_lose_less_and_scores_follow_what_is_lost(sure):
    network, groups, options = sure
    sensitivities = scored(network, groups, options, IMAGES[:64])
    found = anchors(network, groups, sensitivities, Images(scored=IMAGES[:64], judged=IMAGES[64:]))
    assert not found.labelled and 6 <= len(found.anchors) <= 10
    by_label = {one.label: one for one in found.anchors}
    assert by_label["int8"].pruning == 0 < by_label["int8"].rounding
    mild, hard = by_label["0.875 of all channels"], by_label["0.5 of all channels"]
    assert mild.rounding == 0 < mild.pruning < hard.pruning
    assert mild.drop < hard.drop <= found.most
    assert all(one.images == 96 and 0 <= one.changed <= 1 for one in found.anchors)


def test_a_classifiers_points_are_those_of_its_odds_put_right_by_the_labels(sure):
    network, _, _ = sure
    judged = IMAGES[64:]
    with torch.no_grad():
        logits = network(judged).double()
    # Labels drawn from the odds at a temperature of 2: the network is surer than it is right.
    odds = (logits / 2).softmax(1)
    many = torch.multinomial(odds, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    points = module._Points(network, Images(scored=IMAGES[:64], judged=judged, targets=many))
    bare = module._Points(network, Images(scored=IMAGES[:64], judged=judged))
    other = seeded(Residual)
    told, told_bare = points.lost(other), bare.lost(other)
    classes, now = logits.argmax(1), torch.as_tensor(points._outputs(other)[0]).argmax(1)
    rows = torch.arange(len(judged))
    by_hand = 100 * float((odds[rows, classes] - odds[rows, now]).mean())
    assert told[0] == pytest.approx(by_hand, rel=0.25)  # 96 labels tell the temperature so well
    assert told_bare[0] > told[0]
    assert told[1] == told_bare[1] == pytest.approx(float((classes != now).float().mean()))


def test_other_networks_are_judged_by_their_metric_and_want_targets(sure):
    network, groups, options = sure
    closeness = Metric(
        name="closeness",
        function=lambda outputs, targets: 1 / (1 + float(np.abs(outputs - targets).mean())),
        classifies=False,
    )
    with torch.no_grad():
        targets = network(IMAGES[64:])
    images = Images(scored=IMAGES[:64], judged=IMAGES[64:], targets=targets, metric=closeness)
    found = anchors(network, groups, by_magnitude(network, groups, options), images)
    assert found.most == pytest.approx(100.0)
    assert all(one.changed is None and 0 < one.drop < 100 for one in found.anchors)
    with pytest.raises(ConfigError, match="cannot be told without targets"):
        anchors(
            network,
            groups,
            by_magnitude(network, groups, options),
            replace(images, targets=None),
        )


def test_anchors_and_scores_are_kept_for_the_same_content(sure, tmp_path):
    network, groups, options = sure
    sensitivities = scored(network, groups, options, IMAGES[:64], cache=tmp_path)
    images = Images(scored=IMAGES[:64], judged=IMAGES[64:])
    found = anchors(network, groups, sensitivities, images, cache=tmp_path)
    seen = []

    def tell(done, of):
        seen.append((done, of))

    assert scored(network, groups, options, IMAGES[:64], cache=tmp_path, progress=tell)
    assert anchors(network, groups, sensitivities, images, cache=tmp_path, progress=tell) == found
    assert not seen
    fewer = replace(images, judged=IMAGES[100:])
    assert anchors(network, groups, sensitivities, fewer, cache=tmp_path, progress=tell) != found
    assert seen[-1] == (len(found.anchors), len(found.anchors))
    (file,) = [f for f in tmp_path.glob("anchors-*.json") if "96" in f.read_text()][:1]
    file.write_text("{")
    assert anchors(network, groups, sensitivities, images, cache=tmp_path) == found


def test_widths_scored_as_fitted_again_keep_what_rounding_costs(sure):
    network, groups, options = sure
    plain = by_magnitude(network, groups, options)
    again = rescored(network, groups, plain, IMAGES[:64])
    changed = 0
    for group in groups:
        for one, before, after in zip(
            options[group.name], plain.values[group.name], again.values[group.name], strict=True
        ):
            if one.channels == group.channels:
                assert after == before
            else:
                changed += after != before
    assert changed > 0


def test_magnitudes_are_shares_of_the_squared_weights():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, 4.0]).view(2, 1, 1, 1))
    group = Group(name="0", channels=2, producers=("0",), consumers=(), prunable=True)
    found = by_magnitude(network, [group], {"0": (option(1), option(2), option(2, "int8"))})
    # 9 and 16 of 25: the smaller channel goes, for half its share. One weight a channel rounds
    # to itself.
    assert found.channel_scores["0"] == pytest.approx((0.36, 0.64))
    assert found.values["0"] == pytest.approx((0.18, 0.0, 0.0), abs=1e-6)
    assert found.kept("0", 1) == (1,)
