"""Which boards there are: ``boards.toml`` in the working folder, then in the user's folder."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path

import pydantic

from harness.errors import ConfigError
from harness.records import BoardSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["config_dir", "find", "load"]

FILE_NAME = "boards.toml"
_KEYS = tuple(field.name for field in fields(BoardSpec) if field.name != "name")


def config_dir() -> Path:
    """boardfit's folder among the user's settings; ``BOARDFIT_CONFIG_DIR`` names another."""
    named = os.environ.get("BOARDFIT_CONFIG_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "boardfit"


def _read(path: Path) -> dict[str, BoardSpec]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # bad TOML, and what is no UTF-8
        raise ConfigError(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(tables) - {"boards"})
    boards = tables.get("boards", {})
    if unknown or not isinstance(boards, dict):
        raise ConfigError(f"{path}: only tables [boards.NAME] are known, not {', '.join(unknown)}")
    return {name: _spec(path, name, table) for name, table in boards.items()}


def _spec(path: Path, name: str, table: object) -> BoardSpec:
    where = f"{path}: [boards.{name}]"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise ConfigError(
            f"{where} has unknown key {', '.join(unknown)}; known are {', '.join(_KEYS)}"
        )
    values = {"python": sys.executable, **table} if name == "local" else table
    if name != "local" and not table.get("host"):
        raise ConfigError(f'{where} needs host = "...", a name that ~/.ssh/config knows')
    if name == "local" and "host" in table:
        raise ConfigError(f"{where} is this computer and has no host; give the board another name")
    try:
        return pydantic.TypeAdapter(BoardSpec).validate_python({"name": name, **values})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise ConfigError(f"{where} {first['msg'].removeprefix('Value error, ')}") from error
        raise ConfigError(
            f"{where} {first['loc'][0]}: {first['msg']}, got {first['input']!r}"
        ) from error


def load() -> tuple[BoardSpec, ...]:
    """Every known board, ``local`` first; a board of the working folder hides its namesake."""
    known = {"local": BoardSpec(name="local", python=sys.executable)}
    for path in (config_dir() / FILE_NAME, Path(FILE_NAME)):
        if path.is_file():
            known.update(_read(path))
    return tuple(known.values())


def find(name: str) -> BoardSpec:
    """The board of that name; ``ConfigError`` lists the known ones if there is none."""
    boards = {spec.name: spec for spec in load()}
    if name not in boards:
        raise ConfigError(
            f"no board is named {name!r}; known are {', '.join(boards)}. "
            f"Add [boards.{name}] to {FILE_NAME} here or in {config_dir()}"
        )
    return boards[name]
