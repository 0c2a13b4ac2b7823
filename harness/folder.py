"""The result folder of a fit: finished stages are kept, so that a rerun resumes behind them."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.errors import ConfigError
from harness.records import Stage, dump, load

__all__ = ["Folder", "Observer", "write_atomically"]

Value = TypeVar("Value")

# What folders from before have among their settings, and what a run may change now.
NO_LONGER_ASKED = {"max_rounds"}


class Observer(Protocol):
    """What a long job tells whoever watches it."""

    def begin(self, stage: str, *, resumed: bool) -> None:
        """A stage begins, or is found finished in an earlier run."""

    def progress(self, done: int, total: int, *, left_s: float | None = None) -> None:
        """``done`` of ``total`` steps of the current stage; ``left_s`` more seconds, if known."""

    def end(self, stage: Stage) -> None:
        """The current stage is done."""

    def warn(self, text: str) -> None:
        """Something that the user should know; it names the next step."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either the old content or all of the new."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


class Folder:
    """A result folder; ``settings`` say what was asked, and must be equal for a run to resume.

    ConfigError if the folder holds a fit with other settings, or is no result folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], observer: Observer) -> None:
        self.path = path
        self.observer = observer
        self.stages: list[Stage] = []
        self._state = path / "state"
        text = json.dumps(settings, indent=2, sort_keys=True)
        known = path / "settings.json"
        if known.exists():
            self._require_same(known, text)
        elif path.exists() and any(path.iterdir()):
            raise ConfigError(
                f"{path} is not empty and holds no fit; name another folder with --out"
            )
        try:
            self.networks.mkdir(parents=True, exist_ok=True)
            self._state.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error}); name another --out") from error
        write_atomically(known, text)

    @property
    def networks(self) -> Path:
        """Where every network that was built lies."""
        return self.path / "networks"

    def _require_same(self, known: Path, text: str) -> None:
        try:
            old = json.loads(known.read_text())
            if not isinstance(old, dict):
                raise ValueError("it holds no settings")
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{known} is damaged ({error}); name another --out") from error
        new = json.loads(text)
        asked = (old.keys() | new.keys()) - NO_LONGER_ASKED
        changed = sorted(k for k in asked if old.get(k) != new.get(k))
        if changed:
            lines = ", ".join(f"{k}: {old.get(k)!r} is now {new.get(k)!r}" for k in changed)
            raise ConfigError(
                f"{self.path} holds a fit with other settings ({lines}); "
                "name another --out, or remove the folder to start over"
            )

    def stage(
        self,
        name: str,
        kind: type[Value],
        compute: Callable[[], Value],
        *,
        detail: Callable[[Value], str] = lambda _: "",
    ) -> Value:
        """The value of a stage: from the folder if it is finished there, else computed and kept.

        ``kind`` is a record class, or ``str``. A damaged stage is reported and computed anew.
        """
        path = self._state / f"{name.replace(' ', '-')}.json"
        loaded = self._load(path, kind)
        if loaded is not None:
            value, stage = loaded
            self.observer.begin(name, resumed=True)
        else:
            self.observer.begin(name, resumed=False)
            start = time.monotonic()
            value = compute()
            stage = Stage(name=name, wall_s=time.monotonic() - start)
            stage = replace(stage, detail=detail(value))
            record = {"stage": json.loads(dump(stage)), "value": json.loads(dump(value))}
            write_atomically(path, json.dumps(record))
        self.stages.append(stage)
        self.observer.end(stage)
        return value

    def _load(self, path: Path, kind: type[Value]) -> tuple[Value, Stage] | None:
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            value = load(kind, json.dumps(record["value"]))
            return value, load(Stage, json.dumps(record["stage"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.observer.warn(f"{path} is damaged ({error}); this stage runs again")
            return None
