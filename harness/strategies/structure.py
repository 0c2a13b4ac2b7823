"""Which kernels a network has under any allocation, from a few dozen rewritten variants.

Rewriting a network says what its kernels are under one allocation. Which kernels stand at a place
(``latency_models.locality``) depends on few groups, and of their options on little: the precision,
and the class of the width. So variants are rewritten until every place has met every combination of
what it depends on, many places at once, and random variants show nothing new. What the kernels'
sizes are at other widths follows from polynomials that the rewritten shapes carry
(``latency_models.sizes``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.records import Option
from harness.strategies.predictor import holders
from latency_models import graph, locality
from latency_models.graph import Kernel
from latency_models.locality import Influence, Place, Reading
from latency_models.operators import Op
from latency_models.propagation import propagate
from latency_models.sizes import Size, Terms

__all__ = ["Scope", "Structure", "Template", "survey"]

Ints = npt.NDArray[np.intp]
# Combinations that a place is first taken to depend on: those of the nearest groups. Where two
# variants show that more matters, the nearest group that explains it is added, up to the limit.
FIRST_SCOPE = 16
LARGEST_SCOPE = 192
# Variants that are rewritten at most, times the limit: a place needs one a combination, and shares
# them with others.
_VARIANTS = 4
# Random variants in a row that show nothing new before the structure is taken to be known.
CONFIRMED_BY = 12
# Combinations of one place that are tried for a variant before another place has its turn.
_TRIES = 24


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A kernel at any widths: ``kernel`` with the sizes of its shapes as polynomials.

    ``variables`` are the groups whose widths they are in, ascending. ``stored``: it holds its
    weight, which no kernel before it does.
    """

    kernel: Kernel
    stored: bool
    in_shapes: tuple[tuple[int | Terms, ...], ...]
    out_shape: tuple[int | Terms, ...]
    groups: int | Terms
    variables: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Scope:
    """What the kernels at a place depend on, and which they are.

    ``ids[l][j]`` says what option ``j`` of group ``l`` is to the place: options alike have the same
    kernels there. ``rest`` are groups, the nearest first, that might matter and were not seen to.
    ``kernels`` are indices of templates by combination, an id a group in the order of ``ids``.
    """

    ids: dict[int, Ints]
    rest: dict[int, Ints]
    kernels: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    met_in: dict[tuple[int, ...], int] = field(default_factory=dict)
    missing: dict[tuple[int, ...], list[tuple[int, int]]] = field(default_factory=dict)

    def combination(self, choice: Sequence[int]) -> tuple[int, ...]:
        """What ``choice`` (an option a group of the network) is to the place."""
        return tuple([int(ids[choice[group]]) for group, ids in self.ids.items()])

    def size(self, *more: Ints) -> int:
        """How many combinations there are, with groups of these ids added."""
        return math.prod(int(ids.max()) + 1 for ids in (*self.ids.values(), *more))

    def strange(self, choice: Sequence[int], reference: Sequence[int]) -> int:
        """How many of the groups that are left out are not as in ``reference``."""
        return sum(bool(ids[choice[g]] != ids[reference[g]]) for g, ids in self.rest.items())

    def forget(self) -> None:
        """Nothing was met: what is to be met, with the options that show it as bits of a group."""
        self.kernels.clear()
        self.met_in.clear()
        bits = [(group, _bits(ids)) for group, ids in self.ids.items()]
        ranges = (range(len(own)) for _, own in bits)
        self.missing = {
            combination: [
                (group, own[value]) for (group, own), value in zip(bits, combination, strict=True)
            ]
            for combination in itertools.product(*ranges)
        }


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """The kernels of a network under any allocation: those of all ``scopes`` together.

    ``widths[l]`` are the channels of group ``l``'s options, ``None`` where they do not vary.
    ``variants`` were rewritten. ``exact`` is found, not proven: no two of them contradict each
    other in what ``scopes`` take the places to depend on, ``CONFIRMED_BY`` random ones included.
    It is False where a place was seen to depend on more than could be met.
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
    largest_scope: int = LARGEST_SCOPE,
) -> Structure:
    """The structure of the network of ``kernels``; ``layers[l]`` are group ``l``'s kernels.

    ``resized[l]`` are those whose width the group's option gives: the same, or none.
    A place that depends on more than ``largest_scope`` combinations is taken as it is at
    ``reference``, and as near to that as was seen.
    """
    return _Survey(kernels, resized, layers, options, runtime, reference, largest_scope).structure()


class _Survey:
    def __init__(
        self,
        kernels: Sequence[Kernel],
        resized: Sequence[Sequence[str]],
        layers: Sequence[Sequence[str]],
        options: Sequence[Sequence[Option]],
        runtime: str,
        reference: Sequence[int],
        largest_scope: int,
    ) -> None:
        self.largest_scope = largest_scope
        self.runtime = graph.RUNTIMES[runtime]
        self.resized, self.options, self.reference = resized, options, reference
        self.stored = {kernel.name for kernel in holders(kernels)}
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
        # Each variant's allocation, and its templates by place.
        self.samples: list[tuple[tuple[int, ...], dict[Place, tuple[int, ...]]]] = []
        self.exact = True

    def structure(self) -> Structure:
        self._meet(tuple(self.reference))
        rng, quiet = np.random.default_rng(0), 0
        while len(self.samples) < _VARIANTS * self.largest_scope and quiet < CONFIRMED_BY:
            if any(scope.missing for scope in self.scopes.values()):
                self._meet(self._variant())
            elif self._meet(tuple(int(rng.integers(len(own))) for own in self.options)):
                quiet += 1
            else:
                quiet = 0
        missing = any(scope.missing for scope in self.scopes.values())
        return Structure(
            templates=tuple(self.templates),
            scopes=tuple(scope for scope in self.scopes.values() if any(scope.kernels.values())),
            widths=tuple(
                np.array([option.channels for option in own], np.intp) if varied else None
                for own, varied in zip(self.options, self.varied, strict=True)
            ),
            variants=len(self.samples),
            exact=self.exact and not missing,
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
        rest = dict(sorted(ids.items(), key=lambda item: distance[item[0]]))
        scope = Scope({}, rest)
        for group in list(rest):
            if scope.size(rest[group]) > min(FIRST_SCOPE, self.largest_scope):
                break
            scope.ids[group] = rest.pop(group)
        scope.forget()
        return scope

    # -- variants --------------------------------------------------------------------------------

    def _variant(self) -> tuple[int, ...]:
        """An allocation under which many places meet what they have not met yet."""
        allowed = [(1 << len(own)) - 1 for own in self.options]
        waiting = [scope for scope in self.scopes.values() if scope.missing]
        waiting.sort(key=lambda scope: -len(scope.missing))
        for scope in waiting:
            for wanted in itertools.islice(scope.missing.values(), _TRIES):
                if all(allowed[group] & mask for group, mask in wanted):
                    for group, mask in wanted:
                        allowed[group] &= mask
                    break
        return tuple(
            at if mask >> at & 1 else (mask & -mask).bit_length() - 1
            for mask, at in zip(allowed, self.reference, strict=True)
        )

    def _meet(self, choice: tuple[int, ...]) -> bool:
        """Rewrite a variant and file its kernels; whether it shows no place to depend on more."""
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
        self.samples.append((choice, {place: tuple(sorted(own)) for place, own in found.items()}))
        return all(
            [self._file(place, len(self.samples) - 1) for place in self.scopes]  # all of them
        )

    def _file(self, place: Place, first: int) -> bool:
        """File what the samples from ``first`` show at a place; whether nothing had to change."""
        scope = self.scopes[place]
        for index in range(first, len(self.samples)):
            choice, found = self.samples[index]
            here, combination = found.get(place, ()), scope.combination(choice)
            known = scope.kernels.setdefault(combination, here)
            before = scope.met_in.setdefault(combination, index)
            scope.missing.pop(combination, None)
            if known == here:
                continue
            if self._widen(scope, choice, self.samples[before][0]):
                self._file(place, 0)
                return False
            self.exact = False
            then = self.samples[before][0]
            if scope.strange(choice, self.reference) < scope.strange(then, self.reference):
                scope.kernels[combination], scope.met_in[combination] = here, index
        return True

    def _widen(self, scope: Scope, one: Sequence[int], other: Sequence[int]) -> bool:
        """Add the nearest group that may explain why a place is not the same in two variants."""
        for group, ids in scope.rest.items():
            if ids[one[group]] != ids[other[group]] and scope.size(ids) <= self.largest_scope:
                scope.ids[group] = scope.rest.pop(group)
                scope.forget()
                return True
        return False

    def _template(self, kernel: Kernel) -> int:
        in_shapes = tuple(tuple(map(_symbolic, shape)) for shape in kernel.in_shapes)
        out_shape = tuple(map(_symbolic, kernel.out_shape))
        groups = _symbolic(kernel.groups)
        stored = kernel.name in self.stored
        key = (
            *(kernel.kind, kernel.precision, kernel.window, kernel.stride, stored),
            *(kernel.reads, kernel.writes, in_shapes, out_shape, groups),
        )
        if key not in self.known:
            self.known[key] = len(self.templates)
            sizes = (groups, *out_shape, *(size for shape in in_shapes for size in shape))
            traced = (size for size in sizes if not isinstance(size, int))
            variables = {v for terms in traced for monomial, _ in terms for v in monomial}
            ordered = tuple(sorted(variables))
            self.templates.append(Template(kernel, stored, in_shapes, out_shape, groups, ordered))
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


def _symbolic(size: int) -> int | Terms:
    return size.terms if isinstance(size, Size) else size


def _bits(ids: Ints) -> list[int]:
    """By id: the options that have it, as the bits of a number."""
    found = [0] * (int(ids.max()) + 1)
    for option, value in enumerate(ids):
        found[value] |= 1 << option
    return found


def _numbered(values: Sequence[object]) -> Ints:
    place: dict[object, int] = {}
    return np.array([place.setdefault(value, len(place)) for value in values], np.intp)
