"""The host's side of a campaign, in a process of its own so that it can be killed.

``python -m tests.faults.host FOLDER`` measures what ``task.json`` there names and keeps it in
``store.db`` beside it; killed and started again it goes on where it was. The last line on stdout
names the candidates that failed.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from harness import campaign, records
from harness.boards import deploy, link, session, ssh, transport
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.campaign import Entry
from harness.errors import BoardfitError
from harness.records import BoardSpec
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
    link.CALL_TIMEOUT_S = 5.0
    link.BACK_OFF_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    ssh.CONNECT_TIMEOUT_S = ssh.SILENT_S = 3.0
    transport.SILENCE_S = 3.0
    deploy.START_TIMEOUT_S = 6.0


def tell(event: dict[str, object]) -> None:
    """Write to the host's log what is not mere progress."""
    if event["kind"] not in ("heartbeat", "progress"):
        print(json.dumps(event), file=sys.stderr, flush=True)


def run(folder: Path) -> dict[str, str]:
    """What failed and why, by label."""
    task = records.load(Task, (folder / "task.json").read_bytes())
    failed: dict[str, str] = {}
    with Store(folder / "store.db") as store:
        for runtime in dict.fromkeys(one.runtime for one in task.candidates):
            entries = [_entry(one) for one in task.candidates if one.runtime == runtime]
            spec = replace(task.spec, runtime=runtime)
            with Session(spec, on_event=tell, nonce=task.nonce) as session:
                name = f"{task.name} {runtime}"
                found = campaign.run(session, store, entries, plan=task.plan, name=name)
            failed.update({one.label: f"{one.kind}: {one.reason}" for one in found.failures})
    return failed


def _entry(one: Candidate) -> Entry:
    request = EngineRequest(label=one.label, path=Path(one.path), precision="fp32")
    return Entry(label=one.label, prepare=lambda: [request])


def main() -> int:
    """Exit code: 0 where the campaign came to its end, whatever failed in it."""
    shorten()
    faulthandler.register(signal.SIGUSR1)  # says where it hangs, should it
    try:
        failed = run(Path(sys.argv[1]))
    except BoardfitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
