"""Power mode, clocks, governor and fan: what they are, set, verified and put back."""

from . import board as knobs
from . import telemetry

# cpufreq reports a clock that it computes, a hair off the one that was set.
CLOCK_TOLERANCE = 0.01


def state(root=telemetry.ROOT, run=knobs.run_program):
    """The state of every control now; None for what the board cannot tell. Changes nothing.

    ``sudo`` says what the agent may run as root without a password.
    """
    return state_of(knobs.Board(root, run))


def state_of(board):
    """``state`` of a ``board.Board``."""
    found = in_force(board)
    modes = knobs.power_modes(board)
    found["power_modes"] = [{"id": mode["id"], "name": mode["name"]} for mode in modes]
    files = knobs.fan_files(board)
    found["emc"] = knobs.emc(board)
    found["throttle"] = {
        "throttled": telemetry.throttled(board.root),
        "over_current_events": telemetry.over_current_count(board.root),
        "cooling": telemetry.cooling(board.root),
    }
    found["sudo"] = {
        "nvpmodel": board.may_sudo("nvpmodel", "-m", str(modes[0]["id"] if modes else 0)),
        "jetson_clocks": board.may_sudo("jetson_clocks"),
        "fan": files is not None and board.writable(files[0]),
    }
    return found


def in_force(board):
    """The part of ``state`` that is cheap to look at and that decides about a run's speed."""
    found = {
        "power_mode": knobs.power_mode(board),
        "cpus": knobs.cpus(board),
        "gpu": knobs.gpu(board),
        "fan": knobs.fan(board),
    }
    found["clocks_locked"] = clocks_locked(found)
    return found


def clocks_locked(found):
    """Whether min = max = cur on every CPU that is online and on the GPU; None: it cannot tell."""
    clocks = [cpu for cpu in found["cpus"] if cpu["online"] and cpu["max_hz"] is not None]
    clocks += [] if found["gpu"] is None else [found["gpu"]]
    if not clocks or any(None in (one["min_hz"], one["max_hz"], one["cur_hz"]) for one in clocks):
        return None
    return all(
        one["min_hz"] == one["max_hz"]
        and abs(one["cur_hz"] - one["max_hz"]) <= CLOCK_TOLERANCE * one["max_hz"]
        for one in clocks
    )
