"""What the doctor asks of a board: one function for each section of the wire's ``inspect``.

Parsing is apart from reading: the functions that take ``text`` are pure, those that take ``root``
read a tree of files. What a board does not tell is None.
"""

import glob
import os
import platform
import re
import shutil
import socket
import time

from . import board, controls, cuda, runtimes, telemetry
from .runtimes import run
from .telemetry import read_number, read_text

ROOT = telemetry.ROOT
# Name and compute capability by the last word of the device tree's "compatible" (NVIDIA's CUDA
# GPUs page lists them: Nano and TX1 5.3, TX2 6.2, Xavier 7.2, Orin 8.7).
CHIPS = {
    "tegra210": ("Tegra X1", "5.3"),
    "tegra186": ("Tegra X2", "6.2"),
    "tegra194": ("Xavier", "7.2"),
    "tegra234": ("Orin", "8.7"),
}
# JetPack's packages, by the name of what they tell.
PACKAGES = {
    "l4t": r"nvidia-l4t-core",
    "jetpack": r"nvidia-jetpack",
    "tensorrt": r"libnvinfer\d+",
    "tensorrt_python": r"python3-libnvinfer",
    "cudnn": r"libcudnn\d+(-cuda-\d+)?",
    "cuda": r"cuda-cudart-\d+-\d+",
}
# Read as 100 degrees on every Nano and TX2, whatever the temperature is.
DEAD_ZONES = ("PMIC-Die",)
# What a "Features" or "flags" line may hold that integer kernels live on.
INT8_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
# Thousandths, on JetPack 4 and on later ones.
GPU_LOAD = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")
LOAD_SAMPLE_S = 0.4
# A program below this share of one core is background noise.
BUSY_SHARE = 0.05
MOST_PROCESSES = 5
# A driver that hangs, or TensorRT-RTX, must not take the time that TensorRT's bindings may need.
CUDA_TIMEOUT_S = 30
MOST_FILES = 200000


# --- parsing ------------------------------------------------------------------------------------


def l4t_release(text):
    """``32.7.1`` from the first line of /etc/nv_tegra_release, or None."""
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text or "")
    return None if found is None else "%s.%s" % found.groups()


def packages(text):
    """Versions of JetPack's installed packages, from lines ``ii NAME VERSION ...``.

    Such lines come from ``dpkg -l`` and from dpkg-query's ``${db:Status-Abbrev}${Package}
    ${Version}``; a package that was removed begins with another word than ii.
    """
    found = dict.fromkeys(PACKAGES)
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) < 3 or words[0] != "ii":
            continue
        name = words[1].partition(":")[0]
        for key, pattern in PACKAGES.items():
            if re.match(pattern + "$", name):
                found[key] = words[2]
    return found


def release_of(version):
    """The upstream part of a package's version: ``32.7.4`` of ``32.7.4-20230608212426``."""
    return None if version is None else re.split(r"[-+]", version)[0]


def cuda_release(version_txt, version_json):
    """The toolkit's version from its version.txt (10.2 and before) or version.json, or None."""
    found = re.search(r"CUDA Version ([\d.]+)", version_txt or "")
    # Its first entry is the toolkit itself.
    found = found or re.search(
        r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', version_json or ""
    )
    return None if found is None else found.group(1)


def cudnn_release(header):
    """cuDNN's version from cudnn_version.h, or None."""
    parts = [
        re.search(r"#define CUDNN_%s (\d+)" % name, header or "")
        for name in ("MAJOR", "MINOR", "PATCHLEVEL")
    ]
    return ".".join(part.group(1) for part in parts) if all(parts) else None


