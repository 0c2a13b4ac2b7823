"""The doctor on this computer and on a real OpenSSH server, with all that can go wrong there."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.boards import doctor, reach, ssh
from harness.boards.doctor import diagnose
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import ConfigError
from harness.records import BoardSpec, Check, Diagnosis
from tests.boards.sshd import Sshd, free_port, make_key
from tests.boards.support import python36_with_runtime

AFTER_LOGIN = ("python", "cache folder", "disk", "file transfer", "agent")
SECTION_NAMES = tuple(name for names in doctor.SECTIONS.values() for name in names)


@pytest.fixture
def trusted(sshd: Sshd, remote: BoardSpec) -> Sshd:
    ssh.trust(remote)
    return sshd


def _named(diagnosis: Diagnosis) -> dict[str, Check]:
    found = {check.name: check for check in diagnosis.checks}
    assert len(found) == len(diagnosis.checks), "a check was made twice"
    return found


def _look(spec: BoardSpec) -> dict[str, Check]:
    return _named(diagnose(spec))


def _failure(spec: BoardSpec, name: str) -> Check:
    """The check ``name``, which must be the only one that failed."""
    found = _look(spec)
    assert [check.name for check in found.values() if check.status == "fail"] == [name]
    assert found[name].remedy
    return found[name]


# --- boards that are well -----------------------------------------------------------------------


def test_this_computer_is_usable_and_every_check_is_made(local: BoardSpec) -> None:
    told: list[str] = []
    diagnosis = diagnose(local, on_check=told.append)
    found = _named(diagnosis)
    assert diagnosis.verdict == "usable", found
    assert {"address", *AFTER_LOGIN, *SECTION_NAMES} <= set(found)
    assert found["python"].found.startswith(f"{platform.python_version()} in ")
    assert found["agent"].facts["round_trip_s"] > 0
    assert set(told) <= set(found)


def test_a_look_leaves_no_file_behind_but_the_agent(local: BoardSpec) -> None:
    diagnose(local)
    assert local.cache_dir is not None
    left = {path.name for path in Path(local.cache_dir).iterdir() if path.is_file()}
    assert not [name for name in left if name.startswith("doctor-")]


@pytest.mark.usefixtures("trusted")
def test_a_board_over_ssh_is_told_step_by_step(remote: BoardSpec, sshd: Sshd) -> None:
    diagnosis = diagnose(remote)
    found = _named(diagnosis)
    assert diagnosis.verdict == "usable", found
    order = [check.name for check in diagnosis.checks]
    assert order[:10] == ["address", "tcp", "ssh", "host key", "login", *AFTER_LOGIN]
    assert found["ssh"].found.startswith("SSH-2.0-OpenSSH")
    assert found["host key"].found == f"trusted: {sshd.fingerprint()}"
    assert f"port {sshd.port}" in found["login"].found


@pytest.mark.usefixtures("trusted")
def test_a_board_with_python_36_is_usable(remote: BoardSpec) -> None:
    found = _look(replace(remote, python=python36_with_runtime()))
    assert not [check for check in found.values() if check.status == "fail"]
    assert found["python"].found.startswith("3.6.")
    assert found["onnxruntime"].found.startswith("1.10.0 with CPUExecutionProvider")
    assert found["onnx files"].found == "up to opset 15 and IR version 8 (tried there)"


def test_a_server_without_sftp_will_do(sshd: Sshd, remote: BoardSpec) -> None:
    sshd.stop()
    # Every request for a subsystem becomes a shell command, which there is not.
    sshd.start("ForceCommand printf 'Welcome\\n42 updates'; eval \"$SSH_ORIGINAL_COMMAND\"")
    ssh.trust(remote)
    assert diagnose(remote).verdict == "usable"


@pytest.mark.usefixtures("trusted")
def test_a_board_behind_a_jump_host_is_looked_at_through_it(sshd: Sshd, remote: BoardSpec) -> None:
    sshd.write_client_config(
        extra="Host behind\n"
        "  HostName 127.0.0.1\n"
        f"  Port {sshd.port}\n"
        f"  IdentityFile {sshd.user_key}\n"
        "  ProxyJump board\n"
    )
    diagnosis = diagnose(replace(remote, host="behind"))
    assert diagnosis.verdict == "usable"
    assert _named(diagnosis)["tcp"].found.endswith("127.0.0.1 is reached through ProxyJump board")


def test_a_runtime_that_no_agent_has_is_a_wrong_setting(local: BoardSpec) -> None:
    with pytest.raises(ConfigError, match="'tensorflow' is none of onnxruntime"):
        diagnose(replace(local, runtime="tensorflow"))


# --- not to be reached --------------------------------------------------------------------------


def _unreachable(spec: BoardSpec, name: str) -> Check:
    diagnosis = diagnose(spec)
    found = _named(diagnosis)
    assert diagnosis.verdict == "unreachable"
    assert [check.name for check in found.values() if check.status == "fail"] == [name]
    skipped = [check for check in found.values() if check.status == "skip"]
    assert {check.found for check in skipped} == {f"not looked at: {name} failed"}
    assert set(SECTION_NAMES) <= {check.name for check in skipped}
    return found[name]


@pytest.mark.parametrize("host", ["no-such-board.invalid", f"a..{'b' * 70}"])
def test_a_name_that_nobody_knows(remote: BoardSpec, host: str) -> None:
    check = _unreachable(replace(remote, host=host), "address")
    assert f"{host} is not known" in check.found
    assert check.remedy is not None and "HostName" in check.remedy


def test_a_port_where_nobody_listens(remote: BoardSpec) -> None:
    check = _unreachable(replace(remote, host=f"someone@127.0.0.1:{free_port()}"), "tcp")
    assert "refuses connections: the board is on" in check.found
    assert check.remedy is not None and "systemctl enable --now ssh" in check.remedy


def test_a_lookup_that_never_ends_is_given_up(
    remote: BoardSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(60))
    monkeypatch.setattr(doctor, "STEP_TIMEOUT_S", 0.3)
    check = _unreachable(replace(remote, host="board.invalid"), "address")
    never.set()
    assert "no answer within 0" in check.found


@contextlib.contextmanager
def _server(greeting: bytes | None) -> Iterator[int]:
    """A port on which one says ``greeting`` and hangs up, or says nothing and does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        open_ones: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    if greeting is None:
                        open_ones.append(connection)
                        continue
                    connection.sendall(greeting)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5.0)
        for connection in open_ones:
            connection.close()


