"""What a board's Python tells before there is an agent: its version, the cache folder, the disk."""

from __future__ import annotations

import json
from typing import Any

from harness.boards.reach import Failed
from harness.records import Check
from harness.units import format_size

__all__ = ["PROBE", "PYTHONS", "at_least_36", "cache_folder", "disk", "pythons", "read"]

LOW_DISK_BYTES, FULL_DISK_BYTES = 2e9, 100e6
PROBE_MARK = b"boardfit-doctor "
# Runs on any Python, 2.7 included, so that it can say which one it is. Looks at the folder as it
# was found and then writes to it, as the agent would.
PROBE = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
import json, os, platform, struct, tempfile
cache = os.path.abspath(os.path.expanduser(sys.argv[1]))
found = {{"version": "%d.%d.%d" % sys.version_info[:3], "executable": sys.executable,
         "bits": 8 * struct.calcsize("P"), "machine": platform.machine(), "cache_dir": cache,
         "error": None, "code": None}}
there = cache
while not os.path.isdir(there):
    there = os.path.dirname(there)
try:
    if not os.path.isdir(cache):
        os.makedirs(cache)
    handle, path = tempfile.mkstemp(prefix="doctor-", dir=cache)
    try:
        for _ in range(16):
            os.write(handle, b"0" * 65536)
        os.fsync(handle)
    finally:
        os.close(handle)
        os.remove(path)
except (IOError, OSError) as error:
    found["error"], found["code"] = str(error), error.errno
disk = os.statvfs(there)
found["free_bytes"] = disk.f_bavail * disk.f_frsize
found["total_bytes"] = disk.f_blocks * disk.f_frsize
found["free_inodes"] = disk.f_favail if disk.f_files else None
found["read_only"] = bool(disk.f_flag & 1)
sys.stdout.write("\\n{PROBE_MARK.decode()}" + json.dumps(found) + "\\n")
"""
# Which interpreters there are, for boards where the configured one will not do.
PYTHONS = """\
for name in python3 python3.6 python3.7 python3.8 python3.9 python3.10 python3.11 python3.12 \
python3.13; do
  command -v "$name" >/dev/null 2>&1 || continue
  echo "boardfit-doctor $name $("$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')"
done
"""
ENOSPC, EROFS, EDQUOT = 28, 30, 122


def _marked(output: bytes) -> list[str]:
    return [
        line[len(PROBE_MARK) :].decode(errors="replace")
        for line in output.splitlines()
        if line.startswith(PROBE_MARK)
    ]


def read(output: bytes) -> dict[str, Any] | None:
    """What ``PROBE`` printed, None where it did not get there."""
    lines = _marked(output)
    found: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return found


def pythons(output: bytes) -> tuple[tuple[str, str], ...]:
    """Names and versions of the interpreters that will do, as ``PYTHONS`` printed them."""
    rows = [line.split() for line in _marked(output)]
    return tuple((row[0], row[1]) for row in rows if len(row) == 2 and at_least_36(row[1]))


def at_least_36(version: str) -> bool:
    """Whether the agent runs on Python ``version``."""
    parts = version.split(".")
    return len(parts) >= 2 and tuple(int(part) for part in parts[:2]) >= (3, 6)


def cache_folder(probe: dict[str, Any]) -> Check:
    """Whether the agent can keep its files; ``Failed`` says why not."""
    folder, error = probe["cache_dir"], probe["error"]
    if error is None:
        return Check(name="cache folder", status="ok", found=f"{folder} can be written")
    elsewhere = 'or set cache_dir = "..." for the board in boards.toml'
    if probe["code"] in (ENOSPC, EDQUOT):
        what, remedy = "the disk is full", f"make room there (df -h, apt-get clean), {elsewhere}"
    elif probe["code"] == EROFS or probe["read_only"]:
        what = "the file system is read-only"
        remedy = (
            "a failing SD card is mounted so: look at dmesg, copy what you need, replace it; "
            f"sudo mount -o remount,rw / until then, {elsewhere}"
        )
    else:
        what, remedy = "no write access", f"give it to yourself (sudo chown), {elsewhere}"
    raise Failed(f"{folder} cannot be written: {what} ({error})", remedy, code=probe["code"])


def disk(probe: dict[str, Any]) -> Check:
    """Whether there is room for engines; ``Failed`` where not even the agent's own files fit."""
    free, total, inodes = probe["free_bytes"], probe["total_bytes"], probe["free_inodes"]
    found = f"{format_size(free)} of {format_size(total)} are free at {probe['cache_dir']}"
    remedy = 'make room (df -h, apt-get clean), or set cache_dir = "..." to another disk'
    facts = {"free_bytes": free, "total_bytes": total, "free_inodes": inodes}
    if inodes is not None and inodes < 1000:
        raise Failed(f"{found}, but only {inodes} files can be made (df -i)", remedy, **facts)
    if free < FULL_DISK_BYTES:
        raise Failed(found, remedy, **facts)
    if free < LOW_DISK_BYTES:
        return Check(name="disk", status="warn", found=found, remedy=remedy, facts=facts)
    return Check(name="disk", status="ok", found=found, facts=facts)
