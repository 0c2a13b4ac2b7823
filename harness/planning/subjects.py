"""What strategies are applied to: the original network, or a student that takes its place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.errors import ConfigError
from harness.planning.allotting import Allotter, Allowed, Choice
from harness.planning.costs import with_losses
from harness.planning.loss import LossModel, added, compressed
from harness.records import (
    Estimate,
    Group,
    Option,
    Predicted,
    Requirements,
    Strategy,
    StrategyEntry,
)
from harness.sensitivity.anchors import split_score
from harness.sensitivity.results import Sensitivities

__all__ = ["Pricer", "Subject"]

# What an allocation is predicted to cost in everything but accuracy.
Pricer = Callable[[Choice], Predicted]


def _alike(unknown: Sequence[str], known: Sequence[str]) -> str:
    """The layers whose names are closest to those that are not there; all, where none is close."""
    close = [name for one in unknown for name in difflib.get_close_matches(one, known)]
    if close:
        return f"the closest are {', '.join(dict.fromkeys(close))}"
    return f"there are {', '.join(known)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One network that can be compressed, with all that predicts what becomes of it.

    ``student`` names the one that takes the original's place (``file.py:factory``; empty: it is the
    original), and ``replacing`` the points that this alone loses. ``loss`` is None where nobody
    has images, or the network is not trained, and no drop is predicted; the sensitivities then only
    say which allocation is milder. ``untrained``: there are images, and the network has nothing to
    lose on them. The options are those that the board can use.
    """

    groups: tuple[Group, ...]
    allotter: Allotter
    sensitivities: Sensitivities
    pricer: Pricer
    loss: LossModel | None = None
    student: str = ""
    replacing: Estimate | None = None
    untrained: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that some group may run in."""
        found = (o.precision for own in self.allotter.options.values() for o in own)
        return tuple(dict.fromkeys(found))

    def untouched(self, requirements: Requirements) -> tuple[frozenset[str], frozenset[str]]:
        """The groups that must keep their width, and those that must stay in full precision.

        Those that make or read the channels of a layer that is to be kept; those that make them.
        ConfigError where such a layer is not there.
        """
        if self.student:  # another network: its layers are its own
            return frozenset(), frozenset()
        known = sorted({layer for group in self.groups for layer in group.producers})
        if unknown := sorted(set(requirements.keep) - set(known)):
            raise ConfigError(
                f"keep: the network has no layer {', '.join(unknown)}; {_alike(unknown, known)}"
            )
        keep = set(requirements.keep)
        made = {g.name for g in self.groups if keep & set(g.producers)}
        read = {g.name for g in self.groups if keep & set(g.consumers)}
        return frozenset(made | read), frozenset(made)

    def allowed(
        self,
        requirements: Requirements,
        *,
        prune: bool,
        precisions: Sequence[str],
        width: float = 1.0,
    ) -> Allowed:
        """The options, by index, of one way to compress; no group wider than the share ``width``.

        Layers that are to be kept have full width and fp32 whatever is allowed elsewhere.
        """
        wide, exact = self.untouched(requirements)
        whole = {group.name: group.channels for group in self.groups}
        caps = {}
        for group in self.groups:
            widths = {option.channels for option in self.allotter.options[group.name]}
            cap = self._cap(widths, width * group.channels)
            caps[group.name] = group.channels if group.name in wide else cap

        def may(name: str, option: Option) -> bool:
            runs = ("fp32",) if name in exact else precisions
            if option.precision not in runs or option.channels > caps[name]:
                return False
            return option.channels == caps[name] or (
                prune and name not in wide and option.channels <= whole[name]
            )

        return self.allotter.allowed(may)

    @staticmethod
    def _cap(widths: set[int], channels: float) -> int:
        """The width nearest to so many channels."""
        return min(widths, key=lambda width: (abs(width - channels), width))

    def uniform(self, allowed: Allowed, *, keep: float) -> dict[str, Option]:
        """Every group at the width nearest to a share of its channels, of what is ``allowed``.

        In the lowest precision that is allowed there.
        """
        choice = {}
        for group, own in zip(self.groups, allowed, strict=True):
            options = [self.allotter.options[group.name][j] for j in own]
            channels = self._cap({option.channels for option in options}, keep * group.channels)
            at = [option for option in options if option.channels == channels]
            choice[group.name] = at[-1]  # the exact ones come first
        return choice

    def predicted(self, choice: Choice, *, epochs: int, images: int) -> Predicted:
        """What a choice comes to, with what it is predicted to lose after so many epochs."""
        found = with_losses(self.pricer(choice), self._losses(choice))
        if self.loss is None:
            return replace(found, accuracy_drop=self._untaught(found, choice))
        pruning, rounding = self.score(choice)
        drop = self.loss.predict(pruning, rounding, epochs=epochs, images=images)
        if self.replacing is not None:
            drop = added(self.replacing, drop)
        elif not pruning and not rounding:
            drop = Estimate.exactly(0.0, note="the original itself")
        return replace(found, accuracy_drop=drop)

    def _untaught(self, found: Predicted, choice: Choice) -> Estimate | None:
        """What a student loses that nobody taught yet; None of any other network."""
        whole = self.allotter.full()
        if self.replacing is None or choice == whole:
            return self.replacing
        if not self.untrained:  # nobody has images: of the others no drop is predicted either
            return None
        return compressed(
            self.replacing,
            macs_share=found.macs / self.pricer(whole).macs,
            rounded=any(option.precision == "int8" for option in choice.values()),
        )

    def _losses(self, choice: Choice) -> dict[str, float]:
        """Each layer's share of the summed sensitivity; layers of one group share alike."""
        return {
            layer: value / len(group.producers)
            for group, value in zip(self.groups, self.allotter.losses(choice), strict=True)
            for layer in group.producers
        }

    def score(self, choice: Choice) -> tuple[float, float]:
        """The summed sensitivity of a choice's widths, and what rounding adds."""
        return split_score(self.sensitivities, choice)

    def cuts(self, choice: Choice) -> bool:
        """Whether a choice takes channels away."""
        return any(choice[group.name].channels < group.channels for group in self.groups)

    def strategy(self, label: str, choice: Choice, *, epochs: int, seed: int) -> Strategy:
        """The strategy file's content: a student is taught first, what was pruned is trained.

        Files are named after the label, without what cannot stand in a file's name. fp16 is asked
        of the board when the engine is built, and is no method of a file.
        """
        entries = tuple(
            StrategyEntry(
                group=group.name,
                kept=self.sensitivities.kept(group.name, choice[group.name].channels),
                of=group.channels,
                precision=choice[group.name].precision,
            )
            for group in self.groups
        )
        methods = ["distill"] if self.student else []
        if self.cuts(choice):
            methods += ["prune", "distill"] if epochs else ["prune"]
        if any(entry.precision == "int8" for entry in entries):
            methods.append("quantize")
        return Strategy(
            label=label.replace("/", "_").replace(":", " "),
            methods=tuple(dict.fromkeys(methods)),
            entries=entries,
            epochs=epochs,
            seed=seed,
            student=self.student,
        )

    def layers(self, groups: Sequence[int]) -> tuple[str, ...]:
        """The layers of the groups of these indices."""
        return tuple(layer for index in groups for layer in self.groups[index].producers)
