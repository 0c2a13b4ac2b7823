"""Costs that couple groups: tables over several groups, and what they say of classes of groups.

A layer's cost depends on its own width and on that of the layers before it; a conversion between
two precisions costs only where they differ. Each such cost is a table over the options of some
groups, and what a budget bounds is the sum of its tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.allocation.names import NAMELESS, Names
from harness.allocation.problem import LARGEST, SMALLEST
from harness.errors import ConfigError

__all__ = ["Coupling", "Table", "Term"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What some groups take together: ``costs[s0, s1, ...]``, ``s_i`` the state of ``groups[i]``.

    ``groups`` are distinct; of one group it is an ordinary row of costs. ``states[i][j]`` is the
    state of option ``j`` of ``groups[i]``: options that cost the same there may share one. None,
    or no ``states`` at all, stands for the option index itself.
    """

    groups: tuple[int, ...]
    costs: Floats
    states: tuple[Ints | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(int(group) for group in self.groups))
        object.__setattr__(self, "costs", np.asarray(self.costs, dtype=np.float64))
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise ConfigError(f"a table is of groups {self.groups}; they must be one or more, once")
        if self.costs.ndim != len(self.groups):
            raise ConfigError(
                f"the table of groups {self.groups} has {self.costs.ndim} axes; one a group is due"
            )
        states = tuple(self.states) or (None,) * len(self.groups)
        if len(states) != len(self.groups):
            raise ConfigError(
                f"the table of groups {self.groups} has states of {len(states)} axes, not all"
            )
        object.__setattr__(
            self,
            "states",
            tuple(None if s is None else np.asarray(s, dtype=np.intp) for s in states),
        )

    def state(self, axis: int, size: int) -> Ints:
        """The state of each of the ``size`` options of ``groups[axis]``."""
        states = self.states[axis]
        return np.arange(size, dtype=np.intp) if states is None else states

    def at(self, choice: Sequence[int]) -> float:
        """What the groups take when group ``l`` has option ``choice[l]``."""
        index = tuple(
            choice[g] if s is None else int(s[choice[g]])
            for g, s in zip(self.groups, self.states, strict=True)
        )
        return float(self.costs[index])

    def check(self, name: str, sizes: Sequence[int], names: Names = NAMELESS) -> None:
        """Raise ``ConfigError`` where the table does not fit groups of so many options."""
        for axis, group in enumerate(self.groups):
            if not 0 <= group < len(sizes):
                raise ConfigError(f"{name}: group {group} does not exist; there are {len(sizes)}")
            width, states = self.costs.shape[axis], self.states[axis]
            if states is None:
                if width != sizes[group]:
                    raise ConfigError(
                        f"{name}: {names.group(group)} has {sizes[group]} options, "
                        f"axis {axis} of the table of groups {self.groups} has {width}"
                    )
            elif len(states) != sizes[group]:
                raise ConfigError(
                    f"{name}: {names.group(group)} has {sizes[group]} options, "
                    f"{len(states)} of them have states"
                )
            elif ((states < 0) | (states >= width)).any():
                wrong = int(((states < 0) | (states >= width)).argmax())
                raise ConfigError(
                    f"{name}: {names.option(group, wrong)} has state {states[wrong]}; "
                    f"the table has {width} states there"
                )
        self._check_numbers(name, sizes, names)

    def _check_numbers(self, name: str, sizes: Sequence[int], names: Names) -> None:
        size = np.abs(self.costs)
        wrong = ~((size >= SMALLEST) & (size <= LARGEST) | (size == 0))
        if not wrong.any():
            return
        place = np.unravel_index(int(wrong.argmax()), self.costs.shape)
        where = []
        for axis, group in enumerate(self.groups):
            options = np.flatnonzero(self.state(axis, sizes[group]) == place[axis])
            if len(options) == 0:
                where.append(f"state {place[axis]}, which no option of {names.group(group)} has")
            else:
                where.append(names.option(group, int(options[0])))
        number = float(self.costs[place])
        advice = (
            f"scale so that all are 0 or between {SMALLEST:g} and {LARGEST:g} in size"
            if math.isfinite(number)
            else "leave out options that are not to be used"
        )
        raise ConfigError(f"{name}: {' with '.join(where)} is {number}; {advice}")


