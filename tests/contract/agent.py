"""The real agent as a subprocess, driven frame by frame."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from harness.boards.wire import AGENT_MARK, decode, validate
from tests.boards.support import ROOT

Frame = dict[str, Any]
PLAN = {"warmup_s": 0.01, "rounds": 2, "block_s": 0.01, "block_min": 3, "drop": 1}
DEADLINE_S = 20.0


class RawAgent:
    """Bytes in, frames out; every reply is checked against the schema."""

    def __init__(self, python: str, cache: Path, env: dict[str, str] | None = None) -> None:
        self.cache = cache
        self.stderr = cache.with_suffix(".stderr").open("wb+")
        self.process = subprocess.Popen(
            [python, "-m", "device_agent", "serve", str(cache)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        )
        self._buffer = b""
        self._last_id = 0
        while not (line := self.line()).startswith(AGENT_MARK):
            pass
        self.hello: Frame = json.loads(line[len(AGENT_MARK) :])

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            ready = select.select([self.process.stdout], [], [], max(0.0, left))[0]
            assert ready, "the agent is silent"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            assert data, "the agent has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def reply(self) -> Frame:
        return decode(self.line())

    def request(self, method: str, **params: Any) -> int:
        self._last_id += 1
        frame = {"id": self._last_id, "method": method, "params": params}
        validate("request", frame)
        self.send(json.dumps(frame).encode() + b"\n")
        return self._last_id

    def call(self, method: str, **params: Any) -> tuple[Frame, list[Frame]]:
        """The final reply to a request and the events before it."""
        number = self.request(method, **params)
        events: list[Frame] = []
        while True:
            frame = self.reply()
            assert frame["id"] == number
            if "event" not in frame:
                break
            events.append(frame["event"])
        if "result" in frame:
            validate(f"{method}.result", frame["result"])
        return frame, events

    def result(self, method: str, **params: Any) -> Frame:
        frame, _ = self.call(method, **params)
        assert "result" in frame, frame
        found: Frame = frame["result"]
        return found

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        place = {"sha256": sha256, "size_bytes": len(content), "limit_bytes": 1 << 30}
        begun = self.result("blob_begin", **place)
        Path(begun["path"]).write_bytes(content)
        self.result("blob_commit", sha256=sha256, arrived=None)
        return sha256

    def submit_fake(self, job_id: str, *engines: Frame, plan: Frame = PLAN) -> Frame:
        hashes = [self.put(json.dumps(engine).encode()) for engine in engines]
        params = {
            "runtime": "fake",
            "threads": 1,
            "seed": 0,
            "engines": hashes,
            "plan": plan,
            "nonce": "",
        }
        validate("measure.params", params)
        return self.submit(job_id, "measure", params)

    def submit(self, job_id: str, kind: str, params: Frame, timeout_s: float = 60.0) -> Frame:
        return self.result(
            "submit", job_id=job_id, kind=kind, params=params, owner="me@here", timeout_s=timeout_s
        )

    def outcome(self, job_id: str) -> Frame:
        self.result("wait", job_id=job_id, after=0, timeout_s=DEADLINE_S)
        return self.result("result", job_id=job_id)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        self.stderr.close()
        return code
