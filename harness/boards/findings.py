"""From what a board tells of itself to the doctor's checks: pure functions, a section each.

``facts`` are those of the wire's ``inspect.SECTION``, which the connection has validated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.boards.control_findings import controls
from harness.boards.limits import onnx_limits
from harness.boards.tensorrt_findings import tensorrt
from harness.records import BoardSpec, Check, CheckStatus
from harness.tensorrt import chips
from harness.units import format_size, format_time

__all__ = ["FINDINGS", "clock", "precisions"]

Facts = Mapping[str, Any]

LOW_MEMORY_BYTES = 500e6
# TensorRT's builder and a desktop together fill 4 GB; boards with 8 GB and more build without swap.
NEEDS_SWAP_BELOW_BYTES = 6e9
LOW_MARGIN_C = 15.0
# Timestamps and the age of cached files are all that clocks matter for.
SKEW_S = 5.0
BUSY_SHARE, BUSY_GPU_SHARE = 0.25, 0.1
# What boardfit exports by itself.
NEEDED_OPSET = 13
INT8_SENTENCES = {
    "vnni": "VNNI: int8 is fast and exact on this CPU",
    "dotprod": "dot product instructions: int8 is fast and exact on this CPU",
    "avx2": "AVX2 without VNNI: int8 is fast, but sums of products saturate unless weights keep to "
    "seven bits, which boardfit sees to",
    "slow": "no integer dot products: int8 is not faster than fp32 on this CPU, so boardfit fits "
    "widths alone",
}
# Boards seldom have the package nvidia-jetpack; its version follows from L4T's (NVIDIA's JetPack
# archive, and jetson_stats' table of it).
JETPACK = {
    "32.4.4": "4.4.1",
    "32.5.0": "4.5",
    "32.5.1": "4.5.1",
    "32.6.1": "4.6",
    **{f"32.7.{minor}": f"4.6.{minor}" for minor in range(1, 7)},
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
}


def system(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """The board and its system; CUDA and cuDNN where there is a GPU."""
    del spec
    words = [facts["model"] or facts["machine"], facts["os"]]
    l4t = facts["l4t"] or facts["l4t_package"]
    if l4t:
        jetpack = facts["jetpack"] or JETPACK.get(l4t)
        words.append(f"L4T {l4t}" + (f" (JetPack {jetpack})" if jetpack else ""))
    words.append(f"kernel {facts['kernel']}")
    status: CheckStatus = "ok"
    remedy = None
    if facts["l4t"] and facts["l4t_package"] and facts["l4t"] != facts["l4t_package"]:
        words.append(f"but nvidia-l4t-core is {facts['l4t_package']}")
        status, remedy = "warn", "finish the upgrade: sudo apt-get dist-upgrade, then reboot"
    found = ", ".join(words)
    first = Check(name="system", status=status, found=found, remedy=remedy, facts=facts)
    return first, _cuda(facts)


def _cuda(facts: Facts) -> Check:
    gpus = [gpu["name"] + _sm(gpu["compute"]) for gpu in facts["gpus"]]
    versions = [
        f"{name} {facts[key]}" for key, name in (("cuda", "CUDA"), ("cudnn", "cuDNN")) if facts[key]
    ]
    if not gpus:
        return Check(name="gpu", status="skip", found="no NVIDIA GPU was found")
    missing = [name for key, name in (("cuda", "CUDA"), ("cudnn", "cuDNN")) if not facts[key]]
    found = "; ".join([", ".join(gpus), ", ".join(versions) or "neither CUDA nor cuDNN installed"])
    if facts["chip"] and missing:
        return Check(
            name="gpu",
            status="warn",
            found=found,
            remedy=f"install {' and '.join(missing)}: sudo apt-get install nvidia-jetpack",
        )
    return Check(name="gpu", status="ok", found=found)


def _sm(compute: str | None) -> str:
    return "" if compute is None else f" (sm_{compute.replace('.', '')})"


def precisions(system_facts: Facts, tensorrt_facts: Facts | None) -> Check:
    """Which precisions are faster than fp32 on the GPU: TensorRT's own word, else the chip's."""
    name, gpus = "gpu precisions", system_facts["gpus"]
    if not gpus:
        return Check(name=name, status="skip", found="no NVIDIA GPU was found")
    compute = gpus[0]["compute"]
    asked = tensorrt_facts or {"fast_fp16": None, "fast_int8": None}
    fp16, int8, source = asked["fast_fp16"], asked["fast_int8"], "TensorRT says so"
    if (fp16 is None or int8 is None) and compute is not None:
        fp16, int8 = chips.of_compute(compute)
        source = f"by its compute capability {compute}"
    if fp16 is None or int8 is None:
        return Check(
            name=name,
            status="warn",
            found=f"{gpus[0]['name']}: its compute capability is not known",
            remedy="measure fp32 and fp16 engines of one network before you rely on either",
        )
    words = {
        (True, True): "fp16 and int8 are both faster than fp32",
        (True, False): "fp16 is faster than fp32; int8 is not, and only makes files smaller",
        (False, True): "int8 is faster than fp32, fp16 is not",
        (False, False): "neither fp16 nor int8 is faster than fp32",
    }[fp16, int8]
    facts = {"compute": compute, "fast_fp16": fp16, "fast_int8": int8}
    return Check(name=name, status="ok", found=f"{words} ({source})", facts=facts)


def memory(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """Memory and swap."""
    del spec
    total, free = facts["total_bytes"], facts["available_bytes"]
    if total is None or free is None:
        return (Check(name="memory", status="skip", found="the board does not tell"),)
    low = free < LOW_MEMORY_BYTES
    remedy = (
        "stop programs there; a desktop alone takes several hundred MB "
        "(sudo systemctl isolate multi-user.target ends it until the next boot)"
    )
    first = Check(
        name="memory",
        status="warn" if low else "ok",
        found=f"{format_size(free)} of {format_size(total)} are free",
        remedy=remedy if low else None,
        facts=facts,
    )
    return first, _swap(facts, total)


def _swap(facts: Facts, total: int) -> Check:
    size = facts["swap_total_bytes"] or 0
    on_disk = sum(s["size_bytes"] for s in facts["swaps"] if not s["name"].startswith("/dev/zram"))
    if total >= NEEDS_SWAP_BELOW_BYTES or on_disk:
        found = f"{format_size(size)}, {format_size(on_disk)} of it on disk" if size else "none"
        return Check(name="swap", status="ok", found=found)
    found = f"{format_size(size)}, all of it in memory (zram)" if size else "none"
    return Check(
        name="swap",
        status="warn",
        found=found + f"; builds of engines are killed where {format_size(total)} do not suffice",
        remedy="add 4 GB on disk: sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && "
        "sudo mkswap /swapfile && sudo swapon /swapfile",
    )


def cpu(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """What integer kernels are worth on the CPU."""
    del spec
    model = facts["model"] or "CPU"
    plural = "" if facts["cores"] == 1 else "s"
    found = f"{model}, {facts['cores']} core{plural}; {INT8_SENTENCES[facts['int8']]}"
    return (Check(name="cpu", status="ok", found=found, facts=facts),)


def onnxruntime(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """onnxruntime for the board's Python, and which ONNX files it reads."""
    needed = spec.runtime == "onnxruntime"
    version, error = facts["version"], facts["error"]
    if version is None and not needed:
        found = f"not there for {spec.python}, and not needed: the runtime is {spec.runtime}"
        return (Check(name="onnxruntime", status="skip", found=found, facts=facts),)
    if version is None or (error and needed):
        return (
            Check(
                name="onnxruntime",
                status="fail",
                found=f"{spec.python} cannot use it: {error}",
                remedy=_how_to_get_onnxruntime(str(error), spec),
                facts=facts,
            ),
        )
    found = f"{version} with {', '.join(facts['providers'])}"
    return Check(name="onnxruntime", status="ok", found=found, facts=facts), _onnx_files(facts)


