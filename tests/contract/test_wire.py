from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from harness.boards.deploy import pack
from harness.boards.wire import schema, validate
from tests.contract.agent import RawAgent
from tests.contract.conftest import StartAgent


def test_first_line_names_protocol_and_the_hash_that_the_host_computes(agent: RawAgent) -> None:
    validate("hello", agent.hello)
    assert agent.hello["agent_hash"] == pack().sha256


def test_agent_ends_with_zero_when_stdin_closes(agent: RawAgent) -> None:
    assert agent.close() == 0


def test_probe_and_conditions_fit_the_schema(agent: RawAgent) -> None:
    facts = agent.result("probe", runtime="fake")
    assert (facts["runtime"], facts["runtime_version"]) == ("fake", "1")
    assert facts["memory_bytes"] > 0
    assert agent.result("conditions")["free_memory_bytes"] > 0


def test_missing_runtime_is_a_fact_and_no_crash(start_agent: StartAgent, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so is missing')")
    facts = start_agent({"PYTHONPATH": str(tmp_path)}).result("probe", runtime="onnxruntime")
    assert facts["runtime_version"] is None
    assert "libfoo.so is missing" in facts["runtime_error"] or "numpy" in facts["runtime_error"]


def test_runtime_that_dies_of_a_signal_is_named(start_agent: StartAgent, tmp_path: Path) -> None:
    text = "import os\nos.kill(os.getpid(), 4)"
    for name in ("numpy.py", "onnxruntime.py"):
        (tmp_path / name).write_text(text)
    facts = start_agent({"PYTHONPATH": str(tmp_path)}).result("probe", runtime="onnxruntime")
    assert "SIGILL" in facts["runtime_error"]


def test_native_prints_cannot_corrupt_the_stream(start_agent: StartAgent, tmp_path: Path) -> None:
    # A thread of a native library that keeps printing to file descriptor 1.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def chatter():\n"
        "    while True:\n"
        "        os.write(1, b'[native] {\\n')\n"
        "        time.sleep(0.001)\n"
        "if 'serve' in open('/proc/self/cmdline').read():\n"
        "    threading.Thread(target=chatter, daemon=True).start()\n"
    )
    agent = start_agent({"PYTHONPATH": str(tmp_path)})
    for _ in range(30):
        agent.result("conditions")
    agent.stderr.seek(0)
    assert b"[native]" in agent.stderr.read()


def _measure(engines: str) -> bytes:
    plan = '{"warmup_s": 0, "rounds": 1, "block_s": 0, "block_min": 1, "drop": 0}'
    params = f'"runtime": "fake", "threads": 1, "seed": 0, "nonce": "", "plan": {plan}'
    request = f'"kind": "measure", "owner": "me", "timeout_s": 9, "job_id": "{"a" * 32}"'
    return (
        f'{{"id": 1, "method": "submit", "params": '
        f'{{{request}, "params": {{{params}, "engines": {engines}}}}}}}'
    ).encode()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\xff\xfe garbage", "not_json"),
        (b'{"id": 1, "method": "conditions", "params": {}', "not_json"),
        (b'{"id": NaN, "method": "conditions", "params": {}}', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[1]", "bad_request"),
        (b'{"id": 1, "method": "conditions"}', "bad_request"),
        (b'{"id": "1", "method": "conditions", "params": {}}', "bad_request"),
        (b'{"id": 1, "method": "eval", "params": {}}', "unknown_method"),
        (b'{"id": 1, "method": {}, "params": {}}', "unknown_method"),
        (b'{"id": 1, "method": "conditions", "params": []}', "bad_params"),
        (b'{"id": 1, "method": "conditions", "params": {"x": 1}}', "bad_params"),
        (b'{"id": 1, "method": "probe", "params": {}}', "bad_params"),
        (b'{"id": 1, "method": "probe", "params": {"runtime": "os"}}', "bad_params"),
        (b'{"id": 1, "method": "blob_has", "params": {"sha256": "../../x"}}', "bad_params"),
        (b'{"id": 1, "method": "retire", "params": {"pids": [1, true]}}', "bad_params"),
        (b'{"id": 1, "method": "retire", "params": {"pids": [-1]}}', "bad_params"),
        (_measure('["../../../etc/passwd"]'), "bad_params"),
        (_measure("[]"), "bad_params"),
    ],
)
def test_misuse_is_refused_and_the_agent_goes_on(agent: RawAgent, line: bytes, code: str) -> None:
    agent.send(line + b"\n")
    assert agent.reply()["error"]["code"] == code
    agent.result("conditions")


