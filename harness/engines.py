"""One network measured alone on a board with TensorRT: prepared, built once or more, profiled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from harness.boards.requests import sha256_of
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import ConfigError
from harness.records import Measurement, Profile
from harness.tensorrt import preparing, rebuilds
from harness.tensorrt.options import EngineOptions
from harness.trtexec import files, log, summary

__all__ = ["Profiled", "profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """One network's measurement and kernels, and what there is to say of its engine.

    ``builds`` where the engine was built several times; the measurement is the fastest's then.
    ``performance`` where trtexec itself printed it.
    """

    measurement: Measurement
    profile: Profile
    builds: rebuilds.Rebuilds | None = None
    performance: summary.Performance | None = None
    notes: tuple[str, ...] = ()


def profile(
    session: Session,
    path: Path,
    options: EngineOptions,
    *,
    label: str,
    plan: MeasurePlan,
    percentile: float | None = None,
    keep: Callable[[Measurement | Profile], object],
) -> Profiled:
    """The network in ``path`` in the precision of ``options``; ``keep`` is given every record.

    The file is checked, and rewritten where its types have to say the precision, before it is
    sent. Several builds are measured interleaved, and the fastest is profiled.
    """
    with tempfile.TemporaryDirectory(prefix="boardfit-") as folder:
        prepared = preparing.prepare(
            path,
            session.facts,
            options,
            folder=Path(folder),
            free_bytes=session.conditions().free_memory_bytes,
        )
        if session.spec.runtime == "trtexec":
            found_by = _by_trtexec(
                session,
                path,
                EngineRequest(
                    label=label,
                    path=prepared.path,
                    precision=options.precision,
                    build=prepared.build,
                ),
                rebuilds=options.rebuilds,
                plan=plan,
                percentile=summary.PERCENTILE if percentile is None else percentile,
                folder=Path(folder),
            )
            keep(found_by.measurement)
            keep(found_by.profile)
            return replace(found_by, notes=(*prepared.notes, *found_by.notes))
        return _by_bindings(session, path, prepared, options, label=label, plan=plan, keep=keep)


def _by_bindings(
    session: Session,
    path: Path,
    prepared: preparing.Prepared,
    options: EngineOptions,
    *,
    label: str,
    plan: MeasurePlan,
    keep: Callable[[Measurement | Profile], object],
) -> Profiled:
    """Every build of ``path``, as prepared, measured interleaved, and the fastest profiled."""
    requests = [
        EngineRequest(label=name, path=prepared.path, precision=options.precision, build=build)
        for name, build in rebuilds.variants(label, prepared.build, options.rebuilds)
    ]
    # A file that was rewritten for the board is still that network.
    own = sha256_of(path)
    measured = [
        replace(one, network_sha256=own)
        for one in session.measure(requests, plan=plan, campaign=f"profile {label}")
    ]
    for measurement in measured:
        keep(measurement)
    found = rebuilds.choose(measured)
    taken = session.profile(prepared.path, build=requests[found.kept].build)
    taken = replace(taken, network_sha256=own)
    keep(taken)
    return Profiled(
        measurement=measured[found.kept],
        profile=taken,
        builds=found if options.rebuilds > 1 else None,
        notes=prepared.notes,
    )


def _by_trtexec(
    session: Session,
    path: Path,
    request: EngineRequest,
    *,
    rebuilds: int,
    plan: MeasurePlan,
    percentile: float,
    folder: Path,
) -> Profiled:
    """The same by one run of trtexec, whose log and files are read here."""
    if rebuilds > 1:
        raise ConfigError(
            f"--rebuilds {rebuilds}: trtexec builds and measures once; run the command several "
            "times, or install TensorRT's Python bindings on the board"
        )
    run = session.trtexec(request, plan=plan, percentile=percentile, into=folder)
    (told,) = log.read_log(run.files["log"], network=path, board=session.spec.name)
    told = replace(told, label=request.label, precision=request.precision)
    nodes = tuple(node.name for node in onnx.load(path, load_external_data=False).graph.node)
    notes: tuple[str, ...] = ()
    if run.unproven:
        notes = (f"no log of trtexec {told.runtime_version} proves {', '.join(run.unproven)}",)
    calls = files.as_measurement(told, files.read_times(run.files["times"]))
    return Profiled(
        measurement=replace(calls, campaign=f"profile {request.label}"),
        profile=files.read_profile(run.files["profile"], told, nodes=nodes),
        performance=summary.Performance(
            throughput_per_s=told.throughput_per_s or len(calls.samples_s) / told.duration_s,
            times=tuple(told.times.items()),
        ),
        notes=notes,
    )
