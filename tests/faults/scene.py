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
from dataclasses import dataclass
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
CAMPAIGN_TIMEOUT_S = 300.0


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

    def wait(self, timeout_s: float) -> int | None:
        """Exit code, or None if it had to be killed because it went on for longer."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def failures(self) -> dict[str, str]:
        """What failed in the run that came to its end, by label."""
        failed: dict[str, str] = json.loads((self.folder / "host.out").read_text() or "{}")
        return failed

    def log_tail(self) -> str:
        """The end of what the host said."""
        return (self.folder / "host.log").read_text()[-2000:]


@dataclass(slots=True)
class Scene:
    """One campaign under one fault; ``random`` decides when and how."""

    nano: Nano
    proxy: Proxy
    host: Host
    random: random.Random

    def prepare(self, task: Task) -> None:
        """Everything of an earlier campaign is gone, the next one's task is written."""
        for path in (self.nano.user.home / ".cache", self.host.folder):
            if path.exists():
                shutil.rmtree(path)
        self.host.folder.mkdir(parents=True)
        (self.host.folder / "task.json").write_text(records.dump(task))

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
        deadline_s = time.monotonic() + CAMPAIGN_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self.stored() >= count:
                return True
            if not self.host.running():
                return False
            time.sleep(0.02)
        return False

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
        shared = [
            entry.path
            for parent in ("/tmp", "/var/tmp", "/dev/shm")
            if Path(parent).is_dir()
            for entry in os.scandir(parent)
            if entry.stat(follow_symlinks=False).st_uid == self.nano.user.uid
        ]
        return strays + home + (shared if os.getuid() == 0 else [])
