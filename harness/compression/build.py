"""A strategy applied: from the original network to the variant's files."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harness import networks
from harness.compression import branches, checkpoint, quantize, recovery, shallow
from harness.compression.fakequant import input_ranges
from harness.compression.recovery import Progress
from harness.compression.sequential import quantize_in_turn
from harness.errors import BuildError
from harness.records import BoardFacts, Group, Strategy, dump

__all__ = ["CALIBRATION_IMAGES", "Variant", "build"]

# Enough for batch-norm statistics and activation ranges to settle; more changes nothing measurable.
CALIBRATION_IMAGES = 512
# The second moments of a layer's inputs want fewer: every image has many positions.
ROUNDING_IMAGES = 256
# Compensated rounding runs two networks in step and costs seconds a billion MACs: ResNet-20 with
# 256 images is within this, EfficientNet-Lite0 (a minute and a half and more) is not.
ROUNDING_MACS = 2e10


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The files and figures of one built variant; ``int8_layers`` were exported as Q/DQ.

    ``taken`` says what training gave (see ``recovery.Tuned``); empty where there was none.
    """

    onnx: Path
    pt2: Path
    size_bytes: int
    parameters: int
    macs: int
    int8_layers: tuple[str, ...]
    taken: str = ""


def build(
    strategy: Strategy,
    network: torch.nn.Module,
    data: networks.Data,
    groups: Sequence[Group],
    *,
    stem: Path,
    board: BoardFacts,
    teacher: torch.nn.Module | None = None,
    rounded_training: bool = False,
    trained: Path | None = None,
    progress: Progress | None = None,
) -> Variant:
    """The variant that ``strategy`` makes of ``network``, written as ``stem``.onnx and .pt2.

    Prune by slicing, leave branches out, fit what is left again, distil from the original, export,
    quantize what the strategy quantizes (with ranges of least error, and errors made up for). The
    files appear only when they are complete; a build that was interrupted goes on in the middle of
    its training.
    ``teacher`` is what it is distilled from, if not ``network`` itself. With ``rounded_training``
    layers that will be int8 are trained as such, straight through: on ResNet-20 at half its MACs
    that took 1.7 times as long and left no less to lose by rounding. ``trained`` is a folder for
    networks that were pruned and distilled: a strategy that differs from one built before in its
    precisions alone takes up what that one came to. BuildError if a step fails.
    """
    calibration = data.train_images[:CALIBRATION_IMAGES]
    example = data.test_images[:1]
    recover = functools.partial(
        _recovered,
        strategy,
        network,
        data,
        groups,
        stem=stem,
        board=board,
        teacher=network if teacher is None else teacher,
        rounded_training=rounded_training,
        progress=progress,
    )
    if trained is None or rounded_training or not {"prune", "distill"} <= set(strategy.methods):
        variant, taken = recover()
    else:
        own = _training_of(strategy, network, network if teacher is None else teacher, data)
        variant, taken = _once(trained, own, recover, strategy, network, data, groups)
    int8_layers = _int8_layers(strategy, groups)
    onnx = stem.with_suffix(".onnx")
    exported = stem.with_suffix(".fp32.onnx")
    networks.export_onnx(variant, example, exported)
    if int8_layers:
        draft = stem.with_suffix(".draft.onnx")
        _quantize(variant, exported, draft, calibration, int8_layers, board)
        draft.replace(onnx)
        exported.unlink()
    else:
        exported.replace(onnx)
    networks.save_pt2(variant, example, stem.with_suffix(".pt2"))
    for file in _interrupted(stem):
        file.unlink(missing_ok=True)
    return Variant(
        onnx=onnx,
        pt2=stem.with_suffix(".pt2"),
        size_bytes=onnx.stat().st_size,
        parameters=networks.count_parameters(variant),
        macs=networks.count_macs(variant, example),
        int8_layers=int8_layers,
        taken=taken,
    )


def _interrupted(stem: Path) -> tuple[Path, Path]:
    """The files of a build under way: what was cut, and how far it is trained."""
    return stem.with_suffix(".cut.pt"), stem.with_suffix(".training.pt")


def _recovered(
    strategy: Strategy,
    network: torch.nn.Module,
    data: networks.Data,
    groups: Sequence[Group],
    *,
    stem: Path,
    board: BoardFacts,
    teacher: torch.nn.Module,
    rounded_training: bool,
    progress: Progress | None,
) -> tuple[torch.nn.Module, str]:
    """The network pruned and distilled as the strategy says, and what training gave."""
    cut_file, training = _interrupted(stem)
    variant = network
    if "prune" in strategy.methods:
        variant = _cut(strategy, network, data, groups, (cut_file, training), progress)
    if "distill" not in strategy.methods:
        return variant, ""
    form = quantize.form_of(board)
    rounded = _int8_layers(strategy, groups) if rounded_training else ()
    calibration = data.train_images[:CALIBRATION_IMAGES]
    seen = (
        input_ranges(variant, calibration, method="error", symmetric=form.symmetric)
        if rounded
        else {}
    )
    weights, inputs = recovery.roundings(
        {name: seen[name] for name in rounded}, weight_bits=form.weight_bits
    )
    tuned = recovery.tuned(
        variant,
        teacher,
        data.train_images,
        data.train_labels,
        epochs=strategy.epochs,
        seed=strategy.seed,
        raw=not data.classes,
        round_weights=weights,
        round_inputs=inputs,
        checkpoint=training,
        progress=progress,
    )
    return tuned.network, tuned.taken


