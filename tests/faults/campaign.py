"""Campaigns on the virtual Nano, once undisturbed and then under each fault; what they lost.

``python -m tests.faults.campaign --faults 200 --seed 1`` prints a table, with ``--json`` the same
as JSON: ``injected``, ``lost`` (candidates without their measurement, or with another one),
``duplicated`` (measurements too many), ``orphans`` (processes left on the board), and so on for
each fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from harness.boards.session import MeasurePlan
from tests.boards import nano as virtual
from tests.boards.nano import Nano
from tests.boards.proxy import Proxy
from tests.boards.support import float_network
from tests.faults.host import Candidate, Task
from tests.faults.inject import FAULTS, Fault
from tests.faults.scene import Host, Scene

# Two calls to warm up and six that are timed, 20 ms each: 0.2 s a candidate.
PLAN = MeasurePlan(warmup_s=0.0, rounds=3, block_s=0.0, block_min=2, drop=0)
SLEEP_S = 0.02
# An upload takes as long as on Wi-Fi: 20 ms for this many bytes.
PAD_BYTES = 100_000
RATE_BYTES_S, DELAY_S = 10e6, 0.003
# A campaign that the host gives up, because it cannot reach the board, is run again.
MAX_RUNS = 4
# So many of the candidates are real networks.
REAL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one fault did to one campaign.

    ``reconnects`` and ``retries`` are what the host did about it. ``runs`` is how often it was
    started to complete the campaign, its own death not counted; ``failed`` how many candidates it
    named; ``unnamed`` how many of those that had to fail did not, or not for the right reason;
    ``files`` counts what was left in the board's cache.
    """

    fault: str
    injected: int
    lost: int
    duplicated: int
    orphans: int
    files: int
    failed: int
    unnamed: int
    reconnects: int
    retries: int
    runs: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The candidates' files: simulated engines and real networks."""

    fake: tuple[Candidate, ...]
    real: tuple[Candidate, ...]
    folder: Path

    def all(self) -> tuple[Candidate, ...]:
        """All of them, in the order in which they are measured."""
        return self.fake + self.real


def make_files(folder: Path, count: int, real: int) -> Files:
    """``count`` candidates, of which ``real`` run on onnxruntime."""
    folder.mkdir(parents=True)
    fake = []
    for number in range(count - real):
        settings = {"latency_s": 1e-3 * (1 + number / 100), "sleep_s": SLEEP_S}
        fake.append(_fake(folder, f"candidate-{number:02}", settings))
    networks = []
    for number in range(real):
        path = folder / f"network-{number}.onnx"
        float_network(path, seed=number)
        networks.append(Candidate(label=path.name, path=str(path), runtime="onnxruntime"))
    return Files(fake=tuple(fake), real=tuple(networks), folder=folder)


