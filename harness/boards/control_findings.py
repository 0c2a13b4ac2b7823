"""From the state of a board's controls to the doctor's checks: mode, clocks, governor, sudo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.records import BoardSpec, Check, CheckStatus

__all__ = ["controls"]

Facts = Mapping[str, Any]


def controls(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """Power mode, clocks, governor, what may be changed without a password, and the supply.

    ``facts`` has ``state``, as the wire's ``controls_state.result``, and ``sudo_remedy``: what to
    do on this board so that its settings may be changed. What boards.toml asks for and nobody may
    set is a failure where it says ``conditions = "require"``.
    """
    state, remedy = facts["state"], facts["sudo_remedy"]
    return (
        _power_mode(state, spec, remedy),
        _clocks(state, spec, remedy),
        _governor(state, spec),
        _sudo(state, remedy),
        _supply(state),
    )


def _missed(spec: BoardSpec) -> CheckStatus:
    """The status of a wish of boards.toml that cannot come true."""
    return "fail" if spec.conditions == "require" else "warn"


def _sets(state: Facts, spec: BoardSpec, tool: str) -> bool:
    """Whether boardfit makes it so by itself while it measures."""
    return spec.conditions != "off" and bool(state["sudo"].get(tool))


def _named(mode: Facts) -> str:
    return f"{mode['name']} ({mode['id']})"


def _power_mode(state: Facts, spec: BoardSpec, sudo_remedy: str) -> Check:
    name, mode, known = "power mode", state["power_mode"], state["power_modes"]
    if mode is None and not known:
        return Check(name=name, status="skip", found="the board has no power modes")
    others = ", ".join(_named(one) for one in known if one != mode)
    facts = {"power_mode": mode, "power_modes": known}
    if mode is None:
        return Check(
            name=name,
            status="warn",
            found=f"unknown; the board has {others}",
            remedy="see what `nvpmodel -q` says there",
            facts=facts,
        )
    found = _named(mode) + (f"; there is also {others}" if others else "")
    wish = spec.power_mode
    if wish is None or _is(wish, mode):
        return Check(name=name, status="ok", found=found, facts=facts)
    if not any(_is(wish, one) for one in known):
        return Check(
            name=name,
            status=_missed(spec),
            found=f"{found}; boards.toml wants {wish}, which the board has not",
            remedy=f"set power_mode for {spec.name} in boards.toml to one of these, or remove it",
            facts=facts,
        )
    if _sets(state, spec, "nvpmodel"):
        found += f"; boardfit sets {wish} while it measures"
        return Check(name=name, status="ok", found=found, facts=facts)
    return Check(
        name=name,
        status=_missed(spec),
        found=f"{found}; boards.toml wants {wish}",
        remedy=sudo_remedy,
        facts=facts,
    )


def _is(wish: str, mode: Facts) -> bool:
    """Whether boards.toml means this mode: by its name or by its number."""
    return wish.lower() == mode["name"].lower() or wish == str(mode["id"])


def _mhz(clock_hz: int | None) -> str:
    return "unknown" if clock_hz is None else f"{clock_hz / 1e6:g} MHz"


def _online(state: Facts) -> list[Facts]:
    return [cpu for cpu in state["cpus"] if cpu["online"]]


def _clocks(state: Facts, spec: BoardSpec, sudo_remedy: str) -> Check:
    name, locked, gpu = "clocks", state["clocks_locked"], state["gpu"]
    if locked is None:
        found = "the board does not tell them (a virtual machine?)"
        return Check(name=name, status="skip", found=found)
    rows = [("CPU", cpu) for cpu in _online(state)] + ([] if gpu is None else [("GPU", gpu)])
    facts = {"clocks_locked": locked}
    if locked:
        texts = dict.fromkeys(f"{kind} {_mhz(one['cur_hz'])}" for kind, one in rows)
        found = f"locked: {'; '.join(texts)}"
        return Check(name=name, status="ok", found=found, facts=facts)
    texts = dict.fromkeys(
        f"{kind} {_mhz(one['min_hz'])} to {_mhz(one['max_hz'])}, now {_mhz(one['cur_hz'])}"
        for kind, one in rows
    )
    found = f"not locked: {'; '.join(texts)}"
    if gpu is None and state["power_mode"] is None:
        if not spec.lock_clocks:
            found += ", as on every PC"
            return Check(name=name, status="ok", found=found, facts=facts)
        remedy = f'set governor = "performance" for {spec.name} in boards.toml instead'
    elif spec.lock_clocks:
        if _sets(state, spec, "jetson_clocks"):
            found += "; boardfit locks them while it measures"
            return Check(name=name, status="ok", found=found, facts=facts)
        remedy = sudo_remedy
    else:
        remedy = (
            f"set lock_clocks = true for {spec.name} in boards.toml, or run sudo jetson_clocks "
            "there: times move as clocks do"
        )
    status: CheckStatus = _missed(spec) if spec.lock_clocks else "warn"
    return Check(name=name, status=status, found=found, remedy=remedy, facts=facts)


def _governor(state: Facts, spec: BoardSpec) -> Check:
    names = sorted({cpu["governor"] for cpu in _online(state) if cpu["governor"]})
    found = ", ".join(names)
    if not names:
        return Check(name="governor", status="skip", found="the board does not tell")
    facts = {"governors": names}
    if spec.governor is not None and names != [spec.governor]:
        found += f"; boardfit tries to set {spec.governor} while it measures, which root may"
    elif names == ["performance"] or state["clocks_locked"] or state["power_mode"] is not None:
        # On a Jetson it is idle while clocks are locked, which is a check of its own.
        return Check(name="governor", status="ok", found=found, facts=facts)
    elif spec.governor is None:
        return Check(
            name="governor",
            status="warn",
            found=f"{found}: the clock follows the load",
            remedy="sudo cpupower frequency-set -g performance",
            facts=facts,
        )
    return Check(name="governor", status="ok", found=found, facts=facts)


def _sudo(state: Facts, remedy: str) -> Check:
    if state["power_mode"] is None and not state["power_modes"]:
        return Check(name="sudo", status="skip", found="not needed: there is nothing to set")
    allowed = state["sudo"]
    missing = [name for name in ("nvpmodel", "jetson_clocks") if not allowed.get(name)]
    if not missing:
        found = "nvpmodel and jetson_clocks run without a password"
        return Check(name="sudo", status="ok", found=found, facts=allowed)
    found = f"{' and '.join(missing)} cannot run without a password, so boardfit only looks"
    return Check(name="sudo", status="warn", found=found, remedy=remedy, facts=allowed)


def _supply(state: Facts) -> Check:
    name, events = "power supply", state["throttle"]["over_current_events"]
    if events is None:
        return Check(name=name, status="skip", found="the board does not count its failures")
    facts = {"over_current_events": events}
    if not events:
        found = "never too weak since boot"
        return Check(name=name, status="ok", found=found, facts=facts)
    return Check(
        name=name,
        status="warn",
        found=f"it was too weak {events} times since boot, and the board slowed down",
        remedy="use a stronger supply and a short cable, or a power mode that draws less",
        facts=facts,
    )
