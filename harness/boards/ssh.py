"""SSH connections by the user's own settings, with verified host keys and no passwords."""

from __future__ import annotations

import base64
import contextlib
import getpass
import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paramiko

from harness.boards.inventory import config_dir
from harness.errors import (
    BoardUnreachable,
    ConfigError,
    HostKeyUnknown,
    StableBoardError,
    TransientBoardError,
)
from harness.records import BoardSpec

__all__ = ["connect", "fingerprint", "host_key", "trust"]

CONNECT_TIMEOUT_S = 15.0
# What paramiko's threads log is told by the errors below; without a handler it goes to stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
KEEP_ALIVE_S = 15
# What was sent must be acknowledged in so long. The kernel's own limit is a quarter of an hour, and
# paramiko waits for it without end once the socket's buffer is full.
SILENT_S = 30.0
KNOWN_HOSTS = "known_hosts"
MAX_HOPS = 8
# As OpenSSH 9.6 and later: ssh_config may hand these names to a shell (ProxyCommand, Match exec).
NO_NAME = re.compile(r"^-|[\s\x00-\x1f\x7f'`\"$\\;&<>|(){}\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where one connection goes, by ``~/.ssh/config``."""

    alias: str
    host: str
    port: int
    user: str
    identities: tuple[str, ...]
    identities_only: bool
    known_hosts: tuple[str, ...]
    jumps: tuple[str, ...]
    proxy_command: str | None

    @property
    def key_name(self) -> str:
        """The name under which a known_hosts file keeps the host's key."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


def fingerprint(key: paramiko.PKey) -> str:
    """A host key's fingerprint as ssh prints it: ``SHA256:`` and base64 without padding."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _settings() -> paramiko.SSHConfig:
    path = Path(os.environ.get("BOARDFIT_SSH_CONFIG") or Path.home() / ".ssh" / "config")
    if not path.is_file():
        return paramiko.SSHConfig()
    try:
        return paramiko.SSHConfig.from_path(str(path))
    except (paramiko.ConfigParseError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def route(name: str) -> Route:
    """The route to a host: ``[user@]name[:port]``, the name looked up in ``~/.ssh/config``."""
    user, _, rest = name.rpartition("@")
    alias, colon, port = rest.rpartition(":")
    if not colon or not re.fullmatch("[0-9]+", port):
        alias, port = rest, ""
    if not alias or NO_NAME.search(alias) or NO_NAME.search(user):
        raise ConfigError(
            f"host {name!r} is no name of a computer: write [user@]name[:port], the name as in "
            "~/.ssh/config, without spaces, quotes or what else a shell would read"
        )
    try:
        found: dict[str, Any] = dict(_settings().lookup(alias))
    except (paramiko.SSHException, ImportError, KeyError) as error:
        raise ConfigError(f"~/.ssh/config cannot be used for {alias}: {error}") from error
    known = found.get("userknownhostsfile", "~/.ssh/known_hosts").split()
    jumps = found.get("proxyjump", "none")
    command = found.get("proxycommand")
    return Route(
        alias=alias,
        host=found["hostname"],
        port=_port(port or str(found.get("port", 22)), name),
        user=user or found.get("user") or getpass.getuser(),
        identities=tuple(str(Path(path).expanduser()) for path in found.get("identityfile", ())),
        identities_only=found.get("identitiesonly", "no").lower() == "yes",
        known_hosts=tuple(str(Path(path).expanduser()) for path in known),
        jumps=() if jumps.lower() == "none" else tuple(jumps.split(",")),
        proxy_command=None if command in (None, "none") else command,
    )


def _port(text: str, name: str) -> int:
    port = int(text) if re.fullmatch("[0-9]{1,5}", text) else 0
    if not 1 <= port <= 65535:
        raise ConfigError(f"host {name!r}: port {text[:20]} is none; ports are 1 to 65535")
    return port


class _Reject(paramiko.MissingHostKeyPolicy):
    """Refuses an unknown host key and says how to trust it."""

    def __init__(self, board: str, where: Route) -> None:
        self._board = board
        self._where = where

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        del client, hostname
        raise HostKeyUnknown(
            f"the host key of {self._where.key_name} is not known: {key.get_name()} "
            f"{fingerprint(key)}. Compare it with the board's own "
            "(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then run: "
            f"boardfit boards trust {self._board}"
        )


@contextlib.contextmanager
def _explained(board: str, where: Route) -> Iterator[None]:
    """Turns what paramiko and sockets raise into errors that say what to do."""
    place = f"board {board}: {where.user}@{where.host} port {where.port}"
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise StableBoardError(
            f"{place} has the host key {fingerprint(error.key)}, but "
            f"{fingerprint(error.expected_key)} is known. If the board was set up anew, run "
            f"boardfit boards trust {board} and remove the old line from your known_hosts; "
            "if not, someone may be listening"
        ) from error
    except paramiko.AuthenticationException as error:
        # paramiko tells by words alone that nobody has refused anything: the link was lost.
        if any(word in str(error) for word in ("timeout", "saw EOF")):
            raise TransientBoardError(f"{place} was lost during the login: {error}") from error
        raise StableBoardError(
            f"{place} accepts none of your keys ({error}). Install one with ssh-copy-id "
            f"{where.alias}, name it with IdentityFile in ~/.ssh/config, or add it to ssh-agent"
        ) from error
    except (OSError, UnicodeError) as error:  # a name that no name server can be asked for
        raise BoardUnreachable(
            f"{place} cannot be reached: {error}. Is it on, and does `ssh {where.alias}` work?"
        ) from error
    except (paramiko.SSHException, EOFError) as error:
        if "No authentication methods" in str(error):
            raise StableBoardError(
                f"{place}: there is no key to log in with. Make one with ssh-keygen and install "
                f"it with ssh-copy-id {where.alias}"
            ) from error
        raise TransientBoardError(f"{place}: {error!r}") from error


def _socket(
    board: str, where: Route, depth: int
) -> tuple[Any | None, tuple[paramiko.SSHClient, ...]]:
    """What a connection runs over: None for a plain socket, and the hops that carry it."""
    if where.jumps:
        if depth >= MAX_HOPS:
            raise ConfigError(f"ProxyJump of {where.alias} goes in a circle")
        # ssh takes the last name for the nearest to the target; those before lead to it.
        hop = route(where.jumps[-1])
        if len(where.jumps) > 1:
            hop = replace(hop, jumps=where.jumps[:-1])
        client, hops = _connect(board, hop, depth + 1)
        transport = client.get_transport()
        with _explained(board, where):
            if transport is None:
                raise EOFError("the jump host closed the connection")
            sock = transport.open_channel(
                "direct-tcpip", (where.host, where.port), ("127.0.0.1", 0)
            )
        return sock, (client, *hops)
    if where.proxy_command is not None:
        return paramiko.ProxyCommand(where.proxy_command), ()
    return None, ()


def _transport(sock: Any, **options: Any) -> paramiko.Transport:
    """A transport that prefers AES-GCM: it spares the second pass over all data for a MAC."""
    transport = paramiko.Transport(sock, **options)
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    return transport


def _give_up_in_time(sock: Any) -> None:
    """Have the kernel end a connection whose other side has gone silent (Linux only)."""
    if isinstance(sock, socket.socket) and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENT_S * 1e3))


