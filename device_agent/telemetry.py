"""What a board tells of itself in /proc and /sys; whatever cannot be read is None."""

import glob
import os
import platform
import socket
import subprocess
import sys

# Nano (L4T 32.x): the GPU's devfreq node, the same path on all its carrier boards.
NANO_GPU_CLOCK = "sys/devices/gpu.0/devfreq/57000000.gpu/cur_freq"
# The rails that carry the whole board's power, by the name their driver gives them.
TOTAL_RAILS = ("POM_5V_IN", "VDD_IN")
# Raspberry Pi: bits 0 to 3 of the firmware's word are what throttles now.
PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"


def read_text(path):
    """A file's text without the blanks around it, or None."""
    try:
        with open(path, errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return None


def read_number(path, scale=1.0):
    """The number in a file, times ``scale``, or None."""
    text = read_text(path)
    try:
        return None if text is None else float(text) * scale
    except ValueError:
        return None


def _paths(root, pattern):
    return sorted(glob.glob(os.path.join(root, pattern)))


def _field_values(text, name):
    rows = (line.partition(":") for line in (text or "").splitlines())
    return [value.strip() for key, _, value in rows if key.strip() == name]


def cpu_clock_hz(root="/"):
    """Clock of every CPU in Hz."""
    found = [
        read_number(path, 1e3)
        for path in _paths(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    ]
    if not found:
        cpuinfo = read_text(os.path.join(root, "proc/cpuinfo"))
        found = [float(value) * 1e6 for value in _field_values(cpuinfo, "cpu MHz")]
    known = [value for value in found if value is not None]
    return known or None


def temp_c(root="/"):
    """The hottest thermal zone; zones outside -20 to 150 degrees are sensors that are not there."""
    zones = [
        read_number(path, 1e-3) for path in _paths(root, "sys/class/thermal/thermal_zone*/temp")
    ]
    known = [value for value in zones if value is not None and -20.0 < value < 150.0]
    return max(known) if known else None


def power_w(root="/"):
    """Power drawn by the whole board, where an INA3221 measures it (Jetson)."""
    for name in _paths(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        if read_text(name) in TOTAL_RAILS:
            number = name.rpartition("_")[2]
            folder = os.path.dirname(name)
            return read_number(os.path.join(folder, "in_power%s_input" % number), 1e-3)
    return None


def throttle_count(root="/"):
    """How often the CPUs have throttled since boot (x86), or None."""
    counts = [
        read_number(path)
        for path in _paths(
            root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
        )
    ]
    known = [value for value in counts if value is not None]
    return sum(known) if known else None


def throttled(root="/", count_before=None):
    """Whether the board throttles now, or has since ``count_before`` was counted; None: unknown."""
    word = read_text(os.path.join(root, PI_THROTTLED))
    if word is not None:
        try:
            return bool(int(word, 16) & 0xF)
        except ValueError:
            return None
    count = throttle_count(root)
    if count is not None and count_before is not None:
        return count > count_before
    states = []
    for folder in _paths(root, "sys/class/thermal/cooling_device*"):
        kind = read_text(os.path.join(folder, "type")) or ""
        state = read_number(os.path.join(folder, "cur_state"))
        # A fan that turns is no throttling; powerclamp reports -1 when idle.
        if "fan" not in kind and state is not None:
            states.append(state > 0)
    return any(states) if states else None


def conditions(root="/", count_before=None):
    """The state of the board now, as the wire's ``conditions``."""
    meminfo = read_text(os.path.join(root, "proc/meminfo"))
    available = _field_values(meminfo, "MemAvailable")
    load = read_text(os.path.join(root, "proc/loadavg"))
    return {
        "cpu_clock_hz": cpu_clock_hz(root),
        "gpu_clock_hz": read_number(os.path.join(root, NANO_GPU_CLOCK)),
        "temp_c": temp_c(root),
        "throttled": throttled(root, count_before),
        "load_1min": float(load.split()[0]) if load else None,
        "free_memory_bytes": int(available[0].split()[0]) * 1024 if available else None,
        "power_w": power_w(root),
    }


def memory_kill(process, log=None):
    """The kernel's line on having killed ``process`` for lack of memory, or None.

    ``log`` is the kernel's log; by default what dmesg prints, which some boards keep to root.
    """
    if log is None:
        log = _output(["dmesg"])
    for line in (log or "").splitlines():
        # "Killed process 123 (python3)", before Linux 4.19 "Kill process 123 (python3) score".
        words = line.replace("Kill process", "Killed process").partition("Killed process ")[2]
        if words.split(None, 1)[:1] == [str(process)]:
            return line.strip()
    return None


def _output(argv):
    """What a program prints on stdout, or None where it cannot be run."""
    try:
        found = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.decode(errors="replace")


def _cpu_flags(cpuinfo):
    return set(
        " ".join(_field_values(cpuinfo, "flags") + _field_values(cpuinfo, "Features")).split()
    )


def simd(cpuinfo):
    """The widest vector unit, from the text of /proc/cpuinfo; None if it is none of the known."""
    flags = _cpu_flags(cpuinfo)
    for name, flag in (
        ("avx512", "avx512f"),
        ("avx2", "avx2"),
        ("neon", "asimd"),
        ("neon", "neon"),
    ):
        if flag in flags:
            return name
    return None


def int8_capability(cpuinfo):
    """What integer kernels are worth, from the text of /proc/cpuinfo."""
    flags = _cpu_flags(cpuinfo)
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "vnni"
    if "asimddp" in flags:
        return "dotprod"
    return "avx2" if "avx2" in flags else "slow"


def _os_name():
    values = {}
    for line in (read_text("/etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        values[key] = value.strip('"')
    tegra = read_text("/etc/nv_tegra_release")
    name = values.get("PRETTY_NAME", platform.system())
    return name if tegra is None else "%s, L4T %s" % (name, tegra.split(",")[0].lstrip("# "))


def _power_mode():
    """The name of nvpmodel's mode (Jetson), or None."""
    names = _field_values(_output(["nvpmodel", "-q"]), "NV Power Mode")
    return names[0] if names else None


def facts():
    """What the board is; without its runtime."""
    cpuinfo = read_text("/proc/cpuinfo") or ""
    cpu_model = read_text("/proc/device-tree/model")
    for name in ("model name", "Hardware", "Model"):
        cpu_model = cpu_model or next(iter(_field_values(cpuinfo, name)), None)
    total = _field_values(read_text("/proc/meminfo"), "MemTotal")
    return {
        "hostname": socket.gethostname(),
        "machine": platform.machine(),
        "cpu_model": (cpu_model or platform.processor() or "unknown").strip("\0"),
        "cores": os.cpu_count() or 1,
        "memory_bytes": int(total[0].split()[0]) * 1024 if total else 0,
        "os": _os_name(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "int8": int8_capability(cpuinfo),
        "power_mode": _power_mode(),
        "simd": simd(cpuinfo),
    }
