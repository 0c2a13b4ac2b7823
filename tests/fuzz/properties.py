"""What holds for any bytes at all: the properties that Hypothesis and Atheris both try to break.

Each function takes what a hostile other side may send or have written and returns nothing; an
exception out of it is a defect. What the code may say to bad input is caught here, by class.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from device_agent import __main__ as agent
from device_agent import board, inspection, jobs, onnx_nodes, telemetry
from harness.boards import deploy, inventory, wire
from harness.errors import AgentException, ConfigError, ProtocolError, TransientBoardError
from harness.records import ImportedSummary, dump, load
from harness.trtexec import files, log
from tests.trtexec.logs import log_text

Frame = dict[str, Any]
REFUSALS = (ProtocolError, AgentException, TransientBoardError)
SHA256 = "0" * 64
JOB_ID = "0" * 32
# One valid request for every method; what a fuzzer mutates.
REQUESTS: dict[str, Frame] = {
    "probe": {"runtime": "fake"},
    "conditions": {},
    "blob_has": {"sha256": SHA256},
    "blob_begin": {"sha256": SHA256, "size_bytes": 7, "limit_bytes": 1 << 30},
    "blob_commit": {"sha256": SHA256, "arrived": None},
    "status": {"job_id": JOB_ID},
    "wait": {"job_id": JOB_ID, "after": 0, "timeout_s": 0.0},
    "result": {"job_id": JOB_ID},
    "cancel": {"job_id": JOB_ID},
    "lease": {},
    "clean": {"keep_s": 0.0, "unfetched": True},
    "retire": {"pids": [1 << 30]},
    "controls_state": {},
    "controls_apply": {
        "wanted": {"power_mode": None, "lock_clocks": False, "governor": None, "fan": None},
        "change": True,
    },
    "controls_restore": {},
    "inspect": {"section": "cache"},
    "submit": {
        "job_id": JOB_ID,
        "kind": "measure",
        "owner": "me@here",
        "timeout_s": 1.0,
        "params": {
            "runtime": "fake",
            "threads": 1,
            "seed": 0,
            "engines": [SHA256],
            "plan": {"warmup_s": 0.0, "rounds": 1, "block_s": 0.0, "block_min": 1, "drop": 0},
            "nonce": "",
        },
    },
}


def request(method: str, number: int = 1) -> bytes:
    """The line of a valid request."""
    return json.dumps({"id": number, "method": method, "params": REQUESTS[method]}).encode()


class Pieces:
    """A channel that says ``data`` in pieces of ``size`` bytes and ends."""

    def __init__(self, data: bytes, size: int = 1 << 16) -> None:
        self._pieces = [data[at : at + size] for at in range(0, len(data), max(1, size))][::-1]

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    def read(self, timeout_s: float) -> bytes:
        assert timeout_s >= 0.0
        return self._pieces.pop() if self._pieces else b""

    def exit_code(self, timeout_s: float) -> int | None:
        del timeout_s
        return 1

    def stderr_tail(self) -> str:
        return "last words"

    def close(self) -> None:
        pass


# --- the host's side of the wire ----------------------------------------------------------------


def host_decodes(data: bytes) -> None:
    """A line is a reply or a ``ProtocolError``."""
    with contextlib.suppress(ProtocolError):
        frame = wire.decode(data)
        json.dumps(frame, allow_nan=False, ensure_ascii=False).encode()


def host_calls(data: bytes, *, method: str = "conditions", size: int = 1 << 16) -> None:
    """A stream, however it is cut, is a result that fits or one of three errors."""
    connection = wire.Connection(Pieces(data, size))
    with contextlib.suppress(*REFUSALS):
        found = connection.call(method, REQUESTS[method], timeout_s=5.0, on_event=lambda _: None)
        wire.validate(f"{method}.result", found)


def host_starts(data: bytes, *, size: int = 1 << 16) -> None:
    """The agent's first line is found behind noise and checked."""
    connection = wire.Connection(Pieces(data, size))
    with contextlib.suppress(*REFUSALS):
        line = connection.marked_line((wire.AGENT_MARK,), 5.0)
        if line is not None:
            wire.validate("hello", deploy._hello(line))


def host_wire(data: bytes) -> None:
    """All of the host's side: the first byte says what the others are."""
    kind, rest = data[:1] or b"\0", data[1:]
    methods = sorted(REQUESTS)
    method = methods[kind[0] % len(methods)]
    if kind[0] < 64:
        host_decodes(rest)
    elif kind[0] < 128:
        host_calls(rest, method=method, size=1 + kind[0] % 50)
    elif kind[0] < 192:
        host_calls(b'{"id": 1, "result": ' + rest + b"}\n", method=method)
    else:
        host_starts(rest, size=1 + kind[0] % 50)


# --- the agent's side of the wire ---------------------------------------------------------------


class Idle:
    """In place of ``jobs.Child``: a worker that was started and does nothing."""

    def __init__(self, folder: str) -> None:
        del folder
        self.ended = os.open(os.devnull, os.O_RDONLY)
        self.process = self

    def poll(self) -> int:
        return 0

    def wait(self, timeout_s: float) -> int:
        del timeout_s
        return 0


