"""The virtual Nano: a real OpenSSH server, an unprivileged user, and the software of a Nano.

Where the tests run as root the user is a throw-away account with a home of its own; else it is
whoever runs them, with ``HOME`` set to a folder of the board. The user's processes and files are
the board's, so that what is left over can be counted.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.boards import ssh
from harness.records import BoardSpec
from tests.boards.board_python import BoardPython, User, for_user
from tests.boards.sshd import SSHD, Sshd

ACCOUNT = re.compile(r"^bfnano([0-9]+)x[0-9a-f]+$")
FOLDER = re.compile(r"^boardfit-nano-([0-9]+)-")
SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of the board's user."""

    pid: int
    parent: int
    argv: tuple[str, ...]

    @property
    def role(self) -> str:
        """``agent``, ``worker``, ``sshd`` or the name of the program."""
        text = "\0".join(self.argv)
        if "boardfit-bootstrap" in text:
            return "agent"
        if self.argv[1:4] == ("-m", "device_agent", "worker"):
            return "worker"
        return "sshd" if text.startswith("sshd") else Path(self.argv[0] or "?").name


def processes(user: User) -> list[Process]:
    """The user's processes; zombies are none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines()
            )
            if int(status["Uid"].split()[0]) != user.uid or status["State"].startswith("Z"):
                continue
            # Whoever runs the tests has other processes too; the board's have its home.
            if os.getuid() != 0 and (
                f"HOME={user.home}\0".encode() not in (folder / "environ").read_bytes()
            ):
                continue
            argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            found.append(
                Process(pid=int(folder.name), parent=int(status["PPid"]), argv=tuple(argv) or ("",))
            )
    return found


def kill_all(user: User) -> int:
    """End all of the user's processes at once; how many there were."""
    killed: set[int] = set()
    deadline_s = time.monotonic() + DEADLINE_S
    while running := processes(user):
        assert time.monotonic() < deadline_s, f"cannot be killed: {running}"
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        killed.update(process.pid for process in running)
        time.sleep(0.02)
    return len(killed)


# --- the account --------------------------------------------------------------------------------


def _shared_folder() -> Path:
    """A fresh folder that every account of this computer can reach."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        if all(place.stat().st_mode & 0o001 for place in (parent, *parent.parents)):
            folder = Path(tempfile.mkdtemp(prefix=f"boardfit-nano-{os.getpid()}-", dir=parent))
            folder.chmod(0o755)
            return folder
    pytest.skip("no folder for temporary files that another account can reach")


def _account_command(name: str, *arguments: str) -> str:
    """What the command says of its failure; "" where it succeeds."""
    command = shutil.which(name, path=SBIN)
    if command is None:
        return f"there is no {name}"
    for _ in range(20):
        done = subprocess.run([command, *arguments], capture_output=True, text=True)
        if "lock" not in done.stderr:  # another program is changing the accounts
            break
        time.sleep(0.2)
    return (done.stderr or "it gave no reason") if done.returncode else ""


def _remove_account(entry: pwd.struct_passwd) -> None:
    kill_all(User(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, home=Path(entry.pw_dir)))
    failure = _account_command("userdel", entry.pw_name)
    assert not failure, failure


def _remove_forgotten() -> None:
    """Accounts and folders of test runs that were killed before they could clean up."""
    for entry in pwd.getpwall():
        found = ACCOUNT.match(entry.pw_name)
        if found and not Path("/proc", found[1]).exists():
            _remove_account(entry)
    for folder in Path(tempfile.gettempdir()).glob("boardfit-nano-*"):
        found = FOLDER.match(folder.name)
        if found and not Path("/proc", found[1]).exists():
            cache = folder / "home" / ".cache"
            if cache.is_mount():
                subprocess.run(["umount", "--lazy", str(cache)], check=True)
            shutil.rmtree(folder)


@contextlib.contextmanager
def account() -> Iterator[tuple[User, Path]]:
    """A board's user and a folder that it can read; both are removed afterwards."""
    folder = _shared_folder()
    home = folder / "home"
    home.mkdir()
    try:
        if os.getuid() != 0:
            me = pwd.getpwuid(os.getuid())
            yield User(name=me.pw_name, uid=me.pw_uid, gid=me.pw_gid, home=home), folder
            return
        _remove_forgotten()
        name = f"bfnano{os.getpid()}x{secrets.token_hex(3)}"
        # A password of * fits nothing, but does not lock the account as ! would.
        options = ("-M", "-d", str(home), "-s", "/bin/sh", "-p", "*")
        failure = _account_command("useradd", *options, name)
        if failure:
            pytest.skip(f"no account can be made for the virtual Nano: {failure}")
        entry = pwd.getpwnam(name)
        try:
            os.chown(home, entry.pw_uid, entry.pw_gid)
            yield User(name=name, uid=entry.pw_uid, gid=entry.pw_gid, home=home), folder
        finally:
            _remove_account(entry)
    finally:
        shutil.rmtree(folder)


