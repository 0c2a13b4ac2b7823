"""Power mode, clocks, governor and fan: what they are, set, verified and put back."""

import os
import platform
import pwd
import time

from . import board as knobs
from . import telemetry, undo

# cpufreq reports a clock that it computes, a hair off the one that was set.
CLOCK_TOLERANCE = 0.01
# Governors take a moment to follow a new range.
SETTLE_S = 2.0
SETTLE_POLL_S = 0.1
# Why a requirement does not hold that once was set.
LOST = (
    "it was set, but does not hold",
    "find out what changes it there: heat, the power supply, another program",
)
SUDOERS = "/etc/sudoers.d/boardfit"


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


def summary(board):
    """What a result says of the settings that it was taken under."""
    found = in_force(board)
    online = [cpu for cpu in found["cpus"] if cpu["online"]]
    governors = sorted(set(cpu["governor"] for cpu in online if cpu["governor"]))
    highest = [cpu["max_hz"] for cpu in online if cpu["max_hz"] is not None]
    return {
        "power_mode": None if found["power_mode"] is None else found["power_mode"]["name"],
        "clocks_locked": found["clocks_locked"],
        "governor": ", ".join(governors) or None,
        "cpus_online": len(online) or None,
        "cpu_max_hz": max(highest) if highest else None,
        "gpu_max_hz": None if found["gpu"] is None else found["gpu"]["max_hz"],
        "fan_pwm": None if found["fan"] is None else found["fan"]["pwm"],
    }


# --- what does not hold -------------------------------------------------------------------------


def unmet(wanted, found, models):
    """``{control: (wanted, found)}`` in words of every requirement that does not hold.

    ``wanted`` has ``power_mode`` (a name or a number), ``lock_clocks``, ``governor`` and ``fan`` (a
    share up to 1, or a pwm above), each None or False where nothing is wanted; ``found`` is
    ``in_force``; ``models`` are those of nvpmodel.conf.
    """
    wrong = {}
    if wanted["power_mode"] is not None:
        wrong.update(_mode_unmet(wanted["power_mode"], found, models))
    if wanted["lock_clocks"] and found["clocks_locked"] is not True:
        seen = "no clocks that can be read" if found["clocks_locked"] is None else _ranges(found)
        wrong["clocks"] = ("clocks that are locked", seen)
    if wanted["governor"] is not None:
        governors = set(cpu["governor"] for cpu in found["cpus"] if cpu["online"])
        if governors != {wanted["governor"]}:
            names = ", ".join(sorted(name for name in governors if name)) or "none that can be read"
            wrong["governor"] = ("governor %s" % wanted["governor"], names)
    if wanted["fan"] is not None:
        fan = found["fan"]
        if fan is None:
            wrong["fan"] = ("fan at %g" % wanted["fan"], "no fan that can be read")
        elif fan["pwm"] != fan_pwm(wanted["fan"], fan):
            pwm = fan_pwm(wanted["fan"], fan)
            wrong["fan"] = ("fan at pwm %d" % pwm, "%s of %d" % (fan["pwm"], fan["max_pwm"]))
        elif fan["automatic"]:
            wrong["fan"] = ("fan at pwm %d" % fan["pwm"], "one that the board changes by itself")
    return wrong


def fan_pwm(wanted, fan):
    """The pwm that is meant by a share (up to 1) or a pwm (above)."""
    return round(wanted * fan["max_pwm"]) if wanted <= 1 else int(wanted)


def model_of(wanted, models):
    """The mode of nvpmodel.conf with this name or number, or None."""
    for model in models:
        if wanted.lower() == model["name"].lower() or wanted == str(model["id"]):
            return model
    return None


def _mode_unmet(wanted, found, models):
    mode, model = found["power_mode"], model_of(wanted, models)
    if mode is None:
        return {"power_mode": ("power mode %s" % wanted, "none that can be read")}
    if wanted.lower() != mode["name"].lower() and wanted != str(mode["id"]):
        return {"power_mode": ("power mode %s" % wanted, mode["name"])}
    if model is None:
        return {}
    # The mode's name alone proves nothing: jetson_clocks brings back the CPUs that it took away.
    online = [cpu["online"] for cpu in found["cpus"]]
    asked = [model["online"].get(number, now) for number, now in enumerate(online)]
    if online != asked:
        text = "%d CPUs as of mode %s" % (sum(asked), model["name"])
        return {"cpus": (text, "%d online" % sum(online))}
    fastest = max(
        (cpu for cpu in found["cpus"] if cpu["online"]),
        key=lambda cpu: cpu["max_hz"] or 0,
        default=None,
    )
    for name, one in (("CPU", fastest), ("GPU", found["gpu"])):
        limit_hz = model[name.lower() + "_max_hz"]
        if one is not None and not limit_holds(limit_hz, one["max_hz"], one["available_hz"]):
            text = "the %s at most at %s as of mode %s" % (name, _mhz(limit_hz), model["name"])
            return {"power_mode": (text, _mhz(one["max_hz"]))}
    return {}


