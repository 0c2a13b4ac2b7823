"""How well the agent does its work: throughput, start-up, busy board, honest medians.

    python -m tests.benchmarks.boards [--json] [--only KEY ...]

The board is the virtual Nano: a real OpenSSH server on loopback, an unprivileged user, CPython 3.6
(where there is one). Everything is a ratio within one run, measured in turns, because the machines
are noisy. Run it alone.

| key | what | target |
|---|---|---|
| ``upload_vs_scp`` | throughput of a 100 MB upload, hashed on both ends, over scp's | 0.9 |
| ``upload_vs_scp_slow_link`` | the same through 10 MB/s and 20 ms each way | 0.95 |
| ``agent_start_s`` | connect and start an agent that is on the board already | 0.5 |
| ``busy_share`` | share of a campaign of 50 candidates in which the board measures | 0.9 |
| ``median_vs_bare_loop`` | the agent's median against a bare loop's, worst network, % | 2 |
| ``interval_honest_of_100`` | intervals that hold the grand median, of 100 repetitions | 90 |
| ``interval_half_width`` | the median half-width of those intervals, % | 2 |
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import campaign
from harness.boards import deploy, ssh
from harness.boards.session import PRESETS, EngineRequest, Session
from harness.boards.transport import open_transport
from harness.store import Store
from tests.benchmarks import measuring
from tests.boards import nano as boards
from tests.boards.proxy import Proxy

UPLOAD_BYTES = 100_000_000
SLOW_LINK = {"rate_bytes_s": 10e6, "delay_s": 0.02}
TURNS = 5
SLOW_TURNS = 2
STARTS = 15
CANDIDATES = 50
# A network of 20 ms on a Nano, its file, and what the host needs to make the next one.
LATENCY_S = 0.02
FILE_BYTES = 4_000_000
PREPARE_S = 1.0
TARGETS = {
    "upload_vs_scp": ("at least", 0.9),
    "upload_vs_scp_slow_link": ("at least", 0.95),
    "agent_start_s": ("under", 0.5),
    "busy_share": ("at least", 0.9),
    "median_vs_bare_loop": ("at most", 2.0),
    "interval_honest_of_100": ("at least", 90),
    "interval_half_width": ("at most", 2.0),
}


@contextlib.contextmanager
def virtual_nano(folder: Path) -> Iterator[boards.Nano]:
    """The board, known to this process's SSH settings."""
    with boards.makers() as makers:
        board = boards.Nano(makers)
        os.environ["BOARDFIT_SSH_CONFIG"] = str(board.ssh_config)
        os.environ["BOARDFIT_CONFIG_DIR"] = str(folder / "config")
        ssh.trust(board.spec)
        try:
            yield board
        finally:
            board.close()


def _scp(board: boards.Nano, source: Path) -> float:
    """Seconds that scp needs for a file, with the same settings."""
    options = ["-q", "-F", str(board.ssh_config), "-o", "StrictHostKeyChecking=no"]
    start_s = time.perf_counter()
    subprocess.run(["scp", *options, str(source), "board:copied"], check=True)
    return time.perf_counter() - start_s


def _put(board: boards.Nano, source: Path) -> float:
    """Seconds that the session needs for it: hash, send, verify, rename; connected as scp is not.

    scp connects within its time, so connecting is added to ours.
    """
    start_s = time.perf_counter()
    with contextlib.closing(open_transport(board.spec)):
        connect_s = time.perf_counter() - start_s
    with Session(board.spec_of("fake")) as session:
        start_s = time.perf_counter()
        session.put(source)
        return connect_s + time.perf_counter() - start_s


def upload(board: boards.Nano, folder: Path, *, turns: int) -> dict[str, Any]:
    """Throughput over scp's, by the medians of alternating turns."""
    ours, theirs = [], []
    for turn in range(turns):
        source = folder / f"upload{turn}"
        source.write_bytes(os.urandom(UPLOAD_BYTES))
        theirs.append(_scp(board, source))
        ours.append(_put(board, source))
        source.unlink()
    return {
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "scp_s": theirs,
        "ours_s": ours,
        "python": board.python.version,
    }


