"""trtexec's command by version, and an agent that runs a stand-in and keeps what it wrote."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent import trt_api, trt_command
from harness.boards.wire import validate
from harness.trtexec.files import read_times
from tests.boards.support import ROOT, float_network
from tests.contract.agent import Frame, RawAgent

LOGS = ROOT.parent / "shared/measured/jetson_nano/trtexec_logs"
MEASURE = {"warmup_s": 0.2, "duration_s": 3.0, "iterations": 10, "percentile": 99.0}
COMMON = (
    "--warmUp=200 --duration=3 --iterations=10 --percentile=99 --separateProfileRun --dumpProfile "
    "--saveEngine=/job/engine --timingCacheFile=/job/timing_cache --exportTimes=/job/times "
    "--exportProfile=/job/profile"
)


def _command(version: str | None, build: Frame) -> list[str]:
    given = build, MEASURE, 64 << 20, "/job"
    return trt_command.command("/bin/trtexec", version, "/n.onnx", *given)


@pytest.mark.parametrize(
    ("version", "build", "words"),
    [
        (
            "8.0.1",
            {"flags": ["fp16", "tf32"]},
            f"--onnx=/n.onnx --fp16 --workspace=64 --nvtxMode=verbose {COMMON}",
        ),
        # One that does not tell its version is taken for the oldest.
        (None, {}, f"--onnx=/n.onnx --noTF32 --workspace=64 --nvtxMode=verbose {COMMON}"),
        (
            "8.2.1",
            {"cuda_graph": True, "spin_wait": True, "transfers": False},
            f"--onnx=/n.onnx --noTF32 --workspace=64 --profilingVerbosity=detailed "
            f"{COMMON} --useCudaGraph --useSpinWait --noDataTransfers "
            "--exportLayerInfo=/job/layers",
        ),
        (
            "8.4.1",
            {"layers": {"b": "int8", "a": "fp32"}, "constraints": "obey", "flags": ["fp16"]},
            "--onnx=/n.onnx --fp16 --noTF32 --precisionConstraints=obey "
            "--layerPrecisions=a:fp32,b:int8 --int8 --memPoolSize=workspace:64 "
            f"--profilingVerbosity=detailed {COMMON} --exportLayerInfo=/job/layers",
        ),
        (
            "10.3.0",
            {"strongly_typed": True, "flags": ["tf32"]},
            "--onnx=/n.onnx --stronglyTyped --memPoolSize=workspace:64 "
            f"--profilingVerbosity=detailed {COMMON} --exportLayerInfo=/job/layers",
        ),
        (
            "11.0.0",
            {"strongly_typed": True, "flags": ["tf32"], "rebuild": 1},
            "--onnx=/n.onnx --memPoolSize=workspace:64 --profilingVerbosity=detailed "
            f"{COMMON.replace('--timingCacheFile=/job/timing_cache ', '')} "
            "--exportLayerInfo=/job/layers",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 8 else "",
)
def test_the_command_is_that_of_the_version(version: str | None, build: Frame, words: str) -> None:
    assert sorted(_command(version, build)) == sorted(["/bin/trtexec", *words.split()])


@pytest.mark.parametrize(
    ("version", "build", "text"),
    [
        ("8.2.1", {"layers": {"a": "fp16"}, "constraints": "obey"}, "has no --layerPrecisions"),
        ("8.4.1", {"strongly_typed": True, "flags": []}, "has no --stronglyTyped"),
        ("11.0.0", {"flags": ["fp16"]}, "trtexec 11.0.0 has no --fp16"),
        ("8.5.1", {"layers": {"a,b": "fp16"}, "constraints": "obey"}, "node a,b: its name holds"),
    ],
)
def test_what_a_version_cannot_do_is_refused(version: str, build: Frame, text: str) -> None:
    with pytest.raises(trt_api.UnsupportedOption, match=text):
        _command(version, build)


def test_options_without_a_log_are_unproven() -> None:
    words = _command("8.0.1", {"flags": ["fp16", "tf32"]})
    found = trt_command.unproven("8.0.1", words)
    assert "--fp16" not in found and "--workspace" not in found
    assert "--separateProfileRun" in found
    assert trt_command.unproven("8.2.1", words)[:2] == ["--onnx", "--fp16"]


def test_the_proven_options_are_those_of_the_published_logs() -> None:
    if not LOGS.is_dir():
        pytest.skip(f"{LOGS} is not here")
    seen = set()
    for log in LOGS.glob("*.log"):
        text = log.read_text(errors="replace")
        line = next(line for line in text.splitlines() if "RUNNING TensorRT.trtexec" in line)
        assert "[TensorRT v8001]" in line
        seen |= {word.partition("=")[0] for word in line.split() if word.startswith("--")}
    assert seen == set(trt_command.PROVEN[8, 0])


STAND_IN = """#!{python}
import json, os, signal, sys
print("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # " + " ".join(sys.argv), flush=True)
given = dict(word.partition("=")[::2] for word in sys.argv[1:])
if "--help" in given:
    sys.exit(0)
