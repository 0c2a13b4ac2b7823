import copy

import pytest
import torch
from torch.nn import functional

from harness.compression.fakequant import (
    corrected_biases,
    fake_quantize,
    input_ranges,
    watch_inputs,
)
from harness.compression.quantizers import Range, quantize_weight
from harness.errors import BuildError
from harness.networks import fold_batchnorm, layers_in_order
from tests.compression.tiny import Concatenated, Inverted, Residual, seeded

torch.manual_seed(1)
IMAGES = torch.randn(48, 1, 8, 8)


def test_ranges_are_those_of_what_the_layers_read() -> None:
    network = fold_batchnorm(seeded(Residual), IMAGES[:1])
    ranges = input_ranges(network, IMAGES, batch=20)
    assert list(ranges) == list(layers_in_order(network, IMAGES[:1]))
    with torch.no_grad():
        second = functional.relu(network.stem(IMAGES))  # type: ignore[operator]
    assert ranges["stem"].low == float(IMAGES.min())
    assert ranges["stem"].high == float(IMAGES.max())
    assert ranges["inner"].low == 0.0
    assert ranges["inner"].high == pytest.approx(float(second.max()))
    narrow = input_ranges(network, IMAGES, method="percentile", outside=0.02, batch=20)
    assert ranges["stem"].low < narrow["stem"].low < -1.5
    with pytest.raises(BuildError, match="no images"):
        input_ranges(network, IMAGES[:0])


def test_a_fake_quantized_network_computes_with_rounded_weights_and_inputs() -> None:
    network = seeded(Concatenated)
    interval = Range(low=-2.0, high=2.0, bits=4)
    left = network.get_submodule("left")
    before = copy.deepcopy(network.state_dict())
    quantized = fake_quantize(
        network, IMAGES[:1], weights={"left": 3}, ranges={"left": interval, "classifier": interval}
    )
    seen: list[torch.Tensor] = []
    quantized.get_submodule("left").register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        quantized(IMAGES)
    rounded = quantize_weight(left.weight, 3, scale="error").dequantized()  # type: ignore[arg-type]
    expected = functional.conv2d(interval.rounded(IMAGES), rounded, left.bias, padding=1)  # type: ignore[arg-type]
    torch.testing.assert_close(seen[0], expected)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_fake_quantized_network_can_be_copied() -> None:
    network = seeded(Inverted)
    quantized = fake_quantize(
        network,
        IMAGES[:1],
        weights={"expand": 4, "depthwise": 4},
        ranges=input_ranges(network, IMAGES),
    )
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(quantized)(IMAGES), quantized(IMAGES))


def test_batch_norm_is_folded_unless_it_is_to_be_estimated_again() -> None:
    network = seeded(Residual)
    folded = fake_quantize(network, IMAGES[:1], weights={"stem": 8})
    kept = fake_quantize(network, IMAGES[:1], weights={"stem": 8}, fold=False)
    norms = (torch.nn.BatchNorm2d,)
    assert not any(isinstance(module, norms) for module in folded.modules())
    assert any(isinstance(module, norms) for module in kept.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGES), kept(IMAGES), atol=0.02, rtol=0.02)


def test_unknown_layers_and_weights_of_another_shape_are_refused() -> None:
    network = seeded(Residual)
    with pytest.raises(BuildError, match="cannot quantize nothing: no such layer; there are stem"):
        fake_quantize(network, IMAGES[:1], weights={"nothing": 4})
    other = quantize_weight(torch.ones(8, 2, 3, 3), 4)
    with pytest.raises(BuildError, match=r"stem has weights \(8, 1, 3, 3\), not \(8, 2, 3, 3\)"):
        fake_quantize(network, IMAGES[:1], weights={"stem": other})


@pytest.mark.parametrize("kind", [Residual, Inverted, Concatenated])
def test_corrected_biases_keep_the_mean_of_every_layers_output(kind: type) -> None:
    network = fold_batchnorm(seeded(kind), IMAGES[:1])
    layers = layers_in_order(network, IMAGES[:1])
    weights = {name: quantize_weight(layer.weight, 2) for name, layer in layers.items()}
    biases = corrected_biases(network, IMAGES, weights, batch=20)
    assert biases.keys() == layers.keys()
    inputs: dict[str, torch.Tensor] = {}
    watch_inputs(network, layers, IMAGES, len(IMAGES), inputs.__setitem__)
    changed = fake_quantize(network, IMAGES[:1], weights=weights, biases=biases)
    with torch.no_grad():
        for name, layer in layers.items():
            original = layer(inputs[name])
            found = changed.get_submodule(name)(inputs[name])
            axes = [axis for axis in range(original.ndim) if axis != 1]
            torch.testing.assert_close(found.mean(axes), original.mean(axes), atol=1e-4, rtol=1e-4)
