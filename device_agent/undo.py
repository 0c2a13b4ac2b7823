"""Putting a board's controls back: what they were, on the disk before the first change.

``conditions.json`` in the cache folder says what everything was; it goes when all of it is back.
A lock for the whole machine, beside the lease, says who relies on the settings: an agent that set
them and every job that runs hold it shared for as long as they live. Whoever gets it alone knows
that nobody does.
"""

import errno
import fcntl
import os
import re
import time

from . import board as knobs
from . import files, lease, tegra

RECORD = "conditions.json"
LOCK = "boardfit.conditions"
# Setting or restoring takes seconds on a Nano; whoever waits for it waits longer.
SHARE_TIMEOUT_S = 60.0
# In /run only root writes, so that the file is safe to let root restore from; and it is gone after
# a boot, as the settings in it are.
CLOCKS_FILE = "run/boardfit.clocks"
# Nothing else is a control; a record that names another file is none of ours.
OURS = re.compile(r"sys/(devices|kernel/debug|class/hwmon|class/devfreq)/[ -~]+\Z")


class ConditionsHeld(Exception):
    """Somebody else relies on the board's settings, so that they cannot be changed now."""


class Users:
    """One user of the board's settings; the kernel lets go of the lock if it dies."""

    def __init__(self):
        self._descriptor = None

    def _lock(self, kind, timeout_s):
        if self._descriptor is None:
            self._descriptor = lease.open_shared(lease.path(LOCK))
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(files.POLL_S)

    def share(self, timeout_s=SHARE_TIMEOUT_S):
        """Rely on the settings as they are, from now until ``release``."""
        if not self._lock(fcntl.LOCK_SH, timeout_s):
            raise ConditionsHeld("the board's settings were being changed for %.0f s" % timeout_s)

    def alone(self, timeout_s=0.0):
        """Whether nobody else relies on the settings; nobody else can begin to, if so."""
        if self._lock(fcntl.LOCK_EX, timeout_s):
            return True
        # A lock that could not be made exclusive is gone.
        self.release()
        return False

    def release(self):
        """Rely on nothing any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


# --- the record ---------------------------------------------------------------------------------


def boot_id(board):
    """What tells one boot of the board from another, or None."""
    return board.text("proc/sys/kernel/random/boot_id")


def read_record(cache_dir):
    """The record, or None; one that is damaged counts as none and is kept aside."""
    path = os.path.join(cache_dir, RECORD)
    found = files.read_json(path)
    if _is_record(found):
        return found
    if os.path.lexists(path):
        os.replace(path, path + ".damaged")
    return None


def _is_record(found):
    """Whether it is what ``keep`` writes: the names in it are files that are then written to."""
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        return False
    mode, clocks, texts = found.get("power_mode"), found.get("clocks_file"), found["files"]
    return (
        isinstance(found.get("boot_id", 0), (str, type(None)))
        and (mode is None or (isinstance(mode, int) and 0 <= mode < 1000))
        and clocks in (None, CLOCKS_FILE)
        and all(OURS.match(name) and ".." not in name for name in texts)
        and all(isinstance(text, str) for text in texts.values())
        and all(low.replace("min_freq", "max_freq") in texts for low in texts)
        and all(texts[name].isdigit() for name in texts if name.endswith("_freq"))
    )


def keep(cache_dir, board):
    """The record of how everything was before the first change, written if there is none.

    A later change under the same record leaves it as it is: what is restored is what was found.
    """
    record = read_record(cache_dir)
    if record is not None and record["boot_id"] == boot_id(board):
        return record
    if record is not None:
        # A boot has brought back everything but the power mode: begin from there.
        restore(cache_dir, board)
        record = read_record(cache_dir)
    mode = knobs.power_mode(board)
    fresh = {
        "version": 1,
        "boot_id": boot_id(board),
        "power_mode": None if mode is None else mode["id"],
        "clocks_file": None,
        "files": _files(board),
    }
    if record is not None:
        fresh["power_mode"] = record["power_mode"]
    files.write_json(os.path.join(cache_dir, RECORD), fresh)
    if knobs.program("jetson_clocks") is not None:
        # It knows of more than we do: idle states, the GPU's power gate.
        place = board.path(CLOCKS_FILE)
        code, _ = board.sudo("jetson_clocks", "--store", place, text="y\n")
        if code == 0 and os.path.exists(place):
            fresh["clocks_file"] = CLOCKS_FILE
            files.write_json(os.path.join(cache_dir, RECORD), fresh)
    return fresh


def _files(board):
    """Text of every file that a change of the controls may change, by name below the root."""
    names = []
    for folder in board.paths("sys/devices/system/cpu/cpu[0-9]*"):
        clocks = ("scaling_governor", "scaling_min_freq", "scaling_max_freq")
        names += [folder + "/online"] + ["%s/cpufreq/%s" % (folder, name) for name in clocks]
    gpu = knobs.gpu_folder(board)
    if gpu is not None:
        names += [gpu + "/min_freq", gpu + "/max_freq"]
    names += [group[3] for group in knobs.EMC_FILES]
    names += [name for name in knobs.fan_files(board) or () if name.endswith(knobs.FAN_SETTINGS)]
    found = [(name, board.text(name)) for name in names]
    return {name: text for name, text in found if text is not None}


# --- the way back -------------------------------------------------------------------------------


def restore(cache_dir, board):
    """What is not as it was although it should be, in sentences; the record is gone if nothing is.

    The caller is alone with the settings. After a boot only the power mode is put back: it is all
    that a boot keeps.
    """
    record = read_record(cache_dir)
    if record is None:
        return []
    problems = _restore_mode(board, record["power_mode"])
    if record["boot_id"] == boot_id(board):
        if record["clocks_file"] is not None:
            board.sudo("jetson_clocks", "--restore", board.path(record["clocks_file"]))
        problems += _restore_files(board, record["files"])
    if not problems:
        os.remove(os.path.join(cache_dir, RECORD))
    return problems


def _restore_mode(board, wanted):
    if wanted is None:
        return []
    now = knobs.power_mode(board)
    if now is not None and now["id"] == wanted:
        return []
    reason = set_mode(board, wanted)
    return [] if reason is None else ["power mode %d is not back: %s" % (wanted, reason)]


def set_mode(board, number):
    """None, or why nvpmodel's mode could not be set. Never lets it reboot the board."""
    code, output = board.sudo("nvpmodel", "-m", str(number), text="no\n")
    now = knobs.power_mode(board)
    if now is not None and now["id"] == number:
        return None
    if tegra.asks_for_reboot(output):
        return "the mode needs a reboot, which boardfit never does"
    lines = output.splitlines() if output else []
    return lines[-1] if lines else "nvpmodel ended with code %s and changed nothing" % code


