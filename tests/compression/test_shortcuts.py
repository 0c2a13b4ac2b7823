"""What a layer's output is added to."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.reconstruct import reconstruct
from harness.compression.shortcuts import Shortcut, added, shortcuts
from tests.compression.tiny import Residual, seeded

IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Stream(nn.Module):
    """Two blocks on one stream, the first with a batch norm before its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 8, 3, padding=1)
        self.fourth = nn.Conv2d(8, 6, 1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        x = x + self.norm(self.second(functional.relu(self.first(x))))
        x = torch.add(self.fourth(functional.relu(self.third(x))), x)
        return self.classifier(x.movedim(1, -1)).mean((1, 2))  # type: ignore[no-any-return]


def trained() -> nn.Module:
    network = seeded(Stream).train()
    for _ in range(3):
        network(IMAGES)
    return network.eval()


def test_a_sum_is_found_behind_a_batch_norm_and_without_one() -> None:
    found = shortcuts(trained(), ["first", "second", "third", "fourth"], IMAGES[:2])
    assert found == {
        "second": Shortcut(addition=0, operand=1, norm="norm"),
        "fourth": Shortcut(addition=1, operand=0, norm=None),
    }


def test_what_depends_on_the_output_itself_is_no_shortcut() -> None:
    # The stem's output is not added as it is; a projection's is, to a sum of another layer.
    network = seeded(Residual)
    assert shortcuts(network, ["stem"], IMAGES[:2]) == {}
    assert shortcuts(network, ["outer", "wide"], IMAGES[:2]).keys() == {"outer", "wide"}


def test_of_two_layers_that_are_added_the_later_makes_up_for_both() -> None:
    found = shortcuts(seeded(Residual), ["wide", "shortcut"], IMAGES[:2])
    assert found.keys() == {"shortcut"}


def test_what_is_added_is_in_the_units_of_the_layers_output() -> None:
    network = trained()
    norm = network.norm
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, 1.0]))
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    seen: dict[str, torch.Tensor] = {}
    added(network, shortcuts(network, ["second"], IMAGES[:2]), IMAGES, seen.__setitem__)
    with torch.no_grad():
        stream = functional.relu(network.stem(IMAGES))  # type: ignore[operator]
    assert torch.allclose(seen["second"] * scale.view(1, -1, 1, 1), stream, atol=1e-5)


def test_a_later_block_makes_up_for_what_the_stream_has_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = trained()
    groups = find_groups(network, IMAGES)
    kept = {"first": (0, 1), "third": tuple(range(7))}

    def lost() -> torch.Tensor:
        pruned = prune(network, IMAGES, groups, kept)
        reconstruct(pruned, network, groups, kept, IMAGES, positions=64)
        sums: list[torch.Tensor] = []
        for each in (network, pruned):
            hook = each.get_submodule("classifier").register_forward_pre_hook(
                lambda _module, inputs: sums.append(inputs[0])
            )
            with torch.no_grad():
                each(IMAGES)
            hook.remove()
        return (sums[0] - sums[1]).square().mean()

    fitted_to_sums = lost()
    monkeypatch.setattr("harness.compression.reconstruct.shortcuts", lambda *_: {})
    assert fitted_to_sums < 0.95 * lost()
