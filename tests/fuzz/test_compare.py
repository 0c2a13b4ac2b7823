"""Stores, printed profiles and trtexec's files with anything in them, through the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.records import dump
from harness.store import Store
from tests.fuzz import properties
from tests.fuzz.support import damaged, deep, fuzzed, line, mutated, values
from tests.test_cli import run
from tests.test_stats import measurement
from tests.trtexec.logs import log_text

LOG = log_text([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0]).encode()
KERNEL = {"name": "k", "op": "Conv", "node": "k", "latency_s": 1e-3}
MEASURED = measurement([1.0e-3, 1.1e-3, 1.2e-3, 1.1e-3], [0, 0, 1, 1])
PRINTED = {"measurement": json.loads(dump(MEASURED)), "kernels": [dict(KERNEL)]}
CALL = {
    "startInMs": 0.0,
    "endInMs": 0.1,
    "startComputeMs": 0.1,
    "endComputeMs": 1.0,
    "startOutMs": 1.0,
    "endOutMs": 1.1,
    "inMs": 0.1,
    "computeMs": 0.9,
    "outMs": 0.1,
    "latencyMs": 1.1,
    "endToEndMs": 1.1,
}
LAYERS = [{"count": 10}, {"name": "a", "timeMs": 1.0, "averageMs": 0.1, "percentage": 100.0}]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs a command in a folder of its own; whatever it says, it says it in one message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))

    def one(*arguments: str, name: str) -> int:
        code, _, err = run(capsys, *arguments)
        assert code in (0, 1, 2), err
        assert "internal error" not in err and "Traceback" not in err, err
        if code:
            assert name in err, err
        return int(code)

    return one


def _store() -> bytes:
    path = properties._home() / "made.db"
    if not path.exists():
        with Store(path) as store:
            store.add(replace(MEASURED, taken_at="2026-01-02T00:00:00Z"))
    return path.read_bytes()


def test_two_runs_that_are_right_are_compared(command: Any) -> None:
    Path("a.json").write_bytes(line(PRINTED))
    Path("b.db").write_bytes(_store())
    assert command("compare", "a.json", "b.db", "--allow-unlike", name="") == 0


@pytest.mark.timeout(120)
def test_a_damaged_run_is_named(command: Any) -> None:
    @fuzzed(60)
    @given(
        st.one_of(
            st.integers(0, 10**6).map(lambda seed: damaged(_store(), seed)),
            st.integers(0, 10**6).map(lambda seed: damaged(LOG, seed)),
            mutated(PRINTED).map(line),
            st.binary(max_size=60),
        )
    )
    @example(b"{" + deep())
    @example(b'{"measurement": %s}' % deep(900))
    @example(b"")
    @example(b"SQLite format 3\0")
    @example(line({**PRINTED, "kernels": 7}))
    def compare(data: bytes) -> None:
        Path("a.json").write_bytes(line(PRINTED))
        for left in Path().glob("wrong.run*"):
            left.unlink()
        Path("wrong.run").write_bytes(data)
        command("compare", "a.json", "wrong.run", "--allow-unlike", name="")

    compare()


@pytest.mark.timeout(120)
def test_damaged_files_of_trtexec_are_named(command: Any) -> None:
    Path("good.log").write_bytes(LOG)

    @fuzzed(30)
    @given(
        st.sampled_from(("--times", "--profile", "log")),
        st.one_of(
            mutated([CALL] * 10).map(line),
            mutated(LAYERS).map(line),
            st.integers(0, 10**6).map(lambda seed: damaged(LOG, seed)),
            values().map(line),
            st.binary(max_size=60),
        ),
    )
    @example("--times", deep())
    @example("--profile", b"[1e999]")
    def imported(what: str, data: bytes) -> None:
        Path("wrong.file").write_bytes(data)
        Path("new.db").unlink(missing_ok=True)
        if what == "log":
            command("import", "wrong.file", "--store", "new.db", name="wrong.file")
        else:
            arguments = ("import", "good.log", what, "wrong.file", "--store", "new.db")
            command(*arguments, name="")

    imported()


@fuzzed(100)
@given(st.one_of(mutated([CALL] * 3).map(line), mutated(LAYERS).map(line), values().map(line)))
@example(deep())
@example(b'[{"count": 1e999}]')
def test_any_times_and_profiles_are_read_or_refused_by_name(data: bytes) -> None:
    properties.trtexec_files(data)


@fuzzed(100)
@given(st.one_of(st.integers(0, 10**6).map(lambda seed: damaged(LOG, seed)), st.binary()))
def test_any_log_is_read_or_refused_by_name(data: bytes) -> None:
    properties.trtexec_log(data)
