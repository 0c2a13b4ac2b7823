"""A real OpenSSH server on a loopback port, with keys of its own; nothing of the user's is read."""

from __future__ import annotations

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
    """The server, its key, and the client's settings for it under the host name ``board``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.host_key = make_key(folder / "host_key")
        self.user_key = make_key(folder / "user_key")
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "authorized_keys").write_text(self.user_key.with_suffix(".pub").read_text())
        self.write_client_config()

    def write_client_config(self, extra: str = "", identity: Path | None = None) -> None:
        """What ``BOARDFIT_SSH_CONFIG`` points to."""
        (self.folder / "ssh_config").write_text(
            f"Host board\n"
            f"  HostName 127.0.0.1\n"
            f"  Port {self.port}\n"
            f"  User {getpass.getuser()}\n"
            f"  IdentityFile {identity or self.user_key}\n"
            f"  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder / 'no_known_hosts'}\n{extra}"
        )

    def fingerprint(self) -> str:
        """The host key's fingerprint as OpenSSH itself prints it."""
        command = ["ssh-keygen", "-lf", str(self.host_key.with_suffix(".pub"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.split()[1]

    def start(self, extra: str = "") -> None:
        """Listen; skips the test where sshd cannot run."""
        config = self.folder / "sshd_config"
        config.write_text(
            f"{extra}\n"
            f"SetEnv BOARDFIT_LEASE_DIR={os.environ['BOARDFIT_LEASE_DIR']}\n"
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

    def drop_connections(self) -> None:
        """End every connection the hard way, as a network that goes away does; keep listening."""
        assert self._process is not None
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self._process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)

    def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._process is not None:
            self.drop_connections()
            self._process.terminate()
            self._process.wait()
            self._process = None
