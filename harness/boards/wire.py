"""Frames between host and agent: encoded, bounded and checked against ``wire_v1.json``."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NoReturn, Protocol

import jsonschema

from harness.errors import AgentException, ProtocolError, StreamDamaged, TransientBoardError

__all__ = [
    "AGENT_MARK",
    "Channel",
    "Connection",
    "decode",
    "encode",
    "parse",
    "schema",
    "sensible",
    "validate",
]

AGENT_MARK = b"boardfit-agent "
# Anything longer is no count of bytes, and adding it up takes the square of its length.
MAX_DIGITS = 40
# A login script that prints more than this before the agent speaks is not a greeting.
MAX_NOISE_BYTES = 1 << 16

Frame = dict[str, Any]
OnEvent = Callable[[Frame], None]


class Channel(Protocol):
    """Binary stdin and stdout of a program on the board, with deadlines."""

    def write(self, data: bytes) -> None:
        """Send all of ``data``."""

    def read(self, timeout_s: float) -> bytes:
        """Some bytes of stdout, b"" at its end; ``TimeoutError`` if none come in time."""

    def exit_code(self, timeout_s: float) -> int | None:
        """The program's exit code, or None if it has not ended in time or nobody can tell."""

    def stderr_tail(self) -> str:
        """The end of what the program wrote to stderr."""

    def close(self) -> None:
        """Close stdin and let go of the program."""


@functools.cache
def schema() -> Frame:
    """The wire's schema, as shipped with the agent."""
    text = resources.files("device_agent").joinpath("wire_v1.json").read_text(encoding="utf-8")
    document: Frame = json.loads(text)
    return document


def _items(validator: Any, items: Any, instance: Any, whole: Any) -> Iterator[Any]:
    """The keyword ``items``, but a list of samples is checked at once, not number by number."""
    numbers = items in ({"type": "number"}, {"type": "integer"}) and isinstance(instance, list)
    allowed = {int} if items == {"type": "integer"} else {int, float}
    if not numbers or not set(map(type, instance)) <= allowed:
        yield from jsonschema.Draft202012Validator.VALIDATORS["items"](
            validator, items, instance, whole
        )


def _pattern(validator: Any, pattern: Any, instance: Any, whole: Any) -> Iterator[Any]:
    """The keyword ``pattern``, whose $ is the end; Python's is also before a last newline."""
    del validator, whole
    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield jsonschema.ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


# 10 us a number would be seconds for a long measurement. And 1.0 is no integer here: a count of
# bytes or a process number that came as one would end in a TypeError far from the wire.
_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {"items": _items, "pattern": _pattern},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ),
)


@functools.cache
def _validator(name: str) -> Any:
    return _Validator({"$ref": f"#/$defs/{name}", "$defs": schema()["$defs"]})


def validate(name: str, value: Any) -> None:
    """Nothing; ``ProtocolError`` if ``value`` does not fit the schema's definition ``name``."""
    try:
        error = next(iter(_validator(name).iter_errors(value)), None)
    except RecursionError as deep:
        raise ProtocolError(f"{name} is nested too deeply") from deep
    if error is not None:
        raise ProtocolError(f"{name} at {error.json_path}: {error.message[:500]}")