def limit_holds(asked_hz, got_hz, table_hz):
    """Whether a limit is what was asked for, or the clock of the table just below or above it.

    On a Nano 640 MHz becomes 614.4 (the GPU's next lower one) and 918 becomes 921.6 (the CPU's next
    higher one). None: no limit is asked for, or none can be read.
    """
    if asked_hz is None or got_hz is None:
        return True
    # A table's step is some 8 % of the clock: where there is no table, half of that is let pass.
    tolerance = CLOCK_TOLERANCE if table_hz else 4 * CLOCK_TOLERANCE
    if abs(got_hz - asked_hz) <= tolerance * asked_hz:
        return True
    below = [clock_hz for clock_hz in table_hz if clock_hz <= asked_hz]
    above = [clock_hz for clock_hz in table_hz if clock_hz >= asked_hz]
    return got_hz in (max(below) if below else None, min(above) if above else None)


def _mhz(clock_hz):
    return "unknown" if clock_hz is None else "%g MHz" % (clock_hz / 1e6)


def _ranges(found):
    parts = [("CPU %d" % n, cpu) for n, cpu in enumerate(found["cpus"]) if cpu["online"]]
    parts += [] if found["gpu"] is None else [("GPU", found["gpu"])]
    # One line for all CPUs that agree.
    lines = []
    for name, one in parts:
        text = "%s to %s, now %s" % tuple(_mhz(one[k]) for k in ("min_hz", "max_hz", "cur_hz"))
        if not any(line.endswith(": " + text) for line in lines):
            lines.append("%s: %s" % (name, text))
    return "; ".join(lines)


# --- setting ------------------------------------------------------------------------------------


def apply(wanted, cache_dir, board, users, change=True, timeout_s=0.0):
    """The requirements that do not hold, after trying to make them: none if all is well.

    Each is ``{"control", "wanted", "found", "reason", "remedy"}`` in words. ``users`` relies on the
    settings from then on. What everything was is on the disk before the first change. ``change``
    False only looks. Raises ``undo.ConditionsHeld`` where others rely on other settings.
    """
    models = knobs.power_modes(board)
    reasons = {}
    users.share()
    wrong = unmet(wanted, in_force(board), models)
    if wrong and change:
        if not users.alone(timeout_s):
            users.share()
            raise undo.ConditionsHeld(
                "another session or job relies on the board's settings: %s"
                % "; ".join("%s wanted, %s found" % pair for pair in wrong.values())
            )
        try:
            record = undo.keep(cache_dir, board)
            # Keeping may have put something back that was left from before a boot.
            wrong = unmet(wanted, in_force(board), models)
            reasons = _set(wanted, wrong, board, models, record)
        finally:
            users.share()
        wrong = _settled(wanted, board, models, set(reasons))
    otherwise = LOST if change else ("", "")
    return [
        {
            "control": name,
            "wanted": pair[0],
            "found": pair[1],
            "reason": reasons.get(name, otherwise)[0],
            "remedy": reasons.get(name, otherwise)[1],
        }
        for name, pair in sorted(wrong.items())
    ]


def _settled(wanted, board, models, given_up):
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        wrong = unmet(wanted, in_force(board), models)
        if set(wrong) <= given_up or time.monotonic() >= deadline_s:
            return wrong
        time.sleep(SETTLE_POLL_S)


def _set(wanted, wrong, board, models, record):
    """``{control: (reason, remedy)}`` of what could not be set; in the order that it must be."""
    failed = {}
    if "power_mode" in wrong:
        failed["power_mode"] = _set_mode(wanted["power_mode"], board, models)
    if wanted["governor"] is not None:
        failed["governor"] = _set_governor(wanted["governor"], board)
    if wanted["lock_clocks"]:
        # Always: a new power mode has unlocked them.
        failed["clocks"] = _lock_clocks(board, models, record)
    if wanted["power_mode"] is not None:
        failed["cpus"] = _set_cpus(wanted["power_mode"], board, models)
    if wanted["fan"] is not None:
        failed["fan"] = _set_fan(wanted["fan"], board)
    return {name: why for name, why in failed.items() if why is not None}


