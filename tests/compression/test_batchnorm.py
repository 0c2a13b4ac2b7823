"""Batch-norm statistics estimated again."""

import torch
from torch import nn

from harness.compression.batchnorm import reestimate


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