@contextlib.contextmanager
def sensible() -> Iterator[None]:
    """Makes what fits the schema and yet no record (samples of no time) a ``ProtocolError``."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError) as error:
        raise ProtocolError(f"the agent's answer makes no sense: {error}") from error


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:MAX_DIGITS]} is too large a number")
    return value


def parse(data: bytes) -> Any:
    """The JSON in ``data``; ``ProtocolError`` if it is none, or holds what nobody can print."""
    try:
        found = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        if b"\\u" in data:
            json.dumps(found, ensure_ascii=False).encode()  # halves of characters have no UTF-8
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{data[:80]!r} is no JSON: {error}") from error
    return found


def encode(frame: Frame) -> bytes:
    """One line; ``ProtocolError`` if it is too long or holds what JSON cannot."""
    try:
        line = json.dumps(frame, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise ProtocolError(f"frame cannot be written: {error}") from error
    limit = schema()["x-max-frame-bytes"]
    if len(line) > limit:
        raise ProtocolError(f"frame of {len(line)} bytes; a frame is at most {limit}")
    return line


def decode(line: bytes) -> Frame:
    """The reply in a line; ``StreamDamaged`` if it is none."""
    try:
        frame = parse(line)
        validate("reply", frame)
    except ProtocolError as error:
        raise StreamDamaged(f"the agent sent {line[:80]!r}, which is no frame: {error}") from error
    reply: Frame = frame
    return reply


class Connection:
    """Calls on an agent, one after the other; every one has a deadline."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()
        self._searched = 0
        self._last_id = 0

    def write(self, data: bytes) -> None:
        """Send bytes that are no frame: the agent's own source, before it runs."""
        self._channel.write(data)

    def line(self, deadline_s: float) -> bytes | None:
        """The next line without its end, None at the end of the stream.

        ``deadline_s`` is on ``time.monotonic``; missing it is a ``TransientBoardError``.
        """
        limit = schema()["x-max-frame-bytes"]
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                found = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return found
            self._searched = len(self._buffer)
            if self._searched > limit:
                raise StreamDamaged(f"the agent sent a line of more than {limit} bytes")
            try:
                data = self._channel.read(max(0.0, deadline_s - time.monotonic()))
            except TimeoutError as error:
                raise TransientBoardError(
                    "the board did not answer in time; is it overloaded, or the network down?"
                ) from error
            if not data:
                return None
            self._buffer += data

    def marked_line(self, marks: tuple[bytes, ...], timeout_s: float) -> bytes | None:
        """The first line that starts with one of ``marks``; start-up noise before it is skipped."""
        deadline_s = time.monotonic() + timeout_s
        noise_bytes = 0
        while (line := self.line(deadline_s)) is not None:
            if line.startswith(marks):
                return line
            noise_bytes += len(line)
            if noise_bytes > MAX_NOISE_BYTES:
                raise ProtocolError(
                    f"more than {MAX_NOISE_BYTES} bytes came before the agent's first line; "
                    "does a login script on the board print without end?"
                )
        return None

    def call(
        self,
        method: str,
        params: Frame,
        *,
        timeout_s: float,
        on_event: OnEvent | None = None,
    ) -> Frame:
        """The result of a method; ``timeout_s`` is the longest silence between two frames.

        Without ``on_event`` it is the longest time altogether, and an event is misuse. With it, a
        method that ends by itself after its parameter ``timeout_s`` must do so.

        Raises ``AgentException`` for an exception on the board, ``ProtocolError`` for misuse and
        ``TransientBoardError`` where the connection broke, the deadline passed or what came is no
        frame.
        """
        validate(f"{method}.params", params)
        self._last_id += 1
        self._channel.write(encode({"id": self._last_id, "method": method, "params": params}))
        last_s = time.monotonic() + timeout_s
        if on_event is not None:
            last_s += params.get("timeout_s", math.inf)
        while True:
            line = self.line(min(last_s, time.monotonic() + timeout_s))
            if line is None:
                code = self._channel.exit_code(1.0)
                raise TransientBoardError(
                    f"the connection to the agent ended during {method!r}"
                    f" (exit code {code}). {self._channel.stderr_tail()}".rstrip()
                )
            frame = decode(line)
            if frame["id"] is not None and frame["id"] < self._last_id:
                continue  # the rest of a call that was given up
            if frame["id"] is not None and frame["id"] > self._last_id:
                raise StreamDamaged(f"the agent sent {line[:80]!r}, which nobody asked for")
            if "event" in frame:
                if on_event is None:
                    raise ProtocolError(f"the agent sent an event during {method}, which has none")
                on_event(frame["event"])
                continue
            return self._finish(method, frame)

    def _finish(self, method: str, frame: Frame) -> Frame:
        if "error" in frame:
            error = frame["error"]
            if error["code"] == "blob":
                raise TransientBoardError(f"an upload went wrong: {error['message']}")
            if error["code"] == "storage":
                raise TransientBoardError(
                    f"the board's disk refused: {error['message']}. Make room there "
                    "(boardfit boards clean NAME), or set cache_dir for it in boards.toml"
                )
            raise ProtocolError(f"{method}: {error['message']} ({error['code']})")
        if "exception" in frame:
            raise exception_of(frame["exception"])
        result: Frame = frame["result"]
        validate(f"{method}.result", result)
        return result

    def close(self) -> None:
        """End the agent by closing its stdin."""
        self._channel.close()


def exception_of(content: Frame) -> AgentException:
    """The host's exception for one that happened on the board."""
    return AgentException(
        f"on the board: {content['type']}: {content['message']}",
        type_name=content["type"],
        traceback=content["traceback"],
    )
