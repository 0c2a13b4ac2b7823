"""A strategy applied to a network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from harness.compression import build, recovery, shallow
from harness.compression.batchnorm import reestimate
from harness.compression.groups import find_groups
from harness.compression.prune import prune
from harness.compression.quantize import quantize
from harness.compression.recovery import Progress
from harness.networks import Data, export_onnx, onnx_logits
from harness.records import Group, Strategy, StrategyEntry
from tests.compression.tiny import Bottleneck, Residual, confident, facts, seeded

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_int8_layers_are_rounded_with_their_errors_made_up_for(tmp_path: Path) -> None:
    network = seeded(Residual)
    groups = find_groups(network, IMAGES[:1])
    strategy = Strategy(
        label="all int8",
        methods=("quantize",),
        entries=tuple(
            StrategyEntry(
                group=group.name,
                kept=tuple(range(group.channels)),
                of=group.channels,
                precision="int8",
            )
            for group in groups
        ),
        epochs=0,
        seed=0,
    )
    data = Data(IMAGES, None, IMAGES, torch.zeros(32, dtype=torch.int64))
    variant = build.build(strategy, network, data, groups, stem=tmp_path / "variant", board=facts())
    assert set(variant.int8_layers) == {layer for group in groups for layer in group.producers}
    made = list(tmp_path.iterdir())
    export_onnx(network, IMAGES, tmp_path / "variant.fp32.onnx")
    quantize(
        variant.onnx.with_suffix(".fp32.onnx"),
        tmp_path / "nearest.onnx",
        calibration=IMAGES.numpy(),
        int8_layers=variant.int8_layers,
        board=facts(),
    )
    with torch.no_grad():
        wanted = network(IMAGES).numpy()
    error, nearest = (
        float(np.square(onnx_logits(path, IMAGES) - wanted).mean())
        for path in (variant.onnx, tmp_path / "nearest.onnx")
    )
    assert 0 < error < nearest
    assert sorted(path.name for path in made) == ["variant.onnx", "variant.pt2"]


def pruning(groups: tuple[Group, ...], *, epochs: int) -> Strategy:
    """A quarter of every prunable group stays."""
    return Strategy(
        label="quarter",
        methods=("prune",) + (("distill",) if epochs else ()),
        entries=tuple(
            StrategyEntry(
                group=group.name,
                kept=tuple(range(0, group.channels, 4 if group.prunable else 1)),
                of=group.channels,
                precision="fp32",
            )
            for group in groups
        ),
        epochs=epochs,
        seed=0,
    )


def test_a_pruned_network_is_fitted_again_and_distilled(tmp_path: Path) -> None:
    images = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    network = confident(Residual, images)
    groups = find_groups(network, IMAGES[:1])
    data = Data(images, None, IMAGES, torch.zeros(32, dtype=torch.int64))
    with torch.no_grad():
        wanted = network(images).log_softmax(1)

    def divergence(logits: np.ndarray) -> float:
        found = torch.from_numpy(logits).log_softmax(1)
        return float((wanted.exp() * (wanted - found)).sum(1).mean())

    errors = {}
    for epochs in (0, 10):
        stem = tmp_path / f"{epochs}"
        variant = build.build(
            pruning(groups, epochs=epochs), network, data, groups, stem=stem, board=facts()
        )
        errors[epochs] = divergence(onnx_logits(variant.onnx, images))
        assert (variant.taken in ("trained", "reestimated")) == bool(epochs)
    kept = {e.group: e.kept for e in pruning(groups, epochs=0).entries}
    with torch.no_grad():
        sliced = prune(network, IMAGES, groups, kept)(images).numpy()
    # That it is better than without training, by images held out, is why it was taken.
    assert max(errors.values()) < 0.5 * divergence(sliced)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.onnx",
        "0.pt2",
        "10.onnx",
        "10.pt2",
    ]


def test_strategies_that_differ_in_precision_alone_are_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    network = confident(Residual, images)
    groups = find_groups(network, IMAGES[:1])
    data = Data(images, None, IMAGES, torch.zeros(32, dtype=torch.int64))
    exact = pruning(groups, epochs=2)
    rounded = replace(
        exact,
        label="quarter, int8",
        methods=(*exact.methods, "quantize"),
        entries=tuple(replace(entry, precision="int8") for entry in exact.entries),
    )
    trainings = []
    real = recovery.tuned

    def counted(*positional: Any, **named: Any) -> recovery.Tuned:
        trainings.append(named["epochs"])
        return real(*positional, **named)

    monkeypatch.setattr(recovery, "tuned", counted)

    def made(strategy: Strategy, name: str, trained: Path | None) -> build.Variant:
        stem = tmp_path / name
        return build.build(
            strategy, network, data, groups, stem=stem, board=facts(), trained=trained
        )

    alone = made(rounded, "alone", None)
    assert trainings == [2]
    made(exact, "exact", tmp_path / "trained")
    shared = made(rounded, "shared", tmp_path / "trained")
    assert trainings == [2, 2]
    assert shared.int8_layers and shared.taken == alone.taken
    assert shared.onnx.read_bytes() == alone.onnx.read_bytes()
    # Another seed is another training.
    made(replace(exact, seed=1), "seeded", tmp_path / "trained")
    assert trainings == [2, 2, 2]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_build_that_was_interrupted_ends_as_one_that_was_not(
    tmp_path: Path, damaged: bool
) -> None:
    images = torch.randn(640, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    network = confident(Residual, images)
    groups = find_groups(network, IMAGES[:1])
    data = Data(images, None, IMAGES, torch.zeros(32, dtype=torch.int64))
    strategy = pruning(groups, epochs=4)

    def made(name: str, progress: Progress) -> build.Variant:
        stem = tmp_path / name
        return build.build(
            strategy, network, data, groups, stem=stem, board=facts(), progress=progress
        )

    steps: list[tuple[int, int]] = []

    def watch(done: int, total: int, /, **_left: object) -> None:
        steps.append((done, total))

    def stop(done: int, total: int, /, **_left: object) -> None:
        if (done, total) == (10, 16):  # 4 epochs of 4 batches: after the second epoch's checkpoint
            raise KeyboardInterrupt

    whole = made("whole", watch)
    assert (16, 16) in steps
    with pytest.raises(KeyboardInterrupt):
        made("stopped", stop)
    assert sorted(path.name for path in tmp_path.glob("stopped*")) == [
        "stopped.cut.pt",
        "stopped.training.pt",
    ]
    if damaged:  # the weights that training began from are lost: it begins again
        (tmp_path / "stopped.cut.pt").write_bytes(b"no file of torch's")
    steps.clear()
    resumed = made("stopped", watch)
    assert ((8, 16) in steps) == damaged
    assert resumed.onnx.read_bytes() == whole.onnx.read_bytes()
    assert sorted(path.suffix for path in tmp_path.glob("stopped*")) == [".onnx", ".pt2"]


def test_a_variant_without_a_branch_is_what_its_strategy_says_also_after_an_interruption(
    tmp_path: Path,
) -> None:
    images = torch.randn(640, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    network = seeded(Bottleneck)
    reestimate(network, images)
    groups = find_groups(network, IMAGES[:1])
    left_out = shallow.together(groups, ["blocks.1.0"])
    strategy = Strategy(
        label="shallow",
        methods=("prune", "distill", "quantize"),
        entries=tuple(
            StrategyEntry(
                group=group.name,
                kept=tuple(range(6 if group.name == "blocks.0.3" else group.channels)),
                of=group.channels,
                precision="int8" if group.name == "stem" else "fp32",
            )
            for group in shallow.remaining(groups, left_out)
        ),
        epochs=2,
        seed=0,
        left_out=left_out,
    )
    data = Data(images, None, IMAGES, torch.zeros(32, dtype=torch.int64))

    def made(name: str, progress: Progress) -> build.Variant:
        stem = tmp_path / name
        return build.build(
            strategy, network, data, groups, stem=stem, board=facts(), progress=progress
        )

    def stop(done: int, total: int, /, **_left: object) -> None:
        if (done, total) == (6, 8):  # 2 epochs of 4 batches
            raise KeyboardInterrupt

    variant = made("whole", lambda *_, **__: None)
    # The stream's layers but the one that is gone.
    assert variant.int8_layers == ("stem", "blocks.0.6", "blocks.2.6")
    # Convolutions: the stem, a block of 6 channels in its middle, a whole block. Batch norms have
    # two numbers a channel; the classifier is 16 to 3.
    convolutions = 9 * 16 + (16 * 8 + 9 * 8 * 6 + 6 * 16) + (16 * 8 + 9 * 8 * 8 + 8 * 16)
    norms = 2 * (16 + (8 + 6 + 16) + (8 + 8 + 16))
    assert variant.parameters == convolutions + norms + 16 * 3 + 3
    assert variant.macs == 64 * convolutions + 16 * 3
    kinds = [node.op_type for node in onnx.load(variant.onnx).graph.node]
    assert (kinds.count("Conv"), kinds.count("Add")) == (7, 2)
    program = torch.export.load(variant.pt2).module()
    logits = onnx_logits(variant.onnx, IMAGES)
    assert np.abs(logits - program(IMAGES).detach().numpy()).max() < 0.1 * np.abs(logits).max()
    with pytest.raises(KeyboardInterrupt):
        made("stopped", stop)
    resumed = made("stopped", lambda *_, **__: None)
    assert resumed.onnx.read_bytes() == variant.onnx.read_bytes()
