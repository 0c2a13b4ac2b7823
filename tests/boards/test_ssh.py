"""Sessions over a real OpenSSH server."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import paramiko
import pytest

from harness.boards import ssh
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.boards.transport import SSHTransport
from harness.errors import (
    BoardUnreachable,
    ConfigError,
    HostKeyUnknown,
    ProtocolError,
    StableBoardError,
    TransientBoardError,
)
from harness.records import BoardSpec
from tests.boards.sshd import Sshd, free_port, make_key
from tests.boards.support import python36_with_runtime

PLAN = MeasurePlan(warmup_s=0.01, rounds=2, block_s=0.01, block_min=5, drop=1)


@pytest.fixture
def trusted(sshd: Sshd, remote: BoardSpec) -> Sshd:
    ssh.trust(remote)
    return sshd


def test_unknown_host_key_is_refused_with_fingerprint_and_command_then_trusted(
    sshd: Sshd, remote: BoardSpec, own_settings: Path
) -> None:
    with pytest.raises(HostKeyUnknown, match="boardfit boards trust nano") as caught:
        Session(remote).__enter__()
    assert sshd.fingerprint() in str(caught.value)
    assert ssh.trust(remote) == sshd.fingerprint()
    assert f"[127.0.0.1]:{sshd.port} ssh-ed25519" in (own_settings / "known_hosts").read_text()
    with Session(remote) as session:
        assert session.facts.board == "nano"


def test_changed_host_key_is_refused_until_it_is_trusted_again(
    trusted: Sshd, remote: BoardSpec, own_settings: Path
) -> None:
    old = trusted.fingerprint()
    trusted.stop()
    for path in (trusted.host_key, trusted.host_key.with_suffix(".pub")):
        path.unlink()
    make_key(trusted.host_key)
    trusted.start()
    with pytest.raises(StableBoardError, match="someone may be listening") as caught:
        SSHTransport(remote)
    assert old in str(caught.value)
    assert trusted.fingerprint() in str(caught.value)
    ssh.trust(remote)
    assert len((own_settings / "known_hosts").read_text().splitlines()) == 1
    SSHTransport(remote).close()


def test_users_own_known_hosts_counts_too(sshd: Sshd, remote: BoardSpec) -> None:
    public = sshd.host_key.with_suffix(".pub").read_text()
    (sshd.folder / "no_known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {public}")
    SSHTransport(remote).close()


def test_refused_key_says_what_to_do(trusted: Sshd, remote: BoardSpec, tmp_path: Path) -> None:
    trusted.write_client_config(identity=make_key(tmp_path / "other_key"))
    with pytest.raises(StableBoardError, match=r"none of your keys.*ssh-copy-id board"):
        SSHTransport(remote)
    trusted.write_client_config(identity=tmp_path / "no_key_at_all")
    with pytest.raises(StableBoardError, match="ssh-copy-id board"):
        SSHTransport(remote)


@pytest.mark.parametrize(
    "words",  # paramiko's own
    ["Authentication timeout.", "Authentication failed: transport shut down or saw EOF"],
)
def test_link_that_is_lost_during_the_login_is_no_refusal(words: str) -> None:
    lost, where = paramiko.AuthenticationException(words), ssh.route("someone@127.0.0.1:22")
    with pytest.raises(TransientBoardError, match="was lost"), ssh._explained("b", where):
        raise lost


def test_port_where_nobody_listens_is_unreachable(remote: BoardSpec) -> None:
    spec = replace(remote, host=f"someone@127.0.0.1:{free_port()}")
    with pytest.raises(BoardUnreachable, match=r"someone@127\.0\.0\.1 port"):
        Session(spec).__enter__()
    with pytest.raises(BoardUnreachable):
        ssh.trust(spec)


@pytest.mark.usefixtures("trusted")
def test_board_without_python_says_which_key_to_set(remote: BoardSpec) -> None:
    with pytest.raises(StableBoardError, match=r"has no no-such-python.*boards\.toml"):
        Session(replace(remote, python="no-such-python")).__enter__()


def test_noise_of_a_login_script_is_skipped(sshd: Sshd, remote: BoardSpec) -> None:
    sshd.stop()
    sshd.start("ForceCommand printf 'Welcome\\n42 updates'; eval \"$SSH_ORIGINAL_COMMAND\"")
    ssh.trust(remote)
    with Session(remote) as session:
        assert session.facts.board == "nano"


def test_noise_of_a_login_script_gets_into_no_file(
    sshd: Sshd, remote: BoardSpec, tmp_path: Path
) -> None:
    sshd.stop()
    sshd.start("ForceCommand printf 'Welcome\\n42 updates'; eval \"$SSH_ORIGINAL_COMMAND\"")
    ssh.trust(remote)
    sent, there, back = tmp_path / "sent", tmp_path / "there", tmp_path / "back"
    content = b"\nboardfit-file\n" + np.random.default_rng(0).bytes(300_000)
    sent.write_bytes(content)
    there.write_bytes(b"")
    transport = SSHTransport(remote)
    try:
        assert transport.put(sent, str(there)) == hashlib.sha256(content).hexdigest()
        transport.get(str(there), back)
    finally:
        transport.close()
    assert there.read_bytes() == back.read_bytes() == content


def test_noise_without_end_is_no_file(sshd: Sshd, remote: BoardSpec, tmp_path: Path) -> None:
    sshd.stop()
    sshd.start("ForceCommand exec yes")
    ssh.trust(remote)
    transport = SSHTransport(remote)
    try:
        with pytest.raises(ProtocolError, match="login script"):
            transport.get("/etc/hostname", tmp_path / "back")
    finally:
        transport.close()


def test_dropped_connection_is_opened_again_and_the_job_attached_to(
    trusted: Sshd, remote: BoardSpec, tmp_path: Path
) -> None:
    events: list[str] = []

    def drop_once(event: dict[str, object]) -> None:
        if event["kind"] == "progress" and "reconnect" not in events:
            trusted.drop_connections()
        events.append(str(event["kind"]))

    path = tmp_path / "slow"
    path.write_text(json.dumps({"latency_s": 0.003, "sleep_s": 0.1}))
    engine = EngineRequest(label="slow", path=path, precision="fp32")
    plan = MeasurePlan(warmup_s=0.0, rounds=5, block_s=0.0, block_min=3, drop=0)
    with Session(replace(remote, runtime="fake"), on_event=drop_once) as session:
        (found,) = session.measure([engine], plan=plan, campaign="c")
    assert "reconnect" in events
    assert len(found.samples_s) == 15
    assert len(list((tmp_path / "cache" / "jobs").iterdir())) == 1


def test_jump_host_carries_the_connection(trusted: Sshd, remote: BoardSpec) -> None:
    trusted.write_client_config(
        extra="Host behind\n"
        "  HostName 127.0.0.1\n"
        f"  Port {trusted.port}\n"
        f"  IdentityFile {trusted.user_key}\n"
        "  ProxyJump board\n"
    )
    with Session(replace(remote, host="behind", runtime="fake")) as session:
        assert session.facts.runtime == "fake"


def test_jump_hosts_in_a_circle_are_refused(sshd: Sshd, remote: BoardSpec) -> None:
    sshd.write_client_config(extra="  ProxyJump board\n")
    with pytest.raises(ConfigError, match="circle"):
        SSHTransport(remote)


def test_there_is_nothing_to_trust_on_this_computer(local: BoardSpec) -> None:
    with pytest.raises(ConfigError, match="this computer"):
        ssh.trust(local)


@pytest.mark.usefixtures("trusted")
def test_a_large_file_arrives_whole(remote: BoardSpec, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(0).bytes(20 << 20))
    with Session(replace(remote, runtime="fake")) as session:
        sha256 = session.put(path)
    assert (tmp_path / "cache" / "blobs" / sha256).stat().st_size == 20 << 20


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("version", ["host", "3.6"])
def test_measure_profile_and_infer_over_ssh(
    remote: BoardSpec, network: Path, quantized: Path, version: str
) -> None:
    python = sys.executable if version == "host" else python36_with_runtime()
    engines = [
        EngineRequest(label="fp32", path=network, precision="fp32"),
        EngineRequest(label="int8", path=quantized, precision="int8"),
    ]
    inputs = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    with Session(replace(remote, python=python)) as session:
        measured = session.measure(engines, plan=PLAN, campaign="c")
        plain, integer = session.profile(network, runs=5), session.profile(quantized, runs=5)
        outputs = session.infer(network, inputs)
        version_there = session.facts.runtime_version
    assert [m.runtime_version for m in measured] == [version_there] * 2
    assert all(len(m.samples_s) >= 10 for m in measured)
    assert {"/conv1/Conv", "/conv2/Conv", "/fc/Gemm"} <= {k.node for k in plain.kernels}
    assert [k.op for k in integer.kernels if k.node == "/conv/Conv"] == ["QLinearConv"]
    host = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    expected = np.concatenate([host.run(None, {"x": inputs[i : i + 1]})[0] for i in range(3)])
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