def _training_of(
    strategy: Strategy, network: torch.nn.Module, teacher: torch.nn.Module, data: networks.Data
) -> str:
    """SHA-256 of all that pruning and training hang on: precisions and names are not of it."""
    return checkpoint.digest(
        {
            "kept": [(entry.group, entry.kept) for entry in strategy.entries],
            "left out": strategy.left_out,
            "epochs": strategy.epochs,
            "seed": strategy.seed,
            "network": networks.fingerprint(network),
            "teacher": networks.fingerprint(teacher),
        },
        data.train_images,
        data.train_labels,
    )


def _once(
    folder: Path,
    whose: str,
    recover: Callable[[], tuple[torch.nn.Module, str]],
    strategy: Strategy,
    network: torch.nn.Module,
    data: networks.Data,
    groups: Sequence[Group],
) -> tuple[torch.nn.Module, str]:
    """What ``recover`` gives, or gave an earlier build with the same digest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{whose[:32]}.pt"
    state = checkpoint.read(path, whose)
    if state is None:
        variant, taken = recover()
        checkpoint.write(path, whose, {"weights": variant.state_dict(), "taken": taken})
        return variant, taken
    kept = {entry.group: entry.kept for entry in strategy.entries}
    variant = branches.without(network, groups, data.test_images[:1], strategy.left_out, kept)
    variant.load_state_dict(state["weights"])
    return variant, state["taken"]


def _cut(
    strategy: Strategy,
    network: torch.nn.Module,
    data: networks.Data,
    groups: Sequence[Group],
    files: tuple[Path, Path],
    progress: Progress | None,
) -> torch.nn.Module:
    """The network pruned and fitted again; as it lies in the first of ``files`` if it does.

    Training that goes on after an interruption wants the very same weights to begin from. Where
    they are lost or another strategy's, what was trained (the second file) is lost with them.
    """
    kept = {entry.group: entry.kept for entry in strategy.entries}
    example = data.test_images[:1]
    whose = checkpoint.digest(
        {"strategy": dump(strategy), "network": networks.fingerprint(network)}, data.train_images
    )
    own, training = files
    try:
        state = checkpoint.read(own, whose)
    except BuildError:
        state = None
    if state is not None:
        pruned = branches.without(network, groups, example, strategy.left_out, kept)
        pruned.load_state_dict(state)
        return pruned
    training.unlink(missing_ok=True)
    pruned = recovery.cut(
        network,
        example,
        groups,
        kept,
        data.train_images[:CALIBRATION_IMAGES],
        left_out=strategy.left_out,
        seed=strategy.seed,
        progress=progress,
    )
    checkpoint.write(own, whose, pruned.state_dict())
    return pruned


def _quantize(
    network: torch.nn.Module,
    exported: Path,
    out: Path,
    calibration: torch.Tensor,
    int8_layers: Sequence[str],
    board: BoardFacts,
) -> None:
    """Write the Q/DQ form of ``exported``: ranges of least error, and the better of two roundings.

    To nearest with biases corrected takes seconds; error-compensated rounding looks at the layers
    one by one, and is tried where that is quick. The one whose outputs on the calibration images
    are nearer to fp32's is kept. KL divergence from fp32 on test images: to nearest alone 0.0018
    on ResNet-20 and 0.0067 on EfficientNet-Lite0, with biases corrected 0.0015 and 0.0026,
    compensated 0.0010 (256 images) and 0.0034 (96 images).
    """
    form = quantize.form_of(board)
    folded = networks.fold_batchnorm(network, calibration[:1])
    seen = input_ranges(folded, calibration, method="error", symmetric=form.symmetric)
    ranges = {layer: seen[layer] for layer in int8_layers}
    write = functools.partial(
        quantize.quantize,
        exported,
        calibration=calibration.numpy(),
        int8_layers=int8_layers,
        board=board,
        method="error",
        ranges=ranges,
    )
    write(out, correct_bias=True)
    some = calibration[:ROUNDING_IMAGES]
    if networks.count_macs(network, some[:1]) * len(some) > ROUNDING_MACS:
        return
    rounded = quantize_in_turn(
        network, some, dict.fromkeys(int8_layers, form.weight_bits), ranges=ranges
    )
    other = out.with_suffix(".other.onnx")
    write(other, weights=rounded.weights, biases=rounded.biases)
    wanted = networks.onnx_outputs(exported, some)
    if _error(wanted, other, some) < _error(wanted, out, some):
        other.replace(out)
    else:
        other.unlink()


def _error(wanted: Sequence[npt.NDArray[Any]], path: Path, images: torch.Tensor) -> float:
    """The squared error of a file's outputs by the mean square of the wanted, summed."""
    return sum(
        float(np.square(a - b).mean() / max(float(np.square(a).mean()), 1e-12))
        for a, b in zip(wanted, networks.onnx_outputs(path, images), strict=True)
    )


def _int8_layers(strategy: Strategy, groups: Sequence[Group]) -> tuple[str, ...]:
    precision = {entry.group: entry.precision for entry in strategy.entries}
    there = shallow.remaining(groups, strategy.left_out)
    return tuple(
        layer for group in there if precision[group.name] == "int8" for layer in group.producers
    )