def _how_to_get_onnxruntime(error: str, spec: BoardSpec) -> str:
    other = 'or set python = "..." for the board to an interpreter that has it'
    if "SIGILL" in error:
        return (
            "it was built for another CPU: on a Jetson Nano install numpy==1.19.5 and "
            f"onnxruntime==1.10.0 for {spec.python}, {other}"
        )
    return (
        f"{spec.python} -m pip install onnxruntime (for Python 3.6: onnxruntime==1.10.0 "
        f"numpy==1.19.5), {other}"
    )


def _onnx_files(facts: Facts) -> Check:
    opset, ir, how = facts["opset"], facts["ir"], "tried there"
    if opset is None or ir is None:
        known = onnx_limits("onnxruntime", facts["version"])
        if known is None:
            return Check(
                name="onnx files",
                status="warn",
                found=f"which opsets onnxruntime {facts['version']} reads is not known",
                remedy="install onnxruntime 1.10 or later",
            )
        opset, ir = known.opset, known.ir
        how = "by its version" if known.proven else "at least, by earlier versions"
    limits = {"opset": opset, "ir": ir}
    found = f"up to opset {opset} and IR version {ir} ({how})"
    if opset < NEEDED_OPSET:
        return Check(
            name="onnx files",
            status="warn",
            found=f"{found}, but boardfit writes opset {NEEDED_OPSET}",
            remedy="install onnxruntime 1.10 or later",
            facts=limits,
        )
    return Check(name="onnx files", status="ok", found=found, facts=limits)


