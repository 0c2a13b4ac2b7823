"""The latency model's file: one JSON object, plain data.

History of ``schema_version``:

1. The first. ``profile`` (datasheet facts with sources), ``precisions``, ``parameters_`` (name,
   value, unit, prior, uncertainty: a standard deviation of the logarithm, or of the value where the
   unit is us), ``measured_groups`` ([kind, precision]), ``works`` (each distinct kernel once: kind,
   macs, bytes_in, bytes_out, bytes_weights, [rows, outputs, inputs, window, groups], precision,
   name), ``kernel_samples`` ([index of work, seconds]), ``network_samples`` ([[indices], seconds]),
   ``residuals_`` (held-out log ratios of measured to predicted network time), ``anchor_`` and
   ``anchors`` (factor on every prediction, and how many networks it comes from).
2. ``runtime``, whose fusion rules the kernels were read by: a model was of use only to who knew.
   The profile's facts say whether they are ``confirmed``, and the profile has ``sms``, ``clocks``
   and ``power_modes`` (each a table of facts, or null), ``enqueue_s`` and ``form``. Network samples
   have a group and the clocks they were taken at. ``held_out_`` takes the place of ``residuals_``:
   pairs of log ratio and claimed standard deviation, so that an interval is wide where little was
   measured; ``unlike`` if whole groups were held out. ``residual_`` is the learned residual's
   amplitude, ``scales`` the clocks to predict for. A file of version 1 is of onnxruntime-cpu and of
   the form mlas, its facts count as confirmed, it has no clocks, and every held-out network is
   taken to have been claimed to 5 %.

Names that end in ``_`` were fitted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from latency_models.errors import FormatError
from latency_models.kernels import Dims, Work
from latency_models.model import (
    DEFAULT_RUNTIME,
    HeldOut,
    LatencyModel,
    NetworkSample,
    Parameter,
)
from latency_models.profiles import CLOCKS, FACTS, BoardProfile, Clocks, Fact, Scales

__all__ = ["SCHEMA_VERSION", "dump", "load"]

SCHEMA_VERSION = 2
_CLAIMED_BY_V1 = 0.05


def dump(model: LatencyModel) -> str:
    """``model`` as JSON text; the same model always gives the same text."""
    places: dict[Work, int] = {}

    def place(item: Work) -> int:
        return places.setdefault(item, len(places))

    kernels = [[place(item), seconds] for item, seconds in model.kernel_samples]
    networks = [
        [[place(w) for w in sample.works], sample.seconds, sample.group, sample.scales]
        for sample in model.network_samples
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "runtime": model.runtime,
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
        "held_out_": model.held_out_,
        "unlike": model.unlike,
        "residual_": model.residual_,
        "scales": model.scales,
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
    if version not in range(1, SCHEMA_VERSION + 1):
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
            _sample(tuple(works[index] for index in indices), *rest)
            for indices, *rest in content["network_samples"]
        ),
        **_fitted(content),
        anchor_=content["anchor_"],
        anchors=content["anchors"],
        runtime=DEFAULT_RUNTIME if content["schema_version"] == 1 else content["runtime"],
    )


def _sample(
    works: tuple[Work, ...], seconds: float, group: str = "", scales: Sequence[float] = ()
) -> NetworkSample:
    return NetworkSample(works, seconds, group, Scales(*scales))


def _fitted(content: dict[str, Any]) -> dict[str, Any]:
    """What a fit gives beside the parameters."""
    if content["schema_version"] == 1:
        return {"held_out_": tuple(HeldOut(r, _CLAIMED_BY_V1) for r in content["residuals_"])}
    return {
        "held_out_": tuple(HeldOut(*pair) for pair in content["held_out_"]),
        "unlike": content["unlike"],
        "residual_": content["residual_"],
        "scales": Scales(*content["scales"]),
    }


def _profile_out(profile: BoardProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "description": profile.description,
        "runtime": profile.runtime,
        "precisions": profile.precisions,
        "peak_flops": {key: _fact_out(fact) for key, fact in profile.peak_flops.items()},
        **{name: _fact_out(getattr(profile, name)) for name in FACTS},
        "enqueue_s": _fact_out(profile.enqueue_s),
        "form": profile.form,
        "sms": _fact_out(profile.sms),
        "clocks": _clocks_out(profile.clocks),
        "power_modes": {mode: _clocks_out(clocks) for mode, clocks in profile.power_modes.items()},
    }


def _fact_out(fact: Fact | None) -> dict[str, Any] | None:
    if fact is None:
        return None
    return {"value": fact.value, "source": fact.source, "confirmed": fact.confirmed}


def _clocks_out(clocks: Clocks | None) -> dict[str, Any] | None:
    if clocks is None:
        return None
    return {name: _fact_out(getattr(clocks, name)) for name in CLOCKS}


def _profile_in(entry: dict[str, Any]) -> BoardProfile:
    modes = {mode: _clocks_in(clocks) for mode, clocks in entry.get("power_modes", {}).items()}
    return BoardProfile(
        name=entry["name"],
        description=entry["description"],
        runtime=entry["runtime"],
        precisions=tuple(entry["precisions"]),
        peak_flops={key: Fact(**fact) for key, fact in entry["peak_flops"].items()},
        **{name: Fact(**entry[name]) for name in FACTS},
        enqueue_s=_fact_in(entry.get("enqueue_s")),
        form=entry.get("form", "mlas"),
        sms=_fact_in(entry.get("sms")),
        clocks=_clocks_in(entry["clocks"]) if entry.get("clocks") is not None else None,
        power_modes=modes,
    )


def _fact_in(entry: dict[str, Any] | None) -> Fact | None:
    return None if entry is None else Fact(**entry)


def _clocks_in(entry: dict[str, Any]) -> Clocks:
    return Clocks(**{name: _fact_in(fact) for name, fact in entry.items()})
