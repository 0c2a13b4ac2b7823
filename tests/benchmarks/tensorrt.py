"""What TensorRT-RTX makes of every variant of a network.

``python -m tests.benchmarks.tensorrt [--json] [--networks demo,resnet20,...] [--images DIR]``

Without a GPU each variant is parsed and built: all of the demo network and ResNet-20, and fp32,
fp16 and int8 of the larger ones, with random weights where none come with boardfit. With one,
``--measure [--out FOLDER] [--json]`` measures, profiles and compares networks there, calibrates the
latency model and writes a measurement table (``tensorrt_gpu``), under ``data/measured`` unless it
is told another place. TensorRT-RTX may live in another environment: ``BOARDFIT_RTX_PYTHON`` names
its Python.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from harness import networks
from harness.compression import batchnorm, prune, quantize
from harness.compression.groups import find_groups
from harness.records import BoardFacts, BuildSettings, GpuFacts
from harness.tensorrt import checks, chips, precision, versions
from tests.benchmarks import own, tensorrt_gpu
from tests.benchmarks.compression_networks import NETWORKS, Absent, subject
from tests.benchmarks.tensorrt_networks import PUBLISHED
from tests.tensorrt import rtx

ROOT = Path(__file__).parents[2]
IMAGES = ROOT.parent / "shared" / "images"
# Enough for ranges and to see a class change; more costs time on a busy computer alone.
CALIBRATION, COMPARED = 64, 64
# Of the networks that see 224 x 224 pixels, which take half a second an image on one core.
LARGE = 4
DEFAULT = ("demo", "resnet20", "efl0", "resnet18", "mobilenet_v2")
MEASURED = ("demo", *PUBLISHED)
WORK = ROOT / "runs" / "tensorrt"
# All from Turing on compute all three precisions fast; a GPU that is there says so itself.
TARGET = GpuFacts(name="a GPU of compute capability 8.9", compute="8.9")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant, and what the builder made of it; times are seconds.

    ``agreement`` is the share of images whose class is fp32's, by onnxruntime on the host.
    """

    network: str
    variant: str
    parsed: bool
    built: bool
    why: str
    file_bytes: int
    engine_bytes: int | None
    build_s: float | None
    types: str
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with images to calibrate and to compare on; ``brief``: in three variants alone."""

    name: str
    network: nn.Module
    calibration: Tensor
    test: Tensor
    brief: bool = False


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A file and how an engine is made of it."""

    name: str
    path: Path
    build: BuildSettings


def subjects(names: list[str], images: Path) -> Iterator[Subject]:
    """The networks that are here; the others are told of on stderr."""
    for name in names:
        if name == "demo":
            folder = ROOT / "data" / "demo"
            network = networks.load_network(
                f"{folder / 'network.py'}:factory", folder / "weights.pt"
            )
            data = networks.load_data(folder / "images.npz")
            yield Subject(
                name=name,
                network=network,
                calibration=data.train_images[:CALIBRATION],
                test=data.test_images[:COMPARED],
            )
            continue
        if name in PUBLISHED:
            yield _random(name)
            continue
        try:
            found = subject(name, images)
        except Absent as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        large = found.test.shape[-1] > 64
        yield Subject(
            name=name,
            network=found.network,
            calibration=found.calibration[: LARGE if large else CALIBRATION].contiguous(),
            test=found.test[: LARGE if large else COMPARED].contiguous(),
            brief=large,
        )


def _random(name: str) -> Subject:
    """A network with random weights and images: whether it is built does not depend on them."""
    torch.manual_seed(0)
    one = PUBLISHED[name]
    images = torch.randn(2 * LARGE, *one.shape)
    network = one.make().eval()
    return Subject(
        name=name, network=network, calibration=images[:LARGE], test=images[LARGE:], brief=True
    )


