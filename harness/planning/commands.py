"""What ``boardfit strategies`` does: requirements in, a plan and its strategy files out."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import commands, networks, posing, stats
from harness.boards import inventory
from harness.boards.session import Session
from harness.candidates import Workbench
from harness.compression import groups as grouping
from harness.compression import shapes
from harness.errors import ConfigError, latency_errors
from harness.folder import Folder, write_atomically
from harness.planning import choosing, generator, grounds, loss, preparing, sentences, verify
from harness.planning import requirements as requiring
from harness.planning.grounds import Grounds
from harness.planning.request import Material, PlanRequest, check, exported, loaded, settings
from harness.planning.subjects import Subject
from harness.progress import ConsoleObserver
from harness.records import (
    Estimate,
    Plan,
    PlannedStrategy,
    Requirements,
    Stage,
    Verification,
    dump,
)
from harness.report import planned_page
from harness.sensitivity import anchors
from harness.store import Store
from harness.strategies import given
from latency_models import graph
from latency_models.kernels import Work

__all__ = ["PlanRequest", "Planned", "as_json", "bet", "required", "strategies", "write"]

# Images that losses are predicted from: to score and fit layers on, and to try anchors on.
SCORED_IMAGES, JUDGED_IMAGES = 512, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and what building some of it gave, if it was asked for."""

    plan: Plan
    verification: Verification | None = None

    @property
    def possible(self) -> bool:
        """Whether some strategy meets the requirements, or may: nobody can tell yet."""
        return any(one.verdict != "does not meet" for one in self.plan.strategies)


def required(path: Path | None, **flags: Any) -> Requirements:
    """The requirements of a file and of the options; lists may be texts with commas."""
    for name in ("methods", "precisions"):
        if flags.get(name) is not None:
            flags[name] = [part.strip() for part in flags[name].split(",") if part.strip()]
    return requiring.merged(path, **flags)


def as_json(planned: Planned) -> str:
    """The plan as ``plan.json`` has it, with the verification if there was one."""
    content = json.loads(dump(planned.plan))
    if planned.verification is not None:
        content["verification"] = json.loads(dump(planned.verification))
    return json.dumps(content, indent=2)


@latency_errors()
def strategies(request: PlanRequest, *, predicted: Plan | None = None) -> Planned:
    """``boardfit strategies``: inputs are checked before a board is touched; ends with the report.

    In ``request.out`` lie ``plan.json``, ``strategies/*.json``, ``latency_model.json`` and
    ``report.html``; what was calibrated and scored there is kept for the next run. Predictions are
    written before anything is built, ``verification.json`` after. What is verified is ``predicted``
    where an earlier run made it: planning anew may find other allocations, of which nobody
    predicted anything. ConfigError where that plan is of another network or other requirements.
    """
    check(request)
    if predicted is not None:
        _same(predicted, request)
    networks.keep_freed_memory()
    with ConsoleObserver() as observer, contextlib.ExitStack() as stack:
        material = loaded(request, observer)
        bench = None
        if request.board is None:
            ground = _unconnected(request)
            folder = Folder(request.out, settings(request, material, ground.board), observer)
            path = exported(folder.networks, "baseline", material.network, material.example)
        else:
            spec = inventory.find(request.board)
            session = stack.enter_context(Session(spec, on_event=observer.event))
            facts = session.facts
            board = f"{facts.board}, {facts.runtime} {facts.runtime_version}"
            folder = Folder(request.out, settings(request, material, board), observer)
            store = stack.enter_context(Store(request.out / "measurements.db"))
            path = exported(folder.networks, "baseline", material.network, material.example)
            bench = _bench(material, session, store, folder)
            ground = _connected(request, bench, session, store, folder, path)
        subjects = _subjects(request, material, ground, folder, path)
        plan = predicted or _planned(request, material, ground, folder, subjects, path)
        write(plan, request.out)
        write_atomically(request.out / "latency_model.json", ground.model.to_json())
        if not request.verify:
            return Planned(plan=plan)
        assert bench is not None
        checked = _verified(request, material, ground, bench, subjects, plan)
        write_atomically(request.out / "verification.json", dump(checked.verification, indent=2))
        plan = _planned(request, material, ground, folder, checked.subjects, path)
        write(plan, request.out, verification=checked.verification)
        return Planned(plan=plan, verification=checked.verification)


