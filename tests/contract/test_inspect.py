"""Every section that the doctor asks for, from the real agent, against the schema."""

from __future__ import annotations

import pytest

from harness.boards.wire import schema, validate
from tests.contract.agent import RawAgent

SECTIONS = schema()["$defs"]["section"]["enum"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_facts_that_the_schema_wants(agent: RawAgent, section: str) -> None:
    found = agent.result("inspect", section=section)
    assert found["section"] == section
    validate(f"inspect.{section}", found["facts"])


def test_a_section_that_there_is_not_is_refused(agent: RawAgent) -> None:
    agent.send(b'{"id": 1, "method": "inspect", "params": {"section": "secrets"}}\n')
    assert agent.reply()["error"]["code"] == "bad_params"
    agent.result("inspect", section="clock")
