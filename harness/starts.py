"""What allocations begin with: the network, and what is left of it without some branches."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from harness import networks
from harness.candidates import Workbench
from harness.compression import branches, recovery, shallow
from harness.compression.branches import Branches
from harness.errors import ConfigError
from harness.records import Group, Option, Strategy
from harness.strategies.predictor import Costs, NetworkCosts
from harness.strategies.requirements import Limits
from latency_models import graph

__all__ = ["Start", "count", "depths", "find", "left_out", "savings", "start"]

# Enough to tell which branch is missed the least.
IMAGES = 64
# As in distillation: on images that it was trained on, a network is so certain of its classes that
# at 1 most branches seem to be missed by nobody.
TEMPERATURE = 4.0
# Between the whole network and the start whose layers keep their widths is one with this share of
# its branches left out: a little narrower.
BETWEEN = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A network at full widths; the groups ``left_out`` are gone, with what goes with them.

    ``groups`` are those of the whole network that are there, ``kernels`` and ``size_bytes`` what
    its exported file has.
    """

    groups: tuple[Group, ...]
    kernels: tuple[graph.Kernel, ...]
    size_bytes: int
    left_out: tuple[str, ...] = ()


def find(
    bench: Workbench,
    network: networks.Network,
    groups: Sequence[Group],
    given: Strategy | None = None,
    *,
    saves: Callable[[Collection[str]], dict[str, float]] | None = None,
) -> Branches:
    """The branches that can go, in the order in which they best do: a stage of the folder.

    ``saves`` says of the groups that can go what each is worth (``savings``). For a strategy that
    is ``given`` the order is not looked for; ConfigError where it leaves out what cannot go.
    """
    images = bench.data.train_images
    some = images[: recovery.fitting_images(network, bench.data.example, IMAGES)]

    def compute() -> Branches:
        if len(some) < 2:
            return Branches()
        names = branches.removable(network, groups, some)
        if given is not None:
            return Branches(removable=names)
        order = branches.removal_order(
            network,
            groups,
            some,
            most=len(names),
            names=names,
            saves=None if saves is None else saves(names),
            classes=bench.data.classes,
            temperature=TEMPERATURE,
            progress=bench.folder.observer.progress,
        )
        return Branches(removable=names, order=order)

    found = bench.folder.stage("branches", Branches, compute, detail=Branches.summary)
    if given is not None:
        _require(given, groups, found)
    return found


def savings(costs: NetworkCosts, limits: Limits, names: Collection[str]) -> dict[str, float]:
    """What the network saves, nearly, without each of the branches ``names``.

    Its shares of the latency and of the size, whichever are limited (the latency where neither is),
    in one sum. All of that in fp32: which branch saves more is hardly another question in another
    precision.
    """
    groups = costs.groups
    whole = {group.name: Option(channels=group.channels, precision="fp32") for group in groups}
    before = costs.costs(whole)

    def saved(name: str) -> float:
        left = costs.costs_without(whole, shallow.unread(groups, shallow.together(groups, [name])))
        share = 0.0
        if limits.latency_s is not None or limits.size_bytes is None:
            share += 1 - left.latency_s / before.latency_s
        if limits.size_bytes is not None:
            share += 1 - left.size_bytes / before.size_bytes
        return share

    return {name: saved(name) for name in names}


def _require(given: Strategy, groups: Sequence[Group], found: Branches) -> None:
    own = set(given.left_out)
    goes = [shallow.together(groups, [name]) for name in found.removable]
    can = {name for group in goes if own.issuperset(group) for name in group}
    if odd := sorted(own - can):
        raise ConfigError(
            f"the strategy {given.label!r} leaves out {', '.join(odd[:5])}, without which this "
            "network does not run or loses its input; give a strategy that keeps them"
        )


def left_out(groups: Sequence[Group], found: Branches, count: int) -> tuple[str, ...]:
    """The groups that are gone when the first ``count`` branches are."""
    return shallow.together(groups, [one.group for one in found.order[:count]])


def count(found: Branches, gone: Collection[str]) -> int:
    """How many branches have gone with the groups ``gone``."""
    return sum(name in gone for name in found.removable)


def start(
    bench: Workbench,
    network: networks.Network,
    groups: Sequence[Group],
    gone: tuple[str, ...],
    *,
    name: str,
) -> Start:
    """The network without the groups ``gone``, exported to the folder's networks as ``name``."""
    path = bench.folder.networks / f"{name}.onnx"
    if not path.exists():
        example = bench.data.example
        draft = path.with_suffix(".draft.onnx")
        networks.export_onnx(branches.without(network, groups, example, gone), example, draft)
        draft.replace(path)
    return Start(
        groups=shallow.remaining(groups, gone),
        kernels=bench.kernels(path),
        size_bytes=path.stat().st_size,
        left_out=gone,
    )


def depths(
    costs: Sequence[NetworkCosts],
    options: Mapping[str, tuple[Option, ...]],
    limits: Limits,
    found: Branches,
) -> tuple[int, ...]:
    """How many branches are left out in the starts that are tried, from none, at most three.

    As few as it takes for full widths to keep the limit on the latency (on the size where there is
    none) by what is nearly predicted (``NetworkCosts.costs_without``), all in the one precision
    that is the quickest, or all that can go; and some fewer. ``costs`` are those of the whole
    network, by the coverages of the bound that are tried in turn.
    """
    groups = costs[0].groups
    prunable = any(
        option.channels < group.channels for group in groups for option in options[group.name]
    )
    if not prunable or not found.order:
        return (0,)
    most = len(found.order)
    gone = [shallow.unread(groups, left_out(groups, found, n)) for n in range(most + 1)]
    choices = _uniform(options)
    enough = next(
        (
            n
            for held in costs
            for n in range(most + 1)
            if any(_fits(held.costs_without(choice, gone[n]), limits) for choice in choices)
        ),
        most,
    )
    return tuple(sorted({0, int(BETWEEN * enough), enough}))


def _uniform(options: Mapping[str, tuple[Option, ...]]) -> list[dict[str, Option]]:
    """Full widths, and as far as each group has it one precision."""
    precisions = dict.fromkeys(option.precision for own in options.values() for option in own)
    return [
        {
            name: max(own, key=lambda o: (o.channels, o.precision == precision))
            for name, own in options.items()
        }
        for precision in precisions
    ]


def _fits(costs: Costs, limits: Limits) -> bool:
    if limits.latency_s is not None:
        return costs.upper_s <= limits.latency_s
    return limits.size_bytes is None or costs.size_bytes <= limits.size_bytes