def _same(predicted: Plan, request: PlanRequest) -> None:
    """ConfigError where an earlier plan does not answer what is asked now."""
    if predicted.network != request.network:
        raise ConfigError(
            f"the plan that is to be verified is of the network {predicted.network}, not of "
            f"{request.network}; plan for this one"
        )
    if predicted.requirements != request.requirements:
        raise ConfigError(
            "the plan that is to be verified was made for other requirements; plan for these"
        )


def write(plan: Plan, out: Path, *, verification: Verification | None = None) -> None:
    """Write ``plan.json``, a file a strategy (the best first), and ``report.html``."""
    folder = out / "strategies"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()  # those of an earlier plan are no strategies of this one
    for number, one in enumerate(plan.strategies, start=1):
        write_atomically(folder / _file_name(number, one), dump(one.strategy, indent=2))
    write_atomically(out / "plan.json", dump(plan, indent=2))
    planned_page.write(plan, out / "report.html", verification=verification)


def _file_name(number: int, strategy: PlannedStrategy) -> str:
    """A file that sorts by rank and says what it holds: ``01-pruned-to-75-int8.json``."""
    words = re.sub(r"[^a-z0-9]+", "-", strategy.name.lower()).strip("-")
    return f"{number:02d}-{words[:60].rstrip('-')}.json"


# --- what it stands on ----------------------------------------------------------------------------


def _unconnected(request: PlanRequest) -> Grounds:
    if request.latency_model is not None:
        return grounds.of_model(commands.load_model(request.latency_model))
    assert request.profile is not None
    return grounds.of_profile(request.profile)


def _connected(
    request: PlanRequest,
    bench: Workbench | None,
    session: Session,
    store: Store,
    folder: Folder,
    path: Path,
) -> Grounds:
    saved = None
    if request.latency_model is not None:
        saved = commands.load_model(request.latency_model).to_json()
    if bench is None:
        return grounds.of_board(session, store, folder, path, saved=saved)
    return grounds.of_bench(bench, saved=saved)


def _bench(material: Material, session: Session, store: Store, folder: Folder) -> Workbench | None:
    """Where networks are measured and judged; None without images to judge them by."""
    if material.images is None:
        return None
    return Workbench(
        network=material.network,
        data=material.images,
        session=session,
        store=store,
        folder=folder,
        board_images=posing.BOARD_IMAGES,
        metric=material.metric,
    )


# --- the plan -------------------------------------------------------------------------------------


def _planned(
    request: PlanRequest,
    material: Material,
    ground: Grounds,
    folder: Folder,
    subjects: Sequence[Subject],
    path: Path,
) -> Plan:
    images, observer = material.images, folder.observer
    observer.begin("plan", resumed=False)
    plan = generator.plan(
        request.requirements,
        subjects,
        network=request.network,
        board=ground.board,
        accuracy=_accuracy(material, ground, path),
        tails=_tails(request.requirements, ground.samples_s),
        settings=generator.PlanSettings(
            epochs=request.epochs,
            student_epochs=request.student_epochs,
            images=1000 if images is None else len(images.test_images),
            seed=request.seed,
        ),
    )
    found = f"{len(plan.strategies)} strategies"
    observer.end(Stage(name="plan", wall_s=plan.wall_s, detail=found))
    return replace(
        plan,
        strategies=tuple(
            replace(one, strategy=replace(one.strategy, label=given.label(one.name)))
            for one in plan.strategies
        ),
        notes=(*bet(plan), *plan.notes, *ground.notes),
    )


def bet(plan: Plan) -> tuple[str, ...]:
    """Which strategy to take if only one can be built, where that is not the first.

    With the probability that it keeps the latency, and what of it cannot be told.
    """
    choice = choosing.of_plan(plan)
    if choice is None or choice.index == 0 or choice.verdict == "does not meet":
        return ()
    verdicts = plan.strategies[choice.index].verdicts
    unsure = [met.requirement.quantity for met in verdicts if met.verdict == "cannot tell"]
    text = (
        f"If only one can be built, take {choice.name}: it is the likeliest to be the best that "
        f"keeps the latency, which it does with a probability of {100 * choice.meets:.0f} %"
    )
    if "latency" in unsure:
        text += ", and no more can be told before it is built"
    if others := [sentences.WORDS[quantity] for quantity in unsure if quantity != "latency"]:
        text += f"; what is asked of its {sentences.listed(others)} it may miss"
    return (f"{text}.",)


def _tails(requirements: Requirements, samples_s: Sequence[float]) -> dict[float, float]:
    """The percentile that is required of the latency over its median, as the original has it."""
    required = requirements.limit("latency")
    if required is None or not samples_s:
        return {}
    tail = stats.percentile(samples_s, required.percentile)
    return {required.percentile: tail / stats.median(samples_s)}


