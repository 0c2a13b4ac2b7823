"""A board's knobs: where they are, what they say, and how they are turned without a password.

``Board`` holds what differs between a real board and one that a test lays out in a folder: where
/proc and /sys lie, how a program is run, and whether the agent is root.
"""

import glob
import os
import re
import shutil
import subprocess

from . import tegra, telemetry

RUN_TIMEOUT_S = 60
# A shell that is not a login shell may lack these, and nvpmodel is in /usr/sbin.
SYSTEM_PATH = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
NVPMODEL_CONF = "etc/nvpmodel.conf"
# JetPack 4's fan, and JetPack 5's by the name of its driver.
PWM_FAN = "sys/devices/pwm-fan"
FAN_NAME = "pwmfan"
FAN_SETTINGS = ("/target_pwm", "/temp_control", "/pwm1")
# Memory clock: minimum, maximum, current, whether it is held. Debug files, for root alone.
EMC_FILES = (
    (
        "sys/kernel/debug/tegra_bwmgr/emc_min_rate",
        "sys/kernel/debug/tegra_bwmgr/emc_max_rate",
        "sys/kernel/debug/clk/override.emc/clk_rate",
        "sys/kernel/debug/clk/override.emc/clk_state",
    ),
    (
        "sys/kernel/debug/bpmp/debug/clk/emc/min_rate",
        "sys/kernel/debug/bpmp/debug/clk/emc/max_rate",
        "sys/kernel/debug/bpmp/debug/clk/emc/rate",
        "sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked",
    ),
)


def program(name):
    """Path of a program, looked for among the system's too; None where there is none."""
    places = os.environ.get("PATH", "").split(os.pathsep) + list(SYSTEM_PATH)
    return shutil.which(name, path=os.pathsep.join(places))


def run_program(argv, text=""):
    """Exit code and output of a program that is given ``text``; code None: it cannot be run."""
    path = program(argv[0])
    if path is None:
        return None, "there is no %s on this board" % argv[0]
    try:
        done = subprocess.run(
            [path] + list(argv[1:]),
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, LC_ALL="C"),
            timeout=RUN_TIMEOUT_S,
        )
    except OSError as error:
        return None, "%s cannot be run: %s" % (argv[0], error)
    except subprocess.TimeoutExpired:
        return None, "%s did not end within %g s" % (argv[0], RUN_TIMEOUT_S)
    return done.returncode, done.stdout.decode(errors="replace").strip()


class Board:
    """The knobs under ``root``; ``run(argv, text)`` gives a program's exit code and output.

    ``access`` says whether this user may write a file, as ``os.access`` does.
    """

    def __init__(self, root=telemetry.ROOT, run=run_program, uid=None, access=os.access):
        self.root = root
        self._run = run
        self._access = access
        self.is_root = (os.geteuid() if uid is None else uid) == 0
        self._listing = None

    def path(self, name):
        """Where a file lies on this board."""
        return os.path.join(self.root, name)

    def paths(self, pattern):
        """Files that fit ``pattern``, named as ``pattern`` is; numbers in them are in order."""
        found = [os.path.relpath(path, self.root) for path in glob.glob(self.path(pattern))]
        return sorted(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])

    def text(self, name):
        """A file's text, or None."""
        return telemetry.read_text(self.path(name))

    def number(self, name, scale=1):
        """The whole number in a file, times ``scale``, or None."""
        found = telemetry.read_number(self.path(name))
        return None if found is None else int(found) * scale

    def run(self, *argv, text=""):
        """Exit code and output of a program."""
        return self._run(list(argv), text)

    def sudo(self, *argv, text=""):
        """The same as root, which never asks for a password."""
        return (
            self.run(*argv, text=text) if self.is_root else self.run("sudo", "-n", *argv, text=text)
        )

    def may_sudo(self, *argv):
        """Whether ``sudo`` would run this program, by what sudo itself lists."""
        if program(argv[0]) is None:
            return False
        if self.is_root:
            return True
        if self._listing is None:
            self._listing = self.run("sudo", "-n", "-l")[1]
        return tegra.may_run(self._listing, argv)

    def writable(self, name):
        """Whether ``write`` may change a file."""
        path = self.path(name)
        return self._access(path, os.W_OK) or (os.path.exists(path) and self.may_sudo("tee", path))

    def write(self, name, value):
        """None, or why a file could not be written; through ``sudo tee`` where that is allowed."""
        path = self.path(name)
        if self._access(path, os.W_OK):
            try:
                with open(path, "w") as stream:
                    stream.write(value)
                return None
            except OSError as error:
                return "%s: %s" % (path, error.strerror)
        if not os.path.exists(path):
            return "there is no %s" % path
        if not self.may_sudo("tee", path):
            return "%s may be written by root alone" % path
        code, output = self.sudo("tee", path, text=value)
        return None if code == 0 else "%s: %s" % (path, output)


