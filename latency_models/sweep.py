"""What to measure to calibrate a board: kernels packed into a few networks, and whole networks.

In two stages: ``plan`` chooses what tells most about the parameters at the datasheet's prior,
``extend`` what tells most at a fitted model, more of it where that model is far off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from latency_models import choice, graph, pool, probes, profiles, synthetic
from latency_models.building import SCAFFOLD, Builder
from latency_models.calibration import LatencyModel
from latency_models.errors import CalibrationError
from latency_models.kernels import Kernel, Work
from latency_models.matching import ProfileRow
from latency_models.probes import ProbeNetwork
from latency_models.profiles import BoardProfile

__all__ = [
    "CALL_BUDGET_S",
    "FIRST_SHARE",
    "MAX_KERNELS",
    "PACKED_NETWORKS",
    "PackedNetwork",
    "ProbeNetwork",
    "SweepPlan",
    "collect",
    "extend",
    "plan",
    "yardstick",
]

# Kernels chosen for a sweep; the reorders and casts between them are measured along the way.
MAX_KERNELS = 100
# How many of them, and of the seconds, the first stage takes.
FIRST_SHARE = 0.6
# Seconds of one call of all packed networks: of three minutes' measuring, at 60 and some runs each,
# what is left beside the probes.
CALL_BUDGET_S = 2.0
# Branches in one packed network: few networks mean few sessions. With 32 convolutions take 0 to 3 %
# longer than with 8; of what only moves tensors some takes a third longer (onnxruntime 1.31).
_BRANCHES = 32
# So many networks the two stages come to, in one precision or in two.
PACKED_NETWORKS = 4
# The reference's own shapes count this much, so that about a third of what is chosen is theirs.
_NEAR = 2.0
# A neighbourhood that takes a tenth of some network's time counts this many tenths more than one
# that takes none.
_TIME = 5.0
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedNetwork:
    """Many kernels side by side in one network, each with an input and an output of its own.

    ``expected`` gives the work of every kernel, reorders and casts included, by kernel name, but
    for those that only feed others, as ``runtime`` (a key of ``fusion.RUNTIMES``) executes it.
    ``call_s`` is the predicted time of a call.
    """

    name: str
    precision: str
    runtime: str
    model: ModelProto
    expected: Mapping[str, Work]
    call_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What to measure: ``networks`` by the profiler, ``probes`` end to end.

    ``kernels`` is how many were chosen, earlier stages' included; reorders, casts and what feeds
    and drains them come along. ``pool`` is what they were chosen from, ``chosen`` the indices.
    ``needed`` are the kinds that networks are made of, which come first; ``slower`` is how much
    longer the board takes than its profile says.
    """

    networks: tuple[PackedNetwork, ...]
    probes: tuple[ProbeNetwork, ...]
    kernels: int
    pool: tuple[pool.Candidate, ...]
    chosen: tuple[int, ...]
    profile: BoardProfile
    runtime: str
    weights: tuple[float, ...]
    needed: frozenset[tuple[str, str]]
    slower: float
    max_kernels: int
    call_budget_s: float
    seed: int


def plan(
    reference: Sequence[Kernel] = (),
    *,
    precisions: Sequence[str] = ("fp32", "int8"),
    runtime: str = "onnxruntime-cpu",
    profile: BoardProfile | None = None,
    whole: Sequence[ProbeNetwork] | None = None,
    slower: float = 1.0,
    max_kernels: int = MAX_KERNELS,
    call_budget_s: float = CALL_BUDGET_S,
    seed: int = 0,
) -> SweepPlan:
    """The first stage for networks like ``reference`` (their kernels), and ``whole`` networks.

    Of everything in ``pool.candidates`` the kernels that tell most about the parameters of a board
    of ``profile`` for what they cost: at most 60 % of ``max_kernels``, and of ``call_budget_s``
    predicted seconds for one call of all of them. ``whole`` is all of ``probes.probes`` unless
    given. ``CalibrationError`` if none of ``precisions`` can be built.
    """
    known = graph.precisions_of(runtime)
    wanted = [p for p in precisions if p in known]
    if not wanted:
        raise CalibrationError(
            f"no kernels can be built in {', '.join(precisions)}: {' and '.join(known)} can"
        )
    profile = profile or profiles.load("generic-cpu")
    candidates = pool.candidates(reference, precisions=wanted, runtime=runtime)
    if whole is None:
        whole = tuple(probes.probes(wanted, runtime=runtime, seed=seed))
    networks = [probe.works for probe in whole]
    if reference:
        networks.append(tuple(graph.work(kernel) for kernel in reference))
    empty = SweepPlan(
        networks=(),
        probes=tuple(whole),
        kernels=0,
        pool=candidates,
        chosen=(),
        profile=profile,
        runtime=runtime,
        weights=tuple(_weights(candidates, networks, profile)),
        needed=frozenset((w.kind, p) for works in networks for w in works for p in wanted),
        slower=slower,
        max_kernels=max_kernels,
        call_budget_s=call_budget_s,
        seed=seed,
    )
    blocks = choice.information([c.kernels for c in candidates], profile)
    seconds = slower * choice.predicted_seconds(_everything(candidates), profile)
    return _grown(empty, blocks, seconds, share=FIRST_SHARE)