def _accuracy(material: Material, ground: Grounds, path: Path) -> float | None:
    """The original's, as a share of 1: as it was judged beside the board, or now."""
    if ground.baseline is not None:
        return ground.baseline.candidate.top1
    return _judged(material, path)


def _judged(material: Material, path: Path) -> float | None:
    """The metric of an exported network on the test images; None without them."""
    images = material.images
    if images is None:
        return None
    outputs = networks.onnx_outputs(path, images.test_images)
    return material.metric.of(outputs, images.test_labels.numpy())


def _subjects(
    request: PlanRequest, material: Material, ground: Grounds, folder: Folder, path: Path
) -> tuple[Subject, ...]:
    """The original, and every student in its place."""
    found = [_subject(request, material, ground, folder, path)]
    runtime = ground.model.runtime
    original = tuple(graph.work(kernel) for kernel in graph.read(path, runtime=runtime))
    whole = networks.count_macs(material.network, material.example)
    for number, (name, student) in enumerate(material.students.items(), start=1):
        theirs = replace(material, network=student)
        file = exported(folder.networks, f"student {number}", student, material.example)
        share = networks.count_macs(student, material.example) / whole
        drop = loss.student_drop(share, epochs=request.student_epochs)
        before, after = _accuracy(material, ground, path), _judged(material, file)
        if before is not None and after is not None and material.images is not None:
            measured = loss.measured_drop(
                100 * (before - after), changed=None, images=len(material.images.test_images)
            )
            # One that comes trained is no worse than it is; teaching keeps what it does not help.
            drop = min(drop, measured, key=lambda estimate: estimate.value)
        found.append(_subject(request, theirs, ground, folder, file, name, drop, original=original))
    return tuple(found)


def _subject(
    request: PlanRequest,
    material: Material,
    ground: Grounds,
    folder: Folder,
    path: Path,
    student: str = "",
    replacing: Estimate | None = None,
    original: Sequence[Work] | None = None,
) -> Subject:
    """The original, or a student that takes its place, with all that predicts what becomes of it.

    ``material.network`` is that network and ``path`` its exported file; ``original`` are the
    kernels of the one whose place a student takes.
    """
    network, observer = material.network, folder.observer
    found = grouping.find_groups(network, material.example)
    name = f"sensitivity of {student}" if student else "sensitivity"
    observer.begin(name, resumed=False)
    start = time.monotonic()
    subject = preparing.prepare(
        network,
        path,
        found,
        shapes.parameter_shapes(network, material.example, found),
        ground.model,
        source=ground.source,
        form=ground.form,
        precisions=ground.precisions,
        step=ground.step,
        fine_step=posing.CHANNEL_STEP,
        images=_images(material, ground),
        student=student,
        replacing=replacing,
        original=original,
        measured=ground.measured,
        power_w=ground.power_w,
        seed=request.seed,
        cache=folder.path / "cache",
        progress=observer.progress,
    )
    observer.end(Stage(name=name, wall_s=time.monotonic() - start))
    return subject


def _images(material: Material, ground: Grounds) -> anchors.Images | None:
    """Images to score on, which the network was trained on, and others to try anchors on."""
    data = material.images
    if data is None:
        return None
    judged = slice(None, JUDGED_IMAGES)
    return anchors.Images(
        scored=data.train_images[:SCORED_IMAGES],
        judged=data.test_images[judged],
        targets=data.test_labels[judged],
        metric=material.metric,
        weight_bits=ground.form.weight_bits,
        symmetric=ground.form.symmetric,
    )


def _verified(
    request: PlanRequest,
    material: Material,
    ground: Grounds,
    bench: Workbench,
    subjects: Sequence[Subject],
    plan: Plan,
) -> verify.Checked:
    """The best strategies, built and measured.

    Stages of the folder have the labels of strategies: a part of their digest is added, for the
    same name is another strategy where other requirements were made.
    """
    assert ground.baseline is not None
    labelled = []
    for one in plan.strategies[: request.verify]:
        label = f"{one.strategy.label[:80]} {given.digest(one.strategy)[:6]}"
        labelled.append(replace(one, strategy=replace(one.strategy, label=label)))
    return verify.verify(
        replace(plan, strategies=tuple(labelled)),
        request.verify,
        bench,
        subjects=subjects,
        model=ground.model,
        baseline=ground.baseline,
        students=material.students,
    )
