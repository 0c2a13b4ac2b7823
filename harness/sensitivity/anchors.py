"""What a few strategies lose, tried in memory: the points that a score's meaning is read off.

A summed sensitivity is a second-order estimate of a loss in nats. How many points of accuracy it
stands for differs from network to network, so a handful of allocations over the whole range
(uniform widths, allocated ones, rounded, both) are built as far as costs little, without training
(``untrained.Judge``), and judged on images that nobody trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor, nn

from harness.errors import ConfigError
from harness.networks import TOP1, Metric, fingerprint
from harness.networks.structure import outputs_of
from harness.records import Group, Option, Strategy, StrategyEntry
from harness.sensitivity.results import Sensitivities, digest, kept_as
from harness.sensitivity.untrained import Judge

__all__ = ["Anchor", "Anchors", "Images", "anchor_choices", "anchors", "split_score"]

Choice = Mapping[str, Option]
Array = npt.NDArray[Any]
# Shares of channels that uniform anchors keep, and that allocated ones keep of the weights that
# pruning could remove.
UNIFORM = (7 / 8, 3 / 4, 1 / 2)
ALLOCATED = (0.8, 0.6, 0.4)
# Part of every cache key: raise it when what an anchor is changes.
FORMULA = 3
# Images that layers are fitted on, and those that are judged at a time.
FITTED, BATCH = 128, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What losses are predicted from: images to score and fit on, and others to try anchors on.

    On ``judged`` images the network should not have been trained: it is too sure of those, and they
    tell too little. ``targets`` are theirs, as ``metric`` wants them; None for a classifier whose
    own odds are taken as right. int8 weights have so many bits and activations are ``symmetric`` as
    the board's runtime wants it (``compression.quantize.form_of``).
    """

    scored: Tensor
    judged: Tensor
    targets: Tensor | None = None
    metric: Metric = TOP1
    weight_bits: int = 8
    symmetric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One allocation that was tried: its score, and the points of the metric that it lost.

    ``pruning`` is the summed sensitivity of its widths alone, ``rounding`` the rest (nats).
    ``changed`` is the share of images that it puts into another class, None where there are none.
    """

    label: str
    pruning: float
    rounding: float
    drop: float
    changed: float | None
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Anchors of one network; ``most`` are the points that there are to lose (above chance).

    ``labelled`` is whether targets were at hand, by which the network's odds were put right.
    Version history: 1, the first.
    """

    anchors: tuple[Anchor, ...]
    most: float
    labelled: bool
    schema_version: int = 1


def split_score(sensitivities: Sensitivities, choice: Choice) -> tuple[float, float]:
    """The summed sensitivity of ``choice``: of its widths alone, and what rounding adds to it.

    A width's own is that of the same channels in fp32; where fp32 was not scored, what the option
    costs beyond the whole group in its precision.
    """
    pruning = rounding = 0.0
    for name, option in choice.items():
        options, values = sensitivities.options[name], sensitivities.values[name]
        value = values[options.index(option)]
        exact = Option(channels=option.channels, precision="fp32")
        whole = max(other.channels for other in options)
        if exact in options:
            own = values[options.index(exact)]
        else:
            full = Option(channels=whole, precision=option.precision)
            own = max(value - values[options.index(full)], 0.0) if full in options else value
        # Rounding a pruned group can make up for a little of its loss: nothing is gained by it.
        own = min(own, value)
        pruning += own
        rounding += value - own
    return pruning, rounding


