"""Sessions with this computer and with the virtual Nano, through the real agent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from harness import sustain
from harness.boards import deploy
from harness.boards import session as session_module
from harness.boards.session import PRESETS, EngineRequest, MeasurePlan, Session
from harness.boards.transport import Transport
from harness.errors import AgentException, ConfigError, StableBoardError, TransientBoardError
from harness.records import BoardSpec, Measurement
from harness.store import Store

PLAN = MeasurePlan(warmup_s=0.01, rounds=3, block_s=0.01, block_min=5, drop=1)
SLOW_PLAN = MeasurePlan(warmup_s=0.0, rounds=4, block_s=0.0, block_min=2, drop=0)


def _fake(path: Path, **settings: object) -> EngineRequest:
    path.write_text(json.dumps(settings))
    return EngineRequest(label=path.name, path=path, precision="fp32")


def _agents(spec: BoardSpec) -> list[int]:
    """Process numbers of the agents that serve from the board's cache."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-c" in words and str(spec.cache_dir).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_runtime_that_no_agent_has_is_a_wrong_setting(local: BoardSpec) -> None:
    with pytest.raises(
        ConfigError, match=r"'tensorflow' is none of onnxruntime, tensorrt, tensorrt_rtx, fake"
    ):
        Session(replace(local, runtime="tensorflow"))


