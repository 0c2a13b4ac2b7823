from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.contract.agent import PLAN, RawAgent
from tests.contract.conftest import StartAgent

JOB = "c0" * 16
CONTENT = b"0123456789" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PLACE = {"sha256": SHA256, "size_bytes": len(CONTENT), "limit_bytes": 1 << 30}


def test_upload_goes_on_where_it_was_cut(start_agent: StartAgent) -> None:
    first = start_agent()
    begun = first.result("blob_begin", **PLACE)
    assert begun["offset"] == 0
    Path(begun["path"]).write_bytes(CONTENT[:4321])
    first.kill()
    second = start_agent()
    assert second.result("blob_begin", **PLACE) == {"path": begun["path"], "offset": 4321}
    with Path(begun["path"]).open("r+b") as stream:
        stream.seek(4321)
        stream.write(CONTENT[4321:])
    assert second.result("blob_commit", sha256=SHA256, arrived=None) == {"size_bytes": 10_000}


def test_upload_with_too_many_bytes_starts_anew(agent: RawAgent) -> None:
    path = Path(agent.result("blob_begin", **PLACE)["path"])
    path.write_bytes(CONTENT + b"more")
    assert agent.result("blob_begin", **PLACE)["offset"] == 0
    assert path.stat().st_size == 0


def test_upload_that_another_host_has_finished_is_committed_too(agent: RawAgent) -> None:
    agent.put(CONTENT)
    assert agent.result("blob_commit", sha256=SHA256, arrived=None) == {"size_bytes": 10_000}


def test_cache_stays_under_its_limit_and_the_oldest_goes_first(agent: RawAgent) -> None:
    old, young = agent.put(b"o" * 600), agent.put(b"y" * 600)
    os.utime(agent.cache / "blobs" / old, (1e9, 1e9))
    assert agent.result("blob_has", sha256=old)["present"]  # asking for it makes it young again
    os.utime(agent.cache / "blobs" / young, (1e9, 1e9))
    # 600 + 600 + 600 bytes are more than 1500: one has to go.
    place = {"sha256": "a" * 64, "size_bytes": 600, "limit_bytes": 1500}
    agent.result("blob_begin", **place)
    assert not agent.result("blob_has", sha256=young)["present"]
    assert agent.result("blob_has", sha256=old)["present"]


def test_blob_that_a_waiting_job_needs_stays_whatever_the_limit(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"sleep_s": 0.3})
    (needed,) = (p.name for p in (agent.cache / "blobs").iterdir() if p.is_file())
    place = {"sha256": "a" * 64, "size_bytes": 600, "limit_bytes": 1}
    agent.result("blob_begin", **place)
    assert agent.result("blob_has", sha256=needed)["present"]
    agent.result("cancel", job_id=JOB)


def _dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        return process.pid


def test_what_the_dead_left_behind_is_removed_at_the_next_start(start_agent: StartAgent) -> None:
    first = start_agent()
    first.submit_fake(JOB, {"latency_s": 0.001})
    first.outcome(JOB)
    jobs, dead = first.cache / "jobs", _dead_process()
    leftovers = [jobs / f".new-abc.{dead}", jobs / JOB / f"outcome.json.{dead}.new"]
    kept = [jobs / f".new-abc.{os.getpid()}"]
    for path in leftovers + kept:
        path.mkdir()
    first.kill()
    start_agent()
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in kept)


def test_results_that_nobody_has_fetched_are_not_cleaned_away(agent: RawAgent) -> None:
    agent.submit_fake(JOB, {"latency_s": 0.001})
    agent.result("wait", job_id=JOB, after=0, timeout_s=20.0)
    done = agent.result("clean", keep_s=0.0, unfetched=False)
    assert (done["removed"]["jobs"], done["jobs"]) == (0, 1)
    agent.result("result", job_id=JOB)
    done = agent.result("clean", keep_s=0.0, unfetched=False)
    assert (done["removed"]["jobs"], done["jobs"]) == (1, 0)
    assert done["blob_bytes"] == 0


def test_only_the_latest_jobs_are_kept_for_their_hosts_to_ask_again(
    start_agent: StartAgent,
) -> None:
    agent = start_agent()
    agent.submit_fake(JOB, {"latency_s": 0.001})
    agent.outcome(JOB)
    done = agent.cache / "jobs" / JOB
    now_s = time.time()
    for number in range(201):
        copy = done.with_name(f"{number:032x}")
        shutil.copytree(done, copy)
        os.utime(copy, (now_s - 60.0 - number, now_s - 60.0 - number))
    agent.kill()
    start_agent()
    # 202 jobs were there, 200 stay: the two that are oldest go.
    gone = {f"{number:032x}" for number in (199, 200)}
    assert len(list(done.parent.iterdir())) == 200
    assert not gone & {path.name for path in done.parent.iterdir()}


@pytest.mark.parametrize("content", [b"", b"{", b'{"sha256": "%s", "content": {"state": "done"}}'])
def test_damaged_result_is_told_as_a_death_and_kept_aside(agent: RawAgent, content: bytes) -> None:
    agent.submit_fake(JOB, {"latency_s": 0.001})
    whole = agent.outcome(JOB)
    assert whole["state"] == "done"
    path = agent.cache / "jobs" / JOB / "outcome.json"
    path.write_bytes(content.replace(b"%s", b"0" * 64))
    assert agent.result("status", job_id=JOB)["state"] == "died"
    assert path.with_name("outcome.json.damaged").exists()


def test_clock_that_was_set_back_does_not_make_a_lost_job_wait_for_ever(
    start_agent: StartAgent,
) -> None:
    agent = start_agent()
    agent.submit_fake(JOB, {"latency_s": 0.001})
    agent.outcome(JOB)
    folder = agent.cache / "jobs" / JOB
    request = json.loads((folder / "request.json").read_text())
    for name in ("outcome.json", "worker.json", "running"):
        (folder / name).unlink()
    # An agent died before it started the worker, 31 s ago by the clock that nobody sets.
    request["at_s"] -= 31.0
    (folder / "request.json").write_text(json.dumps(request))
    os.utime(folder / "request.json", (4e9, 4e9))
    assert start_agent().result("status", job_id=JOB)["state"] == "died"


def test_job_of_before_a_restart_is_said_to_have_died_of_it(start_agent: StartAgent) -> None:
    agent = start_agent()
    params = {"runtime": "fake", "threads": 1, "seed": 0, "engines": [], "plan": PLAN, "nonce": ""}
    folder = agent.cache / "jobs" / JOB
    folder.mkdir(parents=True)
    request = {"kind": "measure", "params": params, "boot_id": "another", "at_s": 1e12}
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "worker.json").write_text('{"process_group": 1}')
    assert agent.result("status", job_id=JOB)["state"] == "died"
    assert agent.result("result", job_id=JOB)["rebooted"] is True


def test_only_agents_can_be_retired(agent: RawAgent) -> None:
    with subprocess.Popen(["sleep", "30"]) as bystander:
        assert agent.result("retire", pids=[bystander.pid, 1, 2**22])["ended"] == []
        assert bystander.poll() is None
        bystander.terminate()
