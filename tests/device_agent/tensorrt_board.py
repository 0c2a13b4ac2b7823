"""An agent on a board with a stand-in for TensorRT 8, and the jobs that a host would submit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness.boards.wire import validate
from tests.contract.agent import Frame, RawAgent

STAND_IN = Path(__file__).with_name("tensorrt8")
BUILD: Frame = {
    "flags": ["fp16"],
    "layers": {},
    "constraints": "none",
    "strongly_typed": False,
    "workspace_bytes": None,
    "rebuild": 0,
    "cuda_graph": False,
    "spin_wait": False,
    "transfers": True,
}


class Board:
    """An agent on a board with TensorRT 8, and the jobs that a host would submit."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.calls_path = folder / "calls"
        self.python = sys.executable
        self.env = {
            "PYTHONPATH": str(STAND_IN),
            "BOARDFIT_CUDART": str(library),
            "BOARDFIT_TENSORRT8": "8.2.1.8",
            "BOARDFIT_TENSORRT8_CALLS": str(self.calls_path),
        }
        self._agent: RawAgent | None = None
        self._jobs = 0

    def agent(self) -> RawAgent:
        if self._agent is None:
            self._agent = RawAgent(self.python, self.folder / "cache", self.env)
        return self._agent

    def put(self, path: Path) -> str:
        return self.agent().put(path.read_bytes())

    def outcome(self, kind: str, **params: Any) -> Frame:
        self._jobs += 1
        common = {"runtime": "tensorrt", "nonce": ""}
        if kind != "build":
            common["threads"] = 1
        if kind in ("measure", "profile"):
            common["seed"] = 0
        params = common | params
        validate(f"{kind}.params", params)
        job = f"{self._jobs:032x}"
        self.agent().submit(job, kind, params)
        return self.agent().outcome(job)

    def result(self, kind: str, **params: Any) -> Frame:
        outcome = self.outcome(kind, **params)
        assert outcome["state"] == "done", outcome
        validate(f"{kind}.result", outcome["result"])
        found: Frame = outcome["result"]
        return found

    def failure(self, kind: str, **params: Any) -> tuple[str, str]:
        outcome = self.outcome(kind, **params)
        assert outcome["state"] == "failed", outcome
        return outcome["exception"]["type"], outcome["exception"]["message"]

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.calls_path.read_text().splitlines()]

    def builds(self) -> int:
        return [call[0] for call in self.calls()].count("builder.build_serialized_network")

    def restart(self, **env: str) -> None:
        self.close()
        self.env |= env
        self._jobs += 100

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()
        self._agent = None
