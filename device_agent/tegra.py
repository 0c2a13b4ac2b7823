"""What NVIDIA's tools and sudo print, as plain data: pure functions of text.

The forms are those of JetPack 3.3 to 6.2 on the Nano, TX2, Xavier and Orin, as their users have
published them; what a text does not hold is None or absent.
"""

import fnmatch
import os
import re

LIMITS = ("cpu_max_hz", "gpu_max_hz", "emc_max_hz")
_MODE = re.compile(r"NV Power Mode:[ \t]*(\S+)[ \t]*(?:\r?\n[ \t]*(\d+)[ \t]*(?:\r?\n|$))?")
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_REBOOT = re.compile(r"reboot required for changing|want to reboot now", re.IGNORECASE)
# JetPack 3.3 spelled the governor's name wrong and had no Online.
_SHOWN_CPU = re.compile(
    r"^cpu(\d+):\s*(?:Online=(\d)\s+)?Gon?vernor=(\S+)\s+MinFreq=(\d+)\s+MaxFreq=(\d+)"
    r"\s+CurrentFreq=(\d+)",
    re.MULTILINE,
)
_SHOWN_CLOCK = re.compile(
    r"^(GPU|EMC)\s+MinFreq=(\d+)\s+MaxFreq=(\d+)\s+CurrentFreq=(\d+)(?:\s+FreqOverride=(\d))?",
    re.MULTILINE,
)
_SHOWN_FAN = re.compile(r"^Fan:\s*(?:speed|PWM)=(\d+)|^FAN .*?\bhwmon\d+_pwm\d+=(\d+)", re.M)
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)")
_TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?[\d.]+)C\b")
_TAGS = re.compile(r"^((?:[A-Z_]+:\s*)*)(.*)$")


def power_mode(text):
    """``{"id", "name"}`` as ``nvpmodel -q`` tells it, or None; the id may be None.

    Warnings and errors around it (no fan mode, files for root only) are no part of the answer.
    """
    found = _MODE.search(text or "")
    if found is None:
        return None
    return {"id": None if found.group(2) is None else int(found.group(2)), "name": found.group(1)}


def asks_for_reboot(text):
    """Whether nvpmodel has said that the mode needs a reboot."""
    return bool(_REBOOT.search(text or ""))


def power_models(text):
    """The modes of nvpmodel.conf in its order: ``{"id", "name", "online", "cpu_max_hz", ...}``.

    ``online`` maps CPU numbers to whether the mode has them; ``cpu_max_hz`` is the highest limit of
    the clusters, ``gpu_max_hz`` and ``emc_max_hz`` are the others'. None: there is no limit.
    """
    models = []
    for line in (text or "").splitlines():
        line = line.partition("#")[0].strip()
        start = _MODEL.match(line)
        if start:
            models.append({"id": int(start.group(1)), "name": start.group(2), "online": {}})
            models[-1].update((key, []) for key in LIMITS)
        elif line.startswith("<"):
            # PARAM blocks come before the modes, PM_CONFIG and FAN_PROFILE after them.
            if models:
                break
        elif models:
            _read_setting(models[-1], line.split())
    for model in models:
        for key in LIMITS:
            model[key] = None if not model[key] or None in model[key] else max(model[key])
    return models


def _read_setting(model, words):
    if len(words) != 3 or not re.match(r"^-?\d+$", words[2]):
        return
    block, name, value = words[0], words[1], int(words[2])
    core = re.match(r"^CORE_(\d+)$", name)
    if block == "CPU_ONLINE" and core:
        model["online"][int(core.group(1))] = value == 1
    elif name == "MAX_FREQ":
        # cpufreq counts in kHz, devfreq and the memory controller in Hz.
        kind, scale = ("cpu", 1000) if block.startswith("CPU") else (block.lower(), 1)
        if kind + "_max_hz" in model:
            # -1, 0 and the largest int all mean "no limit".
            limit_hz = value * scale if 0 < value < 2147483647 else None
            model[kind + "_max_hz"].append(limit_hz)


