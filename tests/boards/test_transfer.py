"""Uploads to the virtual Nano over links that slow, break and stall."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.boards import link
from harness.boards import transport as transport_module
from harness.boards.session import Session
from harness.errors import TransientBoardError
from tests.boards.nano import Nano
from tests.boards.proxy import Proxy

SIZE_BYTES = 3_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    path.write_bytes(os.urandom(SIZE_BYTES))
    return path


def _blob(nano: Nano, sha256: str) -> Path:
    return nano.cache / "blobs" / sha256


@pytest.mark.parametrize("trouble", ["cut", "abandon"])
def test_upload_whose_link_breaks_goes_on_where_it_was(
    nano: Nano, file: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(transport_module, "SILENCE_S", 1.5)
    monkeypatch.setattr(link, "BACK_OFF_S", (0.1, 0.2, 0.4, 0.8))
    troubled = threading.Event()
    with Proxy(nano.sshd.port, rate_bytes_s=2e6) as proxy:
        nano.behind(proxy.port)

        def make_trouble(event: dict[str, object]) -> None:
            # What is sent is a network's buffers ahead of what has arrived.
            sent = event["done"] if event.get("what") == "sending" else 0
            if isinstance(sent, int) and sent > 2_000_000 and not troubled.is_set():
                troubled.set()
                getattr(proxy, trouble)()

        with Session(nano.spec_of("fake"), on_event=make_trouble) as session:
            before, _ = proxy.carried_bytes
            sha256 = session.put(file)
            carried, _ = proxy.carried_bytes
    assert troubled.is_set()
    assert _blob(nano, sha256).read_bytes() == file.read_bytes()
    # From the start again would be 2 + 3 MB; the buffers' content is what is sent twice.
    assert carried - before < SIZE_BYTES + 1_700_000
    assert [p.name for p in (nano.cache / "blobs" / "incoming").iterdir()] == []


def test_upload_to_a_board_that_stays_away_says_so(
    nano: Nano, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BACK_OFF_S", (0.05, 0.05))
    with Session(nano.spec_of("fake")) as session:
        nano.sshd.stop()
        with pytest.raises(TransientBoardError, match=r"cannot be reached|connection"):
            session.put(file)


def test_file_in_a_folder_with_any_name_arrives_and_comes_back(nano: Nano, tmp_path: Path) -> None:
    odd = tmp_path / "it's $(touch owned) `x` \n\" -rf"
    odd.write_bytes(b"content")
    with Session(nano.spec_of("fake")) as session:
        sha256 = session.put(odd)
        transport = session._link.transport
        assert transport is not None
        transport.get(str(_blob(nano, sha256)), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"
    assert not (nano.user.home / "owned").exists()


@pytest.mark.parametrize("tool", ["exit 1", "cat > /dev/null", "echo 00 -", None])
def test_hash_of_what_arrives_does_not_depend_on_openssl(tmp_path: Path, tool: str | None) -> None:
    """A Python without OpenSSL, and beside it a program that fails, is silent, lies, or is none."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if tool is not None:
        (programs / "openssl").write_text(f"#!/bin/sh\n{tool}\n")
        (programs / "openssl").chmod(0o755)
    content = os.urandom(300_000)
    target = tmp_path / "target"
    target.write_bytes(content[:100_000])
    without = "import sys; sys.modules['_hashlib'] = None\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", without + transport_module.RECEIVE, str(target), "100000"],
        input=content[100_000:],
        capture_output=True,
        env={"PATH": f"{programs}:/bin"} if tool else {"PATH": str(programs)},
        check=True,
    )
    assert target.read_bytes() == content
    said = done.stdout.split()[-1].decode()
    # A program that lies is found out by the host, which compares; it never gets a wrong file in.
    assert said == ("00" if tool == "echo 00 -" else hashlib.sha256(content).hexdigest())