def extend(
    first: SweepPlan, model: LatencyModel, samples: Sequence[tuple[Work, float]]
) -> SweepPlan:
    """The second stage after ``first``, whose ``samples`` (works and seconds) gave ``model``.

    Its networks hold what is left of the kernels and seconds, chosen at the fitted parameters and
    where the residuals of ``samples`` are large; it has no probes. The same for the same samples.
    """
    blocks = choice.information(
        [c.kernels for c in first.pool],
        first.profile,
        model=model,
        misfit=choice.misfits(samples, model),
    )
    seconds = choice.predicted_seconds(_everything(first.pool), first.profile, model=model)
    return _grown(first, blocks, seconds, share=1.0)


def _grown(before: SweepPlan, blocks: Sequence[Array], seconds: Array, share: float) -> SweepPlan:
    """``before`` with the kernels that fit into ``share`` of the limits, packed into networks."""
    costs = np.stack([[float(len(c.kernels)) for c in before.pool], seconds], axis=1)
    spent = costs[list(before.chosen)].sum(axis=0)
    limits = np.array([float(before.max_kernels), before.call_budget_s])
    # What networks are made of comes first; by the end there is something of everything.
    every = {(w.kind, w.precision) for c in before.pool for w in c.kernels}
    needed = every if before.chosen else before.needed
    chosen = choice.greedy(
        blocks,
        costs,
        np.maximum(share * limits - spent, 1e-9),
        held=before.chosen,
        weights=np.array(before.weights),
        covers=[{(w.kind, w.precision) for w in c.kernels} & needed for c in before.pool],
    )
    everything = (*before.chosen, *chosen)
    return replace(
        before,
        networks=tuple(_packed_by_precision(before, chosen, seconds)),
        probes=() if before.chosen else before.probes,
        kernels=sum(len(before.pool[i].kernels) for i in everything),
        chosen=everything,
    )


def _weights(
    candidates: Sequence[pool.Candidate],
    networks: Sequence[Sequence[Work]],
    profile: BoardProfile,
) -> Array:
    """How much each candidate counts: by the largest share of its like in a network's time.

    An error in what takes little time, or in shapes that no network has, is little, however large.
    """
    shares: dict[tuple[object, ...], float] = {}
    for works in networks:
        seconds = choice.predicted_seconds([[w] for w in works], profile)
        spent: dict[tuple[object, ...], float] = {}
        for work, took in zip(works, seconds, strict=True):
            cell = choice.neighbourhood(work)
            spent[cell] = spent.get(cell, 0.0) + float(took / seconds.sum())
        shares |= {cell: max(share, shares.get(cell, 0.0)) for cell, share in spent.items()}
    times = [
        np.mean([shares.get(choice.neighbourhood(w), 0.0) for w in c.kernels]) for c in candidates
    ]
    near = [_NEAR if c.branch.near else 1.0 for c in candidates]
    weights: Array = (1 + _TIME * np.array(times)) * np.array(near)
    return weights


def _everything(candidates: Sequence[pool.Candidate]) -> list[tuple[Work, ...]]:
    return [(*c.kernels, *c.along) for c in candidates]


def _packed_by_precision(
    before: SweepPlan, chosen: Sequence[int], seconds: Array
) -> Iterator[PackedNetwork]:
    stage = 2 if before.chosen else 1
    for precision in dict.fromkeys(c.precision for c in before.pool):
        own = [i for i in chosen if before.pool[i].precision == precision]
        count = math.ceil(len(own) / _BRANCHES)
        for number in range(count):
            # Each network holds early and late choices, so that none is all large ones.
            part = own[number::count]
            builder = Builder(
                f"sweep-{stage}-{precision}-{number}", seed=before.seed + 10 * stage + number
            )
            for index in part:
                before.pool[index].branch.build(builder)
            yield _packed(builder, precision, before.runtime, call_s=float(seconds[part].sum()))


def _packed(builder: Builder, precision: str, runtime: str, *, call_s: float) -> PackedNetwork:
    model = builder.model()
    if precision == "int8":
        model = synthetic.quantized(model, symmetric=graph.is_gpu(runtime))
    works = {
        kernel.name: graph.work(kernel)
        for kernel in graph.read(model, runtime=runtime, precision=graph.base_of(precision))
        if not (kernel.nodes and kernel.name.startswith(SCAFFOLD))
    }
    return PackedNetwork(
        name=builder.name,
        precision=precision,
        runtime=runtime,
        model=model,
        expected=works,
        call_s=call_s,
    )


def collect(
    packed: PackedNetwork, kernel_times: Sequence[ProfileRow]
) -> tuple[tuple[Work, float], ...]:
    """The works of ``packed`` with the seconds that the profile ``kernel_times`` gives them.

    Kernels that the profile does not show (the runtime did something else) are left out.
    ``CalibrationError`` if that is most of those that stand for nodes.
    """
    base = graph.base_of(packed.precision)
    kernels = graph.read(packed.model, runtime=packed.runtime, precision=base)
    times = graph.match(kernels, kernel_times)
    found = tuple(
        (work, times[name]) for name, work in packed.expected.items() if times.get(name, 0.0) > 0
    )
    # GPUs move data between precisions in other places than are known here.
    nodes = [k.name for k in kernels if k.nodes and k.name in packed.expected]
    shown = sum(times.get(name, 0.0) > 0 for name in nodes)
    if 2 * shown < len(nodes):
        raise CalibrationError(
            f"the profile of {packed.name} shows {shown} of its {len(nodes)} "
            "kernels: the runtime fuses otherwise than is known here; its version?"
        )
    return found


def yardstick() -> ModelProto:
    """A small network in fp32 to measure a board's pace by."""
    return next(probes.probes(("fp32",))).model
