"""Groups of channels, the options they have, and the strategy that chooses."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.base import require_positive

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Channels that must be pruned together.

    ``producers`` are the layers whose output channels these are (several at a residual sum),
    ``consumers`` those that read them. A layer whose outputs must stay (the classifier) forms a
    group that is not ``prunable``: precision is its only choice. Where a grouped convolution makes
    or reads the channels they lie in ``blocks`` of equal size, and the same places stay in each.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool
    blocks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Option:
    """One choice for a group: how many channels stay, and in which precision its producers run."""

    channels: int
    precision: str

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        require_positive(channels=self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyEntry:
    """What a strategy does to one group: which of its channels stay, and the precision."""

    group: str
    kept: tuple[int, ...]
    of: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Methods and settings that turn the original network into one variant (``strategy.json``).

    Version history: 1, the first.
    """

    label: str
    methods: tuple[str, ...]
    entries: tuple[StrategyEntry, ...]
    epochs: int
    seed: int
    schema_version: int = 1
