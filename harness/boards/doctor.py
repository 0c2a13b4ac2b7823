"""The doctor: looks at a board step by step and says what is wrong, and what to do about it.

Each check has a deadline; one that fails lets those that depend on it be skipped, and nothing else.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko

from harness import stats
from harness.boards import bindings, deploy, findings, probing, reach, ssh
from harness.boards.reach import Failed, within
from harness.boards.transport import Transport, open_transport
from harness.boards.wire import Connection, validate
from harness.errors import (
    AgentError,
    BoardError,
    BoardfitError,
    ProtocolError,
    StableBoardError,
    TransientBoardError,
)
from harness.records import BoardSpec, Check, CheckStatus, Diagnosis
from harness.units import format_size, format_time

__all__ = ["diagnose"]

# A name, a connection, a greeting; the latter two have shorter time-outs of their own.
STEP_TIMEOUT_S = 20.0
# Three of paramiko's own time-outs, and those of a jump host.
LOGIN_TIMEOUT_S = 60.0
# Python from a cold SD card.
PROGRAM_TIMEOUT_S = 45.0
TRANSFER_TIMEOUT_S = 60.0
START_TIMEOUT_S = 130.0
SECTION_TIMEOUT_S = 30.0
# These import runtimes, which the agent gives up at 120 s; TensorRT's also asks trtexec (60 s),
# TensorRT-RTX and CUDA (30 s each).
SLOW_SECTIONS = {"onnxruntime": 130.0, "tensorrt": 250.0}
TRANSFER_BYTES = 1 << 20
ROUND_TRIPS = 5
# The transport writes to files that are there.
MAKE = "import sys; open(sys.argv[1], 'ab').close()"
REMOVE = "import os, sys; os.remove(sys.argv[1])"

# The checks of each section, in the order in which they are told.
SECTIONS = {
    "system": ("system", "gpu"),
    "memory": ("memory", "swap"),
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "gpu precisions"),
    "cpu": ("cpu",),
    "controls": ("power mode", "clocks", "governor", "sudo", "power supply"),
    "thermal": ("temperature",),
    "power": ("power rails",),
    "clock": ("time",),
    "lease": ("lease",),
    "load": ("load",),
    "cache": ("cache",),
}
SKIPPED = "not looked at: "

OnCheck = Callable[[str], None]


def diagnose(spec: BoardSpec, *, on_check: OnCheck | None = None) -> Diagnosis:
    """What is right and wrong with a board; ``ConfigError`` alone is raised, for wrong settings.

    ``on_check`` is told the name of each check before it is made.
    """
    bindings.check_runtime(spec)
    visit = _Visit(spec, on_check)
    try:
        reached = visit.arrive()
        if reached:
            visit.look()
        else:
            visit.skip_rest()
    finally:
        visit.close()
    return Diagnosis(board=spec.name, checks=tuple(visit.checks), reached=reached)


class _Visit:
    """One look at a board: the checks made so far, and what they left open for the next ones."""

    def __init__(self, spec: BoardSpec, on_check: OnCheck | None) -> None:
        self.checks: list[Check] = []
        self._spec = spec
        self._on_check = on_check
        self._transport: Transport | None = None
        self._agent: deploy.Deployed | None = None
        self._probe: dict[str, Any] = {}
        self._system: dict[str, Any] | None = None

    def close(self) -> None:
        """Let go of the board; what hangs is left behind."""
        agent, transport = self._agent, self._transport
        self._agent = self._transport = None
        for one in (agent.connection if agent else None, transport):
            if one is not None:
                with contextlib.suppress(BoardfitError, OSError, EOFError, paramiko.SSHException):
                    within(5.0, one.close)

    # --- bookkeeping ----------------------------------------------------------------------------

    def _ok(self, name: str) -> bool:
        return any(c.name == name and c.status in ("ok", "warn") for c in self.checks)

    def _because(self, needed: str) -> str:
        """Why ``needed`` did not pass: it failed, or whatever it was itself skipped for."""
        check = next(check for check in self.checks if check.name == needed)
        return check.found.removeprefix(SKIPPED) if check.status == "skip" else f"{needed} failed"

    def _skip(self, names: tuple[str, ...], because: str) -> None:
        for name in names:
            self.checks.append(Check(name=name, status="skip", found=SKIPPED + because))

    def _check(
        self, name: str, deadline_s: float, action: Callable[[], Check], *, needs: str | None = None
    ) -> bool:
        """Whether the board passed; whatever goes wrong on the way is the check's failure."""
        if needs is not None and not self._ok(needs):
            self._skip((name,), self._because(needs))
            return False
        if self._on_check is not None:
            self._on_check(name)
        try:
            check = within(deadline_s, action)
        except Failed as failed:
            check = Check(
                name=name,
                status="fail",
                found=str(failed),
                remedy=failed.remedy,
                facts=failed.facts,
            )
        except (AgentError, BoardError, OSError, EOFError, paramiko.SSHException) as error:
            check = Check(
                name=name,
                status="fail",
                found=str(error) or repr(error),
                remedy="try again; if it stays, look at the board's own log (journalctl -b)",
            )
        self.checks.append(check)
        return check.status != "fail"

    # --- reaching the board ---------------------------------------------------------------------

    def arrive(self) -> bool:
        """Whether commands can be run on the board."""
        if self._spec.host is None:
            found = "this computer: no network and no login in between"
            self.checks.append(Check(name="address", status="ok", found=found))
            self._transport = open_transport(self._spec)
            return True
        where = ssh.route(self._spec.host)
        if where.jumps or where.proxy_command:
            way = f"ProxyJump {','.join(where.jumps)}" if where.jumps else "ProxyCommand"
            self._skip(("address", "tcp", "ssh"), f"{where.host} is reached through {way}")
        else:
            self._check("address", STEP_TIMEOUT_S, lambda: reach.address(where))
            self._check("tcp", STEP_TIMEOUT_S, lambda: reach.tcp(where), needs="address")
            if not self._check("ssh", STEP_TIMEOUT_S, lambda: reach.banner(where), needs="tcp"):
                self._skip(("host key", "login"), self._because("ssh"))
                return False
        return self._log_in(where)

    def _log_in(self, where: ssh.Route) -> bool:
        """One attempt tells of the host key and of the login."""
        if self._on_check is not None:
            self._on_check("login")
        spec = self._spec
        try:
            key, self._transport = within(LOGIN_TIMEOUT_S, lambda: reach.log_in(spec))
        except (BoardError, OSError, EOFError, paramiko.SSHException) as error:
            check = reach.login_failed(error, where, board=spec.name)
            if check.name == "login":
                found = "no objection before the login failed"
                self.checks.append(Check(name="host key", status="ok", found=found))
            self.checks.append(check)
            if check.name == "host key":
                self._skip(("login",), "host key failed")
            return False
        self.checks.append(
            Check(name="host key", status="ok", found=f"trusted: {key}", facts={"fingerprint": key})
        )
        found = f"as {where.user} on {where.host} port {where.port}"
        self.checks.append(Check(name="login", status="ok", found=found))
        return True

    # --- looking around -------------------------------------------------------------------------

    def skip_rest(self) -> None:
        """Name every check that needs a login."""
        because = self._because("login")
        names = ("python", "cache folder", "disk", "file transfer", "agent")
        self._skip((*names, *(n for names in SECTIONS.values() for n in names)), because)

    def look(self) -> None:
        """Everything that can be told once commands run on the board."""
        self._check("python", PROGRAM_TIMEOUT_S * 2, self._python)
        self._check("cache folder", 1.0, lambda: probing.cache_folder(self._probe), needs="python")
        self._check("disk", 1.0, lambda: probing.disk(self._probe), needs="python")
        self._check("file transfer", TRANSFER_TIMEOUT_S, self._transfer, needs="cache folder")
        self._check("agent", START_TIMEOUT_S, self._start, needs="cache folder")
        for section, names in SECTIONS.items():
            if not self._ok("agent"):
                self._skip(names, self._because("agent"))
            else:
                self._section(section, names)

    def _run(self, argv: list[str]) -> tuple[int | None, bytes, str]:
        """Exit code, stdout and the end of stderr of a command on the board."""
        assert self._transport is not None
        channel = self._transport.start(argv, env={})
        try:
            output, deadline_s = b"", time.monotonic() + PROGRAM_TIMEOUT_S
            while data := channel.read(max(0.0, deadline_s - time.monotonic())):
                output = (output + data)[-(1 << 20) :]
                if time.monotonic() > deadline_s:
                    raise TimeoutError
            return channel.exit_code(5.0), output, channel.stderr_tail().strip()
        except TimeoutError as error:
            raise TransientBoardError(
                f"{argv[0]} did not end within {PROGRAM_TIMEOUT_S:.0f} s"
            ) from error
        finally:
            channel.close()

    def _python(self) -> Check:
        spec = self._spec
        argv = [spec.python, "-c", probing.PROBE, spec.cache_dir or deploy.DEFAULT_CACHE_DIR]
        try:
            code, output, said = self._run(argv)
        except StableBoardError as error:  # this computer's way to say that it is not there
            code, output, said = 127, b"", str(error)
        found = probing.read(output)
        if found is None:
            how = {126: "cannot be run", 127: "is not there"}.get(
                code or 0, f"ended with exit code {code}"
            )
            last = f": {said.splitlines()[-1]}" if said else ""
            raise Failed(f"{spec.python} {how}{last}", self._other_pythons())
        self._probe = found
        version, bits = found["version"], found["bits"]
        facts = {"version": version, "executable": found["executable"], "bits": bits}
        if not probing.at_least_36(version):
            text = f"{spec.python} is Python {version}; the agent needs 3.6 or later"
            raise Failed(text, self._other_pythons(), **facts)
        text = f"{version} in {found['executable']}"
        if bits != 64:
            remedy = "install a 64-bit system: there are no runtimes for 32 bits"
            text += f", {bits} bits"
            return Check(name="python", status="warn", found=text, remedy=remedy, facts=facts)
        return Check(name="python", status="ok", found=text, facts=facts)

    def _other_pythons(self) -> str:
        """A remedy that names an interpreter of the board that would do, if there is one."""
        where = f"[boards.{self._spec.name}] of boards.toml"
        try:
            usable = probing.pythons(self._run(["sh", "-c", probing.PYTHONS])[1])
        except BoardfitError:
            usable = ()
        if usable:
            name, version = usable[0]
            return f'set python = "{name}" in {where}: it is there, as Python {version}'
        return (
            "install Python 3.6 or later there (sudo apt-get install python3), or set "
            f'python = "..." in {where}'
        )

    def _transfer(self) -> Check:
        """Sends a file, fetches it, and compares."""
        assert self._transport is not None
        content = secrets.token_bytes(TRANSFER_BYTES)
        remote = f"{self._probe['cache_dir']}/doctor-{secrets.token_hex(8)}"
        with tempfile.TemporaryDirectory(prefix="boardfit-") as folder:
            sent, fetched = Path(folder, "sent"), Path(folder, "fetched")
            sent.write_bytes(content)
            try:
                self._run([self._spec.python, "-c", MAKE, remote])
                times_s = [time.monotonic()]
                self._transport.put(sent, remote)
                times_s.append(time.monotonic())
                self._transport.get(remote, fetched)
                times_s.append(time.monotonic())
            finally:
                self._run([self._spec.python, "-c", REMOVE, remote])
            if fetched.read_bytes() != content:
                remedy = "look for a failing disk there: dmesg, badblocks"
                raise Failed(f"{remote} came back changed", remedy)
        put_s, get_s = times_s[1] - times_s[0], times_s[2] - times_s[1]
        size = format_size(TRANSFER_BYTES)
        return Check(
            name="file transfer",
            status="ok",
            found=f"{size} there in {format_time(put_s)}, back in {format_time(get_s)}",
            facts={"size_bytes": TRANSFER_BYTES, "put_s": put_s, "get_s": get_s},
        )

    def _start(self) -> Check:
        """Starts the agent as every command does; its round trip is the median of a few."""
        assert self._transport is not None
        start_s = time.monotonic()
        try:
            self._agent = deploy.launch(self._transport, self._spec)
        except BoardfitError as error:
            raise Failed(str(error), _agent_remedy(self._probe["cache_dir"])) from error
        started_s = time.monotonic() - start_s
        trips = []
        for _ in range(ROUND_TRIPS):
            sent_s = time.monotonic()
            self._agent.connection.call("conditions", {}, timeout_s=SECTION_TIMEOUT_S)
            trips.append(time.monotonic() - sent_s)
        trip_s = stats.median(trips)
        found = f"starts in {format_time(started_s)}, answers in {format_time(trip_s)}"
        facts = {"start_s": started_s, "round_trip_s": trip_s}
        return Check(name="agent", status="ok", found=found, facts=facts)

    # --- sections -------------------------------------------------------------------------------

    def _section(self, section: str, names: tuple[str, ...]) -> None:
        """The checks of one section; what cannot be found out is a warning, and the next go on."""
        if self._on_check is not None:
            self._on_check(names[0])
        deadline_s = SLOW_SECTIONS.get(section, SECTION_TIMEOUT_S)
        sent_s = time.time()
        try:
            facts = within(deadline_s + 1, lambda: self._ask(section, deadline_s))
        except (AgentError, BoardError, OSError, EOFError, paramiko.SSHException) as error:
            status: CheckStatus = "fail" if section == self._spec.runtime else "warn"
            for name in names:
                self.checks.append(
                    Check(
                        name=name,
                        status=status,
                        found=f"could not be found out: {error}",
                        remedy="try again; if it stays, please report it",
                    )
                )
            self._again(error)
            return
        if section == "clock":
            self.checks.append(
                findings.clock(facts["now_s"], sent_s=sent_s, received_s=time.time())
            )
            return
        self.checks += findings.FINDINGS[section](facts, self._spec)
        if section == "system":
            self._system = facts
        elif section == "tensorrt" and self._system is not None:
            self.checks.append(findings.precisions(self._system, facts))

    def _ask(self, section: str, deadline_s: float) -> dict[str, Any]:
        assert self._agent is not None
        connection: Connection = self._agent.connection
        if section == "lease":  # a method of its own: sessions ask for it too
            return connection.call("lease", {}, timeout_s=deadline_s)
        answer = connection.call("inspect", {"section": section}, timeout_s=deadline_s)
        facts: dict[str, Any] = answer["facts"]
        validate(f"inspect.{section}", facts)
        return facts

    def _again(self, error: Exception) -> None:
        """A new agent in place of one that hangs or is gone; one that complained goes on."""
        if isinstance(error, AgentError) and not isinstance(error, ProtocolError):
            return
        lost = [] if self._agent is None else [self._agent.pid]
        self.close()
        try:
            self._transport = within(LOGIN_TIMEOUT_S, lambda: open_transport(self._spec))
            transport = self._transport
            agent = within(START_TIMEOUT_S, lambda: deploy.launch(transport, self._spec))
            self._agent = agent
            agent.connection.call("retire", {"pids": lost}, timeout_s=SECTION_TIMEOUT_S)
        except (BoardfitError, OSError, EOFError, paramiko.SSHException) as failed:
            gone = Check(
                name="agent",
                status="fail",
                found=f"it ended and does not start again: {failed}",
                remedy="look at the board's own log (journalctl -b, dmesg)",
            )
            self.checks = [gone if check.name == "agent" else check for check in self.checks]


def _agent_remedy(cache_dir: str) -> str:
    return f"remove {cache_dir}/agents and try again; if it stays, please report it"