def memory_of(meminfo, swaps):
    """Bytes of memory and swap, from /proc/meminfo and /proc/swaps."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo or "", re.MULTILINE))

    def size(name):
        return int(values[name]) * 1024 if name in values else None

    rows = [line.split() for line in (swaps or "").splitlines()[1:]]
    return {
        "total_bytes": size("MemTotal"),
        "available_bytes": size("MemAvailable"),
        "swap_total_bytes": size("SwapTotal"),
        "swap_free_bytes": size("SwapFree"),
        "swaps": [
            {"name": row[0], "size_bytes": int(row[2]) * 1024, "used_bytes": int(row[3]) * 1024}
            for row in rows
            if len(row) >= 4
        ],
    }


def gpus_of(text):
    """GPUs from nvidia-smi's name, compute_cap and driver_version, as ``--format=csv,noheader``."""
    rows = [[cell.strip() for cell in line.split(",")] for line in (text or "").splitlines()]
    known = re.compile(r"^\d+\.\d+$")
    return [
        {"name": row[0], "compute": row[1] if known.match(row[1]) else None, "driver": row[2]}
        for row in rows
        if len(row) == 3
    ]


def cpu_part(cpuinfo):
    """The name of the CPU: ``model name``, or that of Arm's part number, or None."""
    names = {"0xd03": "Cortex-A53", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72"}
    names.update({"0xd0b": "Cortex-A76", "0xd42": "Cortex-A78AE", "0x004": "Carmel"})
    part = re.search(r"^CPU part\s*:\s*(0x\w+)", cpuinfo or "", re.MULTILINE)
    if part and part.group(1) in names:
        return names[part.group(1)]
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo or "", re.MULTILINE)
    return model.group(1).strip() if model else None


def cpu_of(cpuinfo):
    """What integer kernels can use, from /proc/cpuinfo."""
    lines = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo or "", re.MULTILINE)
    flags = set(" ".join(lines).split())
    return {
        "model": cpu_part(cpuinfo),
        "flags": [flag for flag in INT8_FLAGS if flag in flags],
        "int8": telemetry.int8_capability(cpuinfo),
        "simd": telemetry.simd(cpuinfo),
    }


def os_name(text):
    """The system's name and version from /etc/os-release, or None."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', text or "", re.MULTILINE)
    return None if found is None else found.group(1)


def process_of(stat):
    """Name and ticks of CPU time of a process, from /proc/PID/stat; None where it has ended."""
    head, _, tail = (stat or "").rpartition(")")
    fields = tail.split()
    if len(fields) < 13:
        return None
    return head.partition("(")[2], int(fields[11]) + int(fields[12])


# --- sections -----------------------------------------------------------------------------------


def system(cache_dir, root=ROOT, run=run):
    """Board, operating system, L4T and JetPack, CUDA and cuDNN, GPUs."""
    del cache_dir
    compatible = (read_text(os.path.join(root, "proc/device-tree/compatible")) or "").split("\0")
    chip = next((name for name in reversed(compatible) if name.startswith("nvidia,tegra")), None)
    chip = None if chip is None else chip.partition(",")[2]
    listing = run(
        ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Package} ${Version}\n"]
        + ["nvidia-l4t-core", "nvidia-jetpack", "libnvinfer*", "python3-libnvinfer"]
        + ["libcudnn*", "cuda-cudart-*"]
    )[1]
    installed = packages(listing)
    uptime = read_text(os.path.join(root, "proc/uptime"))
    model = read_text(os.path.join(root, "proc/device-tree/model"))
    name, compute = CHIPS.get(chip, (None, None))
    gpus = [{"name": name, "compute": compute, "driver": None}] if name else _gpus(run)
    return {
        "hostname": socket.gethostname(),
        "machine": platform.machine(),
        "model": model.strip("\0") if model else None,
        "chip": chip,
        "os": os_name(read_text(os.path.join(root, "etc/os-release"))) or platform.system(),
        "kernel": platform.release(),
        "uptime_s": float(uptime.split()[0]) if uptime else None,
        "l4t": l4t_release(read_text(os.path.join(root, "etc/nv_tegra_release"))),
        "l4t_package": release_of(installed["l4t"]),
        "jetpack": release_of(installed["jetpack"]),
        "cuda": _cuda(root) or release_of(installed["cuda"]),
        "cudnn": _cudnn(root) or release_of(installed["cudnn"]),
        "gpus": gpus,
    }


def _gpus(run):
    query = ["--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    code, text = run(["nvidia-smi"] + query)
    return gpus_of(text) if code == 0 else []


def _cuda(root):
    folder = os.path.join(root, "usr/local/cuda")
    texts = [read_text(os.path.join(folder, name)) for name in ("version.txt", "version.json")]
    return cuda_release(*texts)


def _cudnn(root):
    for pattern in ("usr/include/cudnn_version.h", "usr/include/*/cudnn_version_v*.h"):
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            found = cudnn_release(read_text(path))
            if found:
                return found
    return None


def memory(cache_dir, root=ROOT):
    """Memory and swap."""
    del cache_dir
    names = ("proc/meminfo", "proc/swaps")
    return memory_of(*[read_text(os.path.join(root, name)) for name in names])


def cpu(cache_dir, root=ROOT):
    """The CPU and its integer instructions."""
    del cache_dir
    found = cpu_of(read_text(os.path.join(root, "proc/cpuinfo")))
    found["cores"] = os.cpu_count() or 1
    return found


def onnxruntime(cache_dir):
    """onnxruntime for the agent's Python."""
    del cache_dir
    found = dict(providers=[], opset=None, ir=None)
    found.update(runtimes.probe("onnxruntime"))
    return found