def pruned(one: Subject) -> nn.Module:
    """The network with half of the channels of every group, those with the larger weights."""
    example = one.test[:1]
    kept = {}
    for group in find_groups(one.network, example):
        if group.prunable and group.channels >= 8:
            first = one.network.get_submodule(group.producers[0])
            weight = first.weight.detach()
            size = weight.abs().flatten(1).sum(1)
            kept[group.name] = tuple(sorted(size.topk(group.channels // 2).indices.tolist()))
    network = prune.prune(one.network, example, find_groups(one.network, example), kept)
    batchnorm.reestimate(network, one.calibration)
    return network


def variants(one: Subject, folder: Path, facts: BoardFacts) -> Iterator[Variant]:
    """fp32, fp16, int8; unless brief int8 beside fp16, all three mixed, and three pruned too."""
    release = versions.release_of(facts.runtime, facts.runtime_version)
    assert facts.gpu is not None
    chip = chips.capability_of(facts.gpu)
    for prefix, network in (("", one.network), ("pruned ", None))[: 1 if one.brief else 2]:
        network = pruned(one) if network is None else network
        stem = folder / f"{one.name}-{prefix.strip() or 'whole'}"
        plain = stem.with_suffix(".onnx")
        networks.export_onnx(network, one.test[:1], plain)
        nodes = networks.layer_of_node(onnx.load(plain))
        layers = tuple(dict.fromkeys(nodes.values()))

        int8 = _integer(one, plain, "int8", layers, facts)
        plans = [("fp32", plain, "fp32"), ("fp16", plain, "fp16"), ("int8", int8, "int8")]
        if not prefix and not one.brief:
            plans.append(("int8 + fp16", int8, "best"))
        for name, source, word in plans:
            model = onnx.load(source)
            plan = precision.uniform(model, word, release=release, capability=chip)
            yield _written(prefix + name, stem, plan)
        if not prefix and not one.brief:
            half = _integer(one, plain, "mixed", layers[::2], facts)
            wanted = {
                node: "int8" if layer in layers[::2] else "fp16" for node, layer in nodes.items()
            }
            wanted[next(reversed(wanted))] = "fp32"
            model = onnx.load(half)
            plan = precision.plan(model, wanted, release=release, capability=chip)
            yield _written("mixed", stem, plan)


def _integer(
    one: Subject, plain: Path, name: str, layers: tuple[str, ...], facts: BoardFacts
) -> Path:
    out = plain.with_name(f"{plain.stem}-{name}.onnx")
    calibration = one.calibration.numpy()
    quantize.quantize(
        plain, out, calibration=calibration, int8_layers=layers, board=facts, correct_bias=True
    )
    return out


def _written(name: str, stem: Path, plan: precision.PrecisionPlan) -> Variant:
    path = stem.with_name(f"{stem.name}-{name.replace(' ', '')}-sent.onnx")
    path.write_bytes(plan.model.SerializeToString(deterministic=True))
    return Variant(name=name, path=path, build=plan.settings)


def rows(one: Subject, folder: Path, interpreter: str, facts: BoardFacts) -> Iterator[Row]:
    """A row a variant: checked by the host's rules, then parsed and built by TensorRT-RTX."""
    made = list(variants(one, folder, facts))
    images = one.test.numpy()
    exact = networks.onnx_outputs(made[0].path, images)[0].argmax(1)
    for variant, told in zip(made, rtx.build_all(interpreter, [v.path for v in made]), strict=True):
        checks.require(variant.path, facts)
        classes = networks.onnx_outputs(variant.path, images)[0].argmax(1)
        kinds = (str(kind).rpartition(".")[2] for kind in told.get("types", []))
        yield Row(
            network=one.name,
            variant=variant.name,
            parsed=bool(told["parsed"]),
            built=bool(told["built"]),
            why="; ".join(told["errors"]),
            file_bytes=variant.path.stat().st_size,
            engine_bytes=told["size_bytes"],
            build_s=told["build_s"],
            types=" ".join(kinds).lower(),
            agreement=float(np.mean(classes == exact)),
        )


def target(version: str) -> BoardFacts:
    """The facts of a board that is not here: TensorRT-RTX of a version, on ``TARGET``."""
    return BoardFacts(
        board="builder",
        hostname="builder",
        machine="x86_64",
        cpu_model="",
        cores=1,
        memory_bytes=2**34,
        os="",
        python="",
        runtime="tensorrt_rtx",
        runtime_version=version,
        providers=(),
        int8="slow",
        agent_hash="",
        gpu=TARGET,
    )


def table(found: list[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'network':13} {'variant':14} {'built':5} {'file':>9} {'engine':>9} {'build':>7} "
        f"{'agree':>6}  types"
    ]
    for row in found:
        size = "-" if row.engine_bytes is None else f"{row.engine_bytes / 1e6:.2f} MB"
        took = "-" if row.build_s is None else f"{row.build_s:.2f} s"
        lines.append(
            f"{row.network:13} {row.variant:14} {'yes' if row.built else 'NO':5} "
            f"{row.file_bytes / 1e6:6.2f} MB {size:>9} {took:>7} {row.agreement:6.1%}  {row.types}"
            + (f"  {row.why}" if row.why else "")
        )
    return "\n".join(lines)


def measured(asked: argparse.Namespace, interpreter: str | None) -> int:
    """What ``--measure`` does; the exit code."""
    out = asked.out or own.FOLDER / _name(tensorrt_gpu.gpu())
    names = asked.networks.split(",") if asked.networks else MEASURED

    def every() -> Iterator[tensorrt_gpu.Subject]:
        for one in subjects([name for name in names if name == "demo"], asked.images):
            yield tensorrt_gpu.Subject(
                name=one.name,
                family=one.name,
                network=one.network,
                shape=tuple(one.test.shape[1:]),
            )
        yield from tensorrt_gpu.published([name for name in names if name in PUBLISHED])

    if wrong := sorted(set(names) - set(MEASURED)):
        print(f"{wrong[0]} is not measured: --networks takes {', '.join(MEASURED)}")
        return 2
    return tensorrt_gpu.run(interpreter, every(), out, asked.work, as_json=asked.json)


def _name(gpu: str | None) -> str:
    """A folder's name for a GPU: ``nvidia-h100-80gb-hbm3`` of the first line of ``nvidia-smi``."""
    first = (gpu or "gpu").splitlines()[0]
    model = re.sub(r"^GPU \d+: | \(UUID.*", "", first)
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--networks",
        help=f"of demo, {', '.join((*NETWORKS, *PUBLISHED))} ({', '.join(DEFAULT)}; with --measure "
        f"{', '.join(MEASURED)})",
    )
    parser.add_argument(
        "--images", type=Path, default=IMAGES, help="holds cifar10, imagenet_sample"
    )
    parser.add_argument("--measure", action="store_true", help="measure on this computer's GPU")
    parser.add_argument("--out", type=Path, help="with --measure: the measurement table's folder")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="with --measure: files, and what an end cut short"
    )
    asked = parser.parse_args()
    interpreter = rtx.python()
    torch.set_num_threads(1)
    if asked.measure:
        return measured(asked, interpreter)
    if interpreter is None:
        text = f"TensorRT-RTX is absent: pip install 'boardfit[tensorrt]', or set {rtx.OTHER}"
        print(text, file=sys.stderr)
        return 1
    found: list[Row] = []
    names = asked.networks.split(",") if asked.networks else list(DEFAULT)
    with tempfile.TemporaryDirectory(prefix="boardfit-") as name:
        folder = Path(name)
        for one in subjects(names, asked.images):
            found += rows(one, folder, interpreter, target(rtx.version(interpreter)))
    if asked.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
    else:
        print(table(found))
    return 0 if found and all(row.built for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
