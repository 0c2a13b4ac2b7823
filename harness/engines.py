"""One network measured alone on a board with TensorRT: prepared, built once or more, profiled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.records import Measurement, Profile
from harness.tensorrt import preparing, rebuilds
from harness.tensorrt.options import EngineOptions

__all__ = ["Profiled", "profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """One network's measurement and kernels, and what there is to say of its engine.

    ``builds`` where the engine was built several times; the measurement is the fastest's then.
    """

    measurement: Measurement
    profile: Profile
    builds: rebuilds.Rebuilds | None = None
    notes: tuple[str, ...] = ()


def profile(
    session: Session,
    path: Path,
    options: EngineOptions,
    *,
    label: str,
    plan: MeasurePlan,
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
        requests = [
            EngineRequest(label=name, path=prepared.path, precision=options.precision, build=build)
            for name, build in rebuilds.variants(label, prepared.build, options.rebuilds)
        ]
        measured = session.measure(requests, plan=plan, campaign=f"profile {label}")
        for measurement in measured:
            keep(measurement)
        found = rebuilds.choose(measured)
        taken = session.profile(prepared.path, build=requests[found.kept].build)
        keep(taken)
    return Profiled(
        measurement=measured[found.kept],
        profile=taken,
        builds=found if options.rebuilds > 1 else None,
        notes=prepared.notes,
    )