@pytest.mark.parametrize(
    ("greeting", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no SSH server: b'HTTP/1.1 400 Bad Request"),
        (b"", "closed the connection without a word"),
        (None, "no SSH server speaks"),
    ],
)
def test_what_listens_is_no_ssh_server(
    remote: BoardSpec, monkeypatch: pytest.MonkeyPatch, greeting: bytes | None, sentence: str
) -> None:
    monkeypatch.setattr(reach, "BANNER_TIMEOUT_S", 0.5)
    with _server(greeting) as port:
        check = _unreachable(replace(remote, host=f"someone@127.0.0.1:{port}"), "ssh")
    assert sentence in check.found


def test_lines_before_the_greeting_are_allowed() -> None:
    with _server(b"Authorised use only\r\nSSH-2.0-OpenSSH_7.6p1 Ubuntu-4ubuntu0.7\r\n") as port:
        where = ssh.route(f"someone@127.0.0.1:{port}")
        assert reach.banner(where).found == "SSH-2.0-OpenSSH_7.6p1 Ubuntu-4ubuntu0.7"


def test_an_unknown_host_key_names_fingerprint_and_command(sshd: Sshd, remote: BoardSpec) -> None:
    check = _unreachable(remote, "host key")
    assert sshd.fingerprint() in check.found
    assert check.remedy is not None and "boardfit boards trust nano" in check.remedy


def test_a_changed_host_key_says_that_someone_may_be_listening(
    trusted: Sshd, remote: BoardSpec
) -> None:
    old = trusted.fingerprint()
    trusted.stop()
    for path in (trusted.host_key, trusted.host_key.with_suffix(".pub")):
        path.unlink()
    make_key(trusted.host_key)
    trusted.start()
    check = _unreachable(remote, "host key")
    assert old in check.found and trusted.fingerprint() in check.found
    assert check.remedy is not None and "someone may be listening" in check.remedy
    assert f"ssh-keygen -R '[127.0.0.1]:{trusted.port}'" in check.remedy


def _login_failure(spec: BoardSpec) -> str:
    check = _unreachable(spec, "login")
    assert check.remedy is not None
    return check.remedy


def test_a_key_that_the_board_does_not_know(
    trusted: Sshd, remote: BoardSpec, tmp_path: Path
) -> None:
    trusted.write_client_config(identity=make_key(tmp_path / "other_key"))
    assert "ssh-copy-id board" in _login_failure(remote)
    trusted.write_client_config(identity=tmp_path / "no_key_at_all")
    assert "ssh-copy-id board" in _login_failure(remote)


