"""A real OpenSSH server on a loopback port, with keys of its own; nothing of the user's is read."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path) -> Path:
    """A fresh key pair."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


class Sshd:
    """The server, its key, and the client's settings for it under the host name ``board``.

    ``user`` is whom clients log in as: by default the account that the tests run under. Another
    one must be able to read ``folder``.
    """

    def __init__(self, folder: Path, *, user: str | None = None) -> None:
        self.folder = folder
        self.user = user or getpass.getuser()
        self.port = free_port()
        self.host_key = make_key(folder / "host_key")
        self.user_key = make_key(folder / "user_key")
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "authorized_keys").write_text(self.user_key.with_suffix(".pub").read_text())
        self.write_client_config()

    def write_client_config(
        self, extra: str = "", identity: Path | None = None, port: int | None = None
    ) -> None:
        """What ``BOARDFIT_SSH_CONFIG`` points to; ``port`` is that of a proxy in between."""
        (self.folder / "ssh_config").write_text(
            f"Host board\n"
            f"  HostName 127.0.0.1\n"
            f"  Port {port or self.port}\n"
            f"  User {self.user}\n"
            f"  IdentityFile {identity or self.user_key}\n"
            f"  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder / 'no_known_hosts'}\n{extra}"
        )

    def fingerprint(self) -> str:
        """The host key's fingerprint as OpenSSH itself prints it."""
        command = ["ssh-keygen", "-lf", str(self.host_key.with_suffix(".pub"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.split()[1]

    def start(self, extra: str = "", env: dict[str, str] | None = None) -> None:
        """Listen; ``env`` is that of whoever logs in. Skips the test where sshd cannot run."""
        lease = {name: os.environ[name] for name in ("BOARDFIT_LEASE_DIR",) if name in os.environ}
        # Only the first SetEnv counts.
        assignments = [f"{name}={value}" for name, value in {**lease, **(env or {})}.items()]
        config = self.folder / "sshd_config"
        config.write_text(
            f"{extra}\n"
            f"{'SetEnv ' + ' '.join(assignments) if assignments else ''}\n"
            f"Port {self.port}\n"
            f"ListenAddress 127.0.0.1\n"
            f"HostKey {self.host_key}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\n"
            "PidFile none\n"
            "StrictModes no\n"
            "UsePAM no\n"
            "PasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\n"
            "Subsystem sftp internal-sftp\n"
            f"{self._no_penalties()}"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd separates privileges there
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log)
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.skip(f"sshd does not run here: {(self.folder / 'sshd.log').read_text()}")

    def _no_penalties(self) -> str:
        """Servers since OpenSSH 9.8 shut out an address whose connections are killed too often."""
        config = self.folder / "penalties"
        config.write_text(f"HostKey {self.host_key}\nPerSourcePenalties no\n")
        known = subprocess.run([SSHD, "-t", "-f", str(config)], capture_output=True).returncode == 0
        return "PerSourcePenalties no\n" if known else ""

    def _servers(self) -> list[int]:
        """Process numbers of what serves connections: children of the listener and theirs."""
        assert self._process is not None
        parents: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, fields = stat.read_text().rpartition(")")
                if "(sshd" in name:
                    parents[int(stat.parent.name)] = int(fields.split()[1])
        children = [number for number, parent in parents.items() if parent == self._process.pid]
        return children + [number for number, parent in parents.items() if parent in children]

    def drop_connections(self) -> int:
        """End every connection the hard way, as a network that goes away does; keep listening.

        Returns how many processes served them.
        """
        servers = self._servers()
        for number in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return len(servers)

    def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._process is not None:
            self.drop_connections()
            self._process.terminate()
            self._process.wait()
            self._process = None
