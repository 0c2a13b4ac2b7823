"""``boardfit profile`` with ``--strict`` and ``--sustain``, through the real agent."""

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness import profiling, units, verdict
from harness.errors import ConditionError, ConfigError, TransientBoardError
from harness.records import BoardSpec, Measurement
from harness.store import Store
from tests.boards.support import float_network
from tests.fits import command, environment
from tests.test_cli import run
from tests.test_verdict import CALM, bimodal, steady, stream

LOCAL = BoardSpec(name="local")
PLAN = profiling.plan(warm_up_s=0.1, duration_s=1.0, iterations=None, percentile=None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a network and an agent's cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    float_network(tmp_path / "net.onnx")
    (tmp_path / "boards.toml").write_text(f'[boards.local]\ncache_dir = "{tmp_path / "cache"}"\n')
    return tmp_path


# --- how long -----------------------------------------------------------------------------------


def test_a_percentile_is_measured_with_the_calls_it_needs():
    def calls(**options):
        given = {"iterations": None, "percentile": None, **options}
        found = profiling.plan(warm_up_s=0.1, duration_s=1.0, **given)
        return found.rounds * found.block_min

    assert calls() >= 64
    assert calls(percentile=99.0) >= 662
    # Who says how many gets them, and the verdict says what they are worth.
    assert 5 <= calls(percentile=99.0, iterations=5) < 64


@pytest.mark.parametrize(
    ("text", "seconds"), [("5min", 300.0), ("90 s", 90.0), ("0.5h", 1800.0), ("0", 0.0)]
)
def test_durations_are_read_with_their_unit(text, seconds):
    assert units.parse_duration(text, name="--sustain") == seconds


@pytest.mark.parametrize("text", ["5", "5 ms", "-5s", "ten min", "9h", ""])
def test_what_is_no_duration_is_named(text):
    with pytest.raises(ConfigError, match="--sustain"):
        units.parse_duration(text, name="--sustain")


def test_a_board_is_sustained_two_minutes_before_a_fits_verdict_and_local_is_not():
    assert profiling.sustain_s(None, LOCAL) == 0.0
    assert profiling.sustain_s(None, BoardSpec(name="nano", host="nano")) == 120.0
    assert profiling.sustain_s("0", BoardSpec(name="nano", host="nano")) == 0.0
    assert profiling.sustain_s("3min", LOCAL) == 180.0


# --- strict -------------------------------------------------------------------------------------


def judged(shape, **changes):
    return verdict.judge(replace(stream(shape, 0), before=CALM, after=CALM, **changes))


def test_strict_says_what_is_wrong_what_to_do_and_where_the_measurement_is():
    profiling.require_valid("net", verdict.judge(stream(steady, 0), percentiles=(50,)), kept="m.db")
    with pytest.raises(ConditionError, match=r"net is UNSTABLE: .*spread by.*kept in m\.db"):
        profiling.require_valid("net", judged(bimodal), kept="m.db")
    assert ConditionError.exit_code == 1


def test_strict_exits_with_1_and_keeps_the_measurement(folder, capsys):
    # Five calls do not support p99, on any board.
    options = ("--iterations", "5", "--duration", "0", "--percentile", "99")
    code, out, err = run(capsys, "profile", "net.onnx", *options)
    assert code == 0, err
    assert "UNSTABLE" in out
    assert "p99 needs 662 calls" in out
    code, out, err = run(capsys, "profile", "net.onnx", *options, "--strict", "--json")
    assert code == 1
    assert "p99 needs 662 for 99 % confidence" in err
    shown = json.loads(out)
    assert shown["verdict"]["status"] == "UNSTABLE"
    values = {row["percent"]: row["value_s"] for row in shown["verdict"]["percentiles"]}
    assert values[99] is None
    with Store(folder / "boardfit.db") as store:
        assert len(store.all(Measurement)) == 2


# --- sustained ----------------------------------------------------------------------------------


def test_a_sustained_profile_reports_stores_and_plots_the_soak(folder, capsys):
    options = ("--duration", "0.2", "--sustain", "5s", "--plot", "soak.html")
    code, out, err = run(capsys, "profile", "net.onnx", *options)
    assert code == 0, err
    assert "sustained for 5 s" in out
    page = (folder / "soak.html").read_text()
    assert "seconds without a pause" in page
    with Store(folder / "boardfit.db") as store:
        (kept,) = store.all(Measurement)
    assert len(kept.soak.windows) == 5
    # Calls of some ten microseconds: 5 s of them are thinned.
    called = sum(window.n for window in kept.soak.windows)
    assert len(kept.soak.samples_s) == -(-called // kept.soak.every) <= 100_000
    assert not list(folder.glob("*.running"))


@pytest.mark.usefixtures("folder")
def test_a_plot_without_a_soak_is_refused(capsys):
    code, _, err = run(capsys, "profile", "net.onnx", "--plot", "soak.html")
    assert code == 2
    assert "--sustain" in err


def _jobs(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cache" / "jobs").iterdir()}


def test_a_host_that_was_killed_finds_its_sustained_run_on_the_board(folder, capsys):
    arguments = ("profile", "net.onnx", "--duration", "0.2", "--sustain", "6s")
    with subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("cache/jobs/*/running")):
            assert time.monotonic() < deadline, "the job does not start"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert len(list(folder.glob("boardfit.db.*.running"))) == 1
    (before,) = _jobs(folder)
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "sustained for 6 s" in out
    # The job that ran already, and the kernels' profile.
    assert before in _jobs(folder) and len(_jobs(folder)) == 2
    assert not list(folder.glob("boardfit.db.*.running"))


def test_a_nonce_stays_only_where_the_job_may_still_be_on_the_board(tmp_path):
    network = float_network(tmp_path / "net.onnx")
    store = tmp_path / "m.db"

    def nonce(error=None):
        with profiling.resumable(store, network, LOCAL, PLAN) as found:
            if error is not None:
                raise error
        return found

    def left():
        return len(list(tmp_path.glob("*.running")))

    assert nonce() != nonce()
    for error, stays in ((TransientBoardError("gone"), 1), (KeyboardInterrupt(), 0)):
        with pytest.raises(type(error)):
            nonce(error)
        assert left() == stays
    with pytest.raises(TransientBoardError):
        nonce(TransientBoardError("gone"))
    (path,) = tmp_path.glob("*.running")
    kept = path.read_text()
    assert nonce() == kept
    assert left() == 0
