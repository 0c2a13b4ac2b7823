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
3. ``light_step``, what a kernel that multiplies no matrices counts among a CPU's steps; 1 in files
   of earlier versions.

Names that end in ``_`` were fitted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from latency_models.errors import FormatError
from latency_models.kernels import KERNEL_KINDS, Dims, Work
from latency_models.model import (
    DEFAULT_RUNTIME,
    HeldOut,
    LatencyModel,
    NetworkSample,
    Parameter,
)
from latency_models.profiles import CLOCKS, FACTS, FORMS, BoardProfile, Clocks, Fact, Scales

__all__ = ["SCHEMA_VERSION", "dump", "load"]

SCHEMA_VERSION = 3
_CLAIMED_BY_V1 = 0.05
# Beyond what any board or network has; arithmetic with such numbers still overflows nowhere.
_TINY, _HUGE = 1e-30, 1e30
# Logarithms of times: no prediction is off by a factor of e to the 30.
_MOST_LOG = 30.0
_MOST_FACTOR = 1e6


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
        "light_step": model.light_step,
        "anchor_": model.anchor_,
        "anchors": model.anchors,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def load(text: str) -> LatencyModel:
    """The model in JSON ``text``; ``FormatError`` if it is none or of a later version."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        version = content["schema_version"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise FormatError(f"this is no latency model: {error!r}") from error
    if type(version) is not int or version not in range(1, SCHEMA_VERSION + 1):
        raise FormatError(
            f"this latency model is of version {version}, and version {SCHEMA_VERSION} is the "
            "latest known here: update boardfit, or calibrate again"
        )
    try:
        model = _model(content)
        _check(model)
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError),
        FormatError,
    ) as error:
        raise FormatError(f"this latency model is damaged: {error!r}; calibrate again") from error
    return model


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _within(value: Any, low: float, high: float, what: str) -> None:
    """Nothing; ``ValueError`` where ``value`` is no number in between."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise ValueError(f"{what} is {str(value)[:40]}")


def _check_texts(values: Iterable[Any], what: str) -> None:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{what} is {str(value)[:40]}, which is no text")


def _check(model: LatencyModel) -> None:
    """Nothing; ``ValueError`` or ``TypeError`` where prediction would stumble over a value."""
    _check_texts([model.runtime, *model.precisions], "the runtime or a precision")
    _check_texts([text for pair in model.measured_groups for text in pair], "a measured group")
    _check_profile(model)
    for parameter in model.parameters:
        _check_texts([parameter.name, parameter.unit], "a parameter's name")
        _within(parameter.value, -_HUGE, _HUGE, parameter.name)
        _within(parameter.prior, -_HUGE, _HUGE, f"the prior of {parameter.name}")
        _within(parameter.uncertainty, 0.0, _HUGE, f"the uncertainty of {parameter.name}")
    if not all(map(math.isfinite, model.theta)) or max(map(abs, model.theta)) > _HUGE:
        raise ValueError("a parameter is not positive")
    samples = [
        *((work, seconds) for work, seconds in model.kernel_samples),
        *((work, s.seconds) for s in model.network_samples for work in s.works),
    ]
    for work, seconds in samples:
        _check_work(work, model)
        _within(seconds, _TINY, _HUGE, f"the time of {work.name}")
    for scales in (model.scales, *(s.scales for s in model.network_samples)):
        for scale in scales:
            _within(scale, 1 / _MOST_FACTOR, _MOST_FACTOR, "a clock's scale")
    for residual, spread in model.held_out_:
        _within(residual, -_MOST_LOG, _MOST_LOG, "a held-out residual")
        _within(spread, _TINY, _MOST_LOG, "the spread of a held-out residual")
    _within(model.residual_, 0.0, _MOST_LOG, "the learned residual")
    _within(model.light_step, 0.0, 1.0, "a light step")
    _within(model.anchor_, 1 / _MOST_FACTOR, _MOST_FACTOR, "the anchor")
    _within(model.anchors, 0, _HUGE, "the number of anchors")


def _check_profile(model: LatencyModel) -> None:
    profile = model.profile
    _check_texts([profile.name, profile.runtime, *profile.precisions], "the profile's name")
    if profile.form not in FORMS:
        raise ValueError(f"the form is {str(profile.form)[:40]}, not one of {', '.join(FORMS)}")
    missing = set(model.precisions) - set(profile.peak_flops)
    if missing or not model.precisions:
        raise ValueError(f"the profile has no peak for {', '.join(missing) or 'any precision'}")
    for name, fact in profile.facts():
        _within(fact.value, _TINY, _HUGE, f"the profile's {name}")


def _check_work(work: Work, model: LatencyModel) -> None:
    if work.kind not in KERNEL_KINDS or work.precision not in model.precisions:
        raise ValueError(f"a kernel is {str(work.kind)[:40]} in {str(work.precision)[:40]}")
    _check_texts([work.name], "a kernel's name")
    for value in (work.macs, work.bytes_in, work.bytes_out, work.bytes_weights, work.shape.width):
        _within(value, 0, _HUGE, f"a quantity of kernel {work.name}")
    for size in work.shape[:5]:
        _within(size, 1, _HUGE, f"a size of kernel {work.name}")


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
    version = content["schema_version"]
    if version == 1:
        held_out = tuple(HeldOut(r, _CLAIMED_BY_V1) for r in content["residuals_"])
        return {"held_out_": held_out, "light_step": 1.0}
    return {
        "held_out_": tuple(HeldOut(*pair) for pair in content["held_out_"]),
        "unlike": content["unlike"],
        "residual_": content["residual_"],
        "scales": Scales(*content["scales"]),
        "light_step": 1.0 if version < 3 else content["light_step"],
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
