"""Which kernels a network has under any allocation, from a few dozen rewritten variants.

Rewriting a network says what its kernels are under one allocation. Which kernels stand at a place
(``latency_models.locality``) depends on few groups, and of their options on little: the precision,
and the class of the width. So variants are rewritten until every place has met every combination of
what it depends on, many places at once; what the kernels' sizes are at other widths follows from
the polynomials that the rewritten shapes carry (``latency_models.sizes``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.records import Option
from latency_models import graph, locality
from latency_models.graph import Kernel
from latency_models.locality import Influence, Place, Reading
from latency_models.operators import Op
from latency_models.propagation import propagate
from latency_models.sizes import Size, Terms, terms_of

__all__ = ["Scope", "Structure", "Template", "survey"]

Ints = npt.NDArray[np.intp]
# More combinations than this at one place are not all met: what the farthest groups do is then left
# out, and taken as it is near the reference allocation.
LARGEST_SCOPE = 128
# Variants that are rewritten at most; a place needs one a combination, and shares them with others.
MOST_VARIANTS = 4 * LARGEST_SCOPE
# Combinations of one place that are tried for a variant before another place has its turn.
_TRIES = 24


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A kernel at any widths: ``kernel`` with the sizes of its shapes as polynomials.

    ``variables`` are the groups whose widths they are in, ascending.
    """

    kernel: Kernel
    in_shapes: tuple[tuple[Terms, ...], ...]
    out_shape: tuple[Terms, ...]
    groups: Terms
    variables: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Scope:
    """What the kernels at a place depend on, and which they are.

    ``ids[i][j]`` says what option ``j`` of ``groups[i]`` is to the place: options alike have the
    same kernels there. ``frozen`` are the ids of groups, beyond these, that may matter too: the
    kernels are those with as few as possible of them unlike the reference. ``kernels`` are
    indices of templates by combination.
    """

    groups: tuple[int, ...]
    ids: tuple[Ints, ...]
    frozen: dict[int, Ints]
    kernels: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)

    def combination(self, choice: Sequence[int]) -> tuple[int, ...]:
        """What ``choice`` (an option a group of the network) is to the place."""
        pairs = zip(self.groups, self.ids, strict=True)
        return tuple(int(ids[choice[group]]) for group, ids in pairs)


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """The kernels of a network under any allocation: those of all ``scopes`` together.

    ``widths[l]`` are the channels of group ``l``'s options, ``None`` where they do not vary.
    ``exact`` is False where something of a place's surroundings is frozen.
    """

    templates: tuple[Template, ...]
    scopes: tuple[Scope, ...]
    widths: tuple[Ints | None, ...]
    variants: int
    exact: bool


def survey(
    kernels: Sequence[Kernel],
    resized: Sequence[Sequence[str]],
    layers: Sequence[Sequence[str]],
    options: Sequence[Sequence[Option]],
    *,
    runtime: str,
    reference: Sequence[int],
) -> Structure:
    """The structure of the network of ``kernels``; ``layers[l]`` are group ``l``'s kernels.

    ``resized[l]`` are those whose width the group's option gives: the same, or none.
    ``reference`` is the allocation at which what is too large to be exact is taken.
    """
    return _Survey(kernels, resized, layers, options, runtime, reference).structure()


