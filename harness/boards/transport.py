"""Running programs and moving files on a board: on this computer, or over SSH.

One interface, ``Transport``, and two of them. The only place where a command line is quoted is
``quote``.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

import paramiko

from harness.boards import ssh
from harness.boards.wire import Channel
from harness.errors import ProtocolError, StableBoardError, TransientBoardError
from harness.records import BoardSpec

__all__ = ["LocalTransport", "SSHTransport", "Transport", "open_transport", "quote"]

# The board's side of an upload. It neither cuts what is there nor appends: another host may be
# writing the same bytes to the same places.
# A Python that was built without OpenSSL hashes slower than a network sends; its program does not.
RECEIVE = """\
import hashlib, os, select, sys
path, offset = sys.argv[1], int(sys.argv[2])
digest, tool = hashlib.sha256(), None
try:
    import _hashlib
except ImportError:
    from subprocess import PIPE, Popen
    try:
        tool = Popen(["openssl", "dgst", "-sha256", "-r"], stdin=PIPE, stdout=PIPE)
    except OSError:
        pass
def take(data):
    if not tool:
        return digest.update(data)
    try:
        tool.stdin.write(data)
    except OSError:
        pass  # it has failed, and the file is read again below
with open(path, "r+b", 0) as out:
    for start in range(0, offset, 1 << 16):
        take(out.read(min(1 << 16, offset - start)))
    while True:
        if not select.select([0], [], [], 300)[0]:
            sys.exit("nothing came for five minutes")
        data = os.read(0, 1 << 16)
        if not data:
            break
        take(data)
        while data:
            data = data[out.write(data):]
said = tool.communicate()[0].split() if tool else [digest.hexdigest().encode()]
if not said or tool and tool.returncode:
    with open(path, "rb") as arrived:
        for data in iter(lambda: arrived.read(1 << 20), b""):
            digest.update(data)
    said = [digest.hexdigest().encode()]
print("\\n" + said[0].decode())
"""
# Before it there may be what a login script has printed.
FILE_MARK = b"\nboardfit-file\n"
MAX_NOISE_BYTES = 1 << 16
SEND = f'printf "\\n%s\\n" {FILE_MARK.decode().strip()}; exec cat -- "$1"'
OnSent = collections.abc.Callable[[int], None]
# What tunes this process's allocator for training has no place in a measured one.
NOT_INHERITED = ("MALLOC_", "GLIBC_TUNABLES")
# One sendall of a large buffer crawls (1 MB/s for 100 MB); so much fits into one packet.
CHUNK_BYTES = (1 << 15) - 64
READ_BYTES = 1 << 18
STDERR_TAIL_BYTES = 4000
# A file transfer that stands still for so long has lost its link.
SILENCE_S = 30.0


def quote(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """The shell command that runs ``argv`` with ``env`` added to its environment."""
    assignments = [f"{name}={value}" for name, value in env.items()]
    # Without the dashes env would take a program whose name begins with one for its own option.
    return shlex.join(["exec", "env", "--", *assignments, *argv])


class Transport(Protocol):
    """How a board is reached."""

    def start(self, argv: Sequence[str], *, env: Mapping[str, str]) -> Channel:
        """A program on the board, started."""

    def put(
        self, local: Path, remote: str, *, offset: int = 0, on_sent: OnSent | None = None
    ) -> str | None:
        """Copy to a file that has the first ``offset`` bytes already; tells how many it has.

        SHA-256 of all that was written, where the board has computed it on the way.
        """

    def get(self, remote: str, local: Path) -> None:
        """Copy a file from the board."""

    def close(self) -> None:
        """Let go of the board."""


def open_transport(spec: BoardSpec) -> Transport:
    """The transport for a board: SSH where it has a host, else this computer."""
    return LocalTransport() if spec.host is None else SSHTransport(spec)


# --- this computer ------------------------------------------------------------------------------


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}


class LocalChannel:
    """A subprocess; its stderr goes to an unnamed file, so that it can never block."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**_inherited(), **env},
                start_new_session=True,  # Ctrl-C is for the host; it then cancels the job
            )
        except OSError:
            self._stderr.close()
            raise
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        try:
            self._stdin.write(data)
            self._stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise TransientBoardError(f"the agent is gone. {self.stderr_tail()}") from error

    def read(self, timeout_s: float) -> bytes:
        """Some bytes of stdout, b"" at its end."""
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            raise TimeoutError
        return os.read(self._stdout.fileno(), 1 << 16)

    def exit_code(self, timeout_s: float) -> int | None:
        """The subprocess's exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def stderr_tail(self) -> str:
        """The end of stderr."""
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        start = max(0, size - STDERR_TAIL_BYTES)
        return os.pread(self._stderr.fileno(), STDERR_TAIL_BYTES, start).decode(errors="replace")

    def close(self) -> None:
        """Close stdin, which ends the agent; kill it if it does not end."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()  # or one that is still talking would never see that nobody listens
        if self.exit_code(2.0) is None:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


class LocalTransport:
    """This computer, through the same agent as any board."""

    def start(self, argv: Sequence[str], *, env: Mapping[str, str]) -> Channel:
        """A subprocess; an interpreter that is not there is a ``StableBoardError``."""
        try:
            return LocalChannel(argv, env)
        except OSError as error:
            raise StableBoardError(
                f"{argv[0]} cannot be run here ({error.strerror}): "
                "set python = ... for the board local in boards.toml"
            ) from error

    def put(
        self, local: Path, remote: str, *, offset: int = 0, on_sent: OnSent | None = None
    ) -> str | None:
        """Copy a file, also the part that is there."""
        del offset, on_sent
        self._copy(str(local), remote)
        return None

    def get(self, remote: str, local: Path) -> None:
        """Copy a file."""
        self._copy(remote, str(local))

    def _copy(self, source: str, target: str) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            # A disk that is full now may not be so in a minute.
            raise TransientBoardError(f"{source} cannot be copied to {target}: {error}") from error

    def close(self) -> None:
        """Nothing to let go of."""