def _restore_files(board, texts):
    for name in sorted(texts, key=_turn):
        if board.text(name) == texts[name]:
            continue
        if name.endswith("min_freq"):
            high = name.replace("min_freq", "max_freq")
            set_range(board, name, high, texts[name], texts[high])
        else:
            board.write(name, texts[name])
    return [
        "%s is %s, not %s: %s" % (name, board.text(name), value, _why(board, name))
        for name, value in sorted(texts.items())
        if board.text(name) not in (value, None) and not _moves_by_itself(name, texts)
    ]


def _turn(name):
    """CPUs come back before their clocks, the fan's own control after its speed."""
    return (not name.endswith("/online"), name.endswith("temp_control"), name)


def _moves_by_itself(name, texts):
    return name.endswith("/target_pwm") and texts.get(knobs.PWM_FAN + "/temp_control") == "1"


def _why(board, name):
    return "it did not take the value" if board.writable(name) else "only root may write it"


def set_range(board, low_name, high_name, low, high):
    """None, or why a range of clocks could not be set; the kernel refuses a minimum above it."""
    now = board.number(high_name)
    pairs = [(low_name, low), (high_name, high)]
    if now is not None and int(low) > now:
        pairs.reverse()
    reasons = [board.write(name, value) for name, value in pairs if board.text(name) != value]
    return next((reason for reason in reasons if reason is not None), None)


def restore_unused(cache_dir, board):
    """``restore`` if nobody relies on the settings; None: nothing to do, or not now."""
    if not os.path.exists(os.path.join(cache_dir, RECORD)):
        return None
    users = Users()
    try:
        return restore(cache_dir, board) if users.alone() else None
    finally:
        users.release()
