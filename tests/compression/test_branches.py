"""Residual branches left out whole."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from harness import networks
from harness.compression import branches
from harness.compression.groups import find_groups
from harness.compression.reconstruct import reconstruct
from harness.errors import BuildError
from tests.compression.tiny import Concatenated, Mobile, Padded, Residual


def _example(network: nn.Module) -> torch.Tensor:
    channels = next(m for m in network.modules() if isinstance(m, nn.Conv2d)).in_channels
    return torch.rand(8, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        # The stem feeds everything; ``wide`` and ``shortcut`` make one stream together.
        (Residual, ["inner"]),
        (Padded, ["inner"]),
        (Mobile, ["blocks.2.0", "blocks.4.0"]),
    ],
)
def test_only_branches_beside_a_shortcut_can_go(
    network: type[nn.Module], wanted: list[str]
) -> None:
    torch.manual_seed(0)
    net = network().eval()
    example = _example(net)
    assert list(branches.removable(net, find_groups(net, example), example)) == wanted


def test_a_network_without_shortcuts_keeps_all() -> None:
    net = Concatenated().eval()
    example = torch.rand(2, 1, 8, 8)
    assert branches.removable(net, find_groups(net, example), example) == ()


def test_without_its_branch_a_network_is_its_stream() -> None:
    torch.manual_seed(0)
    net = Residual().eval()
    example = _example(net)
    shallow = branches.without(net, find_groups(net, example), example, ["inner"])
    # The branch's last layer has a bias of its own, which goes with it.
    x = functional.relu(net.bn(net.stem(example)))
    x = functional.relu(net.wide(x) + net.shortcut(x))
    assert torch.allclose(shallow(example), net.classifier(x.mean((2, 3))), atol=1e-6)
    layers = networks.layers_in_order(shallow, example)
    assert list(layers) == ["stem", "wide", "shortcut", "classifier"]


def test_what_stands_for_a_layer_can_be_asked_for_its_stride() -> None:
    net = Residual().eval()
    example = _example(net)
    shallow = branches.without(net, find_groups(net, example), example, ["inner"])
    for name in ("inner", "outer"):
        layer, stand_in = net.get_submodule(name), shallow.get_submodule(name)
        assert (stand_in.stride, stand_in.padding) == (layer.stride, layer.padding)


def test_the_file_holds_nothing_of_the_branch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Mobile().eval()
    example = _example(net)
    groups = find_groups(net, example)
    shallow = branches.without(net, groups, example, branches.removable(net, groups, example))
    networks.export_onnx(net, example, tmp_path / "whole.onnx")
    networks.export_onnx(shallow, example, tmp_path / "shallow.onnx")
    whole, left = (onnx.load(tmp_path / f"{name}.onnx") for name in ("whole", "shallow"))
    kinds = [node.op_type for node in left.graph.node]
    assert kinds.count("Conv") == sum(n.op_type == "Conv" for n in whole.graph.node) - 6
    assert "Add" not in kinds
    assert not any("blocks.2" in item.name for item in left.graph.initializer)
    outputs = networks.onnx_logits(tmp_path / "shallow.onnx", example.numpy())
    assert torch.allclose(torch.from_numpy(outputs), shallow(example), atol=1e-5)


def test_what_is_missed_the_least_goes_first() -> None:
    torch.manual_seed(0)
    net = Mobile().eval()
    example = _example(net)
    with torch.no_grad():
        net.blocks[4][4].weight.mul_(1e-3)
        net.blocks[4][4].bias.zero_()
    order = branches.removal_order(net, find_groups(net, example), example, most=5)
    assert [one.group for one in order] == ["blocks.4.0", "blocks.2.0"]
    assert order[0].divergence < order[1].divergence
    shallow = branches.without(net, find_groups(net, example), example, ["blocks.4.0"])
    assert torch.allclose(shallow(example), net(example), atol=1e-2)


def test_a_branch_that_saves_more_goes_before_one_that_is_missed_less() -> None:
    torch.manual_seed(0)
    net = Mobile().eval()
    example = _example(net)
    groups = find_groups(net, example)
    first, second = branches.removal_order(net, groups, example, most=5)

    def order(**saves: float) -> list[str]:
        own = {first.group: saves["first"], second.group: saves["second"]}
        names = (first.group, second.group)
        found = branches.removal_order(net, groups, example, most=5, names=names, saves=own)
        return [one.group for one in found]

    assert order(first=1.0, second=1.0) == [first.group, second.group]
    assert order(first=1e-4, second=1.0) == [second.group, first.group]
    assert order(first=0.0, second=1.0) == [second.group]


def test_layers_behind_make_up_for_a_branch() -> None:
    torch.manual_seed(0)
    net = Mobile().eval()
    example = torch.rand(64, 3, 32, 32)
    groups = find_groups(net, example[:2])
    shallow = branches.without(net, groups, example[:2], ["blocks.2.0"])
    with torch.no_grad():
        before = (shallow(example) - net(example)).square().mean()
        own = find_groups(shallow, example[:2])
        behind = ["blocks.3.4", "blocks.4.4", "head", "classifier"]
        reconstruct(shallow, net, own, {}, example, layers=behind)
        after = (shallow(example) - net(example)).square().mean()
    assert after < 0.3 * before


def test_unknown_groups_and_single_images_are_refused() -> None:
    net = Residual().eval()
    example = _example(net)
    groups = find_groups(net, example)
    with pytest.raises(BuildError, match="no such group"):
        branches.without(net, groups, example, ["tail"])
    with pytest.raises(BuildError, match="two images"):
        branches.removable(net, groups, example[:1])
