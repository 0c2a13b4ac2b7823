import pytest
import torch
from torch import Tensor

from harness.compression.quantizers import (
    QuantizedWeight,
    Range,
    activation_range,
    error_scale,
    quantize_weight,
    round_activations,
    round_weights,
)
from harness.errors import BuildError


def test_three_bits_have_levels_of_three_and_hold_each_channels_maximum() -> None:
    weight = torch.tensor([[0.3, -0.14, 0.04], [-6.0, 2.9, 3.1]])
    quantized = quantize_weight(weight, 3)
    # Scales 0.3 / 3 and 6 / 3.
    assert quantized.scale.tolist() == pytest.approx([0.1, 2.0])
    assert quantized.levels.tolist() == [[3, -1, 0], [-3, 1, 2]]
    torch.testing.assert_close(
        quantized.dequantized(), torch.tensor([[0.3, -0.1, 0.0], [-6.0, 2.0, 4.0]])
    )


def test_two_bits_are_a_sign_and_zero() -> None:
    assert quantize_weight(torch.tensor([[1.0, -0.6, 0.4]]), 2).levels.tolist() == [[1, -1, 0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_error_search_finds_the_best_of_its_51_scales(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(4, 3, 3, 3)
    most = 2 ** (bits - 1) - 1
    found = quantize_weight(weight, bits, scale="error")
    for channel, row in enumerate(weight):
        errors = []
        for step in range(51):
            scale = row.abs().max() / most * (0.2 + 0.02 * step)
            rounded = (row / scale).round().clamp(-most, most) * scale
            errors.append(float((rounded - row).square().sum()))
        error = float((found.dequantized()[channel] - row).square().sum())
        assert error == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("weights", [9, 70_000])
def test_the_search_gives_each_weight_its_importance(bits: int, weights: int) -> None:
    """Also where a channel has more weights than are searched at once."""
    torch.manual_seed(bits)
    weight = torch.randn(3, weights)
    importance = torch.rand(3, weights).pow(4)
    importance[0] *= 1e-3
    found = error_scale(weight, bits, importance)
    most = 2 ** (bits - 1) - 1
    for row, matters, scale in zip(weight, importance, found, strict=True):

        def error(s: Tensor, row: Tensor = row, matters: Tensor = matters) -> float:
            rounded = (row / s).round().clamp(-most, most) * s
            return float(((rounded - row).square() * matters).sum())

        tried = [row.abs().max() / most * (0.2 + 0.02 * step) for step in range(51)]
        assert error(scale) == pytest.approx(min(map(error, tried)), rel=1e-4)


def test_an_outlier_is_clipped_unless_it_is_what_matters() -> None:
    # 63 weights of 0.5 and one of 2: at 2 bits, scale 2 loses 63 x 0.25, scale 0.52 the outlier.
    weight = torch.full((1, 64), 0.5)
    weight[0, 0] = 2.0
    plain = quantize_weight(weight, 2, scale="error")
    assert float(plain.scale) == pytest.approx(0.52)
    matters = torch.ones(1, 64)
    matters[0, 0] = 1e4
    weighted = quantize_weight(weight, 2, scale="error", importance=matters)
    assert float(weighted.scale) == pytest.approx(2.0)


def test_a_channel_of_zeros_stays_zero() -> None:
    for scale in ("max", "error"):
        rounded = round_weights(torch.zeros(2, 3), 4, scale=scale)  # type: ignore[arg-type]
        assert rounded.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("bits", [1, 0, 9, 32])
def test_weights_have_two_to_eight_bits(bits: int) -> None:
    with pytest.raises(BuildError, match=f"{bits} bits: choose from 2 to 8"):
        round_weights(torch.ones(1, 1), bits)


def test_importance_without_a_search_is_refused() -> None:
    with pytest.raises(BuildError, match='scale="error" alone'):
        quantize_weight(torch.ones(1, 2), 4, importance=torch.ones(1, 2))


def test_levels_and_scales_that_do_not_fit_are_refused() -> None:
    levels, scale = torch.tensor([[4, 0]], dtype=torch.int8), torch.ones(1)
    assert QuantizedWeight(levels, scale, 4).dequantized().tolist() == [[4, 0]]
    with pytest.raises(BuildError, match="within 3"):
        QuantizedWeight(levels, scale, 3)
    with pytest.raises(BuildError, match="within 7"):
        QuantizedWeight(levels.float(), scale, 4)
    with pytest.raises(BuildError, match="one positive scale"):
        QuantizedWeight(levels, -scale, 4)
    with pytest.raises(BuildError, match="one positive scale"):
        QuantizedWeight(levels, torch.ones(2), 4)


def test_asymmetric_activations_have_an_exact_zero_and_are_clipped() -> None:
    # 255 levels of 0.1 between -5.1 and 20.4: zero is level 51.
    interval = Range(low=-5.1, high=20.4)
    assert interval.scale == pytest.approx(0.1)
    assert interval.zero_point == 51
    a = torch.tensor([-9.0, -5.1, 0.0, 0.04, 0.06, 20.4, 30.0])
    torch.testing.assert_close(
        interval.rounded(a), torch.tensor([-5.1, -5.1, 0.0, 0.0, 0.1, 20.4, 20.4])
    )


def test_symmetric_activations_have_as_many_levels_below_zero_as_above() -> None:
    interval = Range(low=-1.0, high=3.0, bits=3, symmetric=True)
    assert (interval.scale, interval.zero_point, interval.levels) == (1.0, 0, (-3, 3))
    a = torch.tensor([-5.0, -1.4, 0.6, 2.4, 9.0])
    assert round_activations(a, -1.0, 3.0, 3, symmetric=True).tolist() == [-3, -1, 1, 2, 3]
    assert a.tolist() == pytest.approx([-5.0, -1.4, 0.6, 2.4, 9.0])


def test_an_activation_that_is_always_zero_passes() -> None:
    assert round_activations(torch.zeros(3), 0.0, 0.0).tolist() == [0, 0, 0]


def test_a_range_holds_zero_and_a_sane_number_of_bits() -> None:
    with pytest.raises(BuildError, match=r"must hold zero, got 0.5\.\.1"):
        Range(low=0.5, high=1.0)
    with pytest.raises(BuildError, match="must hold zero"):
        Range(low=float("nan"), high=1.0)
    with pytest.raises(BuildError, match="choose from 2 to 16"):
        Range(low=0.0, high=1.0, bits=1)


def test_the_full_range_covers_all_samples_and_zero() -> None:
    found = activation_range([torch.tensor([2.0, 3.0]), torch.tensor([1.0])])
    assert (found.low, found.high) == (0.0, 3.0)
    with pytest.raises(BuildError, match="at least one value"):
        activation_range([])


def test_a_percentile_leaves_the_outliers_out() -> None:
    values = torch.cat([torch.linspace(0, 1, 9_999), torch.tensor([100.0])])
    found = activation_range([values], method="percentile", outside=0.01)
    # Bins are 100 / 2048 wide; of 10,000 values 0.5 % may lie above.
    assert found.low == 0.0
    assert 0.99 <= found.high <= 1.05


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_range_of_least_error_is_near_the_best_of_a_search(symmetric: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(20_000)
    values[0] = 12.0

    def error(interval: Range) -> float:
        return float((interval.rounded(values) - values).square().mean())

    found = activation_range([values], method="error", bits=4, symmetric=symmetric)
    full = activation_range([values], bits=4, symmetric=symmetric)
    best = min(
        error(Range(low=full.low * s / 50, high=full.high * s / 50, bits=4, symmetric=symmetric))
        for s in range(5, 51)
    )
    assert error(found) <= 1.1 * best
    assert error(found) < 0.5 * error(full)


def test_a_range_without_outliers_is_kept_whole() -> None:
    found = activation_range([torch.linspace(-1, 1, 4001)], method="error")
    assert (found.low, found.high) == (-1.0, 1.0)
