"""The latency model's file: one JSON object, plain data.

History of ``schema_version``:

1. The first. ``profile`` (datasheet facts with sources), ``precisions``, ``parameters_`` (name,
   value, unit, prior, uncertainty: a standard deviation of the logarithm, or of the value where the
   unit is us), ``measured_groups`` ([kind, precision]), ``works`` (each distinct kernel once: kind,
   macs, bytes_in, bytes_out, bytes_weights, [rows, outputs, inputs, window, groups], precision,
   name), ``kernel_samples`` ([index of work, seconds]), ``network_samples`` ([[indices], seconds]),
   ``residuals_`` (held-out log ratios of measured to predicted network time), ``anchor_`` and
   ``anchors`` (factor on every prediction, and how many networks it comes from).

Names that end in ``_`` were fitted.
"""

from __future__ import annotations

import json
from typing import Any

from latency_models.calibration import LatencyModel, Parameter
from latency_models.errors import FormatError
from latency_models.kernels import Dims, Work
from latency_models.profiles import BoardProfile, Fact

__all__ = ["SCHEMA_VERSION", "dump", "load"]

SCHEMA_VERSION = 1
_FACTS = (
    "bandwidth_bytes_per_s",
    "cache_bandwidth_bytes_per_s",
    "cache_bytes",
    "kernel_overhead_s",
    "network_overhead_s",
    "profiler_overhead_s",
    "channel_step",
)


def dump(model: LatencyModel) -> str:
    """``model`` as JSON text; the same model always gives the same text."""
    places: dict[Work, int] = {}

    def place(item: Work) -> int:
        return places.setdefault(item, len(places))

    kernels = [[place(item), seconds] for item, seconds in model.kernel_samples]
    networks = [[[place(w) for w in works], seconds] for works, seconds in model.network_samples]
    content = {
        "schema_version": SCHEMA_VERSION,
        "profile": _profile_out(model.profile),
        "precisions": model.precisions,
        "parameters_": [
            {
                "name": p.name,
                "value": p.value,
                "unit": p.unit,
                "prior": p.prior,
                "uncertainty": p.uncertainty,
            }
            for p in model.parameters
        ],
        "measured_groups": model.measured_groups,
        "works": [
            [w.kind, w.macs, w.bytes_in, w.bytes_out, w.bytes_weights, w.shape, w.precision, w.name]
            for w in places
        ],
        "kernel_samples": kernels,
        "network_samples": networks,
        "residuals_": model.residuals_,
        "anchor_": model.anchor_,
        "anchors": model.anchors,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def load(text: str) -> LatencyModel:
    """The model in JSON ``text``; ``FormatError`` if it is none or of a later version."""
    try:
        content = json.loads(text)
        version = content["schema_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FormatError(f"this is no latency model: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"this latency model is of version {version}, and version {SCHEMA_VERSION} is the "
            "latest known here: update boardfit, or calibrate again"
        )
    try:
        return _model(content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"this latency model is damaged: {error!r}; calibrate again") from error


def _model(content: dict[str, Any]) -> LatencyModel:
    works = [
        Work(
            kind=kind,
            macs=macs,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            bytes_weights=bytes_weights,
            shape=Dims(*shape),
            precision=precision,
            name=name,
        )
        for kind, macs, bytes_in, bytes_out, bytes_weights, shape, precision, name in content[
            "works"
        ]
    ]
    return LatencyModel(
        profile=_profile_in(content["profile"]),
        precisions=tuple(content["precisions"]),
        parameters=tuple(Parameter(**entry) for entry in content["parameters_"]),
        measured_groups=tuple((kind, precision) for kind, precision in content["measured_groups"]),
        kernel_samples=tuple(
            (works[index], seconds) for index, seconds in content["kernel_samples"]
        ),
        network_samples=tuple(
            (tuple(works[index] for index in indices), seconds)
            for indices, seconds in content["network_samples"]
        ),
        residuals_=tuple(content["residuals_"]),
        anchor_=content["anchor_"],
        anchors=content["anchors"],
    )


def _profile_out(profile: BoardProfile) -> dict[str, Any]:
    facts = {name: getattr(profile, name) for name in _FACTS}
    return {
        "name": profile.name,
        "description": profile.description,
        "runtime": profile.runtime,
        "precisions": profile.precisions,
        "peak_flops": {
            key: {"value": fact.value, "source": fact.source}
            for key, fact in profile.peak_flops.items()
        },
        **{name: {"value": fact.value, "source": fact.source} for name, fact in facts.items()},
    }


def _profile_in(entry: dict[str, Any]) -> BoardProfile:
    return BoardProfile(
        name=entry["name"],
        description=entry["description"],
        runtime=entry["runtime"],
        precisions=tuple(entry["precisions"]),
        peak_flops={key: Fact(**fact) for key, fact in entry["peak_flops"].items()},
        **{name: Fact(**entry[name]) for name in _FACTS},
    )
