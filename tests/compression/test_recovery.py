"""What pruning took, given back."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.compression import recovery
from harness.compression.batchnorm import reestimate
from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.quantizers import Range
from harness.compression.recovery import cut, fitting_images, roundings, tuned
from tests.compression.tiny import Grouped, Inverted, Residual, seeded

IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def halves(network: nn.Module) -> tuple[tuple[object, ...], dict[str, tuple[int, ...]]]:
    groups = find_groups(network, IMAGES, blocks=True)
    kept = {
        group.name: tuple(
            c for c in range(group.channels) if c % (group.channels // group.blocks) % 2
        )
        for group in groups
        if group.prunable and group.channels // group.blocks > 1
    }
    return groups, kept


@pytest.mark.parametrize("kind", [Residual, Grouped])
def test_a_cut_network_is_nearer_to_the_original_than_a_sliced_one(kind: type[nn.Module]) -> None:
    network = seeded(kind)
    groups, kept = halves(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sliced = prune(network, IMAGES, groups, kept)  # type: ignore[arg-type]
    fitted = cut(network, IMAGES, groups, kept, IMAGES)  # type: ignore[arg-type]
    shapes = {name: value.shape for name, value in sliced.state_dict().items()}
    assert {name: value.shape for name, value in fitted.state_dict().items()} == shapes
    with torch.no_grad():
        wanted = network(IMAGES)
        errors = [float((wanted - other(IMAGES)).square().mean()) for other in (fitted, sliced)]
    assert errors[0] < 0.9 * errors[1]
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_memory_bounds_the_images_that_layers_are_fitted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = seeded(Residual)
    # The inner layer reads 8 x 64 and gives 12 x 64 floats: 5120 bytes, twice with a shortcut.
    assert fitting_images(network, IMAGES, 10**9) == (1 << 30) // (2 * 5120)
    assert fitting_images(network, IMAGES, 64) == 64
    monkeypatch.setattr(recovery, "HELD_BYTES", 20 * 2 * 5120)
    assert fitting_images(network, IMAGES, 64) == 20
    monkeypatch.setattr(recovery, "HELD_BYTES", 1)
    assert fitting_images(network, IMAGES, 64) == 16


def test_roundings_are_those_of_the_export() -> None:
    weights, inputs = roundings({"a": Range(low=0.0, high=2.55)}, weight_bits=3)
    # Three bits: levels -3..3, the largest weight of a channel at 3.
    given = torch.tensor([[3.0, 1.4, -0.6], [-0.3, 0.11, 0.0]])
    torch.testing.assert_close(
        weights["a"](given), torch.tensor([[3.0, 1.0, -1.0], [-0.3, 0.1, 0.0]])
    )
    torch.testing.assert_close(
        inputs["a"](torch.tensor([0.014, 3.0, -1.0])), torch.tensor([0.01, 2.55, 0.0])
    )


def test_the_statistics_that_do_better_on_images_held_out_are_kept() -> None:
    teacher = seeded(Residual)
    student = copy.deepcopy(teacher)
    images = torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    reestimate(teacher, images)
    # Far off: training at rate 0 changes no weight, and 3 steps bring 1 - 0.9^3 of the way back.
    student.get_buffer("bn.running_mean").add_(5.0)
    found = tuned(student, teacher, images, None, epochs=1, lr=0.0, seed=1)
    assert found.held_out["reestimated"] < found.held_out["trained"] < found.held_out["untrained"]
    assert found.taken == "reestimated"
    assert not found.network.training
    torch.testing.assert_close(
        found.network.get_parameter("stem.weight"), student.get_parameter("stem.weight")
    )
    mean = teacher.get_buffer("bn.running_mean")
    assert float((found.network.get_buffer("bn.running_mean") - mean).abs().max()) < 0.01


def test_a_training_that_does_harm_is_not_kept() -> None:
    teacher = seeded(Residual)
    images = torch.randn(512, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    found = tuned(teacher, teacher, images, None, epochs=1, lr=0.5)
    assert found.taken == "untrained"
    assert found.held_out["untrained"] == pytest.approx(0, abs=1e-6)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            found.network.state_dict().values(), teacher.state_dict().values(), strict=True
        )
    )


def test_without_enough_images_none_are_held_out() -> None:
    teacher = seeded(Residual)
    steps: list[tuple[int, int, float | None]] = []

    def progress(done: int, total: int, /, *, left_s: float | None = None) -> None:
        steps.append((done, total, left_s))

    found = tuned(teacher, teacher, IMAGES, None, epochs=2, progress=progress)
    assert (found.taken, found.held_out) == ("trained", {})
    assert [step[:2] for step in steps] == [(1, 2), (2, 2)]
    assert steps[-1][2] == 0.0 and all(left is not None for *_, left in steps)


def test_a_network_without_batch_norm_has_no_statistics_to_choose() -> None:
    teacher = seeded(Inverted)
    found = tuned(teacher, teacher, torch.randn(400, 1, 8, 8), None, epochs=1)
    assert set(found.held_out) == {"trained", "untrained"}


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    teacher = seeded(Residual)
    torch.manual_seed(5)
    student = Residual().eval()
    images = torch.randn(640, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    whole = tuned(student, teacher, images, None, epochs=3)

    def stop(done: int, total: int, /, **_left: object) -> None:
        if done == total // 2 + 1:
            raise KeyboardInterrupt

    file = tmp_path / "training.pt"
    with pytest.raises(KeyboardInterrupt):
        tuned(student, teacher, images, None, epochs=3, checkpoint=file, progress=stop)
    seen: list[int] = []

    def watch(done: int, _total: int, /, **_left: object) -> None:
        seen.append(done)

    resumed = tuned(student, teacher, images, None, epochs=3, checkpoint=file, progress=watch)
    assert seen[0] > 1
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True
        )
    )
