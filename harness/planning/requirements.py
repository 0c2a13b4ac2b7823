"""Requirements from a TOML file and from flags, checked as a whole.

A file is flat, with one table, and says of each quantity what a flag of that name says::

    latency = "40ms"            # or "60%" of the original's, or fps = 25, or throughput = "25/s"
    percentile = 90             # of the latency; 50 where it is left out
    size = "3MB"                # the file that is shipped; engine_size is what lies on the board
    peak_memory = "2MB"
    parameters = "1M"
    macs = "50%"
    energy = "20mJ"             # of one call
    accuracy = "90%"            # at least
    max_drop = 1.0              # at most so many points below the original
    methods = ["prune", "quantize"]
    precisions = ["fp32", "int8"]
    keep = ["stem"]             # layers that are not touched
    input_size = [3, 224, 224]

    [objective]                 # what is better among strategies that meet everything
    accuracy = 0.7
    latency = 0.3
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic

from harness import units
from harness.errors import ConfigError
from harness.records import Requirement, Requirements
from harness.records.compression import PRECISIONS
from harness.records.planning import Method, Quantity

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["from_flags", "merged", "read"]

METHODS: tuple[Method, ...] = get_args(Method)
OBJECTIVES = ("accuracy", "latency", "size")
# Three ways to say how soon an answer must be there.
_SPEEDS = ("latency", "fps", "throughput")
_LIMITS: dict[str, tuple[Quantity, Literal["time", "size", "energy", "count"]]] = {
    "latency": ("latency", "time"),
    "size": ("size", "size"),
    "engine_size": ("engine_size", "size"),
    "peak_memory": ("peak_memory", "size"),
    "parameters": ("parameters", "count"),
    "macs": ("macs", "count"),
    "energy": ("energy", "energy"),
}

_Text = str | int | float


class _Asked(pydantic.BaseModel):
    """What a file or the flags say, by field; None is "not said"."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    latency: _Text | None = None
    percentile: int | float | None = None
    fps: _Text | None = None
    throughput: _Text | None = None
    size: _Text | None = None
    engine_size: _Text | None = None
    peak_memory: _Text | None = None
    parameters: _Text | None = None
    macs: _Text | None = None
    energy: _Text | None = None
    accuracy: _Text | None = None
    max_drop: int | float | None = None
    methods: list[str] | None = None
    precisions: list[str] | None = None
    objective: str | dict[str, int | float] | None = None
    keep: list[str] | None = None
    input_size: str | list[int] | None = None


def read(path: Path) -> Requirements:
    """The requirements of a TOML file; ConfigError names every field that is wrong."""
    return merged(path)


def from_flags(**flags: Any) -> Requirements:
    """The requirements that ``flags`` state, by the names of the file's fields; None is unsaid."""
    return merged(None, **flags)


def merged(path: Path | None, **flags: Any) -> Requirements:
    """The requirements of a file, where there is one, with what ``flags`` say in its place.

    A flag takes the place of every field that says the same: ``latency`` that of ``fps``.
    ConfigError names all fields that are wrong, or contradict each other, with the way out.
    """
    asked = {} if path is None else _from_file(path)
    said = {name: _plain(value) for name, value in flags.items() if value is not None}
    if any(name in said for name in _SPEEDS):
        asked = {name: value for name, value in asked.items() if name not in _SPEEDS}
    return _requirements({**asked, **said}, "the requirements" if path is None else str(path))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # bad TOML, and what is no UTF-8
        raise ConfigError(f"requirements {path} cannot be read: {error}") from error


