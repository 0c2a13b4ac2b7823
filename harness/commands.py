"""What the command line's commands do: one function each, records in and records out."""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from harness import calibrate as calibrating
from harness import engines, loop, networks, pacing, posing, profiling, units
from harness.boards import inventory, rules
from harness.boards.session import EngineRequest, Session
from harness.compression import quantize
from harness.compression import student as teaching
from harness.errors import AgentException, ConfigError, LatencyModelError, latency_errors
from harness.folder import write_atomically
from harness.progress import ConsoleObserver
from harness.records import (
    BoardFacts,
    Budget,
    CacheState,
    FitResult,
    Interval,
    Stage,
    load,
)
from harness.report import page
from harness.store import Store
from harness.strategies import given
from harness.tensorrt import options
from latency_models import calibration, errors, graph, synthetic, tables

__all__ = [
    "NetworkPrediction",
    "budgets",
    "calibrate",
    "clean",
    "fit",
    "load_model",
    "methods",
    "predict",
    "probe",
    "profile",
    "report",
    "validate",
]

METHODS = ("prune", "quantize", "distill")
# Fewer training images say nothing of the ranges of activations.
MIN_IMAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPrediction:
    """The predicted latency of one network and of its kernels.

    Each kernel is (name, kind, precision, seconds by the formula, factor of the learned residual).
    ``unsupported`` are the kinds and precisions among them that were never measured.
    """

    network: str
    latency_s: float
    interval: Interval
    kernels: tuple[tuple[str, str, str, float, float], ...]
    unsupported: tuple[tuple[str, str], ...]


def budgets(
    *, latency: str | None, size: str | None, max_drop: float, needed: bool = True
) -> tuple[Budget, ...]:
    """The budgets of the options; ConfigError if there is nothing to fit to, where ``needed``."""
    result = []
    if latency is not None:
        result.append(units.parse_latency(latency))
    if size is not None:
        result.append(units.parse_size(size))
    if needed and not result:
        raise ConfigError("there is no budget to fit to; give --latency, --size or both")
    return (*result, units.parse_accuracy_drop(max_drop))