def thermal(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """The zone that is nearest to slowing the board down."""
    del spec
    zones = facts["zones"]
    if not zones:
        return (Check(name="temperature", status="skip", found="the board tells none"),)
    margins = [
        (trip["temp_c"] - zone["temp_c"], zone, trip) for zone in zones for trip in zone["trips"]
    ]
    hottest = max(zones, key=lambda zone: zone["temp_c"])
    found = f"{hottest['name']} is hottest with {hottest['temp_c']:.0f} °C"
    low = False
    if margins:
        margin_c, zone, trip = min(margins, key=lambda row: row[0])
        low = margin_c < LOW_MARGIN_C
        found += f"; {zone['name']} is {margin_c:.0f} °C below its {trip['kind']} trip point "
        found += f"({trip['temp_c']:.0f} °C)"
    if facts["throttled"]:
        found += "; the board is being slowed down now"
    bad = low or bool(facts["throttled"])
    remedy = "cool the board (a fan, air around it) and let it rest before measuring"
    return (
        Check(
            name="temperature",
            status="warn" if bad else "ok",
            found=found,
            remedy=remedy if bad else None,
            facts=facts,
        ),
    )


def power(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """The power rails that can be read."""
    del spec
    known = [rail for rail in facts["rails"] if rail["power_w"] is not None]
    if not known:
        found = "the board measures none, so energy is not reported"
        return (Check(name="power rails", status="skip", found=found),)
    found = ", ".join(f"{rail['name']} {rail['power_w']:.2f} W" for rail in known)
    return (Check(name="power rails", status="ok", found=found, facts=facts),)


def clock(now_s: float, *, sent_s: float, received_s: float) -> Check:
    """The board's clock against the host's, which asked at ``sent_s`` and heard at ``received_s``.

    The answer was written somewhere between the two (as in NTP, RFC 5905, section 8).
    """
    skew_s, half_s = now_s - (sent_s + received_s) / 2, (received_s - sent_s) / 2
    facts = {"skew_s": skew_s, "uncertainty_s": half_s}
    if abs(skew_s) - half_s <= SKEW_S:
        found = f"within {format_time(max(abs(skew_s), half_s))} of this computer's"
        return Check(name="time", status="ok", found=found, facts=facts)
    way = "ahead of" if skew_s > 0 else "behind"
    days = f"{abs(skew_s) / 86400:.0f} days" if abs(skew_s) > 2 * 86400 else f"{abs(skew_s):.0f} s"
    return Check(
        name="time",
        status="warn",
        found=f"{days} {way} this computer's",
        remedy="sudo timedatectl set-ntp true (boards without a battery start in the past)",
        facts=facts,
    )


def lease(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """Who measures on the board now."""
    del spec
    holder = facts["holder"]
    if holder is None:
        return (Check(name="lease", status="ok", found="free: nobody measures now"),)
    found = f"held by {holder['owner']} for {format_time(holder['held_s'])}: a {holder['kind']} job"
    if holder["left_s"]:
        found += f", by its plan for {format_time(holder['left_s'])} more at least"
    remedy = "wait for its end; jobs that are submitted meanwhile queue up"
    return (Check(name="lease", status="warn", found=found, remedy=remedy, facts=holder),)


def load(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """Programs that would disturb a measurement."""
    del spec
    busy, gpu = facts["processes"], facts["gpu_load"]
    total = sum(one["cpu_share"] for one in busy)
    loadavg = facts["load_1min"]
    more = "" if loadavg is None else f"; load {loadavg:.2f} on {facts['cores']} cores"
    more += "" if gpu is None else f"; the GPU is busy {gpu:.0%} of the time"
    if total < BUSY_SHARE and (gpu is None or gpu < BUSY_GPU_SHARE):
        found = f"other programs use {total:.0%} of a core{more}"
        return (Check(name="load", status="ok", found=found, facts=facts),)
    names = ", ".join(f"{p['name']} ({p['pid']}) {p['cpu_share']:.0%}" for p in busy)
    used = f"other programs are busy: {names} of a core" if busy else "the CPU is idle"
    remedy = "stop them before measuring: every share that they take is noise"
    return (Check(name="load", status="warn", found=used + more, remedy=remedy, facts=facts),)


def cache(facts: Facts, spec: BoardSpec) -> tuple[Check, ...]:
    """How much the agent's folder holds; the agent itself keeps files under ``cache_bytes``."""
    used = facts["used"]
    total = sum(used.values())
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in used.items() if size)
    found = f"{format_size(total)} in {facts['path']}" + (f" ({parts})" if parts else "")
    if not facts["complete"]:
        found = f"more than {found}"
    if total <= 2 * spec.cache_bytes:
        return (Check(name="cache", status="ok", found=found, facts=facts),)
    found += f", twice the {format_size(spec.cache_bytes)} that files may take"
    remedy = f"while nothing is measured, remove {facts['path']}/jobs: results not fetched are lost"
    return (Check(name="cache", status="warn", found=found, remedy=remedy, facts=facts),)


FINDINGS: Mapping[str, Callable[[Facts, BoardSpec], tuple[Check, ...]]] = {
    "system": system,
    "cpu": cpu,
    "memory": memory,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
    "controls": controls,
    "thermal": thermal,
    "power": power,
    "lease": lease,
    "load": load,
    "cache": cache,
}
