"""From facts to checks: what is said of boards that cannot be had here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.boards import findings
from harness.boards.control_findings import controls
from harness.records import BoardSpec, Check

NANO = BoardSpec(name="nano", host="jetson-nano")
GB = 1_000_000_000
SYSTEM: dict[str, Any] = {
    "hostname": "nano",
    "machine": "aarch64",
    "model": "NVIDIA Jetson Nano Developer Kit",
    "chip": "tegra210",
    "os": "Ubuntu 18.04.6 LTS",
    "kernel": "4.9.253-tegra",
    "uptime_s": 350.0,
    "l4t": "32.7.1",
    "l4t_package": "32.7.1",
    "jetpack": "4.6.1",
    "cuda": "10.2.300",
    "cudnn": "8.2.1",
    "gpus": [{"name": "Tegra X1", "compute": "5.3", "driver": None}],
}
TENSORRT: dict[str, Any] = {
    "version": "8.2.1.8",
    "path": "/usr/lib/python3.6/dist-packages/tensorrt",
    "error": None,
    "fast_fp16": None,
    "fast_int8": None,
    "trtexec": {"path": "/usr/src/tensorrt/bin/trtexec", "version": "8.2.1"},
}
ONNXRUNTIME: dict[str, Any] = {
    "version": "1.10.0",
    "path": "/x",
    "error": None,
    "providers": ["CPUExecutionProvider"],
    "opset": 15,
    "ir": 8,
}


def _said(check: Check) -> tuple[str, str, str]:
    return check.name, check.status, check.found


def test_a_nano_is_named_with_its_release_and_gpu() -> None:
    system, gpu = findings.system(SYSTEM, NANO)
    assert _said(system) == (
        "system",
        "ok",
        "NVIDIA Jetson Nano Developer Kit, Ubuntu 18.04.6 LTS, L4T 32.7.1 (JetPack 4.6.1), "
        "kernel 4.9.253-tegra",
    )
    assert _said(gpu) == ("gpu", "ok", "Tegra X1 (sm_53); CUDA 10.2.300, cuDNN 8.2.1")


@pytest.mark.parametrize(
    ("l4t", "text"),
    [("32.6.1", "L4T 32.6.1 (JetPack 4.6),"), ("32.7.3", "(JetPack 4.6.3)"), ("99.1", "L4T 99.1,")],
)
def test_jetpack_follows_from_l4t_where_its_package_is_missing(l4t: str, text: str) -> None:
    facts = {**SYSTEM, "l4t": l4t, "l4t_package": l4t, "jetpack": None}
    assert text in findings.system(facts, NANO)[0].found


def test_a_half_done_upgrade_and_missing_libraries_are_told() -> None:
    half = {**SYSTEM, "l4t": "32.6.1", "cudnn": None}
    system, gpu = findings.system(half, NANO)
    assert (system.status, gpu.status) == ("warn", "warn")
    assert "but nvidia-l4t-core is 32.7.1" in system.found
    assert gpu.remedy is not None and "install cuDNN" in gpu.remedy


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        ("5.3", "fp16 is faster than fp32; int8 is not, and only makes files smaller"),
        ("6.1", "int8 is faster than fp32, fp16 is not"),
        ("6.2", "fp16 is faster than fp32; int8 is not, and only makes files smaller"),
        ("5.0", "neither fp16 nor int8 is faster than fp32"),
        ("7.2", "fp16 and int8 are both faster than fp32"),
        ("8.7", "fp16 and int8 are both faster than fp32"),
        ("12.0", "fp16 and int8 are both faster than fp32"),
    ],
)
def test_precisions_follow_the_chip(compute: str, sentence: str) -> None:
    gpus = [{"name": "GPU", "compute": compute, "driver": None}]
    check = findings.precisions({**SYSTEM, "gpus": gpus}, TENSORRT)
    assert check.found == f"{sentence} (by its compute capability {compute})"


def test_tensorrts_own_word_counts_more_than_the_chip() -> None:
    check = findings.precisions(SYSTEM, {**TENSORRT, "fast_fp16": True, "fast_int8": True})
    assert check.found == "fp16 and int8 are both faster than fp32 (TensorRT says so)"


def test_an_unknown_gpu_is_a_warning_and_no_gpu_is_none() -> None:
    unknown = {**SYSTEM, "gpus": [{"name": "Thor", "compute": None, "driver": None}]}
    assert findings.precisions(unknown, None).status == "warn"
    assert findings.precisions({**SYSTEM, "gpus": []}, None).status == "skip"


def _memory(total: int, free: int, swap: int, *names: str) -> dict[str, Any]:
    swaps = [{"name": name, "size_bytes": swap // len(names), "used_bytes": 0} for name in names]
    return {
        "total_bytes": total,
        "available_bytes": free,
        "swap_total_bytes": swap,
        "swap_free_bytes": swap,
        "swaps": swaps,
    }


def test_swap_in_memory_alone_is_too_little_for_a_board_of_4_gb() -> None:
    memory, swap = findings.memory(_memory(4 * GB, 2 * GB, 2 * GB, "/dev/zram0"), NANO)
    assert _said(memory) == ("memory", "ok", "2.00 GB of 4.00 GB are free")
    assert (swap.status, "all of it in memory (zram)" in swap.found) == ("warn", True)
    assert swap.remedy is not None and "swapon /swapfile" in swap.remedy


def test_swap_on_disk_or_much_memory_will_do() -> None:
    disk = _memory(4 * GB, 2 * GB, 4 * GB, "/dev/zram0", "/swapfile")
    assert findings.memory(disk, NANO)[1].status == "ok"
    assert findings.memory(_memory(32 * GB, 30 * GB, 0), NANO)[1].status == "ok"


def test_little_free_memory_is_a_warning() -> None:
    check = findings.memory(_memory(4 * GB, GB // 4, 0), NANO)[0]
    assert _said(check) == ("memory", "warn", "250 MB of 4.00 GB are free")


@pytest.mark.parametrize(
    ("int8", "sentence"),
    [
        ("vnni", "int8 is fast and exact"),
        ("dotprod", "int8 is fast and exact"),
        ("avx2", "seven bits"),
        ("slow", "not faster than fp32"),
    ],
)
def test_the_cpus_instructions_say_what_int8_is_worth(int8: str, sentence: str) -> None:
    facts = {"model": "Cortex-A57", "flags": [], "int8": int8, "simd": "neon", "cores": 4}
    assert sentence in findings.cpu(facts, NANO)[0].found


def test_onnxruntime_is_named_with_providers_and_limits() -> None:
    runtime, files = findings.onnxruntime(ONNXRUNTIME, NANO)
    assert _said(runtime) == ("onnxruntime", "ok", "1.10.0 with CPUExecutionProvider")
    assert _said(files) == ("onnx files", "ok", "up to opset 15 and IR version 8 (tried there)")


def test_limits_come_from_the_table_where_they_could_not_be_tried() -> None:
    files = findings.onnxruntime({**ONNXRUNTIME, "opset": None, "ir": None}, NANO)[1]
    assert files.found == "up to opset 15 and IR version 8 (by its version)"
    old = {**ONNXRUNTIME, "opset": None, "ir": None, "version": "1.4.0"}
    files = findings.onnxruntime(old, NANO)[1]
    assert (files.status, "opset 12" in files.found) == ("warn", True)


def test_a_missing_runtime_is_a_failure_only_where_it_is_the_boards() -> None:
    missing = {**ONNXRUNTIME, "version": None, "error": "No module named 'onnxruntime'"}
    (check,) = findings.onnxruntime(missing, NANO)
    assert check.status == "fail"
    assert check.remedy is not None and "onnxruntime==1.10.0 numpy==1.19.5" in check.remedy
    other = BoardSpec(name="nano", host="jetson-nano", runtime="fake")
    assert findings.onnxruntime(missing, other)[0].status == "skip"


def test_a_runtime_built_for_another_cpu_says_so() -> None:
    dead = {**ONNXRUNTIME, "version": None, "error": "importing it ended in SIGILL"}
    (check,) = findings.onnxruntime(dead, NANO)
    assert check.remedy is not None and "another CPU" in check.remedy


def test_tensorrt_is_told_with_bindings_and_trtexec() -> None:
    (check,) = findings.tensorrt(TENSORRT, NANO)
    assert _said(check) == (
        "tensorrt",
        "ok",
        "8.2.1.8 for python3, opset 13; trtexec 8.2.1 in /usr/src/tensorrt/bin/trtexec",
    )


def test_tensorrt_without_bindings_depends_on_what_the_board_runs() -> None:
    unbound = {**TENSORRT, "version": None, "error": "No module named 'tensorrt'"}
    (check,) = findings.tensorrt(unbound, NANO)
    assert check.status == "warn"
    assert check.remedy is not None and "--system-site-packages" in check.remedy
    for runtime, status in (("tensorrt", "fail"), ("trtexec", "ok")):
        spec = BoardSpec(name="nano", host="jetson-nano", runtime=runtime)
        assert findings.tensorrt(unbound, spec)[0].status == status
    nothing = {**unbound, "trtexec": None}
    assert findings.tensorrt(nothing, NANO)[0].status == "skip"


def test_tensorrt_rtx_is_a_runtime_of_its_own() -> None:
    alone = {**TENSORRT, "version": None, "trtexec": None, "error": "none", "rtx": "1.7.1.116"}
    for runtime, status in (("tensorrt_rtx", "ok"), ("tensorrt", "fail"), ("onnxruntime", "ok")):
        spec = BoardSpec(name="pc", host="pc", runtime=runtime)
        (check,) = findings.tensorrt(alone, spec)
        assert (check.status, check.found[:22]) == (status, "TensorRT-RTX 1.7.1.116")
    spec = BoardSpec(name="pc", host="pc", runtime="tensorrt_rtx")
    assert findings.tensorrt({**TENSORRT, "rtx": None}, spec)[0].status == "fail"


@pytest.mark.parametrize(
    ("runtime", "found", "remedy"),
    [
        ("tensorrt", "but no Python bindings for python3: none", "python3-libnvinfer"),
        ("tensorrt_rtx", "but no TensorRT-RTX for python3", "pip install tensorrt-rtx-cu13"),
    ],
)
def test_a_runtime_that_is_missing_beside_trtexec_is_named(
    runtime: str, found: str, remedy: str
) -> None:
    unbound = {**TENSORRT, "version": None, "error": "none"}
    spec = BoardSpec(name="nano", host="jetson-nano", runtime=runtime)
    (check,) = findings.tensorrt(unbound, spec)
    assert check.status == "fail" and check.found.endswith(found)
    assert remedy in (check.remedy or "")


def test_a_board_of_trtexec_without_it_is_told_where_it_comes_from() -> None:
    spec = BoardSpec(name="nano", host="jetson-nano", runtime="trtexec")
    (check,) = findings.tensorrt({**TENSORRT, "trtexec": None}, spec)
    assert check.status == "fail" and check.found.endswith("; but no trtexec")
    assert "libnvinfer-bin" in (check.remedy or "")


def test_a_library_without_a_gpu_is_not_to_be_installed_again() -> None:
    line = "TensorRT cannot run here; missing: CUDA (libcudart is there, but it finds no GPU)"
    spec = BoardSpec(name="nano", host="jetson-nano", runtime="tensorrt")
    (check,) = findings.tensorrt({**TENSORRT, "missing": line}, spec)
    assert check.status == "fail"
    assert "driver" in (check.remedy or "") and "BOARDFIT_CUDART" not in (check.remedy or "")


def test_what_tensorrt_lacks_is_told_in_the_boards_own_line() -> None:
    line = "TensorRT cannot run here; missing: CUDA (no libcudart.so was found)"
    for runtime, status in (("tensorrt", "fail"), ("onnxruntime", "skip")):
        spec = BoardSpec(name="nano", host="jetson-nano", runtime=runtime)
        (check,) = findings.tensorrt({**TENSORRT, "missing": line}, spec)
        assert (check.status, check.found.endswith(f"; {line}")) == (status, True)
        assert ("BOARDFIT_CUDART" in (check.remedy or "")) is (status == "fail")
    nothing = {**TENSORRT, "version": None, "trtexec": None, "error": "none", "missing": line}
    (check,) = findings.tensorrt(nothing, NANO)
    assert (check.status, check.found) == ("skip", line)


def _zones(temp_c: float, throttled: bool = False) -> dict[str, Any]:
    trips = [{"kind": "critical", "temp_c": 102.5}, {"kind": "passive", "temp_c": 97.0}]
    return {
        "zones": [
            {"name": "AO-therm", "temp_c": 41.5, "trips": []},
            {"name": "CPU-therm", "temp_c": temp_c, "trips": trips},
        ],
        "throttled": throttled,
    }


def test_the_margin_is_that_to_the_nearest_trip_point() -> None:
    (check,) = findings.thermal(_zones(34.0), NANO)
    assert check.status == "ok"
    # 97 - 34 = 63 to the passive trip; 102.5 - 34 to the critical one is more.
    assert check.found == (
        "AO-therm is hottest with 42 °C; CPU-therm is 63 °C below its passive trip point (97 °C)"
    )


def test_a_board_near_its_trip_point_or_slowed_down_is_a_warning() -> None:
    assert findings.thermal(_zones(88.0), NANO)[0].status == "warn"
    assert findings.thermal(_zones(34.0, throttled=True), NANO)[0].status == "warn"
    assert findings.thermal({"zones": [], "throttled": None}, NANO)[0].status == "skip"


def test_rails_are_listed() -> None:
    rails = [{"name": "POM_5V_IN", "power_w": 4.125}, {"name": "POM_5V_CPU", "power_w": None}]
    assert findings.power({"rails": rails}, NANO)[0].found == "POM_5V_IN 4.12 W"
    assert findings.power({"rails": []}, NANO)[0].status == "skip"


def test_skew_is_counted_from_the_middle_of_the_round_trip() -> None:
    # Asked at 100 s and heard at 102 s: the board, at 101 s, is right.
    right = findings.clock(101.0, sent_s=100.0, received_s=102.0)
    assert (right.status, right.facts["skew_s"]) == ("ok", 0.0)
    # 8 s apart, 1 s of which may be the way: more than 5 s are certain.
    ahead = findings.clock(109.0, sent_s=100.0, received_s=102.0)
    assert (ahead.status, ahead.found) == ("warn", "8 s ahead of this computer's")
    unsure = findings.clock(107.0, sent_s=100.0, received_s=104.0)
    assert unsure.status == "ok"  # 5 s apart, 2 s of which may be the way
    past = findings.clock(0.0, sent_s=864000.0, received_s=864000.0)
    assert past.found == "10 days behind this computer's"


def test_busy_programs_are_named() -> None:
    busy = [{"pid": 7, "name": "Xorg", "cpu_share": 0.5}]
    facts = {"load_1min": 1.25, "cores": 4, "gpu_load": None, "processes": busy}
    (check,) = findings.load(facts, NANO)
    assert check.status == "warn"
    assert "Xorg (7) 50% of a core; load 1.25 on 4 cores" in check.found
    calm = {**facts, "processes": [{**busy[0], "cpu_share": 0.1}]}
    assert findings.load(calm, NANO)[0].status == "ok"
    (check,) = findings.load({**facts, "processes": [], "gpu_load": 0.34}, NANO)
    assert check.status == "warn"
    assert check.found == ("the CPU is idle; load 1.25 on 4 cores; the GPU is busy 34% of the time")
    idle = {**calm, "gpu_load": 0.0}
    assert findings.load(idle, NANO)[0].status == "ok"


def test_a_cache_of_twice_its_limit_is_a_warning() -> None:
    facts = {"path": "/c", "used": {"blobs": GB, "jobs": 4 * GB, "parts": 0}, "complete": True}
    (check,) = findings.cache(facts, NANO)
    assert check.status == "warn"
    assert check.found.startswith("5.00 GB in /c (blobs 1.00 GB, jobs 4.00 GB), twice the 2.00 GB")
    assert findings.cache(facts, replace(NANO, cache_bytes=3 * GB))[0].status == "ok"


# --- controls -----------------------------------------------------------------------------------

REMEDY = "sudo visudo -f /etc/sudoers.d/boardfit"


def _state(**changes: Any) -> dict[str, Any]:
    cpu = {"online": True, "governor": "schedutil", "min_hz": 102_000_000}
    cpu |= {"max_hz": 1_479_000_000, "cur_hz": 1_479_000_000}
    state = {
        "power_mode": {"id": 0, "name": "MAXN"},
        "power_modes": [{"id": 0, "name": "MAXN"}, {"id": 1, "name": "5W"}],
        "cpus": [cpu, cpu, cpu, {**cpu, "online": False, "governor": None}],
        "gpu": {"min_hz": 76_800_000, "max_hz": 921_600_000, "cur_hz": 76_800_000},
        "clocks_locked": False,
        "sudo": {"nvpmodel": True, "jetson_clocks": True, "fan": False},
        "throttle": {"throttled": False, "over_current_events": None, "cooling": []},
    }
    return {"state": {**state, **changes}, "sudo_remedy": REMEDY}


def _by_name(facts: dict[str, Any], **spec: Any) -> dict[str, Check]:
    board = BoardSpec(name="nano", host="jetson-nano", **spec)
    return {check.name: check for check in controls(facts, board)}


def test_a_nano_in_its_highest_mode_with_free_clocks() -> None:
    found = _by_name(_state())
    assert found["power mode"].found == "MAXN (0); there is also 5W (1)"
    assert _said(found["clocks"])[1:] == (
        "warn",
        "not locked: CPU 102 MHz to 1479 MHz, now 1479 MHz; "
        "GPU 76.8 MHz to 921.6 MHz, now 76.8 MHz",
    )
    assert found["governor"].status == "ok"
    assert found["sudo"].found == "nvpmodel and jetson_clocks run without a password"


def test_locked_clocks_are_told_with_their_values() -> None:
    gpu = {"min_hz": 921_600_000, "max_hz": 921_600_000, "cur_hz": 921_600_000}
    check = _by_name(_state(clocks_locked=True, gpu=gpu))["clocks"]
    assert _said(check)[1:] == ("ok", "locked: CPU 1479 MHz; GPU 921.6 MHz")


def test_a_power_mode_that_boardfit_sets_itself_is_fine() -> None:
    check = _by_name(_state(), power_mode="5w")["power mode"]
    assert (check.status, check.found) == (
        "ok",
        "MAXN (0); there is also 5W (1); boardfit sets 5w while it measures",
    )
    for wish in ("maxn", "0"):
        assert "boardfit sets" not in _by_name(_state(), power_mode=wish)["power mode"].found


def test_a_power_mode_that_nobody_may_set_fails_where_it_is_required() -> None:
    forbidden = _state(sudo={"nvpmodel": False, "jetson_clocks": False})
    check = _by_name(forbidden, power_mode="1")["power mode"]
    assert (check.status, check.remedy) == ("warn", REMEDY)
    check = _by_name(forbidden, power_mode="1", conditions="require")["power mode"]
    assert check.status == "fail"
    assert _by_name(_state(), power_mode="1", conditions="off")["power mode"].status == "warn"
    check = _by_name(_state(), power_mode="15W", conditions="require")["power mode"]
    assert (check.status, "which the board has not" in check.found) == ("fail", True)


def test_clocks_that_boardfit_will_lock_itself_are_fine() -> None:
    assert _by_name(_state(), lock_clocks=True)["clocks"].status == "ok"
    forbidden = _state(sudo={"nvpmodel": True, "jetson_clocks": False})
    found = _by_name(forbidden, lock_clocks=True)
    assert (found["clocks"].status, found["clocks"].remedy) == ("warn", REMEDY)
    assert found["sudo"].found.startswith("jetson_clocks cannot run without a password")
    assert found["sudo"].remedy == REMEDY
    required = _by_name(forbidden, lock_clocks=True, conditions="require")
    assert required["clocks"].status == "fail"


def test_a_virtual_machine_that_tells_nothing_is_skipped() -> None:
    cpu = dict.fromkeys(("governor", "min_hz", "max_hz", "cur_hz")) | {"online": True}
    nothing = _state(power_mode=None, power_modes=[], cpus=[cpu], gpu=None, clocks_locked=None)
    assert {check.status for check in _by_name(nothing).values()} == {"skip"}


def test_a_supply_that_was_too_weak_is_a_warning() -> None:
    assert _by_name(_state())["power supply"].status == "skip"
    for events, status in ((0, "ok"), (3, "warn")):
        throttle = {"throttled": False, "over_current_events": events, "cooling": []}
        assert _by_name(_state(throttle=throttle))["power supply"].status == status


def test_a_pc_with_a_saving_governor_is_told_how_to_change_it() -> None:
    pc = _state(power_mode=None, power_modes=[], gpu=None)
    found = _by_name(pc)
    assert (found["clocks"].status, found["governor"].status) == ("ok", "warn")
    assert found["governor"].remedy == "sudo cpupower frequency-set -g performance"
    assert _by_name(pc, governor="performance")["governor"].status == "ok"
    locking = _by_name(pc, lock_clocks=True)["clocks"]
    assert locking.remedy is not None and 'governor = "performance"' in locking.remedy


def test_a_lease_says_who_holds_it_and_for_how_long_still() -> None:
    holder = {"owner": "ann@host", "kind": "measure", "job_id": "1", "held_s": 30.0}
    (check,) = findings.lease({"holder": {**holder, "left_s": 12.5}}, NANO)
    assert check.found == (
        "held by ann@host for 30.0 s: a measure job, by its plan for 12.5 s more at least"
    )
    (check,) = findings.lease({"holder": {**holder, "left_s": 0.0}}, NANO)
    assert check.found == "held by ann@host for 30.0 s: a measure job"
    assert findings.lease({"holder": None}, NANO)[0].status == "ok"
