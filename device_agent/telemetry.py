"""What a board tells of itself in /proc and /sys; whatever cannot be read is None."""

import contextlib
import glob
import os
import platform
import re
import socket
import subprocess
import sys

# Where /proc and /sys lie; tests lay a board out in a folder.
ROOT = os.environ.get("BOARDFIT_BOARD_ROOT", "/")
# Where the GPU's devfreq node lies: L4T 32 (gpu.0 is a link, the same on all carrier boards), what
# every kernel has, and the platform bus of JetPack 4 and 5.
GPU_PLACES = (
    "sys/devices/gpu.0/devfreq/*",
    "sys/class/devfreq/*",
    "sys/devices/*/devfreq/*",
    "sys/devices/platform/*/devfreq/*",
)
# Nano and TX1, TX2, Xavier, Orin, and Orin with JetPack 6: other nodes are video engines.
GPU_NAME = re.compile(r"^[0-9a-f]+\.(gpu|gm20b|gp10b|gv11b|ga10b)$|^gpu-gpc-0$")
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


_remembered = None


@contextlib.contextmanager
def remembered_paths():
    """Inside, files are looked for only once, which is most of a look's cost; none come or go."""
    global _remembered
    _remembered = {}
    try:
        yield
    finally:
        _remembered = None


def _paths(root, pattern):
    path = os.path.join(root, pattern)
    if _remembered is None:
        return sorted(glob.glob(path))
    if path not in _remembered:
        _remembered[path] = sorted(glob.glob(path))
    return _remembered[path]


def _field_values(text, name):
    rows = (line.partition(":") for line in (text or "").splitlines())
    return [value.strip() for key, _, value in rows if key.strip() == name]


def cpu_clock_hz(root=ROOT):
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


def temp_c(root=ROOT):
    """The hottest thermal zone; zones outside -20 to 150 degrees are sensors that are not there."""
    zones = [
        read_number(path, 1e-3) for path in _paths(root, "sys/class/thermal/thermal_zone*/temp")
    ]
    known = [value for value in zones if value is not None and -20.0 < value < 150.0]
    return max(known) if known else None


def gpu_folder(root=ROOT):
    """The devfreq folder of the GPU (Jetson), or None."""
    for pattern in GPU_PLACES:
        for path in _paths(root, pattern):
            if GPU_NAME.match(os.path.basename(path)):
                return path
    return None


def gpu_clock_hz(root=ROOT):
    """Clock of the GPU (Jetson) in Hz."""
    folder = gpu_folder(root)
    return None if folder is None else read_number(os.path.join(folder, "cur_freq"))


def power_w(root=ROOT):
    """Power drawn by the whole board, where an INA3221 measures it (Jetson).

    JetPack 4's driver tells milliwatts; that of JetPack 5 and later millivolts and milliamperes.
    """
    for name in _paths(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        if read_text(name) in TOTAL_RAILS:
            number = name.rpartition("_")[2]
            folder = os.path.dirname(name)
            return read_number(os.path.join(folder, "in_power%s_input" % number), 1e-3)
    for name in _paths(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"):
        if read_text(name) in TOTAL_RAILS:
            voltage = read_number(name[: -len("label")] + "input", 1e-3)
            number = os.path.basename(name)[len("in") : -len("_label")]
            current = os.path.join(os.path.dirname(name), "curr%s_input" % number)
            current_a = read_number(current, 1e-3)
            return None if voltage is None or current_a is None else voltage * current_a
    return None


def _sum(root, pattern):
    known = [value for value in map(read_number, _paths(root, pattern)) if value is not None]
    return int(sum(known)) if known else None


def over_current_count(root=ROOT):
    """How often under-voltage or over-current has slowed the board down since boot (Orin)."""
    return _sum(root, "sys/class/hwmon/hwmon*/oc[0-9]*_event_cnt")


def throttle_count(root=ROOT):
    """How often the board has throttled since boot: CPUs (x86) and over-current (Orin), or None."""
    cpus = _sum(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    events = over_current_count(root)
    return None if cpus is None and events is None else (cpus or 0) + (events or 0)


def cooling(root=ROOT):
    """What is slowed down to cool the board now, by its type; None where nothing could be."""
    active, known = [], False
    for folder in _paths(root, "sys/class/thermal/cooling_device*"):
        kind = read_text(os.path.join(folder, "type")) or ""
        state = read_number(os.path.join(folder, "cur_state"))
        # A fan that turns is no throttling; powerclamp reports -1 when idle.
        if "fan" not in kind and state is not None:
            known = True
            active += [kind] if state > 0 else []
    return active if known else None


def throttled(root=ROOT, count_before=None):
    """Whether the board throttles now, or has since ``count_before`` was counted; None: unknown."""
    word = read_text(os.path.join(root, PI_THROTTLED))
    if word is not None:
        try:
            return bool(int(word, 16) & 0xF)
        except ValueError:
            return None
    count, active = throttle_count(root), cooling(root)
    if count is not None and count_before is not None:
        # A PC's other cooling devices do not tell; an Orin's do.
        also = bool(active) and over_current_count(root) is not None
        return count > count_before or also
    return None if active is None else bool(active)


def conditions(root=ROOT, count_before=None):
    """The state of the board now, as the wire's ``conditions``."""
    meminfo = read_text(os.path.join(root, "proc/meminfo"))
    available = _field_values(meminfo, "MemAvailable")
    load = read_text(os.path.join(root, "proc/loadavg"))
    return {
        "cpu_clock_hz": cpu_clock_hz(root),
        "gpu_clock_hz": gpu_clock_hz(root),
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
