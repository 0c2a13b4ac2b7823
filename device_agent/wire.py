"""Frames as the agent reads them: bounded, and checked against ``wire_v1.json``."""

import functools
import hashlib
import json
import math
import os
import re
import select

HERE = os.path.dirname(os.path.abspath(__file__))
# Anything longer is no count of bytes; Python 3.6 would need minutes for a number of a megabyte.
MAX_DIGITS = 40
# An agent that nobody asks anything for so long was left behind by a link that went silent.
IDLE_S = 3600.0
JSON_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


class Misuse(Exception):
    """A request that the wire does not allow; ``code`` is one of the schema's."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


@functools.lru_cache(maxsize=None)
def agent_hash():
    """SHA-256 over names, sizes and contents of the agent's files; the host computes the same."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(HERE)):
        if name.endswith((".py", ".json")):
            with open(os.path.join(HERE, name), "rb") as stream:
                content = stream.read()
            digest.update(b"%s\0%d\0" % (name.encode(), len(content)) + content)
    return digest.hexdigest()


def load_schema():
    """The schema that host and agent share."""
    with open(os.path.join(HERE, "wire_v1.json")) as stream:
        return json.load(stream)


def refuse_constant(text):
    """Nothing: NaN and the infinities are no JSON."""
    raise ValueError("%s is no JSON" % text)


def _integer(text):
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has %d digits" % len(text))
    return int(text)


def _float(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError("%s is too large a number" % text[:MAX_DIGITS])
    return value


def parse(data):
    """The JSON in ``data``; ``ValueError`` or ``RecursionError`` if it is none."""
    return json.loads(
        data.decode(), parse_constant=refuse_constant, parse_int=_integer, parse_float=_float
    )


def encode(frame):
    """The line of a frame.

    Names of files reach Python with the bytes that its locale cannot read as halves of characters:
    they become those bytes again, which the host reads as UTF-8.
    """
    text = json.dumps(frame, allow_nan=False, ensure_ascii=False)
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "replace")
    return data.decode("utf-8", "replace").encode() + b"\n"


def shown(value):
    """The beginning of ``repr(value)``, for messages."""
    try:
        return repr(value)[:80]
    except RecursionError:
        return "something nested too deeply"


class Lines:
    """Frames from a file descriptor; reading and looking ahead share one buffer."""

    def __init__(self, descriptor, limit_bytes):
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._ended = False

    def pending(self, timeout_s, other=None):
        """Whether there is something to read (or the end) within ``timeout_s``.

        Looking ends early where the descriptor ``other`` becomes readable.
        """
        if self._ended or b"\n" in self._buffer:
            return True
        others = [] if other is None else [other]
        return self._descriptor in select.select([self._descriptor] + others, [], [], timeout_s)[0]

    def next(self):
        """The next line; None at the end, or if none comes for long.

        An oversize one is skipped and is a ``Misuse``.
        """
        skipped, searched = False, 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                if skipped or len(line) > self._limit_bytes:
                    raise Misuse("oversize", "a frame is at most %d bytes" % self._limit_bytes)
                return line
            if self._ended:
                return None
            if len(self._buffer) > self._limit_bytes:
                self._buffer.clear()
                skipped = True
            searched = len(self._buffer)
            if not self.pending(IDLE_S):
                return None
            data = os.read(self._descriptor, 1 << 16)
            self._ended = not data
            self._buffer += data


def check(value, schema, where, definitions):
    """Refuse with ``Misuse`` what the schema does not allow; the host has checked it in full."""
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    _check_type(value, schema.get("type", []), where)
    if "enum" in schema and value not in schema["enum"]:
        raise Misuse("bad_params", "%s: %s is none of %s" % (where, shown(value), schema["enum"]))
    # A schema's $ is the end; Python's is also before a last newline.
    pattern = schema.get("pattern", "").replace("$", r"\Z")
    if isinstance(value, str) and not re.search(pattern, value):
        raise Misuse("bad_params", "%s: %s does not fit" % (where, shown(value)))
    if isinstance(value, (int, float)):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            raise Misuse("bad_params", "%s: %s is out of bounds" % (where, shown(value)))
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            raise Misuse("bad_params", "%s: it is empty" % where)
        for one in value:
            check(one, schema.get("items", {}), where, definitions)
    if isinstance(value, dict) and "properties" in schema:
        _check_names(value, schema, where)
        for name in value:
            inner = "%s.%s" % (where, name)
            check(value[name], schema["properties"].get(name, {}), inner, definitions)


def _check_type(value, kinds, where):
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not kinds or (value is None and "null" in kinds):
        return
    allowed = tuple(JSON_TYPES[kind] for kind in kinds if kind != "null")
    # True is an integer to Python, and none to JSON.
    if not isinstance(value, allowed) or (isinstance(value, bool) and "boolean" not in kinds):
        raise Misuse("bad_params", "%s: %s is wanted" % (where, " or ".join(kinds)))


def _check_names(value, schema, where):
    missing = set(schema.get("required", ())) - set(value)
    unknown = set(value) - set(schema["properties"])
    if missing or (unknown and not schema.get("additionalProperties", True)):
        word = "missing" if missing else "unknown"
        names = ", ".join(sorted(missing or unknown))
        raise Misuse("bad_params", "%s: %s: %s" % (where, word, names[:200]))
