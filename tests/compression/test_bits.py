import pytest
import torch
from torch import nn

from harness.compression.bits import expected_losses, layer_options, rounded_options
from harness.compression.quantizers import round_weights
from harness.errors import BuildError

torch.manual_seed(0)
LAYER = nn.Linear(16, 4)


def errors(bits: tuple[int, ...]) -> list[float]:
    weight = LAYER.weight.detach()
    return [float((round_weights(weight, b) - weight).square().sum()) for b in bits]


def test_a_layers_losses_follow_the_errors_of_its_quantizer() -> None:
    """Scores of 2, 8 and 4 times the error: the geometric mean is 4 times."""
    bits = (3, 4, 8)
    found = errors(bits)
    scores = [2 * found[0], 8 * found[1], 4 * found[2]]
    losses = expected_losses({"a": LAYER}, bits, {"a": scores})["a"]
    assert losses == pytest.approx([4 * error for error in found])
    assert losses[0] > losses[1] > losses[2] > 0


def test_two_bits_cost_more_than_their_error_says() -> None:
    found = errors((2, 3))
    losses = expected_losses({"a": LAYER}, (2, 3), {"a": found})["a"]
    assert losses == pytest.approx([3 * found[0], found[1]])


def test_few_bits_cost_depthwise_layers_twice() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4)
    weight = layer.weight.detach()
    bits = (2, 3, 4)
    found = [float((round_weights(weight, b) - weight).square().sum()) for b in bits]
    losses = expected_losses({"a": layer}, bits, {"a": found})["a"]
    assert losses == pytest.approx([6 * found[0], 2 * found[1], found[2]])


def test_what_compensation_leaves_is_all_that_counts() -> None:
    found = errors((3, 5))
    losses = expected_losses({"a": LAYER}, (3, 5), {"a": found}, {"a": 0.25})["a"]
    assert losses == pytest.approx([error / 4 for error in found])


def test_rounded_weights_at_hand_are_not_searched_for_again() -> None:
    """With all errors four times as large, so are the losses of equal unit loss."""
    found = errors((3, 8))
    weight = LAYER.weight.detach()
    rounded = rounded_options({"a": LAYER}, (3, 8))
    assert list(rounded["a"]) == ["w3a8", "int8"]
    same = expected_losses({"a": LAYER}, (3, 8), {"a": found}, rounded=rounded)
    assert same == expected_losses({"a": LAYER}, (3, 8), {"a": found})
    doubled = {"a": {word: 2 * w - weight for word, w in rounded["a"].items()}}
    scores = [4 * error for error in found]
    losses = expected_losses({"a": LAYER}, (3, 8), {"a": scores}, rounded=doubled)["a"]
    assert losses == pytest.approx(scores)


def test_a_layer_without_any_influence_costs_nothing() -> None:
    assert expected_losses({"a": LAYER}, (3, 5), {"a": (0.0, 0.0)}) == {"a": (0.0, 0.0)}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_no_losses_are_refused(score: float) -> None:
    with pytest.raises(BuildError, match="scores of a must be finite"):
        expected_losses({"a": LAYER}, (3, 5), {"a": (0.1, score)})


def test_every_layer_is_a_group_with_an_option_for_each_number_of_bits() -> None:
    groups, options = layer_options({"a": LAYER}, (2, 8))
    assert [(group.name, group.channels, group.prunable) for group in groups] == [("a", 4, False)]
    assert [option.precision for option in options["a"]] == ["w2a8", "int8"]
    with pytest.raises(BuildError, match="9 bits"):
        layer_options({"a": LAYER}, (9,))
