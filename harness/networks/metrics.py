"""What a network is judged by: top-1, or a function that the user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from harness.errors import ConfigError
from harness.networks.evaluate import top1
from harness.networks.loading import load_callable

__all__ = ["TOP1", "Metric", "load_metric"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number for a network's outputs by their targets; higher is better.

    ``function(outputs, targets)`` gets arrays ``(n, ...)``: the output, or a list of them where
    the network has several, and the targets that came with the images. A share of 1 (accuracy,
    mean average precision, intersection over union) is what budgets expect: one point of
    ``--max-drop`` is 0.01. ``classifies``: the outputs are logits, whose largest is the class.
    """

    name: str
    function: Callable[[Any, Any], float]
    classifies: bool

    def of(self, outputs: Sequence[Array], targets: Array) -> float:
        """The metric of a network's outputs; raises ConfigError where it is no finite number."""
        given = outputs[0] if len(outputs) == 1 else list(outputs)
        try:
            value = float(self.function(given, targets))
        except Exception as error:  # the user's own code may raise anything
            raise ConfigError(
                f"metric {self.name} raised {type(error).__name__}: {error}; it was given outputs "
                f"of {', '.join(str(output.shape) for output in outputs)} and targets of "
                f"{targets.shape}"
            ) from error
        if not math.isfinite(value):
            raise ConfigError(
                f"metric {self.name} is {value} for outputs of the network; it must be a finite "
                "number whatever they are"
            )
        return value


TOP1 = Metric(name="top-1", function=top1, classifies=True)


def load_metric(spec: str | None) -> Metric:
    """Top-1 for None, else what ``module:function`` or ``file.py:function`` computes."""
    if spec is None:
        return TOP1
    function = load_callable(spec, "metric")

    def compute(outputs: Any, targets: Any) -> float:
        value = np.asarray(function(outputs, targets), np.float64)
        if value.size != 1:
            raise ValueError(f"it returned {value.shape} numbers; expected one")
        return float(value.reshape(-1)[0])

    return Metric(name=spec.rpartition(":")[2], function=compute, classifies=False)
