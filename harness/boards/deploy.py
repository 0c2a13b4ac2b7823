"""Bringing the agent to a board: packed, hashed, unpacked once, started with the board's Python."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from dataclasses import dataclass
from importlib import resources
from typing import Any

from harness.boards.transport import Transport
from harness.boards.wire import AGENT_MARK, Channel, Connection, parse, schema, validate
from harness.errors import ProtocolError, StableBoardError, TransientBoardError
from harness.records import BoardSpec

__all__ = ["Deployed", "Package", "launch", "pack"]

DEFAULT_CACHE_DIR = "~/.cache/boardfit"
BOOTSTRAP_MARK = b"boardfit-bootstrap "
# Importing Python and unpacking take seconds on a Nano's SD card.
START_TIMEOUT_S = 60.0

TOO_OLD, NO_CACHE, NO_SOURCE = 41, 42, 43

# Runs on any Python, 2.7 included, so that it can say which one it has found. Bytes of the home
# folder must not shadow the standard library, hence the first two lines.
BOOTSTRAP = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
if sys.version_info < (3, 6):
    sys.stderr.write("%d.%d" % sys.version_info[:2])
    sys.exit({TOO_OLD})
import io, os, runpy, shutil, tarfile
cache, name, size = os.path.expanduser(sys.argv[1]), sys.argv[2], int(sys.argv[3])
root = os.path.join(cache, "agents", name)
def say(word):
    os.write(1, b"\\n{BOOTSTRAP_MARK.decode()}" + word + b"\\n")
try:
    if os.path.isdir(root):
        say(b"have")
    else:
        if not os.path.isdir(os.path.dirname(root)):
            os.makedirs(os.path.dirname(root))
        say(b"need")
        data = b""
        while len(data) < size:
            part = os.read(0, size - len(data))
            if not part:
                sys.exit({NO_SOURCE})
            data += part
        fresh = "%s.%d" % (root, os.getpid())
        safe = {{"filter": "data"}} if hasattr(tarfile, "data_filter") else {{}}
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(fresh, **safe)
        try:
            os.rename(fresh, root)
        except OSError:
            shutil.rmtree(fresh)
            if not os.path.isdir(root):
                raise
except OSError as error:
    sys.stderr.write(str(error))
    sys.exit({NO_CACHE})
sys.path.insert(0, root)
sys.argv = ["device_agent", "serve", cache]
runpy.run_module("device_agent", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The agent's source: ``sha256`` is over its files (see the agent's ``agent_hash``)."""

    sha256: str
    tar: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A running agent."""

    connection: Connection
    agent_hash: str
    cache_dir: str
    pid: int


@functools.cache
def pack() -> Package:
    """The agent's package: the same bytes for the same source, no bytecode."""
    files = {
        entry.name: entry.read_bytes()
        for entry in resources.files("device_agent").iterdir()
        if entry.name.endswith((".py", ".json"))
    }
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            content = files[name]
            digest.update(b"%s\0%d\0" % (name.encode(), len(content)) + content)
            entry = tarfile.TarInfo(f"device_agent/{name}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return Package(sha256=digest.hexdigest(), tar=buffer.getvalue())


def _failure(spec: BoardSpec, channel: Channel) -> StableBoardError | TransientBoardError:
    """The error for an agent that ended before it spoke, by its exit code."""
    code, said = channel.exit_code(5.0), channel.stderr_tail().strip()
    board = f"board {spec.name}"
    if code in (126, 127):
        return StableBoardError(
            f"{board} has no {spec.python} (exit code {code}): install Python 3.6 or later there, "
            f'or set python = "..." for it in boards.toml. {said}'.rstrip()
        )
    if code == TOO_OLD:
        return StableBoardError(
            f"{board}: {spec.python} is Python {said.splitlines()[-1] if said else 'unknown'}, "
            'but the agent needs 3.6 or later: set python = "..." for it in boards.toml'
        )
    if code == NO_CACHE:
        return StableBoardError(
            f"{board} cannot keep the agent in {spec.cache_dir or DEFAULT_CACHE_DIR}: {said}. "
            'Make room or set cache_dir = "..." for it in boards.toml'
        )
    if code is None or code == NO_SOURCE:
        return TransientBoardError(f"{board}: the connection ended while the agent was started")
    return StableBoardError(f"{board}: the agent failed at start (exit code {code}). {said}")


def launch(transport: Transport, spec: BoardSpec) -> Deployed:
    """A running agent on the board, brought there if it has not this version yet."""
    package = pack()
    argv = [
        spec.python,
        "-c",
        BOOTSTRAP,
        spec.cache_dir or DEFAULT_CACHE_DIR,
        package.sha256,
        str(len(package.tar)),
    ]
    channel = transport.start(argv, env={"PYTHONUNBUFFERED": "1"})
    connection = Connection(channel)
    try:
        answer = connection.marked_line((BOOTSTRAP_MARK,), START_TIMEOUT_S)
        if answer is None:
            raise _failure(spec, channel)
        if answer[len(BOOTSTRAP_MARK) :].strip() == b"need":
            connection.write(package.tar)
        line = connection.marked_line((AGENT_MARK,), START_TIMEOUT_S)
        if line is None:
            raise _failure(spec, channel)
        hello = _hello(line)
        if hello["agent_hash"] != package.sha256:
            raise StableBoardError(
                f"board {spec.name}: the agent in {hello['cache_dir']}/agents/{package.sha256} "
                "is not what was unpacked there: delete that folder"
            )
    except BaseException:
        connection.close()
        raise
    return Deployed(
        connection=connection,
        agent_hash=hello["agent_hash"],
        cache_dir=hello["cache_dir"],
        pid=hello["pid"],
    )


def _hello(line: bytes) -> dict[str, Any]:
    hello = parse(line[len(AGENT_MARK) :])
    if isinstance(hello, dict) and hello.get("protocol") != schema()["x-protocol"]:
        raise ProtocolError(
            f"the agent speaks protocol {hello.get('protocol')}, not {schema()['x-protocol']}"
        )
    validate("hello", hello)
    return dict(hello)
