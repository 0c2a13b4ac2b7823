"""Parsing of what boards print, and a Nano laid out in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent import cuda, inspection
from tests.boards.support import ROOT
from tests.device_agent import texts

KIB = 1024


def _write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def _printing(outputs: dict[str, str]) -> Callable[..., tuple[int | None, str]]:
    """A ``run`` that knows what each program prints; others are not there."""

    def run(argv: list[str], timeout_s: int = 0) -> tuple[int | None, str]:
        del timeout_s
        known = outputs.get(argv[0])
        return (None, "no such program") if known is None else (0, known)

    return run


@pytest.mark.parametrize("release", texts.NV_TEGRA_RELEASE)
def test_the_release_of_l4t_is_read_from_its_first_line(release: str) -> None:
    assert inspection.l4t_release(texts.NV_TEGRA_RELEASE[release]) == release
    assert inspection.l4t_release("Ubuntu 22.04") is None
    assert inspection.l4t_release(None) is None


def test_installed_packages_are_read_and_removed_ones_left_out() -> None:
    assert inspection.packages(texts.DPKG) == {
        "l4t": "32.7.4-20230608212426",
        "jetpack": None,
        "tensorrt": "8.2.1-1+cuda10.2",
        "tensorrt_python": "8.2.1-1+cuda10.2",
        "cudnn": "8.2.1.32-1+cuda10.2",
        "cuda": "10.2.300-1",
    }
    assert inspection.release_of("32.7.4-20230608212426") == "32.7.4"
    assert inspection.release_of("8.2.1-1+cuda10.2") == "8.2.1"


def test_lines_of_dpkg_query_are_read_as_those_of_dpkg() -> None:
    # ${db:Status-Abbrev} ends in a blank.
    found = inspection.packages("ii nvidia-jetpack 4.6.1-b110\nun libnvinfer8 \n")
    assert found["jetpack"] == "4.6.1-b110"
    assert found["tensorrt"] is None


def test_cuda_and_cudnn_are_read_from_their_own_files() -> None:
    assert inspection.cuda_release("CUDA Version 10.2.300\n", None) == "10.2.300"
    newer = '{\n   "cuda" : {\n      "name" : "CUDA SDK",\n      "version" : "11.4.19"\n   },\n'
    assert inspection.cuda_release(None, newer) == "11.4.19"
    assert inspection.cuda_release(None, None) is None
    header = "#define CUDNN_MAJOR 8\n#define CUDNN_MINOR 2\n#define CUDNN_PATCHLEVEL 1\n"
    assert inspection.cudnn_release(header) == "8.2.1"
    assert inspection.cudnn_release("#define CUDNN_MAJOR 8\n") is None


def test_memory_and_swap_of_a_nano() -> None:
    found = inspection.memory_of(texts.NANO_MEMINFO, texts.NANO_SWAPS)
    assert found["total_bytes"] == 4059240 * KIB
    assert found["available_bytes"] == 592696 * KIB
    assert found["swap_total_bytes"] == 2029616 * KIB
    assert [swap["name"] for swap in found["swaps"]] == [f"/dev/zram{n}" for n in range(4)]
    assert found["swaps"][0]["size_bytes"] == 507408 * KIB
    mixed = inspection.memory_of(texts.NANO_MEMINFO, texts.MIXED_SWAPS)["swaps"]
    assert [swap["name"] for swap in mixed] == ["/dev/zram0", "/var/lib/swapspace/1"]
    nothing = inspection.memory_of(None, None)
    assert (nothing["total_bytes"], nothing["swaps"]) == (None, [])


@pytest.mark.parametrize(
    ("text", "model", "int8", "flags"),
    [
        (texts.A57, "Cortex-A57", "slow", ["asimd"]),
        (texts.A76, "Cortex-A76", "dotprod", ["asimd", "asimddp"]),
        (texts.AVX2, "Intel(R) Core(TM) i7-6700 CPU @ 3.40GHz", "avx2", ["avx2"]),
        (
            texts.VNNI,
            "Intel(R) Xeon(R) Processor",
            "vnni",
            ["avx2", "avx_vnni", "avx512_vnni", "amx_int8"],
        ),
    ],
)
def test_integer_instructions_are_read_from_cpuinfo(
    text: str, model: str, int8: str, flags: list[str]
) -> None:
    found = inspection.cpu_of(text)
    assert (found["model"], found["int8"], found["flags"]) == (model, int8, flags)


def test_gpus_of_a_pc_are_read_from_nvidia_smi() -> None:
    assert inspection.gpus_of("NVIDIA H100 80GB HBM3, 9.0, 550.54.15\n") == [
        {"name": "NVIDIA H100 80GB HBM3", "compute": "9.0", "driver": "550.54.15"}
    ]
    assert inspection.gpus_of("Orin (nvgpu), [N/A], 540.3.0\n")[0]["compute"] is None
    assert inspection.gpus_of("") == []


def test_a_process_whose_name_has_blanks_and_brackets_is_read() -> None:
    stat = "71 (a b) c) S 1 71 71 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 9 0 0"
    assert inspection.process_of(stat) == ("a b) c", 42)
    assert inspection.process_of(None) is None


NANO = {
    "etc/nv_tegra_release": texts.NV_TEGRA_RELEASE["32.7.1"],
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 18.04.6 LTS"\n',
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
    "proc/cpuinfo": texts.A57,
    "proc/meminfo": texts.NANO_MEMINFO,
    "proc/swaps": texts.NANO_SWAPS,
    "proc/uptime": "350.61 1300.10\n",
    "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n",
    "sys/class/thermal/thermal_zone0/type": "AO-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "41500\n",
    "sys/class/thermal/thermal_zone1/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone1/temp": "34000\n",
    "sys/class/thermal/thermal_zone1/trip_point_0_temp": "102500\n",
    "sys/class/thermal/thermal_zone1/trip_point_0_type": "critical\n",
    "sys/class/thermal/thermal_zone1/trip_point_1_temp": "97000\n",
    "sys/class/thermal/thermal_zone1/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone4/type": "PMIC-Die\n",
    "sys/class/thermal/thermal_zone4/temp": "100000\n",
    "sys/class/thermal/thermal_zone5/type": "thermal-fan-est\n",
    "sys/class/thermal/thermal_zone5/temp": "33000\n",
    "sys/class/thermal/thermal_zone5/trip_point_0_temp": "51000\n",
    "sys/class/thermal/thermal_zone5/trip_point_0_type": "active\n",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "4125\n",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_1": "POM_5V_GPU\n",
    "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input": "981\n",
}


def test_a_nano_says_what_it_is(tmp_path: Path) -> None:
    root = _write(tmp_path, NANO)
    found = inspection.system("", root, _printing({"dpkg-query": texts.DPKG}))
    assert found["model"] == "NVIDIA Jetson Nano Developer Kit"
    assert (found["chip"], found["os"]) == ("tegra210", "Ubuntu 18.04.6 LTS")
    assert (found["l4t"], found["l4t_package"]) == ("32.7.1", "32.7.4")
    assert (found["cuda"], found["cudnn"]) == ("10.2.300", "8.2.1.32")
    assert found["gpus"] == [{"name": "Tegra X1", "compute": "5.3", "driver": None}]
    assert found["uptime_s"] == 350.61


def test_a_pc_without_any_of_it_says_so(tmp_path: Path) -> None:
    found = inspection.system("", str(tmp_path), _printing({}))
    told = ("model", "chip", "l4t", "l4t_package", "jetpack", "cuda", "cudnn", "uptime_s")
    assert {found[name] for name in told} == {None}
    assert found["gpus"] == []


def test_zones_keep_trips_that_slow_down_and_leave_out_the_dead_one(tmp_path: Path) -> None:
    zones = inspection.thermal("", _write(tmp_path, NANO))["zones"]
    assert [(zone["name"], zone["temp_c"]) for zone in zones] == [
        ("AO-therm", 41.5),
        ("CPU-therm", 34.0),
        ("thermal-fan-est", 33.0),
    ]
    assert zones[1]["trips"] == [
        {"kind": "critical", "temp_c": 102.5},
        {"kind": "passive", "temp_c": 97.0},
    ]
    assert zones[2]["trips"] == []


def test_rails_are_read_in_both_layouts(tmp_path: Path) -> None:
    root = _write(tmp_path / "nano", NANO)
    assert inspection.power("", root)["rails"] == [
        {"name": "POM_5V_IN", "power_w": pytest.approx(4.125)},
        {"name": "POM_5V_GPU", "power_w": pytest.approx(0.981)},
    ]
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    orin = {
        f"{folder}/in1_label": "VDD_IN\n",
        f"{folder}/in1_input": "5000\n",
        f"{folder}/curr1_input": "1206\n",
        f"{folder}/in7_label": "Sum of shunt voltages\n",
    }
    # 5 V times 1.206 A is 6.03 W.
    found = inspection.power("", _write(tmp_path / "orin", orin))["rails"]
    assert found == [{"name": "VDD_IN", "power_w": pytest.approx(6.03)}]


def test_a_program_that_burns_a_core_is_named() -> None:
    code = "while True: pass"
    burner = subprocess.Popen([sys.executable, "-c", code])
    try:
        busy = {one["pid"]: one for one in inspection.load("")["processes"]}
    finally:
        burner.kill()
        burner.wait()
    assert busy[burner.pid]["cpu_share"] > inspection.BUSY_SHARE
    assert os.getpid() not in busy


@pytest.mark.parametrize("folder", ["sys/devices/gpu.0", "sys/devices/platform/gpu.0"])
def test_the_load_of_a_jetsons_gpu_is_in_thousandths(tmp_path: Path, folder: str) -> None:
    assert inspection.load("", str(tmp_path))["gpu_load"] is None
    root = _write(tmp_path, {f"{folder}/load": "340\n"})
    assert inspection.load("", root)["gpu_load"] == pytest.approx(0.34)


def test_the_cache_is_counted_by_folder(tmp_path: Path) -> None:
    _write(tmp_path, {"blobs/a": "x" * 100, "blobs/b": "x" * 20, "jobs/1/request.json": "{}"})
    assert inspection.cache(str(tmp_path)) == {
        "path": str(tmp_path),
        "used": {"blobs": 120, "jobs": 2},
        "complete": True,
    }


def test_a_cache_of_very_many_files_is_not_counted_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MOST_FILES", 3)
    _write(tmp_path, {f"blobs/{n}": "x" for n in range(9)})
    found = inspection.cache(str(tmp_path))
    assert (found["used"], found["complete"]) == ({"blobs": 3}, False)


def test_the_agent_starts_without_the_doctors_part() -> None:
    code = (
        "import sys, device_agent.__main__; "
        "print([name for name in sys.modules if name.endswith(('inspection', 'runtimes'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


FULL = {
    "version": "8.2.1.8",
    "rtx": None,
    "trtexec": None,
    "error": None,
    "cuda": {"error": None},
}
NO_CUDA = {"error": "device_agent.cuda.NoCuda: no libcudart.so was found: install it"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        (
            {"cuda": NO_CUDA},
            "TensorRT cannot run here; missing: CUDA (no libcudart.so was found: install it)",
        ),
        # What to do about it is the doctor's to say.
        (
            {"cuda": {"error": f"device_agent.cuda.NoCuda: it finds no GPU; {cuda.LOOK}"}},
            "TensorRT cannot run here; missing: CUDA (it finds no GPU)",
        ),
        (
            {"version": None, "error": "No module named 'tensorrt'"},
            "TensorRT cannot run here; missing: TensorRT's Python bindings "
            "(No module named 'tensorrt') and trtexec",
        ),
        # TensorRT-RTX alone will do, or trtexec.
        ({"version": None, "rtx": "1.7.1.116"}, None),
        ({"version": None, "trtexec": {"path": "/trtexec", "version": "8.2.1"}}, None),
    ],
)
def test_what_tensorrt_lacks_is_one_line(change: dict[str, object], line: str | None) -> None:
    assert inspection.missing({**FULL, **change}) == line


def test_a_machine_without_cuda_says_so_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_CUDART", str(tmp_path / "nothing.so"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for module in ("tensorrt", "tensorrt_rtx"):
        lacking = "raise ImportError('libnvinfer.so.8: not there')"
        (tmp_path / f"{module}.py").write_text(lacking)
    found = inspection.tensorrt("", str(tmp_path))
    assert found["cuda"]["compute"] is None
    assert "CUDA (no libcudart.so was found: install CUDA's runtime" in found["missing"]
    assert "libnvinfer.so.8: not there" in found["missing"]
    assert "\n" not in found["missing"]
