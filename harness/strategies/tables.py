"""Cost tables over the groups' options that add up to what an allocation is predicted to cost.

A kernel's time depends on its input's width, its output's and on its neighbours' precisions: on the
options of two or three groups. ``network_tables`` finds which (``structure.py``), prices every
kernel at all widths at once, and adds the prices up in one table for each set of groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.allocation.coupled import Table
from harness.errors import LatencyModelError
from harness.records import Option
from harness.strategies.predictor import NetworkCosts, weight_bytes
from harness.strategies.structure import LARGEST_SCOPE, Scope, Structure, Template, survey
from latency_models.calibration import LatencyModel
from latency_models.kernels import Works, channel_count
from latency_models.sizes import evaluate

__all__ = ["NetworkTables", "Sum", "network_tables"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
# Widths of one kernel are priced in all combinations; one of more groups than this allows (a long
# concatenation) is taken at the reference's widths in the groups beyond.
LARGEST_TABLE = 20_000
# A table is added to one of the same or more groups if that needs no more states, or stays this
# small.
_SMALL = 4096
_SECONDS, _STEPS, _MACS, _BYTES = range(4)
_QUANTITIES = 4
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A quantity that adds up: ``constant``, and one entry of each table."""

    constant: float
    tables: tuple[Table, ...]

    def at(self, choice: Sequence[int]) -> float:
        """The quantity where group ``l`` has option ``choice[l]``."""
        return math.fsum([self.constant, *(table.at(choice) for table in self.tables)])

    def scaled(self, factor: float) -> Sum:
        """The quantity times ``factor``."""
        tables = (Table(t.groups, factor * t.costs, t.states) for t in self.tables)
        return Sum(factor * self.constant, tuple(tables))

    def plus(self, other: Sum) -> Sum:
        """The sum of both, tables of the same groups made one."""
        return Sum(self.constant + other.constant, _collected([*self.tables, *other.tables]))


@dataclass(frozen=True, slots=True, eq=False)
class NetworkTables:
    """What any allocation costs; a choice is an option index a group, in ``NetworkCosts``' order.

    ``kernels_s`` are the kernels' seconds and ``steps`` how many they count: what the whole
    network takes is ``latency_s`` of the two, ``linear`` where that is a sum itself (``cut``).
    ``exact`` is False where some places depend on more groups than can be met; the tables then hold
    at the reference allocation and nearly so elsewhere: ``mismatch`` is the largest relative
    difference among the allocations that were checked. ``variants`` were rewritten.
    """

    kernels_s: Sum
    steps: Sum
    size_bytes: Sum
    macs: Sum
    model: LatencyModel
    linear: bool
    exact: bool
    mismatch: float
    variants: int

    def latency_s(self, choice: Sequence[int]) -> float:
        """The predicted seconds of a call."""
        return self.model.network(self.kernels_s.at(choice), self.steps.at(choice))

    def cut(self, choice: Sequence[int] | None = None) -> Sum:
        """Seconds that the network takes at least, and takes where it is like ``choice``.

        Latency is a convex function of two sums, the larger, nearly, of the device's time and the
        host's: a tangent plane lies below it everywhere. Hold a budget by solving with the cuts at
        hand, cutting again at the answer while that exceeds the budget in truth. Where ``linear``,
        one cut is the latency itself, wherever it is made (``choice`` may be left out).
        """
        kernels_s, steps = 1.0, 1.0
        if choice is not None:
            kernels_s, steps = self.kernels_s.at(choice), self.steps.at(choice)
        elif not self.linear:
            raise ValueError("the host queues kernels on this board: a cut needs an allocation")
        by_kernels, by_steps, rest = self.model.tangent(kernels_s, steps)
        cut = self.kernels_s.scaled(by_kernels)
        if by_steps:
            cut = cut.plus(self.steps.scaled(by_steps))
        return Sum(cut.constant + rest, cut.tables)


