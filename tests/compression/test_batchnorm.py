"""Batch-norm statistics estimated again."""

import copy

import pytest
import torch
from torch import nn

from harness.compression.batchnorm import corrections, reestimate
from harness.errors import BuildError


def network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))


def test_statistics_are_the_plain_mean_over_batches() -> None:
    images = torch.tensor([0.0, 2.0, 4.0, 10.0]).view(4, 1, 1, 1)
    layer = network()
    reestimate(layer, images, batch=2)
    # Batch means 1 and 7, so 4; unbiased variances 2 and 18, so 10.
    assert layer[0].running_mean.tolist() == [4.0]
    assert layer[0].running_var.tolist() == [10.0]


def test_the_order_of_the_batches_does_not_matter() -> None:
    images = torch.randn(64, 1, 3, 3)
    forwards, backwards = network(), network()
    reestimate(forwards, images, batch=16)
    reestimate(backwards, torch.cat(images.split(16)[::-1]), batch=16)
    torch.testing.assert_close(forwards[0].running_mean, backwards[0].running_mean)
    torch.testing.assert_close(forwards[0].running_var, backwards[0].running_var)


def test_old_statistics_are_forgotten_and_momentum_comes_back() -> None:
    layer = network()
    layer[0].running_mean += 100
    reestimate(layer, torch.zeros(8, 1, 2, 2), batch=4)
    assert layer[0].running_mean.tolist() == [0.0]
    assert layer[0].momentum == 0.1
    assert not layer.training
    assert not layer[0].training


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    layer = network()
    reestimate(layer, torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), batch=128)
    assert layer[0].running_mean.tolist() == [2.0]


def test_a_network_without_batch_norm_is_left_alone() -> None:
    layer = nn.Linear(2, 2)
    reestimate(layer, torch.zeros(4, 2), batch=2)
    assert not layer.training


def test_corrections_leave_of_the_images_only_what_compression_changed() -> None:
    """Trained on mean 5, variance 8; the images have 2 and 2; doubled inputs have 4 and 8."""
    trained = nn.Sequential(nn.Identity(), nn.BatchNorm2d(1)).eval()
    trained[1].running_mean.fill_(5.0)
    trained[1].running_var.fill_(8.0)
    images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    fresh, variant = copy.deepcopy(trained), copy.deepcopy(trained)
    reestimate(fresh, images, batch=2)
    reestimate(variant, 2 * images, batch=2, corrected=corrections(trained, fresh))
    # Means are off by (5 - 2) / sqrt(2) deviations: 4 + 3 / sqrt(2) * sqrt(8) = 10, twice 5; the
    # variance is 8 * (8 / 2), four times 8.
    assert variant[1].running_mean.tolist() == pytest.approx([10.0])
    assert variant[1].running_var.tolist() == pytest.approx([32.0])
    again = copy.deepcopy(trained)
    reestimate(again, images, batch=2, corrected=corrections(trained, fresh))
    assert again[1].running_mean.tolist() == pytest.approx([5.0])
    assert again[1].running_var.tolist() == pytest.approx([8.0])


def test_a_channel_that_never_varies_is_not_scaled() -> None:
    trained = nn.Sequential(nn.BatchNorm2d(1))
    fresh = copy.deepcopy(trained)
    reestimate(fresh, torch.zeros(4, 1, 2, 2), batch=4)
    shift, ratio = corrections(trained, fresh)["0"]
    assert (shift.tolist(), ratio.tolist()) == ([0.0], [1.0])


def test_a_channel_that_never_varied_in_training_is_not_scaled() -> None:
    # EfficientNet-Lite0 has some: a ratio of 0 put a variance of 0 / 0 in their place.
    trained, fresh = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(2))
    trained[0].running_var = torch.tensor([0.0, 2.0])
    fresh[0].running_var = torch.tensor([1e-30, 1.0])
    fresh[0].running_mean = torch.tensor([3.0, 0.0])
    shift, ratio = corrections(trained, fresh)["0"]
    assert shift.tolist() == [0.0, 0.0]
    assert ratio.tolist() == [1.0, 2.0]


def test_corrections_of_unlike_networks_are_refused() -> None:
    with pytest.raises(BuildError, match="batch norm 0 is not the same"):
        corrections(nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(BuildError, match="batch norm 0 is not the same"):
        corrections(nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.ReLU()))