@functools.cache
def _home() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="boardfit-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _descriptor(data: bytes = b"") -> Iterator[int]:
    found = os.memfd_create("fuzz")
    try:
        os.write(found, data)
        os.lseek(found, 0, os.SEEK_SET)
        yield found
    finally:
        os.close(found)


def answers(data: bytes, cache: Path) -> list[Frame]:
    """What the agent replies to ``data``, which is all of its stdin.

    In this process. Starting programs, ending other agents and waiting for the disk are left out:
    that would be slow, or hit what else runs on this computer.
    """
    cache.mkdir(parents=True, exist_ok=True)
    # A board of which nothing is known, and where nothing can be turned.
    bare = board.Board(str(_home() / "no-board"), lambda argv, text="": (None, argv[0] + text))
    facts = {"runtime": "fake", "runtime_version": "1", "runtime_error": None, "providers": []}
    with (
        mock.patch.object(jobs, "Child", Idle),
        mock.patch.object(agent, "probe_runtime", lambda runtime: dict(facts, runtime=runtime)),
        mock.patch.object(agent, "retire", lambda _: False),
        mock.patch.object(telemetry, "_output", lambda _: None),
        mock.patch.object(agent.board, "Board", lambda: bare),
        mock.patch.object(inspection, "inspect", lambda *_: {}),
        mock.patch.object(os, "fsync", lambda _: None),
        mock.patch.object(jobs, "_children", {}),
        _descriptor(data) as stdin,
        _descriptor() as stdout,
    ):
        agent.Agent(str(cache), stdin, stdout).serve()
        for child in jobs._children.values():
            os.close(child.ended)
        os.lseek(stdout, 0, os.SEEK_SET)
        with open(stdout, "rb", closefd=False) as stream:
            lines = stream.read().split(b"\n")
    assert lines.pop() == b"" and lines.pop(0) == b"" and lines.pop(0).startswith(wire.AGENT_MARK)
    return [wire.decode(line) for line in lines]


def _method(line: bytes) -> str | None:
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        return str(json.loads(line)["method"])
    return None


def agent_wire(data: bytes) -> None:
    """Every line gets one reply that fits the schema; nothing outside the cache changes."""
    home = _home() / "agent"
    home.mkdir(exist_ok=True)
    cache, canary = home / "cache", home / "canary"
    if not canary.exists():
        canary.write_bytes(b"alive")
    if (cache / "jobs").exists() or (cache / "blobs").exists():
        shutil.rmtree(cache)
    asked = [line for line in data.split(b"\n")[:-1] if line.strip()]
    replies = [reply for reply in answers(data, cache) if "event" not in reply]
    assert len(replies) == len(asked), (asked, replies)
    for line, reply in zip(asked, replies, strict=True):
        if "result" in reply:
            wire.validate(f"{_method(line)}.result", reply["result"])
        # An exception is for what happens on the board, never for what was asked.
        known = ("UnknownJob",)
        assert "exception" not in reply or reply["exception"]["type"] in known, (line, reply)
    assert {path.name for path in home.iterdir()} == {"cache", "canary"}
    assert canary.read_bytes() == b"alive"


# --- files --------------------------------------------------------------------------------------


def onnx_file_nodes(data: bytes) -> None:
    """The agent's own reader says ``ValueError`` to what is no ONNX file, and names its nodes."""
    with _descriptor(data) as descriptor, contextlib.suppress(ValueError):
        nodes, initialisers = onnx_nodes.read_nodes(f"/proc/self/fd/{descriptor}")
        origin = onnx_nodes.Origin(nodes, initialisers, nodes)
        for node in nodes[:50]:
            assert isinstance(origin.of(node), str)
            assert isinstance(origin.serves(node), str)


def trtexec_log(data: bytes) -> None:
    """A log of trtexec is read, or a ``ConfigError`` names its file."""
    path = _home() / "trtexec.log"
    path.write_bytes(data)
    try:
        for run in log.read_log(path):
            assert load(ImportedSummary, dump(run)) == run
            log.contradictions(run)
    except ConfigError as error:
        assert str(path) in str(error)
        str(error).encode()


def trtexec_files(data: bytes) -> None:
    """The files of ``--exportTimes`` and ``--exportProfile`` likewise."""
    path = _home() / "trtexec.json"
    path.write_bytes(data)
    source = _home() / "whole.log"
    if not source.exists():
        source.write_text(log_text([5.0] * 10))
    (run,) = log.read_log(source)
    for read in (files.read_times, lambda place: files.read_profile(place, run)):
        try:
            read(path)
        except ConfigError as error:
            assert str(path) in str(error)
            str(error).encode()


def boards_toml(data: bytes) -> None:
    """The inventory is read, or a ``ConfigError`` names its file."""
    folder = _home()
    path = folder / inventory.FILE_NAME
    path.write_bytes(data)
    try:
        with mock.patch.dict(os.environ, BOARDFIT_CONFIG_DIR=str(folder)):
            for spec in inventory.load():
                assert spec.name == "local" or spec.host
    except ConfigError as error:
        assert str(path) in str(error)
        str(error).encode()
    finally:
        path.unlink()