def test_a_key_with_a_passphrase_is_for_the_agent(
    trusted: Sshd, remote: BoardSpec, tmp_path: Path
) -> None:
    path = tmp_path / "locked_key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)]
    subprocess.run(command, check=True)
    trusted.write_client_config(identity=path)
    assert "ssh-add" in _login_failure(remote)


# --- not to be used -----------------------------------------------------------------------------


@pytest.mark.usefixtures("trusted")
def test_a_missing_python_names_one_that_is_there(remote: BoardSpec) -> None:
    if shutil.which("python3") is None:
        pytest.skip("no python3 on the PATH")
    check = _failure(replace(remote, python="no-such-python"), "python")
    assert check.found.startswith("no-such-python is not there")
    assert check.remedy is not None and 'set python = "python3' in check.remedy


def test_a_missing_python_on_this_computer_too(local: BoardSpec) -> None:
    check = _failure(replace(local, python="no-such-python"), "python")
    assert "no-such-python is not there" in check.found


@pytest.mark.usefixtures("trusted")
def test_a_python_that_is_too_old_is_named_with_its_version(remote: BoardSpec) -> None:
    found = sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python"))
    if not found:
        pytest.skip("no Python 2.7 under ~/.pyenv: pyenv install 2.7.18")
    check = _failure(replace(remote, python=str(found[0])), "python")
    assert "is Python 2.7" in check.found
    assert check.facts["version"].startswith("2.7.")


def test_a_python_that_ends_badly_is_told_with_its_last_words(
    local: BoardSpec, tmp_path: Path
) -> None:
    script = tmp_path / "broken-python"
    script.write_text("#!/bin/sh\necho 'libpython3.6m.so.1.0: cannot open' >&2\nexit 9\n")
    script.chmod(0o755)
    check = _failure(replace(local, python=str(script)), "python")
    assert "ended with exit code 9: libpython3.6m.so.1.0: cannot open" in check.found


def test_a_python_that_talks_without_end_is_given_up(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "chatty-python"
    script.write_text("#!/bin/sh\nexec yes\n")
    script.chmod(0o755)
    monkeypatch.setattr(doctor, "PROGRAM_TIMEOUT_S", 0.5)
    check = _failure(replace(local, python=str(script)), "python")
    assert "did not end within 0 s" in check.found


@pytest.mark.usefixtures("trusted")
def test_a_cache_folder_that_cannot_be_made(remote: BoardSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    where = str(tmp_path / "file" / "cache")
    check = _failure(replace(remote, cache_dir=where), "cache folder")
    assert f"{where} cannot be written: no write access" in check.found
    assert check.remedy is not None and "cache_dir" in check.remedy


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own at ``folder``; skips where the tests may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"mount cannot be run: {error}")
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("trusted")
def test_a_full_disk_is_told_apart_from_missing_rights(remote: BoardSpec, tmp_path: Path) -> None:
    with _mounted(tmp_path / "small", "size=256k") as folder:
        found = _look(replace(remote, cache_dir=str(folder / "cache")))
    assert "the disk is full" in found["cache folder"].found
    assert found["disk"].status == "fail"
    assert found["agent"].found == "not looked at: cache folder failed"


@pytest.mark.usefixtures("trusted")
def test_a_read_only_disk_is_told_as_such(remote: BoardSpec, tmp_path: Path) -> None:
    with _mounted(tmp_path / "ro", "ro,size=1g") as folder:
        check = _failure(replace(remote, cache_dir=str(folder / "cache")), "cache folder")
    assert "the file system is read-only" in check.found
    assert check.remedy is not None and "SD card" in check.remedy


@pytest.mark.usefixtures("trusted")
def test_little_room_is_a_warning_and_no_room_for_an_agent_a_failure(
    remote: BoardSpec, tmp_path: Path
) -> None:
    with _mounted(tmp_path / "some", "size=200m") as folder:
        found = _look(replace(remote, cache_dir=str(folder / "cache")))
    assert (found["disk"].status, found["agent"].status) == ("warn", "ok")
    with _mounted(tmp_path / "less", "size=50m") as folder:
        check = _failure(replace(remote, cache_dir=str(folder / "cache")), "disk")
    assert "of 52.4 MB are free" in check.found


def test_an_agent_that_was_changed_in_the_cache(local: BoardSpec) -> None:
    assert diagnose(local).verdict == "usable"
    assert local.cache_dir is not None
    module = next(Path(local.cache_dir, "agents").glob("*/device_agent/timing.py"))
    module.write_text(module.read_text() + "\n# edited\n")
    check = _failure(local, "agent")
    assert "is not what was unpacked there" in check.found
    assert check.remedy is not None and f"remove {local.cache_dir}/agents" in check.remedy


# --- what the board's Python brings with it -----------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the board's Python imports before its own."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def _left_by(modules: Path, timeout_s: float = 10.0) -> list[str]:
    """Processes that were started with ``modules`` and still run after the time ending takes."""
    mark = str(modules).encode()
    deadline_s = time.monotonic() + timeout_s
    while True:
        left = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(path.name) != os.getpid() and mark in (path / "environ").read_bytes():
                    left.append((path / "cmdline").read_text())
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.1)