def slow_upload(board: boards.Nano, folder: Path) -> dict[str, Any]:
    """The same over a link of 10 MB/s and 20 ms."""
    with Proxy(board.sshd.port, **SLOW_LINK) as proxy:
        board.behind(proxy.port)
        try:
            return upload(board, folder, turns=SLOW_TURNS)
        finally:
            board.behind(board.sshd.port)


def starts(board: boards.Nano) -> list[float]:
    """Seconds from nothing to an agent that answers, where the board has it already."""
    found = []
    for _ in range(STARTS + 1):
        start_s = time.perf_counter()
        with contextlib.closing(open_transport(board.spec)) as transport:
            agent = deploy.launch(transport, board.spec)
            agent.connection.call("conditions", {}, timeout_s=10.0)
            found.append(time.perf_counter() - start_s)
            agent.connection.close()
    return found[1:]  # the first brought it there


def busy(board: boards.Nano, folder: Path) -> campaign.CampaignResult:
    """A campaign of simulated candidates that take the time real ones would."""

    def entry(number: int) -> campaign.Entry:
        def prepare() -> list[EngineRequest]:
            time.sleep(PREPARE_S)
            content = {"latency_s": LATENCY_S, "sleep_s": LATENCY_S, "number": number}
            path = folder / f"candidate{number}"
            path.write_text(json.dumps(content).ljust(FILE_BYTES))
            return [baseline, EngineRequest(label=f"c{number}", path=path, precision="fp32")]

        return campaign.Entry(label=f"c{number}", prepare=prepare)

    path = folder / "baseline"
    path.write_text(json.dumps({"latency_s": LATENCY_S, "sleep_s": LATENCY_S}))
    baseline = EngineRequest(label="baseline", path=path, precision="fp32")
    with Session(board.spec_of("fake")) as session, Store(folder / "busy.db") as store:
        entries = [entry(number) for number in range(CANDIDATES)]
        found = campaign.run(session, store, entries, plan=PRESETS["standard"], name="busy")
    assert len(found.measured) == CANDIDATES, found.failures
    return found


def run(only: list[str]) -> dict[str, Any]:
    """The benchmark's keys and, under ``details``, what they were made from."""
    found: dict[str, Any] = {"details": {}}
    with tempfile.TemporaryDirectory(prefix="boardfit-benchmark-") as name:
        folder = Path(name)
        os.environ.setdefault("BOARDFIT_LEASE_DIR", name)
        with virtual_nano(folder) as board:
            steps: dict[str, Callable[[], Any]] = {
                "agent_start_s": lambda: starts(board),
                "upload_vs_scp": lambda: upload(board, folder, turns=TURNS),
                "upload_vs_scp_slow_link": lambda: slow_upload(board, folder),
                "busy_share": lambda: busy(board, folder),
            }
            for key, step in steps.items():
                if key in only:
                    _note(found, key, step())
        if "median_vs_bare_loop" in only:
            _note(found, "median_vs_bare_loop", measuring.bare_loop())
        if {"interval_honest_of_100", "interval_half_width"} & set(only):
            honesty = measuring.interval_honesty()
            found["details"]["interval_honest_of_100"] = honesty
            found["interval_honest_of_100"] = honesty["interval_honest_of_100"]
            found["interval_half_width"] = honesty["interval_half_width"]
    return found


def _note(found: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, list):
        found[key] = statistics.median(value)
    elif isinstance(value, campaign.CampaignResult):
        found[key] = value.busy_share
        value = {"busy_s": value.busy_s, "wall_s": value.wall_s, "n": len(value.measured)}
    else:
        found[key] = value["ratio"] if "ratio" in value else value[key]
    found["details"][key] = value


def main() -> None:
    """Run, print, and say what misses its target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = parser.parse_args()
    found = run(options.only)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for key in options.only:
        word, target = TARGETS[key]
        value = found[key]
        low = word == "at least"
        met = value >= target if low else value <= target
        print(f"{key:26} {value:8.3f}   {word} {target}   {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