def _fake(folder: Path, label: str, settings: dict[str, object]) -> Candidate:
    pad = random.Random(label).randbytes(PAD_BYTES // 2).hex()
    path = folder / label
    path.write_text(json.dumps({**settings, "name": label, "pad": pad}))
    return Candidate(label=label, path=str(path), runtime="fake")


class Campaigns:
    """Runs campaigns one after the other on one board, against the undisturbed one."""

    def __init__(self, nano: Nano, proxy: Proxy, folder: Path, *, files: Files, seed: int) -> None:
        host = Host(
            folder / "host",
            {
                "BOARDFIT_SSH_CONFIG": os.environ["BOARDFIT_SSH_CONFIG"],
                "BOARDFIT_CONFIG_DIR": os.environ["BOARDFIT_CONFIG_DIR"],
            },
        )
        self._random = random.Random(seed)
        self._scene = Scene(nano=nano, proxy=proxy, host=host, random=self._random)
        self._files = files
        self._reference: dict[str, tuple[float, ...]] = {}

    def undisturbed(self) -> Row:
        """The campaign that all others are compared with; nothing may be missing from it."""
        row = self._run(Fault(name="undisturbed"), 0)
        self._reference = {
            one.label: one.samples_s
            for one in self._scene.measurements()
            if one.runtime == "fake"  # simulated times are the same every time
        }
        return row

    def under(self, fault: Fault, strikes: int) -> Row:
        """One campaign under a fault that strikes so many times."""
        return self._run(fault, strikes)

    def _run(self, fault: Fault, strikes: int) -> Row:
        start_s = time.monotonic()
        scene = self._scene
        special = self._special(fault, strikes)
        candidates = [special.get(one.label, one) for one in self._files.all()]
        spec = replace(
            scene.nano.spec,
            python=fault.python(scene),
            runtime="fake",
            job_timeout_s=fault.job_timeout_s,
        )
        name = f"{fault.name} {self._random.randrange(1 << 32):08x}"
        task = Task(name=name, nonce=name, spec=spec, plan=PLAN, candidates=tuple(candidates))
        scene.prepare(task)
        must_fail = set(special) if fault.named else set()
        with fault.around(scene):
            scene.host.start()
            hits = len(special)
            if fault.strike is not None:
                hits = self._strike(fault, strikes, len(candidates))
            failed, runs = self._finish(must_fail)
            orphans = scene.nano.leftovers()
            files = scene.stray_files()
            self._forget(fault, orphans, files)
        unnamed = [
            label
            for label in must_fail
            if fault.named and not re.search(fault.named, failed.get(label, ""))
        ]
        noticed = scene.host.noticed()
        lost, duplicated = self._judge({one.label for one in candidates} - must_fail)
        return Row(
            fault=fault.name,
            injected=hits,
            lost=lost,
            duplicated=duplicated,
            orphans=len(orphans),
            files=len(files),
            failed=len(failed),
            unnamed=len(unnamed),
            reconnects=noticed["reconnect"],
            retries=noticed["retry"],
            runs=runs,
            wall_s=round(time.monotonic() - start_s, 1),
        )

    def _special(self, fault: Fault, count: int) -> dict[str, Candidate]:
        """The candidates that go wrong by themselves, by the label of those they stand for."""
        if fault.settings is None:
            return {}
        chosen = self._random.sample(self._files.fake, min(count, len(self._files.fake)))
        folder = self._files.folder / re.sub(r"\W", "-", fault.name)
        folder.mkdir(exist_ok=True)
        found = {}
        for one in chosen:
            settings = json.loads(Path(one.path).read_text())
            found[one.label] = _fake(folder, one.label, {**settings, **fault.settings})
        return found

    def _strike(self, fault: Fault, strikes: int, candidates: int) -> int:
        """How often the fault has hit, at random moments of the campaign."""
        assert fault.strike is not None
        hits = 0
        # Behind the first measurement: a board that cannot be used at all is told at once.
        possible = range(1, candidates)
        moments = sorted(self._random.sample(possible, min(strikes, len(possible))))
        for moment in moments:
            if not self._scene.wait_for(moment):
                break
            self._scene.pause(0.0, 0.3)
            if not self._scene.host.running():
                break
            print(f"  {fault.name} after {self._scene.stored()} of {candidates}", file=sys.stderr)
            hits += fault.strike(self._scene)
        return hits

    def _finish(self, must_fail: set[str]) -> tuple[dict[str, str], int]:
        """Failures, and how many runs it took until there was nothing left to measure."""
        failed: dict[str, str] = {}
        for run in range(1, MAX_RUNS + 1):
            code = self._scene.finish()
            if code == 0:
                failed = self._scene.host.failures()
                break
            print(f"  run {run} ended with {code}: {self._scene.host.log_tail()}", file=sys.stderr)
            if run < MAX_RUNS:
                self._scene.host.start()
        for label in sorted(set(failed) - must_fail):
            print(f"  failed: {label}: {failed[label][:500]}", file=sys.stderr)
        return failed, run

    def _forget(self, fault: Fault, orphans: Sequence[object], files: Sequence[str]) -> None:
        """Tell what was left on the board, and end it, or the next campaign would count it."""
        for left in (*orphans, *files):
            print(f"  {fault.name} left {left}", file=sys.stderr)
        virtual.kill_all(self._scene.nano.user)
        for entry in self._scene.nano.hooks.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _judge(self, expected: set[str]) -> tuple[int, int]:
        """How many measurements are lost (or others than they should be), and how many too many."""
        found = self._scene.measurements()
        counted = Counter(one.label for one in found)
        lost = expected - set(counted)
        changed = {
            one.label
            for one in found
            if one.runtime == "fake"
            and one.samples_s != self._reference.get(one.label, one.samples_s)
        }
        for label in sorted(lost | changed):
            print(f"  lost or changed: {label}", file=sys.stderr)
        duplicated = sum(counted.values()) - len(counted) + len(set(counted) - expected)
        return len(lost | changed), duplicated


@contextlib.contextmanager
def board(
    makers: virtual.Makers, folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Nano, Proxy]]:
    """A virtual Nano behind a proxy, in this process's settings for as long as ``patch`` holds."""
    nano = Nano(makers)
    try:
        patch.setenv("BOARDFIT_SSH_CONFIG", str(nano.ssh_config))
        patch.setenv("BOARDFIT_CONFIG_DIR", str(folder / "settings"))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        with Proxy(nano.sshd.port, rate_bytes_s=RATE_BYTES_S, delay_s=DELAY_S) as proxy:
            nano.behind(proxy.port)
            yield nano, proxy
    finally:
        nano.close()


