"""What TensorRT-RTX makes of every variant of a network.

``python -m tests.benchmarks.tensorrt [--json] [--networks demo,resnet20,efl0] [--images DIR]``

Without a GPU each variant is parsed and built; with one (``--measure``) its engine is measured on
this computer as well, interleaved with fp32's, and its outputs are held against onnxruntime's.
``--latency-model`` adds what it predicts. TensorRT-RTX may live in another environment:
``BOARDFIT_RTX_PYTHON`` names its Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from harness import networks, stats
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.commands import load_model
from harness.compression import batchnorm, prune, quantize
from harness.compression.groups import find_groups
from harness.records import BoardFacts, BoardSpec, BuildSettings, GpuFacts
from harness.tensorrt import checks, chips, precision, versions
from latency_models import graph
from tests.benchmarks.compression_networks import NETWORKS, Absent, subject
from tests.tensorrt import rtx

ROOT = Path(__file__).parents[2]
IMAGES = ROOT.parent / "shared" / "images"
# Enough for ranges and to see a class change; more costs time on a busy computer alone.
CALIBRATION, COMPARED = 64, 64
# All from Turing on compute all three precisions fast; a GPU that is there says so itself.
TARGET = GpuFacts(name="a GPU of compute capability 8.9", compute="8.9")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant: what the builder made of it, and what was measured where there is a GPU.

    ``agreement`` is the share of images whose class is fp32's, by onnxruntime on the host;
    ``engine_agreement`` the same of the engine. Times are seconds.
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
    median_s: float | None = None
    p99_s: float | None = None
    ratio: float | None = None
    engine_agreement: float | None = None
    predicted_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with images to calibrate on and others to compare on."""

    name: str
    network: nn.Module
    calibration: Tensor
    test: Tensor


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
        try:
            found = subject(name, images)
        except Absent as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        yield Subject(
            name=name,
            network=found.network,
            calibration=found.calibration[:CALIBRATION].contiguous(),
            test=found.test[:COMPARED].contiguous(),
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
    """fp32, fp16, int8, int8 beside fp16, layers of all three; the first three pruned too."""
    release = versions.release_of(facts.runtime, facts.runtime_version)
    assert facts.gpu is not None
    chip = chips.capability_of(facts.gpu)
    for prefix, network in (("", one.network), ("pruned ", None)):
        network = pruned(one) if network is None else network
        stem = folder / f"{one.name}-{prefix.strip() or 'whole'}"
        plain = stem.with_suffix(".onnx")
        networks.export_onnx(network, one.test[:1], plain)
        nodes = networks.layer_of_node(onnx.load(plain))
        layers = tuple(dict.fromkeys(nodes.values()))

        int8 = _integer(one, plain, "int8", layers, facts)
        plans = [("fp32", plain, "fp32"), ("fp16", plain, "fp16"), ("int8", int8, "int8")]
        if not prefix:
            plans.append(("int8 + fp16", int8, "best"))
        for name, source, word in plans:
            model = onnx.load(source)
            plan = precision.uniform(model, word, release=release, capability=chip)
            yield _written(prefix + name, stem, plan)
        if not prefix:
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


def measured(
    one: Subject, found: list[Row], folder: Path, session: Session, latency_model: Path | None
) -> Iterator[Row]:
    """The rows with what the GPU of this computer measured, all engines interleaved."""
    made = list(variants(one, folder, session.facts))
    requests = [
        EngineRequest(label=v.name, path=v.path, precision=v.name, build=v.build) for v in made
    ]
    taken = session.measure(requests, plan=PRESETS["standard"], campaign=f"tensorrt {one.name}")
    exact = networks.onnx_outputs(made[0].path, one.test.numpy())[0].argmax(1)
    model = None if latency_model is None else load_model(latency_model)
    for row, variant, timed in zip(found, made, taken, strict=True):
        outputs = session.infer(variant.path, one.test.numpy(), build=variant.build)
        predicted = None
        if model is not None:
            kernels = graph.read(variant.path, runtime=model.runtime)
            predicted = model.predict(tuple(graph.work(kernel) for kernel in kernels))
        yield replace(
            row,
            median_s=stats.median(timed.samples_s),
            p99_s=stats.percentile(timed.samples_s, 99),
            ratio=stats.median(stats.ratio_by_round(timed, taken[0])),
            engine_agreement=float(np.mean(outputs.argmax(1) == exact)),
            predicted_s=predicted,
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
        f"{'network':10} {'variant':14} {'built':5} {'file':>9} {'engine':>9} {'build':>7} "
        f"{'agree':>6} {'median':>9} {'p99':>9} {'ratio':>6} {'engine agrees':>13} {'predicted':>9}"
        "  types"
    ]

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value * 1e3:.3f} ms"

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    for row in found:
        size = "-" if row.engine_bytes is None else f"{row.engine_bytes / 1e6:.2f} MB"
        took = "-" if row.build_s is None else f"{row.build_s:.2f} s"
        lines.append(
            f"{row.network:10} {row.variant:14} {'yes' if row.built else 'NO':5} "
            f"{row.file_bytes / 1e6:6.2f} MB {size:>9} {took:>7} {share(row.agreement):>6} "
            f"{ms(row.median_s):>9} {ms(row.p99_s):>9} {share(row.ratio):>6} "
            f"{share(row.engine_agreement):>13} {ms(row.predicted_s):>9}  {row.types}"
            + (f"  {row.why}" if row.why else "")
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--networks", default="demo,resnet20", help=f"of demo, {', '.join(NETWORKS)}"
    )
    parser.add_argument(
        "--images", type=Path, default=IMAGES, help="holds cifar10, imagenet_sample"
    )
    parser.add_argument("--measure", action="store_true", help="measure on this computer's GPU")
    parser.add_argument("--latency-model", type=Path, help="predict by it, with --measure")
    asked = parser.parse_args()
    interpreter = rtx.python()
    if interpreter is None:
        print(f"TensorRT-RTX is absent: pip install 'boardfit[tensorrt]', or set {rtx.OTHER}")
        return 1
    torch.set_num_threads(1)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="boardfit-") as name:
        folder = Path(name)
        for one in subjects(asked.networks.split(","), asked.images):
            mine = list(rows(one, folder, interpreter, target(rtx.version(interpreter))))
            if asked.measure:
                spec = BoardSpec(name="local", python=interpreter, runtime="tensorrt_rtx")
                with Session(spec) as session:
                    mine = list(measured(one, mine, folder, session, asked.latency_model))
            found += mine
    if asked.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
    else:
        print(table(found))
    return 0 if found and all(row.built for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
