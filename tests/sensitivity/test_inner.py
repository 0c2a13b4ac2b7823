"""Inner products of one layer against per-image gradients of autograd, whichever way they go."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.sensitivity.inner import Changes, Recorder, Rows


class PaddedInside(nn.Conv2d):
    """Pads by itself, on two sides alone, as TensorFlow does at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "3x3": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)),
    "strided and dilated": (lambda: nn.Conv2d(3, 4, 3, 2, 2, dilation=2), (3, 7, 7)),
    "one position": (lambda: nn.Conv2d(3, 4, 3), (3, 3, 3)),
    "1x1": (lambda: nn.Conv2d(3, 4, 1), (3, 5, 5)),
    "1x1 strided": (lambda: nn.Conv2d(3, 4, 1, 2), (3, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "depthwise of 5x5": (lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4), (4, 6, 6)),
    "same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (3, 5, 5)),
    "reflecting": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 5, 5)),
    "padded inside": (lambda: PaddedInside(3, 4, 3, 2), (3, 6, 6)),
    "one dimension": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 4, 4, 4)),
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear over a sequence": (lambda: nn.Linear(6, 4), (9, 6)),
}


def rounded(a: Tensor) -> Tensor:
    return (a * 4).round() / 4


def recorded(layer: nn.Module, images: Tensor, *, per_channel: bool, changes: Tensor) -> Rows:
    recorder = Recorder(layer, Changes(changes, (rounded,)), per_channel=per_channel)  # type: ignore[arg-type]
    recorder.chunk = 2
    handle = layer.register_forward_hook(recorder)
    part = images.clone().requires_grad_(True)
    torch.autograd.grad(layer(part).square().sum(), part)
    handle.remove()
    return recorder.take(len(images))


def by_channel(values: Tensor) -> Tensor:
    """The sum of everything but the first axis, the output channels."""
    return values.flatten(1).sum(1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [1, 12])
def test_inner_products_are_those_of_per_image_gradients(name: str, count: int) -> None:
    """One change goes by outputs, twelve by gradients wherever there is a way."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().requires_grad_(False)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    images, changes = torch.randn(5, *shape), torch.randn(count, *weight.shape)
    rows = recorded(layer, images, per_channel=True, changes=changes)
    sums = recorded(layer, images, per_channel=False, changes=changes)

    own_weight, own_bias = weight.clone(), bias.clone()
    for n in range(5):
        layer.requires_grad_(True).zero_grad()
        image = images[n : n + 1].clone().requires_grad_(True)
        layer(image).square().sum().backward()
        gradient, bias_gradient = layer.weight.grad, layer.bias.grad  # type: ignore[union-attr]
        assert isinstance(gradient, Tensor) and isinstance(bias_gradient, Tensor)
        expected = torch.stack([by_channel(gradient * change) for change in changes])
        torch.testing.assert_close(rows.weights[:, n], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(sums.weights[:, n, 0], expected.sum(1), rtol=1e-3, atol=1e-3)
        removed = -bias_gradient * own_bias
        if not name.startswith("depthwise"):
            removed = removed - by_channel(gradient * own_weight)
        torch.testing.assert_close(rows.removed[n], removed, rtol=1e-3, atol=1e-3)
        assert image.grad is not None
        activations = (image.grad * (rounded(image) - image)).sum()
        torch.testing.assert_close(
            rows.inputs[0, n].sum(), activations.detach(), rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(sums.inputs[0, n, 0], activations.detach(), rtol=1e-3, atol=1e-3)


def test_images_and_positions_on_one_axis_are_summed_image_by_image() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).requires_grad_(False)
    images, changes = torch.randn(2, 5, 4), torch.randn(3, 3, 4)
    together = recorded(layer, images, per_channel=True, changes=changes)
    recorder = Recorder(layer, Changes(changes, (rounded,)), per_channel=True)
    layer.register_forward_hook(recorder)
    part = images.clone().requires_grad_(True)
    torch.autograd.grad(layer(part.view(10, 4)).square().sum(), part)
    found = recorder.take(2)
    torch.testing.assert_close(found.removed, together.removed)
    torch.testing.assert_close(found.weights, together.weights)
    torch.testing.assert_close(found.inputs, together.inputs)


def test_rows_are_taken_once_and_are_zero_where_nothing_reaches_the_loss() -> None:
    layer = nn.Linear(4, 3)
    recorder = Recorder(layer, Changes(torch.randn(2, 3, 4), (rounded,)), per_channel=False)
    empty = recorder.take(6)
    assert empty.removed.shape == (6, 3)
    assert empty.weights.shape == (2, 6, 1)
    assert empty.inputs.shape == (1, 6, 1)
    assert not empty.removed.any() and not empty.weights.any() and not empty.inputs.any()


def test_kernels_whose_gradient_is_slow_go_by_outputs_up_to_more_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight changes of a depthwise 3x3 are worth one weight gradient, of a 5x5 they are not."""
    taken = []
    by_images = Recorder._image_by_image

    def watched(self: Recorder, gradient: Tensor, a: Tensor) -> Tensor:
        taken.append(self.layer.kernel_size)
        return by_images(self, gradient, a)

    monkeypatch.setattr(Recorder, "_image_by_image", watched)
    for size in (3, 5):
        layer = nn.Conv2d(4, 4, size, padding=size // 2, groups=4)
        changes = torch.randn(8, *layer.weight.shape)
        recorded(layer, torch.randn(1, 4, 16, 16), per_channel=False, changes=changes)
    assert taken == [(3, 3)]
