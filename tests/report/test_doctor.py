from __future__ import annotations

import json

import pytest
from rich.console import Console

from harness.records import Check, Diagnosis
from harness.report import doctor

OK = Check(name="python", status="ok", found="3.6.9 in /usr/bin/python3", facts={"bits": 64})
WARN = Check(name="swap", status="warn", found="none", remedy="add [4 GB] on disk")
FAIL = Check(name="login", status="fail", found="refused", remedy="ssh-copy-id nano")
NO_GPU = Check(name="gpu", status="skip", found="no NVIDIA GPU was found")


def _skipped(name: str) -> Check:
    return Check(name=name, status="skip", found="not looked at: login failed")


def _text(*checks: Check, reached: bool = True) -> str:
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        diagnosis = Diagnosis(board="nano", checks=checks, reached=reached)
        console.print(doctor.diagnosis_table(diagnosis))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_a_board_that_is_well_is_ready() -> None:
    text = _text(OK, NO_GPU)
    assert "ok   python   3.6.9 in /usr/bin/python3" in text
    assert "no NVIDIA GPU was found" in text
    assert text.endswith("nano is ready: 1 check passed.")


def test_a_warning_has_its_remedy_beneath_and_brackets_stay() -> None:
    text = _text(OK, OK, WARN)
    assert "→ add [4 GB] on disk" in text
    assert text.endswith("nano is ready: 2 checks passed. Worth a look: swap.")


def test_checks_that_were_skipped_for_one_reason_share_a_row() -> None:
    text = _text(FAIL, _skipped("python"), _skipped("disk"), reached=False)
    assert "not looked at: login failed: python and disk" in text
    assert text.endswith("nano cannot be reached: fix login, then run the doctor again.")


def test_of_many_skipped_checks_the_first_are_named() -> None:
    names = ("a", "b", "c", "d", "e", "f", "g", "h")
    text = _text(FAIL, *(_skipped(name) for name in names), reached=False)
    assert "not looked at: login failed: a, b, c, d, e and 3 more" in text
    text = _text(FAIL, *(_skipped(name) for name in names[:6]), reached=False)
    assert "not looked at: login failed: a, b, c, d, e and f" in text


def test_a_failure_after_the_login_makes_the_board_unusable() -> None:
    assert "nano cannot be used yet: fix login" in _text(FAIL)


def test_json_holds_verdict_facts_and_every_check() -> None:
    diagnosis = Diagnosis(board="nano", checks=(OK, FAIL, _skipped("disk")), reached=False)
    found = json.loads(json.dumps(doctor.diagnosis_json(diagnosis)))
    assert (found["board"], found["verdict"]) == ("nano", "unreachable")
    assert found["checks"][0] == {
        "name": "python",
        "status": "ok",
        "found": "3.6.9 in /usr/bin/python3",
        "remedy": None,
        "facts": {"bits": 64},
    }
    assert [check["name"] for check in found["checks"]] == ["python", "login", "disk"]


def test_a_warning_without_a_remedy_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a remedy"):
        Check(name="swap", status="warn", found="none")


def test_progress_shows_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with doctor.progress("nano") as on_check:
        on_check("python")
    assert capsys.readouterr() == ("", "")