def test_allocator_settings_for_training_do_not_reach_the_board(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'MALLOC_ARENA_MAX' in os.environ: sys.exit('it does')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Session(replace(local, runtime="fake")) as session:
        assert session.facts.runtime == "fake"


@pytest.mark.parametrize("broken", ["opening", "probing"])
def test_connection_that_breaks_while_the_session_opens_is_opened_again(
    board: BoardSpec, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    launch, tries = deploy.launch, []

    def break_first(transport: Transport, spec: BoardSpec) -> deploy.Deployed:
        tries.append(spec)
        if broken == "opening" and len(tries) == 1:
            raise TransientBoardError("the connection broke")
        deployed = launch(transport, spec)
        if len(tries) == 1:
            os.kill(deployed.pid, signal.SIGKILL)
        return deployed

    monkeypatch.setattr(deploy, "launch", break_first)
    with Session(replace(board, runtime="fake")) as session:
        assert session.facts.runtime == "fake"
    assert len(tries) == 2


def test_facts_name_board_runtime_and_agent(local: BoardSpec) -> None:
    with Session(local) as session:
        facts = session.facts
    assert (facts.board, facts.runtime) == ("local", "onnxruntime")
    assert facts.runtime_version == onnxruntime.__version__
    assert "CPUExecutionProvider" in facts.providers
    assert facts.memory_bytes > 1 << 28


def test_measurement_is_interleaved_and_complete(
    board: BoardSpec, network: Path, quantized: Path
) -> None:
    engines = [
        EngineRequest(label="baseline", path=network, precision="fp32"),
        EngineRequest(label="int8", path=quantized, precision="int8"),
    ]
    with Session(replace(board, threads=2)) as session:
        first, second = session.measure(engines, plan=PLAN, campaign="c1")
    assert (first.label, second.label) == ("baseline", "int8")
    assert (first.precision, second.precision) == ("fp32", "int8")
    assert first.network_sha256 != second.network_sha256
    assert (first.threads, first.batch, first.campaign) == (2, 1, "c1")
    assert sorted(set(first.rounds)) == [0, 1, 2]
    assert len(first.samples_s) >= 3 * 5
    assert len(first.warmup_s) >= 2
    assert first.after.free_memory_bytes is not None


def test_profile_names_the_kernels_operators_and_nodes(
    board: BoardSpec, network: Path, quantized: Path
) -> None:
    with Session(board) as session:
        plain, integer = session.profile(network, runs=5), session.profile(quantized, runs=5)
    nodes = {kernel.node: kernel for kernel in plain.kernels}
    assert nodes["/conv1/Conv"].op == nodes["/conv2/Conv"].op == "Conv"
    assert nodes["/fc/Gemm"].latency_s > 0
    assert [k.op for k in integer.kernels if k.node == "/conv/Conv"] == ["QLinearConv"]


def test_inference_gives_what_the_host_computes(board: BoardSpec, network: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    host = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    expected = np.concatenate([host.run(None, {"x": inputs[i : i + 1]})[0] for i in range(6)])
    with Session(board) as session:
        outputs = session.infer(network, inputs)
        named = session.infer(network, inputs[:1], input_name="x")
        with pytest.raises(AgentException, match=r"for z alone.*\['x'\]"):
            session.infer(network, inputs, input_name="z")
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(named, expected[:1], rtol=1e-5, atol=1e-6)


def test_a_file_is_sent_once(
    board: BoardSpec, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Path] = []
    with Session(board) as session:
        put = session._link.transport.put  # type: ignore[union-attr]

        def noting(path: Path, remote: str, **options: Any) -> Any:
            sent.append(path)
            return put(path, remote, **options)

        monkeypatch.setattr(session._link.transport, "put", noting)
        assert session.put(network) == session.put(network)
    with Session(board) as session:
        monkeypatch.setattr(
            session._link.transport, "put", lambda path, *_, **__: sent.append(path)
        )
        session.put(network)
    assert sent == [network]


def test_broken_network_is_the_boards_exception(board: BoardSpec, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no network")
    engine = EngineRequest(label="bad", path=tmp_path / "bad.onnx", precision="fp32")
    with Session(board) as session, pytest.raises(AgentException) as caught:
        session.measure([engine], plan=PLAN, campaign="c")
    assert "engine_onnxruntime.py" in caught.value.traceback


def test_board_without_runtime_says_how_to_get_one(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StableBoardError, match=r"not installed.*pip install onnxruntime"):
        Session(local).__enter__()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_dead_or_hanging_agent_is_replaced_and_the_job_attached_to(
    board: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals
) -> None:
    monkeypatch.setattr(session_module, "SILENCE_S", 2.5)  # heartbeats come every second
    spec = replace(board, runtime="fake")
    events: list[dict[str, object]] = []

    def kill_once(event: dict[str, object]) -> None:
        told = any(e["kind"] == "reconnect" for e in events)
        if event["kind"] == "progress" and "job" in event and not told:
            for number in _agents(spec):
                os.kill(number, blow)
        events.append(event)

    with Session(spec, on_event=kill_once) as session:
        engine = _fake(tmp_path / "slow", latency_s=0.003, sleep_s=0.1)
        (found,) = session.measure([engine], plan=SLOW_PLAN, campaign="c")
    assert len(found.samples_s) == 8  # 4 rounds of 2 calls: run once
    assert "reconnect" in {event["kind"] for event in events}
    numbers = [event["seq"] for event in events if "seq" in event]
    assert numbers == sorted(set(numbers), key=int)  # nothing is told twice
    assert spec.cache_dir is not None
    assert len(list(Path(spec.cache_dir, "jobs").iterdir())) == 1


def test_interrupt_cancels_the_job_and_goes_on_up(board: BoardSpec, tmp_path: Path) -> None:
    spec = replace(board, runtime="fake")

    def interrupt(event: dict[str, object]) -> None:
        if event["kind"] == "progress" and "job" in event:
            raise KeyboardInterrupt

    with Session(spec, on_event=interrupt) as session, pytest.raises(KeyboardInterrupt):
        engine = _fake(tmp_path / "slow", sleep_s=5.0)
        session.measure([engine], plan=SLOW_PLAN, campaign="c")
    assert spec.cache_dir is not None
    (outcome,) = Path(spec.cache_dir, "jobs").glob("*/outcome.json")
    assert json.loads(outcome.read_text())["content"]["state"] == "cancelled"


def test_job_that_dies_is_told_with_signal_and_last_words(board: BoardSpec, tmp_path: Path) -> None:
    engine = _fake(tmp_path / "oom", print="cannot allocate", signal=9)
    with (
        Session(replace(board, runtime="fake")) as session,
        pytest.raises(
            StableBoardError, match=r"signal 9 .*memory\?.*cannot allocate.*tried 3 times"
        ),
    ):
        session.measure([engine], plan=SLOW_PLAN, campaign="c")


def _jobs_of(spec: BoardSpec, engine: EngineRequest, nonce: str | None, times: int) -> set[str]:
    assert spec.cache_dir is not None
    with Session(spec, nonce=nonce) as session:
        for _ in range(times):
            session.measure([engine], plan=SLOW_PLAN, campaign="c")
    return {path.name for path in Path(spec.cache_dir, "jobs").iterdir()}


@pytest.mark.parametrize(("nonce", "jobs"), [(None, 4), ("kept in the result folder", 2)])
def test_the_same_nonce_finds_the_results_of_a_host_that_died(
    board: BoardSpec, tmp_path: Path, nonce: str | None, jobs: int
) -> None:
    spec, engine = replace(board, runtime="fake"), _fake(tmp_path / "e", latency_s=0.001)
    # Two equal measurements in one session are two jobs.
    assert len(_jobs_of(spec, engine, nonce, 2)) == 2
    assert len(_jobs_of(spec, engine, nonce, 2)) == jobs


def test_presets_have_the_calls_that_their_percentiles_need() -> None:
    calls: Callable[[str], int] = lambda name: PRESETS[name].rounds * PRESETS[name].block_min  # noqa: E731
    assert calls("quick") >= 11
    assert calls("standard") >= 64
    assert calls("mlperf") >= 1024


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"block_min": 0}, {"block_s": float("nan")}])
def test_plan_without_calls_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="plan"):
        replace(PLAN, **changes)


def test_a_soak_arrives_with_the_measurement_and_can_be_stored(
    local: BoardSpec, tmp_path: Path
) -> None:
    engines = [
        _fake(tmp_path / "hot", latency_s=0.01, heat_share=0.2, heat_s=10.0),
        _fake(tmp_path / "steady", latency_s=0.02),
    ]
    with Session(replace(local, runtime="fake")) as session:
        taken = session.measure(engines, plan=replace(PLAN, soak_s=100.0), campaign="c")
    hot, steady = taken
    assert hot.soak is not None and steady.soak is not None
    found = sustain.summarise(hot.soak)
    # Both share 100 s. The hot engine's first three windows lie around 0.5, 2.5 and 4.5 s, with
    # 0.2 x (5 %, 22 %, 36 %) = 4.2 % of heat on average; 10 time constants later it is 20 %.
    assert found.change == pytest.approx(1.2 / 1.042 - 1, abs=0.01)
    assert found.time_constant_s == pytest.approx(10.0, rel=0.15)
    assert sustain.summarise(steady.soak).change == pytest.approx(0.0, abs=0.002)
    with Store(tmp_path / "m.db") as store:
        store.add(hot)
        assert store.all(Measurement) == (hot,)
