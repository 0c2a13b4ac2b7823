"""Many candidates on one board: the host prepares the next one while the board measures.

Every measurement is stored the moment it arrives and every failure is named and stored too, so a
campaign that was interrupted goes on behind what is there. The board is touched only between
measurements. Where host and board are one machine nothing overlaps at all: preparing would be
measured as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone

from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import AgentException, BoardfitError, BuildError, StableBoardError
from harness.records import Failure, Measurement
from harness.store import Store

__all__ = ["CampaignResult", "Entry", "run"]

# What says something of the candidate. Anything else says something of the board or of us, and
# ends the campaign, which goes on when it is run again.
OF_THE_CANDIDATE = (AgentException, BuildError, StableBoardError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A candidate of a campaign: ``prepare`` makes its file, and names what runs beside it.

    Of the engines the last one is the candidate; those before (a baseline) are interleaved with it.
    """

    label: str
    prepare: Callable[[], Sequence[EngineRequest]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignResult:
    """What a campaign gave: by label, in the order of the entries, earlier runs' results included.

    ``busy_s`` is how long the board measured in this run, of ``wall_s`` in all.
    """

    measured: dict[str, tuple[Measurement, ...]]
    failures: tuple[Failure, ...]
    busy_s: float
    wall_s: float

    @property
    def busy_share(self) -> float:
        """The share of the time in which the board measured; 1 where there was nothing to do."""
        return self.busy_s / self.wall_s if self.busy_s else 1.0


def run(
    session: Session,
    store: Store,
    entries: Sequence[Entry],
    *,
    plan: MeasurePlan,
    name: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> CampaignResult:
    """Measure the entries that the store does not hold under the campaign's ``name``.

    A candidate that fails is recorded, and the next one taken. ``TransientBoardError`` where the
    board is lost for longer than the session tries; running the campaign again resumes it.
    """
    begun_s = time.monotonic()
    labels = [entry.label for entry in entries]
    if len(set(labels)) != len(labels):
        raise ValueError(f"campaign {name} has a label twice: {sorted(labels)}")
    known = _known(store, name)
    failed = {f.label: f for f in store.all(Failure) if f.campaign == name}
    left = [e for e in entries if e.label not in known and e.label not in failed]
    busy_s = 0.0
    for number, (entry, prepared) in enumerate(
        _prepared(left, ahead=session.spec.host is not None)
    ):
        if on_progress is not None:
            on_progress(len(entries) - len(left) + number, len(entries))
        try:
            taken = session.measure(prepared(), plan=plan, campaign=f"{name}: {entry.label}")
        except OF_THE_CANDIDATE as error:
            failed[entry.label] = _failure(name, entry.label, error)
            store.add(failed[entry.label])
            continue
        store.add_all(taken)
        known[entry.label] = taken
        busy_s += taken[-1].busy_s or 0.0
    if on_progress is not None:
        on_progress(len(entries), len(entries))
    return CampaignResult(
        measured={label: known[label] for label in labels if label in known},
        failures=tuple(failed[label] for label in labels if label in failed),
        busy_s=busy_s,
        wall_s=time.monotonic() - begun_s,
    )


def _known(store: Store, name: str) -> dict[str, tuple[Measurement, ...]]:
    found: dict[str, tuple[Measurement, ...]] = {}
    for measurement in store.all(Measurement):
        campaign, colon, label = measurement.campaign.partition(": ")
        if campaign == name and colon:
            found[label] = (*found.get(label, ()), measurement)
    return found


def _failure(name: str, label: str, error: BoardfitError) -> Failure:
    return Failure(
        label=label,
        campaign=name,
        kind=type(error).__name__,
        reason=str(error),
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


Prepared = Callable[[], Sequence[EngineRequest]]


def _prepared(entries: Sequence[Entry], *, ahead: bool) -> Iterator[tuple[Entry, Prepared]]:
    """Each entry and what gives its engines; if ``ahead``, the next is made in the meantime."""
    if not ahead:
        yield from ((entry, entry.prepare) for entry in entries)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare") as pool:
        coming: Future[Sequence[EngineRequest]] | None = None
        try:
            for index, entry in enumerate(entries):
                made = coming or pool.submit(entry.prepare)
                with contextlib.suppress(BoardfitError):
                    made.exception()  # waits, so that only one is being made at a time
                following = entries[index + 1 : index + 2]
                coming = pool.submit(following[0].prepare) if following else None
                yield entry, made.result
        finally:
            if coming is not None:
                coming.cancel()
