"""The virtual Nano is what it says: another account, Python 3.6, onnxruntime 1.10."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from harness.boards import ssh, transport
from harness.boards.session import EngineRequest, MeasurePlan, Session
from tests.boards.board_python import run_as
from tests.boards.nano import Nano
from tests.boards.proxy import Proxy
from tests.boards.support import HOW_TO_GET_36, float_network

PLAN = MeasurePlan(warmup_s=0.01, rounds=2, block_s=0.01, block_min=5, drop=1)


def _like_a_nano(nano: Nano) -> Nano:
    if nano.python.version[:2] != (3, 6) or not nano.python.runtime:
        found = ".".join(map(str, nano.python.version))
        found += "" if nano.python.runtime else " without onnxruntime"
        pytest.skip(f"the virtual Nano runs Python {found}: {HOW_TO_GET_36}")
    return nano


def test_board_user_runs_python_36_with_the_runtime_of_a_nano(nano: Nano) -> None:
    _like_a_nano(nano)
    text = "import sys, numpy, onnxruntime as o; print(sys.version[:4], numpy.__version__, end=' ')"
    done = run_as(
        nano.user,
        [nano.python.executable, "-c", f"{text}; print(o.__version__)"],
        env={"LD_LIBRARY_PATH": nano.python.library_dir or ""},
    )
    assert done.stdout.split() == ["3.6.", "1.19.5", "1.10.0"], done.stderr


def test_agent_and_workers_run_as_the_unprivileged_user_in_its_own_home(
    nano: Nano, tmp_path: Path
) -> None:
    (tmp_path / "engine").write_text('{"latency_s": 0.001, "sleep_s": 0.05}')
    engine = EngineRequest(label="e", path=tmp_path / "engine", precision="fp32")
    roles: set[str] = set()
    spec = nano.spec_of("fake")
    with Session(spec, on_event=lambda _: roles.update(p.role for p in nano.processes())) as found:
        found.measure([engine], plan=PLAN, campaign="c")
    assert {"agent", "worker"} <= roles
    assert nano.leftovers() == []
    assert nano.user.uid != 0
    owners = {path.stat().st_uid for path in nano.cache.rglob("*")}
    assert owners == {nano.user.uid}
    assert {path.name for path in nano.user.home.iterdir()} == {".cache"}


def test_real_networks_give_on_the_nano_what_they_give_here(nano: Nano, tmp_path: Path) -> None:
    _like_a_nano(nano)
    network = float_network(tmp_path / "float.onnx")
    inputs = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    here = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    expected = np.concatenate([here.run(None, {"x": inputs[i : i + 1]})[0] for i in range(3)])
    engine = EngineRequest(label="e", path=network, precision="fp32")
    with Session(nano.spec) as session:
        assert session.facts.python.startswith("3.6.")
        assert session.facts.runtime_version == "1.10.0"
        outputs = session.infer(network, inputs)
        (measured,) = session.measure([engine], plan=PLAN, campaign="c")
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert len(measured.samples_s) >= 10


def test_switched_off_board_has_no_processes_but_all_its_files(nano: Nano) -> None:
    with Session(nano.spec_of("fake")):
        assert nano.switch_off() >= 1
        assert nano.processes() == []
        nano.switch_on()
    assert len(list((nano.cache / "agents").iterdir())) == 1


def test_nano_is_reached_through_a_slow_line_too(nano: Nano) -> None:
    with Proxy(nano.sshd.port, rate_bytes_s=10e6, delay_s=0.02) as proxy:
        nano.behind(proxy.port)
        with Session(nano.spec_of("fake")) as session:
            assert session.facts.board == "nano"
        assert proxy.carried_bytes[1] > 0


@pytest.mark.parametrize("silence", ["stall", "abandon"])
def test_upload_over_a_line_that_goes_silent_goes_on_over_a_new_one(
    nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence: str
) -> None:
    monkeypatch.setattr(transport, "SILENCE_S", 2.0)
    monkeypatch.setattr(ssh, "SILENT_S", 2.0)
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 2.0)
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(0).bytes(24 << 20))
    events: list[dict[str, object]] = []
    with Proxy(nano.sshd.port, rate_bytes_s=20e6) as proxy:

        def go_silent(event: dict[str, object]) -> None:
            events.append(event)
            if len(events) == 1:
                # As on a network card; loopback takes megabytes, and nothing would ever block.
                link = session._link.transport._client.get_transport()
                link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            if event["kind"] == "progress" and len(events) == 10:
                getattr(proxy, silence)()
            elif event["kind"] == "reconnect":
                proxy.resume()

        nano.behind(proxy.port)
        with Session(nano.spec_of("fake"), on_event=go_silent) as session:
            sha256 = session.put(path)
        sent_bytes, _ = proxy.carried_bytes
    assert [event["kind"] for event in events].count("reconnect") == 1
    assert (nano.cache / "blobs" / sha256).read_bytes() == path.read_bytes()
    assert sent_bytes < 40 << 20  # what had arrived is not sent again
    assert nano.leftovers() == []
