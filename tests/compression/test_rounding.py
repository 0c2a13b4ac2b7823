import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.compression.quantizers import quantize_weight
from harness.compression.rounding import (
    InputMoments,
    compensate,
    compensated_share,
    enlarged,
    lacking_gain,
    unfolded,
)
from harness.errors import BuildError


def moments_of(layer: nn.Conv2d | nn.Linear, original: Tensor, quantized: Tensor) -> InputMoments:
    moments = InputMoments(layer, len(original))
    half = len(original) // 2
    moments.add(original[:half], quantized[:half])
    moments.add(original[half:], quantized[half:])
    return moments


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    return torch.randn(rows, columns, generator=generator) @ (mixing + 0.3) + 0.5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1)),
        nn.Conv2d(4, 6, 1, stride=2, groups=2),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
    ],
)
def test_what_a_convolution_reads_times_its_weights_is_its_output(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    a = torch.randn(3, 4, 9, 8)
    with torch.no_grad():
        expected = layer(a)
        read = unfolded(layer, a)
        weight = layer.weight.reshape(layer.groups, -1, read.shape[2])
        out = torch.einsum("grk,gok->gor", read, weight).reshape(
            6 if len(layer.weight) == 6 else 4, 3, -1
        )
        out = out.transpose(0, 1).reshape(expected.shape) + layer.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(unfolded(layer, a.contiguous(memory_format=torch.channels_last)), read)
    some = torch.tensor([0, 7, 11])
    chosen = read.reshape(layer.groups, 3, -1, read.shape[2])[:, :, some]
    assert torch.equal(unfolded(layer, a, some), chosen.flatten(1, 2))


def test_layers_whose_inputs_are_not_known_are_refused() -> None:
    with pytest.raises(BuildError, match="Conv1d with padding"):
        unfolded(nn.Conv1d(1, 1, 3), torch.zeros(1, 1, 8))
    with pytest.raises(BuildError, match="with padding 'same'"):
        unfolded(nn.Conv2d(1, 1, 3, padding="same"), torch.zeros(1, 1, 8, 8))
    with pytest.raises(BuildError, match="'reflect' is not supported"):
        unfolded(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), torch.zeros(1, 1, 8, 8))

    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(functional.pad(x, (0, 1, 0, 1)))

    with pytest.raises(BuildError, match="Padded changes its input"):
        unfolded(Padded(1, 1, 3), torch.zeros(1, 1, 8, 8))


def test_moments_are_those_of_all_batches_together() -> None:
    x, q = correlated(200, 5), correlated(200, 5, seed=1)
    moments = moments_of(nn.Linear(5, 2), x, q)
    both = np.cov(np.hstack([x.numpy(), q.numpy()]).T, bias=True)
    np.testing.assert_allclose(moments.covariance[0], both[5:, 5:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.cross[0], both[:5, 5:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.mean[0], q.numpy().mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.original_mean[0], x.numpy().mean(0), rtol=1e-4)


def test_of_large_images_some_positions_are_looked_at_the_same_in_both_networks() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 1, 90, 90)  # 16,200 positions; 2,048 are enough
    moments = InputMoments(nn.Conv2d(1, 1, 1), 2)
    moments.add(images, 2 * images)
    assert float(moments.cross) == pytest.approx(2 * float(moments.covariance) / 4, rel=1e-6)
    assert float(moments.covariance) == pytest.approx(4.0, rel=0.1)
    assert moments.rows == 2048


def output_error(layer: nn.Linear, x: Tensor, q: Tensor, weight: Tensor, bias: Tensor) -> float:
    with torch.no_grad():
        return float((layer(x) - functional.linear(q, weight, bias)).square().sum(1).mean())


def test_the_levels_are_near_the_best_of_all_there_are() -> None:
    """Six weights of 2 bits: 3^6 choices of levels, each with its best scale and bias."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 64)
    x = correlated(500, 6)
    rounded = compensate(layer, moments_of(layer, x, x), 2, damping=0.0)
    centred = (x - x.mean(0)).double()
    wanted = centred @ layer.weight.detach().double().T  # (500, 64)
    choices = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=6))).double()
    made = centred @ choices.T  # (500, 729)
    # The best scale of a choice is <wanted, made> / <made, made>, and must be positive.
    products = (wanted.T @ made).clamp_min(0) / len(x)
    explained = products.square() / made.square().mean(0).clamp_min(1e-12)
    best = float((wanted.square().mean(0) - explained.max(1).values).sum())
    error = output_error(layer, x, x, rounded.weight.dequantized(), rounded.bias)
    assert error == pytest.approx(rounded.error, rel=1e-3)
    plain = quantize_weight(layer.weight, 2, scale="error").dequantized()
    bias = (layer(x) - functional.linear(x, plain)).mean(0).detach()
    # Single steps from one start do not always end at the optimum.
    assert best <= error < 1.5 * best < output_error(layer, x, x, plain, bias)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_single_level_can_be_moved_to_lower_the_error(bits: int) -> None:
    torch.manual_seed(bits)
    layer = nn.Linear(24, 8)
    x = correlated(2000, 24)
    moments = moments_of(layer, x, x)
    rounded = compensate(layer, moments, bits, damping=0.0, sweeps=100)
    covariance = moments.covariance[0]
    scale, levels = rounded.weight.scale.double(), rounded.weight.levels.double()
    difference = scale[:, None] * levels - layer.weight.detach().double()
    error = ((difference @ covariance) * difference).sum(1)
    most = 2 ** (bits - 1) - 1
    for column, step in itertools.product(range(24), (-1, 1)):
        moved = difference.clone()
        moved[:, column] += step * scale
        worse = ((moved @ covariance) * moved).sum(1) >= error * (1 - 1e-3)
        assert bool((worse | ((levels[:, column] + step).abs() > most)).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_compensation_beats_plain_rounding_where_inputs_are_correlated(bits: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    x = correlated(4000, 64)
    moments = moments_of(layer, x, x)
    plain = quantize_weight(layer.weight, bits, scale="error").dequantized()
    bias = (layer(x) - functional.linear(x, plain)).mean(0).detach()
    errors = [output_error(layer, x, x, plain, bias)]
    for sweeps in (0, 8):
        rounded = compensate(layer, moments, bits, sweeps=sweeps)
        errors.append(output_error(layer, x, x, rounded.weight.dequantized(), rounded.bias))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < errors[1]


def test_a_layer_makes_up_for_what_the_layers_before_it_did() -> None:
    """Inputs that arrive 20 % too small, shifted by one: weights and bias undo it."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = correlated(2000, 16)
    q = 0.8 * x + 1
    moments = moments_of(layer, x, q)
    errors = []
    for follow in (0.0, 0.5, 1.0):
        rounded = compensate(layer, moments, 8, damping=1e-6, follow=follow)
        errors.append(output_error(layer, x, q, rounded.weight.dequantized(), rounded.bias))
        made = functional.linear(q, rounded.weight.dequantized(), rounded.bias)
        torch.testing.assert_close(made.mean(0), layer(x).mean(0), atol=1e-4, rtol=1e-4)
    assert errors[2] < 0.01 * errors[0]
    # Half of the way leaves half of the deviation, a quarter of its square.
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)