def tensorrt(cache_dir, root=ROOT):
    """TensorRT and TensorRT-RTX for the agent's Python, trtexec, CUDA, and what is missing."""
    del cache_dir
    found = dict(fast_fp16=None, fast_int8=None, features=[])
    found.update(runtimes.probe("tensorrt"), trtexec=runtimes.trtexec(root, shutil.which))
    found["rtx"] = runtimes.probe("tensorrt_rtx", CUDA_TIMEOUT_S)["version"]
    gpu = runtimes.probe("cuda", CUDA_TIMEOUT_S)
    found["cuda"] = {name: gpu.get(name) for name in ("runtime", "driver", "compute", "error")}
    found["missing"] = missing(found)
    return found


def missing(facts):
    """One line on what TensorRT lacks here, or None."""
    lacks = []
    if facts["cuda"]["error"]:
        # The doctor has a line of its own for what to do about it.
        told = facts["cuda"]["error"].rpartition("NoCuda: ")[2]
        lacks.append("CUDA (%s)" % told.partition("; " + cuda.LOOK)[0])
    if facts["version"] is None and facts["rtx"] is None and facts["trtexec"] is None:
        lacks.append("TensorRT's Python bindings (%s) and trtexec" % facts["error"])
    return "TensorRT cannot run here; missing: " + ", ".join(lacks) if lacks else None


def thermal(cache_dir, root=ROOT):
    """Every thermal zone with the temperatures at which the board slows down or goes off."""
    del cache_dir
    zones = []
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*"))):
        name = read_text(os.path.join(folder, "type"))
        temp_c = read_number(os.path.join(folder, "temp"), 1e-3)
        if temp_c is None or not -20.0 < temp_c < 150.0 or name in DEAD_ZONES:
            continue
        trips = []
        for path in sorted(glob.glob(os.path.join(folder, "trip_point_*_temp"))):
            trip_c = read_number(path, 1e-3)
            kind = read_text(path[: -len("temp")] + "type")
            # "active" trips turn fans; a temperature of 0 or below is a trip that is switched off.
            if kind in ("passive", "hot", "critical") and trip_c is not None and trip_c > 0:
                trips.append({"kind": kind, "temp_c": trip_c})
        zones.append({"name": name or os.path.basename(folder), "temp_c": temp_c, "trips": trips})
    return {"zones": zones, "throttled": telemetry.throttled(root)}


