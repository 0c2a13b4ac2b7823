"""What all records share: JSON text of them and back."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import pydantic

Record = TypeVar("Record")


_ADAPTERS: dict[type[Any], pydantic.TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> pydantic.TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = pydantic.TypeAdapter(kind)
    return _ADAPTERS[kind]


def dump(record: Any, *, indent: int | None = None) -> str:
    """JSON text of a record; numbers that JSON cannot hold (NaN, infinity) become null."""
    text: bytes = _adapter(type(record)).dump_json(record, indent=indent)
    return text.decode()


def load(kind: type[Record], text: str | bytes) -> Record:
    """The record of class ``kind`` in JSON ``text``; ``pydantic.ValidationError`` if it is none."""
    record: Record = _adapter(kind).validate_json(text)
    return record


_LARGEST = sys.float_info.max


def require_positive(**values: float | None) -> None:
    """Nothing; ValueError naming the first value that is not positive and finite."""
    for name, value in values.items():
        # Not isfinite: it raises for an integer beyond the largest float.
        if value is not None and not (value > 0 and value <= _LARGEST):
            raise ValueError(f"{name} must be positive and finite, got {value}")