def test_depthwise_channels_are_rounded_each_by_its_own_inputs() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    images = torch.randn(8, 3, 10, 10).cumsum(2).cumsum(3)
    together = compensate(layer, moments_of(layer, images, images), 3)  # type: ignore[arg-type]
    for channel in range(3):
        alone = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        alone.weight = nn.Parameter(layer.weight[channel : channel + 1].detach())
        part = images[:, channel : channel + 1]
        rounded = compensate(alone, moments_of(alone, part, part), 3)  # type: ignore[arg-type]
        assert torch.equal(rounded.weight.levels[0], together.weight.levels[channel])
        assert float(rounded.bias) == pytest.approx(float(together.bias[channel]), rel=1e-3)


def test_a_channel_that_is_never_active_keeps_its_weights() -> None:
    layer = nn.Linear(3, 2)
    x = correlated(100, 3)
    x[:, 1] = 0
    rounded = compensate(layer, moments_of(layer, x, x), 8)
    torch.testing.assert_close(rounded.weight.dequantized(), layer.weight, atol=0.02, rtol=0)


def test_the_share_that_is_left_is_the_pivots_over_the_trace() -> None:
    """Two inputs of variance 1 and correlation 0.8: pivots 1 and 1 - 0.64, trace 2."""
    factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # uncorrelated
    moments = moments_of(nn.Linear(2, 1), rows @ factor.T, rows @ factor.T)
    assert compensated_share(moments, damping=0.0) == pytest.approx(1.36 / 2, rel=1e-5)
    plain = moments_of(nn.Linear(2, 1), rows, rows)
    assert compensated_share(plain) == pytest.approx(1.0)


def test_few_samples_do_not_send_the_error_where_they_did_not_look() -> None:
    """40 samples of 64 inputs: most directions are never seen, and all of them occur later."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    x = correlated(4040, 64)
    seen, fresh = x[:40], x[40:]
    rounded = compensate(layer, moments_of(layer, seen, seen), 3)
    plain = quantize_weight(layer.weight, 3, scale="error").dequantized()
    bias = (layer(seen) - functional.linear(seen, plain)).mean(0).detach()
    found = output_error(layer, fresh, fresh, rounded.weight.dequantized(), rounded.bias)
    assert found < output_error(layer, fresh, fresh, plain, bias)


def test_unbiased_outputs_are_as_large_as_they_should_be() -> None:
    """The slope of the rounded outputs on the original's, channel by channel, is one."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = torch.randn(4000, 16)
    wanted = layer(x).detach()
    slopes = []
    for unbiased in (False, True):
        rounded = compensate(layer, moments_of(layer, x, x), 2, damping=1e-6, unbiased=unbiased)
        made = functional.linear(x, rounded.weight.dequantized(), rounded.bias)
        centred = wanted - wanted.mean(0)
        slopes.append((made * centred).sum(0) / centred.square().sum(0))
    assert float(slopes[0].max()) < 0.98
    torch.testing.assert_close(slopes[1], torch.ones(8), atol=1e-3, rtol=0)


def test_outputs_half_as_large_lack_a_gain_of_two_and_get_it_around_their_mean() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    x = correlated(500, 16)
    rounded = compensate(layer, moments_of(layer, x, x), 8)
    assert lacking_gain(layer, rounded, x, x) == pytest.approx(1, abs=0.01)
    assert lacking_gain(layer, rounded, x, x / 2) == pytest.approx(2, abs=0.02)
    # Nothing in common with what is wanted: no gain would help.
    assert lacking_gain(layer, rounded, x, torch.zeros_like(x)) == 1
    moments = moments_of(layer, x, x / 2)
    held = compensate(layer, moments, 8, follow=0)
    larger = enlarged(held, moments, 2.0)
    made = functional.linear(x / 2, larger.weight.dequantized(), larger.bias)
    assert torch.equal(larger.weight.levels, held.weight.levels)
    torch.testing.assert_close(made, layer(x).detach(), atol=0.05, rtol=0)