# --- the board ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Makers:
    """What several boards share; ``folder`` is one that the user can read."""

    user: User
    python: BoardPython
    folder: Path


class Nano:
    """The board, switched on: its server listens and its home is empty."""

    def __init__(self, makers: Makers) -> None:
        self.user = makers.user
        self.python = makers.python
        self.folder = makers.folder / "board"
        self.folder.mkdir()
        self.sshd = Sshd(self.folder, user=self.user.name)
        (self.folder / "authorized_keys").chmod(0o644)
        self.hooks = self.folder / "hooks"
        self.hooks.mkdir()
        os.chown(self.hooks, self.user.uid, self.user.gid)
        self.lease_dir = self.folder / "lease"
        self.lease_dir.mkdir()
        self.lease_dir.chmod(0o1777)  # as /run/lock is
        self.cache = self.user.home / ".cache" / "boardfit"
        self.spec = BoardSpec(name="nano", host="board", python=self.python.executable)
        self.switch_on()

    def spec_of(self, runtime: str) -> BoardSpec:
        """The board with that runtime."""
        return replace(self.spec, runtime=runtime)

    def behind(self, port: int) -> None:
        """Reached from now on through the proxy at ``port``, which becomes trusted too."""
        self.sshd.write_client_config(port=port)
        ssh.trust(self.spec)

    @property
    def ssh_config(self) -> Path:
        """The client's settings, for ``BOARDFIT_SSH_CONFIG``."""
        return self.folder / "ssh_config"

    def switch_on(self) -> None:
        """Listen. Python looks for modules in ``hooks`` first, which is empty but for faults."""
        env = {"PYTHONPATH": str(self.hooks), "BOARDFIT_LEASE_DIR": str(self.lease_dir)}
        if os.getuid() != 0:
            env["HOME"] = str(self.user.home)
        if self.python.library_dir:
            env["LD_LIBRARY_PATH"] = self.python.library_dir
        # A server notices in two hours (TCP's keep-alive) that a client has gone without a word;
        # here in six seconds.
        alive = "ClientAliveInterval 2\nClientAliveCountMax 2\n"
        self.sshd.start(f"MaxStartups 100\n{alive}", env)

    def switch_off(self) -> int:
        """Take the power away: nothing is told, files stay. How many processes that ended."""
        self.sshd.stop()
        return kill_all(self.user)

    def processes(self, *roles: str) -> list[Process]:
        """The board's processes, or those with one of ``roles``."""
        return [one for one in processes(self.user) if not roles or one.role in roles]

    def leftovers(self, timeout_s: float = DEADLINE_S) -> list[Process]:
        """Processes that are still there after the time that ending takes; none is right."""
        deadline_s = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return left

    def close(self) -> None:
        """Switch off and wipe the home."""
        self.switch_off()
        for entry in self.user.home.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def makers() -> Iterator[Makers]:
    """The account and its interpreter, for as many boards as one likes, one after the other."""
    if not Path(SSHD).is_file() or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server")
    with account() as (user, folder):
        yield Makers(user=user, python=for_user(user, folder / "python"), folder=folder)