class _Problems:
    """What is wrong, by field, gathered to be told at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        self.found.append(problem)

    def of(self, parse: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """What ``parse`` makes of what is given; None where it refuses it, which is noted."""
        try:
            return parse(*given, **named)
        except (ConfigError, ValueError) as error:
            self.add(str(error))
            return None

    def end(self, where: str) -> None:
        """ConfigError with all that was found, if anything was."""
        if self.found:
            listed = "".join(f"\n  {problem}" for problem in self.found)
            raise ConfigError(f"{where} cannot be used:{listed}")


def _requirements(said: Mapping[str, Any], where: str) -> Requirements:
    problems = _Problems()
    asked = _checked(said, problems)
    limits = _limits(asked, problems)
    methods = _methods(asked, problems)
    precisions = _precisions(asked, methods, problems)
    objective = _objective(asked.objective, problems)
    input_size = _input_size(asked.input_size, problems)
    keep = tuple(dict.fromkeys(asked.keep or ()))
    if any(not layer.strip() for layer in keep):
        problems.add("keep names a layer of no name; leave it out")
    problems.end(where)
    return Requirements(
        limits=limits,
        methods=methods,
        precisions=precisions,
        objective=objective,
        keep=keep,
        input_size=input_size,
    )


def _checked(said: Mapping[str, Any], problems: _Problems) -> _Asked:
    """What is said, as far as each field is there and of its type."""
    try:
        return _Asked.model_validate(dict(said))
    except pydantic.ValidationError as error:
        wrong = {str(one["loc"][0]) if one["loc"] else "": one for one in error.errors()}
    fields = _Asked.model_fields
    for name, one in wrong.items():
        if name not in fields:
            problems.add(f"{name} is no requirement; choose from {', '.join(fields)}")
        else:
            problems.add(f"{name} {said[name]!r}: {one['msg'].lower()}")
    return _Asked.model_validate({n: value for n, value in said.items() if n not in wrong})


def _limits(asked: _Asked, problems: _Problems) -> tuple[Requirement, ...]:
    found: list[Requirement] = []
    percentile = _percentile(asked, problems)

    def require(quantity: Quantity, limit: float, relative: bool, text: _Text) -> None:
        made = problems.of(
            Requirement,
            quantity=quantity,
            limit=limit,
            relative=relative,
            text=str(text),
            percentile=percentile if quantity == "latency" else 50.0,
        )
        found.extend([made] if made is not None else [])

    for name, (quantity, of) in _LIMITS.items():
        text = getattr(asked, name)
        if text is None:
            continue
        parsed = problems.of(units.parse_limit, str(text), name=name, of=of)
        if parsed is not None:
            require(quantity, parsed[0], parsed[1], text)
    for name in _SPEEDS[1:]:
        text = getattr(asked, name)
        rate = None if text is None else problems.of(_rate, name, text)
        if rate is not None:
            require("latency", 1.0 / rate, False, f"{text} fps" if _bare(text) else text)
    _one_speed(asked, problems)
    if asked.accuracy is not None:
        share = problems.of(units.parse_share, str(asked.accuracy), name="accuracy")
        if share is not None:
            require("accuracy_floor", share, False, asked.accuracy)
    if asked.max_drop is not None:
        drop = asked.max_drop
        if math.isfinite(drop) and 0 <= drop <= 100:
            require("accuracy_drop", float(drop), False, f"{drop:g} points")
        else:
            problems.add(f"max_drop {drop} must be between 0 and 100 points, for example 1")
    return tuple(found)


def _rate(name: str, text: _Text) -> float:
    rate = units.parse_rate(str(text), name=name)
    if not math.isfinite(1.0 / rate):
        raise ConfigError(f"{name} {text!r} is next to none; leave it out")
    return rate


def _bare(text: _Text) -> bool:
    return not isinstance(text, str) or text.replace(".", "", 1).strip().isdigit()


def _one_speed(asked: _Asked, problems: _Problems) -> None:
    given = [name for name in _SPEEDS if getattr(asked, name) is not None]
    if len(given) > 1:
        values = " and ".join(f"{name} {getattr(asked, name)!r}" for name in given)
        problems.add(f"{values} limit the same thing, the time of one call; give one of them")


def _percentile(asked: _Asked, problems: _Problems) -> float:
    value = asked.percentile
    if value is None:
        return 50.0
    if not 0 < value < 100:
        problems.add(f"percentile {value} must lie between 0 and 100, for example 90")
        return 50.0
    if all(getattr(asked, name) is None for name in _SPEEDS):
        problems.add(f"percentile {value} is that of a latency, and none is required; give latency")
    return float(value)


def _methods(asked: _Asked, problems: _Problems) -> tuple[Method, ...]:
    if asked.methods is None:
        return METHODS
    if not asked.methods:
        problems.add(f"methods [] leave nothing to do; choose from {', '.join(METHODS)}")
    _known("methods", asked.methods, METHODS, problems)
    return tuple(method for method in METHODS if method in asked.methods)


def _precisions(asked: _Asked, methods: Sequence[str], problems: _Problems) -> tuple[str, ...]:
    quantizes = "quantize" in methods
    if asked.precisions is None:
        return PRECISIONS if quantizes else PRECISIONS[:1]
    _known("precisions", asked.precisions, PRECISIONS, problems)
    fewer = [precision for precision in asked.precisions if precision in PRECISIONS[1:]]
    if fewer and not quantizes and methods:
        problems.add(
            f"precisions {asked.precisions} have {', '.join(fewer)}, and methods "
            f"{list(methods)} do not quantize; add quantize or leave {', '.join(fewer)} out"
        )
    if asked.methods is not None and quantizes and not fewer:
        problems.add(
            f"methods {asked.methods} quantize, and precisions {asked.precisions} have nothing to "
            "quantize to; add fp16 or int8, or leave quantize out"
        )
    return tuple(precision for precision in PRECISIONS if precision in asked.precisions)


def _known(name: str, given: Iterable[str], known: Sequence[str], problems: _Problems) -> None:
    unknown = [one for one in given if one not in known]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        problems.add(f"{name} has {listed}; choose from {', '.join(known)}")


def _objective(
    given: str | Mapping[str, int | float] | None, problems: _Problems
) -> dict[str, float]:
    """The weights, which sum to 1: of a word, of "accuracy=0.7,latency=0.3", or of a table."""
    if given is None:
        return {"accuracy": 1.0}
    weights: dict[str, Any] = {}
    if isinstance(given, str):
        for part in given.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            weights[name] = problems.of(_weight, name, value) if equals else 1.0
    else:
        weights = dict(given)
    _known("objective", weights, OBJECTIVES, problems)
    numbers = {name: value for name, value in weights.items() if value is not None}
    wrong = {n: v for n, v in numbers.items() if not (math.isfinite(v) and v >= 0)}
    for name, value in wrong.items():
        problems.add(f"objective weighs {name} by {value}; a weight is 0 or more")
    total = sum(value for name, value in numbers.items() if name not in wrong)
    if not wrong and not (total > 0 and math.isfinite(total)):
        problems.add(
            f"objective {given!r} has weights that sum to {total:g}; weigh one of "
            f"{', '.join(OBJECTIVES)} by more than 0"
        )
        return {}
    return {n: v / total for n, v in numbers.items() if n in OBJECTIVES and v > 0 and total}


def _weight(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"objective weighs {name} by {text!r}, which is no number") from None


def _input_size(given: str | Sequence[int] | None, problems: _Problems) -> tuple[int, ...] | None:
    if given is None:
        return None
    parts = given.replace("x", ",").split(",") if isinstance(given, str) else given
    try:
        sizes = tuple(int(part) for part in parts)
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        problems.add(
            f"input_size {given!r} is no shape of one input; write its sizes without the batch, "
            "for example 3,224,224"
        )
        return None
    return sizes