def _connect(
    board: str, where: Route, depth: int = 0
) -> tuple[paramiko.SSHClient, tuple[paramiko.SSHClient, ...]]:
    sock, hops = _socket(board, where, depth)
    client = paramiko.SSHClient()
    for known in (*where.known_hosts, str(config_dir() / KNOWN_HOSTS)):
        with contextlib.suppress(OSError):
            client.load_system_host_keys(known)
    identities = [path for path in where.identities if Path(path).is_file()]
    client.set_missing_host_key_policy(_Reject(board, where))
    try:
        with _explained(board, where):
            client.connect(
                where.host,
                where.port,
                where.user,
                key_filename=identities,  # type: ignore[arg-type]  # a list will do
                look_for_keys=not where.identities_only,
                allow_agent=not where.identities_only,
                timeout=CONNECT_TIMEOUT_S,
                banner_timeout=CONNECT_TIMEOUT_S,
                auth_timeout=CONNECT_TIMEOUT_S,
                sock=sock,
                transport_factory=_transport,
            )
            transport = client.get_transport()
            if transport is not None:
                transport.set_keepalive(KEEP_ALIVE_S)
                _give_up_in_time(transport.sock)
    except BaseException:
        for one in (client, *hops):
            one.close()
        raise
    return client, hops


def connect(spec: BoardSpec) -> tuple[paramiko.SSHClient, tuple[paramiko.SSHClient, ...]]:
    """A connection to the board and the jump hosts' connections that carry it."""
    assert spec.host is not None
    return _connect(spec.name, route(spec.host))


def host_key(spec: BoardSpec) -> paramiko.PKey:
    """The host key that the board presents now, trusted or not."""
    if spec.host is None:
        raise ConfigError(f"board {spec.name} is this computer: there is no host key to trust")
    where = route(spec.host)
    sock, hops = _socket(spec.name, where, 0)
    try:
        with _explained(spec.name, where):
            if sock is None:
                sock = socket.create_connection((where.host, where.port), CONNECT_TIMEOUT_S)
            transport = paramiko.Transport(sock)
            try:
                transport.start_client(timeout=CONNECT_TIMEOUT_S)
                return transport.get_remote_server_key()
            finally:
                transport.close()
    finally:
        for client in hops:
            client.close()


def trust(spec: BoardSpec, key: paramiko.PKey | None = None) -> str:
    """Fingerprint of the board's host key, which is stored in boardfit's own known_hosts.

    ``key`` is the one that was looked at; by default that which the board presents now. A key that
    was stored for the board before is replaced.
    """
    key = key or host_key(spec)
    assert spec.host is not None  # host_key refuses this computer
    where = route(spec.host)
    path = config_dir() / KNOWN_HOSTS
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in kept if line.split(" ")[0] != where.key_name]
    kept.append(f"{where.key_name} {key.get_name()} {key.get_base64()}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text("\n".join(kept) + "\n", encoding="utf-8")
    temporary.replace(path)
    return fingerprint(key)