def power(cache_dir, root=ROOT):
    """Every rail that an INA3221 measures (Jetson): iio up to JetPack 4, hwmon from 5 on."""
    del cache_dir
    rails = []
    drivers = os.path.join(root, "sys/bus/i2c/drivers")
    for path in sorted(glob.glob(os.path.join(drivers, "ina3221x/*/iio:device*/rail_name_*"))):
        number = path.rpartition("_")[2]
        power_w = read_number(
            os.path.join(os.path.dirname(path), "in_power%s_input" % number), 1e-3
        )
        rails.append({"name": read_text(path) or "", "power_w": power_w})
    for path in sorted(glob.glob(os.path.join(drivers, "ina3221/*/hwmon/hwmon*/in*_label"))):
        number = os.path.basename(path)[len("in") : -len("_label")]
        volts = read_number(path[: -len("label")] + "input", 1e-3)
        amperes = read_number(os.path.join(os.path.dirname(path), "curr%s_input" % number), 1e-3)
        if volts is not None and amperes is not None:
            rails.append({"name": read_text(path) or "", "power_w": volts * amperes})
    return {"rails": rails}


def settings(cache_dir):
    """Power mode, clocks, governor, fan; and what lets the agent change them."""
    del cache_dir
    knobs = board.Board()
    models = board.power_modes(knobs)
    return {
        "state": controls.state_of(knobs),
        "sudo_remedy": controls.sudo_remedy(knobs, models),
    }


def clock(cache_dir):
    """The board's clock: seconds since 1970, for the host to compare with its own."""
    del cache_dir
    return {"now_s": time.time()}


def load(cache_dir, root=ROOT):
    """Load, and the programs that use a CPU now; the agent and boardfit's jobs are left out."""
    del cache_dir
    before, start_s = _ticks(root), time.perf_counter()
    gpu_before = _gpu_load(root)
    time.sleep(LOAD_SAMPLE_S)
    after, passed_s = _ticks(root), time.perf_counter() - start_s
    scale = 1.0 / (os.sysconf("SC_CLK_TCK") * passed_s)
    busy = []
    for number, (name, ticks) in after.items():
        share = (ticks - before.get(number, (name, ticks))[1]) * scale
        if share >= BUSY_SHARE and not _is_ours(number, root):
            busy.append({"pid": number, "name": name, "cpu_share": share})
    loadavg = read_text(os.path.join(root, "proc/loadavg"))
    return {
        "load_1min": float(loadavg.split()[0]) if loadavg else None,
        "cores": os.cpu_count() or 1,
        "gpu_load": max(
            [one for one in (gpu_before, _gpu_load(root)) if one is not None] or [None]
        ),
        "processes": sorted(busy, key=lambda one: -one["cpu_share"])[:MOST_PROCESSES],
    }


def _gpu_load(root):
    """The share of time that the GPU (Jetson) was busy in its last sampling period."""
    for pattern in GPU_LOAD:
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            return read_number(path, 1e-3)
    return None


def _ticks(root):
    found = {}
    for path in glob.glob(os.path.join(root, "proc/[0-9]*/stat")):
        process = process_of(read_text(path))
        if process is not None:
            found[int(path.split("/")[-2])] = process
    return found


def _is_ours(number, root):
    command = read_text(os.path.join(root, "proc/%d/cmdline" % number)) or ""
    return number == os.getpid() or "device_agent" in command


def cache(cache_dir):
    """How much the agent's folder holds, by what it is for, and the file system it lies on."""
    used, left = {}, MOST_FILES
    for name in sorted(os.listdir(cache_dir)):
        path = os.path.join(cache_dir, name)
        total = 0
        for folder, _, files in os.walk(path):
            for one in files[:left]:
                try:
                    total += os.lstat(os.path.join(folder, one)).st_size
                except OSError:
                    continue  # removed since
            left -= len(files)
            if left <= 0:
                break
        used[name] = total if os.path.isdir(path) else os.lstat(path).st_size
    return {"path": cache_dir, "used": used, "complete": left > 0}


SECTIONS = {
    "system": system,
    "memory": memory,
    "cpu": cpu,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
    "thermal": thermal,
    "power": power,
    "clock": clock,
    "load": load,
    "cache": cache,
    "controls": settings,
}


def inspect(section, cache_dir):
    """One section's facts."""
    return SECTIONS[section](cache_dir)