def _set_mode(wanted, board, models):
    model = model_of(wanted, models)
    if model is None:
        names = ", ".join("%s (%d)" % (one["name"], one["id"]) for one in models)
        known = "the board has %s" % names if names else "the board has no power modes"
        return known, "set power_mode to one that it has, or remove it, in boards.toml"
    reason = undo.set_mode(board, model["id"])
    if reason is None:
        return None
    if "reboot" in reason:
        return reason, "run sudo nvpmodel -m %d there and answer yes" % model["id"]
    return reason, sudo_remedy(board, models)


def _set_governor(wanted, board):
    folders = board.paths("sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    names = [folder + "/scaling_governor" for folder in folders]
    for folder, name in zip(folders, names):  # noqa: B905 (strict= is Python 3.10)
        reason = board.write(name, wanted)
        if reason is not None:
            known = board.text(folder + "/scaling_available_governors")
            if known and wanted not in known.split():
                return reason, "choose one of: %s" % known
            return reason, sudo_remedy(board, [], *_tees(board, names))
    return None


def _tees(board, names):
    return ["tee %s" % board.path(name) for name in names]


def _lock_clocks(board, models, record):
    if knobs.program("jetson_clocks") is None:
        if platform.machine() in ("x86_64", "AMD64", "i686"):
            # Minimum = maximum does not hold a PC's clock, which boosts by itself.
            return "a PC's clocks cannot be locked", 'set governor = "performance" instead'
        return _raise_minimum(board)
    if record["clocks_file"] is None and not board.is_root:
        reason = "jetson_clocks cannot say what it would change, so there would be no way back"
        return reason, sudo_remedy(board, models)
    code, output = board.sudo("jetson_clocks")
    if code == 0 and clocks_locked(in_force(board)):
        return None
    again = _raise_minimum(board)
    if again is None:
        return None
    reason = output.splitlines()[-1] if output else "jetson_clocks changed nothing"
    return reason, sudo_remedy(board, models)


def _raise_minimum(board):
    folders = board.paths("sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    pairs = [("%s/scaling_min_freq" % name, "%s/scaling_max_freq" % name) for name in folders]
    gpu = knobs.gpu_folder(board)
    pairs += [] if gpu is None else [(gpu + "/min_freq", gpu + "/max_freq")]
    if not pairs:
        return "the board has no clocks that can be set", "remove lock_clocks in boards.toml"
    for low, high in pairs:
        top = board.text(high)
        reason = None if top is None else undo.set_range(board, low, high, top, top)
        if reason is not None:
            return reason, sudo_remedy(board, [], *_tees(board, [low for low, _ in pairs]))
    return None


def _set_cpus(wanted, board, models):
    model = model_of(wanted, models)
    for number, online in sorted(model["online"].items()) if model else ():
        name = "sys/devices/system/cpu/cpu%d/online" % number
        if board.number(name) not in (None, int(online)):
            reason = board.write(name, str(int(online)))
            if reason is not None:
                remedy = "choose lock_clocks or power mode %s, not both" % model["name"]
                return "jetson_clocks brings all CPUs back, and %s" % reason, remedy
    return None


def _set_fan(wanted, board):
    files, fan = knobs.fan_files(board), knobs.fan(board)
    if fan is None:
        return "the board has no fan that can be set", "remove fan for it in boards.toml"
    # First its control: else the board would change the speed as it warms up.
    reason = board.write(files[2], "0") if fan["automatic"] else None
    reason = reason or board.write(files[0], str(fan_pwm(wanted, fan)))
    if reason is None:
        return None
    return reason, sudo_remedy(board, [], *_tees(board, [files[0], *files[2:]]))


def sudo_remedy(board, models, *more):
    """What to do so that the agent may set what it needs to, and no more than that."""
    if board.is_root:
        return "look at what the tool says"
    place = board.path(undo.CLOCKS_FILE)
    commands = ["nvpmodel -m %d" % model["id"] for model in models]
    if models:
        commands += ['jetson_clocks ""'] + [
            "jetson_clocks %s" % what
            for what in ("--show", "--store %s" % place, "--restore %s" % place)
        ]
    lines = []
    for command in commands + list(more):
        name, _, arguments = command.partition(" ")
        lines.append("%s %s" % (knobs.program(name) or "/usr/bin/" + name, arguments))
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = "#%d" % os.getuid()
    return "allow it there with sudo visudo -f %s and the line: %s ALL=(root) NOPASSWD: %s" % (
        SUDOERS,
        user,
        ", ".join(lines),
    )