def test_oversize_frame_is_skipped_and_the_agent_goes_on(agent: RawAgent) -> None:
    piece = b"x" * (1 << 20)
    for _ in range(schema()["x-max-frame-bytes"] // len(piece) + 2):
        agent.send(piece)
    agent.send(b"\n")
    assert agent.reply()["error"]["code"] == "oversize"
    agent.result("conditions")


def test_blob_is_there_only_after_its_hash_was_verified(agent: RawAgent) -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert not agent.result("blob_has", sha256=sha256)["present"]
    begun = agent.result("blob_begin", sha256=sha256, size_bytes=7, limit_bytes=100)
    Path(begun["path"]).write_bytes(b"c0ntent")
    frame, _ = agent.call("blob_commit", sha256=sha256, arrived=None)
    assert frame["error"]["code"] == "blob"
    assert sha256 in frame["error"]["message"]
    assert not Path(begun["path"]).exists()
    assert not agent.result("blob_has", sha256=sha256)["present"]
    assert agent.put(b"content") == sha256
    assert agent.result("blob_has", sha256=sha256)["present"]


def test_blob_that_does_not_fit_on_the_disk_is_refused_before_it_is_sent(agent: RawAgent) -> None:
    frame, _ = agent.call("blob_begin", sha256="0" * 64, size_bytes=1 << 60, limit_bytes=1 << 61)
    assert frame["error"]["code"] == "storage"
    assert "do not fit" in frame["error"]["message"]


def test_exception_carries_the_boards_traceback(agent: RawAgent) -> None:
    frame, _ = agent.call("status", job_id="0" * 32)
    assert frame["exception"]["type"] == "UnknownJob"
    assert "jobs.py" in frame["exception"]["traceback"]


def test_cancel_reaches_the_agent_while_one_waits(agent: RawAgent) -> None:
    job_id = "c" * 32
    agent.submit_fake(job_id, {"sleep_s": 0.2}, plan={**_LONG})
    start = time.monotonic()
    waiting = agent.request("wait", job_id=job_id, after=0, timeout_s=60.0)
    cancelling = agent.request("cancel", job_id=job_id)
    replies = []
    while not replies or replies[-1]["id"] != cancelling:
        replies.append(agent.reply())
    assert [r["id"] for r in replies if "result" in r] == [waiting, cancelling]
    assert replies[-1]["result"]["state"] == "cancelled"
    assert time.monotonic() - start < 10.0


_LONG = {"warmup_s": 0.0, "rounds": 500, "block_s": 0.0, "block_min": 5, "drop": 0}


def test_wait_streams_heartbeats_and_numbered_events(agent: RawAgent) -> None:
    job_id = "e" * 32
    plan = {"warmup_s": 0.0, "rounds": 4, "block_s": 0.0, "block_min": 1, "drop": 0}
    agent.submit_fake(job_id, {"sleep_s": 0.3}, plan=plan)
    frame, events = agent.call("wait", job_id=job_id, after=0, timeout_s=30.0)
    assert frame["result"]["state"] == "done"
    assert "heartbeat" in [event["kind"] for event in events]
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == list(range(1, len(numbers) + 1))
    _, later = agent.call("wait", job_id=job_id, after=1, timeout_s=0.0)
    assert [event["seq"] for event in later] == numbers[1:]
    assert json.loads(json.dumps(events)) == events