if os.environ.get("TRTEXEC_NEEDS") and int(given["--workspace"]) > int(os.environ["TRTEXEC_NEEDS"]):
    os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("TRTEXEC_FAILS"):
    print("[01/01/2022-00:00:00] [E] " + os.environ["TRTEXEC_FAILS"])
    print("&&&& FAILED TensorRT.trtexec [TensorRT v8201]")
    sys.exit(1)
call = dict(startComputeMs=1.0, computeMs=5.0, h2dMs=0.25, d2hMs=0.5, latencyMs=5.75)
json.dump([call, call], open(given["--exportTimes"], "w"))
json.dump([dict(count=2), dict(name="Conv_0", averageMs=5.0)], open(given["--exportProfile"], "w"))
json.dump(dict(Layers=["Conv_0"]), open(given["--exportLayerInfo"], "w"))
open(given["--saveEngine"], "w").write("ptrt")
assert os.path.getsize(given["--onnx"]) > 1000
print("&&&& PASSED TensorRT.trtexec [TensorRT v8201]")
"""


class Board:
    """An agent whose only TensorRT is a trtexec on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, {"PATH": f"{folder}:{os.environ['PATH']}"}
        tool = folder / "trtexec"
        tool.write_text(STAND_IN.format(python=sys.executable))
        tool.chmod(0o755)

    def run(self, **params: Any) -> Frame:
        network = float_network(self.folder / "n.onnx")
        agent = RawAgent(sys.executable, self.folder / "cache", self.env)
        try:
            sha256 = agent.put(network.read_bytes())
            params = {"network": sha256, "measure": MEASURE, "nonce": ""} | params
            validate("trtexec.params", params)
            agent.submit("1" * 32, "trtexec", params)
            return agent.outcome("1" * 32)
        finally:
            agent.close()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    yield Board(tmp_path)


def test_the_agent_keeps_what_trtexec_wrote(board: Board) -> None:
    outcome = board.run()
    assert outcome["state"] == "done", outcome
    found = outcome["result"]
    validate("trtexec.result", found)
    assert found["runtime_version"] == "8.2.1"
    assert found["unproven"][0] == "--onnx"
    log = Path(found["log"]["path"]).read_text()
    assert log.startswith("&&&& RUNNING") and "&&&& PASSED" in log
    # This stand-in writes no timing cache.
    assert set(found["files"]) == {"engine", "times", "profile", "layers"}
    # The host reads what the agent kept.
    times = read_times(Path(found["files"]["times"]["path"]))
    assert [(one.h2d_s, one.compute_s, one.d2h_s) for one in times] == [(0.25e-3, 5e-3, 0.5e-3)] * 2
    layers = json.loads(Path(found["files"]["layers"]["path"]).read_text())
    assert layers == {"Layers": ["Conv_0"]}


def test_a_run_that_memory_runs_out_for_is_tried_with_less_workspace(board: Board) -> None:
    board.env["TRTEXEC_NEEDS"] = "100"  # MiB: 256 are too many, 64 are not
    attempts = board.run()["result"]["attempts"]
    assert [one["workspace_bytes"] >> 20 for one in attempts] == [256, 64]
    assert attempts[0]["ended"].startswith("killed by SIGKILL")


@pytest.mark.parametrize(
    ("variable", "value", "ended"),
    [
        ("TRTEXEC_NEEDS", "1", "killed by SIGKILL"),
        ("TRTEXEC_FAILS", "2: [defaultAllocator.cpp] Cuda failure: Out of memory", "exit code 1"),
    ],
)
def test_a_run_that_memory_runs_out_for_to_the_end_says_what_is_left_to_do(
    board: Board, variable: str, value: str, ended: str
) -> None:
    board.env[variable] = value
    message = board.run()["exception"]["message"]
    tried = [f"{mib} MiB workspace" in message for mib in (256, 64, 16)]
    assert tried == [True] * 3
    assert ended in message and "add swap" in message


def test_trtexecs_errors_are_passed_on(board: Board) -> None:
    board.env["TRTEXEC_FAILS"] = "Error[4]: [network.cpp::validate::2411] no output"
    outcome = board.run()
    assert outcome["state"] == "failed"
    assert outcome["exception"]["type"] == "TrtexecFailed"
    assert "Error[4]: [network.cpp::validate::2411] no output" in outcome["exception"]["message"]


def test_a_board_without_trtexec_says_so(board: Board) -> None:
    (board.folder / "trtexec").unlink()
    outcome = board.run()
    if outcome["state"] == "done":
        pytest.skip("this computer has a trtexec of its own")
    assert "there is no trtexec on this board: install" in outcome["exception"]["message"]
