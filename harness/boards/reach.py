"""Reaching a board over SSH, one step at a time: name, connection, server, host key, login."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import paramiko

from harness.boards import ssh
from harness.boards.transport import Transport, open_transport
from harness.errors import HostKeyUnknown, StableBoardError, TransientBoardError
from harness.records import BoardSpec, Check
from harness.units import format_time

__all__ = ["Failed", "address", "banner", "log_in", "login_failed", "tcp", "within"]

TCP_TIMEOUT_S = 10.0
BANNER_TIMEOUT_S = 15.0

Answer = TypeVar("Answer")


class Failed(Exception):
    """A check's own verdict: what was found, and the remedy."""

    def __init__(self, found: str, remedy: str, **facts: Any) -> None:
        super().__init__(found)
        self.remedy = remedy
        self.facts = facts


def within(deadline_s: float, action: Callable[[], Answer]) -> Answer:
    """What ``action`` returns; ``TransientBoardError`` if it takes longer than ``deadline_s``.

    It runs in a thread, because name lookups and half-open connections know no deadline; one that
    is late is left behind.
    """
    answers: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((action(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, daemon=True, name="boardfit-doctor").start()
    try:
        answer, error = answers.get(timeout=deadline_s)
    except queue.Empty:
        raise TransientBoardError(f"no answer within {deadline_s:.0f} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def address(where: ssh.Route) -> Check:
    """The addresses that the board's name stands for."""
    try:
        rows = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise Failed(
            f"the name {where.host} is not known: {getattr(error, 'strerror', None) or error}",
            f"is the board on? Put its address into ~/.ssh/config (Host {where.alias}, HostName "
            "192.168.x.y), or try the name with .local behind it",
        ) from error
    found = tuple(dict.fromkeys(str(row[4][0]) for row in rows))
    names = where.host if where.alias == where.host else f"{where.alias} is {where.host}"
    text = names if found == (where.host,) else f"{names}: {', '.join(found)}"
    facts = {"host": where.host, "addresses": list(found)}
    return Check(name="address", status="ok", found=text, facts=facts)


def tcp(where: ssh.Route) -> Check:
    """Whether something listens on the port."""
    place = f"{where.host} port {where.port}"
    start_s = time.monotonic()
    try:
        socket.create_connection((where.host, where.port), TCP_TIMEOUT_S).close()
    except ConnectionRefusedError as error:
        raise Failed(
            f"{place} refuses connections: the board is on, but no SSH server listens there",
            "start it (sudo systemctl enable --now ssh), or set its Port in ~/.ssh/config",
        ) from error
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise Failed(
            f"{place}: {reason}",
            f"is the board on and in this network? Does `ping {where.host}` answer, and does a "
            "firewall lie between?",
        ) from error
    took_s = time.monotonic() - start_s
    found = f"{place} is open, connected in {format_time(took_s)}"
    return Check(name="tcp", status="ok", found=found, facts={"connect_s": took_s})


def _lines(sock: socket.socket) -> Iterator[bytes]:
    data = b""
    while len(data) < 1 << 14:
        part = sock.recv(1024)
        if not part:
            break
        *whole, data = (data + part).split(b"\n")
        yield from whole
    if data:
        yield data


def banner(where: ssh.Route) -> Check:
    """The server's greeting; it may send other lines first (RFC 4253, section 4.2)."""
    busy = "is it overloaded or still starting (MaxStartups), or does hosts.deny name this computer"
    first = b""
    try:
        with socket.create_connection((where.host, where.port), BANNER_TIMEOUT_S) as sock:
            for line in _lines(sock):
                if line.startswith(b"SSH-"):
                    banner = line.decode(errors="replace").strip()
                    return Check(name="ssh", status="ok", found=banner, facts={"banner": banner})
                first = first or line.strip()
    except TimeoutError as error:
        raise Failed("the connection is open, but no SSH server speaks", busy + "?") from error
    if first:
        raise Failed(
            f"what answers on port {where.port} is no SSH server: {first[:60]!r}",
            "set the Port of the board's SSH server in ~/.ssh/config",
        )
    raise Failed("the server closed the connection without a word", busy + "?")


def log_in(spec: BoardSpec) -> tuple[str, Transport]:
    """Fingerprint of the host key that was trusted, and a connection for the checks to come."""
    client, hops = ssh.connect(spec)
    try:
        transport = client.get_transport()
        if transport is None:
            raise EOFError("the server closed the connection after the login")
        key = ssh.fingerprint(transport.get_remote_server_key())
    finally:
        for one in (client, *hops):
            one.close()
    return key, open_transport(spec)


def login_failed(error: Exception, where: ssh.Route, *, board: str) -> Check:
    """The check of the host key or of the login, whichever was to blame for ``error``."""
    cause = error.__cause__
    if isinstance(error, HostKeyUnknown):
        remedy = (
            "compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints there, "
            f"then: boardfit boards trust {board}"
        )
        found = str(error).partition(". Compare")[0]
        return Check(name="host key", status="fail", found=found, remedy=remedy)
    if isinstance(cause, paramiko.BadHostKeyException):
        remedy = (
            f"if the board was set up anew: boardfit boards trust {board}, and remove the old "
            f"line (ssh-keygen -R '{where.key_name}'); if not, someone may be listening"
        )
        found = (
            f"{where.key_name} has the host key {ssh.fingerprint(cause.key)}, but "
            f"{ssh.fingerprint(cause.expected_key)} is known"
        )
        return Check(name="host key", status="fail", found=found, remedy=remedy)
    found, remedy = str(error), f"does `ssh {where.alias}` work from here?"
    if isinstance(error, StableBoardError):
        found = f"{where.user}@{where.host} accepts none of your keys: {cause}"
        remedy = (
            f"install your key there: ssh-copy-id {where.alias} (ssh-keygen makes one); boardfit "
            "logs in with keys, never with passwords"
        )
    if isinstance(cause, paramiko.PasswordRequiredException):
        found = "your key has a passphrase, and there is no ssh-agent that knows it"
        remedy = "ssh-add it first; boardfit never asks for a passphrase"
    return Check(name="login", status="fail", found=found, remedy=remedy)
