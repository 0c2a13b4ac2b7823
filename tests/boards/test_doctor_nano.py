"""The doctor on Nanos: one laid out in a folder, and a stranger's account with Python 3.6."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.boards.doctor import diagnose
from harness.records import BoardSpec, Check
from tests.boards.nano import Nano as VirtualNano
from tests.boards.support import python_of
from tests.device_agent import texts
from tests.device_agent.jetson import Jetson
from tests.device_agent.test_inspection import NANO

TENSORRT = """\
__version__ = "8.2.1.8"
class Logger:
    ERROR = 1
    def __init__(self, level): pass
class Builder:
    platform_has_fast_fp16, platform_has_fast_int8 = True, False
    def __init__(self, logger): pass
"""


def _look(spec: BoardSpec) -> dict[str, Check]:
    return {check.name: check for check in diagnose(spec).checks}


@pytest.fixture(params=["host", "3.6"])
def spec(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BoardSpec:
    """This computer as a Nano: its files, its tools, and stand-ins for TensorRT."""
    nano = Jetson(tmp_path / "nano", monkeypatch)
    nano.as_user(may_sudo=True)
    for name, text in NANO.items():
        nano.set(name, text)
    trtexec = nano.root / "usr/src/tensorrt/bin/trtexec"
    dpkg = tmp_path / "nano/bin/dpkg-query"
    for path, text in ((trtexec, texts.TRTEXEC["8.2.1"]), (dpkg, texts.DPKG)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        path.chmod(0o755)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text(TENSORRT)
    # What this computer may have is not the Nano's.
    (modules / "tensorrt_rtx.py").write_text("raise ImportError('not on a Nano')")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("BOARDFIT_BOARD_ROOT", str(nano.root))
    python = python_of(request.param)
    return BoardSpec(name="local", python=python, runtime="fake", cache_dir=str(nano.cache))


def test_everything_that_a_nano_tells_of_itself_is_told(spec: BoardSpec) -> None:
    diagnosis = diagnose(spec)
    found = {check.name: check.found for check in diagnosis.checks}
    assert diagnosis.verdict == "usable"
    assert found["system"].startswith("NVIDIA Jetson Nano Developer Kit, Ubuntu 18.04.6 LTS, L4T")
    assert found["gpu"] == "Tegra X1 (sm_53); CUDA 10.2.300, cuDNN 8.2.1.32"
    # 592,696 of 4,059,240 KiB.
    assert found["memory"] == "607 MB of 4.16 GB are free"
    assert found["swap"].startswith("2.08 GB, all of it in memory (zram)")
    assert found["tensorrt"].startswith(f"8.2.1.8 for {spec.python}, opset 13; trtexec 8.2.1 in ")
    assert found["gpu precisions"] == (
        "fp16 is faster than fp32; int8 is not, and only makes files smaller (TensorRT says so)"
    )
    assert found["cpu"].startswith("Cortex-A57, ")
    assert "boardfit fits widths alone" in found["cpu"]
    assert found["power mode"] == "MAXN (0); there is also 5W (1), 30W (2)"
    assert found["clocks"] == (
        "not locked: CPU 102 MHz to 1479 MHz, now 403.2 MHz; "
        "GPU 76.8 MHz to 921.6 MHz, now 76.8 MHz"
    )
    assert found["governor"] == "schedutil"
    assert found["sudo"] == "nvpmodel and jetson_clocks run without a password"
    assert "63 °C below its passive trip point (97 °C)" in found["temperature"]
    assert found["power rails"] == "POM_5V_IN 4.12 W, POM_5V_GPU 0.98 W"


def test_what_is_worth_a_look_on_this_nano(spec: BoardSpec) -> None:
    found = _look(spec)
    warned = [name for name, check in found.items() if check.status == "warn"]
    # nv_tegra_release says 32.7.1 and the package 32.7.4; other programs may be busy here.
    assert set(warned) - {"load", "disk"} == {"system", "swap", "clocks"}


def test_looking_changes_no_setting_and_needs_no_lease(spec: BoardSpec, tmp_path: Path) -> None:
    diagnose(replace(spec, power_mode="5W", lock_clocks=True, conditions="require"))
    calls = tmp_path / "nano/root/calls.txt"
    assert not calls.exists() or not calls.read_text().strip()


@pytest.fixture
def stranger(nano: VirtualNano) -> Iterator[BoardSpec]:
    yield replace(nano.spec, runtime="fake")


def test_a_folder_that_belongs_to_somebody_else_is_no_place_for_the_cache(
    nano: VirtualNano, stranger: BoardSpec
) -> None:
    closed = nano.folder / "closed"
    closed.mkdir(mode=0o700)
    check = _look(replace(stranger, cache_dir=str(closed)))["cache folder"]
    if check.status == "ok":
        pytest.skip("the board's user is the one who runs the tests")
    assert (check.status, "no write access" in check.found) == ("fail", True)
    assert check.remedy is not None and "chown" in check.remedy


def test_a_strangers_board_is_usable_and_nothing_of_the_look_stays(
    nano: VirtualNano, stranger: BoardSpec
) -> None:
    diagnosis = diagnose(stranger)
    assert diagnosis.verdict == "usable", diagnosis
    assert not nano.leftovers()
    assert sorted(path.name for path in nano.cache.iterdir() if path.is_file()) == []
