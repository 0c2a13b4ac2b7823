"""Any bytes on the wire, at both of its ends: only errors that it knows, and always a reply."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_agent import wire as agent_end
from harness.boards import deploy, wire
from harness.errors import ProtocolError, TransientBoardError
from tests.contract.agent import RawAgent
from tests.contract.conftest import StartAgent, agent, start_agent  # noqa: F401
from tests.fuzz import properties
from tests.fuzz.properties import JOB_ID, REQUESTS, Pieces
from tests.fuzz.support import deep, fuzzed, line, lines, mutated, requests, values

RESULTS = {
    "blob_has": {"present": True},
    "status": {"job_id": JOB_ID, "state": "running", "events": 3},
    "wait": {"job_id": JOB_ID, "state": "done"},
    "result": {
        "state": "died",
        "signal": 9,
        "exit_code": None,
        "stderr_tail": "",
        "rebooted": False,
    },
    "lease": {
        "holder": {"owner": "a", "kind": "measure", "job_id": "b", "held_s": 1.0, "left_s": None}
    },
}
EVENT = {"id": 1, "event": {"kind": "progress", "seq": 1, "what": "w", "done": 1, "total": 2}}
HELLO = {"protocol": 1, "agent_hash": "0" * 64, "cache_dir": "/c", "pid": 7}


# --- the host's end -----------------------------------------------------------------------------


@fuzzed(150)
@given(
    st.one_of(
        st.binary(max_size=80), values().map(line), mutated({"id": 1, "result": {}}).map(line)
    )
)
@example(deep())
@example(deep(900))
@example(b'{"id": 1, "result": {"x": %s}}' % deep(900))
@example(b'{"id": 1, "result": {"x": 1e999}}')
@example(b'{"id": 1, "result": {"x": "\\ud800"}}')
@example(b'{"id": 1, "result": {"x": %s}}' % (b"9" * 5000))
def test_host_takes_a_line_for_a_reply_or_says_that_it_is_none(data: bytes) -> None:
    properties.host_decodes(data)


@fuzzed(80)
@given(
    st.sampled_from(sorted(RESULTS)).flatmap(
        lambda method: st.tuples(
            st.just(method),
            mutated([EVENT, {"id": 1, "result": RESULTS[method]}], most=4).map(
                lambda frames: b"\n".join(map(line, frames)) + b"\n"
            ),
        )
    ),
    st.integers(1, 99),
)
def test_host_makes_a_result_or_a_known_error_of_any_stream(
    call: tuple[str, bytes], size: int
) -> None:
    method, stream = call
    properties.host_calls(stream, method=method, size=size)


@fuzzed(60)
@given(st.binary(max_size=60), mutated(HELLO).map(line), st.integers(1, 99))
def test_host_finds_the_first_line_behind_any_noise(noise: bytes, hello: bytes, size: int) -> None:
    properties.host_starts(noise + b"\n" + wire.AGENT_MARK + hello + b"\n", size=size)


def test_a_process_number_with_a_point_or_a_hash_with_a_newline_is_misuse() -> None:
    # Python takes 7.0 for an integer where JSON Schema does, and $ also stands before a newline.
    for change in ({"pid": 7.0}, {"agent_hash": "0" * 64 + "\n"}, {"protocol": [[]]}):
        with pytest.raises(ProtocolError):
            deploy._hello(wire.AGENT_MARK + line({**HELLO, **change}))


def test_events_without_end_end_at_the_deadline() -> None:
    class Chatter(Pieces):
        def read(self, timeout_s: float) -> bytes:
            if timeout_s <= 0.0:
                raise TimeoutError
            return line({"id": 1, "event": {"kind": "heartbeat"}}) + b"\n"

    wait = {**REQUESTS["wait"], "timeout_s": 0.1}
    with pytest.raises(TransientBoardError, match="did not answer in time"):
        wire.Connection(Chatter(b"")).call("wait", wait, timeout_s=0.1, on_event=lambda _: None)
    with pytest.raises(ProtocolError, match="an event during conditions"):
        wire.Connection(Chatter(b"")).call("conditions", {}, timeout_s=5.0)


def test_replies_to_older_calls_without_end_end_at_the_deadline() -> None:
    class Late(Pieces):
        def read(self, timeout_s: float) -> bytes:
            if timeout_s <= 0.0:
                raise TimeoutError
            return b'{"id": 0, "result": {}}\n'

    with pytest.raises(TransientBoardError, match="did not answer in time"):
        wire.Connection(Late(b"")).call("conditions", {}, timeout_s=0.1)


# --- the agent's end ----------------------------------------------------------------------------


@fuzzed(60)
@given(st.lists(lines(), min_size=1, max_size=5))
@example([deep()])
@example([b'{"id": 1, "method": %s, "params": {}}' % deep(900)])
@example([b'{"id": 1, "method": "probe", "params": {"runtime": %s}}' % deep(900)])
@example([b'{"id": 1, "method": "clean", "params": {"keep_s": 1e999, "unfetched": true}}'])
@example([b'{"id": %s, "method": "lease", "params": {}}' % (b"9" * 5000)])
def test_agent_answers_every_line_and_touches_only_its_cache(asked: list[bytes]) -> None:
    properties.agent_wire(b"\n".join(asked) + b"\n")


@fuzzed(100)
@given(st.binary(max_size=200), st.integers(0, 60))
def test_agent_reads_any_bytes_as_lines_that_are_bounded(data: bytes, limit: int) -> None:
    expected = data.split(b"\n")[:-1]
    with properties._descriptor(data) as descriptor:
        reader = agent_end.Lines(descriptor, limit)
        found: list[bytes | None] = []
        while True:
            try:
                one = reader.next()
            except agent_end.Misuse as misuse:
                assert misuse.code == "oversize"
                found.append(None)
                continue
            if one is None:
                break
            found.append(one)
    assert found == [one if len(one) <= limit else None for one in expected]


@fuzzed(100)
@given(values(), st.sampled_from(sorted(wire.schema()["$defs"])))
def test_agent_and_host_agree_on_what_the_schema_allows(value: object, name: str) -> None:
    # The agent's checker knows the keywords that requests use; results are for the host alone.
    if not name.endswith(".params") and name not in ("sha256", "job_id", "owner", "pids"):
        return
    definitions = wire.schema()["$defs"]
    parts = [value, {key: value for key in definitions[name].get("properties", ())}]
    for part in parts:
        try:
            agent_end.check(part, definitions[name], name, definitions)
            agreed = True
        except agent_end.Misuse:
            agreed = False
        try:
            wire.validate(name, part)
            assert agreed, (name, part)
        except ProtocolError:
            assert not agreed, (name, part)


def _harmless(data: bytes) -> bool:
    """Whether a real agent may be asked: it would end others' agents, and wait for long."""
    try:
        frame = json.loads(data)
    except (ValueError, RecursionError):
        return True
    method = frame.get("method") if isinstance(frame, dict) else None
    return method not in ("retire", "wait", "submit")


