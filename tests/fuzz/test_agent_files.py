"""Files on the board that a disk has damaged or a stranger has made: an error or a state, no end.

Job folders, sealed results, the lease's file, and links in the cache that lead out of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_agent import board, cleaning, files, lease, undo
from harness.boards import wire
from tests.contract.agent import Frame, RawAgent
from tests.contract.conftest import StartAgent, agent, start_agent  # noqa: F401
from tests.fuzz import properties
from tests.fuzz.properties import JOB_ID, REQUESTS, SHA256, request
from tests.fuzz.support import NAMES, deep, fuzzed, line, mutated, values

ASKED = ("status", "wait", "result", "cancel", "submit", "lease", "clean", "status")


def sealed(content: bytes) -> bytes:
    """The file that says with the right hash what it should not say."""
    head = files.SEAL % hashlib.sha256(content).hexdigest()
    return head.encode() + content + b"}"


def _born(**changes: object) -> Frame:
    submit = REQUESTS["submit"]
    return {
        **{name: submit[name] for name in ("kind", "params", "owner", "timeout_s")},
        "boot_id": files.boot_id(),
        "at_s": time.monotonic(),
        **changes,
    }


CONTENT = {
    "request.json": mutated(_born()).map(line),
    "worker.json": mutated({"process_group": 1 << 22}).map(line),
    "events.jsonl": st.lists(
        mutated({"kind": "progress", "what": "w", "done": 1, "total": 2}).map(line), max_size=3
    ).map(b"\n".join),
    "outcome.json": mutated({"state": "done", "kind": "measure", "result": {}})
    .map(line)
    .map(sealed),
    "running": values().map(line),
    "fetched": st.just(b""),
    "stderr.txt": st.binary(max_size=40),
}
FOLDERS = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(content, content, values().map(line), st.binary(max_size=40))
        for name, content in CONTENT.items()
    },
)


def _job(cache: Path, content: dict[str, bytes]) -> Path:
    if cache.exists():
        shutil.rmtree(cache)
    folder = cache / "jobs" / JOB_ID
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@fuzzed(80)
@given(FOLDERS)
@example({"request.json": b"[]"})
@example({"request.json": deep()})
@example({"request.json": line(_born(params=3))})
@example({"request.json": line(_born(at_s="soon"))})
@example({"request.json": line(_born(at_s=1e300))})
@example({"request.json": line(_born(params={"engines": [[1]], "network": {}}))})
@example({"request.json": line(_born()), "worker.json": b'{"process_group": 0}'})
@example({"worker.json": b"7", "outcome.json": sealed(b"[]")})
@example({"outcome.json": sealed(b'{"state": []}')})
@example({"outcome.json": sealed(deep())})
@example({"outcome.json": sealed(b'{"state": "done", "result": {"x": 1e999}}')})
@example({"request.json": line(_born()), "events.jsonl": b'[]\n{"kind": "gossip"}\n\xff'})
@example({"request.json": line(_born()), "events.jsonl": b'{"kind": "progress", "done": NaN}\n'})
def test_agent_answers_for_a_job_whose_files_hold_anything(content: dict[str, bytes]) -> None:
    cache = properties._home() / "cache"
    _job(cache, content)
    cleaning.sweep(str(cache), "0" * 64)  # as the agent does when it starts
    replies = properties.answers(b"".join(request(one) + b"\n" for one in ASKED), cache)
    final = [reply for reply in replies if "event" not in reply]
    assert len(final) == len(ASKED)
    for method, reply in zip(ASKED, final, strict=True):
        if "exception" in reply:
            assert reply["exception"]["type"] in ("UnknownJob", "Damaged"), reply
        elif "result" in reply and method != "result":
            wire.validate(f"{method}.result", reply["result"])
    # A job that nobody runs is over, or will be as soon as its worker could have started.
    assert cleaning.usage(str(cache))["jobs"] in (0, 1)


@fuzzed(60)
@given(st.one_of(st.binary(max_size=200), values().map(line).map(sealed)))
def test_a_sealed_file_is_its_content_none_or_damaged(data: bytes) -> None:
    path = properties._home() / "sealed.json"
    path.write_bytes(data)
    try:
        found = files.read_sealed(str(path))
    except files.Damaged:
        return
    finally:
        path.unlink()
    assert sealed(json.dumps(found).encode())  # whatever it is, it is JSON


HOLDER = {
    "job_id": JOB_ID,
    "kind": "measure",
    "owner": "me@here",
    "since_s": 1.0,
    "expected_s": 5.0,
    "boot_id": files.boot_id(),
}


@fuzzed(80)
@given(st.one_of(mutated(HOLDER).map(line), st.binary(max_size=100)))
@example(deep(2000))
@example(line({**HOLDER, "since_s": "long ago"}))
@example(line({**HOLDER, "owner": "\x1b[2J"}))
@example(line({**HOLDER, "expected_s": 10**400}))
def test_whatever_stands_in_the_leases_file_somebody_holds_it(data: bytes) -> None:
    # Every user of the board may write there.
    path = properties._home() / "lease"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDWR)
    try:
        found = lease._read(descriptor)
        wire.validate("holder", found)
        assert lease.describe(found).isprintable()
    finally:
        os.close(descriptor)
        path.unlink()


RECORD = {
    "version": 1,
    "boot_id": "b",
    "power_mode": 1,
    "clocks_file": None,
    "files": {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2",
        "sys/devices/pwm-fan/target_pwm": "9",
    },
}


def _board(root: Path) -> board.Board:
    """A board whose programs say nothing and whose knobs are files below ``root``."""
    for name, text in {**RECORD["files"], "proc/sys/kernel/random/boot_id": "b"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return board.Board(str(root), lambda argv, text="": (None, argv[0] + text), uid=1)


@fuzzed(80)
@given(st.one_of(mutated(RECORD).map(line), values().map(line), st.binary(max_size=40)))
@example(line({**RECORD, "files": {"../canary": "dead"}}))
@example(line({**RECORD, "files": {"sys/devices/../../../canary": "dead"}}))
@example(line({**RECORD, "files": {"/etc/canary": "dead"}}))
@example(line({**RECORD, "files": {"sys/devices/x/min_freq": "1"}}))
@example(line({**RECORD, "power_mode": "MAXN; touch canary"}))
@example(line({**RECORD, "clocks_file": "../canary"}))
@example(line({"version": 1}))
def test_a_record_of_settings_puts_back_settings_and_writes_to_nothing_else(data: bytes) -> None:
    # The agent puts back what the record says as soon as it starts.
    home = properties._home() / "settings"
    cache, canary = home / "cache", home / "canary"
    if home.exists():
        shutil.rmtree(home)
    cache.mkdir(parents=True)
    canary.write_bytes(b"alive")
    (cache / undo.RECORD).write_bytes(data)
    knobs = _board(home / "board")
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file() and p.parent != cache}
    problems = undo.restore(str(cache), knobs)
    assert all(isinstance(problem, str) for problem in problems)
    after = {p: p.read_bytes() for p in home.rglob("*") if p.is_file() and p.parent != cache}
    assert set(after) == set(before)
    assert all(
        after[p] == before[p] or str(p.relative_to(home / "board")) in RECORD["files"]
        for p in before
    )


# --- the real agent -----------------------------------------------------------------------------


def test_agent_starts_over_damaged_jobs_and_pipes_that_never_end(
    start_agent: StartAgent,  # noqa: F811
    tmp_path: Path,
) -> None:
    damaged = {
        "1": {"request.json": b"[]"},
        "2": {"request.json": deep(), "worker.json": deep(), "outcome.json": deep()},
        "3": {"request.json": line(_born(params="x", at_s=0.0)), "outcome.json": sealed(b"null")},
        "4": {"request.json": b"\xff\0", "events.jsonl": b"\xff\0"},
    }
    for digit, content in damaged.items():
        folder = tmp_path / "cache" / "jobs" / (digit * 32)
        folder.mkdir(parents=True)
        for name, data in content.items():
            (folder / name).write_bytes(data)
    pipes = tmp_path / "cache" / "jobs" / ("5" * 32)
    pipes.mkdir()
    for name in ("request.json", "worker.json", "outcome.json", "events.jsonl", "stderr.txt"):
        os.mkfifo(pipes / name)
    directories = tmp_path / "cache" / "jobs" / ("6" * 32)
    for name in ("request.json", "worker.json", "outcome.json", "events.jsonl", "alive"):
        (directories / name).mkdir(parents=True)
    (tmp_path / "cache" / undo.RECORD).write_text('{"version": 1}')
    running = start_agent()
    for digit in "123456":
        frame, _ = running.call("status", job_id=digit * 32)
        assert "exception" not in frame, frame
        assert frame["result"]["state"] == "died", frame
        frame, _ = running.call("result", job_id=digit * 32)
        assert frame["result"]["state"] == "died", frame
    freed = running.result("clean", keep_s=0.0, unfetched=True)
    assert (freed["jobs"], freed["removed"]["jobs"]) == (0, 6)


def test_links_in_the_cache_lead_nowhere(agent: RawAgent, tmp_path: Path) -> None:  # noqa: F811
    outside = tmp_path / "outside"
    (outside / "job").mkdir(parents=True)
    precious = {"notes.999999999": b"mine", "job/request.json": b"{}", "job/draft.999999999": b"my"}
    for name, data in precious.items():
        (outside / name).write_bytes(data)
    os.utime(outside / "notes.999999999", (1.0, 1.0))
    for folder in ("jobs", "blobs/incoming"):
        (agent.cache / folder).mkdir(parents=True, exist_ok=True)
    (agent.cache / "jobs" / JOB_ID).symlink_to(outside / "job")
    (agent.cache / "blobs" / SHA256).symlink_to(outside / "notes.999999999")
    (agent.cache / "blobs" / "incoming" / SHA256).symlink_to(outside / "notes.999999999")
    (agent.cache / "blobs" / "dangling").symlink_to(outside / "gone")

    for method in ("status", "result", "cancel", "submit"):
        frame, _ = agent.call(method, **REQUESTS[method])
        assert "is a link" in frame["exception"]["message"], frame
    assert not agent.result("blob_has", sha256=SHA256)["present"]
    frame, _ = agent.call("blob_commit", sha256=SHA256, arrived=SHA256)
    assert frame["error"]["code"] == "blob"
    begun = agent.result("blob_begin", sha256=SHA256, size_bytes=1, limit_bytes=1 << 30)
    assert begun["offset"] == 0 and not Path(begun["path"]).is_symlink()
    agent.result("clean", keep_s=0.0, unfetched=True)
    assert agent.close() == 0

    found = {str(p.relative_to(outside)): p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    assert found == precious
    assert (outside / "notes.999999999").stat().st_mtime == 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_no_name_leads_out_of_the_cache(tmp_path: Path, name: str) -> None:
    asked = [
        line({"id": 1, "method": method, "params": {**REQUESTS[method], key: name}}) + b"\n"
        for method, key in (
            ("blob_has", "sha256"),
            ("blob_begin", "sha256"),
            ("blob_commit", "sha256"),
            ("status", "job_id"),
            ("submit", "job_id"),
            ("submit", "kind"),
            ("probe", "runtime"),
        )
    ]
    replies = properties.answers(b"".join(asked), tmp_path / "cache")
    assert {reply["error"]["code"] for reply in replies} == {"bad_params"}
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert list((tmp_path / "cache").iterdir()) == []
