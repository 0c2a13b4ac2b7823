"""The groups of a network from which whole branches are left out, by those that it has whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.errors import BuildError
from harness.records import Group

__all__ = ["remaining", "together", "unread"]


def together(groups: Sequence[Group], names: Iterable[str]) -> tuple[str, ...]:
    """The groups that go if ``names`` do, in the order of ``groups``.

    With a group go the layers that make its channels and those that read them; another group goes
    with it if all that make its channels are gone, or all that read them. Of a group that is not
    prunable others may make or read channels too, so that those who read it stay. BuildError for
    unknown names.
    """
    gone = set(names)
    if missing := sorted(gone - {group.name for group in groups}):
        raise BuildError(f"cannot leave out {missing[0]}: no such group in this network")
    while True:
        layers = _layers(groups, gone)
        more = {
            group.name
            for group in groups
            if layers.issuperset(group.producers)
            or (group.prunable and layers.issuperset(group.consumers))
        }
        if more <= gone:
            return tuple(group.name for group in groups if group.name in gone)
        gone |= more


def unread(groups: Sequence[Group], left_out: Iterable[str]) -> tuple[str, ...]:
    """The layers that are gone with the groups ``left_out``, in the order of the groups."""
    gone = _layers(groups, set(left_out))
    every = (layer for group in groups for layer in (*group.producers, *group.consumers))
    return tuple(dict.fromkeys(layer for layer in every if layer in gone))


def remaining(groups: Sequence[Group], left_out: Iterable[str]) -> tuple[Group, ...]:
    """The groups that are there without those ``left_out``, with the layers that are.

    They bear the names that they have in the whole network, also where the layer that gave the name
    is gone: the channels are the same.
    """
    out = set(left_out)
    gone = _layers(groups, out)
    return tuple(
        replace(
            group,
            producers=tuple(layer for layer in group.producers if layer not in gone),
            consumers=tuple(layer for layer in group.consumers if layer not in gone),
        )
        for group in groups
        if group.name not in out
    )


def _layers(groups: Sequence[Group], names: set[str]) -> set[str]:
    return {
        layer
        for group in groups
        if group.name in names
        for layer in (*group.producers, *(group.consumers if group.prunable else ()))
    }