def _exchange(running: RawAgent, data: bytes) -> None:
    running.send(data + b"\n")
    if data.strip():
        while "event" in running.reply():
            pass


@pytest.mark.timeout(120)
def test_a_real_agent_lives_through_hostile_lines(
    start_agent: StartAgent,  # noqa: F811
    tmp_path: Path,
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    running = start_agent()

    @fuzzed(60)
    @given(lines().filter(_harmless))
    @example(deep())
    @example(b'{"id": %s, "method": "lease", "params": {}}' % (b"9" * 1_000_000))
    def ask(data: bytes) -> None:
        _exchange(running, data)

    ask()
    running.result("conditions")
    assert canary.read_text() == "alive"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"canary", "cache", "cache.stderr"}, left
    assert running.close() == 0


def test_a_number_of_a_million_digits_is_refused_before_it_is_added_up(
    agent: RawAgent,  # noqa: F811
) -> None:
    # Python 3.6 has no limit of its own; a number of 16 MB would keep a board busy for hours.
    start_s = time.monotonic()
    agent.send(b'{"id": %s, "method": "lease", "params": {}}\n' % (b"9" * 4_000_000))
    assert agent.reply()["error"]["code"] == "not_json"
    assert time.monotonic() - start_s < 10.0


@pytest.mark.timeout(120)
def test_a_real_agent_starts_no_job_from_a_hostile_request_and_ends_what_it_started(
    start_agent: StartAgent,  # noqa: F811
) -> None:
    running = start_agent()
    submit = {"id": 1, "method": "submit", "params": REQUESTS["submit"]}

    @fuzzed(15)
    @given(mutated(submit["params"], most=2))
    def ask(params: object) -> None:
        _exchange(running, line({**submit, "params": params}))

    ask()
    for folder in sorted((running.cache / "jobs").glob("*")):
        state = running.result("wait", job_id=folder.name, after=0, timeout_s=30.0)["state"]
        assert state == "failed", state  # its blob was never sent
        assert running.result("result", job_id=folder.name)["state"] == state
    running.result("conditions")


def test_requests_that_are_drawn_are_often_valid() -> None:
    """A fuzzer whose requests are all refused at the door would test the door alone."""
    accepted = 0

    @fuzzed(100)
    @given(requests())
    def count(data: bytes) -> None:
        nonlocal accepted
        frame = json.loads(data)
        try:
            wire.validate("request", frame)
            wire.validate(f"{frame['method']}.params", frame["params"])
        except (ProtocolError, KeyError, TypeError):
            return
        accepted += 1

    count()
    assert accepted >= 8, accepted
