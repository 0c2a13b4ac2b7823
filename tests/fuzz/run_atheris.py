"""Coverage-guided fuzzing of what reads other people's bytes, with Atheris (libFuzzer for Python).

``python -m tests.fuzz.run_atheris --seconds N [--json]`` shares the seconds among the targets. It
is no part of the tests: Atheris is wanted beside boardfit's own requirements (``pip install
atheris``; there are wheels for CPython 3.11 to 3.13). The corpus stays in ``--folder``, and so do
inputs that break a property (``crash-*``), which ``python -m tests.fuzz.atheris_TARGET FILE``
runs again.

One hour on one core of a shared machine (Atheris 3.0.0, CPython 3.11, November 2026):

===========  ==========  =====  ========  =======
target       executions  edges  features  crashes
===========  ==========  =====  ========  =======
agent_wire       35,877    590     2,115        0
boards_toml     171,088    291     1,030        0
host_wire       331,370    291     1,189        0
onnx_nodes    1,371,063    128       728        0
trtexec_log     358,968    165       744        0
===========  ==========  =====  ========  =======

Before the hour the first seconds of ``onnx_nodes`` had found a file that is cut off (IndexError,
mended). What Hypothesis and reading had found in the others was mended before the hour began.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from harness.boards.wire import AGENT_MARK, schema
from tests.boards.support import ROOT, float_network, int8_network
from tests.fuzz.properties import REQUESTS, request
from tests.trtexec.logs import log_text

# One input may take so long and so much memory; both ends of the wire read 16 MiB at most.
INPUT_TIMEOUT_S = 20
MEMORY_MB = 2048
# After so many broken properties the target has told enough.
MOST_CRASHES = 5
DONE = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")
ERROR = re.compile(r"^(\w[\w.]*(?:Error|Exception|Warning)\b.*|==\d+== ERROR.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one target did: inputs run, edges and features reached, and what broke a property."""

    target: str
    seconds: float
    executions: int
    coverage: int
    features: int
    corpus: int
    crashes: tuple[str, ...]


# --- where to begin -----------------------------------------------------------------------------


def _wire_seeds() -> list[bytes]:
    lines = [request(method, number) + b"\n" for number, method in enumerate(sorted(REQUESTS), 1)]
    replies = [
        b'{"id": 1, "result": {"present": true}}\n',
        b'{"id": null, "error": {"code": "oversize", "message": "m"}}\n',
        b'{"id": 1, "exception": {"type": "T", "message": "m", "traceback": "t"}}\n',
        b'{"id": 1, "event": {"kind": "progress", "seq": 1, "what": "w", "done": 1, "total": 2}}\n'
        b'{"id": 1, "result": {"job_id": "%b", "state": "done"}}\n' % (b"0" * 32),
    ]
    hello = {"protocol": 1, "agent_hash": "0" * 64, "cache_dir": "/c", "pid": 7}
    greeting = b"Welcome!\n" + AGENT_MARK + json.dumps(hello).encode() + b"\n"
    return [*lines, b"".join(lines), *replies, *(b"\x40" + one for one in replies), greeting]


def _onnx_seeds(folder: Path) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in (float_network(folder / "float.onnx"), int8_network(folder / "int8.onnx")):
        network = onnx.load(str(path))
        for tensor in network.graph.initializer:
            tensor.ClearField("raw_data")  # megabytes of weights teach the reader nothing
        found.append(network.SerializeToString())
    return found


def _inventory_seeds() -> list[bytes]:
    text = (
        b'[boards.nano]\nhost = "jetson-nano"\nprofile = "jetson-nano-4gb"\npython = "python3"\n'
        b'runtime = "onnxruntime"\nthreads = 4\ncache_dir = "~/cache"\ncache_bytes = 1000\n'
        b'job_timeout_s = 9.5\npower_mode = "MAXN"\nlock_clocks = true\n'
    )
    return [text, b"[boards.local]\nthreads = 2\n", b"[boards]\n"]


