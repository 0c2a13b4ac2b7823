"""What a fault is injected into: a board, the network to it, and the host's process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness import records
from harness.records import Measurement
from harness.store import Store
from tests.boards.nano import Nano
from tests.boards.proxy import Proxy
from tests.boards.support import ROOT
from tests.faults.host import Task

# What the board's cache folder may hold once nothing runs any more; see the agent's jobs and blobs.
ALLOWED = re.compile(
    r"^(agents(/[0-9a-f]{64}(/device_agent(/.*)?)?)?"
    r"|blobs(/incoming|/[0-9a-f]{64})?"
    r"|jobs(/[0-9a-f]{32}"
    r"(/(request\.json|worker\.json|events\.jsonl|stderr\.txt|outcome\.json(\.damaged)?"
    r"|alive|running|fetched|telemetry\.jsonl))?)?)$"
)
# Longer than any wait of the host, see ``host.shorten``.
HANG_S = 60.0


def _owner(entry: os.DirEntry[str]) -> int | None:
    with contextlib.suppress(OSError):  # somebody else's, and gone by now
        return entry.stat(follow_symlinks=False).st_uid
    return None


class Host:
    """The process that runs a campaign; it can be killed and started again."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        with (
            (self.folder / "host.out").open("wb") as out,
            (self.folder / "host.log").open("ab") as log,
        ):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.host", str(self.folder)],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> bool:
        """SIGKILL; whether it was still running."""
        was_running = self.running()
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        return was_running

    def exit_code(self) -> int | None:
        """Exit code, None while it runs."""
        return None if self._process is None else self._process.poll()

    def hangs(self) -> None:
        """End it, after it has said in its log where it was."""
        if self._process is not None and self.running():
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(1.0)
            self.kill()

    def failures(self) -> dict[str, str]:
        """What failed in the run that came to its end, by label."""
        failed: dict[str, str] = json.loads((self.folder / "host.out").read_text() or "{}")
        return failed

    def noticed(self) -> dict[str, int]:
        """How often the host had to reconnect, and how often it had a job run again."""
        lines = (self.folder / "host.log").read_text().splitlines()
        return {
            kind: sum(f'"kind": "{kind}"' in line for line in lines)
            for kind in ("reconnect", "retry")
        }

    def log_tail(self) -> str:
        """The end of what the host said."""
        return (self.folder / "host.log").read_text()[-3000:]


@dataclass(slots=True)
class Scene:
    """One campaign under one fault; ``random`` decides when and how."""

    nano: Nano
    proxy: Proxy
    host: Host
    random: random.Random
    _before: set[str] = field(default_factory=set)

    def prepare(self, task: Task) -> None:
        """Everything of an earlier campaign is gone, the next one's task is written."""
        for path in (self.nano.user.home / ".cache", self.host.folder):
            if path.exists():
                shutil.rmtree(path)
        self.host.folder.mkdir(parents=True)
        (self.host.folder / "task.json").write_text(records.dump(task))
        # Numbers of users are used again: these may be of one who is gone.
        self._before = self._shared_files()

    def stored(self) -> int:
        """How many measurements the host has kept so far."""
        path = self.host.folder / "store.db"
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store,
        ):
            (count,) = store.execute(
                "SELECT count(*) FROM record WHERE kind = 'Measurement'"
            ).fetchone()
            return int(count)
        return 0

    def wait_for(self, count: int) -> bool:
        """Until that many measurements are kept; False where the host ends before."""
        deadline_s = time.monotonic() + HANG_S
        while time.monotonic() < deadline_s:
            if self.stored() >= count:
                return True
            if not self.host.running():
                return False
            time.sleep(0.02)
        return False

    def finish(self) -> int | None:
        """The host's exit code; None where it had to be ended, having kept nothing for a minute."""
        count, since_s = -1, time.monotonic()
        while (code := self.host.exit_code()) is None:
            now = self.stored()
            if now != count:
                count, since_s = now, time.monotonic()
            if time.monotonic() - since_s > HANG_S:
                print(f"  hangs: {self.nano.processes()}", file=sys.stderr)
                self.host.hangs()
                return None
            time.sleep(0.05)
        return code

    def pause(self, low_s: float, high_s: float) -> None:
        """Sleep for a random time."""
        time.sleep(self.random.uniform(low_s, high_s))

    def measurements(self) -> tuple[Measurement, ...]:
        """What the host's store holds in the end."""
        with Store(self.host.folder / "store.db") as store:
            return store.all(Measurement)

    def stray_files(self) -> list[str]:
        """Files on the board that the protocol does not say are kept."""
        cache = self.nano.cache
        found = [str(path.relative_to(cache)) for path in cache.rglob("*")]
        strays = [name for name in found if not ALLOWED.match(name)]
        home = [path.name for path in self.nano.user.home.iterdir() if path.name != ".cache"]
        shared = sorted(self._shared_files() - self._before)
        return strays + home + shared

    def _shared_files(self) -> set[str]:
        """What the board's user has in folders that are everybody's, where it is a user apart."""
        return {
            entry.path
            for parent in ("/tmp", "/var/tmp", "/dev/shm")
            if os.getuid() == 0 and Path(parent).is_dir()
            for entry in os.scandir(parent)
            if _owner(entry) == self.nano.user.uid
        }
