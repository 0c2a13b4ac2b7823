"""What ``boardfit strategies`` is asked, and what it was given, loaded and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness import commands, networks
from harness.compression import student as teaching
from harness.errors import ConfigError
from harness.progress import ConsoleObserver
from harness.records import Requirements

__all__ = ["Material", "PlanRequest", "check", "exported", "loaded", "settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What is to be planned; see the options of ``boardfit strategies``.

    One of ``board``, ``profile`` and ``latency_model`` says what latencies rest on: a board is
    calibrated unless a latency model is named beside it.
    """

    network: str
    requirements: Requirements
    out: Path
    weights: Path | None = None
    data: str | None = None
    preparation: networks.Preparation
    shape: str | None = None
    board: str | None = None
    profile: str | None = None
    latency_model: Path | None = None
    students: tuple[str, ...] = ()
    metric: str | None = None
    epochs: int = 4
    student_epochs: int = 30
    seed: int = 0
    verify: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the user gave, loaded: ``images`` is None without data, ``students`` are by name."""

    network: networks.Network
    students: Mapping[str, networks.Network]
    images: networks.Data | None
    metric: networks.Metric
    example: networks.Tensor


def check(request: PlanRequest) -> None:
    """ConfigError where the options contradict each other."""
    given = [name for name in ("board", "profile", "latency_model") if getattr(request, name)]
    if not given:
        raise ConfigError(
            "nothing says how fast the board is: give --board NAME, which is calibrated, "
            "--profile NAME (a datasheet alone), or --latency-model FILE of an earlier calibration"
        )
    if request.profile and len(given) > 1:
        other = "--board" if request.board else "--latency-model"
        raise ConfigError(
            f"--profile {request.profile} and {other} are two boards; give one of them"
        )
    if request.students and "distill" not in request.requirements.methods:
        raise ConfigError(
            f"--student {request.students[0]} is taught by the method distill, which the "
            "requirements do not allow"
        )
    if request.verify and not (request.board and request.data):
        raise ConfigError(
            "--verify builds strategies and measures them: it needs --board and --data"
        )


def loaded(request: PlanRequest, observer: ConsoleObserver) -> Material:
    """Network, students and images of a request; ConfigError where they do not fit together."""
    network = networks.load_network(request.network, request.weights)
    students = {
        spec: networks.load_network(spec, None, kind="student", seed=request.seed)
        for spec in request.students
    }
    judge = networks.load_metric(request.metric)
    images = None
    if request.data is not None:
        with observer.stage("read data"):
            images = networks.load_data(
                request.data,
                preparation=request.preparation,
                progress=observer.progress,
                classes=judge.classifies,
            )
        if not judge.classifies:
            # Targets of a metric are no classes to learn: sensitivities do without.
            images = replace(images, train_labels=None)
        networks.check_fits(network, images, judge)
        networks.check_images(network, images.train_images, least=commands.MIN_IMAGES)
        for student in students.values():
            if larger := teaching.check(student, network, images):
                observer.warn(larger)
        example = images.example
        asked = request.requirements.input_size
        if asked is not None and asked != tuple(example.shape[1:]):
            raise ConfigError(
                f"the requirements have an input of {asked}, and the images are of "
                f"{tuple(example.shape[1:])}; give --image-size, or leave input_size out"
            )
    else:
        shape = request.shape
        if shape is None and request.requirements.input_size is not None:
            shape = ",".join(map(str, (1, *request.requirements.input_size)))
        if shape is None:
            raise ConfigError(
                "without --data nothing says what the network takes; give --shape 1,3,224,224"
            )
        example = networks.example_input(network, request.network, shape)
    return Material(
        network=network, students=students, images=images, metric=judge, example=example
    )


def settings(request: PlanRequest, material: Material, board: str) -> dict[str, object]:
    """What must be unchanged for what lies in the folder to be of use: not the requirements."""
    return {
        "plan of": request.network,
        "weights_sha256": networks.fingerprint(material.network),
        "data_sha256": None
        if material.images is None
        else networks.data_fingerprint(material.images),
        "shape": list(material.example.shape),
        "metric": request.metric or material.metric.name,
        "students_sha256": {
            name: networks.fingerprint(student) for name, student in material.students.items()
        },
        "board": board,
        "latency_model_sha256": None
        if request.latency_model is None
        else commands.load_model(request.latency_model).sha256,
        "seed": request.seed,
    }


def exported(folder: Path, name: str, network: networks.Network, example: networks.Tensor) -> Path:
    """The fp32 file of a network, ``name``.onnx in ``folder``: whole, or not there."""
    path = folder / f"{name}.onnx"
    draft = path.with_suffix(".draft.onnx")
    networks.export_onnx(network, example[:1], draft)
    draft.replace(path)
    return path