def _seeds(target: str, folder: Path) -> list[bytes]:
    if target == "onnx_nodes":
        return _onnx_seeds(folder)
    if target == "trtexec_log":
        return [log_text([1.0 + 0.1 * i for i in range(n)]).encode() for n in (1, 10, 25)]
    return _inventory_seeds() if target == "boards_toml" else _wire_seeds()


def _words() -> list[str]:
    """Words of the wire, which chance would take long to spell."""

    def names(node: object) -> set[str]:
        if isinstance(node, dict):
            own = set(node) | {one for one in node.get("enum", ()) if isinstance(one, str)}
            return own.union(*(names(one) for one in node.values()))
        return set().union(*(names(one) for one in node)) if isinstance(node, list) else set()

    text = sorted(word for word in names(schema()["$defs"]) if re.fullmatch(r"\w+", word))
    return [
        *(f'"{word}"' for word in text),
        AGENT_MARK.decode(),
        "1e999",
        "NaN",
        "\\ud800",
        "0" * 64,
    ]


# --- running ------------------------------------------------------------------------------------


def _quoted(word: str) -> str:
    text = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def fuzz(target: str, *, seconds: float, folder: Path) -> Outcome:
    """One target for so long; after a crash it starts again from the corpus that it has."""
    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(_seeds(target, folder / "networks")):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = folder / "words.dict"
    words.write_text("".join(f"{_quoted(word)}\n" for word in _words()))
    executions = coverage = features = size = 0
    crashes: list[str] = []
    start_s = time.monotonic()
    while (left_s := seconds - (time.monotonic() - start_s)) >= 1 and len(crashes) < MOST_CRASHES:
        command = [
            *(sys.executable, "-m", f"tests.fuzz.atheris_{target}", str(corpus)),
            *(f"-max_total_time={int(left_s)}", f"-timeout={INPUT_TIMEOUT_S}"),
            *(f"-rss_limit_mb={MEMORY_MB}", f"-dict={words}", "-max_len=4096", "-close_fd_mask=1"),
            f"-artifact_prefix={folder}/{target}-",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        progress = [found for line in lines if (found := DONE.match(line))]
        if progress:
            last = [int(group) for group in progress[-1].groups()]
            executions += last[0]
            coverage, features, size = (
                max(a, b) for a, b in zip(last[1:], (coverage, features, size), strict=True)
            )
        if done.returncode == 0:
            break
        errors = [line for line in lines if ERROR.match(line.strip())]
        crashes.append(errors[0] if errors else f"exit code {done.returncode}: {lines[-1:]}")
        (folder / f"{target}.{len(crashes)}.log").write_text(done.stderr + done.stdout)
        if not progress:
            break  # it did not even start
    return Outcome(
        target=target,
        seconds=round(time.monotonic() - start_s, 1),
        executions=executions,
        coverage=coverage,
        features=features,
        corpus=size,
        crashes=tuple(crashes),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 where a property was broken."""
    known = tuple(
        sorted(
            path.stem.removeprefix("atheris_")
            for path in Path(__file__).parent.glob("atheris_*.py")
        )
    )
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run_atheris", description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="for all targets together")
    parser.add_argument("--target", action="append", choices=known, help="one or more; else all")
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="corpus and crashes")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        parser.error("Atheris is not installed beside boardfit: pip install atheris")
    targets = options.target or known
    options.folder.mkdir(parents=True, exist_ok=True)
    share_s = options.seconds / len(targets)
    found = [fuzz(one, seconds=share_s, folder=options.folder.resolve()) for one in targets]
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    for one in () if options.json else found:
        print(
            f"{one.target}: {one.executions} executions in {one.seconds:.0f} s, {one.coverage} "
            f"edges, {one.features} features, {one.corpus} inputs kept, {len(one.crashes)} crashes"
        )
        for crash in one.crashes:
            print(f"  {crash}")
    return 1 if any(one.crashes for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
