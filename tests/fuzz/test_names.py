"""Names with quotes, spaces, newlines and what a shell would run: names, on a real board."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.boards import ssh
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.boards.transport import SSHTransport, quote
from harness.errors import BoardUnreachable, ConfigError, StableBoardError
from harness.records import BoardSpec
from tests.boards.board_python import run_as
from tests.boards.nano import Nano
from tests.fuzz.support import NAMES, fuzzed

PLAN = MeasurePlan(warmup_s=0.0, rounds=1, block_s=0.0, block_min=2, drop=0)
# One folder's name with all of it: each of the commands in it would leave a canary.
HOSTILE = "-rf $(touch canary) `touch canary`'; touch canary; '\" & touch canary & \"\n%s ü ☃"
FILES = [name for name in NAMES if name and "/" not in name and "\0" not in name]
FILES = [name for name in FILES if "\ud800" not in name]


def _canaries(nano: Nano) -> list[Path]:
    places = [nano.user.home, nano.folder, Path.cwd(), Path("/")]
    return [found for place in places for found in place.glob("canary*")]


def test_a_cache_folder_and_files_with_hostile_names_are_just_that(
    nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = replace(nano.spec_of("fake"), cache_dir=f"~/{HOSTILE}/cache", name=HOSTILE)
    engine = tmp_path / HOSTILE
    engine.write_text('{"latency_s": 0.001}')
    inputs = np.ones((2, 3), np.float32)
    with Session(spec) as session:
        request = EngineRequest(label=HOSTILE, path=engine, precision="fp32")
        (found,) = session.measure([request], plan=PLAN, campaign=HOSTILE)
        assert found.label == HOSTILE and len(found.samples_s) == 2
        assert np.array_equal(session.infer(engine, inputs, input_name=HOSTILE), inputs)
        session.clean(keep_s=0.0, unfetched=True)
    assert {path.name for path in nano.user.home.iterdir()} == {HOSTILE}
    assert _canaries(nano) == []


def test_an_interpreter_with_a_hostile_name_is_run_and_one_that_is_none_is_told(
    nano: Nano, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    python = nano.user.home / HOSTILE
    python.write_text(f'#!/bin/sh\nexec "{nano.python.executable}" "$@"\n')
    python.chmod(0o755)
    engine = tmp_path / "engine"
    engine.write_text('{"latency_s": 0.001}')
    with Session(replace(nano.spec_of("fake"), python=str(python))) as session:
        session.put(engine)
    for name in ("$(touch canary)", "-Stouch canary", "--split-string=touch canary", "a b", "'"):
        with pytest.raises(StableBoardError):
            Session(replace(nano.spec, python=name)).__enter__()
    assert _canaries(nano) == []


def test_files_on_the_board_may_have_any_name(nano: Nano, tmp_path: Path) -> None:
    transport = SSHTransport(nano.spec)
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(b"content")
    try:
        for name in FILES:
            remote = str(nano.user.home / name)
            run_as(nano.user, ["touch", "--", remote], env={}).check_returncode()
            transport.put(source, remote)
            transport.get(remote, back)
            assert back.read_bytes() == b"content"
    finally:
        transport.close()
    assert {path.name for path in nano.user.home.iterdir()} == set(FILES)
    assert _canaries(nano) == []


# --- hosts ----------------------------------------------------------------------------------------


NO_HOSTS = (
    *(
        name
        for name in NAMES
        if name not in ("../../../canary", "/etc/passwd", "~/x", "%s%n", "__class__")
    ),
    "board;touch canary",
    "$(touch canary)@board",
    "board\nboard2 ssh-ed25519 AAAA",
    "board:0",
    "board:99999",
    "@",
    ":22",
)


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_that_is_no_name_reaches_no_shell_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    # A ProxyCommand through a shell, as many have it: the host's name is part of its text.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("BOARDFIT_SSH_CONFIG", str(tmp_path / "ssh_config"))
    (tmp_path / "ssh_config").write_text('Host *\n  ProxyCommand sh -c "exit 1 # %h %r"\n')
    spec = BoardSpec(name="nano", host=host)
    for attempt in (ssh.connect, ssh.trust):
        with pytest.raises(ConfigError, match="host "):
            attempt(spec)
    assert not list(tmp_path.glob("canary*"))
    assert not (tmp_path / "config" / "known_hosts").exists()


@pytest.mark.parametrize(
    "host",
    ["a..b", "a" * 70 + ".example", "ü..x", "%s%n", "__class__", "/etc/passwd", "board:²", "~/x"],
)
def test_a_name_that_nobody_can_look_up_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("BOARDFIT_SSH_CONFIG", str(tmp_path / "ssh_config"))
    with pytest.raises(BoardUnreachable, match="nano"):
        ssh.connect(BoardSpec(name="nano", host=host))


@fuzzed(60)
@given(st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=10)), min_size=1, max_size=4))
def test_a_command_line_is_what_it_was_made_of(argv: list[str]) -> None:
    words = shlex.split(quote(argv, {"A": argv[0]}))
    assert words == ["exec", "env", "--", f"A={argv[0]}", *argv]