class _Survey:
    def __init__(
        self,
        kernels: Sequence[Kernel],
        resized: Sequence[Sequence[str]],
        layers: Sequence[Sequence[str]],
        options: Sequence[Sequence[Option]],
        runtime: str,
        reference: Sequence[int],
    ) -> None:
        self.runtime = graph.RUNTIMES[runtime]
        self.resized, self.options, self.reference = resized, options, reference
        self.group_of = {name: index for index, names in enumerate(layers) for name in names}
        ops = graph.operators(kernels)
        self.varied = [
            bool(names) and len({option.channels for option in own}) > 1
            for names, own in zip(resized, options, strict=True)
        ]
        self.ops = propagate(ops, self._channels([len(own) - 1 for own in options]))
        self.by_name = {op.name: op for op in self.ops}
        self.groups_of_tensor, self.joined = _groups_of_tensors(self.ops)
        self.classes: dict[tuple[int, frozenset[Reading | None]], Ints] = {}
        self.known: dict[tuple[object, ...], int] = {}
        self.templates: list[Template] = []
        self.near = locality.influences(self.ops, self.runtime)
        self.scopes = {place: self._scope(near) for place, near in self.near.items()}
        self.missing = {
            place: dict.fromkeys(_combinations(scope)) for place, scope in self.scopes.items()
        }
        self.masks: dict[int, list[int]] = {}
        # How many frozen groups were not as in the reference when a combination was met.
        self.strange: dict[tuple[Place, tuple[int, ...]], int] = {}
        self.exact = not any(scope.frozen for scope in self.scopes.values())
        self.variants = 0

    def structure(self) -> Structure:
        self._meet(tuple(self.reference))
        while any(self.missing.values()) and self.variants < MOST_VARIANTS:
            self._meet(self._variant())
        return Structure(
            templates=tuple(self.templates),
            scopes=tuple(scope for scope in self.scopes.values() if any(scope.kernels.values())),
            widths=tuple(
                np.array([option.channels for option in own], np.intp) if varied else None
                for own, varied in zip(self.options, self.varied, strict=True)
            ),
            variants=self.variants,
            exact=self.exact and not any(self.missing.values()),
        )

    # -- what matters where ----------------------------------------------------------------------

    def _channels(self, choice: Sequence[int]) -> dict[str, int]:
        """The widths of a variant, as sizes that remember their group."""
        return {
            name: Size.width(group, self.options[group][choice[group]].channels)
            for group, names in enumerate(self.resized)
            if self.varied[group]
            for name in names
        }

    def _class(self, group: int, read: frozenset[Reading | None]) -> Ints:
        """By option: equal numbers where nothing that is ``read`` differs (None: the precision)."""
        key = (group, read)
        if key not in self.classes:
            joined = group in self.joined
            what = sorted((reading for reading in read if reading), key=lambda r: r.value)
            seen = [
                (
                    option.precision if None in read else "",
                    *(
                        locality.width_class(option.channels, reading, self.runtime, joined=joined)
                        for reading in what
                        if self.varied[group]
                    ),
                )
                for option in self.options[group]
            ]
            self.classes[key] = _numbered(seen)
        return self.classes[key]

    def _scope(self, near: Influence) -> Scope:
        what: dict[int, set[Reading | None]] = {}
        distance: dict[int, int] = {}
        for (name, reading), steps in near.items():
            if reading is None:
                groups = [self.group_of[name]] if name in self.group_of else []
            else:
                groups = list(self.groups_of_tensor.get(name, ()))
            for group in groups:
                what.setdefault(group, set()).add(reading)
                distance[group] = min(distance.get(group, steps), steps)
        ids = {group: self._class(group, frozenset(read)) for group, read in sorted(what.items())}
        ids = {group: own for group, own in ids.items() if own.max() > 0}
        order = sorted(ids, key=lambda group: -distance[group])
        frozen: dict[int, Ints] = {}
        while math.prod(int(own.max()) + 1 for own in ids.values()) > LARGEST_SCOPE:
            farthest = order.pop(0)
            frozen[farthest] = ids.pop(farthest)
        return Scope(tuple(ids), tuple(ids.values()), frozen)

    # -- variants --------------------------------------------------------------------------------

    def _variant(self) -> tuple[int, ...]:
        """An allocation under which many places meet what they have not met yet."""
        allowed = [(1 << len(own)) - 1 for own in self.options]
        waiting = [place for place, missing in self.missing.items() if missing]
        waiting.sort(key=lambda place: -len(self.missing[place]))
        for place in waiting:
            scope = self.scopes[place]
            for combination in itertools.islice(self.missing[place], _TRIES):
                wanted = self._wanted(scope, combination)
                if all(allowed[group] & mask for group, mask in wanted):
                    for group, mask in wanted:
                        allowed[group] &= mask
                    break
        return tuple(
            at if mask >> at & 1 else (mask & -mask).bit_length() - 1
            for mask, at in zip(allowed, self.reference, strict=True)
        )

    def _wanted(self, scope: Scope, combination: Sequence[int]) -> list[tuple[int, int]]:
        """By group: the options, as bits, that are what ``combination`` says."""
        return [
            (group, self._bits(ids)[value])
            for group, ids, value in zip(scope.groups, scope.ids, combination, strict=True)
        ]

    def _bits(self, ids: Ints) -> list[int]:
        key = id(ids)
        if key not in self.masks:
            found = [0] * (int(ids.max()) + 1)
            for option, value in enumerate(ids):
                found[value] |= 1 << option
            self.masks[key] = found
        return self.masks[key]

    def _meet(self, choice: tuple[int, ...]) -> None:
        """Rewrite a variant and file its kernels under the places that they belong to."""
        self.variants += 1
        kernels = graph.lowered(
            self.ops,
            out_channels=self._channels(choice),
            precision={
                name: self.options[group][choice[group]].precision
                for name, group in self.group_of.items()
            },
            runtime=self.runtime,
        )
        found: dict[Place, list[int]] = {}
        for kernel in kernels:
            place = locality.place_of(kernel, self.by_name, self.groups_of_tensor)
            found.setdefault(place, []).append(self._template(kernel))
        for place, scope in self.scopes.items():
            combination = scope.combination(choice)
            here = tuple(sorted(found.get(place, ())))
            strange = sum(
                ids[choice[g]] != ids[self.reference[g]] for g, ids in scope.frozen.items()
            )
            known, at = scope.kernels.get(combination, here), self.strange.get((place, combination))
            if known != here:
                self.exact = False
            if at is None or strange < at:
                scope.kernels[combination] = here
                self.strange[place, combination] = strange
            self.missing[place].pop(combination, None)

    def _template(self, kernel: Kernel) -> int:
        in_shapes = tuple(tuple(map(terms_of, shape)) for shape in kernel.in_shapes)
        out_shape = tuple(map(terms_of, kernel.out_shape))
        groups = terms_of(kernel.groups)
        key = (
            *(kernel.kind, kernel.precision, kernel.window, kernel.stride, kernel.weight is None),
            *(kernel.reads, kernel.writes, in_shapes, out_shape, groups),
        )
        if key not in self.known:
            self.known[key] = len(self.templates)
            sizes = (groups, *out_shape, *(size for shape in in_shapes for size in shape))
            variables = {v for terms in sizes for monomial, _ in terms for v in monomial}
            ordered = tuple(sorted(variables))
            self.templates.append(Template(kernel, in_shapes, out_shape, groups, ordered))
        return self.known[key]


def _groups_of_tensors(ops: Sequence[Op]) -> tuple[dict[str, frozenset[int]], set[int]]:
    """By tensor: whose widths its sizes hold; and the groups that are concatenated with others."""
    found: dict[str, frozenset[int]] = {}
    joined: set[int] = set()
    for op in ops:
        tensors = zip((*op.inputs, *op.outputs), (*op.in_shapes, *op.out_shapes), strict=True)
        for tensor, shape in tensors:
            if tensor in found:
                continue
            traced = [size.terms for size in shape if isinstance(size, Size)]
            groups = frozenset(v for terms in traced for monomial, _ in terms for v in monomial)
            found[tensor] = groups
            if any(len(terms) > 1 for terms in traced):
                joined |= groups
    return found, joined


def _combinations(scope: Scope) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(int(ids.max()) + 1) for ids in scope.ids))


def _numbered(values: Sequence[object]) -> Ints:
    place: dict[object, int] = {}
    return np.array([place.setdefault(value, len(place)) for value in values], np.intp)
