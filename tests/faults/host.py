"""The host's side of a campaign, in a process of its own so that it can be killed.

``python -m tests.faults.host FOLDER`` measures what ``task.json`` there names and keeps it in
``store.db`` beside it; killed and started again it goes on where it was. The last line on stdout
names the candidates that failed.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness import records
from harness.boards import deploy, session, ssh
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import BoardfitError
from harness.records import BoardSpec, Measurement
from harness.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that is to be measured with a runtime."""

    label: str
    path: str
    runtime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one campaign measures, and where."""

    name: str
    nonce: str
    spec: BoardSpec
    plan: MeasurePlan
    candidates: tuple[Candidate, ...]


def shorten() -> None:
    """Wait for less than on a real network: a fault of seconds is then a long one."""
    session.SILENCE_S = 2.5
    session.CALL_TIMEOUT_S = 5.0
    session.BACK_OFF_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    ssh.CONNECT_TIMEOUT_S = 3.0
    deploy.START_TIMEOUT_S = 6.0


def tell(event: dict[str, object]) -> None:
    """Write to the host's log, without the heartbeats."""
    if event["kind"] != "heartbeat":
        print(f"{time.time():.3f}", json.dumps(event), file=sys.stderr, flush=True)


def run(folder: Path) -> dict[str, str]:
    """What failed and why, by label."""
    task = records.load(Task, (folder / "task.json").read_bytes())
    failed: dict[str, str] = {}
    with Store(folder / "store.db") as store:
        for runtime in dict.fromkeys(one.runtime for one in task.candidates):
            wanted = [one for one in task.candidates if one.runtime == runtime]
            failed.update(_campaign(task, runtime, wanted, store))
    return failed


def _campaign(task: Task, runtime: str, wanted: list[Candidate], store: Store) -> dict[str, str]:
    failed: dict[str, str] = {}
    known = {one.label for one in store.all(Measurement)}
    spec = records.load(BoardSpec, records.dump(task.spec).replace('"fake"', f'"{runtime}"'))
    with Session(spec, on_event=tell, nonce=task.nonce) as board:
        for one in wanted:
            if one.label in known:
                continue
            engine = EngineRequest(label=one.label, path=Path(one.path), precision="fp32")
            try:
                (found,) = board.measure([engine], plan=task.plan, campaign=task.name)
            except BoardfitError as error:
                failed[one.label] = str(error)
            else:
                store.add(found)
    return failed


def main() -> int:
    """Exit code: 0 where the campaign came to its end, whatever failed in it."""
    shorten()
    try:
        failed = run(Path(sys.argv[1]))
    except BoardfitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
