"""The faults: what goes wrong between a host and a board, made to happen on purpose.

A fault's ``strike`` does it once and says whether there was something to hit. ``around`` prepares
the board for a campaign under it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.boards.nano import Process
from tests.faults.scene import Scene

# How long a strike looks for what it wants to hit.
SEEK_S = 5.0
LOOK_S = 0.001
HOUR_S = 3600
MIB = 1 << 20
DISK_BYTES = 64 * MIB


@contextlib.contextmanager
def as_it_is(scene: Scene) -> Iterator[None]:
    """Nothing to prepare."""
    del scene
    yield


def boards_python(scene: Scene) -> str:
    """The interpreter as it is."""
    return scene.nano.python.executable


def filtered_python(scene: Scene) -> str:
    """An interpreter whose output goes through a filter."""
    return str(scene.nano.hooks / "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong.

    ``settings`` are those of a simulated engine that goes wrong by itself: candidates with it take
    the place of strikes, and ``named`` is what the host must say of them; None where it must
    measure them all the same. ``python`` is the board's interpreter, ``needs_root`` holds where
    only root can do it.
    """

    name: str
    strike: Callable[[Scene], bool] | None = None
    around: Callable[[Scene], AbstractContextManager[None]] = as_it_is
    settings: dict[str, object] | None = None
    named: str | None = None
    python: Callable[[Scene], str] = boards_python
    job_timeout_s: float = 30.0
    needs_root: bool = False


def _seek(look: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + SEEK_S
    while time.monotonic() < deadline_s:
        if look():
            return True
        time.sleep(LOOK_S)
    return False


# --- the network --------------------------------------------------------------------------------


def cut(scene: Scene) -> bool:
    """The server's processes of every connection are gone."""
    return _seek(lambda: scene.nano.sshd.drop_connections() > 0)


def reset(scene: Scene) -> bool:
    """Both ends get a RST."""
    return _seek(lambda: scene.proxy.cut() > 0)


def stall(scene: Scene) -> bool:
    """The line delivers nothing for a while, and closes nothing."""
    scene.proxy.stall()
    # Either the connection outlives it, or the host has given it up before it is over.
    scene.pause(*scene.random.choice(((0.5, 1.5), (6.0, 7.0))))
    scene.proxy.resume()
    return True


def abandon(scene: Scene) -> bool:
    """The connections there are never deliver anything again; neither end is told."""
    return _seek(lambda: scene.proxy.abandon() > 0)


# --- processes ----------------------------------------------------------------------------------


def _kill(victims: list[Process]) -> bool:
    hit = False
    for process in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
            hit = True
    return hit


def kill_agent(scene: Scene) -> bool:
    """The agent is gone, without a word."""
    return _seek(lambda: _kill(scene.nano.processes("agent")))


def kill_worker(scene: Scene) -> bool:
    """The process that measures is gone, its parent too, or its parent alone."""
    which = scene.random.choice(("child", "parent", "both"))

    def look() -> bool:
        workers = scene.nano.processes("worker")
        parents = {process.parent for process in workers}
        children = [process for process in workers if process.parent in {w.pid for w in workers}]
        if not children:
            return False
        victims = {
            "child": children,
            "parent": [process for process in workers if process.pid in parents],
            "both": workers,
        }
        return _kill(victims[which])

    return _seek(look)


def kill_host(scene: Scene) -> bool:
    """The host is gone, and somebody starts it again."""
    hit = scene.host.kill()
    if hit:
        scene.pause(0.0, 1.0)
        scene.host.start()
    return hit


def restart_board(scene: Scene) -> bool:
    """The board loses its power and comes back: files, locks' files and half-written ones stay."""
    hit = scene.nano.switch_off() > 0
    scene.pause(0.2, 1.5)
    scene.nano.switch_on()
    return hit


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(scene: Scene) -> Iterator[None]:
    """The board's cache lies on a small disk of its own."""
    place = scene.nano.user.home / ".cache"
    place.mkdir()
    user = scene.nano.user
    options = f"size={DISK_BYTES},uid={user.uid},gid={user.gid},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
    try:
        yield
    finally:
        scene.nano.leftovers()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_disk(scene: Scene) -> bool:
    """There is no room left for a while."""
    ballast = scene.nano.user.home / ".cache" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * MIB)
    disk = os.statvfs(ballast)
    full = disk.f_bavail == 0
    scene.pause(0.5, 2.5)
    ballast.unlink()
    return full