def anchor_choices(
    groups: Sequence[Group], sensitivities: Sensitivities, numbers: Mapping[str, int]
) -> dict[str, dict[str, Option]]:
    """The allocations to be tried by their labels, of the options that were scored.

    ``numbers`` are the weights of each group's producers. Allocations that are the same as one
    before them, or as the untouched network, are left out.
    """
    options = sensitivities.options
    whole = {group.name: _nearest(options[group.name], group.channels) for group in groups}
    tried: dict[str, dict[str, Option]] = {}
    for keep in UNIFORM:
        tried[f"{keep:.3g} of all channels"] = {
            group.name: _nearest(options[group.name], keep * group.channels) for group in groups
        }
    for share in ALLOCATED:
        tried[f"{share:.3g} of the removable weights"] = _allocated(
            groups, sensitivities, numbers, share
        )
    if any(option.precision == "int8" for own in options.values() for option in own):
        by_depth = [group.name for group in groups]
        tried["int8"] = _rounded(options, whole, by_depth)
        tried["int8 in every other group"] = _rounded(options, whole, by_depth[::2])
        for keep, how in (
            (UNIFORM[1], "of all channels"),
            (ALLOCATED[1], "of the removable weights"),
        ):
            before = next(own for label, own in tried.items() if label.startswith(f"{keep:.3g} of"))
            tried[f"{keep:.3g} {how}, int8"] = _rounded(options, before, by_depth)
    seen: list[dict[str, Option]] = [whole]
    found = {}
    for label, choice in tried.items():
        if choice not in seen:
            seen.append(choice)
            found[label] = choice
    return found


def _nearest(options: Sequence[Option], channels: float) -> Option:
    """The option in full precision (the most exact there is) of the width next to ``channels``."""
    exact = [option for option in options if option.precision == "fp32"] or list(options)
    return min(exact, key=lambda option: (abs(option.channels - channels), option.channels))


def _rounded(
    options: Mapping[str, Sequence[Option]], choice: Choice, names: Sequence[str]
) -> dict[str, Option]:
    """``choice`` with the groups in ``names`` in int8, where they have that at their width."""
    result = dict(choice)
    for name in names:
        rounded = Option(channels=choice[name].channels, precision="int8")
        if rounded in options[name]:
            result[name] = rounded
    return result


def _allocated(
    groups: Sequence[Group],
    sensitivities: Sensitivities,
    numbers: Mapping[str, int],
    share: float,
) -> dict[str, Option]:
    """Full-precision widths of least sensitivity that leave ``share`` of what could be removed.

    By one price on a weight, found by bisection; a group's weights are taken to go with its own
    channels alone.
    """

    def at(price: float) -> tuple[dict[str, Option], float]:
        choice, left = {}, 0.0
        for group in groups:
            own = sensitivities.options[group.name]
            values = dict(zip(own, sensitivities.values[group.name], strict=True))
            exact = [option for option in own if option.precision == "fp32"] or list(own)

            def cost(option: Option, group: Group = group, values: Mapping[Option, float] = values):  # type: ignore[no-untyped-def]
                weights = numbers[group.name] * option.channels / group.channels
                return values[option] + price * weights

            choice[group.name] = min(exact, key=cost)
            left += numbers[group.name] * choice[group.name].channels / group.channels
        return choice, left

    low, high = -30.0, 10.0  # powers of ten: from a price that cuts nothing to one that cuts all
    least = at(10**high)[1]
    wanted = least + share * (sum(numbers.values()) - least)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at(10**middle)[1] > wanted else (low, middle)
    return at(10**high)[0]


