"""Runtimes are imported in a process of their own, tried, and named with what goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest

from device_agent import runtimes
from harness.boards.limits import onnx_limits
from tests.boards.support import ROOT, python36_with_runtime
from tests.device_agent import texts

LOGS = ROOT.parent / "shared/measured/jetson_nano/trtexec_logs"


def test_the_handwritten_network_is_valid_onnx() -> None:
    model = onnx.load_model_from_string(runtimes.tiny_network(13, 7))
    onnx.checker.check_model(model)
    assert model.ir_version == 7
    assert model.opset_import[0].version == 13
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_numbers_above_127_are_written_in_two_bytes() -> None:
    # 300 = 0b10_0101100: the low seven bits first, with the flag that more follow.
    assert runtimes._varint(300) == bytes([0xAC, 0x02])
    assert onnx.load_model_from_string(runtimes.tiny_network(300, 4)).opset_import[0].version == 300


def test_the_limits_that_are_tried_are_those_of_the_table() -> None:
    found = runtimes.probe("onnxruntime")
    known = onnx_limits("onnxruntime", onnxruntime.__version__)
    assert known is not None
    assert (found["version"], found["error"]) == (onnxruntime.__version__, None)
    assert "CPUExecutionProvider" in found["providers"]
    assert (found["opset"], found["ir"]) == (known.opset, known.ir)


def test_onnxruntime_of_python_36_reads_opset_15_and_ir_8() -> None:
    code = "from device_agent import runtimes; print(runtimes.probe('onnxruntime'))"
    done = subprocess.run(
        [python36_with_runtime(), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "'opset': 15" in done.stdout
    assert "'ir': 8" in done.stdout


@pytest.mark.parametrize(
    ("source", "version", "error"),
    [
        ("raise ImportError('libnvinfer.so.8: cannot open')", None, "libnvinfer.so.8: cannot open"),
        ("import os; os.kill(os.getpid(), 4)", None, "importing it ended in SIGILL"),
        ("import sys; sys.exit(3)", None, "exit code 3"),
        # The version is told before the GPU is asked for, so it survives.
        ("__version__ = '8.2.1'", "8.2.1", "has no attribute 'Builder'"),
    ],
)
def test_a_runtime_that_cannot_be_used_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    version: str | None,
    error: str,
) -> None:
    (tmp_path / "tensorrt.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = runtimes.probe("tensorrt")
    assert found["version"] == version
    assert error in found["error"]


def test_what_native_code_prints_does_not_reach_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text(
        "import os\n"
        "os.write(1, b'[TRT] loaded\\n')\n"
        "__version__ = '8.2.1'\n"
        "class Logger:\n"
        "    ERROR = 1\n"
        "    def __init__(self, level): print('logger')\n"
        "class Builder:\n"
        "    platform_has_fast_fp16, platform_has_fast_int8 = True, False\n"
        "    def __init__(self, logger): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = runtimes.probe("tensorrt")
    assert (found["version"], found["error"]) == ("8.2.1", None)
    assert (found["fast_fp16"], found["fast_int8"]) == (True, False)


def test_an_import_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runtimes, "IMPORT_TIMEOUT_S", 1)
    assert runtimes.probe("tensorrt")["error"] == "importing it took more than 1 s"


@pytest.mark.parametrize("version", texts.TRTEXEC, ids=str)
def test_trtexec_tells_its_version_in_its_first_line(version: str | None) -> None:
    assert runtimes.trtexec_version(texts.TRTEXEC[version]) == version


def test_the_published_logs_of_a_nano_are_of_tensorrt_8_0_1() -> None:
    if not LOGS.is_dir():
        pytest.skip(f"{LOGS} is not here")
    versions = {runtimes.trtexec_version(path.read_text()) for path in LOGS.glob("*.log")}
    assert versions == {"8.0.1"}


def test_trtexec_is_found_where_jetpack_puts_it_and_asked(tmp_path: Path) -> None:
    assert runtimes.trtexec(str(tmp_path)) is None
    path = tmp_path / "usr/src/tensorrt/bin/trtexec"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\nprintf '%s' '{texts.TRTEXEC['8.2.1']}'\n")
    path.chmod(0o755)
    assert runtimes.trtexec(str(tmp_path)) == {"path": str(path), "version": "8.2.1"}
    path.write_text("#!/bin/sh\nexit 1\n")
    assert runtimes.trtexec(str(tmp_path)) == {"path": str(path), "version": None}


def test_a_command_that_is_missing_or_slow_is_an_answer() -> None:
    assert runtimes.run(["no-such-program"]) == (
        None,
        "no-such-program: No such file or directory",
    )
    code, text = runtimes.run([sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert code is None
    assert re.search("took more than 1 s", text)
