"""A Jetson Nano laid out in a folder: its files, and its tools as programs that change them.

The tools do what the published scripts and users' recordings show: nvpmodel limits the clocks and
takes CPUs away, jetson_clocks raises every minimum to its maximum *and brings all CPUs back*. Each
call is a line of ``calls.txt``, with "record" where the restore record was on the disk by then.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from device_agent import board

CPU = "sys/devices/system/cpu/cpu%d/"
GPU = "sys/devices/gpu.0/devfreq/57000000.gpu/"
EMC = "sys/kernel/debug/clk/override.emc/"
FAN = "sys/devices/pwm-fan/"
CPU_TABLE_KHZ = (
    *(102000, 204000, 307200, 403200, 518400, 614400, 710400, 825600, 921600),
    *(1036800, 1132800, 1224000, 1326000, 1428000, 1479000),
)
GPU_TABLE_HZ = tuple(76_800_000 * step for step in range(1, 13))
CONF = """\
# FORMAT: see the comments of the board's own file
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
CORE_1 /sys/devices/system/cpu/cpu1/online

< PARAM TYPE=CLOCK NAME=CPU_A57 >
FREQ_TABLE /sys/devices/system/cpu/cpu0/cpufreq/scaling_available_frequencies
MAX_FREQ /sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq

# MAXN is the NONE power model to release all constraints
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 1
CPU_ONLINE CORE_3 1
CPU_A57 MIN_FREQ  0
CPU_A57 MAX_FREQ -1
GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on
GPU MIN_FREQ  0
GPU MAX_FREQ -1
GPU_POWER_CONTROL_DISABLE GPU_PWR_CNTL_DIS auto
EMC MAX_FREQ 0

< POWER_MODEL ID=1 NAME=5W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 0
CPU_ONLINE CORE_3 0
CPU_A57 MIN_FREQ  0
CPU_A57 MAX_FREQ 918000
GPU_POWER_CONTROL_ENABLE GPU_PWR_CNTL_EN on
GPU MIN_FREQ 0
GPU MAX_FREQ 640000000
GPU_POWER_CONTROL_DISABLE GPU_PWR_CNTL_DIS auto
EMC MAX_FREQ 1600000000