# --- what the knobs say -------------------------------------------------------------------------


def power_modes(board):
    """nvpmodel.conf's modes, as ``tegra.power_models`` gives them."""
    return tegra.power_models(board.text(NVPMODEL_CONF))


def power_mode(board):
    """The mode in force as ``{"id", "name"}``, or None."""
    found = tegra.power_mode(board.run("nvpmodel", "-q")[1])
    if found is None:
        # What nvpmodel leaves for the next boot; readable where the tool is not.
        status = re.search(r"pmode:(\d+)", board.text("var/lib/nvpmodel/status") or "")
        if status is None:
            return None
        found = {"id": int(status.group(1)), "name": None}
    for model in power_modes(board):
        if found["id"] is None and model["name"] == found["name"]:
            found["id"] = model["id"]
        elif found["name"] is None and model["id"] == found["id"]:
            found["name"] = model["name"]
    return None if found["id"] is None or found["name"] is None else found


def cpus(board):
    """Every CPU with its clocks; ``folder`` is where they lie."""
    found = []
    for folder in board.paths("sys/devices/system/cpu/cpu[0-9]*"):
        if not re.match(r"^cpu\d+$", os.path.basename(folder)):
            continue
        freq = folder + "/cpufreq/"
        found.append(
            {
                "online": board.number(folder + "/online") != 0,
                "governor": board.text(freq + "scaling_governor"),
                "min_hz": board.number(freq + "scaling_min_freq", 1000),
                "max_hz": board.number(freq + "scaling_max_freq", 1000),
                "cur_hz": board.number(freq + "scaling_cur_freq", 1000),
                "hw_min_hz": board.number(freq + "cpuinfo_min_freq", 1000),
                "hw_max_hz": board.number(freq + "cpuinfo_max_freq", 1000),
                "available_hz": _table(board, freq + "scaling_available_frequencies", 1000),
            }
        )
    return found


def _table(board, name, scale):
    words = (board.text(name) or "").split()
    return [int(word) * scale for word in words if word.isdigit()]


def gpu_folder(board):
    """Where the GPU's clocks lie, below ``root``; None where there are none."""
    folder = telemetry.gpu_folder(board.root)
    return None if folder is None else os.path.relpath(folder, board.root)


def gpu(board):
    """The GPU's clocks, or None."""
    folder = gpu_folder(board)
    if folder is None:
        return None
    return {
        "min_hz": board.number(folder + "/min_freq"),
        "max_hz": board.number(folder + "/max_freq"),
        "cur_hz": board.number(folder + "/cur_freq"),
        "governor": board.text(folder + "/governor"),
        "available_hz": _table(board, folder + "/available_frequencies", 1),
    }


def emc(board):
    """The memory's clocks, or None; asks jetson_clocks where the files are for root alone."""
    for low, high, now, held in EMC_FILES:
        if board.number(now) is not None:
            state = board.number(held)
            return {
                "min_hz": board.number(low),
                "max_hz": board.number(high),
                "cur_hz": board.number(now),
                "locked": None if state is None else state == 1,
            }
    if not board.is_root and board.may_sudo("jetson_clocks", "--show"):
        return tegra.jetson_clocks(board.sudo("jetson_clocks", "--show")[1])["emc"]
    return None


def fan_files(board):
    """Files of the fan: speed, highest speed, on JetPack 4 also who controls it; or None."""
    if board.number(PWM_FAN + "/target_pwm") is not None:
        return PWM_FAN + "/target_pwm", PWM_FAN + "/pwm_cap", PWM_FAN + "/temp_control"
    for name in board.paths("sys/class/hwmon/hwmon*/name"):
        folder = os.path.dirname(name)
        if board.text(name) == FAN_NAME and board.number(folder + "/pwm1") is not None:
            return folder + "/pwm1", folder + "/pwm1_max"
    return None


def fan(board):
    """``{"pwm", "max_pwm", "automatic"}``, or None; automatic: the board changes it by itself."""
    files = fan_files(board)
    if files is None:
        return None
    return {
        "pwm": board.number(files[0]),
        "max_pwm": board.number(files[1]) or 255,
        "automatic": board.number(files[2]) == 1 if len(files) > 2 else None,
    }
