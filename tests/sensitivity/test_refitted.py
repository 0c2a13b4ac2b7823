"""What channels cost that the others make up for."""

import copy

import pytest
import torch
from torch import nn

from harness.compression.groups import find_groups
from harness.compression.selection import removals
from harness.networks import fold_batchnorm
from harness.records import Option
from harness.sensitivity.refitted import refitted, scores
from harness.sensitivity.results import Sensitivities
from tests.compression.tiny import Residual, seeded

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_width_costs_what_its_change_of_weights_and_bias_does_to_the_loss() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    found = removals(network, groups, IMAGES, {"inner": [3, 6]}, positions=64)
    draws = 400
    got = scores(network, found, IMAGES, draws=draws, temperature=2.0, batch=5)
    # By hand: with J the change of the logits to first order, the mean over random signs is
    # 1/2 * J^T (diag(p) - p p^T) J, image by image; 1/T in the logits and T^2 cancel.
    folded = fold_batchnorm(network, IMAGES[:1])
    shares = (folded(IMAGES) / 2).softmax(1).detach()
    (consumer,) = found["inner"].changes
    for width in (3, 6):
        step = 1e-3
        moved = copy.deepcopy(folded)
        layer = moved.get_submodule(consumer)
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        with torch.no_grad():
            layer.weight += step * found["inner"].changes[consumer][width]
            layer.bias += step * found["inner"].offsets[consumer][width]
            change = (moved.double()(IMAGES.double()) - folded.double()(IMAGES.double())) / step
            folded.float()
        mean = (shares * change).sum(1)
        by_hand = ((shares * change.square()).sum(1) - mean.square()).mean() / 2
        assert got["inner"][width] == pytest.approx(float(by_hand), rel=0.1)


def test_fewer_channels_cost_more() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    found = removals(network, groups, IMAGES, {"inner": [2, 11]}, positions=64)
    got = scores(network, found, IMAGES)
    assert got["inner"][11] < got["inner"][2]


def test_options_take_the_widths_loss_and_the_precisions_and_keep_what_stays_longest() -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES)
    found = removals(network, groups, IMAGES, {"inner": [3]}, positions=64)
    options = tuple(
        Option(channels=channels, precision=precision)
        for channels in (3, 12)
        for precision in ("fp32", "int8")
    )
    before = Sensitivities(
        options={"inner": options, "other": options[2:]},
        values={"inner": (9.0, 9.5, 0.0, 0.25), "other": (0.0, 1.0)},
        channel_scores={"inner": (0.0,) * 12, "other": (0.0,) * 12},
    )
    after = refitted(before, found, {"inner": {3: 2.0}})
    assert after.values["inner"] == (2.0, 2.25, 0.0, 0.25)
    assert after.values["other"] == (0.0, 1.0)
    assert after.kept("inner", 3) == found["inner"].kept(3)
