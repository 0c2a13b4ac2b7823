"""The direction of imports, read from the source with ast: DESIGN's picture as a table."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUNDATION = {"harness.errors", "harness.records", "harness.units", "harness.stats"}
# What each part of the harness may import of ours, beside itself. The most specific key counts.
ALLOWED = {
    "harness.errors": {"latency_models"},
    "harness.records": {"latency_models"},
    "harness.units": {"harness.errors", "harness.records"},
    "harness.stats": {"harness.records"},
    "harness.store": FOUNDATION,
    "harness.verdict": FOUNDATION,
    "harness.sustain": FOUNDATION,
    "harness.folder": FOUNDATION,
    "harness.progress": FOUNDATION,
    "harness.networks": FOUNDATION,
    "harness.boards": FOUNDATION | {"harness.tensorrt"},
    "harness.allocation": FOUNDATION,
    "harness.compression": FOUNDATION | {"harness.networks", "harness.tensorrt"},
    "harness.sensitivity": FOUNDATION | {"harness.networks", "harness.compression"},
    "harness.strategies": FOUNDATION
    | {"harness.allocation", "harness.sensitivity", "harness.compression", "latency_models"},
    "harness.planning": FOUNDATION
    | {
        "harness.allocation",
        "harness.compression",
        "harness.networks",
        "harness.sensitivity",
        "harness.strategies",
        "latency_models",
    },
    # It alone builds and measures.
    "harness.planning.verify": FOUNDATION
    | {
        "harness.candidates",
        "harness.compression",
        "harness.networks",
        "harness.planning",
        "latency_models",
    },
    # The command: a board to stand on, what is asked, and what comes of it.
    "harness.planning.grounds": {"harness", "latency_models"},
    "harness.planning.request": {"harness"},
    "harness.planning.commands": {"harness", "latency_models"},
    "harness.trtexec": FOUNDATION,
    "harness.tensorrt": FOUNDATION,
    "harness.attribution": FOUNDATION,
    "harness.profiles": FOUNDATION,
    "harness.comparison": FOUNDATION | {"harness.store", "harness.trtexec"},
    "harness.report": FOUNDATION
    | {
        "latency_models",
        "harness.attribution",
        "harness.comparison",
    },
    "harness.campaign": FOUNDATION | {"harness.boards", "harness.store"},
    "harness.pacing": FOUNDATION | {"harness.boards", "harness.store"},
    "harness.calibrate": FOUNDATION
    | {
        "harness.boards",
        "harness.campaign",
        "harness.folder",
        "harness.pacing",
        "harness.store",
        "latency_models",
    },
    "harness.candidates": FOUNDATION
    | {
        "harness.boards",
        "harness.compression",
        "harness.folder",
        "harness.networks",
        "harness.pacing",
        "harness.store",
        "harness.sustain",
        "harness.verdict",
        "latency_models",
    },
    "harness.outcome": FOUNDATION
    | {
        "harness.candidates",
        "harness.folder",
        "harness.pacing",
        "harness.tensorrt",
        "latency_models",
    },
    "harness.profiling": FOUNDATION
    | {"harness.boards", "harness.folder", "harness.sustain", "harness.verdict"},
    "harness.engines": FOUNDATION | {"harness.boards", "harness.tensorrt", "harness.trtexec"},
    "harness.judging": FOUNDATION | {"harness.strategies"},
    "harness.posing": {"harness", "latency_models"},
    "harness.starts": {"harness", "latency_models"},
    "harness.proposing": {"harness", "latency_models"},
    "harness.loop": {"harness", "latency_models"},
    "harness.quantizing": FOUNDATION
    | {
        "harness.boards",
        "harness.compression",
        "harness.networks",
        "harness.progress",
        "harness.tensorrt",
    },
    "harness.run_commands": FOUNDATION
    | {
        "harness.boards",
        "harness.comparison",
        "harness.profiles",
        "harness.store",
        "harness.trtexec",
    },
    "harness.commands": {"harness", "latency_models"},
    "harness.tables": {"harness", "latency_models"},
    "harness.cli": {"harness"},
    "harness": set(),
    "latency_models": {"latency_models"},
    "device_agent": {"device_agent"},
}
OURS = ("harness", "latency_models", "device_agent")
TORCH_LIVES_IN = ("harness.networks", "harness.compression", "harness.sensitivity")
# Only when the engine is chosen does the agent touch a runtime; all else is the standard library.
RUNTIMES = {"numpy", "onnxruntime", "tensorrt", "pycuda"}


def modules():
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path, name):
    """Every module that a file imports, wherever in the file, as a dotted name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_module = (ROOT / Path(*inner.split("."))).with_suffix(".py").exists() or (
                    ROOT / Path(*inner.split("."))
                ).is_dir()
                yield inner if base.split(".")[0] in OURS and is_module else base


def within(name, parent):
    return name == parent or name.startswith(parent + ".")


def rule_for(name):
    return max((key for key in ALLOWED if within(name, key)), key=len)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(value))
def test_a_module_imports_only_what_lies_below_it(name, path):
    rule = rule_for(name)
    for imported in imports(path, name):
        if imported.split(".")[0] in OURS:
            allowed = ALLOWED[rule] | {rule}
            if rule == "harness":
                allowed = set()
            covering = max((a for a in allowed if within(imported, a)), key=len, default=None)
            assert covering is not None, f"{name} imports {imported}"
            # A room that may be imported is so without what stands above it and has its own rule.
            own = rule_for(imported)
            above = covering not in ("harness", own) and within(own, covering)
            assert not above, f"{name} imports {imported}, which stands above {covering}"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(value))
def test_torch_is_imported_only_where_it_lives(name, path):
    if not any(within(name, home) for home in TORCH_LIVES_IN):
        found = [i for i in imports(path, name) if i.split(".")[0] in ("torch", "torch_pruning")]
        assert not found, f"{name} imports {found}"


@pytest.mark.parametrize(
    ("name", "path"), [m for m in modules() if within(m[0], "device_agent")], ids=str
)
def test_the_agent_imports_the_standard_library_and_runtimes_alone(name, path):
    for imported in imports(path, name):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names | RUNTIMES | {"device_agent"}, imported


@pytest.mark.parametrize(
    ("name", "path"), [m for m in modules() if within(m[0], "latency_models")], ids=str
)
def test_latency_models_need_numpy_scipy_and_onnx_alone(name, path):
    allowed = sys.stdlib_module_names | {"numpy", "scipy", "onnx", "latency_models", "tomli"}
    for imported in imports(path, name):
        assert imported.split(".")[0] in allowed, f"{name} imports {imported}"


def test_the_command_line_imports_nothing_heavy_at_module_level():
    names = set()
    for path in (ROOT / "harness" / "cli").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(
                    node.module if node.module.startswith("harness") else node.module.split(".")[0]
                )
    light = {"harness.errors", "harness.cli", "harness.cli.options", "typer"}
    assert names <= light | sys.stdlib_module_names