def jetson_clocks(text):
    """``jetson_clocks --show`` as ``{"cpus", "gpu", "emc", "fan_pwm", "power_mode"}``."""
    text = text or ""
    clocks = {}
    for name, low, high, now, override in _SHOWN_CLOCK.findall(text):
        clocks[name] = {"min_hz": int(low), "max_hz": int(high), "cur_hz": int(now)}
        if name == "EMC":
            clocks[name]["locked"] = override == "1" if override else None
    fan = _SHOWN_FAN.search(text)
    return {
        "cpus": [
            {
                "cpu": int(number),
                "online": online != "0",
                "governor": governor,
                "min_hz": int(low) * 1000,
                "max_hz": int(high) * 1000,
                "cur_hz": int(now) * 1000,
            }
            for number, online, governor, low, high, now in _SHOWN_CPU.findall(text)
        ],
        "gpu": clocks.get("GPU"),
        "emc": clocks.get("EMC"),
        "fan_pwm": int(fan.group(1) or fan.group(2)) if fan else None,
        "power_mode": power_mode(text),
    }


def tegrastats(line):
    """One line of tegrastats as ``{"ram_used_bytes", "cpu_clock_hz", "temp_c", "power_w", ...}``.

    ``cpu_clock_hz`` has None for a CPU that is off; ``temp_c`` and ``power_w`` map names to values.
    The GPU's clock is told in brackets since JetPack 5, and left out by some versions.
    """
    ram = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    cpus = re.search(r"\bCPU \[([^\]]*)\]", line)
    gpu = re.search(r"\bGR3D_FREQ (\d+)%(?:@\[?(\d+))?", line)
    emc = re.search(r"\bEMC_FREQ (\d+)%(?:@(\d+))?", line)
    cores = [word.strip() for word in cpus.group(1).split(",")] if cpus else []
    clocks = [re.match(r"^\d+%@(\d+)$", core) for core in cores]
    # RAM 1/2MB and SWAP 0/1MB look like rails but for their unit, which the pattern refuses.
    return {
        "ram_used_bytes": int(ram.group(1)) << 20 if ram else None,
        "ram_total_bytes": int(ram.group(2)) << 20 if ram else None,
        "cpu_clock_hz": [float(clock.group(1)) * 1e6 if clock else None for clock in clocks],
        "gpu_load": int(gpu.group(1)) / 100.0 if gpu else None,
        "gpu_clock_hz": float(gpu.group(2)) * 1e6 if gpu and gpu.group(2) else None,
        "emc_clock_hz": float(emc.group(2)) * 1e6 if emc and emc.group(2) else None,
        "temp_c": {name: float(value) for name, value in _TEMPERATURE.findall(line)},
        "power_w": {name: int(now) / 1e3 for name, now, _ in _RAIL.findall(line)},
    }


def may_run(listing, argv):
    """Whether ``sudo -n -l`` lists ``argv`` as something that needs no password.

    Commands that the user may run with a password do not count: nobody is there to type it.
    """
    for line in (listing or "").splitlines():
        rule = re.match(r"^\s+\([^)]*\)\s*(.*)$", line)
        if rule and _rule_allows(rule.group(1), argv):
            return True
    return False


def _rule_allows(rule, argv):
    free = False
    for part in rule.split(", "):
        tags, command = _TAGS.match(part.strip()).groups()
        for tag in re.findall(r"[A-Z_]+(?=:)", tags):
            if tag in ("NOPASSWD", "PASSWD"):
                free = tag == "NOPASSWD"
        if free and _command_allows(command, argv):
            return True
    return False


def _command_allows(command, argv):
    if command == "ALL":
        return True
    program, _, arguments = command.partition(" ")
    if os.path.basename(program) != os.path.basename(argv[0]):
        return False
    given = " ".join(argv[1:])
    # No arguments in the rule: any; "" in it: none.
    return not arguments or fnmatch.fnmatchcase(given, "" if arguments == '""' else arguments)
