"""Files that survive what boards do to them: atomic, verified JSON, and locks that die with us."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time

from . import wire

POLL_S = 0.1
# What a full, read-only or failing disk answers; none of it is the fault of who asked.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# Temporary names end in the number of the process that writes them.
TEMPORARY = re.compile(r"\.(\d+)(\.new)?$")
SEAL = '{"sha256": "%s", "content": '
SEAL_BYTES = len(SEAL) - 2 + 64
# More than any frame holds.
MOST_BYTES = 1 << 26


class Damaged(Exception):
    """A file's content is not what was written to it."""


def open_file(path):
    """A file to read bytes from; ``OSError`` for what is none, as a pipe, which would never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "%s is no file" % path)
    return os.fdopen(descriptor, "rb")


def read_bytes(path):
    """Content of a file, cut where it is longer than any that is ours."""
    with open_file(path) as stream:
        return stream.read(MOST_BYTES)


def read_json(path):
    """Content of a JSON file, or None where there is none or none that is whole."""
    try:
        return wire.parse(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path):
    """The object in a JSON file; {} where there is none."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def write_text(path, text):
    """Write a file so that a reader sees all of it or none, whatever happens to the power."""
    temporary = "%s.%d" % (path, os.getpid())
    try:
        with open(temporary, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def write_json(path, content):
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, allow_nan=False))


def write_sealed_once(path, content):
    """Write JSON under its own hash, unless the file is there already."""
    text = json.dumps(content, allow_nan=False)
    temporary = "%s.%d.new" % (path, os.getpid())
    write_text(temporary, SEAL % hashlib.sha256(text.encode()).hexdigest() + text + "}")
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.remove(temporary)
    _sync_folder(os.path.dirname(path))


def read_sealed(path):
    """Content of a sealed file, None where there is none; ``Damaged`` if it is not as written."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged("%s cannot be read: %s" % (path, error))
    body = data[SEAL_BYTES:-1]
    if data[:SEAL_BYTES] != (SEAL % hashlib.sha256(body).hexdigest()).encode():
        raise Damaged("%s is damaged" % path)
    try:
        return wire.parse(body)
    except (ValueError, RecursionError) as error:
        raise Damaged("%s is damaged: %s" % (path, error))


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor, timeout_s):
    """Whether the descriptor's file could be locked within ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)


def boot_id():
    """What tells one run of the board's kernel from the next."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def is_leftover(name):
    """Whether a file's name is a temporary one, of a process that is no more."""
    found = TEMPORARY.search(name)
    if not found:
        return False
    try:
        os.kill(int(found.group(1)), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False