def network_tables(
    costs: NetworkCosts,
    options: Mapping[str, tuple[Option, ...]],
    *,
    reference: Mapping[str, Option] | None = None,
    largest_scope: int = LARGEST_SCOPE,
    checks: int = 3,
    seed: int = 0,
) -> NetworkTables:
    """The tables of every cost of the network of ``costs`` over these ``options``.

    They add up to what ``costs.costs`` predicts (which rewrites the network for each allocation).
    ``checks`` random allocations are priced both ways: LatencyModelError if they differ by more
    than 1e-9 where the tables claim to be exact. Where a network is not local enough for exact
    tables, they hold at ``reference`` (the options listed last, if None) and near it;
    ``largest_scope`` is how many combinations of options one place may depend on until then.
    """
    lists = [options[group.name] for group in costs.groups]
    at = [len(own) - 1 for own in lists]
    if reference is not None:
        at = [own.index(reference[g.name]) for own, g in zip(lists, costs.groups, strict=True)]
    structure = survey(
        costs.baseline,
        [costs.kernels_of_group[g.name] if g.prunable else () for g in costs.groups],
        [costs.kernels_of_group[g.name] for g in costs.groups],
        lists,
        runtime=costs.model.runtime,
        reference=at,
        largest_scope=largest_scope,
    )
    built = _Builder(structure, costs.model, lists, at)
    sums = built.sums()
    size = sums[_BYTES].scaled(costs.size_scale)
    tables = NetworkTables(
        kernels_s=sums[_SECONDS],
        steps=sums[_STEPS],
        macs=sums[_MACS],
        size_bytes=Sum(size.constant + costs.other_bytes * costs.size_scale, size.tables),
        model=costs.model,
        linear=costs.model.linear,
        exact=structure.exact and built.exact,
        mismatch=0.0,
        variants=structure.variants,
    )
    return dataclasses.replace(tables, mismatch=_mismatch(tables, costs, lists, checks, seed))


def _mismatch(
    tables: NetworkTables,
    costs: NetworkCosts,
    options: Sequence[Sequence[Option]],
    checks: int,
    seed: int,
) -> float:
    rng, worst = np.random.default_rng(seed), 0.0
    for _ in range(checks):
        choice = [int(rng.integers(len(own))) for own in options]
        pairs = zip(costs.groups, options, choice, strict=True)
        whole = costs.costs({group.name: own[j] for group, own, j in pairs})
        for what, table, alone in (
            ("latency", tables.latency_s(choice), whole.latency_s),
            ("size", tables.size_bytes.at(choice), whole.size_bytes),
            ("macs", tables.macs.at(choice), whole.macs),
        ):
            worst = max(worst, abs(table - alone) / abs(alone))
            if tables.exact and worst > TOLERANCE:
                raise LatencyModelError(
                    f"the {what} of allocation {choice} adds up to {table!r} from tables and is "
                    f"{alone!r} of the rewritten network: the rules of {costs.model.runtime} look "
                    "farther than the tables assume; report this network"
                )
    return worst