< PM_CONFIG DEFAULT=0 >
"""
# Mode 2 is no Nano's: it stands for the modes of an Orin that only a boot brings.
REBOOT_MODE = "< POWER_MODEL ID=2 NAME=30W >\nGPU MAX_FREQ -1\n\n< PM_CONFIG"

COMMON = """\
#!/bin/sh
root={root}
cpu=$root/sys/devices/system/cpu
gpu=$root/sys/devices/gpu.0/devfreq/57000000.gpu
emc=$root/sys/kernel/debug/clk/override.emc
fan=$root/sys/devices/pwm-fan
note() {{
  if ls {cache}/*.json >/dev/null 2>&1; then echo "$* record"; else echo "$*"; fi >> $root/calls.txt
}}
is_root() {{ [ "$(id -u)" = 0 ] || [ -n "$BY_SUDO" ] || [ -e $root/run/as_root ]; }}
range() {{ # folder of CPU, minimum, maximum
  echo $2 > $1/cpufreq/scaling_min_freq; echo $3 > $1/cpufreq/scaling_max_freq
  echo $3 > $1/cpufreq/scaling_cur_freq; }}
"""
NVPMODEL = """\
case $1 in
-q)
  echo "NVPM WARN: fan mode is not set!"
  echo "NV Power Mode: $(cat $root/mode_name)"; cat $root/mode; exit 0;;
-m)
  note nvpmodel $*
  is_root || {{ echo "NVPM ERROR: must be root"; exit 1; }}
  case $2 in
  0) name=MAXN; online=1; cpu_max=1479000; gpu_max=921600000;;
  1) name=5W; online=0; cpu_max=921600; gpu_max=614400000;;
  2)
    echo "NVPM WARN: Golden image context is already created"
    echo "NVPM WARN: Reboot required for changing to this power mode: 2"
    echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
    read answer
    case $answer in
    yes|YES) touch $root/rebooted;;
    *) echo "NVPM ERROR: optMask is 1, no request for power mode"; exit 1;;
    esac;;
  *) echo "NVPM ERROR: request for bad power mode $2"; exit 1;;
  esac
  echo $online > $cpu/cpu2/online; echo $online > $cpu/cpu3/online
  for one in 0 1 2 3; do range $cpu/cpu$one 102000 $cpu_max; done
  echo 76800000 > $gpu/min_freq; echo $gpu_max > $gpu/max_freq; echo 76800000 > $gpu/cur_freq
  echo $2 > $root/mode; echo $name > $root/mode_name;;
esac
"""
JETSON_CLOCKS = """\
note jetson_clocks $*
is_root || {{ echo "Error: Run this script($0) as a root user"; exit 1; }}
kept="$cpu/cpu?/online $cpu/cpu?/cpufreq/scaling_min_freq $gpu/min_freq"
kept="$kept $emc/clk_state $fan/target_pwm"
case $1 in
--store)
  if [ -e $2 ]; then
    echo "File $2 already exists. Can I overwrite it? Y/N:"; read answer
    case $answer in y|Y) rm -f $2;; *) echo "Error: file $2 already exists!"; exit 1;; esac
  fi
  for file in $kept; do echo "$file:$(cat $file)" >> $2; done;;
--restore)
  [ -e $2 ] || {{ echo "Error: $2 file not found !"; exit 1; }}
  for line in $(cat $2); do echo ${{line#*:}} > ${{line%%:*}}; done;;
--show)
  echo "EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1331200000 FreqOverride=0";;
"")
  [ -e $root/clocks_broken ] && exit 0
  for one in 0 1 2 3; do
    echo 1 > $cpu/cpu$one/online
    top=$(cat $cpu/cpu$one/cpufreq/scaling_max_freq); range $cpu/cpu$one $top $top
  done
  cat $gpu/max_freq > $gpu/min_freq; cat $gpu/max_freq > $gpu/cur_freq
  echo 1 > $emc/clk_state; echo 255 > $fan/target_pwm;;
esac
"""
SUDO = """\
refuse() {{ echo "sudo: a password is required" >&2; exit 1; }}
[ "$1" = -n ] || {{ echo "sudo: a terminal is required to read the password" >&2; exit 1; }}
shift
if [ "$1" = -l ]; then
  [ -s $root/sudoers ] || refuse
  echo "User nano may run the following commands on jetson:"; cat $root/sudoers; exit 0
fi
grep -q "NOPASSWD:.*/$1" $root/sudoers 2>/dev/null || refuse
BY_SUDO=1 "$@"
"""
SUDOERS = (
    "    (ALL : ALL) ALL\n"
    "    (root) NOPASSWD: /usr/sbin/nvpmodel -m 0, /usr/sbin/nvpmodel -m 1,"
    " /usr/sbin/nvpmodel -m 2,"
    ' /usr/bin/jetson_clocks "", /usr/bin/jetson_clocks --store {clocks},'
    " /usr/bin/jetson_clocks --restore {clocks}, /usr/bin/jetson_clocks --show,"
    " /usr/bin/tee {fan}/target_pwm, /usr/bin/tee {fan}/temp_control\n"
)


class Jetson:
    """A board in mode MAXN that scales its clocks, with a fan that turns by itself.

    Its tools come first on this process's ``PATH``. ``cache`` is where agents keep the record.
    """

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path | None = None
    ) -> None:
        self.root, self.cache = folder / "root", cache or folder / "cache"
        if cache is None:
            self.cache.mkdir(parents=True)
        files: dict[str, object] = {
            "etc/nvpmodel.conf": CONF.replace("< PM_CONFIG", REBOOT_MODE),
            "mode": 0,
            "mode_name": "MAXN",
            "proc/sys/kernel/random/boot_id": "boot-one",
            GPU + "min_freq": 76800000,
            GPU + "max_freq": 921600000,
            GPU + "cur_freq": 76800000,
            GPU + "governor": "nvhost_podgov",
            GPU + "available_frequencies": " ".join(map(str, GPU_TABLE_HZ)),
            "sys/kernel/debug/tegra_bwmgr/emc_min_rate": 204000000,
            "sys/kernel/debug/tegra_bwmgr/emc_max_rate": 1600000000,
            EMC + "clk_rate": 1600000000,
            EMC + "clk_state": 0,
            FAN + "target_pwm": 80,
            FAN + "pwm_cap": 255,
            FAN + "temp_control": 1,
        }
        for number in range(4):
            freq = CPU % number + "cpufreq/"
            files[CPU % number + "online"] = 1
            files[freq + "scaling_governor"] = "schedutil"
            files[freq + "scaling_min_freq"] = 102000
            files[freq + "scaling_max_freq"] = 1479000
            files[freq + "scaling_cur_freq"] = 403200
            files[freq + "cpuinfo_min_freq"] = 102000
            files[freq + "cpuinfo_max_freq"] = 1479000
            files[freq + "scaling_available_frequencies"] = " ".join(map(str, CPU_TABLE_KHZ))
        for name, value in files.items():
            self.set(name, value)
        (self.root / "run").mkdir()
        self.tools = folder / "bin"
        self._write_tools(self.tools)
        monkeypatch.setenv("PATH", f"{self.tools}{os.pathsep}{os.environ['PATH']}")

    def _write_tools(self, folder: Path) -> None:
        folder.mkdir()
        texts = {"nvpmodel": NVPMODEL, "jetson_clocks": JETSON_CLOCKS, "sudo": SUDO}
        for name, text in texts.items():
            path = folder / name
            path.write_text((COMMON + text).format(root=self.root, cache=self.cache))
            path.chmod(0o755)

    def set(self, name: str, value: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def get(self, name: str) -> str:
        return (self.root / name).read_text().strip()

    def boot(self) -> None:
        """What a boot does: nvpmodel brings its mode back, everything else is as delivered."""
        self.set("proc/sys/kernel/random/boot_id", "boot-two")
        self.set(FAN + "target_pwm", 80)
        self.set(FAN + "temp_control", 1)
        self.set(EMC + "clk_state", 0)
        self.set(GPU + "min_freq", 76800000)
        for number in range(4):
            self.set(CPU % number + "cpufreq/scaling_min_freq", 102000)
        (self.root / "run/boardfit.clocks").unlink(missing_ok=True)

    def calls(self) -> list[str]:
        path = self.root / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    def files(self) -> dict[str, str]:
        """Everything that a run must leave as it was."""
        return {
            str(path.relative_to(self.root)): path.read_text().strip()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
            and path.parent.name != "run"
            and path.name not in ("calls.txt", "scaling_cur_freq", "cur_freq")
        }

    def lock_clocks(self) -> None:
        """What somebody with root's rights does."""
        env = {**os.environ, "BY_SUDO": "1"}
        subprocess.run([str(self.tools / "jetson_clocks")], check=True, env=env)

    def as_root(self) -> board.Board:
        """Root, or for the tools whoever runs the tests."""
        (self.root / "run/as_root").touch()
        return board.Board(str(self.root), uid=0)

    def as_user(self, *, may_sudo: bool) -> board.Board:
        """Somebody who may write no file, and may or may not run the tools without a password."""
        (self.root / "run/as_root").unlink(missing_ok=True)
        clocks, fan = self.root / "run/boardfit.clocks", self.root / FAN
        rules = SUDOERS.format(clocks=clocks, fan=fan) if may_sudo else ""
        (self.root / "sudoers").write_text(rules)
        return board.Board(str(self.root), uid=1000, access=lambda _, mode: mode != os.W_OK)
