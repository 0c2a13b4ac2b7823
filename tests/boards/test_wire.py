from __future__ import annotations

import json
import time
from collections.abc import Sequence

import jsonschema
import pytest

from harness.boards import wire
from harness.errors import AgentException, ProtocolError, StreamDamaged, TransientBoardError


class Recording:
    """A channel that says what it was told to say; an empty list is silence."""

    def __init__(self, replies: Sequence[bytes], *, ends: bool = False) -> None:
        self.replies = list(replies)
        self.ends = ends
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def read(self, timeout_s: float) -> bytes:
        if self.replies:
            return self.replies.pop(0)
        if self.ends:
            return b""
        time.sleep(timeout_s)
        raise TimeoutError

    def exit_code(self, timeout_s: float) -> int | None:
        del timeout_s
        return 3

    def stderr_tail(self) -> str:
        return "last words"

    def close(self) -> None:
        pass


def _call(*replies: bytes, ends: bool = False, timeout_s: float = 0.1) -> wire.Frame:
    connection = wire.Connection(Recording(replies, ends=ends))
    return connection.call("blob_has", {"sha256": "0" * 64}, timeout_s=timeout_s)


def test_schema_is_a_schema_and_has_params_and_result_for_every_method() -> None:
    jsonschema.Draft202012Validator.check_schema(wire.schema())
    definitions = wire.schema()["$defs"]
    for method in definitions["request"]["properties"]["method"]["enum"]:
        assert {f"{method}.params", f"{method}.result"} <= set(definitions)
    for kind in definitions["submit.params"]["properties"]["kind"]["enum"]:
        assert {f"{kind}.params", f"{kind}.result"} <= set(definitions)


def test_constants_of_the_wire_are_frozen() -> None:
    # Change them and agents in the field no longer understand this host: make a wire_v2.json.
    assert wire.AGENT_MARK == b"boardfit-agent "
    assert wire.schema()["x-protocol"] == 1
    assert wire.schema()["x-max-frame-bytes"] == 1 << 24


def test_a_call_sends_one_line_and_takes_the_reply_that_comes_in_pieces() -> None:
    channel = Recording([b'{"id": 1, "res', b'ult": {"present": true}}', b"\n"])
    found = wire.Connection(channel).call("blob_has", {"sha256": "0" * 64}, timeout_s=1.0)
    assert found == {"present": True}
    assert json.loads(channel.sent) == {
        "id": 1,
        "method": "blob_has",
        "params": {"sha256": "0" * 64},
    }
    assert channel.sent.endswith(b"}\n")


def test_silence_ends_at_the_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(TransientBoardError, match="did not answer in time"):
        _call(timeout_s=0.2)
    assert 0.15 < time.monotonic() - start < 2.0


def test_the_end_of_the_stream_is_told_with_code_and_last_words() -> None:
    with pytest.raises(TransientBoardError, match=r"'blob_has' \(exit code 3\)\. last words"):
        _call(ends=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"Segmentation fault", "which is no frame"),
        (b'{"id": 1, "result": {"present": NaN}}', "NaN is no JSON"),
        (b'{"id": 1}', "reply at"),
        (b'{"id": 1, "result": {}, "event": {"kind": "heartbeat"}}', "reply at"),
        (b'{"id": 1, "event": {"kind": "gossip"}}', "gossip"),
        (b'{"id": 1, "result": {"present": 1}}', r"blob_has\.result at \$\.present"),
        (b'{"id": 1, "error": {"code": "bad_params", "message": "no"}}', r"no \(bad_params\)"),
    ],
)
def test_what_is_no_valid_reply_is_a_protocol_error(line: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        _call(line + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"[TensorRT] WARNING: deprecated",
        b'garbage{"id": 1, "result": {"present": true}}',
        b'{"id": 2, "result": {"present": true}}',
        b"[" * 100_000,
        b"x" * (1 << 24) + b"x",
    ],
    ids=["print", "glued", "unasked", "nested", "oversized"],
)
def test_damage_in_the_stream_is_worth_a_new_connection(line: bytes) -> None:
    with pytest.raises(TransientBoardError, match="the agent sent") as caught:
        _call(line + b"\n")
    assert isinstance(caught.value, StreamDamaged)
    assert caught.value.exit_code == 3


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wire.schema(), "x-max-frame-bytes", 1000)
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        _call(*[b"x" * 600] * 3)
    with pytest.raises(ProtocolError, match="at most 1000"):
        wire.encode({"text": "x" * 1000})


def test_params_that_do_not_fit_are_not_sent() -> None:
    channel = Recording([])
    with pytest.raises(ProtocolError, match=r"blob_has\.params"):
        wire.Connection(channel).call("blob_has", {"sha256": "short"}, timeout_s=1.0)
    assert channel.sent == b""
    with pytest.raises(ProtocolError, match="cannot be written"):
        wire.encode({"x": float("nan")})


def test_an_exception_keeps_the_boards_type_and_traceback() -> None:
    content = {"type": "BlobError", "message": "disk full", "traceback": "Traceback ..."}
    line = json.dumps({"id": 1, "exception": content}).encode() + b"\n"
    with pytest.raises(AgentException, match="BlobError: disk full") as caught:
        _call(line)
    assert (caught.value.type_name, caught.value.traceback) == ("BlobError", "Traceback ...")


def test_a_million_samples_are_checked_at_once_and_a_wrong_one_is_found() -> None:
    items = {"type": "array", "items": {"type": "number"}}
    validator = wire._Validator(items)
    start = time.monotonic()
    assert validator.is_valid([0.5] * 1_000_000)
    assert time.monotonic() - start < 2.0  # number by number it takes ten
    for wrong in ("0.5", True, None):
        assert not validator.is_valid([0.5, wrong])
    assert not wire._Validator({"type": "array", "items": {"type": "integer"}}).is_valid([0.5])


def test_noise_before_the_first_line_is_skipped_but_not_without_end() -> None:
    noise = [b"Welcome!\nno newline here", b"\nboardfit-agent {}\n"]
    found = wire.Connection(Recording(noise)).marked_line((wire.AGENT_MARK,), 1.0)
    assert found == b"boardfit-agent {}"
    with pytest.raises(ProtocolError, match="login script"):
        wire.Connection(Recording([b"yes\n" * 30_000])).marked_line((wire.AGENT_MARK,), 1.0)