class _Builder:
    """Prices every template at all widths, and adds up the scopes' tables."""

    def __init__(
        self,
        structure: Structure,
        model: LatencyModel,
        options: Sequence[Sequence[Option]],
        reference: Sequence[int],
    ) -> None:
        self.structure, self.model, self.reference = structure, model, reference
        self.exact = True
        self.sizes = [len(own) for own in options]
        # Of each group whose width varies: the different widths, and the place of each option's.
        self.widths: dict[int, Ints] = {}
        self.place: dict[int, Ints] = {}
        for group, widths in enumerate(structure.widths):
            if widths is not None:
                self.widths[group], self.place[group] = np.unique(widths, return_inverse=True)
        self.axes = [self._axes(template) for template in structure.templates]
        self.prices = self._prices()

    def sums(self) -> list[Sum]:
        """Each quantity's constant and tables."""
        constants = [[0.0] for _ in range(_QUANTITIES)]
        found: list[list[Table]] = [[] for _ in range(_QUANTITIES)]
        for scope in self.structure.scopes:
            groups, costs, states = self._costs(scope)
            for quantity in range(_QUANTITIES):
                own = _reduced(groups, costs[..., quantity], states)
                if isinstance(own, Table):
                    found[quantity].append(own)
                else:
                    constants[quantity].append(own)
        return [
            Sum(math.fsum(constant), _collected(tables))
            for constant, tables in zip(constants, found, strict=True)
        ]

    def _axes(self, template: Template) -> tuple[int, ...]:
        """The groups over whose widths a template is priced; the reference decides the others'."""
        axes = list(template.variables)
        while math.prod(len(self.widths[group]) for group in axes) > LARGEST_TABLE:
            axes.pop()
            self.exact = False
        return tuple(axes)

    def _prices(self) -> list[Floats]:
        """Each template's quantities, one axis a group of ``axes`` and one for the quantity."""
        templates = self.structure.templates
        if not templates:
            return []
        parts = [self._works(t, axes) for t, axes in zip(templates, self.axes, strict=True)]
        works = Works.joined([part for part, _ in parts])
        unique, place = works.unique()
        table = np.empty((len(works), _QUANTITIES))
        table[:, _SECONDS] = self.model.predict_kernels(unique)[place]
        table[:, _STEPS] = works.each([self.model.step(kind) for kind, _ in works.labels])
        table[:, _MACS] = works.macs
        table[:, _BYTES] = np.concatenate([size for _, size in parts])
        ends = np.cumsum([len(part) for part, _ in parts])
        shapes = [tuple(len(self.widths[group]) for group in axes) for axes in self.axes]
        return [
            block.reshape(*shape, _QUANTITIES)
            for block, shape in zip(np.split(table, ends[:-1]), shapes, strict=True)
        ]

    def _works(self, template: Template, axes: tuple[int, ...]) -> tuple[Works, Floats]:
        """A template's works at all widths, and the bytes of its weight."""
        grid = np.meshgrid(*(self.widths[group] for group in axes), indexing="ij")
        widths = {group: flat.ravel() for group, flat in zip(axes, grid, strict=True)}
        for group in template.variables:
            if group not in widths:
                at = self.place[group][self.reference[group]]
                widths[group] = self.widths[group][at : at + 1]
        in_shapes = [[evaluate(size, widths) for size in shape] for shape in template.in_shapes]
        out_shape = [evaluate(size, widths) for size in template.out_shape]
        kernel = template.kernel
        works = Works.at(kernel, in_shapes, out_shape, evaluate(template.groups, widths))
        length = math.prod(len(self.widths[group]) for group in axes)
        if len(works) < length:
            works = works.only(np.zeros(length, np.intp))
        if not template.stored:
            return works, np.zeros(length)
        _, outputs, inputs, window, groups, _ = works.dims.T
        numbers = groups * inputs * window * outputs
        channels = channel_count(kernel.kind, out_shape)
        size = weight_bytes(kernel.precision, numbers, channels)
        return works, np.broadcast_to(np.asarray(size, float), (length,))

    def _costs(self, scope: Scope) -> tuple[tuple[int, ...], Floats, list[Ints]]:
        """What a place's kernels take, as a table's parts; the costs' last axis is the quantity."""
        used = {g for found in scope.kernels.values() for t in found for g in self.axes[t]}
        groups, ids = tuple(sorted({*scope.ids, *used})), scope.ids
        states, own, wide = [], [], []
        for group in groups:
            plain = np.zeros(self.sizes[group], np.intp)
            pair = np.stack([ids.get(group, plain), self.place[group] if group in used else plain])
            different, state = np.unique(pair, axis=1, return_inverse=True)
            states.append(state.reshape(-1))
            own.append(different[0])
            wide.append(different[1])
        costs = np.zeros((*(len(ids) for ids in own), _QUANTITIES))
        place = {group: axis for axis, group in enumerate(groups)}
        for combination, found in scope.kernels.items():
            wanted = dict(zip(scope.ids, combination, strict=True))
            rows = [
                np.flatnonzero(ids == wanted.get(g, 0)) for g, ids in zip(groups, own, strict=True)
            ]
            if not found or not all(len(part) for part in rows):
                continue
            total = np.zeros((*map(len, rows), _QUANTITIES))
            for template in found:
                axes = [place[group] for group in self.axes[template]]
                picked = self.prices[template][np.ix_(*(wide[a][rows[a]] for a in axes))]
                shape = [len(rows[a]) if a in axes else 1 for a in range(len(groups))]
                total += picked.reshape(*shape, _QUANTITIES)
            costs[np.ix_(*rows)] += total
        return groups, costs, states


