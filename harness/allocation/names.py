"""What groups and options are called in messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ConfigError

__all__ = ["NAMELESS", "Names"]


@dataclass(frozen=True, slots=True)
class Names:
    """The names of groups, and the labels of their options; empty where there are none."""

    groups: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()

    def check(self, sizes: Sequence[int]) -> None:
        """Raise ``ConfigError`` where there are names of more or fewer groups or options."""
        if self.groups and len(self.groups) != len(sizes):
            raise ConfigError(f"there are names of {len(self.groups)} groups, of {len(sizes)}")
        if not self.options:
            return
        if len(self.options) != len(sizes):
            raise ConfigError(f"options of {len(self.options)} groups have names, of {len(sizes)}")
        for group, (labels, size) in enumerate(zip(self.options, sizes, strict=True)):
            if len(labels) != size:
                raise ConfigError(f"{self.group(group)} has {len(labels)} labels, {size} options")

    def group(self, group: int) -> str:
        """The group, by its index and name: ``group 3 (layer1.conv)``."""
        if 0 <= group < len(self.groups):
            return f"group {group} ({self.groups[group]})"
        return f"group {group}"

    def option(self, group: int, option: int) -> str:
        """The option and its group: ``option 2 (8 channels, int8) of group 3 (layer1.conv)``."""
        label = ""
        if group < len(self.options) and option < len(self.options[group]):
            label = f" ({self.options[group][option]})"
        return f"option {option}{label} of {self.group(group)}"


NAMELESS = Names()