def forbid_writing(scene: Scene) -> bool:
    """No file can be made or renamed in the cache for a while."""
    modes: dict[Path, int] = {}
    for folder in (scene.nano.cache, *scene.nano.cache.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir():
                modes[folder] = folder.stat().st_mode & 0o777
                folder.chmod(modes[folder] & ~0o222)
    scene.pause(0.5, 2.5)
    for folder, mode in modes.items():
        with contextlib.suppress(FileNotFoundError):
            folder.chmod(mode)
    return bool(modes)


def corrupt_upload(scene: Scene) -> bool:
    """A byte of a file changes between being written and being verified."""

    def look() -> bool:
        with contextlib.suppress(OSError):
            for path in (scene.nano.cache / "blobs" / "incoming").iterdir():
                with path.open("rb+", buffering=0) as stream:
                    first = stream.read(1)
                    if not first:
                        continue
                    stream.seek(0)
                    stream.write(bytes([first[0] ^ 0xFF]))
                    if path.exists():
                        return True
                    stream.seek(0)  # it was verified before the byte was changed: too late
                    stream.write(first)
        return False

    return _seek(look)


def truncate_result(scene: Scene) -> bool:
    """The second half of a result is lost before the host has read it."""
    jobs = scene.nano.cache / "jobs"
    known = {path.parent for path in jobs.glob("*/outcome.json")}

    def look() -> bool:
        with contextlib.suppress(OSError):
            for folder in jobs.iterdir():
                outcome = folder / "outcome.json"
                if folder not in known and outcome.exists():
                    known.add(folder)
                    before = scene.stored()
                    os.truncate(outcome, scene.random.randrange(outcome.stat().st_size))
                    return scene.stored() == before
        return False

    return _seek(look)


# --- the board's software -----------------------------------------------------------------------

SHIFTED_CLOCK = """\
import os, time
_true = time.time
_shift = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clock_shift_s")
def _shifted():
    try:
        with open(_shift) as stream:
            return _true() + float(stream.read())
    except (OSError, ValueError):
        return _true()
time.time = _shifted
"""
# Stands between the server and the agent, and puts what it finds in a file into the stream.
FILTER = """\
import os, select, subprocess, sys, time
hooks = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(hooks, "greeting"), "rb") as stream:
    greeting = stream.read()
def say(data):
    while data:
        data = data[os.write(1, data):]
say(greeting)
program = subprocess.Popen([sys.executable] + sys.argv[1:], stdout=subprocess.PIPE)
out = program.stdout.fileno()
injected = os.path.join(hooks, "injected")
while True:
    try:
        with open(injected, "rb") as stream:
            data = stream.read()
        os.remove(injected)
        say(data)
    except OSError:
        pass
    if select.select([out], [], [], 0.02)[0]:
        data = os.read(out, 1 << 16)
        if not data:
            break
        say(data)
sys.exit(program.wait())
"""


@contextlib.contextmanager
def shifting_clock(scene: Scene) -> Iterator[None]:
    """Every process of the board reads a clock that can be set."""
    (scene.nano.hooks / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    yield


@contextlib.contextmanager
def filtered(scene: Scene) -> Iterator[None]:
    """What the agent says goes through a filter that can put more into it."""
    hooks = scene.nano.hooks
    (hooks / "filter.py").write_text(FILTER)
    (hooks / "greeting").write_bytes(b"")
    program = hooks / "python"
    program.write_text(f'#!/bin/sh\nexec {boards_python(scene)} {hooks / "filter.py"} "$@"\n')
    program.chmod(0o755)
    yield


def set_clock(scene: Scene) -> bool:
    """The board's clock jumps by an hour, back or forth, and its newest files are of then."""
    shift = scene.nano.hooks / "clock_shift_s"
    now = int(shift.read_text()) if shift.exists() else 0
    later = scene.random.choice([one for one in (-HOUR_S, 0, HOUR_S) if one != now])
    temporary = shift.with_suffix(".new")
    temporary.write_text(str(later))
    temporary.replace(shift)
    return True


def _inject(scene: Scene, data: bytes) -> bool:
    """Puts data into the stream of the agent that runs now."""
    injected = scene.nano.hooks / "injected"
    temporary = injected.with_suffix(".new")
    temporary.write_bytes(data)
    temporary.replace(injected)
    if _seek(lambda: not injected.exists()):
        return True
    with contextlib.suppress(FileNotFoundError):
        injected.unlink()
        return False
    return True


GARBAGE = (
    b"\xff\xfe\x00 garbage \x80\n",
    b"[TensorRT] WARNING: something is deprecated\n",
    b'{"id": 1, "result": {"state": "do\n',
    b'{"id": 99999, "result": {}}\n',
    b'{"id": 1, "result": {"state": NaN}}\n',
    b"[" * 100_000 + b"\n",
    b"no end of line",
)


def inject_garbage(scene: Scene) -> bool:
    """Bytes that are no frame stand between the agent's frames, or in the middle of one."""
    return _inject(scene, scene.random.choice(GARBAGE))


def inject_oversized(scene: Scene) -> bool:
    """A line of 20 MiB."""
    return _inject(scene, b"x" * (20 * MIB) + b"\n")


def greet(scene: Scene) -> bool:
    """A login script says something else before the agent speaks, and one has to log in again."""
    text = "Welcome to the board\n{updates} updates can be applied\nLast login: never"
    content = text.format(updates=scene.random.randrange(1000)).encode()
    (scene.nano.hooks / "greeting").write_bytes(content * scene.random.randrange(1, 200))
    return _seek(lambda: scene.proxy.cut() > 0)


# --- all of them --------------------------------------------------------------------------------

FAULTS = (
    Fault(name="connection killed", strike=cut),
    Fault(name="connection reset", strike=reset),
    Fault(name="line stalled", strike=stall),
    Fault(name="connection abandoned", strike=abandon),
    Fault(name="agent killed", strike=kill_agent),
    Fault(name="worker killed", strike=kill_worker),
    Fault(name="host killed", strike=kill_host),
    Fault(name="board restarted", strike=restart_board),
    Fault(name="disk full", strike=fill_disk, around=small_disk, needs_root=True),
    Fault(name="upload corrupted", strike=corrupt_upload),
    Fault(name="result truncated", strike=truncate_result),
    Fault(name="cache read-only", strike=forbid_writing),
    Fault(name="clock set", strike=set_clock, around=shifting_clock),
    Fault(name="library prints", settings={"print": '{"id": 1, "result": {}}\n[TRT] \xe9'}),
    Fault(
        name="candidate hangs",
        settings={"sleep_s": 3600.0},
        named=r"JobTimeout.*2 s",
        job_timeout_s=2.0,
    ),
    Fault(name="candidate crashes", settings={"signal": 11}, named=r"signal 11"),
    Fault(name="garbage in stream", strike=inject_garbage, around=filtered, python=filtered_python),
    Fault(name="frame too long", strike=inject_oversized, around=filtered, python=filtered_python),
    Fault(name="login script talks", strike=greet, around=filtered, python=filtered_python),
)
