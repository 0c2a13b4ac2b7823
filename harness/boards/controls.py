"""A board's settings: what ``boards.toml`` asks for, held while a session measures.

The agent sets, verifies and puts back (``device_agent/controls.py``); here it is decided what to
ask for, when, and what an answer means for a measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from harness.boards.wire import Frame
from harness.errors import AgentException, ConditionError, TransientBoardError
from harness.records import BoardSettings, BoardSpec

__all__ = ["Hold", "settings_of", "wanted"]

# nvpmodel and jetson_clocks take seconds each on a Nano, and are given a minute each there.
APPLY_TIMEOUT_S = 240.0
# As long as a job waits for the board's lease.
HELD_TIMEOUT_S = 600.0
HELD_POLL_S = 2.0
HELD_TEXT = "others, who rely on other settings of the board"


class _Call(Protocol):
    def __call__(self, method: str, params: Frame, timeout_s: float) -> Frame: ...


def wanted(spec: BoardSpec) -> Frame | None:
    """What the board's entry asks for, as the wire's ``wanted``; None where it asks for nothing."""
    asked = {
        "power_mode": spec.power_mode,
        "lock_clocks": spec.lock_clocks,
        "governor": spec.governor,
        "fan": spec.fan,
    }
    nothing = all(value is None or value is False for value in asked.values())
    return None if nothing or spec.conditions == "off" else asked


def settings_of(content: Frame | None) -> BoardSettings | None:
    """The record of what the agent says was in force."""
    return None if content is None else BoardSettings(**content)


def _sentence(problem: Frame) -> str:
    text = f"{problem['wanted']} was asked for, {problem['found']} found"
    more = "; ".join(part for part in (problem["reason"], problem["remedy"]) if part)
    return f"{text}: {more}" if more else text


class Hold:
    """The settings that one session asks for and keeps.

    ``call`` asks the agent, over a connection that is opened again where it breaks; ``tell`` takes
    events for whoever watches.
    """

    def __init__(self, spec: BoardSpec, call: _Call, tell: Callable[[Frame], None]) -> None:
        self._spec = spec
        self._wanted = wanted(spec)
        self._call = call
        self._tell = tell
        # What could not be set, by control; None before the first try.
        self._known: dict[str, str] | None = None

    @property
    def active(self) -> bool:
        """Whether something was asked for that is to be put back."""
        return self._known is not None

    def ensure(self) -> tuple[str, ...]:
        """What does not hold of what was asked for, after trying to make it: a sentence each.

        To be called before each run: where something has changed since, it is set again. Raises
        ``ConditionError`` where the board's entry requires what does not hold, and
        ``TransientBoardError`` where others kept the board in another state for ten minutes.
        """
        if self._wanted is None:
            return ()
        problems = self._apply(change=self._known is None)
        if self._known is not None and not problems.keys() <= self._known.keys():
            problems = self._apply(change=True)
        # Why a control could not be set is known from when it was tried.
        before = self._known or {}
        self._known = {name: before.get(name, text) for name, text in problems.items()}
        for name, text in self._known.items():
            if name not in before:
                self._tell({"kind": "conditions", "reason": f"board {self._spec.name}: {text}"})
        sentences = tuple(self._known.values())
        self._judge(sentences)
        return sentences

    def check(self, found: BoardSettings | None) -> tuple[str, ...]:
        """What was not in force during a run although it was there before: a sentence each."""
        if self._wanted is None or found is None:
            return ()
        known = self._known or {}
        lost = []
        if "power_mode" not in known and not self._same_mode(found.power_mode):
            lost.append(
                f"the run was in power mode {found.power_mode}, not {self._spec.power_mode}"
            )
        if self._spec.lock_clocks and "clocks" not in known and found.clocks_locked is not True:
            lost.append("the clocks were not locked during the run")
        sentences = tuple(
            f"{text}: somebody changed it between; measure again while nobody else uses the board"
            for text in lost
        )
        self._judge(sentences)
        return sentences

    def _same_mode(self, name: str | None) -> bool:
        asked = self._spec.power_mode
        # A number was verified by the agent, which knows its name.
        return asked is None or asked.isdigit() or (name or "").lower() == asked.lower()

    def _judge(self, sentences: tuple[str, ...]) -> None:
        if sentences and self._spec.conditions == "require":
            raise ConditionError(
                f"board {self._spec.name} is not in the state that boards.toml requires: "
                + "; and ".join(sentences)
                + '. Or set conditions = "set" for it to measure all the same, with a warning'
            )

    def _apply(self, *, change: bool) -> dict[str, str]:
        """A sentence for each control that does not hold."""
        deadline_s = time.monotonic() + HELD_TIMEOUT_S
        params = {"wanted": self._wanted, "change": change}
        while True:
            try:
                found = self._call("controls_apply", params, APPLY_TIMEOUT_S)
                return {one["control"]: _sentence(one) for one in found["problems"]}
            except AgentException as error:
                if error.type_name != "ConditionsHeld":
                    raise
                if time.monotonic() >= deadline_s:
                    raise TransientBoardError(
                        f"board {self._spec.name}: {error}. Try again when they have finished"
                    ) from error
                self._tell({"kind": "waiting", "job": "settings", "what": HELD_TEXT})
            time.sleep(HELD_POLL_S)

    def release(self, call: _Call) -> None:
        """Have everything put back, if anything was asked for; what could not be is told.

        Over the connection that there is: where it is broken, the board does it by itself.
        """
        if not self.active:
            return
        found = call("controls_restore", {}, APPLY_TIMEOUT_S)
        self._known = None
        for text in found["problems"]:
            self._tell(
                {
                    "kind": "conditions",
                    "reason": f"board {self._spec.name} could not be put back: {text}; "
                    "the next session tries again, and so can you",
                }
            )
