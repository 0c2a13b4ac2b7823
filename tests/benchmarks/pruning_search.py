"""How a row of the pruning benchmark is found: allocated, measured, built, judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness import networks
from harness.compression import distill
from harness.records import Interval, Option, Strategy
from harness.strategies import generator
from harness.strategies.proposal import ANCHORED, MISSED, propose
from harness.strategies.requirements import Limits
from tests.benchmarks.pruning_bench import PRECISIONS, TEMPERATURE, Bench, Start
from tests.benchmarks.ratios import FINAL, PLAN, surest_ratio, surest_ratios

__all__ = ["Plan", "Search"]

ROUNDS = 3
# Starts with as many branches left out as are needed at full widths, or so many fewer; one start
# less where judging what comes of it takes minutes.
FEWER = {"resnet56": (0, 1, 2), "efl0": (0, 2)}
# What was built is looked for again where its own measurement misses the budget, at less than it.
BUILDS, AGAIN = 3, 0.99
# What is left of fp32's time when as many branches go as may, about.
LEAST = {"fp32": 0.4, "int8": 0.2}
# What took so many times its budget alone may keep it at this computer's other pace.
PACES = 1.4
# An allocation that comes as near to its budget as this is not improved on by measuring more.
NEAR = 0.97
# What files are predicted to weigh is not exact: an allocation aims at this share of what they may.
SMALLER = 0.99
# So many of the calibration images judge what was fitted to the others.
JUDGING = 60
# Nothing is measured meanwhile.
TUNING_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One row to be found: the methods it has, its share of fp32's time, and the training."""

    task: str
    network: str
    methods: tuple[str, ...]
    latency: float
    size: float | None = None
    tuned: bool = False
    # What is rounded to int8 only after the widths have been chosen for fp32.
    afterwards: bool = False

    @property
    def label(self) -> str:
        """What the row's files are called by."""
        how = "then".join(self.methods) if self.afterwards else "+".join(self.methods)
        small = "" if self.size is None else f"-{self.size:g}"
        return f"{self.network}-{how}-{self.latency:g}{small}{'-tuned' if self.tuned else ''}"

    @property
    def setting(self) -> str:
        """What stands in the table."""
        if self.afterwards:
            how = "pruned, then quantized"
        else:
            joint = len(self.methods) > 1
            how = "joint" if joint else {"prune": "pruned", "quantize": "int8"}[self.methods[0]]
        return f"{how}, {'BN + 2 epochs KD lr 0.01' if self.tuned else 'no training, refitted'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A strategy on a start, and what was measured of it."""

    branches: int
    strategy: Strategy
    ratio: float
    interval: Interval
    loss: float
    # Of its file, as a share of fp32's.
    size: float
    path: Path

    @property
    def mixed(self) -> bool:
        """Whether its groups have more than one precision."""
        return len({entry.precision for entry in self.strategy.entries}) > 1

    def within(self, plan: Plan, aim: float) -> bool:
        """Whether it was measured to keep the budgets, of the latency's this share."""
        small = plan.size is None or self.size <= plan.size
        return small and self.interval.high <= aim * plan.latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated:
    """What the rounds of allocating and measuring came to."""

    branches: int
    strategy: Strategy
    rounds: int
    # Whether it was measured to keep the budgets.
    fits: bool
    note: str