def methods(text: str) -> tuple[str, ...]:
    """The methods named in ``text``, separated by commas."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ConfigError(
            f"--methods {text!r}: {', '.join(unknown) or 'nothing'} is no method; "
            f"use {', '.join(METHODS)}, or several with commas"
        )
    return names


@latency_errors()
def fit(
    network: str,
    *,
    weights: Path | None,
    data: str,
    preparation: networks.Preparation,
    board: str,
    budgets: tuple[Budget, ...],
    methods: tuple[str, ...],
    rounds: int,
    epochs: int,
    seed: int,
    alternatives: bool,
    out: Path,
    sustain: str | None = None,
    metric: str | None = None,
    student: str | None = None,
    strategy: Path | None = None,
    latency_model: Path | None = None,
) -> FitResult:
    """``boardfit fit``: inputs are checked before the board is touched; ends with the report.

    The ``strategy`` in a file is built as it stands: its methods, seed, student and epochs (where
    it has any) take the place of the options, and nothing is allocated. A ``latency_model`` of the
    board that was saved takes the place of a calibration.
    """
    spec = inventory.find(board)
    asked = None if strategy is None else given.read(strategy)
    if asked is None:
        _check_student(student, methods, epochs)
    else:
        if student is not None and student != asked.student:
            raise ConfigError(
                f"--student {student}: {strategy} says itself which student it begins with "
                f"({asked.student or 'none'}); leave the option out"
            )
        methods, seed, student = asked.methods, asked.seed, asked.student or None
        epochs = asked.epochs or epochs
    saved = None
    if latency_model is not None:
        saved = posing.SavedModel(file=latency_model.name, model=load_model(latency_model))
    networks.keep_freed_memory()
    loaded = networks.load_network(network, weights)
    learner = networks.load_network(student, None, kind="student", seed=seed) if student else None
    judge = networks.load_metric(metric)
    with ConsoleObserver() as observer, observer.stage("read data"):
        images = networks.load_data(
            data,
            preparation=preparation,
            progress=observer.progress,
            classes=judge.classifies,
        )
    if not judge.classifies:
        # Targets of a metric are no classes to learn: sensitivity and distillation do without.
        images = replace(images, train_labels=None)
    networks.check_fits(loaded, images, judge)
    networks.check_images(loaded, images.train_images, least=MIN_IMAGES)
    larger = "" if learner is None else teaching.check(learner, loaded, images)
    with ConsoleObserver() as observer, Session(spec, on_event=observer.event) as session:
        if saved is not None:
            precisions = quantize.available_precisions(session.facts)
            calibrating.check_model(saved.model, session, precisions=precisions)
        if larger:
            observer.warn(larger)
        result = loop.fit(
            loaded,
            images,
            session,
            out=out,
            settings=loop.FitSettings(
                network=network,
                budgets=tuple(replace(budget, metric=judge.name) for budget in budgets),
                max_rounds=rounds,
                epochs=epochs,
                seed=seed,
                alternatives=alternatives,
                methods=methods,
                student=student or "",
                sustain_s=profiling.sustain_s(sustain, spec),
                given=asked,
                saved=saved,
            ),
            fingerprint={
                "weights_sha256": networks.fingerprint(loaded),
                "data_sha256": networks.data_fingerprint(images),
                "metric": metric or judge.name,
                **(
                    {"student_sha256": networks.fingerprint(learner)} if learner is not None else {}
                ),
            },
            observer=observer,
            metric=judge,
            student=learner,
        )
    page.write(result, out / "report.html")
    return result


def _check_student(student: str | None, methods: Sequence[str], epochs: int) -> None:
    if student is None and "distill" in methods:
        raise ConfigError(
            "--methods distill teaches a smaller network, and none is named; give "
            "--student file.py:factory (pruned networks are distilled without being asked)"
        )
    if student is not None and "distill" not in methods:
        raise ConfigError(
            f"--student {student} is taught by the method distill; add it to --methods "
            f"({','.join(('distill', *methods))})"
        )
    if student is not None and not epochs:
        raise ConfigError("a student learns nothing in --epochs 0; give 30, for example")


def profile(
    network: str,
    *,
    weights: Path | None,
    shape: str | None,
    board: str,
    warm_up_s: float,
    duration_s: float,
    iterations: int | None,
    store: Path,
    percentile: float | None = None,
    sustain: str = "0",
    engine: options.EngineOptions | None = None,
) -> engines.Profiled:
    """``boardfit profile``: one network measured alone, end to end and per kernel.

    After running without a pause for as long as ``sustain`` says ("5min"). ``engine`` says how
    TensorRT is to build it.
    """
    spec = inventory.find(board)
    asked = options.for_board(engine or options.EngineOptions(), spec)
    plan = profiling.plan(
        warm_up_s=warm_up_s,
        duration_s=duration_s,
        iterations=iterations,
        percentile=percentile,
        soak_s=units.parse_duration(sustain, name="--sustain"),
    )
    with (
        networks.as_onnx(network, weights, shape) as path,
        profiling.resumable(store, path, spec, plan) as nonce,
        ConsoleObserver() as observer,
        observer.stage("profile"),
        Session(spec, on_event=observer.event, nonce=nonce) as session,
        Store(store) as kept,
        _naming(network),
    ):
        if asked is not None:
            return engines.profile(
                session,
                path,
                asked,
                label=network,
                plan=plan,
                percentile=percentile,
                keep=kept.add,
            )
        (measurement,) = session.measure(
            [EngineRequest(label=network, path=path, precision="file")],
            plan=plan,
            campaign=f"profile {network}",
        )
        kept.add(measurement)
        taken = session.profile(path)
        kept.add(taken)
    return engines.Profiled(measurement=measurement, profile=taken)


@latency_errors()
def calibrate(*, board: str, network: Path | None, out: Path) -> calibrating.Calibration:
    """``boardfit calibrate``: sweep, fit, save; an interrupted sweep resumes from the store."""
    spec = inventory.find(board)
    reference = _read(network) if network is not None else None
    with (
        ConsoleObserver() as observer,
        Session(spec, on_event=observer.event) as session,
        Store(out / "measurements.db") as store,
    ):
        found, _ = _calibrated(session, store, observer, reference=reference, out=out)
        store.export_csv(out)
    return found


def _calibrated(
    session: Session,
    store: Store,
    observer: ConsoleObserver,
    *,
    reference: onnx.ModelProto | None,
    out: Path,
) -> tuple[calibrating.Calibration, pacing.Yardstick]:
    """A calibration whose model is written to ``out``, and the yardstick that it is in terms of."""
    observer.begin("calibrate", resumed=False)
    begun_s = time.monotonic()
    yardstick = calibrating.folder_yardstick(session, store, out)
    rule = rules.fusion_rules(session.facts)
    found = calibrating.calibrate(
        session,
        store,
        observer,
        reference=() if reference is None else graph.read(reference, runtime=rule),
        precisions=quantize.available_precisions(session.facts),
        yardstick=yardstick,
    )
    write_atomically(out / "latency_model.json", found.model.to_json())
    detail = f"{found.times.kernels} kernels, fused as by {rule}"
    observer.end(Stage(name="calibrate", wall_s=time.monotonic() - begun_s, detail=detail))
    return found, yardstick


@latency_errors()
def predict(
    network: Path,
    *,
    latency_model: Path,
    coverage: float,
    precision: str = "fp32",
    batch: int = 1,
    power_mode: str | None = None,
) -> NetworkPrediction:
    """``boardfit predict``: total and kernels of one network by a saved latency model."""
    model = load_model(latency_model)
    model = model.at(model.profile.scales(power_mode))
    tables.check_precision(precision, model)
    with _naming(network):
        works = tables.works_of_row(
            network, runtime=model.runtime, precision=precision, batch=batch
        )
    low, high = model.interval(works, coverage)
    return NetworkPrediction(
        network=str(network),
        latency_s=model.predict(works),
        interval=Interval(low, high, coverage),
        kernels=tuple(
            (work.name, work.kind, work.precision, float(seconds), float(factor))
            for work, seconds, factor in zip(works, *model.parts(works), strict=True)
        ),
        unsupported=model.unsupported(works),
    )


@latency_errors()
def validate(
    files: Sequence[Path], *, board: str, latency_model: Path | None, int8: bool, out: Path
) -> tuple[calibrating.Validation, ...]:
    """``boardfit validate``: predict each file, and its int8 form, then measure them all.

    Where the board computes fast in fp16, in that as well.
    """
    spec = inventory.find(board)
    out.mkdir(parents=True, exist_ok=True)
    with (
        ConsoleObserver() as observer,
        Session(spec, on_event=observer.event) as session,
        Store(out / "measurements.db") as store,
    ):
        precisions = quantize.available_precisions(session.facts)
        if latency_model is not None:
            model = load_model(latency_model)
            yardstick = _yardstick_beside(latency_model, session)
        else:
            found, yardstick = _calibrated(session, store, observer, reference=None, out=out)
            model = found.model
        targets = [
            target
            for file in files
            for target in _targets(
                file,
                out,
                precisions=[p for p in precisions if p != "int8" or int8],
                symmetric=graph.is_gpu(rules.fusion_rules(session.facts)),
            )
        ]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        rows = calibrating.validate(
            session,
            store,
            observer,
            model=model,
            yardstick=yardstick,
            networks=targets,
            name=f"validate {digest[:16]}",
        )
        store.export_csv(out)
    return rows


def _targets(
    file: Path, out: Path, *, precisions: Sequence[str], symmetric: bool
) -> list[calibrating.Target]:
    """The network in a file, its weights filled in, in each precision: name, precision, maker.

    fp16 is the same file, which the board's builder is told of; int8 a file with ``symmetric`` Q/DQ
    or not.
    """
    complete, half, quantized = (out / f"{file.stem}{end}.onnx" for end in ("", ".fp16", ".int8"))
    network = _read(file)  # now, so that a file which is none is an error before the board is used

    def fill() -> Path:
        onnx.save(synthetic.fill(network), complete)
        return complete

    def fill_half() -> Path:
        onnx.save(synthetic.fill(network), half)
        return half

    def quantize_it() -> Path:
        synthetic.quantize(
            complete if complete.exists() else fill(), quantized, symmetric=symmetric
        )
        return quantized

    makers = {"fp32": fill, "fp16": fill_half, "int8": quantize_it}
    return [(file.stem, precision, makers[precision]) for precision in precisions]


def _yardstick_beside(latency_model: Path, session: Session) -> pacing.Yardstick:
    """The yardstick that the latency model's calibration left in its folder."""
    folder = latency_model.parent
    if not (folder / "yardstick.onnx").exists():
        raise ConfigError(
            f"{folder} holds no yardstick.onnx, by which {latency_model.name} was calibrated; "
            "name a latency model in the folder that boardfit calibrate wrote, or none to calibrate"
        )
    with Store(folder / "measurements.db") as store:
        return calibrating.folder_yardstick(session, store, folder)