def _merged(tables: Sequence[Table]) -> Table:
    """The sum of tables of the same groups, in states that tell all of theirs apart."""
    if len(tables) == 1:
        return tables[0]
    states, picks = [], []
    for axis in range(len(tables[0].groups)):
        together = np.stack([_states(table)[axis] for table in tables])
        different, state = np.unique(together, axis=1, return_inverse=True)
        states.append(state.reshape(-1))
        picks.append(different)
    costs = sum(
        table.costs[np.ix_(*(pick[index] for pick in picks))] for index, table in enumerate(tables)
    )
    return Table(tables[0].groups, np.asarray(costs), tuple(states))


def _states(table: Table) -> tuple[Ints, ...]:
    """The states of a table that was made here: all are there."""
    return tuple(states for states in table.states if states is not None)


def _reduced(of: Sequence[int], costs: Floats, by_axis: Sequence[Ints]) -> Table | float:
    """The table with states that cost the same made one, and without groups that do not matter.

    A number where no group does.
    """
    groups, states = list(of), list(by_axis)
    for axis in range(len(groups) - 1, -1, -1):
        rows = np.ascontiguousarray(np.moveaxis(costs, axis, 0)).reshape(costs.shape[axis], -1)
        place: dict[bytes, int] = {}
        new = np.array([place.setdefault(row.tobytes(), len(place)) for row in rows], np.intp)
        if len(place) == len(rows) and len(place) > 1:
            continue
        first = [int(np.flatnonzero(new == state)[0]) for state in range(len(place))]
        costs, states[axis] = np.take(costs, first, axis=axis), new[states[axis]]
        if len(place) == 1:
            costs = costs[(slice(None),) * axis + (0,)]
            del groups[axis], states[axis]
    return Table(tuple(groups), costs, tuple(states)) if groups else float(costs)


def _collected(tables: Sequence[Table]) -> tuple[Table, ...]:
    """The same sum in fewer tables, where those are not much larger than what they are made of."""
    result: list[Table] = []
    for table in sorted(tables, key=lambda table: (-len(table.groups), table.groups)):
        for index, host in enumerate(result):
            if set(table.groups) <= set(host.groups):
                spread = _spread(table, host)
                if _merged_size(host, spread) <= max(_SMALL, host.costs.size):
                    result[index] = _merged([host, spread])
                    break
        else:
            result.append(table)
    return tuple(sorted(result, key=lambda table: table.groups))


def _merged_size(one: Table, other: Table) -> int:
    pairs = zip(_states(one), _states(other), strict=True)
    return math.prod(len(set(zip(a.tolist(), b.tolist(), strict=True))) for a, b in pairs)


def _spread(table: Table, like: Table) -> Table:
    """``table`` over the groups of ``like``, in the others' single state."""
    place = {group: axis for axis, group in enumerate(table.groups)}
    shape, states = [], []
    for group, theirs in zip(like.groups, _states(like), strict=True):
        axis = place.get(group)
        shape.append(1 if axis is None else table.costs.shape[axis])
        states.append(np.zeros_like(theirs) if axis is None else _states(table)[axis])
    return Table(like.groups, table.costs.reshape(shape), tuple(states))