def anchors(
    network: nn.Module,
    groups: Sequence[Group],
    sensitivities: Sensitivities,
    images: Images,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Anchors:
    """What the anchors of a network lose, each built in memory as far as costs little.

    What a classifier's variant loses is read off the network's own odds: if they are right, one
    that says ``v`` where the network says ``o`` loses ``p(o) - p(v)`` on average, which is known
    from fewer images than counts of right classes are. Targets put the odds right by one
    temperature; the metric of other networks wants them. With ``cache``, a folder, the result is
    kept there. ``progress(done, of)`` counts anchors. Raises BuildError where one cannot be built.
    """

    def compute() -> Anchors:
        judge = Judge(
            network,
            groups,
            images.scored[:FITTED],
            classes=False,
            weight_bits=images.weight_bits,
            symmetric=images.symmetric,
            seed=seed,
        )
        points = _Points(network, images)
        numbers = _numbers(network, groups)
        found = []
        choices = anchor_choices(groups, sensitivities, numbers)
        for label, choice in choices.items():
            variant = judge.variant(_strategy(label, groups, sensitivities, choice, seed))
            drop, changed = points.lost(variant)
            pruning, rounding = split_score(sensitivities, choice)
            found.append(
                Anchor(
                    label=label,
                    pruning=pruning,
                    rounding=rounding,
                    drop=drop,
                    changed=changed,
                    images=len(images.judged),
                )
            )
            if progress is not None:
                progress(len(found), len(choices))
        return Anchors(anchors=tuple(found), most=points.most, labelled=images.targets is not None)

    if cache is None:
        return compute()
    settings = (FORMULA, images.metric.name, images.weight_bits, images.symmetric, seed)
    parts = [str(settings), fingerprint(network), sensitivities.to_json()]
    key = digest([*parts, images.scored[:FITTED], images.judged, images.targets])
    return kept_as(Anchors, cache, f"anchors-{key[:32]}", compute)


def _numbers(network: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
    """The weights of each group's producers."""
    return {
        group.name: sum(
            sum(p.numel() for p in network.get_submodule(name).parameters())
            for name in group.producers
        )
        for group in groups
    }


def _strategy(
    label: str,
    groups: Sequence[Group],
    sensitivities: Sensitivities,
    choice: Choice,
    seed: int,
) -> Strategy:
    entries = tuple(
        StrategyEntry(
            group=group.name,
            kept=sensitivities.kept(group.name, choice[group.name].channels),
            of=group.channels,
            precision=choice[group.name].precision,
        )
        for group in groups
    )
    return Strategy(label=label, methods=("prune",), entries=entries, epochs=0, seed=seed)


class _Points:
    """Points of the metric that variants lose against the original on the same images."""

    def __init__(self, network: nn.Module, images: Images) -> None:
        targets, metric = images.targets, images.metric
        if targets is None and not metric.classifies:
            raise ConfigError(
                f"what a variant loses by {metric.name} cannot be told without targets; give "
                "images that have them"
            )
        self._images, self._metric = images.judged, metric
        self._targets = None if targets is None else targets.numpy()
        outputs = self._outputs(network)
        self._reached = 0.0 if self._targets is None else metric.of(outputs, self._targets)
        self._classes, chance = None, 0.0
        if metric.classifies:
            self._classes, chance = outputs[0].argmax(1), 1 / outputs[0].shape[1]
            self._odds = _odds(outputs[0], self._targets)
            if self._targets is None:
                self._reached = float(self._odds.max(1).mean())
        self.most = max(100 * (self._reached - chance), 1.0)

    def _outputs(self, network: nn.Module) -> list[Array]:
        parts = [
            outputs_of(network, self._images[start : start + BATCH])
            for start in range(0, len(self._images), BATCH)
        ]
        return [torch.cat(part).numpy() for part in zip(*parts, strict=True)]

    def lost(self, variant: nn.Module) -> tuple[float, float | None]:
        """The points that ``variant`` loses, and the share of images in another class."""
        outputs = self._outputs(variant)
        if self._classes is None:
            assert self._targets is not None
            return 100 * (self._reached - self._metric.of(outputs, self._targets)), None
        classes, rows = outputs[0].argmax(1), np.arange(len(self._classes))
        lost = self._odds[rows, self._classes] - self._odds[rows, classes]
        return 100 * float(lost.mean()), float((classes != self._classes).mean())


def _odds(logits: Array, targets: Array | None) -> Array:
    """The classes' odds ``(n, classes)``, at the temperature that is right for the targets.

    A network is surer than it is right: at a temperature of 1 it overstates what a changed class
    costs. Guo et al., ICML 2017, section 4.2: the temperature of least cross-entropy.
    """
    scores = logits.astype(np.float64)

    def log_odds(temperature: float) -> Array:
        scaled = scores / temperature
        found: Array = scaled - logsumexp(scaled, axis=1, keepdims=True)
        return found

    temperature = 1.0
    if targets is not None:
        rows = np.arange(len(scores))
        temperature = math.exp(
            minimize_scalar(
                lambda log: -float(log_odds(math.exp(log))[rows, targets].mean()),
                bounds=(-2.0, 3.0),
                method="bounded",
            ).x
        )
    return np.exp(log_odds(temperature))
