"""A network made ready: with images and without, untrained, and what it takes in energy."""

import math

import pytest
import torch

from harness import networks
from harness.compression.batchnorm import reestimate
from harness.compression.groups import find_groups
from harness.compression.quantize import form_of
from harness.compression.shapes import parameter_shapes
from harness.planning.loss import HALVING, ROUNDED
from harness.planning.preparing import prepare
from harness.records import Estimate
from harness.sensitivity.anchors import Images
from tests.compression.tiny import Residual, facts, seeded
from tests.strategies.test_tables import CPU, model_of

IMAGES = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    network = seeded(Residual)
    reestimate(network, IMAGES)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    networks.export_onnx(network, IMAGES[:1], path)
    groups = find_groups(network, IMAGES[:1])
    return network, path, groups, parameter_shapes(network, IMAGES[:1], groups)


def ready(material, **more):
    settings = {"precisions": ("fp32", "int8"), "step": 4, "fine_step": 2, **more}
    return prepare(*material, model_of(CPU), source="prior", form=form_of(facts()), **settings)


def test_without_images_there_is_no_loss_and_channels_go_by_their_size(material):
    subject = ready(material)
    assert subject.loss is None
    assert subject.predicted(subject.allotter.full(), epochs=0, images=1).accuracy_drop is None
    stem = material[0].get_submodule("stem").weight.detach().flatten(1).square().sum(1)
    outer = material[0].get_submodule("outer").weight.detach().flatten(1).square().sum(1)
    size = stem / stem.sum() + outer / outer.sum()
    (group,) = [g for g in subject.groups if set(g.producers) == {"stem", "outer"}]
    wanted = sorted(size.argsort(descending=True)[:4].tolist())
    assert subject.sensitivities.kept(group.name, 4) == tuple(wanted)


def test_a_network_that_is_no_better_than_chance_has_nothing_to_lose(material):
    # Labels by lot: the network is right as often as chance.
    labels = torch.arange(48) % 3
    images = Images(scored=IMAGES[:48], judged=IMAGES[48:], targets=labels)
    replacing = Estimate(value=5.0, low=0.0, high=40.0)
    subject = ready(material, images=images, student="nets.py:small", replacing=replacing)
    whole = subject.allotter.full()
    if subject.loss is not None:
        pytest.fail("a network that is no better than chance was taken for a trained one")
    assert subject.untrained and not ready(material).untrained
    assert subject.predicted(whole, epochs=0, images=1).accuracy_drop == replacing
    # Compressed as well it loses more, by a prior: as much as a smaller student, and by rounding.
    rounded = {name: own[-1] for name, own in subject.allotter.options.items()}
    narrow = {name: own[0] for name, own in subject.allotter.options.items()}
    drops = [subject.predicted(c, epochs=0, images=1).accuracy_drop for c in (rounded, narrow)]
    macs = [subject.predicted(c, epochs=0, images=1).macs for c in (whole, narrow)]
    assert {option.precision for option in rounded.values()} == {"int8"}
    assert drops[0].value == replacing.value + ROUNDED.value
    assert drops[0].high > replacing.high + 0.01
    assert drops[1].value == pytest.approx(replacing.value + HALVING * math.log2(macs[0] / macs[1]))
    assert drops[1].low < replacing.value < drops[1].high


def test_layers_share_the_summed_sensitivity(material):
    subject = ready(material)
    lowest = {name: own[0] for name, own in subject.allotter.options.items()}
    predicted = subject.predicted(lowest, epochs=0, images=1)
    assert math.fsum(layer.loss for layer in predicted.layers) == pytest.approx(
        subject.allotter.loss(lowest)
    )
    assert {layer.layer for layer in predicted.layers} == {
        layer for group in subject.groups for layer in group.producers
    }


def test_energy_is_power_for_as_long_as_a_call_lasts(material):
    power = Estimate(value=4.0, low=3.6, high=4.4)
    subject = ready(material, power_w=power)
    found = subject.pricer(subject.allotter.full())
    latency = found.latency_s
    assert found.energy_j.value == pytest.approx(4.0 * latency.value)
    # Ten per cent of the power and what is open of the time, as squares.
    up = math.hypot(latency.high / latency.value - 1, 0.1)
    assert found.energy_j.high == pytest.approx(found.energy_j.value * (1 + up))
    assert 0 <= found.energy_j.low < found.energy_j.value
    assert ready(material).pricer(subject.allotter.full()).energy_j is None


def test_a_wide_group_has_a_dozen_widths_with_the_least_and_the_whole_among_them(material):
    _, _, groups, _ = material
    subject = ready(material, fine_step=1, step=1)
    by_name = {group.name: group for group in groups}
    for name, own in subject.allotter.options.items():
        widths = sorted({option.channels for option in own})
        assert widths[-1] == by_name[name].channels
        assert len(own) == 2 * len(widths) and len(widths) <= 12
        if by_name[name].channels == 16:
            # 4 to 16 are thirteen; twelve of them are left.
            assert widths[0] == 4 and len(widths) == 12
