"""The doctor's findings for the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from harness.records import Check, Diagnosis, dump
from harness.report import words
from harness.report.tables import add_row, new_table, show

__all__ = ["diagnosis_json", "diagnosis_table", "print_diagnosis", "progress"]

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
_NOT_LOOKED_AT = "not looked at"
_MOST_NAMES = 6


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """``{"board", "verdict", "checks": [{"name", "status", "found", "remedy", "facts"}]}``."""
    content: dict[str, Any] = json.loads(dump(diagnosis))
    return {"board": content["board"], "verdict": diagnosis.verdict, "checks": content["checks"]}


def _rows(checks: tuple[Check, ...]) -> Iterator[tuple[str, Check]]:
    """Checks by the name to show; those skipped for one reason share a row, and its first names."""
    for skipped, group in groupby(
        checks, key=lambda c: c.found if c.found.startswith(_NOT_LOOKED_AT) else None
    ):
        members = list(group)
        if skipped is None:
            yield from ((check.name, check) for check in members)
            continue
        names = [check.name for check in members]
        if len(names) > _MOST_NAMES:
            names[_MOST_NAMES - 1 :] = [f"{len(names) - _MOST_NAMES + 1} more"]
        yield words.and_list(names), members[0]


def _count(diagnosis: Diagnosis, status: str) -> int:
    return sum(check.status == status for check in diagnosis.checks)


def _summary(diagnosis: Diagnosis) -> Text:
    failed = [check.name for check in diagnosis.checks if check.status == "fail"]
    warned = [check.name for check in diagnosis.checks if check.status == "warn"]
    also = f" Worth a look: {words.and_list(warned)}." if warned else ""
    if diagnosis.verdict == "usable":
        passed = _count(diagnosis, "ok")
        plural = "" if passed == 1 else "s"
        return Text(
            f"{diagnosis.board} is ready: {passed} check{plural} passed.{also}",
            style="bold yellow" if warned else "bold green",
        )
    what = "cannot be reached" if diagnosis.verdict == "unreachable" else "cannot be used yet"
    text = f"{diagnosis.board} {what}: fix {words.and_list(failed)}, then run the doctor again."
    return Text(text, style="bold red")


def diagnosis_table(diagnosis: Diagnosis) -> RenderableType:
    """Every check with what was found, remedies beneath, and the verdict at the end."""
    table = new_table(f"Board {diagnosis.board}", "", "check", "found", left=3)
    for name, check in _rows(diagnosis.checks):
        mark, style = _MARKS.get(check.status, ("-", "dim"))
        found = Text(check.found, style="dim" if check.status == "skip" else "")
        if check.remedy is not None:
            found.append(f"\n→ {check.remedy}", style=style)
        if check.status == "skip" and check.found.startswith(_NOT_LOOKED_AT):
            found, name = Text(f"{check.found}: {name}", style="dim"), ""
        add_row(table, Text(mark, style=style), name, found)
    return Group(table, _summary(diagnosis))


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print ``diagnosis_table``."""
    show(diagnosis_table(diagnosis))


@contextmanager
def progress(board: str) -> Iterator[Callable[[str], None]]:
    """A function that shows on stderr which check is being made; nothing stays of it."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(Text(f"{board}: …")) as status:
        yield lambda name: status.update(Text(f"{board}: {name} …"))
