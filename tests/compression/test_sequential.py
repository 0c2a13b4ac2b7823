import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional

import harness.compression
from harness.allocation.knapsack import solve
from harness.compression.bits import expected_losses, layer_options
from harness.compression.fakequant import corrected_biases, fake_quantize, input_ranges
from harness.compression.quantizers import quantize_weight
from harness.compression.sequential import compensated_shares, quantize_in_turn
from harness.errors import BuildError
from harness.networks import fold_batchnorm, layers_in_order
from harness.sensitivity.curvature import score
from tests.compression.tiny import Concatenated, Inverted, Padded, Residual, seeded


def images(count: int, seed: int) -> torch.Tensor:
    """Smooth, as images are: white noise has no correlation to make use of."""
    noise = torch.randn(count, 1, 10, 10, generator=torch.Generator().manual_seed(seed))
    return functional.avg_pool2d(noise, 3, 1) * 3


CALIBRATION, FRESH = images(64, 0), images(64, 1)


def error(network: nn.Module, original: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(x) - original(x)).square().mean())


@pytest.mark.parametrize("kind", [Residual, Padded, Inverted, Concatenated])
def test_compensated_networks_are_nearer_to_the_original_than_plainly_rounded_ones(
    kind: type,
) -> None:
    original = fold_batchnorm(seeded(kind), CALIBRATION[:1])
    layers = layers_in_order(original, CALIBRATION[:1])
    weights = {
        name: quantize_weight(layer.weight, 3, scale="error") for name, layer in layers.items()
    }
    plain = fake_quantize(
        original,
        CALIBRATION[:1],
        weights=weights,
        ranges=input_ranges(original, CALIBRATION),
        biases=corrected_biases(original, CALIBRATION, weights),
    )
    found = quantize_in_turn(original, CALIBRATION, dict.fromkeys(layers, 3), batch=10)
    for x in (CALIBRATION, FRESH):
        assert error(found.network, original, x) < 0.6 * error(plain, original, x)


def slope(network: nn.Module, original: nn.Module, x: torch.Tensor) -> float:
    """Of the network's outputs on the original's, channel means taken off."""
    with torch.no_grad():
        wanted, made = original(x), network(x)
    wanted = wanted - wanted.mean(0)
    return float((wanted * made).sum() / wanted.square().sum())


def test_images_kept_apart_tell_how_much_too_small_outputs_are() -> None:
    original = fold_batchnorm(seeded(Residual), CALIBRATION[:1])
    bits = dict.fromkeys(layers_in_order(original, CALIBRATION[:1]), 2)
    fitted, others = CALIBRATION[:16], CALIBRATION[16:]
    alone = quantize_in_turn(original, fitted, bits)
    judged = quantize_in_turn(original, CALIBRATION, bits, apart=48, ranges=alone.ranges)
    assert slope(judged.network, original, others) == pytest.approx(1, abs=1e-3)
    assert slope(alone.network, original, others) < 0.99
    # All but the last layer is as if those images did not exist.
    for name, weight in alone.weights.items():
        assert torch.equal(weight.levels, judged.weights[name].levels)
    with pytest.raises(BuildError, match="cannot keep 16 of 16 images apart"):
        quantize_in_turn(original, fitted, bits, apart=16)


def test_what_is_returned_builds_the_network_again() -> None:
    network = seeded(Residual)
    bits = {"stem": 8, "inner": 3, "wide": 2, "classifier": 4}
    done: list[tuple[int, int]] = []
    found = quantize_in_turn(
        network, CALIBRATION, bits, progress=lambda *counts: done.append(counts)
    )
    assert {name: weight.bits for name, weight in found.weights.items()} == bits
    assert found.errors.keys() == bits.keys()
    assert all(value >= 0 for value in found.errors.values())
    built = fake_quantize(
        network,
        CALIBRATION[:1],
        weights=found.weights,
        biases=found.biases,
        ranges=found.ranges,
    )
    with torch.no_grad():
        assert torch.equal(built(FRESH), found.network(FRESH))
    for name in bits:
        weight = found.network.get_submodule(name).weight
        for row, scale in zip(weight.flatten(1), found.weights[name].scale, strict=True):  # type: ignore[operator, arg-type]
            levels = row / scale
            torch.testing.assert_close(levels, levels.round())
            assert int(levels.abs().max().round()) <= 2 ** (bits[name] - 1) - 1
    folded = fold_batchnorm(network, CALIBRATION[:1])
    untouched = found.network.get_submodule("outer").weight
    assert torch.equal(untouched, folded.get_submodule("outer").weight)  # type: ignore[arg-type]
    assert done == [(count, 6) for count in range(1, 7)]


def test_a_layer_called_twice_is_rounded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(functional.relu(self.shared(self.stem(x))))  # type: ignore[no-any-return]

    found = quantize_in_turn(seeded(Twice), CALIBRATION, {"stem": 4, "shared": 4})
    shared = found.network.get_submodule("shared").weight
    assert torch.equal(found.weights["shared"].dequantized(), shared)  # type: ignore[arg-type]


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(BuildError, match="cannot quantize gone: no such layer; there are stem"):
        quantize_in_turn(seeded(Residual), CALIBRATION, {"gone": 4})


def test_compensation_leaves_less_of_a_layer_whose_inputs_are_correlated() -> None:
    shares = compensated_shares(seeded(Residual), CALIBRATION, batch=10)
    assert list(shares) == list(layers_in_order(seeded(Residual), CALIBRATION[:1]))
    assert all(0 < share <= 1 for share in shares.values())
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    white = compensated_shares(seeded(Residual), noise)
    # The stem reads the image itself: smooth, or white and padded.
    assert shares["stem"] < 0.6 < 0.9 < white["stem"]


def test_the_packages_example_runs_and_keeps_its_budget() -> None:
    text = harness.compression.__doc__ or ""
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    assert len(code.splitlines()) == 10
    names = {
        "network": seeded(Inverted),
        "images": CALIBRATION,
        "fold_batchnorm": fold_batchnorm,
        "layers_in_order": layers_in_order,
        "layer_options": layer_options,
        "score": score,
        "expected_losses": expected_losses,
        "compensated_shares": compensated_shares,
        "solve": solve,
        "quantize_in_turn": quantize_in_turn,
    }
    exec(code, names)
    quantized = names["quantized"]
    used = sum(weight.bits * weight.levels.numel() for weight in quantized.weights.values())  # type: ignore[attr-defined]
    weights = sum(weight.levels.numel() for weight in quantized.weights.values())  # type: ignore[attr-defined]
    assert 3 * weights < used <= 4 * weights
    assert error(quantized.network, names["network"], FRESH) < 0.05  # type: ignore[attr-defined, arg-type]