Layer = tuple[Table, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A table over classes: axis ``i`` is over states of ``classes[i]``, by ``maps[i]``.

    ``maps[i][j]`` is the state of the class's ``j``-th kept option.
    """

    layer: int
    classes: tuple[int, ...]
    amounts: Floats
    maps: tuple[Ints, ...]

    @staticmethod
    def of(
        table: Table, layer: int, sizes: Sequence[int], class_of: Ints, kept: Sequence[Ints]
    ) -> Term:
        """The table, over the kept options of the groups' classes.

        Axes of tied groups become one. States that no kept option has are gone, those that cost
        the same whatever the others do are one state, and axes of one state are gone.
        """
        if len(table.groups) == 1:
            k = int(class_of[table.groups[0]])
            return Term(
                layer, (k,), table.costs, (table.state(0, sizes[table.groups[0]])[kept[k]],)
            )
        axes: dict[int, list[int]] = {}
        for axis, group in enumerate(table.groups):
            axes.setdefault(int(class_of[group]), []).append(axis)
        classes = sorted(axes)
        index: list[Ints] = [np.zeros(0, dtype=np.intp)] * len(table.groups)
        maps: list[Ints] = []
        for dim, k in enumerate(classes):
            states = np.stack([table.state(a, sizes[table.groups[a]])[kept[k]] for a in axes[k]])
            cells, inverse = _distinct(states)
            shape = [1] * len(classes)
            shape[dim] = -1
            for a, row in zip(axes[k], cells, strict=True):
                index[a] = row.reshape(shape)
            maps.append(inverse)
        amounts = table.costs[tuple(index)]
        for dim in range(len(classes)):
            rows = np.moveaxis(amounts, dim, 0)
            _, one, inverse = np.unique(
                rows.reshape(len(rows), -1), axis=0, return_index=True, return_inverse=True
            )
            amounts = np.take(amounts, one, axis=dim)
            maps[dim] = inverse.ravel()[maps[dim]]
        left = [dim for dim in range(len(classes)) if amounts.shape[dim] > 1] or [0]
        return Term(
            layer,
            tuple(classes[dim] for dim in left),
            np.ascontiguousarray(amounts.reshape([amounts.shape[dim] for dim in left])),
            tuple(maps[dim] for dim in left),
        )


def _distinct(states: Ints) -> tuple[Ints, Ints]:
    """The distinct columns, and which of them each column is."""
    if len(states) == 1 and (np.diff(states[0]) > 0).all():
        return states, np.arange(states.shape[1], dtype=np.intp)
    cells, inverse = np.unique(states, axis=1, return_inverse=True)
    return cells, inverse.ravel()


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """What is to be allocated: layers of tables over groups, and of terms over their classes.

    Layer 0 is the objective, layer ``1 + b`` is bounded by ``budgets[b]``. ``kept[k]`` are the
    options of class ``k`` that may be chosen; picks are indices into these, one a class.
    """

    layers: tuple[tuple[Table, ...], ...]
    budgets: tuple[float, ...]
    sizes: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    class_of: Ints
    kept: tuple[Ints, ...]
    terms: tuple[Term, ...]

    @staticmethod
    def of(
        layers: tuple[tuple[Table, ...], ...],
        budgets: tuple[float, ...],
        sizes: tuple[int, ...],
        members: tuple[tuple[int, ...], ...],
        kept: tuple[Ints, ...],
    ) -> Coupling:
        """The coupling of checked tables."""
        class_of = np.empty(len(sizes), dtype=np.intp)
        for k, groups in enumerate(members):
            class_of[list(groups)] = k
        terms = tuple(
            Term.of(table, layer, sizes, class_of, kept)
            for layer, tables in enumerate(layers)
            for table in tables
        )
        return Coupling(layers, budgets, sizes, members, class_of, kept, terms)

    @property
    def separable(self) -> bool:
        """Whether no term couples two classes."""
        return all(len(term.classes) == 1 for term in self.terms)

    def restricted(self, alive: Sequence[npt.NDArray[np.bool_]]) -> Coupling:
        """The same with only those of the kept options that are ``alive``."""
        kept = tuple(options[a] for options, a in zip(self.kept, alive, strict=True))
        terms = tuple(
            replace(t, maps=tuple(row[alive[k]] for k, row in zip(t.classes, t.maps, strict=True)))
            for t in self.terms
        )
        return replace(self, kept=kept, terms=terms)

    def aimed(self, objective: int, held: Sequence[int]) -> Coupling:
        """The same, but layer ``objective`` is minimised, and only ``held`` are budgets."""
        layers = [objective, *(1 + b for b in held)]
        place = {layer: n for n, layer in enumerate(layers)}
        return replace(
            self,
            layers=tuple(self.layers[layer] for layer in layers),
            budgets=tuple(self.budgets[b] for b in held),
            terms=tuple(replace(t, layer=place[t.layer]) for t in self.terms if t.layer in place),
        )

    def expand(self, picks: Sequence[int] | Ints) -> tuple[int, ...]:
        """The option of every group, from the pick of every class."""
        return tuple(int(self.kept[k][picks[k]]) for k in self.class_of)

    def sums(self, choice: Sequence[int]) -> tuple[float, ...]:
        """The sum of every layer, each rounded once."""
        return tuple(math.fsum(t.at(choice) for t in layer) for layer in self.layers)

    def within(self, sums: Sequence[float]) -> bool:
        """Whether the sums of the layers keep every budget."""
        return all(s <= budget for s, budget in zip(sums[1:], self.budgets, strict=True))