def report(folder: Path, *, allow_fake: bool) -> FitResult:
    """``boardfit report``: the folder's result; its report.html is written anew."""
    source = folder / "result.json"
    if not source.exists():
        raise ConfigError(
            f"{folder} holds no result.json; finish its fit first (the same command resumes), "
            "or name a result folder"
        )
    try:
        result = load(FitResult, source.read_bytes())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{source} is damaged: {error}") from error
    page.write(result, folder / "report.html", allow_fake=allow_fake)
    return result


def probe(board: str) -> BoardFacts:
    """``boardfit boards show``: what the agent finds on a board."""
    with Session(inventory.find(board)) as session:
        return session.facts


def clean(board: str, *, keep_s: float, unfetched: bool) -> CacheState:
    """``boardfit boards clean``: free what no job needs; see ``Session.clean``."""
    with Session(inventory.find(board)) as session:
        return session.clean(keep_s=keep_s, unfetched=unfetched)


@contextlib.contextmanager
def _naming(network: Path | str) -> Iterator[None]:
    """What is wrong with a network, here or on the board, is told with the file's name."""
    try:
        yield
    except errors.FormatError:
        raise  # it has the name
    except errors.LatencyError as error:
        raise LatencyModelError(f"{network}: {error}") from error
    except AgentException as error:
        raise AgentException(
            f"{network}: {error}", type_name=error.type_name, traceback=error.traceback
        ) from error


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; name an .onnx file") from error
    except Exception as error:  # protobuf raises its own kind, which differs by backend
        raise ConfigError(
            f"{path} is not an ONNX file ({error}); export the network anew"
        ) from error


def load_model(path: Path) -> calibration.LatencyModel:
    """The latency model in a file; ConfigError says what is wrong with it."""
    try:
        return calibration.LatencyModel.from_json(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; boardfit calibrate --board NAME --out DIR writes one"
        ) from error
    except (ValueError, KeyError, OSError, errors.LatencyError) as error:
        raise ConfigError(f"{path} is not a latency model ({error}); calibrate anew") from error
