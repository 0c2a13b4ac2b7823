"""compare, import and the exports through the command line, with real profiles of this computer."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest

from harness.store import Store
from tests.boards.support import float_network
from tests.test_cli import run
from tests.test_stats import measurement
from tests.trtexec.logs import log_text, write_log

QUICK = ("--duration", "0.1", "--iterations", "20", "--warm-up", "10")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path


def stored(folder, *samples_s, spread=0.0):
    """A store of runs of one network: each five rounds around one of ``samples_s``."""
    with Store(folder / "boardfit.db") as kept:
        for day, sample_s in enumerate(samples_s, 1):
            taken = measurement([sample_s * (1 + spread * (i - 2)) for i in range(5)], range(5))
            kept.add(replace(taken, taken_at=f"2026-01-{day:02}T00:00:00Z"))


def test_two_profiles_of_one_engine_have_the_same_kernels(here, capsys):
    float_network(here / "net.onnx")
    code, _, err = run(capsys, "profile", "net.onnx", *QUICK)
    assert code == 0, err
    code, out, err = run(capsys, "profile", "net.onnx", *QUICK, "--json")
    assert code == 0, err
    (here / "printed.json").write_text(out)
    assert json.loads(out)["attribution"]["attributed"] == pytest.approx(1)
    code, out, err = run(capsys, "compare", "boardfit.db~1", "printed.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["only_a"], found["only_b"], found["unlike"]) == ([], [], [])
    assert "/conv1/Conv" in {kernel["key"] for kernel in found["kernels"]}
    assert all(kernel["difference"]["ratio_interval"] for kernel in found["kernels"])
    names = {change["name"] for change in found["conditions"]}
    assert {"runtime_version", "threads", "agent_hash", "machine", "power_mode"} <= names
    code, out, _ = run(capsys, "compare", "boardfit.db~1", "boardfit.db")
    assert code == 0
    assert "/conv2/Conv" in out and "by independent intervals" in out


def test_two_networks_are_measured_interleaved(here, capsys):
    float_network(here / "old.onnx")
    model = onnx.load(str(here / "old.onnx"))
    model.doc_string = "another file, the same work"
    onnx.save(model, str(here / "new.onnx"))
    code, out, err = run(capsys, "compare", "old.onnx", "new.onnx", "--duration", "0.2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["total"]["basis"], found["total"]["rounds"]) == ("rounds", 20)
    assert found["unlike"] == ["network_sha256"]
    assert len(found["kernels"]) > 4
    assert {kernel["difference"]["basis"] for kernel in found["kernels"]} == {"rounds"}
    # Both were kept, and are the same comparison from the store.
    code, out, err = run(capsys, "compare", "boardfit.db#old.onnx", "boardfit.db#new.onnx")
    assert code == 0, err
    assert "drift cancels" in out


def test_a_network_and_a_run_are_refused(here, capsys):
    float_network(here / "net.onnx")
    stored(here, 0.01)
    code, _, err = run(capsys, "compare", "boardfit.db", "net.onnx")
    assert (code, "one is a network and the other a run" in err) == (2, True)


@pytest.mark.parametrize(
    ("b_s", "spread", "options", "code", "outcome"),
    [
        (0.0110, 0.0, (), 1, "slower"),
        (0.0101, 0.0, (), 0, "not slower"),
        (0.0090, 0.0, (), 0, "not slower"),
        (0.0102, 0.05, (), 0, "cannot tell"),
        (0.0102, 0.05, ("--strict",), 1, "cannot tell"),
        (0.0101, 0.0, ("--strict",), 0, "not slower"),
    ],
)
def test_a_limit_fails_where_the_interval_says_slower(
    here, capsys, b_s, spread, options, code, outcome
):
    stored(here, 0.010, b_s, spread=spread)
    arguments = ("compare", "boardfit.db~1", "boardfit.db", "--fail-if-slower", "3%", *options)
    got, out, err = run(capsys, *arguments)
    assert got == code, err
    assert f"{outcome}" in out
    got, out, _ = run(capsys, *arguments, "--json")
    assert (got, json.loads(out)["outcome"]) == (code, outcome)


def test_unlike_runs_exit_with_2_and_name_the_field(here, capsys):
    stored(here, 0.010)
    with Store(here / "boardfit.db") as kept:
        kept.add(replace(measurement([0.01, 0.02], [0, 1]), batch=8, taken_at="2026-02-01"))
    arguments = ("compare", "boardfit.db~1", "boardfit.db")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "batch is 1 in A and 8 in B" in err
    assert run(capsys, *arguments, "--may-differ", "batch")[0] == 0
    assert run(capsys, *arguments, "--allow-unlike")[0] == 0


@pytest.mark.parametrize("text", ["3", "three", "-3%", "", "99999%"])
def test_a_limit_that_is_no_percentage_is_refused(here, capsys, text):
    stored(here, 0.010, 0.011)
    code, _, err = run(
        capsys, "compare", "boardfit.db~1", "boardfit.db", f"--fail-if-slower={text}"
    )
    assert code == 2
    assert "no percentage" in err


def test_what_is_exported_is_imported_again(here, capsys):
    float_network(here / "net.onnx")
    exports = ("--exportTimes", "t.json", "--exportProfile", "p.json", "--export-trace", "c.json")
    code, out, err = run(capsys, "profile", "net.onnx", *QUICK, *exports, "--json")
    assert code == 0, err
    printed = json.loads(out)
    samples_ms = [sample * 1e3 for sample in printed["measurement"]["samples_s"]]
    write_log(here / "run.log", samples_ms)
    code, out, err = run(
        capsys,
        *("import", "run.log", "--network", "net.onnx", "--times", "t.json"),
        *("--layers", "p.json", "--store", "imported.db", "--json"),
    )
    assert code == 0, err
    (found,) = json.loads(out)
    assert found["samples_s"] == pytest.approx(printed["measurement"]["samples_s"], abs=1e-9)
    assert found["network_sha256"] == printed["measurement"]["network_sha256"]
    took = [(kernel["name"], kernel["latency_s"]) for kernel in printed["kernels"]]
    again = [(kernel["name"], kernel["latency_s"]) for kernel in found["kernels"]]
    assert [name for name, _ in again] == [name for name, _ in took]
    assert [s for _, s in again] == pytest.approx([s for _, s in took], abs=1e-9)
    events = json.loads((here / "c.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "kernel" for event in events) == len(took)


def test_logs_are_imported_as_summaries_and_never_as_calls(here, capsys):
    write_log(here / "a.log", (1.0, 2.0) * 30)
    write_log(here / "b.log", (3.0, 4.0) * 30, net="b.onnx")
    code, out, err = run(capsys, "import", "a.log", "b.log", "--board", "nano")
    assert code == 0, err
    assert "6 averages" in out and "on nano" in out and "unproven without --network" in out
    code, out, _ = run(capsys, "import", "a.log", "b.log", "--board", "nano", "--json")
    first, second = json.loads(out)
    assert (first["known"], second["known"]) == (True, True)
    assert (first["samples_s"], first["kernels"]) == (None, None)
    assert second["times"]["Latency"]["median_s"] == 0.0035
    code, out, err = run(capsys, "compare", "boardfit.db#net.onnx", "b.log", "--allow-unlike")
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "gone.log"), "gone.log cannot be read"),
        (("import", "good.log", "bad.log"), "bad.log is no trtexec log"),
        (("import", "good.log", "--times", "gone.json"), "gone.json cannot be read"),
        (("import", "good.log", "--network", "gone.onnx"), "gone.onnx cannot be read"),
        (("import", "good.log", "two.log", "--times", "t.json"), "one at a time"),
        (("compare", "gone", "good.log"), "gone does not exist"),
        (("compare", "good.log", "good.log"), "the same run"),
        (("compare", "bad.log", "good.log"), "bad.log is no trtexec log"),
        (("compare", "a.onnx", "b.onnx"), "a.onnx does not exist"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_stored(here, capsys, arguments, words):
    write_log(here / "good.log", (1.0, 2.0))
    (here / "two.log").write_text(log_text((1.0, 2.0), net="two.onnx"))
    (here / "bad.log").write_text("nothing of the kind")
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "internal error" not in err
    assert not (here / "boardfit.db").exists()
