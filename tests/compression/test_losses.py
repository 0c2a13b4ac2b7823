"""What a student is told."""

import math

import pytest
import torch
from torch import nn

from harness.compression.losses import attention_loss, distillation_loss, last_at_each_size
from harness.errors import BuildError
from tests.sensitivity.cifar_resnet import ResNet


def test_the_loss_is_hintons() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    # At T = 2 the teacher says 3/4, 1/4 and the student 1/2, 1/2:
    # KL = 3/4 log(3/2) + 1/4 log(1/2); CE = log 2.
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = distillation_loss(student, teacher, None, temperature=2.0, alpha=0.1)
    assert float(loss) == pytest.approx(4 * kl, rel=1e-5)
    loss = distillation_loss(student, teacher, torch.tensor([1]), temperature=2.0, alpha=0.1)
    assert float(loss) == pytest.approx(0.1 * math.log(2) + 0.9 * 4 * kl, rel=1e-5)


def test_a_student_that_agrees_loses_nothing_without_labels() -> None:
    logits = torch.randn(5, 3)
    loss = distillation_loss(logits, logits.clone(), None, temperature=4.0, alpha=0.1)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_attention_maps_are_compared_at_unit_length() -> None:
    # Channels (3, 0) and (0, 4) at two places: squares summed (9, 16), length sqrt(337).
    student = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[5.0, 0.0]]).view(1, 1, 1, 2)  # (25, 0), at unit length (1, 0)
    loss = attention_loss({"layer": student}, {"layer": teacher})
    length = math.sqrt(337)
    assert float(loss) == pytest.approx(((1 - 9 / length) ** 2 + (16 / length) ** 2) / 2)


def test_features_are_matched_where_a_resnets_stages_end() -> None:
    network = ResNet(1).eval()
    assert last_at_each_size(network, torch.zeros(1, 3, 32, 32)) == ("layer1", "layer2", "layer3")
    with pytest.raises(BuildError, match="features=0"):
        last_at_each_size(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.zeros(1, 1, 8, 8))
