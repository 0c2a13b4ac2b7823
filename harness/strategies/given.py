"""A strategy that was given: checked against the network, and read as a choice of options."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pydantic

from harness.errors import ConfigError
from harness.records import Group, Option, Strategy, dump, load

__all__ = ["check", "choice", "digest", "label", "read", "to_build"]

# A label names files and measurements.
_LABEL = re.compile(r"[\w][\w .,:%+=-]{0,99}")
_TAKEN = ("baseline", "student")


def read(path: Path) -> Strategy:
    """The strategy in a file; ConfigError says what is wrong with it."""
    try:
        found = load(Strategy, path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; name a strategy file that boardfit strategies or boardfit fit "
            "wrote"
        ) from error
    except (OSError, ValueError) as error:
        what = _first(error) if isinstance(error, pydantic.ValidationError) else str(error)
        raise ConfigError(f"{path} holds no strategy: {what}") from error
    if not _LABEL.fullmatch(found.label) or found.label in _TAKEN:
        raise ConfigError(
            f"{path}: the label {found.label!r} cannot name files; use letters, digits and spaces, "
            f"and not {' or '.join(_TAKEN)}"
        )
    return found


def _first(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the text'}: {first['msg']}"


def label(name: str) -> str:
    """A strategy's label for a name of any kind: one that can name files."""
    text = re.sub(r"[^\w .,:%+=-]+", "-", name).strip(" .,:%+=-")
    return text[:100] if text and text not in _TAKEN else f"strategy {text}"


def digest(strategy: Strategy) -> str:
    """The SHA-256 of the strategy's content, whatever its file looks like."""
    return hashlib.sha256(dump(strategy).encode()).hexdigest()


def choice(strategy: Strategy) -> Mapping[str, Option]:
    """The option that the strategy picks for each group."""
    return {
        entry.group: Option(channels=len(entry.kept), precision=entry.precision)
        for entry in strategy.entries
    }


def to_build(strategy: Strategy) -> Strategy:
    """What is left to build once the strategy's student, if any, has taken the original's place.

    Its teaching was the distillation, unless there are cuts to recover from.
    """
    cut = any(len(entry.kept) < entry.of for entry in strategy.entries)
    if not strategy.student or cut:
        return strategy
    return replace(strategy, methods=tuple(m for m in strategy.methods if m != "distill"))


def check(
    strategy: Strategy, groups: Sequence[Group], precisions: Sequence[str], epochs: int
) -> None:
    """Nothing; ConfigError names the first thing in which strategy and network differ.

    ``groups`` are those of what it is to compress, ``precisions`` those that the board can use,
    ``epochs`` those that training would take.
    """
    known = {group.name: group for group in groups}
    named = [entry.group for entry in strategy.entries]
    if sorted(named) != sorted(known):
        odd = sorted(set(known) ^ set(named)) or sorted({n for n in named if named.count(n) > 1})
        raise ConfigError(
            f"the strategy {strategy.label!r} is one of another network: of groups {len(named)} are"
            f" in the strategy and {len(known)} in the network, and they differ in "
            f"{', '.join(odd[:5])}; plan this network anew (boardfit strategies)"
        )
    for entry in strategy.entries:
        group = known[entry.group]
        if entry.of != group.channels:
            raise ConfigError(
                f"the strategy {strategy.label!r} is one of another network: {entry.group} has "
                f"{entry.of} channels in the strategy and {group.channels} in the network"
            )
        if (
            not entry.kept
            or list(entry.kept) != sorted(set(entry.kept))
            or not 0 <= entry.kept[0] <= entry.kept[-1] < entry.of
        ):
            raise ConfigError(
                f"the strategy {strategy.label!r} keeps channels of {entry.group} that are no "
                f"rising list of numbers from 0 to {entry.of - 1}"
            )
        if len(entry.kept) < entry.of and not group.prunable:
            raise ConfigError(
                f"the strategy {strategy.label!r} prunes {entry.group}, all of whose channels are "
                "needed: they are the network's outputs"
            )
        if entry.precision not in precisions:
            raise ConfigError(
                f"the strategy {strategy.label!r} asks for {entry.precision} in {entry.group}, "
                f"which this board cannot use; it can use {', '.join(precisions)}"
            )
    if "distill" in strategy.methods and not epochs:
        raise ConfigError(
            f"the strategy {strategy.label!r} distils for 0 epochs; give --epochs, 4 for example"
        )