class Search:
    """The search for one row on a network's bench."""

    def __init__(self, bench: Bench, plan: Plan) -> None:
        self.bench, self.plan = bench, plan
        self.tried: list[Tried] = []
        # A share of the budget: less than all once what was built has missed it.
        self.aim = 1.0

    def found(self) -> dict[str, Any]:
        """The row: allocated, built, measured and evaluated."""
        bench, plan = self.bench, self.plan
        stages = bench.bench.folder
        wall_s = 0.0
        for number in range(1, BUILDS + 1):
            label = plan.label + (f"-again-{number}" if number > 1 else "")
            allocated = stages.stage(f"allocate {label}", Allocated, self._allocated)
            start, strategy = self._start(allocated.branches), allocated.strategy
            wall_s += stages.stages[-1].wall_s
            stem = bench.folder / "variants" / label
            path = self._built(start, strategy, stem)
            ratio, interval = surest_ratio(bench.session, bench.bench.baseline_path, path, FINAL)
            if interval.high <= plan.latency or not allocated.fits:
                break
            self.aim *= AGAIN * plan.latency / interval.high
        found = bench.quality(path)
        untrained = Path(f"{stem}-untrained.onnx")
        size = path.stat().st_size / bench.bench.baseline_size_bytes
        kept = sum(len(entry.kept) for entry in strategy.entries)
        channels = sum(group.channels for group in bench.groups)
        rounded = sum(entry.precision == "int8" for entry in strategy.entries)
        return {
            "task": plan.task,
            "network": plan.network,
            "peer": "boardfit",
            "setting": plan.setting,
            "budget": f"latency<={plan.latency:g}" + (f" size<={plan.size:g}" if plan.size else ""),
            "achieved": f"size {size:.3f} channels {kept / channels:.3f} "
            f"branches {allocated.branches} left out",
            "latency_ratio": ratio,
            "latency_low": interval.low,
            "latency_high": interval.high,
            "met": interval.high <= plan.latency and (plan.size is None or size <= plan.size),
            "wall_s": wall_s,
            "note": f"{allocated.note}; {allocated.rounds} tried; {rounded} of "
            f"{len(strategy.entries)} groups int8; n={len(bench.subject.test)}",
            "file": path.name,
            **found,
            # What two epochs on a few thousand images do to it.
            "untrained": bench.quality(untrained) if untrained.is_file() else None,
        }

    def _start(self, count: int) -> Start:
        return self.bench.start(count, sized=self.plan.size is not None)

    def _allocated(self) -> Allocated:
        """Of what was measured to fit, that which is nearest to the original once it is built.

        Where nothing fits, what came nearest to the budget. Allocations begin at networks without
        as many branches as would have to go if all else stayed whole, or some fewer.
        """
        tried, counts = self.tried, self._starts()
        for count in counts:
            for precisions in self._menus():
                self._rounds(count, precisions)
        self._measure_together()
        fitting = [one for one in tried if one.within(self.plan, self.aim)]
        # Where more branches go than it takes, nothing is better.
        fitting = [one for one in fitting if one.branches in counts] or fitting
        if not fitting:
            best = min(tried, key=lambda one: one.interval.high)
            note = f"out of reach, nearest {best.ratio:.3f}"
        else:
            # The predicted losses of one start compare; those of different ones do not. What is
            # rounded throughout may be worse by the sum and better in fact.
            least = {
                (one.branches, one.mixed): one for one in sorted(fitting, key=lambda one: -one.loss)
            }
            judged = {key: self._divergence(one) for key, one in least.items()}
            best = least[min(judged, key=judged.__getitem__)]
            note = "KL untrained, by branches left out: " + ", ".join(
                f"{count}{' mixed' if mixed else ''}: {judged[count, mixed]:.3f}"
                for count, mixed in sorted(judged)
            )
        return Allocated(
            branches=best.branches,
            strategy=best.strategy,
            rounds=len(tried),
            fits=bool(fitting),
            note=note,
        )

    def _starts(self) -> list[int]:
        """How many branches to begin without; full widths within the budget are looked for."""
        plan = self.plan
        if "prune" not in plan.methods:
            return [0]
        needed = self._needed(lambda one: one.interval.high <= self.aim * plan.latency)
        steps = FEWER[plan.network]
        found = {max(needed - fewer, 0) for fewer in steps}
        if plan.size is not None:
            small = self._needed(lambda one: one.within(plan, self.aim))
            found |= {max(small - fewer, needed) for fewer in steps}
        return sorted(found)

    def _needed(self, enough: Callable[[Tried], bool]) -> int:
        """As few branches left out as it takes for full widths; all that can go if none do."""
        bench, plan = self.bench, self.plan
        precision = "int8" if "quantize" in plan.methods and not plan.afterwards else "fp32"
        order = bench.order(plan.size is not None)
        low, high = -1, len(order) + 1
        # The share that a branch takes is about the same for all: a guess, then halves.
        middle = round((1 - plan.latency) / (1 - LEAST[precision]) * len(order))
        while high - low > 1:
            middle = min(max(middle, low + 1), high - 1)
            start = self._start(middle)
            choice = {
                group.name: Option(channels=group.channels, precision=precision)
                for group in start.groups
            }
            strategy = bench.strategy(plan.label, plan.methods, start, choice)
            one = self._measured("whole", middle, strategy, bench.sensitivities.total(choice))
            if enough(one):
                high = middle
            else:
                low = middle
            middle = (low + high) // 2
        return min(high, len(order))

    def _menus(self) -> list[tuple[str, ...]]:
        """The precisions that allocations choose from, a menu after the other."""
        plan = self.plan
        if plan.afterwards or plan.methods == ("prune",):
            return [("fp32",)]
        # What conversions between precisions take is predicted worst: without them as well.
        return [PRECISIONS, ("int8",)]

    def _measure_together(self) -> None:
        """Measure all that may fit in one campaign: they compare, whatever pace it is measured at.

        This computer was seen at two paces for minutes each, between which an int8 network took
        0.28 and 0.36 of fp32's time.
        """
        limit = PACES * self.aim * self.plan.latency
        close = [i for i, one in enumerate(self.tried) if one.ratio <= limit]
        if len(close) < 2:
            return
        bench = self.bench
        found = surest_ratios(
            bench.session,
            bench.bench.baseline_path,
            [self.tried[i].path for i in close],
            PLAN,
        )
        for i, (ratio, interval) in zip(close, found, strict=True):
            self.tried[i] = replace(self.tried[i], ratio=ratio, interval=interval)
            self._say(self.tried[i], "among all")

    def _say(self, one: Tried, name: str) -> None:
        self.bench.bench.folder.observer.warn(
            f"{self.plan.label} without {one.branches} branches, {name}: measured {one.ratio:.3f} "
            f"({one.interval.low:.3f} to {one.interval.high:.3f}) of {self.plan.latency:g}"
        )

    def _rounds(self, count: int, precisions: tuple[str, ...]) -> None:
        """Allocate on a start, measure, and allocate again with what was learned."""
        bench, plan = self.bench, self.plan
        start = self._start(count)
        options = generator.restrict(
            {group.name: bench.problem.options[group.name] for group in start.groups},
            start.groups,
            prune="prune" in plan.methods,
            precisions=precisions,
        )
        known, budget = len(self.tried), self.aim * plan.latency
        aim, coverages = budget, tuple[float, ...](ANCHORED)
        # Shares of fp32's file; 1 where none is asked for.
        most = size = plan.size or 1.0
        if plan.afterwards:
            # fp32's share is not int8's: it is found by measuring, as everything else.
            aim = min(1.0, 1.8 * budget)
        for number in range(1, ROUNDS + 1):
            proposal = propose(
                functools.partial(bench.costs, start),
                options,
                bench.sensitivities,
                self._limits(aim, size),
                label=f"{plan.label} {number}",
                epochs=0,
                seed=0,
                coverages=coverages,
            )
            name = "-".join([*precisions, str(number)])
            one = self._measured(name, count, proposal.strategy, proposal.loss)
            large = one.size > most
            near = NEAR * budget <= one.interval.high <= budget
            if len(self.tried) == known or (near and not large):
                break
            known = len(self.tried)
            if large:
                size *= most / one.size
                if one.interval.high <= budget:
                    continue
            # What the model still gets wrong after it has learned of this one.
            aim *= min(1.25, max(0.8, 0.985 * budget / one.interval.high))
            if aim >= 1:
                break
            coverages = MISSED if one.interval.high > budget else ANCHORED

    def _measured(self, name: str, count: int, strategy: Strategy, loss: float) -> Tried:
        """What was measured of a strategy; if it is new, the latency model is fitted again."""
        bench, plan = self.bench, self.plan
        strategy = _rounded(strategy) if plan.afterwards else strategy
        tried = self.tried
        for one in tried:
            if (strategy.entries, count) == (one.strategy.entries, one.branches):
                return one
        # A file of its own, which is there still when it is measured again.
        stem = bench.folder / "drafts" / f"{plan.label}-{len(tried)}-{count}-{name}"
        # What takes the time that the variant will take: cut and rounded, its weights as they are.
        start = self._start(count)
        path = bench.exported(
            bench.cut(start, strategy), start, strategy, stem, bench.images[:8], careful=False
        )
        ratio, interval = surest_ratio(bench.session, bench.bench.baseline_path, path, PLAN)
        tried.append(
            Tried(
                branches=count,
                strategy=strategy,
                ratio=ratio,
                interval=interval,
                loss=loss,
                size=path.stat().st_size / bench.bench.baseline_size_bytes,
                path=path,
            )
        )
        self._say(tried[-1], name)
        bench.learn(path, ratio)
        return tried[-1]

    def _limits(self, aim: float, share: float) -> Limits:
        bench = self.bench
        asked = self.plan.size is not None
        size = SMALLER * share * bench.bench.baseline_size_bytes if asked else None
        return Limits(latency_s=aim * bench.baseline.candidate.latency_s, size_bytes=size)

    def _divergence(self, one: Tried) -> float:
        """KL to the original of what is built without training, on images it has not seen."""
        bench = self.bench
        start = self._start(one.branches)
        network = bench.refit(start, one.strategy, bench.images[:-JUDGING])
        judging = bench.images[-JUDGING:]
        path = bench.exported(
            network,
            start,
            one.strategy,
            bench.folder / "judged" / f"{self.plan.label}-{one.branches}",
            bench.images[:-JUDGING],
            careful=True,
        )
        ours = torch.from_numpy(networks.onnx_logits(path, judging.numpy()))
        exact = torch.from_numpy(networks.onnx_logits(bench.bench.baseline_path, judging.numpy()))
        temperature = TEMPERATURE[bench.name]
        return float(
            distill.distillation_loss(ours, exact, None, temperature=temperature, alpha=0.0)
        )

    def _built(self, start: Start, strategy: Strategy, stem: Path) -> Path:
        bench = self.bench
        network = bench.refit(start, strategy, bench.images)
        stem.parent.mkdir(parents=True, exist_ok=True)
        if self.plan.tuned:
            assert bench.training is not None
            untrained = Path(f"{stem}-untrained")
            bench.exported(network, start, strategy, untrained, bench.images, careful=True)
            threads = torch.get_num_threads()
            torch.set_num_threads(TUNING_THREADS)
            network = distill.distill(
                network,
                bench.network,
                bench.training.train_images,
                bench.training.train_labels,
                **distill.FIXED_FINE_TUNING,
                checkpoint=Path(f"{stem}.checkpoint"),
            )
            torch.set_num_threads(threads)
        torch.save(network, f"{stem}.pt")
        return bench.exported(network, start, strategy, stem, bench.images, careful=True)


def _rounded(strategy: Strategy) -> Strategy:
    """The strategy with every group in int8."""
    entries = tuple(replace(entry, precision="int8") for entry in strategy.entries)
    return replace(strategy, entries=entries, methods=("prune", "quantize"))