def run_all(
    campaigns: Campaigns, faults: Sequence[Fault], *, total: int, per_campaign: int
) -> Iterator[Row]:
    """One row a campaign; every fault as often as any other, ``total`` times or a few more."""
    yield campaigns.undisturbed()
    strikes = -(-total // len(faults))
    for fault in faults:
        left = strikes
        while left > 0:
            row = campaigns.under(fault, min(left, per_campaign))
            yield row
            left -= max(row.injected, 1)


def totals(rows: Sequence[Row]) -> dict[str, object]:
    """The rows of each fault summed up, and the sums over all."""
    by_fault: dict[str, Row] = {}
    for row in rows:
        first = by_fault.get(row.fault)
        if first is not None:
            sums = {
                name: getattr(first, name) + value
                for name, value in asdict(row).items()
                if name != "fault"
            }
            row = replace(row, **sums)
        by_fault[row.fault] = row
    keys = [key for key in asdict(rows[0]) if key not in ("fault", "wall_s")]
    found: dict[str, object] = {
        key: sum(getattr(row, key) for row in by_fault.values()) for key in keys
    }
    return {**found, "faults": [asdict(row) for row in by_fault.values()]}


def table(summary: dict[str, object]) -> str:
    """The faults as text, a line each."""
    rows = summary["faults"]
    assert isinstance(rows, list)
    keys = [key for key in rows[0] if key != "fault"]
    lines = [f"{'fault':22}" + "".join(f"{key:>11}" for key in keys)]
    lines += [f"{row['fault']:22}" + "".join(f"{row[key]:11}" for key in keys) for row in rows]
    return "\n".join(lines)


def _rows(arguments: argparse.Namespace, faults: Sequence[Fault]) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boardfit-faults-")))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        makers = stack.enter_context(virtual.makers())
        nano, proxy = stack.enter_context(board(makers, folder, patch))
        real = REAL if makers.python.runtime else 0
        files = make_files(folder / "files", arguments.candidates, real)
        campaigns = Campaigns(nano, proxy, folder, files=files, seed=arguments.seed)
        yield from run_all(
            campaigns, faults, total=arguments.faults, per_campaign=arguments.per_campaign
        )


def main() -> int:
    """Exit code: 0 where nothing was lost, duplicated or left over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many to inject at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--per-campaign", type=int, default=12)
    parser.add_argument("--only", action="append", help="the name of a fault; may be repeated")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    faults = [
        fault
        for fault in FAULTS
        if (not arguments.only or fault.name in arguments.only)
        and (os.getuid() == 0 or not fault.needs_root)
    ]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    print(f"seed {arguments.seed}", file=sys.stderr)
    start_s = time.monotonic()
    rows = []
    try:
        for row in _rows(arguments, faults):
            print(json.dumps(asdict(row)), file=sys.stderr)
            rows.append(row)
    except pytest.skip.Exception as skipped:
        print(skipped.msg, file=sys.stderr)
        return 1
    summary = {
        "seed": arguments.seed,
        "wall_s": round(time.monotonic() - start_s, 1),
        **totals(rows),
    }
    print(json.dumps(summary, indent=1) if arguments.json else table(summary))
    bad = ("lost", "duplicated", "orphans", "files", "unnamed")
    return 1 if any(summary[key] for key in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
