from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boards.support import ROOT, python36

FILES = sorted((ROOT / "device_agent").glob("*.py"))
RUNTIMES = {
    "engine_onnxruntime.py": {"numpy", "onnxruntime"},
    "engine_tensorrt.py": {"numpy"},
    "cuda_pycuda.py": {"pycuda"},
}
# Keywords of later versions that neither the parser nor vermin's defaults refuse everywhere.
LATER = ("capture_output", "perf_counter_ns", "from __future__", "text=True", "dataclass")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_source_parses_as_python_36_and_uses_nothing_later(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 6))
    assert not [word for word in LATER if word in text]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_agent_imports_itself_and_the_standard_library_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | RUNTIMES.get(path.name, set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert str(node.module).split(".")[0] in allowed


def test_vermin_finds_nothing_newer_than_36() -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import vermin; vermin.main()",
            "-t=3.6-",
            "--no-tips",
            *map(str, FILES),
        ],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_every_module_compiles_under_a_real_36() -> None:
    code = "import sys\nfor p in sys.argv[1:]: compile(open(p).read(), p, 'exec')"
    subprocess.run([python36(), "-W", "error", "-c", code, *map(str, FILES)], check=True)
