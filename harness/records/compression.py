"""Groups of channels, the options they have, and the strategy that chooses."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.base import require_positive

PRECISIONS = ("fp32", "fp16", "int8")
# Weights of 2 to 7 bits beside 8-bit activations (w8a8 is int8): for studies, no board runs them.
STUDY_PRECISIONS = ("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w7a8")


def is_study(precision: str) -> bool:
    """Whether a precision exists in studies alone: no engine of a board computes in it."""
    return precision in STUDY_PRECISIONS


def weight_bits(precision: str) -> int:
    """Bits of one weight; ValueError where ``precision`` is none that an option may have."""
    if precision in STUDY_PRECISIONS:
        return int(precision[1])
    return {"fp32": 32, "fp16": 16, "int8": 8}[_known(precision)]


def _known(precision: str) -> str:
    known = (*PRECISIONS, *STUDY_PRECISIONS)
    if precision not in known:
        raise ValueError(f"precision {precision!r} is none of {', '.join(known)}")
    return precision


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
        _known(self.precision)
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

    Where there is a ``student`` (``file.py:factory``), it took the original's place first. The
    groups ``left_out`` went whole, with the layers that make or read their channels; all others
    have an entry, under the names and with the channels of the original.
    Version history: 1, the first. Fields since the first version: student (empty: none), left_out
    (empty: none).
    """

    label: str
    methods: tuple[str, ...]
    entries: tuple[StrategyEntry, ...]
    epochs: int
    seed: int
    student: str = ""
    left_out: tuple[str, ...] = ()
    schema_version: int = 1
