"""The board's lease: one lock for the whole machine, so that two hosts never measure at once.

The lock is on a file that all users and all cache folders share. Its holder writes into it who
holds it; the kernel frees it when the holder's last process ends, so no lease is ever stale.
Times are those of the monotonic clock, which is the same in all processes and which nobody sets.
"""

import contextlib
import json
import math
import os
import re
import stat
import time

from . import files, wire

NAME = "boardfit.lease"
# World-writable folders that are emptied at boot; a container or a test may name another.
FOLDERS = ("/run/lock", "/tmp")
VARIABLE = "BOARDFIT_LEASE_DIR"
# How often those who wait are told who holds it.
TELL_S = 5.0
TEXT_BYTES = 4096
# Everyone on the board may write into the file, and others print what it says.
PRINTABLE = re.compile(r"[ -~]{0,120}\Z")


class LeaseHeld(Exception):
    """Another job held the board's lease for too long."""


def path(name=NAME):
    """The lease's file, or another: the same for everyone on this machine."""
    named = os.environ.get(VARIABLE)
    if named:
        return os.path.join(named, name)
    for folder in FOLDERS:
        with contextlib.suppress(OSError):
            if os.stat(folder).st_mode & stat.S_IWOTH:
                return os.path.join(folder, name)
    return os.path.join(FOLDERS[-1], name)


def open_shared(where):
    """A descriptor of a file that everyone may lock, made if it is not there."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    # Linux refuses O_CREAT on somebody else's file in a folder like /tmp: try without it first.
    try:
        return os.open(where, flags)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(where, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(where, flags)
    os.fchmod(descriptor, 0o666)
    return descriptor


def _read(descriptor):
    try:
        return _holder(wire.parse(os.pread(descriptor, TEXT_BYTES, 0)))
    except (ValueError, RecursionError, KeyError, TypeError, OverflowError):
        # The lock is taken a moment before its holder has written who it is.
        return {"owner": "unknown", "kind": "unknown", "job_id": "", "held_s": 0.0, "left_s": None}


def _holder(found):
    """What the file says; one of several errors where a holder of this boot has not written it."""
    if found["boot_id"] != files.boot_id():
        raise ValueError("the board has been started since")
    held_s = max(0.0, time.monotonic() - found["since_s"])
    expected_s = found["expected_s"]
    left_s = None if expected_s is None else max(0.0, expected_s - held_s)
    texts = {name: found[name] for name in ("owner", "kind", "job_id")}
    if not all(PRINTABLE.match(text) for text in texts.values()) or not math.isfinite(held_s):
        raise ValueError("this is no text of ours")
    return dict(texts, held_s=held_s, left_s=left_s)


def holder():
    """Who holds the lease, since when and for how long still (seconds); None if it is free."""
    try:
        descriptor = open_shared(path())
    except OSError:
        return None
    try:
        return None if files.lock(descriptor, 0.0) else _read(descriptor)
    finally:
        os.close(descriptor)


def describe(found):
    """A sentence about who holds the lease."""
    text = "%s, %s job %s, for %.0f s" % (
        found["owner"],
        found["kind"],
        found["job_id"][:8],
        found["held_s"],
    )
    left_s = found["left_s"]
    return text if left_s is None else "%s, about %.0f s more" % (text, left_s)


def acquire(job_id, kind, owner, expected_s, timeout_s, tell):
    """A descriptor that holds the lease until its last copy is closed.

    ``tell(sentence)`` is called at once and every few seconds while somebody else holds it.
    ``LeaseHeld`` after ``timeout_s``.
    """
    descriptor = open_shared(path())
    start_s, wait_s = time.monotonic(), 0.0
    while not files.lock(descriptor, wait_s):
        sentence = "the board's lease, held by " + describe(_read(descriptor))
        left_s = start_s + timeout_s - time.monotonic()
        if left_s <= 0:
            os.close(descriptor)
            raise LeaseHeld("after %.0f s this job still waits for %s" % (timeout_s, sentence))
        tell(sentence)
        wait_s = min(TELL_S, left_s)
    content = {
        "job_id": job_id,
        "kind": kind,
        "owner": owner,
        "since_s": time.monotonic(),
        "expected_s": expected_s,
        "boot_id": files.boot_id(),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode()[:TEXT_BYTES], 0)
    return descriptor
