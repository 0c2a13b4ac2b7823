"""A board whose agent answers with anything that JSON can say: boardfit's own errors, no others."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given

from harness.boards import deploy, link, session
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import BoardfitError, ProtocolError, StableBoardError
from harness.records import BoardSpec
from tests.fuzz import hostile_agent
from tests.fuzz.support import fuzzed, mutated

PLAN = MeasurePlan(warmup_s=0.0, rounds=1, block_s=0.0, block_min=2, drop=0)
NOW = {
    "cpu_clock_hz": [1e9],
    "gpu_clock_hz": None,
    "temp_c": 40.0,
    "throttled": False,
    "load_1min": 0.1,
    "free_memory_bytes": 1 << 30,
    "power_w": None,
}
ENGINE = b'{"latency_s": 0.001}'
SHA256 = "4f1d1d2a5d3ab52d6e8d5a1d0f3a7c0b0f3c5a7e9d1b2c3d4e5f60718293a4b5"


def _answers() -> dict[str, Any]:
    job = {"job_id": "0" * 32, "state": "done", "events": 0}
    timed = {"sha256": SHA256, "batch": 1, "samples_s": [1e-3, 1e-3], "rounds": [0, 0]}
    return {
        "hello": {
            "protocol": 1,
            "agent_hash": deploy.pack().sha256,
            "cache_dir": "/c",
            "pid": 1 << 30,
        },
        "probe": {
            "hostname": "nano",
            "machine": "aarch64",
            "cpu_model": "ARMv8",
            "cores": 4,
            "memory_bytes": 4 << 30,
            "os": "L4T",
            "python": "3.6.9",
            "runtime": "fake",
            "runtime_version": "1",
            "runtime_error": None,
            "providers": [],
            "int8": "slow",
            "power_mode": "MAXN",
            "simd": "neon",
        },
        "conditions": NOW,
        "controls_apply": {
            "problems": [],
            "in_force": {
                "power_mode": "MAXN",
                "clocks_locked": True,
                "governor": None,
                "cpus_online": 4,
                "cpu_max_hz": 1,
                "gpu_max_hz": 1,
                "fan_pwm": None,
            },
        },
        "controls_restore": {"problems": [], "pending": False},
        "blob_has": {"present": True},
        "submit": job,
        "wait": job,
        "lease": {"holder": None},
        "retire": {"ended": []},
        "result": {
            "state": "done",
            "kind": "measure",
            "result": {
                "runtime_version": "1",
                "busy_s": 1.0,
                "engines": [{**timed, "warmup_s": []}],
                "before": NOW,
                "after": NOW,
                "in_force": None,
                "telemetry": None,
            },
        },
    }


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoardSpec:
    """A board on this computer whose Python is the hostile agent; nothing is tried again."""
    program = tmp_path / "python"
    text = Path(hostile_agent.__file__).read_text().split("\n", 1)[1]
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    monkeypatch.setattr(link, "BACK_OFF_S", ())
    monkeypatch.setattr(session, "ATTEMPTS", 1)
    return BoardSpec(name="hostile", python=str(program), runtime="fake")


def _say(board: BoardSpec, answers: Any) -> None:
    Path(board.python).with_name("answers.json").write_text(json.dumps(answers))


def _measure(board: BoardSpec, engine: Path) -> float:
    with Session(board) as found:
        found.conditions()
        request = EngineRequest(label="e", path=engine, precision="fp32")
        (measured,) = found.measure([request], plan=PLAN, campaign="c")
    return sum(measured.samples_s)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the board says it has."""
    path = tmp_path / "engine"
    path.write_bytes(ENGINE)
    monkeypatch.setattr(session, "sha256_of", lambda _: SHA256)
    return path


def test_an_honest_answer_is_a_measurement(board: BoardSpec, engine: Path) -> None:
    _say(board, _answers())
    assert _measure(board, engine) == 2e-3


def _with(path: str, value: Any) -> Any:
    answers = _answers()
    *outer, last = path.split("/")
    node = answers
    for name in outer:
        node = node[int(name) if name.isdigit() else name]
    node[last] = value
    return answers


@pytest.mark.timeout(120)
def test_any_answer_is_a_measurement_or_a_known_error(board: BoardSpec, engine: Path) -> None:
    @fuzzed(40)
    @given(mutated(_answers(), most=2).filter(lambda found: isinstance(found, dict)))
    @example(_with("result/result/engines/0/samples_s", []))
    @example(_with("result/result/engines/0/samples_s", [-1.0, 0.0]))
    @example(_with("result/result/engines/0/rounds", [1]))
    @example(_with("result", {"state": "died", "signal": 1 << 40}))
    @example(_with("result", {"state": "died", "signal": 9, "free_memory_bytes": -1}))
    @example(_with("result", {"state": "failed"}))
    @example(_with("probe/cores", 10**30))
    def measure(answers: dict[str, Any]) -> None:
        for name in ("hello", *_answers()):
            answers.setdefault(name, {})
        _say(board, answers)
        with contextlib.suppress(BoardfitError):
            assert _measure(board, engine) > 0

    measure()


def test_a_signal_without_a_name_is_told_by_its_number(board: BoardSpec, engine: Path) -> None:
    _say(board, _with("result", {"state": "died", "signal": 99}))
    with pytest.raises(StableBoardError, match="by signal 99"):
        _measure(board, engine)


@pytest.mark.parametrize("kind", ["no array", "objects", "an archive", "cut off", "a petabyte"])
def test_outputs_that_are_no_numbers_are_misuse_and_nothing_is_run(
    board: BoardSpec, engine: Path, tmp_path: Path, kind: str
) -> None:
    outputs, canary = tmp_path / "outputs", tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    with outputs.open("wb") as stream:
        if kind == "no array":
            stream.write(b"hello")
        elif kind == "objects":
            np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
        elif kind == "an archive":
            np.savez(stream, a=np.zeros(3))
        else:
            shape = (10**15,) if kind == "a petabyte" else (10,)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(b"\0" * 8)
    answers = _answers()
    answers["result"]["result"] = {
        "runtime_version": "1",
        "busy_s": 1.0,
        "outputs": SHA256,
        "path": str(outputs),
        "size_bytes": 8,
    }
    _say(board, answers)
    with Session(board) as found, pytest.raises(ProtocolError, match="makes no sense"):
        found.infer(engine, np.zeros((1, 2), np.float32))
    assert not canary.exists()
