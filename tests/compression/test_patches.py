"""What layers read, place by place."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.compression.patches import patches, plain_shapes, reading

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=2), (6, 11)),
    "conv2d": (nn.Conv2d(6, 4, (3, 2), stride=(1, 2), dilation=(2, 1), padding=(1, 0)), (6, 9, 8)),
    "conv3d": (nn.Conv3d(6, 4, (3, 1, 3), padding="same"), (6, 4, 5, 3)),
    "circular": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (6, 7, 7)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, bias=False), (6, 7, 7)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (6, 7, 7)),
    "linear": (nn.Linear(6, 4), (6,)),
    "linear on a sequence": (nn.Linear(6, 4), (5, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_patches_times_weights_are_the_layers_outputs(kind: str) -> None:
    layer, shape = LAYERS[kind]
    x = torch.randn(3, *shape)
    y = layer(x)
    if isinstance(layer, nn.Linear):
        y = y.movedim(-1, 1)
    places = y.shape[2:]
    chosen = torch.randint(0, places.numel(), (3, 5))
    coordinates = torch.unravel_index(chosen, places) if places else ()
    wanted = y.movedim(1, -1)[(torch.arange(3)[:, None], *coordinates)].flatten(0, 1)
    rows = patches(layer, x, coordinates)
    weight = layer.weight.flatten(1).view(rows.shape[1], -1, rows.shape[2])
    got = torch.einsum("sbi,boi->sbo", rows, weight).flatten(1)
    if layer.bias is not None:
        got = got + layer.bias
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_what_a_layer_reads_is_seen_behind_its_own_padding() -> None:
    class PaddingFirst(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    layer = PaddingFirst(2, 3, 3)
    seen: list[Tensor] = []
    with reading(layer, seen.append):
        layer(torch.randn(1, 2, 5, 5))
    layer(torch.randn(1, 2, 5, 5))
    assert [tuple(read.shape) for read in seen] == [(1, 2, 6, 6)]
    assert "_conv_forward" not in vars(layer)


def test_layers_are_plain_if_they_multiply_and_add_and_do_no_more() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight, self.bias)

    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x).relu())  # type: ignore[no-any-return]

    network = Twice(
        nn.Conv2d(2, 3, 1), Doubled(3, 3, 1), Own(3, 3, 1), nn.Conv2d(3, 2, 3, padding=1)
    )
    x = torch.randn(1, 2, 4, 4)
    # A layer that does not come to the usual point is not seen, and not taken for plain.
    assert plain_shapes(network, ["0", "1", "2", "3"], x) == {
        "0": [(1, 3, 4, 4)] * 2,
        "3": [(1, 2, 4, 4)] * 2,
    }


def test_a_layer_is_plain_though_its_input_and_output_are_overwritten() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            y = self.inner(x)
            x.relu_()
            return y.relu_() + x  # type: ignore[no-any-return]

    assert plain_shapes(Overwriting(), ["inner"], torch.randn(1, 2, 4, 4) - 1) == {
        "inner": [(1, 2, 4, 4)]
    }