def test_an_agent_that_fails_at_start_is_told_with_its_last_words(
    local: BoardSpec, modules: Path
) -> None:
    (modules / "select.py").write_text("raise RuntimeError('no select here')")
    (modules / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(modules)!r})\nsys.modules.pop('select', None)"
    )
    assert "no select here" in _failure(local, "agent").found


def test_a_missing_runtime_makes_the_board_unusable(local: BoardSpec, modules: Path) -> None:
    (modules / "onnxruntime.py").write_text("raise ImportError('not installed')")
    check = _failure(local, "onnxruntime")
    assert "ImportError: not installed" in check.found
    assert diagnose(replace(local, runtime="fake")).verdict == "usable"


def test_a_runtime_that_dies_of_an_illegal_instruction(local: BoardSpec, modules: Path) -> None:
    (modules / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 4)")
    check = _failure(local, "onnxruntime")
    assert "SIGILL" in check.found
    assert check.remedy is not None and "another CPU" in check.remedy


def test_a_section_that_hangs_costs_itself_alone(
    local: BoardSpec, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (modules / "tensorrt.py").write_text("import time; time.sleep(600)")
    monkeypatch.setitem(doctor.SLOW_SECTIONS, "tensorrt", 1.0)
    found = _look(local)
    for name in ("tensorrt", "gpu precisions"):
        assert found[name].status == "warn"
        assert found[name].found.startswith("could not be found out")
    assert (found["cpu"].status, found["load"].name) == ("ok", "load")
    assert found["agent"].status == "ok"
    assert not _left_by(modules)


def test_an_agent_that_dies_on_the_way_is_started_again(local: BoardSpec, modules: Path) -> None:
    (modules / "tensorrt.py").write_text("import os; os.kill(os.getppid(), 9)")
    found = _look(local)
    assert found["tensorrt"].found.startswith("could not be found out")
    assert found["cache"].status == "ok"
    assert not _left_by(modules)


def test_a_board_whose_clock_is_wrong(local: BoardSpec, modules: Path) -> None:
    (modules / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() - 7200.0"
    )
    check = _look(local)["time"]
    assert (check.status, check.found) == ("warn", "7200 s behind this computer's")


def test_who_holds_the_lease_is_told(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_LEASE_DIR", str(tmp_path))
    path = tmp_path / "slow"
    path.write_text(json.dumps({"latency_s": 0.001, "sleep_s": 0.2}))
    engine = EngineRequest(label="slow", path=path, precision="fp32")
    plan = MeasurePlan(warmup_s=0.0, rounds=500, block_s=0.0, block_min=5, drop=0)
    seen: list[Check] = []

    def look_once(event: dict[str, object]) -> None:
        if event["kind"] == "progress" and not seen:
            seen.append(_look(local)["lease"])
            raise KeyboardInterrupt

    with (
        Session(replace(local, runtime="fake"), on_event=look_once) as session,
        pytest.raises(KeyboardInterrupt),
    ):
        session.measure([engine], plan=plan, campaign="c")
    (check,) = seen
    assert check.status == "warn"
    assert "a measure job" in check.found
    assert socket.gethostname() in check.found


def test_a_program_that_burns_a_core_is_a_warning(local: BoardSpec) -> None:
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        check = _look(local)["load"]
    finally:
        burner.kill()
        burner.wait()
    assert check.status == "warn"
    assert f"({burner.pid})" in check.found


def test_no_thread_and_no_process_stays_behind(local: BoardSpec) -> None:
    diagnose(local)
    names = [thread.name for thread in threading.enumerate()]
    assert "boardfit-doctor" not in names
    assert local.cache_dir is not None
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes())
    assert not [command for command in commands if local.cache_dir.encode() in command]