# --- SSH ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _broken_is_transient(
    what: str, *, but: tuple[type[Exception], ...] = ()
) -> collections.abc.Iterator[None]:
    try:
        yield
    except but:
        raise
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise TransientBoardError(f"the connection broke during {what}: {error!r}") from error


class SSHChannel:
    """A program that runs in an SSH channel of its own."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._stderr = b""

    def end(self) -> None:
        """Tell the program that nothing more comes."""
        with _broken_is_transient("sending"):
            self._channel.shutdown_write()

    def write(self, data: bytes) -> None:
        """Send all of ``data``, in pieces."""
        self._channel.settimeout(SILENCE_S)
        with _broken_is_transient("sending"):
            for start in range(0, len(data), CHUNK_BYTES):
                self._channel.sendall(data[start : start + CHUNK_BYTES])

    def _drain_stderr(self) -> None:
        # A full window of stderr would block the agent.
        while self._channel.recv_stderr_ready():
            self._stderr = (self._stderr + self._channel.recv_stderr(1 << 16))[-STDERR_TAIL_BYTES:]

    def read(self, timeout_s: float) -> bytes:
        """Some bytes of stdout, b"" at its end."""
        self._drain_stderr()
        # Zero would make paramiko's channel non-blocking.
        self._channel.settimeout(max(timeout_s, 1e-3))
        with _broken_is_transient("reading", but=(TimeoutError,)):
            data = self._channel.recv(1 << 16)
        self._drain_stderr()
        return data

    def exit_code(self, timeout_s: float) -> int | None:
        """The program's exit code; None if the server never told."""
        deadline_s = time.monotonic() + timeout_s
        while not self._channel.exit_status_ready() and time.monotonic() < deadline_s:
            self._channel.status_event.wait(0.05)
        if not self._channel.exit_status_ready():
            return None
        code = self._channel.recv_exit_status()
        return None if code < 0 else code

    def stderr_tail(self) -> str:
        """The end of stderr."""
        self._drain_stderr()
        return self._stderr.decode(errors="replace")

    def close(self) -> None:
        """Close the channel, which closes the agent's stdin."""
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.shutdown_write()
            self.exit_code(2.0)
        # Over a link that is gone this raises too, and would hide why it is given up.
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.close()


class SSHTransport:
    """A board over SSH."""

    def __init__(self, spec: BoardSpec) -> None:
        self._client, self._hops = ssh.connect(spec)
        self._python = spec.python

    def start(self, argv: Sequence[str], *, env: Mapping[str, str]) -> SSHChannel:
        """A program in a channel of its own."""
        with _broken_is_transient("starting a program"):
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError("connection closed")
            channel = transport.open_session(timeout=SILENCE_S)
            # paramiko waits for the answer without end, also on a link that has gone silent.
            late = threading.Timer(SILENCE_S, channel.close)
            late.start()
            try:
                channel.exec_command(quote(argv, env))
            finally:
                late.cancel()
        return SSHChannel(channel)

    def put(
        self, local: Path, remote: str, *, offset: int = 0, on_sent: OnSent | None = None
    ) -> str | None:
        """Upload a file from ``offset`` on, through a channel of its own.

        Not by SFTP, whose answer to every 32 KiB costs half of the throughput.
        """
        channel = self.start([self._python, "-S", "-c", RECEIVE, remote, str(offset)], env={})
        try:
            with local.open("rb") as source:
                source.seek(offset)
                while chunk := source.read(READ_BYTES):
                    channel.write(chunk)
                    offset += len(chunk)
                    if on_sent is not None:
                        on_sent(offset)
            channel.end()
            self._expect_end(channel, f"sending {local}")
            said = channel.read(SILENCE_S).decode(errors="replace")
            return said.strip().rpartition("\n")[2]
        except TimeoutError as error:
            raise TransientBoardError(f"sending {local} stood still") from error
        finally:
            channel.close()

    def get(self, remote: str, local: Path) -> None:
        """Download a file."""
        channel = self.start(["sh", "-c", SEND, "sh", remote], env={})
        try:
            with local.open("wb") as target:
                head = b""
                while FILE_MARK not in head and len(head) < MAX_NOISE_BYTES:
                    if not (chunk := channel.read(SILENCE_S)):
                        break
                    head += chunk
                noise, mark, start = head.partition(FILE_MARK)
                if not mark and len(noise) >= MAX_NOISE_BYTES:
                    raise ProtocolError(
                        f"{len(noise)} bytes came before {remote}; does a login script on the "
                        "board print without end?"
                    )
                target.write(start)
                while chunk := channel.read(SILENCE_S):
                    target.write(chunk)
            self._expect_end(channel, f"fetching {remote}")
        except TimeoutError as error:
            raise TransientBoardError(f"fetching {remote} stood still") from error
        finally:
            channel.close()

    def _expect_end(self, channel: SSHChannel, what: str) -> None:
        code = channel.exit_code(SILENCE_S)
        if code != 0:
            said = channel.stderr_tail().strip().rpartition("\n")[2]
            raise TransientBoardError(f"{what} failed (exit code {code}): {said or 'no word'}")

    def close(self) -> None:
        """Close the connection and those that it went through."""
        for client in (self._client, *self._hops):
            client.close()
